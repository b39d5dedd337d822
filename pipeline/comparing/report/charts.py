"""Charts of a comparison: scores by layer of every encoder, and best layers by task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.comparing.report.grids import DIRECTIONS, row_name
from pipeline.comparing.results import Comparison, TaskComparison, Variant
from pipeline.probing.report.charts import (
    COLOURS,
    Chart,
    Medium,
    legend_above,
    shade,
    short_line,
    text_width,
    tick_label,
)
from pipeline.probing.report.naming import candidate_name, metric_name
from pipeline.probing.report.tabular import Rows
from pipeline.probing.results import WEIGHTED, CandidateScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("blue", "orange", "green", "purple", "ink", "muted")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")
_MAX_BANDS = 4  # lines; more intervals would hide each other
_CELL = (0.62, 0.34)  # inches of a cell of the map of best layers on a screen
_MAX_NAME = 40  # characters of a name beside a chart


def file_name(kind: str, task: TaskComparison, comparison: Comparison) -> str:
    """Return the name of the files of a task's chart."""
    if len(comparison.tasks) == 1:
        return kind
    number = comparison.tasks.index(task) + 1
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in task.name)
    unique = [other for other in comparison.tasks if other.task == task.task]
    return f"{kind}-{letters}" if len(unique) == 1 else f"{kind}-{number}-{letters}"


def style_of(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    """Return colour and marker of an encoder, and the dash of a head, as matplotlib names them."""
    encoder = comparison.encoders.index(variant.encoder)
    head = comparison.heads.index(variant.head)
    if len(comparison.encoders) == 1:  # then colours show the heads
        encoder = head
    return {
        "color": COLOURS[_COLOURS[encoder % len(_COLOURS)]],
        "marker": _MARKERS[encoder % len(_MARKERS)],
        "linestyle": _DASHES[head % len(_DASHES)],
    }


def score_label(task: TaskComparison, medium: Medium) -> str:
    """Return the label of an axis of test scores, in two lines if the medium is narrow."""
    gap = "\n" if medium.is_narrow else " "
    return f"test {metric_name(task.metric)}{gap}({DIRECTIONS[task.higher_is_better]})"


def layers_chart(task: TaskComparison, comparison: Comparison) -> Chart:
    """Draw the test scores of every encoder by layer, and beside them the weighted sums.

    Layers of encoders of different depth are shown by their share of the depth.
    """
    variants = task.full
    depths = {variant.name: _depth(variant) for variant in variants}
    is_relative = len({depth for depth in depths.values() if depth}) > 1

    def place(variant: Variant, layer: int) -> float:
        return layer / (depths[variant.name] or 1) if is_relative else float(layer)

    singles = {variant.name: _single(variant) for variant in variants}
    places = sorted({place(v, layer) for v in variants for layer, _ in singles[v.name]})
    end = places[-1] if places else 0.0
    step = (end - places[0]) / max(1, len(places) - 1) if len(places) > 1 else 1.0
    gap = 0.06 if is_relative else max(1.0, 0.07 * (end - places[0] if places else 0.0))
    sums = end + gap if places else 0.0

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        for i, variant in enumerate(variants):
            style = style_of(comparison, variant)
            scores = [score for _, score in singles[variant.name]]
            at = [place(variant, layer) for layer, _ in singles[variant.name]]
            name = short_line(row_name(comparison, variant), _MAX_NAME)
            _draw_scores(axes, at, scores, style, name, medium, len(variants) <= _MAX_BANDS)
            shift = (i - (len(variants) - 1) / 2) * gap / (2 * max(1, len(variants)))
            others = [s for s in variant.sweep.scores if not isinstance(s.layer, int)]
            for score in others:
                _draw_sum(axes, sums + shift, score, style, name if not scores else "_", medium)
        _label_axis(axes, places, sums, is_relative, medium, variants)
        axes.set_xlim((places[0] if places else sums) - 0.6 * step, sums + 0.6 * max(gap, step / 2))
        axes.set_ylabel(score_label(task, medium))
        legend_above(axes, medium, ncols=3)

    def size(medium: Medium) -> tuple[float, float]:
        n_rows = math.ceil(len(variants) / (2 if medium.is_narrow else 3))
        return medium.width, (2.2 + 0.13 * n_rows) if medium.is_narrow else 3.4 + 0.17 * n_rows

    alt = (
        f"Test {metric_name(task.metric)} by layer of {len(variants)} encoders for {task.name}, "
        f"{DIRECTIONS[task.higher_is_better]}"
    )
    numbers = Rows(
        (
            *("encoder", "head", "candidate", "layer", "relative_layer"),
            *("dev", "test", "test_low", "test_high"),
        ),
        [
            (
                variant.encoder,
                variant.head,
                candidate_name(score.layer, variant.sweep),
                score.layer if isinstance(score.layer, int) else None,
                score.layer / (depths[variant.name] or 1) if isinstance(score.layer, int) else None,
                *(score.dev, score.test, score.low, score.high),
            )
            for variant in variants
            for score in variant.sweep.scores
        ],
    )
    return Chart(file_name("layers", task, comparison), alt, plot, size, numbers)


def _depth(variant: Variant) -> int:
    """Return the number of the last layer that was swept; 0 without numbers."""
    return max((layer for layer, _ in _single(variant) if layer > 0), default=0)


def _single(variant: Variant) -> list[tuple[int, CandidateScore]]:
    return [(s.layer, s) for s in variant.sweep.scores if isinstance(s.layer, int)]


def _draw_scores(
    axes: Axes,
    at: Sequence[float],
    scores: Sequence[CandidateScore],
    style: dict[str, Any],
    name: str,
    medium: Medium,
    has_band: bool,
) -> None:
    """Draw the test scores of the layers of a variant, and their intervals as a band."""
    if not scores:
        return
    low, high = [score.low for score in scores], [score.high for score in scores]
    if has_band and len(at) > 1:
        axes.fill_between(at, low, high, color=style["color"], alpha=0.13, linewidth=0)
    elif has_band:
        axes.vlines(at, low, high, color=style["color"], linewidth=0.8)
    width = 1.0 if medium.is_narrow else 1.3
    values = [score.test for score in scores]
    axes.plot(at, values, label=name, linewidth=width, markersize=medium.marker - 0.8, **style)


def _draw_sum(
    axes: Axes,
    at: float,
    score: CandidateScore,
    style: dict[str, Any],
    name: str,
    medium: Medium,
) -> None:
    """Draw the test score of a weighted sum, or of a collapsed layer, with its interval."""
    marks = {name: value for name, value in style.items() if name != "linestyle"}
    axes.vlines([at], [score.low], [score.high], color=style["color"], linewidth=0.8)
    axes.plot([at], [score.test], label=name, linewidth=0, markersize=medium.marker, **marks)


def _label_axis(
    axes: Axes,
    places: Sequence[float],
    sums: float,
    is_relative: bool,
    medium: Medium,
    variants: Sequence[Variant],
) -> None:
    """Label the x axis with layers, or shares of the depth, and the place of the sums."""
    if is_relative:
        ticks, names = [0.0, 0.25, 0.5, 0.75, 1.0], ["0", "¼", "½", "¾", "1"]
        label = "layer, as a share of the last one"
    else:
        every = math.ceil(len(places) / (medium.max_ticks - 2))
        ticks = list(places)[::every]
        labels = {n: text for v in variants for n, text in v.sweep.layer_labels.items()}
        names, label = [tick_label(int(tick), labels) for tick in ticks], "layer"
    kinds = {s.layer for v in variants for s in v.sweep.scores if not isinstance(s.layer, int)}
    if kinds:
        ticks, names = [*ticks, sums], [*names, "sum" if WEIGHTED in kinds else "collapsed"]
    axes.set_xticks(ticks, names)
    axes.set_xlabel(label)


def best_layers_chart(comparison: Comparison) -> Chart:
    """Draw the best single layer of each encoder and task, shaded by its share of the depth."""
    rows = list(
        dict.fromkeys(
            row_name(comparison, variant) for task in comparison.tasks for variant in task.full
        )
    )
    tasks = [task.name for task in comparison.tasks]
    texts = [["" for _ in tasks] for _ in rows]
    shares = np.full((len(rows), len(tasks)), np.nan)
    numbers = []
    for column, task in enumerate(comparison.tasks):
        for variant in task.full:
            layer = variant.best_layer.layer
            if not isinstance(layer, int):
                continue
            depth = _depth(variant)
            row = rows.index(row_name(comparison, variant))
            label = variant.sweep.layer_labels[layer]
            texts[row][column] = f"{label}/{depth}" if label.isdigit() else label
            shares[row, column] = max(0.0, layer / depth) if depth else 0.0
            numbers.append((variant.encoder, variant.head, task.name, layer, depth))
    names = [short_line(row, _MAX_NAME) for row in rows]
    columns = [short_line(task, 14) for task in tasks]

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        opacities = np.nan_to_num(0.05 + 0.85 * shares)
        shown = np.argwhere(~np.isnan(shares))
        corners = np.array([(-0.48, -0.47), (0.48, -0.47), (0.48, 0.47), (-0.48, 0.47)])
        if len(shown):
            centres = shown[:, None, ::-1] + corners
            shade(axes, centres, opacities[shown[:, 0], shown[:, 1]])
        for row, column in shown.tolist():
            colour = COLOURS["paper" if opacities[row, column] > 0.55 else "ink"]
            place: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "color": colour,
                "fontsize": medium.small,
            }
            axes.text(column, row, texts[row][column], **place)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(-0.5, len(tasks) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(visible=False)

    def size(medium: Medium) -> tuple[float, float]:
        widest = max(text_width(name, 9.0) for name in names) / 72
        cells = max(
            len(tasks) * max(_CELL[0], *(text_width(c, 9.0) / 72 + 0.1 for c in columns)), 1
        )
        if medium.is_narrow:
            return medium.width, 0.35 + 0.24 * len(rows)
        return min(medium.width, widest + cells + 0.3), 0.45 + _CELL[1] * len(rows)

    alt = "Best single layer of each encoder by task, with the number of the last layer"
    return Chart(
        "best-layers",
        alt,
        plot,
        size,
        Rows(("encoder", "head", "task", "best_layer", "last_layer"), numbers),
    )

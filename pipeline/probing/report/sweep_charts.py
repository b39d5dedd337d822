"""Charts of a sweep: scores, learned weights, learning curves."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from pipeline.probing.metrics import AGREEMENT
from pipeline.probing.report.charts import (
    COLOURS,
    Chart,
    Line,
    Medium,
    draw_line,
    layer_axis,
    legend_above,
    panels_of,
)
from pipeline.probing.report.naming import DETECTION, candidate_name, metric_name
from pipeline.probing.report.prediction_charts import (
    confusion_chart,
    detection_chart,
    predictions_chart,
)
from pipeline.probing.report.tabular import Rows
from pipeline.probing.results import WEIGHTED, Candidate, CandidateScore, HeadResult, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 40
"""Largest number of classes of which a confusion matrix is drawn."""

_COLOURS = ("blue", "orange", "green", "purple")
_DASHES = ("-", "--", "-.", (0, (1, 1)))
_BASELINE_DASHES = (":", (0, (6, 1.5, 1, 1.5)), (0, (3, 1.5)), (0, (1, 3)))
"""Dashes of the baselines in a narrow medium, whose labels are in the legend."""


def draw_charts(sweep: Sweep) -> dict[str, Chart]:
    """Draw the charts that a sweep has data for, by name."""
    charts = {"scores": scores_chart(sweep)}
    if any(head.curve for head in sweep.heads):
        charts["curves"] = curves_chart(sweep)
    if sweep.layer_weights is not None:
        charts["weights"] = weights_chart(sweep)
    if sweep.confusion is not None and len(sweep.confusion) <= MAX_CLASSES:
        charts["confusion"] = confusion_chart(sweep)
    if predicts_numbers(sweep):
        charts["predictions"] = predictions_chart(sweep)
    if sweep.metric in DETECTION:
        charts["detection"] = detection_chart(sweep)
    return charts


def predicts_numbers(sweep: Sweep) -> bool:
    """Whether the task is a regression."""
    return sweep.metric in AGREEMENT


def scores_chart(sweep: Sweep) -> Chart:
    """Draw dev and test scores by layer, with the weighted sum and the baselines as lines."""
    direction = "higher" if sweep.higher_is_better else "lower"
    metric = metric_name(sweep.metric)

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        single = [score for score in sweep.scores if score.layer != WEIGHTED]
        places = [score.layer for score in single if isinstance(score.layer, int)]
        if places:
            _draw_scores(axes, places, single, medium)
            layer_axis(axes, places, medium, sweep.layer_labels)
        elif single:  # a collapsed store has one layer without a number
            _draw_scores(axes, [0], single, medium)
            axes.set_xticks([0], ["collapsed layer"])
        else:
            axes.set_xticks([])
        gap = "\n" if medium.is_narrow else " "
        axes.set_ylabel(f"{metric}{gap}({direction} is better)")
        if isinstance(sweep.best, int):
            _mark_best(axes, sweep.best, sweep.score(sweep.best).test, medium)
        labels = _draw_reference_lines(axes, sweep, medium)
        if not medium.is_narrow:
            _write_labels(axes, labels, medium)
        if single or medium.is_narrow:
            legend_above(axes, medium)

    def size(medium: Medium) -> tuple[float, float]:
        n_lines = len(sweep.baselines) + 2 * (sweep.layer_weights is not None) + 3
        return medium.width, 2.1 + 0.07 * n_lines if medium.is_narrow else 3.9

    alt = f"{metric} on dev and test by layer, {direction} is better"
    return Chart("scores", alt, plot, size, _score_rows(sweep))


def _score_rows(sweep: Sweep) -> Rows:
    """Return the scores of candidates and baselines."""
    columns = ("kind", "name", "layer", "dev", "test", "test_low", "test_high")
    rows: list[tuple[object, ...]] = [
        (
            "candidate",
            candidate_name(score.layer, sweep),
            score.layer if isinstance(score.layer, int) else None,
            score.dev,
            score.test,
            score.low,
            score.high,
        )
        for score in sweep.scores
    ]
    rows += [("baseline", name, None, None, v, None, None) for name, v in sweep.baselines.items()]
    return Rows(columns, rows)


def _draw_scores(
    axes: Axes, places: list[int], scores: list[CandidateScore], medium: Medium
) -> None:
    """Draw the test scores with their intervals, and the dev scores."""
    dev = Line("dev", [score.dev for score in scores], "orange", "s", hollow=True, dash="--")
    test = Line("test, 95 % interval", [score.test for score in scores])
    draw_line(axes, places, dev, medium)
    draw_line(axes, places, test, medium)
    low, high = [score.low for score in scores], [score.high for score in scores]
    blue, cap = COLOURS["blue"], 3 if medium.is_narrow else 5
    axes.vlines(places, low, high, color=blue, linewidth=0.8 if medium.is_narrow else 1.1)
    axes.plot(places, low, "_", places, high, "_", color=blue, markersize=cap)


def _draw_reference_lines(axes: Axes, sweep: Sweep, medium: Medium) -> list[tuple[float, str, str]]:
    """Draw the weighted sum and the baselines as horizontal lines.

    A baseline far from the scores would compress the y axis; it gets a label at the edge instead,
    or in a narrow medium an entry in the legend.

    Returns:
        (y position, text, colour) of the label of each line.
    """
    ends = [value for s in sweep.scores for value in (s.low, s.high, s.test, s.dev)]
    low, high = min(ends), max(ends)
    room = max(high - low, 0.02)
    near = {n: v for n, v in sweep.baselines.items() if low - room <= v <= high + room}
    levels = [low, high, *near.values()]
    pad = 0.06 * (max(levels) - min(levels)) + 1e-3
    axes.set_ylim(min(levels) - pad, max(levels) + pad)
    narrow = medium.is_narrow
    labels = []
    for score in sweep.scores:
        if score.layer == WEIGHTED:
            green = COLOURS["green"]
            axes.axhspan(score.low, score.high, color=green, alpha=0.13, linewidth=0)
            test, dev = ("weighted sum, test", "weighted sum, dev") if narrow else ("_", "_")
            width = 1.2 if narrow else 1.6
            axes.axhline(score.test, color=green, linewidth=width, label=test)
            axes.axhline(score.dev, color=green, linewidth=1.0, linestyle=(0, (5, 3)), label=dev)
            best = ", best by dev" if score.layer == sweep.best else ""
            text = f"weighted sum {score.test:.3f}\n(dev {score.dev:.3f}{best})"
            labels.append((score.test, text, "green"))
    for i, (name, value) in enumerate(sweep.baselines.items()):
        text = f"{name} {value:.3f}"
        if name in near:
            dash: Any = _BASELINE_DASHES[i % len(_BASELINE_DASHES)] if narrow else ":"
            line = {"color": COLOURS["muted"], "linewidth": 1.0, "linestyle": dash}
            axes.axhline(value, **line, label=_short_baseline(text) if narrow else "_")
            labels.append((value, text, "muted"))
        else:
            edge, arrow = (-math.inf, "↓") if value < low else (math.inf, "↑")
            labels.append((edge, f"{arrow} {text}", "muted"))
            if narrow:
                axes.plot([], [], " ", label=f"{arrow} {_short_baseline(text)}")
    return labels


def _short_baseline(text: str) -> str:
    """Return the label of a baseline without the layer, which a legend has no room for."""
    return re.sub(r", layer [\w.-]+", "", text)


def _write_labels(axes: Axes, labels: list[tuple[float, str, str]], medium: Medium) -> None:
    """Write the labels to the right of their lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    line = 0.052 * (high - low)
    free = low
    for value, text, colour in sorted(labels, key=lambda label: label[0]):
        height = line * (1 + text.count("\n"))
        middle = max(free + height / 2, min(max(value, low), high))
        free = middle + height / 2
        axes.annotate(
            text,
            (1.015, middle),
            xycoords=("axes fraction", "data"),
            va="center",
            color=COLOURS[colour],
            fontsize=medium.small,
            annotation_clip=False,
        )


def _mark_best(axes: Axes, place: int, value: float, medium: Medium) -> None:
    axes.plot(
        [place],
        [value],
        "o",
        markersize=8 if medium.is_narrow else 12,
        markerfacecolor="none",
        markeredgecolor=COLOURS["ink"],
        label="best by dev",
        zorder=5,
    )


def weights_chart(sweep: Sweep) -> Chart:
    """Draw the learned weight of each layer: the mean, and each head."""
    weights = sweep.layer_weights or ()
    chosen = sweep.score(WEIGHTED).lr
    heads = [head for head in sweep.heads if head.layer == WEIGHTED and head.lr == chosen]

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        places = list(sweep.layers)
        axes.bar(places, weights, width=0.7, color=COLOURS["green"], alpha=0.75, label="mean")
        for i, head in enumerate(heads if len(heads) > 1 else []):
            axes.plot(
                places,
                head.layer_weights or (),
                "o",
                color=COLOURS["ink"],
                markersize=2 if medium.is_narrow else 3,
                markerfacecolor=COLOURS["paper"],
                label="each head" if i == 0 else None,
            )
        uniform = f"uniform, 1/{len(places)}"
        axes.axhline(1 / len(places), color=COLOURS["muted"], linestyle=":", label=uniform)
        layer_axis(axes, places, medium, sweep.layer_labels)
        axes.set_ylabel("learned weight")
        legend_above(axes, medium)

    def size(medium: Medium) -> tuple[float, float]:
        return medium.width, 2.1 if medium.is_narrow else 2.7

    names = [f"seed {head.seed} fold {head.fold}" for head in heads]
    series = [sweep.layers, weights, *(head.layer_weights or () for head in heads)]
    numbers = Rows(("layer", "mean", *names), list(zip(*series, strict=True)))
    alt = "Learned weight of each layer in the weighted sum"
    return Chart("weights", alt, plot, size, numbers)


def curves_chart(sweep: Sweep) -> Chart:
    """Draw training loss and dev score by step: four candidates in colour, the others in grey."""
    heads = best_heads(sweep)
    coloured = _highlighted(sweep)

    def plot(figure: Figure, medium: Medium) -> None:
        panels = panels_of(figure, medium, 2)
        ordered = sorted(heads, key=lambda layer: layer in coloured)
        grey = "other candidates"
        faint: dict[str, Any] = {"color": COLOURS["grid"]}
        if medium.is_narrow:  # the grid's grey is too light in print
            faint = {"color": COLOURS["muted"], "alpha": 0.4}
        thin, thick = (0.8, 1.1) if medium.is_narrow else (1.2, 1.6)
        for layer in ordered:
            steps, *values = zip(*_finite(heads[layer]), strict=True)
            for axes, series in zip(panels, values, strict=True):
                if layer not in coloured:
                    axes.plot(steps, series, linewidth=thin, label=grey, **faint)
                    continue
                at = coloured.index(layer)
                style: dict[str, Any] = {"color": COLOURS[_COLOURS[at]], "linestyle": _DASHES[at]}
                axes.plot(
                    steps, series, linewidth=thick, label=candidate_name(layer, sweep), **style
                )
            if layer not in coloured:
                grey = "_"  # one entry in the legend
            else:
                dot: dict[str, Any] = {"markersize": medium.marker} if medium.is_narrow else {}
                place = [heads[layer].step], [heads[layer].dev]
                panels[1].plot(*place, "o", color=style["color"], **dot)
        for axes, label in zip(panels, ("training loss", f"dev {sweep.metric}"), strict=True):
            axes.set(xlabel="step", ylabel=label)
        _fit_scale(panels[0], [loss for head in heads.values() for _, loss, _ in _finite(head)])
        if medium.is_narrow:
            panels[0].set_xlabel("")
            legend_above(panels[0], medium)
        else:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper left", ncols=5)

    def size(medium: Medium) -> tuple[float, float]:
        return medium.width, 3.6 if medium.is_narrow else 3.2

    rows = [
        (candidate_name(layer, sweep), head.lr, head.seed, head.fold, *point, point[0] == head.step)
        for layer, head in heads.items()
        for point in _finite(head)
    ]
    columns = ("candidate", "learning_rate", "seed", "fold", "step", "training_loss", "dev")
    alt = "Training loss and dev score by training step"
    return Chart("curves", alt, plot, size, Rows((*columns, "is_best_step"), rows))


def best_heads(sweep: Sweep) -> dict[Candidate, HeadResult]:
    """Return the head of each candidate with the best dev score, at the chosen learning rate."""
    sign = 1 if sweep.higher_is_better else -1
    heads = {}
    for score in sweep.scores:
        own = [head for head in sweep.heads if (head.layer, head.lr) == (score.layer, score.lr)]
        if own := [head for head in own if _finite(head)]:
            heads[score.layer] = max(own, key=lambda head: sign * head.dev)
    return heads


def _finite(head: HeadResult) -> list[tuple[int, float, float]]:
    return [point for point in head.curve if all(math.isfinite(value) for value in point)]


def _highlighted(sweep: Sweep) -> list[Candidate]:
    """Return the best candidate, the second, the weighted sum and the worst, without repeats."""
    sign = -1 if sweep.higher_is_better else 1
    ranked = [score.layer for score in sorted(sweep.scores, key=lambda score: sign * score.dev)]
    weighted = [layer for layer in ranked if layer == WEIGHTED]
    return list(dict.fromkeys([sweep.best, *ranked[:2], *weighted, ranked[-1]]))[:4]


def _fit_scale(axes: Axes, values: list[float]) -> None:
    """Use a log scale for losses that fall by a factor of 30: CTC starts in the hundreds."""
    if values and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")

"""Charts of a sweep: scores, learned weights, learning curves, confusion matrix."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING

from pipeline.probing.metrics import AGREEMENT
from pipeline.probing.report.charts import (
    COLOURS,
    Chart,
    Line,
    Scale,
    draw_line,
    heat_map,
    layer_axis,
    legend_above,
    render,
)
from pipeline.probing.results import WEIGHTED, Candidate, CandidateScore, HeadResult, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DETECTION = ("eer", "min_dcf")
"""Metrics of trials."""
MAX_CLASSES = 40
"""Largest number of classes of which a confusion matrix is drawn."""

METRICS = {
    "f1": "macro-F1",
    "accuracy": "accuracy",
    "cer": "character error rate",
    "wer": "word error rate",
    "per": "phone error rate",
    "macro_f1": "macro-F1",
    "ccc": "concordance correlation",
    "pearson": "Pearson correlation",
    "mae": "mean absolute error",
    "eer": "equal error rate",
    "min_dcf": "minimum detection cost",
    "abx_within": "ABX error within speakers",
    "abx_across": "ABX error across speakers",
}
"""Full names of metrics."""

_MAX_POINTS = 2_000
"""Points of a chart; of more, evenly spaced ones are drawn."""
_COLOURS = ("blue", "orange", "green", "purple")
_DASHES = ("-", "--", "-.", (0, (1, 1)))


def metric_name(name: str) -> str:
    """Return the full name of a metric."""
    return METRICS.get(name, name.replace("_", " "))


def candidate_name(layer: Candidate) -> str:
    """Return the name of a candidate."""
    if layer == WEIGHTED:
        return "weighted sum"
    return f"layer {layer}" if isinstance(layer, int) else "collapsed layer"


def candidate_in_sentence(layer: Candidate) -> str:
    """Return the name of a candidate, with an article if the name needs one."""
    name = candidate_name(layer)
    return name if isinstance(layer, int) else f"the {name}"


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

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        single = [score for score in sweep.scores if score.layer != WEIGHTED]
        places = [score.layer for score in single if isinstance(score.layer, int)]
        if places:
            _draw_scores(axes, places, single)
            layer_axis(axes, places)
        elif single:  # a collapsed store has one layer without a number
            _draw_scores(axes, [0], single)
            axes.set_xticks([0], ["collapsed layer"])
        else:
            axes.set_xticks([])
        axes.set_ylabel(f"{metric} ({direction} is better)")
        labels = _draw_reference_lines(axes, sweep)
        if isinstance(sweep.best, int):
            _mark_best(axes, sweep.best, sweep.score(sweep.best).test)
        _write_labels(axes, labels)
        if single:
            legend_above(axes)

    alt = f"{metric} on dev and test by layer, {direction} is better"
    return render("scores", alt, 3.9, plot)


def _draw_scores(axes: Axes, places: list[int], scores: list[CandidateScore]) -> None:
    """Draw the test scores with their intervals, and the dev scores."""
    dev = Line("dev", [score.dev for score in scores], "orange", "s", hollow=True)
    test = Line("test, 95 % interval", [score.test for score in scores])
    draw_line(axes, places, dev)
    draw_line(axes, places, test)
    low, high = [score.low for score in scores], [score.high for score in scores]
    blue = COLOURS["blue"]
    axes.vlines(places, low, high, color=blue, linewidth=1.1)
    axes.plot(places, low, "_", places, high, "_", color=blue, markersize=5)


def _draw_reference_lines(axes: Axes, sweep: Sweep) -> list[tuple[float, str, str]]:
    """Draw the weighted sum and the baselines as horizontal lines.

    A baseline far from the scores would compress the y axis; it gets a label at the edge instead.

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
    labels = []
    for score in sweep.scores:
        if score.layer == WEIGHTED:
            green = COLOURS["green"]
            axes.axhspan(score.low, score.high, color=green, alpha=0.13, linewidth=0)
            axes.axhline(score.test, color=green, linewidth=1.6)
            axes.axhline(score.dev, color=green, linewidth=1.0, linestyle=(0, (5, 3)))
            best = ", best by dev" if score.layer == sweep.best else ""
            text = f"weighted sum {score.test:.3f}\n(dev {score.dev:.3f}{best})"
            labels.append((score.test, text, "green"))
    for name, value in sweep.baselines.items():
        if name in near:
            axes.axhline(value, color=COLOURS["muted"], linewidth=1.0, linestyle=":")
            labels.append((value, f"{name} {value:.3f}", "muted"))
        else:
            edge, arrow = (-math.inf, "↓") if value < low else (math.inf, "↑")
            labels.append((edge, f"{arrow} {name} {value:.3f}", "muted"))
    return labels


def _write_labels(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
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
            fontsize=8,
            annotation_clip=False,
        )


def _mark_best(axes: Axes, place: int, value: float) -> None:
    axes.plot(
        [place],
        [value],
        "o",
        markersize=12,
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

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        places = list(sweep.layers)
        axes.bar(places, weights, width=0.7, color=COLOURS["green"], alpha=0.75, label="mean")
        for i, head in enumerate(heads if len(heads) > 1 else []):
            axes.plot(
                places,
                head.layer_weights or (),
                "o",
                color=COLOURS["ink"],
                markersize=3,
                markerfacecolor=COLOURS["paper"],
                label="each head" if i == 0 else None,
            )
        uniform = f"uniform, 1/{len(places)}"
        axes.axhline(1 / len(places), color=COLOURS["muted"], linestyle=":", label=uniform)
        layer_axis(axes, places)
        axes.set_ylabel("learned weight")
        legend_above(axes)

    return render("weights", "Learned weight of each layer in the weighted sum", 2.7, plot)


def curves_chart(sweep: Sweep) -> Chart:
    """Draw training loss and dev score by step: four candidates in colour, the others in grey."""
    heads = best_heads(sweep)
    coloured = _highlighted(sweep)

    def plot(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        ordered = sorted(heads, key=lambda layer: layer in coloured)
        grey = "other candidates"
        for layer in ordered:
            steps, *values = zip(*_finite(heads[layer]), strict=True)
            for axes, series in zip(panels, values, strict=True):
                if layer not in coloured:
                    axes.plot(steps, series, color=COLOURS["grid"], linewidth=1.2, label=grey)
                    continue
                at = coloured.index(layer)
                style = {"color": COLOURS[_COLOURS[at]], "linestyle": _DASHES[at]}
                axes.plot(steps, series, linewidth=1.6, label=candidate_name(layer), **style)
            if layer not in coloured:
                grey = "_"  # one entry in the legend
            else:
                panels[1].plot([heads[layer].step], [heads[layer].dev], "o", color=style["color"])
        for axes, label in zip(panels, ("training loss", f"dev {sweep.metric}"), strict=True):
            axes.set(xlabel="step", ylabel=label)
        _fit_scale(panels[0], [loss for head in heads.values() for _, loss, _ in _finite(head)])
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=5)

    alt = "Training loss and dev score by training step"
    return render("curves", alt, 3.2, plot)


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


def confusion_chart(sweep: Sweep) -> Chart:
    """Draw the test counts of the best candidate, shaded by the share of the true class."""
    counts = sweep.confusion or ()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    label = sweep.labels[0]
    return heat_map(
        "confusion",
        f"Confusion matrix of {candidate_name(sweep.best)}: true against predicted class",
        shares,
        [[str(count) if count else "" for count in row] for row in counts],
        sweep.classes[0],
        (f"true {label}", f"predicted {label}"),
        Scale("share of the true class", power=0.5),
    )


def predictions_chart(sweep: Sweep) -> Chart:
    """Draw predicted against true numbers, a panel per label column, for the best candidate."""
    score = sweep.score(sweep.best)
    heads = [head for head in sweep.heads if (head.layer, head.lr) == (score.layer, score.lr)]
    first = [head for head in heads if head.seed == heads[0].seed]
    pairs = [
        (truth, found)
        for head in first
        for truth, found in zip(sweep.truth[head.fold], head.predictions, strict=True)
    ]
    pairs = pairs[:: max(1, len(pairs) // _MAX_POINTS)]

    def plot(figure: Figure) -> None:
        panels = figure.subplots(1, len(sweep.labels), squeeze=False)[0]
        for i, (axes, label) in enumerate(zip(panels, sweep.labels, strict=True)):
            true, found = (
                [float(item[i]) for item in column] for column in zip(*pairs, strict=True)
            )
            axes.plot(true, found, "o", color=COLOURS["blue"], alpha=0.5, markersize=3)
            ends = [min(true), max(true)]
            axes.plot(ends, ends, color=COLOURS["muted"], linewidth=1.0, linestyle=":")
            axes.set(xlabel=f"true {label}", ylabel=f"predicted {label}")

    alt = f"Predicted against true numbers, {candidate_name(sweep.best)}, first seed"
    return render("predictions", alt, 3.2, plot)


def detection_chart(sweep: Sweep) -> Chart:
    """Draw the detection error trade-off of the best candidate (Martin et al., 1997)."""
    heads = [head for head in sweep.heads if head.layer == sweep.best]
    pairs = [
        (found[0], truth[0])  # score, 1 for one speaker
        for head in heads
        for found, truth in zip(head.predictions, sweep.truth[head.fold], strict=True)
    ]
    ordered = [bool(truth) for _, truth in sorted(pairs)]
    n_target = sum(ordered)
    misses = list(accumulate(ordered))
    false_alarms = [len(ordered) - i - 1 - (n_target - miss) for i, miss in enumerate(misses)]
    step = max(1, len(ordered) // _MAX_POINTS)

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        x = [100 * count / max(1, len(ordered) - n_target) for count in false_alarms[::step]]
        y = [100 * count / max(1, n_target) for count in misses[::step]]
        axes.plot(x, y, color=COLOURS["blue"], linewidth=1.6)
        axes.plot([0.1, 100], [0.1, 100], color=COLOURS["muted"], linewidth=1.0, linestyle=":")
        axes.set(xscale="log", yscale="log", xlim=(0.1, 100), ylim=(0.1, 100))
        axes.set(xlabel="false alarms in %", ylabel="misses in %")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")

    alt = f"Misses against false alarms, {candidate_name(sweep.best)}"
    return render("detection", alt, 3.2, plot)

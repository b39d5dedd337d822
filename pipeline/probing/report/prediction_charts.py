"""Charts of the predictions of the best candidate: confusions, numbers, detection errors."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pipeline.probing.report.charts import COLOURS, Chart, Medium, panels_of, short_line
from pipeline.probing.report.heat_map import Scale, heat_map
from pipeline.probing.report.naming import candidate_name
from pipeline.probing.report.tabular import Rows
from pipeline.probing.results import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_POINTS = 2_000
"""Points of a chart; of more, evenly spaced ones are drawn."""


def confusion_chart(sweep: Sweep) -> Chart:
    """Draw the test counts of the best candidate, shaded by the share of the true class."""
    counts, names = sweep.confusion or (), sweep.classes[0]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    label = short_line(sweep.labels[0])
    cells = [
        (names[true], names[predicted], count, shares[true][predicted])
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
    ]
    return heat_map(
        "confusion",
        f"Confusion matrix of {candidate_name(sweep.best)}: true against predicted class",
        shares,
        [[str(count) if count else "" for count in row] for row in counts],
        names,
        (f"true {label}", f"predicted {label}"),
        Scale("share of the true class", power=0.5),
        Rows(("true", "predicted", "count", "share_of_true"), cells),
    )


def predictions_chart(sweep: Sweep) -> Chart:
    """Draw predicted against true numbers, a panel per label column, for the best candidate."""
    score = sweep.score(sweep.best)
    heads = [head for head in sweep.heads if (head.layer, head.lr) == (score.layer, score.lr)]
    first = [head for head in heads if head.seed == heads[0].seed]
    points: list[tuple[str, Any, Any]] = [
        (name, truth, found)
        for head in first
        for name, truth, found in zip(
            sweep.test_ids[head.fold], sweep.truth[head.fold], head.predictions, strict=True
        )
    ]
    points = points[:: max(1, len(points) // _MAX_POINTS)]
    rows = [
        (name, label, float(truth[i]), float(found[i]))
        for name, truth, found in points
        for i, label in enumerate(sweep.labels)
    ]

    def plot(figure: Figure, medium: Medium) -> None:
        panels = panels_of(figure, medium, len(sweep.labels))
        for axes, label in zip(panels, sweep.labels, strict=True):
            true = [row[2] for row in rows if row[1] == label]
            found = [row[3] for row in rows if row[1] == label]
            size = 2.0 if medium.is_narrow else 3
            axes.plot(true, found, "o", color=COLOURS["blue"], alpha=0.5, markersize=size)
            ends = [min(true), max(true)]
            axes.plot(ends, ends, color=COLOURS["muted"], linewidth=1.0, linestyle=":")
            name = short_line(label)
            axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")

    def size(medium: Medium) -> tuple[float, float]:
        return medium.width, 0.2 + 2.1 * len(sweep.labels) if medium.is_narrow else 3.2

    alt = f"Predicted against true numbers, {candidate_name(sweep.best)}, first seed"
    columns = ("utterance", "label", "true", "predicted")
    return Chart("predictions", alt, plot, size, Rows(columns, rows))


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
    x = [100 * count / max(1, len(ordered) - n_target) for count in false_alarms[::step]]
    y = [100 * count / max(1, n_target) for count in misses[::step]]

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        axes.plot(x, y, color=COLOURS["blue"], linewidth=1.2 if medium.is_narrow else 1.6)
        axes.plot([0.1, 100], [0.1, 100], color=COLOURS["muted"], linewidth=1.0, linestyle=":")
        axes.set(xscale="log", yscale="log", xlim=(0.1, 100), ylim=(0.1, 100))
        axes.set(xlabel="false alarms in %", ylabel="misses in %")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")

    def size(medium: Medium) -> tuple[float, float]:
        return medium.width, 2.5 if medium.is_narrow else 3.2

    alt = f"Misses against false alarms, {candidate_name(sweep.best)}"
    numbers = Rows(("false_alarms_percent", "misses_percent"), list(zip(x, y, strict=True)))
    return Chart("detection", alt, plot, size, numbers)

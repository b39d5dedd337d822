"""Charts of the predictions of the best candidate: confusions, numbers, detection errors."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.probing.evaluation import FloatArray
from pipeline.probing.labels import IntArray
from pipeline.probing.report.charts import COLOURS, Chart, Medium, panels_of, short_line
from pipeline.probing.report.heat_map import Scale, heat_map
from pipeline.probing.report.methods import seeds_of
from pipeline.probing.report.naming import candidate_name
from pipeline.probing.report.tabular import Rows
from pipeline.probing.results import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_POINTS = 2_000
"""Points of a chart of numbers; of more, evenly spaced ones are drawn."""
_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 0.999)
"""Rates at the axes of detection errors."""
_FAR = 5.0
"""Normal deviate for rates of 0, outside the axes."""
_RESOLUTION = 0.01
"""Distance of the points of detection errors, in normal deviates."""


def confusion_chart(sweep: Sweep) -> Chart:
    """Draw the test counts of the best candidate, shaded by the share of the true class.

    Counts are sums over seeds and folds.
    """
    counts, names = sweep.confusion or (), sweep.classes[0]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    label, n_seeds = short_line(sweep.labels[0]), len(seeds_of(sweep))
    summed = f", counts of {n_seeds} seeds summed" if n_seeds > 1 else ""
    cells = [
        (names[true], names[predicted], count, shares[true][predicted], n_seeds)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
    ]
    return heat_map(
        "confusion",
        f"Confusion matrix of {candidate_name(sweep.best, sweep)}: true against predicted "
        f"class{summed}",
        shares,
        [[str(count) if count else "" for count in row] for row in counts],
        names,
        (f"true {label}", f"predicted {label}"),
        Scale("share of the true class", power=0.5),
        Rows(("true", "predicted", "count", "share_of_true", "seeds_summed"), cells),
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

    alt = f"Predicted against true numbers, {candidate_name(sweep.best, sweep)}, first seed"
    columns = ("utterance", "label", "true", "predicted")
    return Chart("predictions", alt, plot, size, Rows(columns, rows))


def detection_chart(sweep: Sweep) -> Chart:
    """Draw the detection error trade-off (DET) of the best candidate, with its equal error rate.

    Both axes are normal deviates of the rates, so that normally distributed scores give a straight
    line (Martin et al., The DET curve in assessment of detection task performance, 1997).
    """
    heads = [head for head in sweep.heads if head.layer == sweep.best]
    pairs = [
        (found[0], truth[0])  # score, 1 for one speaker
        for head in heads
        for found, truth in zip(head.predictions, sweep.truth[head.fold], strict=True)
    ]
    rates = _error_rates(np.array(pairs, np.float64).reshape(-1, 2))
    score = sweep.score(sweep.best)
    rate = score.test if sweep.metric == "eer" else score.extra["eer"]
    low = 0.0001 if rate < 0.02 else 0.001
    high = 0.5 if rate < 0.3 else 0.999
    shown = rates[_distinct(_deviates(rates[:, 1:]))]

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        ends = _deviates([low, high])
        x, y = _deviates(shown[:, 1:]).T
        axes.plot(ends, ends, color=COLOURS["muted"], linewidth=1.0, linestyle=":")
        axes.plot(x, y, color=COLOURS["blue"], linewidth=1.2 if medium.is_narrow else 1.6)
        at = _deviates([rate])
        axes.plot(at, at, "o", color=COLOURS["orange"], markersize=1.5 * medium.marker)
        note = f"equal error rate {100 * rate:.3g} %"
        beside = (at[0] + 0.1, at[0] + 0.1)
        axes.text(*beside, note, fontsize=medium.small)
        ticks = [share for share in _TICKS if low <= share <= high]
        marks = _deviates(ticks), [f"{100 * share:g}" for share in ticks]
        axes.set_xticks(*marks)
        axes.set_yticks(*marks)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set(xlabel="false alarms in %", ylabel="misses in %")
        axes.grid(visible=True)

    def size(medium: Medium) -> tuple[float, float]:
        return medium.width, medium.width if medium.is_narrow else 4.4

    alt = (
        f"Misses against false alarms on normal deviate scales, "
        f"{candidate_name(sweep.best, sweep)}, "
        f"equal error rate {100 * rate:.3g} %"
    )
    columns = ("threshold", "false_alarms_percent", "misses_percent")
    return Chart("detection", alt, plot, size, Rows(columns, (shown * [1, 100, 100]).tolist()))


def _error_rates(pairs: FloatArray) -> FloatArray:
    """Return threshold, false alarms and misses at each distinct score, [n_thresholds, 3].

    Args:
        pairs: Score, and 1 for a trial of one speaker or 0, [n_trials, 2]. Trials whose score is
            not below the threshold are taken for trials of one speaker.
    """
    scores, is_target = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    targets = np.append(0.0, is_target.cumsum())[first]  # below each threshold
    n_targets = is_target.sum()
    misses = targets / max(1.0, n_targets)
    false_alarms = 1 - (first - targets) / max(1.0, len(pairs) - n_targets)
    rates = np.stack([scores[first], false_alarms, misses], axis=1)
    return np.append(rates, [[np.inf, 0.0, 1.0]], axis=0)  # nothing is accepted


def _deviates(shares: npt.ArrayLike) -> FloatArray:
    """Return the normal deviates of shares from 0 to 1, of the same shape, at most ±`_FAR`."""
    values = np.asarray(shares, np.float64)
    edge = NormalDist().cdf(-_FAR)
    found = [NormalDist().inv_cdf(share) for share in values.clip(edge, 1 - edge).flat]
    return np.array(found).reshape(values.shape)


def _distinct(points: FloatArray) -> IntArray:
    """Return positions of points of a curve, [n, 2], whose distance is visible, and of its end."""
    cells = np.round(points / _RESOLUTION).astype(np.int64)
    moved = (cells[1:] != cells[:-1]).any(axis=1)
    moved[-1:] = True
    return np.flatnonzero(np.append(True, moved))

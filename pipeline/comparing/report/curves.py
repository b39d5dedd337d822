"""Learning curves: scores by number of training utterances."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from pipeline.comparing.report.charts import file_name, score_label, style_of
from pipeline.comparing.report.grids import DIRECTIONS, row_name
from pipeline.comparing.results import Comparison, TaskComparison, Variant
from pipeline.probing.report.charts import Chart, Medium, legend_above, short_line
from pipeline.probing.report.naming import candidate_name, metric_name
from pipeline.probing.report.tabular import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_NAME = 40  # characters of a name in the legend
_SHIFT = 0.012  # of the width, between the intervals of lines


def curves_chart(task: TaskComparison, comparison: Comparison) -> Chart:
    """Draw the test score of the best candidate of each size, a line per encoder and head."""
    lines: dict[str, list[Variant]] = defaultdict(list)
    for variant in sorted(task.variants, key=lambda v: v.sweep.n_train):
        lines[row_name(comparison, variant)].append(variant)
    sizes = sorted({variant.sweep.n_train for variant in task.variants})

    def plot(figure: Figure, medium: Medium) -> None:
        axes = figure.subplots()
        span = math.log(sizes[-1] / sizes[0]) if len(sizes) > 1 and sizes[0] else 1.0
        for i, (name, variants) in enumerate(lines.items()):
            factor = math.exp(_SHIFT * span * (i - (len(lines) - 1) / 2))
            at = [variant.sweep.n_train * factor for variant in variants]
            scores = [variant.best for variant in variants]
            style = style_of(comparison, variants[0])
            low, high = [score.low for score in scores], [score.high for score in scores]
            axes.vlines(at, low, high, color=style["color"], linewidth=0.8)
            axes.plot(
                at,
                [score.test for score in scores],
                label=short_line(name, _MAX_NAME),
                linewidth=1.0 if medium.is_narrow else 1.3,
                markersize=medium.marker,
                **style,
            )
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training utterances")
        axes.set_ylabel(score_label(task, medium))
        legend_above(axes, medium, ncols=3)

    def size(medium: Medium) -> tuple[float, float]:
        n_rows = math.ceil(len(lines) / (2 if medium.is_narrow else 3))
        return medium.width, (2.1 + 0.13 * n_rows) if medium.is_narrow else 3.2 + 0.17 * n_rows

    numbers = Rows(
        (
            *("encoder", "head", "fraction", "n_train", "candidate"),
            *("dev", "test", "test_low", "test_high", "is_best"),
        ),
        [
            (
                *(variant.encoder, variant.head, variant.fraction, variant.sweep.n_train),
                candidate_name(score.layer, variant.sweep),
                *(score.dev, score.test, score.low, score.high, score == variant.best),
            )
            for variants in lines.values()
            for variant in variants
            for score in variant.sweep.scores
        ],
    )
    alt = (
        f"Test {metric_name(task.metric)} for {task.name} by number of training utterances, "
        f"{DIRECTIONS[task.higher_is_better]}"
    )
    return Chart(file_name("learning-curves", task, comparison), alt, plot, size, numbers)

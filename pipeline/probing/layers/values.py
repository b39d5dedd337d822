"""Layer statistics in charts and tables. A statistic that is undefined for the sample is None."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.probing.report.charts import Chart
from pipeline.probing.report.heat_map import Scale, heat_map
from pipeline.probing.report.tabular import Rows

_SCALE_STEP = 0.05
"""The scale of a map of CKA starts at a multiple of this."""


def value_or_nan(value: float | None) -> float:
    """Return a statistic for a chart, which has a gap at nan."""
    return math.nan if value is None else value


def value_text(value: float | None, digits: int = 3) -> str:
    """Return a statistic as text, a dash if it is undefined; there is no minus before 0."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def cka_map(
    name: str,
    alt: str,
    cka: Sequence[Sequence[float | None]],
    layers: Sequence[str],
    axis_names: tuple[str, str],
    numbers: Rows,
    other_layers: Sequence[str] | None = None,
) -> Chart:
    """Draw the CKA of pairs of layers as a heat map.

    Args:
        name: Name of the files, without extension.
        alt: Description for screen readers.
        cka: Linear CKA, [n_layers][n_other_layers].
        layers: Labels of the rows, and of the columns if `other_layers` is None.
        axis_names: Labels of the y axis and of the x axis.
        numbers: The matrix for the CSV file.
        other_layers: Labels of the columns.
    """
    known = [value for row in cka for value in row if value is not None]
    low = max(0.0, math.floor(min(known, default=0.0) / _SCALE_STEP - 1) * _SCALE_STEP)
    return heat_map(
        name,
        alt,
        [[value_or_nan(value) for value in row] for row in cka],
        [[value_text(value, 2) for value in row] for row in cka],
        list(layers),
        axis_names,
        Scale("linear CKA", low=low),
        numbers,
        upwards=True,
        columns=other_layers,
    )

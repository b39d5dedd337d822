"""Heat maps: matrices as shaded cells, with numbers where there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.probing.report.charts import COLOURS, Chart, Medium, shade, short_line, text_width
from pipeline.probing.report.tabular import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LABELLED = 16
"""Largest number of rows whose cells show their numbers on a screen."""
_MAX_HORIZONTAL_LABEL = 3  # characters; a longer label under a cell is rotated
_DARK_CELL = 0.55  # opacity; the number of a darker cell is light


@dataclass(frozen=True)
class Scale:
    """Mapping from the values of a heat map to opacities.

    Attributes:
        label: Name of the values.
        low: Value with opacity 0.
        high: Value with opacity 1.
        power: Exponent of the mapping; 0.5 makes small values visible.
    """

    label: str
    low: float = 0.0
    high: float = 1.0
    power: float = 1.0

    def opacities(self, values: object) -> np.ndarray:
        """Return opacities from 0 to 1: values outside the scale are clipped, NaN is 0."""
        part = (np.array(values, np.float64) - self.low) / (self.high - self.low)
        return np.nan_to_num(np.clip(part, 0.0, 1.0)) ** self.power


@dataclass(frozen=True)
class _Cells:
    """Sizes of the cells of a heat map, and of the text in and around them.

    Attributes:
        width: Width of the map in inches.
        height: Its height in inches.
        size: Width and height of the chart in inches.
        step: Every so many rows and columns have a label.
        label_size: Size of these labels in points.
        number_size: Size of the numbers in the cells in points; 0 for no numbers.
        angle: Rotation of the labels of the columns in degrees.
    """

    width: float
    height: float
    size: tuple[float, float]
    step: int
    label_size: float
    number_size: float
    angle: int


def heat_map(
    name: str,
    alt: str,
    values: Sequence[Sequence[float]],
    cells: Sequence[Sequence[str]],
    labels: Sequence[str],
    axis_names: tuple[str, str],
    scale: Scale,
    numbers: Rows,
    upwards: bool = False,
    columns: Sequence[str] | None = None,
) -> Chart:
    """Draw a matrix as shaded cells, which are squares.

    Args:
        name: Name of the files, without extension.
        alt: Description for screen readers.
        values: Value of each cell, shown by its opacity.
        cells: Text of each cell, shown if there is room.
        labels: Labels of the rows, and of the columns if `columns` is None.
        axis_names: Labels of the y axis and of the x axis.
        scale: Mapping from values to opacities.
        numbers: The matrix for the CSV file.
        upwards: Whether the first row is at the bottom.
        columns: Labels of the columns, for a matrix that is not square.
    """
    names = [short_line(label) for label in labels]
    tops = names if columns is None else [short_line(label) for label in columns]
    longest_cell = max((text for row in cells for text in row), key=len, default="")

    def plot(figure: Figure, medium: Medium) -> None:
        sizes = _sizes(names, tops, longest_cell, medium)
        axes = figure.subplots()
        opacities = scale.opacities(values)
        rows, places = np.nonzero(opacities)
        corners = 0.47 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        shade(axes, np.stack([places, rows], 1)[:, None] + corners, opacities[rows, places])
        if sizes.number_size:
            _write_numbers(axes, opacities, cells, sizes.number_size)
        _label_cells(axes, names, tops, sizes)
        last = len(names) - 0.5
        axes.set(xlim=(-0.5, len(tops) - 0.5), ylim=(-0.5, last) if upwards else (last, -0.5))
        axes.set(ylabel=axis_names[0], xlabel=axis_names[1], aspect="equal")
        axes.grid(visible=False)
        if medium.is_narrow:
            place = (0.0, 1.0 + 0.1 / sizes.height, 1.0, 0.09 / sizes.height)
            _scale_above(axes.inset_axes(place), scale)
            layout: Any = figure.get_layout_engine()
            layout.set(rect=(0, 0, 1, 0.985))  # it has no margin above the label of the scale
        else:
            _scale_beside(axes.inset_axes((1.03, 0.0, 0.14 / sizes.width, 1.0)), scale)

    def size(medium: Medium) -> tuple[float, float]:
        return _sizes(names, tops, longest_cell, medium).size

    return Chart(name, alt, plot, size, numbers)


def _sizes(names: Sequence[str], tops: Sequence[str], longest_cell: str, medium: Medium) -> _Cells:
    n = max(len(names), len(tops))
    longest = max(len(label) for label in (*names, *tops))
    is_rotated = longest > _MAX_HORIZONTAL_LABEL
    if not medium.is_narrow:
        side = max(2.4, 0.38 * n) if n <= _MAX_LABELLED else min(6.6, 0.17 * n + 1.2)
        width, height = side * len(tops) / n, side * len(names) / n
        room = 0.08 * longest
        below = room if is_rotated else 0.1
        is_many = n > _MAX_LABELLED
        return _Cells(
            width,
            height,
            (width + 1.3 + room, height + 0.5 + below),
            step=1,
            label_size=9.0 if n <= medium.max_ticks else 6.5,
            number_size=0.0 if is_many else 8.0 if n <= 12 else 6.5,
            angle=(90 if is_many else 45) if is_rotated else 0,
        )
    size = medium.small
    widest = max(text_width(label, size) for label in (*names, *tops)) / 72
    side = min(medium.width - 0.45 - widest, 0.45 * n + 0.5)
    cell = 72 * side / n  # points
    text = size * 1.15 if is_rotated else 72 * widest + 3
    fits = text_width(longest_cell, size) + 1.5 <= cell and size * 1.1 <= cell
    height = side * len(names) / n
    return _Cells(
        side * len(tops) / n,
        height,
        (medium.width, height + 0.87 + (widest if is_rotated else 0.1)),
        step=math.ceil(text / cell),
        label_size=size,
        number_size=size if fits else 0.0,
        angle=90 if is_rotated else 0,
    )


def _label_cells(axes: Axes, names: Sequence[str], tops: Sequence[str], sizes: _Cells) -> None:
    step, size = sizes.step, sizes.label_size
    axes.set_xticks(range(0, len(tops), step), list(tops[::step]), fontsize=size)
    axes.set_yticks(range(0, len(names), step), list(names[::step]), fontsize=size)
    for tick in axes.get_xticklabels() if sizes.angle else []:
        tick.set(rotation=sizes.angle, rotation_mode="anchor")
        tick.set(ha="right", va="center" if sizes.angle == 90 else "top")


def _write_numbers(
    axes: Axes, opacities: np.ndarray, cells: Sequence[Sequence[str]], size: float
) -> None:
    for row, column in np.ndindex(opacities.shape):
        colour = COLOURS["paper" if opacities[row, column] > _DARK_CELL else "ink"]
        text = cells[row][column]
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _scale_beside(axes: Axes, scale: Scale) -> None:
    _shade_scale(axes, scale, lambda a, b: [(0, a), (1, a), (1, b), (0, b)])
    axes.set(xlim=(0, 1), ylim=(scale.low, scale.high), xticks=[], ylabel=scale.label)
    axes.yaxis.set_label_position("right")
    axes.yaxis.tick_right()


def _scale_above(axes: Axes, scale: Scale) -> None:
    _shade_scale(axes, scale, lambda a, b: [(a, 0), (b, 0), (b, 1), (a, 1)])
    axes.set(ylim=(0, 1), xlim=(scale.low, scale.high), yticks=[], xlabel=scale.label)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()


def _shade_scale(
    axes: Axes, scale: Scale, cell: Callable[[float, float], list[tuple[float, float]]]
) -> None:
    """Draw the opacities of a scale, each in the cell between two of its values."""
    edges = np.linspace(scale.low, scale.high, 31)
    shapes = [cell(a, b) for a, b in pairwise(edges)]
    shade(axes, shapes, scale.opacities((edges[1:] + edges[:-1]) / 2))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)

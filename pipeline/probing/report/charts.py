"""Charts: style and drawing. Only this file uses matplotlib.

Every colour is one of `COLOURS`, so that a page can use the colours of its light or dark theme. The
colours are distinguishable with colour blindness (after Okabe and Ito, Color Universal Design,
2008), and markers and labels repeat what the colours show. The same data give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

COLOURS = {
    "paper": "#ffffff",
    "ink": "#1f2430",
    "muted": "#5f6673",
    "grid": "#dfe3e8",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#00805d",
    "purple": "#aa4499",
}
"""Colours of the light theme, by name."""

WIDTH = 7.6
"""Width of a chart in inches."""
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": COLOURS["paper"],
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "strata",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.color": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
}
_METADATA = {"svg": dict.fromkeys(("Creator", "Date", "Format", "Type")), "png": {"Software": None}}
_MAX_TICKS = 26
_MAX_LABELLED = 16
"""Largest number of rows of a heat map whose cells show their numbers."""
_INVALID_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")
_MAX_HORIZONTAL_LABEL = 3  # characters; a longer label under a cell is rotated
_DARK_CELL = 0.55  # opacity; the number of a darker cell is light


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        name: Name of its files, without extension.
        alt: Description for screen readers.
        svg: SVG document, with text as text.
        png: PNG image.
    """

    name: str
    alt: str
    svg: bytes
    png: bytes


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
class Line:
    """A line over the layers.

    Attributes:
        label: Label in the legend.
        values: One per layer; nan leaves a gap.
        colour: Key of `COLOURS`.
        marker: Marker of matplotlib.
        spread: Half the height of the error bar at each point; None for no error bars.
        hollow: Whether the markers are hollow.
    """

    label: str
    values: Sequence[float]
    colour: str = "blue"
    marker: str = "o"
    spread: Sequence[float] | None = None
    hollow: bool = False


def render(
    name: str, alt: str, height: float, plot: Callable[[Figure], None], width: float = WIDTH
) -> Chart:
    """Render a chart as SVG and PNG.

    Args:
        name: Name of the files, without extension.
        alt: Description for screen readers.
        height: Height in inches.
        plot: Function that draws on a figure.
        width: Width in inches.
    """
    images = {}
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # the font may lack the script of a class name; the SVG uses the fonts of its viewer
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure)
        for kind, metadata in _METADATA.items():
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=160, metadata=metadata)
            images[kind] = file.getvalue()
    return Chart(name, alt, images["svg"], images["png"])


def short_line(text: object, max_length: int = 22) -> str:
    """Return a name from the data as one short line of valid XML characters."""
    line = " ".join(_INVALID_XML.sub(" ", str(text)).split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def layer_axis(axes: Axes, layers: Sequence[int], n_panels: int = 1) -> None:
    """Label the x axis of one of `n_panels` adjacent panels with layer numbers."""
    step = math.ceil(len(layers) * n_panels / _MAX_TICKS)
    ticks = list(layers)[::step]
    axes.set_xticks(ticks, [str(layer) for layer in ticks])
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.set_xlabel("layer")


def draw_line(axes: Axes, layers: Sequence[int], line: Line) -> None:
    """Draw a line over the layers."""
    colour = COLOURS[line.colour]
    axes.errorbar(
        list(layers),
        list(line.values),
        yerr=None if line.spread is None else list(line.spread),
        color=colour,
        marker=line.marker,
        markersize=4.5,
        markerfacecolor=COLOURS["paper"] if line.hollow else colour,
        linewidth=1.3,
        elinewidth=1.0,
        capsize=2.5,
        label=line.label,
    )


def layer_lines(
    name: str, alt: str, layers: Sequence[int], panels: Mapping[str, Sequence[Line]]
) -> Chart:
    """Draw lines over the layers, in adjacent panels whose y axes include zero.

    Args:
        name: Name of the files, without extension.
        alt: Description for screen readers.
        layers: Layer numbers.
        panels: Lines of each panel, by the label of its y axis.
    """

    def plot(figure: Figure) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (label, lines) in zip(grid, panels.items(), strict=True):
            for line in lines:
                draw_line(axes, layers, line)
            layer_axis(axes, layers, len(panels))
            axes.set_ylabel(label)
            low, high = min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1]
            axes.set_ylim(low, high + 0.05 * (high - low))
            if len(lines) > 1:
                legend_above(axes)

    return render(name, alt, 2.9, plot)


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, columnspacing=1.4)


def heat_map(
    name: str,
    alt: str,
    values: Sequence[Sequence[float]],
    numbers: Sequence[Sequence[str]],
    labels: Sequence[str],
    axis_names: tuple[str, str],
    scale: Scale,
    upwards: bool = False,
) -> Chart:
    """Draw a square matrix as shaded cells.

    Args:
        name: Name of the files, without extension.
        alt: Description for screen readers.
        values: Value of each cell, shown by its opacity.
        numbers: Text of each cell, shown if there is room.
        labels: Labels of the rows and of the columns.
        axis_names: Labels of the y axis and of the x axis.
        scale: Mapping from values to opacities.
        upwards: Whether the first row is at the bottom.
    """
    n = len(labels)
    names = [short_line(label) for label in labels]
    longest = max(len(label) for label in names)
    side = max(2.4, 0.38 * n) if n <= _MAX_LABELLED else min(6.6, 0.17 * n + 1.2)

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        opacities = scale.opacities(values)
        rows, columns = np.nonzero(opacities)
        corners = 0.47 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        _shade(axes, np.stack([columns, rows], 1)[:, None] + corners, opacities[rows, columns])
        if n <= _MAX_LABELLED:
            _write_numbers(axes, opacities, numbers)
        _label_cells(axes, names, rotated=longest > _MAX_HORIZONTAL_LABEL)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(-0.5, n - 0.5) if upwards else (n - 0.5, -0.5))
        axes.set(ylabel=axis_names[0], xlabel=axis_names[1], aspect="equal")
        axes.grid(visible=False)
        _scale_bar(axes.inset_axes((1.03, 0.0, 0.14 / side, 1.0)), scale)

    room = 0.08 * longest
    below = room if longest > _MAX_HORIZONTAL_LABEL else 0.1
    return render(name, alt, side + 0.5 + below, plot, side + 1.3 + room)


def _shade(axes: Axes, shapes: Any, opacities: np.ndarray) -> None:
    faces = [to_rgba(COLOURS["blue"], opacity) for opacity in opacities.tolist()]
    axes.add_collection(PolyCollection(shapes, facecolors=faces, linewidths=0))


def _label_cells(axes: Axes, names: Sequence[str], rotated: bool) -> None:
    many = len(names) > _MAX_LABELLED
    size = 9.0 if len(names) <= _MAX_TICKS else 6.5
    axes.set_xticks(range(len(names)), names, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    for tick in axes.get_xticklabels() if rotated else []:
        tick.set(rotation=90 if many else 45, rotation_mode="anchor")
        tick.set(ha="right", va="center" if many else "top")


def _write_numbers(axes: Axes, opacities: np.ndarray, numbers: Sequence[Sequence[str]]) -> None:
    size = 8.0 if len(numbers) <= 12 else 6.5
    for row, column in np.ndindex(opacities.shape):
        colour = COLOURS["paper" if opacities[row, column] > _DARK_CELL else "ink"]
        text = numbers[row][column]
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _scale_bar(axes: Axes, scale: Scale) -> None:
    edges = np.linspace(scale.low, scale.high, 31)
    shapes = [[(0, a), (1, a), (1, b), (0, b)] for a, b in pairwise(edges)]
    _shade(axes, shapes, scale.opacities((edges[1:] + edges[:-1]) / 2))
    axes.set(xlim=(0, 1), ylim=(scale.low, scale.high), xticks=[], ylabel=scale.label)
    axes.yaxis.set_label_position("right")
    axes.yaxis.tick_right()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)

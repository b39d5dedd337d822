"""How charts are drawn; the only file that uses matplotlib.

Every colour is one of `COLOURS`, so that a page can put a light or a dark one in its place. Readers
who see colours otherwise can tell them apart (after Okabe and Ito, Color Universal Design, 2008),
and markers and labels say the same again. The same values give the same bytes.
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
"""The light colour of everything that is drawn, by name."""

WIDTH = 7.6
"""Inches; the width of a page's column."""
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
_NO_DATES = {"svg": dict.fromkeys(("Creator", "Date", "Format", "Type")), "png": {"Software": None}}
_MOST_TICKS = 26
_MOST_NUMBERS = 16
"""Rows of a heat map up to which its cells show their numbers."""
_NOT_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")
_SHORT = 3  # characters of a name that fits under a cell
_STRONG = 0.55  # opacity of a cell from which its number is light


@dataclass(frozen=True)
class Chart:
    """A chart, drawn.

    Attributes:
        name: Of its files, without ending.
        alt: What it shows, for those who cannot see it.
        svg: The SVG document; its text is text.
        png: The same as pixels.
    """

    name: str
    alt: str
    svg: bytes
    png: bytes


@dataclass(frozen=True)
class Scale:
    """How a heat map turns values into shades.

    Attributes:
        what: Name of the values.
        low: Value that has no shade.
        high: Value of full shade.
        power: Of the shade as a function of the value; 0.5 makes small values visible.
    """

    what: str
    low: float = 0.0
    high: float = 1.0
    power: float = 1.0

    def shades(self, values: object) -> np.ndarray:
        """Opacities from 0 to 1; 0 for what is not finite."""
        part = (np.array(values, np.float64) - self.low) / (self.high - self.low)
        return np.nan_to_num(np.clip(part, 0.0, 1.0)) ** self.power


@dataclass(frozen=True)
class Line:
    """A line over the layers.

    Attributes:
        label: Its name.
        values: One per layer; nan leaves a gap.
        colour: A key of `COLOURS`.
        marker: Of matplotlib; hollow if `hollow`.
        spread: Half the height of a bar at each point, if there is one.
        hollow: Whether the markers are open.
    """

    label: str
    values: Sequence[float]
    colour: str = "blue"
    marker: str = "o"
    spread: Sequence[float] | None = None
    hollow: bool = False


def draw(
    name: str, alt: str, height: float, act: Callable[[Figure], None], width: float = WIDTH
) -> Chart:
    """Draws a chart in the house's style.

    Args:
        name: Of the files.
        alt: What it shows.
        height: Inches.
        act: Draws on the figure that it is given.
        width: Inches.
    """
    found = {}
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # a class may be named in a script that the font lacks; the SVG leaves that to the reader's
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height), layout="constrained")
        act(figure)
        for kind, metadata in _NO_DATES.items():
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=160, metadata=metadata)
            found[kind] = file.getvalue()
    return Chart(name, alt, found["svg"], found["png"])


def shown(text: object, longest: int = 22) -> str:
    """A name from the data as one short line that any SVG reader takes."""
    line = " ".join(_NOT_XML.sub(" ", str(text)).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def layer_axis(axes: Axes, layers: Sequence[int], n_panels: int = 1) -> None:
    """Makes the x axis of one of `n_panels` side by side one of layer numbers."""
    step = math.ceil(len(layers) * n_panels / _MOST_TICKS)
    ticks = list(layers)[::step]
    axes.set_xticks(ticks, [str(layer) for layer in ticks])
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.set_xlabel("layer")


def draw_line(axes: Axes, layers: Sequence[int], line: Line) -> None:
    """One line over the layers."""
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
    """Lines over the layers, in panels side by side, whose y axes all show zero.

    Args:
        name: Of the files.
        alt: What it shows.
        layers: Numbers of the layers.
        panels: The lines of each panel, by the label of its y axis.
    """

    def act(figure: Figure) -> None:
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

    return draw(name, alt, 2.9, act)


def legend_above(axes: Axes) -> None:
    """A legend that hides no data."""
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
    """A square matrix as shaded cells.

    Args:
        name: Of the files.
        alt: What it shows.
        values: What the shade of each cell shows.
        numbers: What each cell says, where there is room for it.
        labels: Of the rows, and of the columns.
        axis_names: Of the y and of the x axis.
        scale: From values to shades.
        upwards: Whether the first row is the lowest.
    """
    n = len(labels)
    names = [shown(label) for label in labels]
    longest = max(len(label) for label in names)
    side = max(2.4, 0.38 * n) if n <= _MOST_NUMBERS else min(6.6, 0.17 * n + 1.2)

    def act(figure: Figure) -> None:
        axes = figure.subplots()
        shades = scale.shades(values)
        rows, columns = np.nonzero(shades)
        corners = 0.47 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        _shade(axes, np.stack([columns, rows], 1)[:, None] + corners, shades[rows, columns])
        if n <= _MOST_NUMBERS:
            _write_numbers(axes, shades, numbers)
        _name_cells(axes, names, slanted=longest > _SHORT)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(-0.5, n - 0.5) if upwards else (n - 0.5, -0.5))
        axes.set(ylabel=axis_names[0], xlabel=axis_names[1], aspect="equal")
        axes.grid(visible=False)
        _scale_bar(axes.inset_axes((1.03, 0.0, 0.14 / side, 1.0)), scale)

    room = 0.08 * longest
    below = room if longest > _SHORT else 0.1
    return draw(name, alt, side + 0.5 + below, act, side + 1.3 + room)


def _shade(axes: Axes, shapes: Any, shades: np.ndarray) -> None:
    faces = [to_rgba(COLOURS["blue"], shade) for shade in shades.tolist()]
    axes.add_collection(PolyCollection(shapes, facecolors=faces, linewidths=0))


def _name_cells(axes: Axes, names: Sequence[str], slanted: bool) -> None:
    many = len(names) > _MOST_NUMBERS
    size = 9.0 if len(names) <= _MOST_TICKS else 6.5
    axes.set_xticks(range(len(names)), names, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    for tick in axes.get_xticklabels() if slanted else []:
        tick.set(rotation=90 if many else 45, rotation_mode="anchor")
        tick.set(ha="right", va="center" if many else "top")


def _write_numbers(axes: Axes, shades: np.ndarray, numbers: Sequence[Sequence[str]]) -> None:
    size = 8.0 if len(numbers) <= 12 else 6.5
    for row, column in np.ndindex(shades.shape):
        colour = COLOURS["paper" if shades[row, column] > _STRONG else "ink"]
        text = numbers[row][column]
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _scale_bar(axes: Axes, scale: Scale) -> None:
    edges = np.linspace(scale.low, scale.high, 31)
    shapes = [[(0, a), (1, a), (1, b), (0, b)] for a, b in pairwise(edges)]
    _shade(axes, shapes, scale.shades((edges[1:] + edges[:-1]) / 2))
    axes.set(xlim=(0, 1), ylim=(scale.low, scale.high), xticks=[], ylabel=scale.what)
    axes.yaxis.set_label_position("right")
    axes.yaxis.tick_right()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)

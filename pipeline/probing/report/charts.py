"""Charts: style and drawing. Only this file uses matplotlib.

A chart is drawn for two media by one function: for the screen, and for a column of a paper. Every
colour is one of `COLOURS`, so that a page can use the colours of its light or dark theme. The
colours are distinguishable with colour blindness (after Okabe and Ito, Color Universal Design,
2008), and markers, dashes and labels repeat what the colours show. The same data give the same
bytes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from pipeline.probing.report.tabular import Rows

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
_PLAIN: Mapping[Any, str] = {}  # all layers go by their numbers
_MAX_TICK = 10  # characters of the name of a layer at an axis, in two lines


@dataclass(frozen=True)
class Medium:
    """Where a chart is shown.

    Attributes:
        width: Width of a chart in inches.
        is_narrow: Whether panels go one below the other, and labels into the legend.
        marker: Size of markers in points.
        small: Size of annotations in points.
        max_ticks: Largest number of layers at the x axis.
        style: Settings of matplotlib that differ from the screen's.
    """

    width: float
    is_narrow: bool
    marker: float
    small: float
    max_ticks: int
    style: Mapping[str, Any] = field(default_factory=dict)

    def wrapped(self, label: str) -> str:
        """Return the label of an axis, in several lines if the medium is narrow."""
        if not self.is_narrow or len(label) <= _MAX_NARROW_LABEL:
            return label
        return "\n".join(
            textwrap.fill(part, _MAX_NARROW_LABEL)
            for part in label.replace(" (", "\n(").split("\n")
        )


SCREEN = Medium(width=7.6, is_narrow=False, marker=4.5, small=8.0, max_ticks=26)
COLUMN = Medium(
    width=3.3,
    is_narrow=True,
    marker=3.4,
    small=7.0,
    max_ticks=13,
    style={
        "axes.labelsize": 8.0,
        "axes.linewidth": 0.6,
        "figure.constrained_layout.h_pad": 0.05,
        "figure.constrained_layout.w_pad": 0.05,
        "font.size": 7.0,
        "grid.linewidth": 0.5,
        "legend.borderaxespad": 0.4,
        "legend.borderpad": 0.0,
        "legend.columnspacing": 1.2,
        "legend.handlelength": 2.4,
        "legend.handletextpad": 0.5,
        "legend.labelspacing": 0.3,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
    },
)
"""One column of a paper with two: the smallest text has 7 points."""
_MAX_NARROW_LABEL = 24  # characters of a line
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
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "svg.fonttype": "none",
    "svg.hashsalt": "strata",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.color": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
}
_METADATA = {
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "png": {"Software": None},
    "pdf": dict.fromkeys(("Creator", "CreationDate", "Producer")),
}
_DPI = 160
_INVALID_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return _forms_of(self, ["png"])["png"]


@dataclass(frozen=True)
class Chart:
    """A chart, drawn when one of its forms is asked for.

    Attributes:
        name: Name of its files, without extension.
        alt: Description for screen readers.
        plot: Draws on a figure of the size for a medium.
        size: Returns width and height in inches for a medium.
        numbers: What is drawn: every point with its interval.
    """

    name: str
    alt: str
    plot: Callable[[Figure, Medium], None]
    size: Callable[[Medium], tuple[float, float]]
    numbers: Rows

    @property
    def svg(self) -> bytes:
        """SVG document for the screen, with text as text."""
        return self._screen["svg"]

    @property
    def png(self) -> bytes:
        """PNG image for the screen."""
        return self._screen["png"]

    @property
    def column_pdf(self) -> bytes:
        """PDF for a column of a paper, with embedded TrueType fonts."""
        return self._column["pdf"]

    @property
    def column_svg(self) -> bytes:
        """SVG document for a column of a paper, with text as text."""
        return self._column["svg"]

    def draw(self, medium: Medium = SCREEN) -> NotebookFigure:
        """Return a new figure with the chart."""
        with _style_of(medium):
            figure = NotebookFigure(figsize=self.size(medium), layout="constrained")
            self.plot(figure, medium)
            return figure

    @cached_property
    def _screen(self) -> dict[str, bytes]:
        return self._rendered(SCREEN, ("svg", "png"))

    @cached_property
    def _column(self) -> dict[str, bytes]:
        return self._rendered(COLUMN, ("pdf", "svg"))

    def _rendered(self, medium: Medium, kinds: Iterable[str]) -> dict[str, bytes]:
        with _style_of(medium):
            return _forms_of(self.draw(medium), kinds)


def _style_of(medium: Medium) -> Any:
    style: Any = {**_STYLE, **medium.style}
    return matplotlib.rc_context(style)


def _forms_of(figure: Figure, kinds: Iterable[str]) -> dict[str, bytes]:
    layout: Any = figure.get_layout_engine()
    forms = {}
    with warnings.catch_warnings():
        # the font may lack the script of a class name; the SVG uses the fonts of its viewer
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        layout.execute(figure)  # once for all forms, without the draw that `savefig` adds for it
        figure.set_layout_engine(None)
        for kind in kinds:
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=_DPI, metadata=_METADATA[kind])
            forms[kind] = file.getvalue()
    figure.set_layout_engine(layout)
    return forms


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
        dash: Dash in a narrow medium, which may be printed in grey.
    """

    label: str
    values: Sequence[float]
    colour: str = "blue"
    marker: str = "o"
    spread: Sequence[float] | None = None
    hollow: bool = False
    dash: str = "-"


def short_line(text: object, max_length: int = 22) -> str:
    """Return a name from the data as one short line of valid XML characters."""
    line = " ".join(_INVALID_XML.sub(" ", str(text)).split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def layer_axis(
    axes: Axes,
    layers: Sequence[int],
    medium: Medium = SCREEN,
    labels: Mapping[Any, str] = _PLAIN,
    n_panels: int = 1,
) -> None:
    """Label the x axis of one of `n_panels` adjacent panels with layers.

    Args:
        axes: The panel.
        layers: Numbers of the layers, their places on the axis.
        medium: Where the chart is shown.
        labels: Labels of the layers that do not go by their number.
        n_panels: Number of panels side by side.
    """
    step = math.ceil(len(layers) * n_panels / medium.max_ticks)
    ticks = list(layers)[::step]
    axes.set_xticks(ticks, [tick_label(layer, labels) for layer in ticks])
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.set_xlabel("layer")


def tick_label(layer: int, labels: Mapping[Any, str]) -> str:
    """Return the label of a layer in the width of a number or two; long names give the number."""
    label = labels.get(layer, str(layer))
    return label.replace("_", "\n") if len(label) <= _MAX_TICK else str(layer)


def draw_line(axes: Axes, layers: Sequence[int], line: Line, medium: Medium = SCREEN) -> None:
    """Draw a line over the layers."""
    colour = COLOURS[line.colour]
    axes.errorbar(
        list(layers),
        list(line.values),
        yerr=None if line.spread is None else list(line.spread),
        color=colour,
        marker=line.marker,
        markersize=medium.marker,
        markerfacecolor=COLOURS["paper"] if line.hollow else colour,
        linewidth=1.0 if medium.is_narrow else 1.3,
        linestyle=line.dash if medium.is_narrow else "-",
        elinewidth=0.8 if medium.is_narrow else 1.0,
        capsize=1.5 if medium.is_narrow else 2.5,
        label=line.label,
    )


def layer_lines(
    name: str,
    alt: str,
    layers: Sequence[int],
    panels: Mapping[str, Sequence[Line]],
    labels: Mapping[int, str] = _PLAIN,
) -> Chart:
    """Draw lines over the layers, in adjacent panels whose y axes include zero.

    Args:
        name: Name of the files, without extension.
        alt: Description for screen readers.
        layers: Layer numbers.
        panels: Lines of each panel, by the label of its y axis.
        labels: Labels of the layers that do not go by their number.
    """

    def plot(figure: Figure, medium: Medium) -> None:
        grid = panels_of(figure, medium, len(panels))
        for axes, (label, lines) in zip(grid, panels.items(), strict=True):
            for line in lines:
                draw_line(axes, layers, line, medium)
            n_beside = 1 if medium.is_narrow else len(panels)
            layer_axis(axes, layers, medium, labels, n_beside)
            axes.set_ylabel(medium.wrapped(label))
            low, high = min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1]
            axes.set_ylim(low, high + 0.05 * (high - low))
            if len(lines) > 1:
                legend_above(axes, medium)
        if medium.is_narrow:
            for axes in grid[:-1]:
                axes.set_xlabel("")

    def size(medium: Medium) -> tuple[float, float]:
        return medium.width, 0.4 + 1.6 * len(panels) if medium.is_narrow else 2.9

    columns: list[str] = ["layer"]
    series: list[list[float]] = [list(layers)]
    for label, line in ((label, line) for label, lines in panels.items() for line in lines):
        columns.append(label if len(panels[label]) == 1 else line.label)
        series.append(list(line.values))
        if line.spread is not None:
            columns.append("sd")
            series.append(list(line.spread))
    numbers = Rows(tuple(columns), list(zip(*series, strict=True)))
    return Chart(name, alt, plot, size, numbers)


def panels_of(figure: Figure, medium: Medium, n_panels: int) -> list[Axes]:
    """Return adjacent panels; in a narrow medium they go one below the other."""
    shape = (n_panels, 1) if medium.is_narrow else (1, n_panels)
    return list(figure.subplots(*shape, squeeze=False).flat)


def legend_above(axes: Axes, medium: Medium = SCREEN, ncols: int = 4) -> None:
    """Put the legend of an axes above it, where it hides no data.

    In a narrow medium it takes the width of the figure, and as many columns as fit.
    """
    if not medium.is_narrow:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=ncols, columnspacing=1.4)
        return
    figure = axes.get_figure(root=True)
    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
    entries.sort(key=lambda entry: not isinstance(entry[0], Container))  # lines with points first
    if figure is not None and entries:
        handles, labels = zip(*entries, strict=True)
        fitting = _n_columns(labels, medium)
        figure.legend(handles, labels, loc="outside upper left", ncols=fitting)


def _n_columns(labels: Sequence[str], medium: Medium) -> int:
    """Return the number of columns with which a legend is as wide as a chart, at most."""
    style = medium.style
    size = style["font.size"]
    extra = size * (style["legend.handlelength"] + style["legend.handletextpad"])
    widths = [extra + (text_width(label, size) if label else 0.0) for label in labels]
    for n_columns in range(min(4, len(labels)), 1, -1):
        parts = np.array_split(widths, n_columns)  # as matplotlib fills columns
        gaps = size * style["legend.columnspacing"] * (n_columns - 1)
        if sum(part.max() for part in parts) + gaps <= 72 * medium.width - 2 * size:
            return n_columns
    return 1


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in points, for a font size in points."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        properties = FontProperties(size=size)
        return float(text_to_path.get_text_width_height_descent(text, properties, False)[0])


def shade(axes: Axes, shapes: Any, opacities: np.ndarray) -> None:
    """Fill polygons, [n][n_corners][2], with blue of some opacities, [n]."""
    faces = [to_rgba(COLOURS["blue"], opacity) for opacity in opacities.tolist()]
    axes.add_collection(PolyCollection(shapes, facecolors=faces, linewidths=0))

"""A table of a comparison, and its files: LaTeX, Markdown and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from pipeline.files import write_atomic
from pipeline.probing.report.html import element, table
from pipeline.probing.report.latex import latex_table
from pipeline.probing.report.tabular import Rows

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#&$])")


@dataclass(frozen=True)
class Grid:
    """A table of a comparison.

    Attributes:
        name: Name of its files.
        caption: What it shows.
        head: Column headings.
        rows: Cells as text; an empty text for no value.
        numbers: The same in full precision, for the CSV file.
        bold: Row and column of the bold cells.
        parts: Narrower tables that LaTeX gets instead, because a page has too little room.
    """

    name: str
    caption: str
    head: tuple[str, ...]
    rows: list[list[str]]
    numbers: Rows
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    parts: tuple[Grid, ...] = ()


def write_grid(grid: Grid, folder: Path, version: str) -> None:
    """Write NAME.tex, NAME.md and NAME.csv.

    Raises:
        StoreError: A file cannot be written.
    """
    made = f"Made by Strata {version}.".replace(" .", ".")
    latex = "\n".join(
        latex_table(
            part.caption,
            f"tab:{part.name.replace('_', '-')}",
            part.head,
            [part.rows],
            part.bold,
            made,
        )
        for part in grid.parts or (grid,)
    )
    for ending, text in (("tex", latex), ("md", markdown_of(grid))):
        write_atomic(folder / f"{grid.name}.{ending}", [text.encode("utf-8", "replace")])
    write_atomic(folder / f"{grid.name}.csv", [grid.numbers.to_csv()])


def markdown_of(grid: Grid) -> str:
    """Return a table in Markdown, with its caption."""
    lines = [_escaped(grid.caption), "", f"| {' | '.join(map(_escaped, grid.head))} |"]
    lines.append("|---" * len(grid.head) + "|")
    for at, row in enumerate(grid.rows):
        cells = [
            f"**{_escaped(cell)}**" if cell and (at, column) in grid.bold else _escaped(cell)
            for column, cell in enumerate(row)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def html_of(grid: Grid, is_sortable: bool = False) -> Markup:
    """Return a table for a page, with a dash for no value and without its caption.

    Args:
        grid: The table.
        is_sortable: Whether a click on a heading sorts the rows by its column.
    """
    rows: list[Sequence[object]] = [
        [
            element("b", cell) if (at, column) in grid.bold else cell or "–"
            for column, cell in enumerate(row)
        ]
        for at, row in enumerate(grid.rows)
    ]
    return table(grid.head, rows, is_sortable=is_sortable)


def _escaped(text: str) -> str:
    """Return text as Markdown that shows it, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))

"""The printed result of a comparison of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import counted

if TYPE_CHECKING:
    from pipeline.comparing.report.grid import Grid
    from pipeline.comparing.results import Comparison

_MAX_PAIRS = 20


def show_comparison(console: Console, comparison: Comparison, page: Path) -> None:
    """Print the leaderboard, the best of each task, paired tests, and the path of the report."""
    from pipeline.comparing.report.grids import leaderboard, learning_curves, metric_line
    from pipeline.comparing.report.sentences import head_line, headline, pair_line

    console.print(
        f"{counted(comparison.n_sweeps, 'sweep')} of {counted(len(comparison.encoders), 'encoder')}"
        f"; {'; '.join(map(metric_line, comparison.tasks))}",
        markup=False,
    )
    console.print(_table(leaderboard(comparison)))
    if len(comparison.fractions) > 1:
        console.print(_table(learning_curves(comparison)))
    pairs = [pair_line(task, pair) for task in comparison.tasks for pair in task.pairs]
    changes = [head_line(task, item) for task in comparison.tasks for item in task.head_changes]
    more = [f"{len(pairs) - _MAX_PAIRS:,} more paired tests; the report has all"]
    lines = [
        *map(headline, comparison.tasks),
        *changes,
        *pairs[:_MAX_PAIRS],
        *(more if len(pairs) > _MAX_PAIRS else []),
        *(f"note: {task.name}: {note}" for task in comparison.tasks for note in task.notes),
    ]
    for line in lines:
        console.print(line, markup=False)
    for warning in comparison.warnings:
        console.print(f"WARNING: {warning}", style="bold red", markup=False)
    console.print(f"report: {page}", markup=False)


def _table(grid: Grid) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in grid.head:
        table.add_column(name, no_wrap=True)
    for at, row in enumerate(grid.rows):
        cells = [
            Text(cell, style="bold" if (at, column) in grid.bold else "")
            for column, cell in enumerate(row)
        ]
        table.add_row(*cells)
    return table

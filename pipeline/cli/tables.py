"""What a person at a terminal sees of a sweep: progress while it lasts, a table when it is over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.progress import Bars, duration
from pipeline.events import Observer

if TYPE_CHECKING:
    from pipeline.probing.results import LayerScore, Sweep


class SweepProgress(Bars, Observer):
    """Shows how many heads are trained; where there is no terminal, only notes are printed."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._heads = self._progress.add_task("heads", total=None)

    def note(self, line: str) -> None:
        """Prints a line."""
        self._console.print(line, markup=False)

    def head_trained(self, done: int, total: int) -> None:
        """Moves the bar."""
        self._progress.update(self._heads, completed=done, total=total)


def show_sweep(console: Console, found: Sweep, page: Path) -> None:
    """Prints the scores, what they are worth, and where the report is."""
    folds = f", {len(found.test_ids)} folds" if len(found.test_ids) > 1 else ""
    console.print(
        f"{found.task} on {', '.join(found.labels)}: {found.n_train:,} utterances to train, "
        f"{found.n_dev:,} dev, {found.n_test:,} test{folds} ({found.split})",
        markup=False,
    )
    console.print(f"features: {found.encoder}; scores: {found.metric}, dev chooses", markup=False)
    console.print(_table(found))
    console.print(_comparison(found), markup=False)
    for name, value in found.baselines.items():
        console.print(f"  {name}: {value:.3f}", markup=False)
    for warning in found.warnings:
        console.print(f"WARNING: {warning}", style="bold red", markup=False)
    spent = ", ".join(f"{stage} {duration(taken)}" for stage, taken in found.seconds.items())
    console.print(f"{found.trained} heads trained, {found.reused} reused; {spent}")
    console.print(f"report: {page}", markup=False)


def _table(found: Sweep) -> Table:
    extras = list(found.scores[0].extra)
    table = Table(box=None, pad_edge=False)
    names = ("layer", "lr", "dev", "test", "95 % interval", "± seeds")
    for name in (*names, *(extra.replace("_", "-") for extra in extras), ""):
        table.add_column(name, justify="right", no_wrap=True)
    for score in found.scores:
        best = score.layer == found.best
        cells = [*_cells(score, extras), "best" if best else ""]
        table.add_row(*(Text(cell, style="bold" if best else "") for cell in cells))
    return table


def _cells(score: LayerScore, extras: list[str]) -> list[str]:
    return [
        str(score.layer),
        f"{score.lr:g}",
        f"{score.dev:.3f}",
        f"{score.test:.3f}",
        f"{score.low:.3f}–{score.high:.3f}",
        f"{score.seed_sd:.3f}",
        *(f"{score.extra[name]:.3f}" for name in extras),
    ]


def _comparison(found: Sweep) -> str:
    if found.comparison is None:
        return "One candidate only: nothing to compare."
    best, second = (
        "the weighted sum" if layer == "weighted" else f"layer {layer}"
        for layer in (found.comparison.best, found.comparison.second)
    )
    sure = "a real difference" if found.comparison.p_value < 0.05 else "no clear difference"
    return (
        f"{best} against {second}, the best two on dev: test {found.metric} differs by "
        f"{found.comparison.difference:+.3f}, p = {found.comparison.p_value:.3g} "
        f"({found.comparison.test}): {sure}"
    )

"""Observers that show progress on the terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cli.tables import duration
from pipeline.events import CommittedUnit, Observer

if TYPE_CHECKING:
    from pipeline.store.format.plan import Plan


class TerminalObserver(Observer):
    """Prints notes and draws progress bars; without a terminal it only prints notes."""

    def __init__(self, console: Console, *further: TextColumn) -> None:
        """Prepare the bars; `further` columns come after the usual ones."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *further,
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, line: str) -> None:
        """Print a line; warnings are red."""
        style = "bold red" if line.startswith("WARNING") else None
        self._console.print(line, style=style, markup=False)


class RunProgress(TerminalObserver):
    """Shows the units, the speed and the time left of an extraction or a collapse."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, TextColumn("{task.fields[detail]}"))
        self._headers = self._progress.add_task("headers", total=None, detail="", visible=False)
        self._units = self._progress.add_task("units", total=None, detail="", visible=False)
        self._start_s = time.monotonic()
        self._audio_s = 0.0
        self._planned_audio_s = 0.0

    def headers_scanned(self, done: int) -> None:
        """Show the number of headers read."""
        self._progress.update(self._headers, completed=done, visible=True)

    def planned(self, plan: Plan, done: int, audio_s: float) -> None:
        """Start the bar of units."""
        self._start_s = time.monotonic()
        self._planned_audio_s = audio_s * (1 - done / max(1, plan.n_units))
        self._progress.update(self._headers, visible=False)
        self._progress.update(self._units, total=plan.n_units, completed=done, visible=True)

    def unit_committed(self, report: CommittedUnit) -> None:
        """Advance the bar by one unit."""
        self._audio_s += report.audio_s
        rate = self._audio_s / max(1e-9, time.monotonic() - self._start_s)
        left_s = max(0.0, self._planned_audio_s - self._audio_s) / max(rate, 1e-9)
        detail = (
            f"{self._audio_s / 3600:.2f} h audio, {rate:.1f}× real time, {duration(left_s)} left"
        )
        self._progress.update(self._units, advance=1, detail=detail)


class SweepProgress(TerminalObserver):
    """Shows the number of trained heads of a sweep."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._heads = self._progress.add_task("heads", total=None)

    def head_trained(self, done: int, total: int) -> None:
        """Advance the bar."""
        self._progress.update(self._heads, completed=done, total=total)

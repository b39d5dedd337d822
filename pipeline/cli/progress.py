"""Observers that show progress: bars on a terminal, and elsewhere a line every minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cli.tables import duration
from pipeline.events import CommittedUnit, Observer

if TYPE_CHECKING:
    from pipeline.store.format.plan import Plan

LINE_EVERY_S = 60.0
"""Seconds between two lines of progress where there is no terminal, e.g. in the log of a job."""


class TerminalObserver(Observer):
    """Prints notes and draws progress bars; without a terminal it prints lines."""

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
        self._end = threading.Event()
        self._clock = threading.Thread(target=self._print_lines, name="strata-lines", daemon=True)

    def __enter__(self) -> Self:
        self._progress.start()
        if not self._console.is_terminal:
            self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._end.set()

    def note(self, line: str) -> None:
        """Print a line; warnings are red."""
        style = "bold red" if line.startswith("WARNING") else None
        self._console.print(line, style=style, markup=False)

    def state(self) -> str | None:
        """Return the progress in one line; None before there is any."""

    def line(self, text: str) -> None:
        """Print a line of progress where there is no terminal."""
        if not self._console.is_terminal:
            self._console.print(text, markup=False)

    def _print_lines(self) -> None:
        while not self._end.wait(LINE_EVERY_S):
            text = self.state()
            if text:
                self.line(text)


class RunProgress(TerminalObserver):
    """Shows the units, the speed and the time left of an extraction or a collapse."""

    def __init__(self, console: Console, expected_speed: float | None = None) -> None:
        """Prepare the bars.

        Args:
            console: Where to print.
            expected_speed: Audio seconds per wall second of an earlier run, for the first line.
        """
        super().__init__(console, TextColumn("{task.fields[detail]}"))
        self._headers = self._progress.add_task("headers", total=None, detail="", visible=False)
        self._units = self._progress.add_task("units", total=None, detail="", visible=False)
        self._expected_speed = expected_speed
        self._start_s = time.monotonic()
        self._audio_s = 0.0
        self._planned_audio_s = 0.0
        self._n_headers = self._n_done = self._n_units = self._n_new = 0

    def headers_scanned(self, done: int) -> None:
        """Show the number of headers read."""
        self._n_headers = done
        self._progress.update(self._headers, completed=done, visible=True)

    def planned(self, plan: Plan, done: int, audio_s: float) -> None:
        """Start the bar of units."""
        self._start_s = time.monotonic()
        self._n_done, self._n_units = done, plan.n_units
        self._planned_audio_s = audio_s * (1 - done / max(1, plan.n_units))
        self._progress.update(self._headers, visible=False)
        self._progress.update(self._units, total=plan.n_units, completed=done, visible=True)
        if done == plan.n_units:
            self.line(f"nothing is left to do: all {done:,} units are committed")
            return
        left = f"{plan.n_units - done:,} of {plan.n_units:,} units are left to do"
        about = ""
        if self._expected_speed:
            left_s = self._planned_audio_s / self._expected_speed
            about = f", about {duration(left_s)} at the speed of the last run"
        self.line(f"{left}, {self._planned_audio_s / 3600:.2f} h of audio{about}")

    def unit_committed(self, report: CommittedUnit) -> None:
        """Advance the bar by one unit; without a terminal, print the first speed."""
        self._audio_s += report.audio_s
        self._n_done += 1
        self._n_new += 1
        self._progress.update(self._units, advance=1, detail=self._detail())
        if self._n_new == 1 and self._n_done < self._n_units:
            self.line(f"the first unit is committed: {self._detail()}")

    def run_ended(self, failed: Sequence[int], stopped: str | None = None) -> None:
        """Print the last line where there is no terminal."""
        seconds = time.monotonic() - self._start_s
        failures = f"; {len(failed):,} failed" if failed else ""
        self.line(
            f"{'stopped' if stopped else 'ended'} after {duration(seconds)}: {self._n_new:,} new "
            f"units, {self._n_done:,} of {self._n_units:,} are committed{failures}"
        )

    def state(self) -> str | None:
        """Return the number of units, the speed and the time left, or the number of headers."""
        if self._n_units:
            return f"{self._n_done:,} of {self._n_units:,} units: {self._detail()}"
        return f"{self._n_headers:,} headers read" if self._n_headers else None

    def _detail(self) -> str:
        seconds = time.monotonic() - self._start_s
        if not self._audio_s:
            return f"none of this run's yet, after {duration(seconds)}"
        rate = self._audio_s / max(1e-9, seconds)
        left_s = max(0.0, self._planned_audio_s - self._audio_s) / max(rate, 1e-9)
        return f"{self._audio_s / 3600:.2f} h audio, {rate:.1f}× real time, {duration(left_s)} left"


class SweepProgress(TerminalObserver):
    """Shows the number of trained heads of a sweep."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._heads = self._progress.add_task("heads", total=None)
        self._start_s = time.monotonic()
        self._n_cached = -1
        self._done = self._total = 0

    def head_trained(self, done: int, total: int) -> None:
        """Advance the bar; the first call has the number of cached heads."""
        is_first = self._n_cached < 0
        self._done, self._total = done, total
        self._progress.update(self._heads, completed=done, total=total)
        if is_first:
            self._start_s, self._n_cached = time.monotonic(), done
            cached = f"; {done:,} are cached" if done else ""
            self.line(f"{total - done:,} heads to train{cached}")
        elif done == total:
            self.line(f"{total - self._n_cached:,} heads trained in {duration(self._seconds())}")

    def state(self) -> str | None:
        """Return the number of trained heads and the time left."""
        if self._n_cached < 0:
            return None
        n_trained, n_left = self._done - self._n_cached, self._total - self._done
        left = ""
        if n_trained:
            left = f", about {duration(self._seconds() * n_left / n_trained)} left"
        return (
            f"{self._done:,} of {self._total:,} heads trained after {duration(self._seconds())}"
            f"{left}"
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._start_s

"""Observers that show progress: bars on a terminal, and elsewhere a line every minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cli.tables import duration, hours
from pipeline.errors import counted
from pipeline.events import CommittedUnit, Observer

if TYPE_CHECKING:
    from pipeline.store.format.plan import Plan

LINE_EVERY_S = 60.0
"""Seconds between two lines of progress where there is no terminal, e.g. in the log of a job."""
EARLY_S = 5.0
"""Seconds after which the time left is stated for the first time."""


class Notes(Observer):
    """Prints notes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, line: str) -> None:
        """Print a line; warnings are red."""
        style = "bold red" if line.startswith("WARNING") else None
        self._console.print(line, style=style, markup=False)


class TerminalObserver(Notes):
    """Prints notes and draws progress bars; without a terminal it prints lines."""

    def __init__(self, console: Console, *further: TextColumn) -> None:
        """Prepare the bars; `further` columns come after the usual ones."""
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *further,
            console=console,
            disable=not console.is_terminal,
        )
        self._slow_step: str | None = None
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
        """Print a line; that of a slow step is repeated every minute until there is progress."""
        self._slow_step = f"still {line}" if line.endswith(" ...") else None
        super().note(line)

    def state(self) -> str | None:
        """Return the progress in one line; None before there is any."""

    def line(self, text: str | None) -> None:
        """Print a line of progress where there is no terminal."""
        if text and not self._console.is_terminal:
            self._console.print(text, markup=False)

    def _print_lines(self) -> None:
        while not self._end.wait(LINE_EVERY_S):
            self.line(self.state() or self._slow_step)


class Count:
    """Lines about things that are done one by one: at the start, while it takes long, at the end.

    A first line about the time left is due after `EARLY_S`.
    """

    def __init__(
        self,
        noun: str,
        verb: str,
        participle: str,
        min_share: float = 0.0,
        earlier: str = "are cached",
    ) -> None:
        """Remember the words, e.g. head, train, trained.

        Args:
            noun: What is counted.
            verb: What is done to it.
            participle: The same, when it has been done.
            min_share: The time left is stated when more than this share is done.
            earlier: What is said of those that need not be done.
        """
        self._earlier = earlier
        self._min_share = min_share
        self._noun, self._verb, self._participle = noun, verb, participle
        self._start_s = time.monotonic()
        self._n_before = -1
        self._done = self._total = 0
        self._is_early_due = True

    def update(self, done: int, total: int) -> str | None:
        """Set the numbers; return a line to print, or None.

        Args:
            done: Number of things done; in the first call, those that need not be done.
            total: Number of all.
        """
        is_first = self._n_before < 0 or done < self._done  # another round
        self._done, self._total = done, total
        if is_first:
            self._start_s, self._n_before = time.monotonic(), done
            cached = f"; {done:,} {self._earlier}" if done else ""
            return f"{counted(total - done, self._noun)} to {self._verb}{cached}"
        if done == total:
            number = counted(total - self._n_before, self._noun)
            return f"{number} {self._participle} in {duration(self._seconds())}"
        if self._is_early_due and self._seconds() > EARLY_S:
            return self.state()
        return None

    def state(self) -> str | None:
        """Return the number of things done and the time left; None if there are none to do."""
        if self._n_before < 0 or self._done == self._total:
            return None
        self._is_early_due = False
        n_done, n_left = self._done - self._n_before, self._total - self._done
        left = ""
        if n_done and n_done > self._min_share * (n_done + n_left):
            left = f", about {duration(self._seconds() * n_left / n_done)} left"
        return (
            f"{self._done:,} of {self._total:,} {self._noun}s {self._participle} after "
            f"{duration(self._seconds())}{left}"
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._start_s


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
        self._n_done = self._n_units = self._n_new = 0
        self._scan = Count("header", "read", "read")

    def headers_scanned(self, done: int, total: int) -> None:
        """Show the number of headers read."""
        self.line(self._scan.update(done, total))
        self._progress.update(self._headers, completed=done, total=total, visible=True)

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
        self.line(f"{left}, {hours(self._planned_audio_s)} of audio{about}")

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
            f"{'stopped' if stopped else 'ended'} after {duration(seconds)}: "
            f"{counted(self._n_new, 'new unit')}, {self._n_done:,} of {self._n_units:,} "
            f"committed{failures}"
        )

    def state(self) -> str | None:
        """Return the number of units, the speed and the time left, or the number of headers."""
        if self._n_units:
            return f"{self._n_done:,} of {self._n_units:,} units: {self._detail()}"
        return self._scan.state()

    def _detail(self) -> str:
        seconds = time.monotonic() - self._start_s
        if not self._audio_s:
            return f"none of this run's yet, after {duration(seconds)}"
        rate = self._audio_s / max(1e-9, seconds)
        left_s = max(0.0, self._planned_audio_s - self._audio_s) / max(rate, 1e-9)
        return f"{hours(self._audio_s)} of audio, {rate:.1f}× real time, {duration(left_s)} left"


class CountProgress(TerminalObserver):
    """Shows the number of things done, of one kind."""

    def __init__(self, console: Console, count: Count, name: str) -> None:
        """Prepare the bar, called `name`."""
        super().__init__(console)
        self._bar = self._progress.add_task(name, total=None)
        self._count = count

    def state(self) -> str | None:
        """Return the number of things done and the time left."""
        return self._count.state()

    def _update(self, done: int, total: int) -> None:
        self._progress.update(self._bar, completed=done, total=total)
        self.line(self._count.update(done, total))


class SweepProgress(CountProgress):
    """Shows the number of heads of a sweep that are trained, or evaluated without training.

    Heads are trained together, so the first ones to stop say nothing about the others: the time
    left is stated when more than a quarter of them is done.
    """

    def __init__(self, console: Console, is_trained: bool = True) -> None:
        words = ("train", "trained") if is_trained else ("evaluate", "evaluated")
        super().__init__(console, Count("head", *words, min_share=0.25), "heads")

    def head_trained(self, done: int, total: int) -> None:
        """Advance the bar; the first call has the number of cached heads."""
        self._update(done, total)


class VerifyProgress(CountProgress):
    """Shows the number of units that a verification has checked."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, Count("unit", "check", "checked"), "units")

    def unit_checked(self, done: int, total: int) -> None:
        """Advance the bar."""
        self._update(done, total)


class ExportProgress(CountProgress):
    """Shows the number of utterances that an export has written."""

    def __init__(self, console: Console) -> None:
        count = Count("utterance", "export", "exported", earlier="have been exported before")
        super().__init__(console, count, "utterances")

    def utterances_exported(self, done: int, total: int) -> None:
        """Advance the bar; the first call has the number that earlier runs have exported."""
        self._update(done, total)


class FidelityProgress(CountProgress):
    """Shows the number of utterances whose stored features were compared."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, Count("utterance", "compare", "compared"), "utterances")

    def utterances_compared(self, done: int, total: int) -> None:
        """Advance the bar."""
        self._update(done, total)


class DropProgress(CountProgress):
    """Shows the number of units from which utterances were dropped."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, Count("unit", "rewrite", "rewritten"), "units")

    def units_rewritten(self, done: int, total: int) -> None:
        """Advance the bar."""
        self._update(done, total)


class PushProgress(CountProgress):
    """Shows the number of units that were sent to the hub."""

    def __init__(self, console: Console) -> None:
        count = Count("unit", "send", "sent", earlier="are there from before")
        super().__init__(console, count, "units")

    def units_pushed(self, done: int, total: int) -> None:
        """Advance the bar; the first call has the number that is there already."""
        self._update(done, total)


class TokenProgress(CountProgress):
    """Shows the number of units that have tokens."""

    def __init__(self, console: Console) -> None:
        count = Count("unit", "tokenize", "tokenized", earlier="have tokens already")
        super().__init__(console, count, "units")

    def units_tokenized(self, done: int, total: int) -> None:
        """Advance the bar; the first call has the number of units that had tokens before."""
        self._update(done, total)


class PredictProgress(CountProgress):
    """Shows the number of recordings that were encoded to predict."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, Count("recording", "encode", "encoded"), "recordings")

    def recordings_encoded(self, done: int, total: int) -> None:
        """Advance the bar."""
        self._update(done, total)

"""What a person at a terminal sees of a run: progress while it lasts, numbers when it is over."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.events import CommittedUnit, Observer

if TYPE_CHECKING:
    from pipeline.extract.planning import Estimate
    from pipeline.store.format.plan import Plan
    from pipeline.store.maintain.status import Status


class Bars:
    """Progress bars of a block of work; where there is no terminal, none are drawn."""

    def __init__(self, console: Console, *further: TextColumn) -> None:
        """Prepares them; `further` columns come after the usual ones."""
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


class LiveObserver(Bars, Observer):
    """Shows a run on the terminal; where there is none, only notes are printed."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, TextColumn("{task.fields[detail]}"))
        self._scan = self._progress.add_task("headers", total=None, detail="", visible=False)
        self._units = self._progress.add_task("units", total=None, detail="", visible=False)
        self._began = time.monotonic()
        self._audio_s = 0.0
        self._planned_audio_s = 0.0

    def note(self, line: str) -> None:
        """Prints a line."""
        style = "bold red" if line.startswith("WARNING") else None
        self._console.print(line, style=style, markup=False)

    def headers_scanned(self, done: int) -> None:
        """Shows how many headers have been read."""
        self._progress.update(self._scan, completed=done, visible=True)

    def planned(self, plan: Plan, done: int, audio_s: float) -> None:
        """Starts the bar of units."""
        self._began = time.monotonic()
        self._planned_audio_s = audio_s * (1 - done / max(1, plan.n_units))
        self._progress.update(self._scan, visible=False)
        self._progress.update(self._units, total=plan.n_units, completed=done, visible=True)

    def unit_committed(self, report: CommittedUnit) -> None:
        """Moves the bar on by one unit."""
        self._audio_s += report.audio_s
        rate = self._audio_s / max(1e-9, time.monotonic() - self._began)
        left_s = max(0.0, self._planned_audio_s - self._audio_s) / max(rate, 1e-9)
        detail = (
            f"{self._audio_s / 3600:.2f} h audio, {rate:.1f}× real time, {duration(left_s)} left"
        )
        self._progress.update(self._units, advance=1, detail=detail)


def show_estimate(console: Console, found: Estimate) -> None:
    """Prints what a plan amounts to."""
    console.print(
        f"{found.utterances:,} utterances, {found.hours:.2f} h of audio → {found.units:,} units of "
        f"{found.frames_per_unit:,} frames, {found.frames:,} frames, {found.bytes / 1e9:.2f} GB on "
        f"disk ({found.free_bytes / 1e9:.1f} GB free)"
    )
    if found.unreadable:
        console.print(f"{found.unreadable} have no readable header and are going to be quarantined")


def show_status(console: Console, status: Status) -> None:
    """Prints how far a store has come."""
    console.print(
        f"{status.units_committed:,} of {status.units_total:,} units committed, "
        f"{status.utterances_ok:,} of {status.utterances_total:,} utterances, "
        f"{status.utterances_quarantined:,} quarantined, {status.audio_seconds / 3600:.3f} h of "
        f"audio in {duration(status.wall_seconds)}"
    )
    if status.realtime_factor:
        eta = f", {duration(status.eta_seconds)} left" if status.eta_seconds is not None else ""
        console.print(f"{status.realtime_factor:.1f}× real time{eta}")
    if status.seconds:
        total = sum(status.seconds.values()) or 1.0
        parts = ", ".join(f"{stage} {spent / total:.0%}" for stage, spent in status.seconds.items())
        console.print(f"workers' time: {parts}")
    if status.utterances_fp32:
        console.print(f"{status.utterances_fp32} utterances were encoded again in fp32")
    for reason, count in list(status.reasons.items())[:10]:
        console.print(f"  quarantined {count}: {reason}", markup=False)
    if status.live:
        console.print(f"run {status.run_id} is at work")


def duration(seconds: float | None) -> str:
    """A number of seconds for people: 48 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""Events of an extraction, a collapse, a copy or a sweep, and the interface of their observers.

Progress bars, the run log and tests are observers. Events are delivered in the driver's thread;
only the notes of `announced` come from another one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.store.format.plan import Plan

ANNOUNCE_AFTER_S = 2.0
"""Seconds after which a step that usually is quick says that it is running."""


class CommittedUnit(Protocol):
    """Report of a committed unit: a frozen dataclass with at least these fields."""

    @property
    def unit(self) -> int:
        """Number of the unit."""

    @property
    def n_ok(self) -> int:
        """Number of utterances or pieces with features."""

    @property
    def n_quarantined(self) -> int:
        """Number of utterances or pieces that were quarantined."""

    @property
    def audio_s(self) -> float:
        """Seconds of audio in the features."""

    @property
    def wall_s(self) -> float:
        """Wall seconds from the start of the unit to its commit."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage."""


class Observer:
    """Receives the events of a run and ignores them; subclasses override what they show or record.

    An exception raised by an observer is not caught and ends the run. Committed units are safe.
    """

    def note(self, line: str) -> None:
        """Receive a message for the user, one line; warnings start with `WARNING`."""

    def headers_scanned(self, done: int, total: int) -> None:
        """Receive the number of audio headers read so far, from 0 on, and of all."""

    def planned(self, plan: Plan, done: int, audio_s: float) -> None:
        """Receive the plan.

        Args:
            plan: The plan.
            done: Number of its units that are committed.
            audio_s: Seconds of audio in the plan.
        """

    def run_started(self, n_units: int) -> None:
        """Receive the number of units to extract; not called if there are none."""

    def unit_committed(self, report: CommittedUnit) -> None:
        """Receive the report of a unit that was just committed, with its seconds per stage."""

    def unit_failed(self, unit: int, slot: int, cause: str, error: Exception) -> None:
        """Receive a failed attempt.

        Args:
            unit: Number of the unit.
            slot: Slot of the attempt.
            cause: Category of the failure: died, hung, failed, lost or shared.
            error: The exception.
        """

    def run_ended(self, failed: Sequence[int], stopped: str | None = None) -> None:
        """Receive the end of a run that was started, successful or not.

        Args:
            failed: Units that were given up, in order.
            stopped: Name of the signal that stopped the run; empty for no signal; None if signals
                cannot stop the run.
        """

    def head_trained(self, done: int, total: int) -> None:
        """Receive the number of trained heads of a sweep and the total number."""

    def unit_checked(self, done: int, total: int) -> None:
        """Receive the number of units that a verification has checked, from 0 on, and of all."""

    def utterances_exported(self, done: int, total: int) -> None:
        """Receive the number of exported utterances and of all; first those of earlier runs."""

    def utterances_compared(self, done: int, total: int) -> None:
        """Receive the number of utterances that were compared, from 0 on, and of all."""

    def units_rewritten(self, done: int, total: int) -> None:
        """Receive the number of units that a drop has rewritten, from 0 on, and of all."""

    def units_pushed(self, done: int, total: int) -> None:
        """Receive the number of units that were sent and of all; first those of earlier runs."""

    def units_tokenized(self, done: int, total: int) -> None:
        """Receive the number of units with tokens and of all; first those of earlier runs."""

    def recordings_encoded(self, done: int, total: int) -> None:
        """Receive the number of recordings that were encoded to predict, from 0 on, and of all."""


class ObserverGroup(Observer):
    """Passes each event to several observers, in the given order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def note(self, line: str) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.note(line)

    def headers_scanned(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.headers_scanned(done, total)

    def planned(self, plan: Plan, done: int, audio_s: float) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.planned(plan, done, audio_s)

    def run_started(self, n_units: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.run_started(n_units)

    def unit_committed(self, report: CommittedUnit) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.unit_committed(report)

    def unit_failed(self, unit: int, slot: int, cause: str, error: Exception) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.unit_failed(unit, slot, cause, error)

    def run_ended(self, failed: Sequence[int], stopped: str | None = None) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.run_ended(failed, stopped)

    def head_trained(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.head_trained(done, total)

    def unit_checked(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.unit_checked(done, total)

    def utterances_exported(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.utterances_exported(done, total)

    def utterances_compared(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.utterances_compared(done, total)

    def units_rewritten(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.units_rewritten(done, total)

    def units_pushed(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.units_pushed(done, total)

    def units_tokenized(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.units_tokenized(done, total)

    def recordings_encoded(self, done: int, total: int) -> None:
        """Pass the event to each observer."""
        for observer in self._observers:
            observer.recordings_encoded(done, total)


def rough_duration(seconds: float) -> str:
    """Return a duration that is only estimated, for a note: 40 s, 8 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def announced(observer: Observer, what: str) -> Iterator[None]:
    """Note what is being done if the block takes longer than `ANNOUNCE_AFTER_S`."""
    timer = threading.Timer(ANNOUNCE_AFTER_S, observer.note, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

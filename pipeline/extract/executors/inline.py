"""What the driver asks of an engine, and the engine that needs nothing but this process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import StrataError
from pipeline.extract.messages import UnitReport, UnitTask
from pipeline.extract.worker import Worker

LOST = "lost"
"""Cause of a failure for which the unit cannot be blamed: its node went away."""
SHARED = "shared"
"""The same: its worker was stopped for the sake of another unit, which held it for too long."""
UNITS_PER_WORKER = 2
"""The unit that a worker encodes, and the next one, which it decodes meanwhile."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with a report, or with an error.

    Attributes:
        task: The attempt.
        report: What was done; None if it failed.
        error: Why it failed; a StrataError will fail again, anything else may be tried again.
        cause: died, hung, failed, lost or shared; None if it did not fail.
        detail: The limit that was overrun, or the like.
        in_company: Whether its worker died with another unit, too: either may be to blame.
    """

    task: UnitTask
    report: UnitReport | None = None
    error: Exception | None = None
    cause: str | None = None
    detail: str = ""
    in_company: bool = False


class Engine(Protocol):
    """Runs units on workers; a worker has one unit in hand, and the next one as a hint."""

    def has_room(self, alone: bool = False) -> bool:
        """Whether a worker can take a unit; with `alone`, one that has none."""

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Gives a unit to a worker that has room; returns the worker's name.

        Args:
            task: The unit.
            limit_s: How long it may take, from when its worker has no earlier one any more.
        """

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes of attempts that have ended, after at most `timeout_s` (inline: one unit)."""

    def close(self) -> None:
        """Ends the workers; units in flight are dropped."""


def can_take(held: Sequence[UnitTask], alone: bool) -> bool:
    """Whether a worker that has these units can take another one."""
    if not held:
        return True
    return len(held) < UNITS_PER_WORKER and not alone and not any(task.alone for task in held)


class InlineEngine:
    """Runs units in this process, one at a time; it has nobody to end one that hangs.

    The next unit is decoded meanwhile. A unit is committed before the next one is begun, so that
    an interrupt finds nothing but the unit in hand.
    """

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None
        self._tasks: deque[UnitTask] = deque()

    def has_room(self, alone: bool = False) -> bool:
        """Whether there is a place for another unit."""
        return can_take(self._tasks, alone)

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Keeps the unit for `poll`."""
        self._tasks.append(task)
        return f"inline-{os.getpid()}"

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Does the unit that has waited longest, however long it takes."""
        if not self._tasks:
            return []
        if self._worker is None:
            self._worker = self._make_worker()
        for task in self._tasks:
            self._worker.prefetch(task)
        task = self._tasks.popleft()
        return [attempt(self._worker.extract, task)]

    def close(self) -> None:
        """Lets go of the worker."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def attempt(extract: Callable[[UnitTask], UnitReport], task: UnitTask) -> Outcome:
    """Does a unit; errors come back as values, so that they keep their types across processes."""
    try:
        return Outcome(task, report=extract(task))
    except StrataError as error:
        return Outcome(task, error=error, cause="failed", detail=type(error).__name__)
    except Exception as error:  # noqa: BLE001  the worker's boundary: the driver decides
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(task, error=RuntimeError(text), cause="failed", detail=text[:200])

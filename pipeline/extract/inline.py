"""What the driver asks of an engine, and the engine that needs nothing but this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import StrataError
from pipeline.extract.worker import UnitReport, UnitTask, Worker

LOST = "lost"
"""Cause of a failure for which the unit cannot be blamed: its node went away."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with a report, or with an error.

    Attributes:
        task: The attempt.
        report: What was done; None if it failed.
        error: Why it failed; a StrataError will fail again, anything else may be tried again.
        cause: died, hung, failed or lost; None if it did not fail.
        detail: The limit that was overrun, or the like.
    """

    task: UnitTask
    report: UnitReport | None = None
    error: Exception | None = None
    cause: str | None = None
    detail: str = ""


class Engine(Protocol):
    """Runs one unit per worker."""

    def has_room(self) -> bool:
        """Whether a worker is ready to take a unit."""

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Gives a unit to a ready worker, for at most `limit_s`; returns the worker's name."""

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes of attempts that have ended, after at most `timeout_s` (inline: one unit)."""

    def close(self) -> None:
        """Ends the workers; units in flight are dropped."""


class InlineEngine:
    """Runs units in this process, one at a time; it has nobody to end one that hangs."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None
        self._task: UnitTask | None = None

    def has_room(self) -> bool:
        """Whether no unit waits."""
        return self._task is None

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Keeps the unit for the next `poll`."""
        self._task = task
        return f"inline-{os.getpid()}"

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Does the unit that waits, however long it takes."""
        task, self._task = self._task, None
        if task is None:
            return []
        if self._worker is None:
            self._worker = self._make_worker()
        return [attempt(self._worker, task)]

    def close(self) -> None:
        """Lets go of the worker."""
        self._worker = None


def attempt(worker: Worker, task: UnitTask) -> Outcome:
    """Does a unit; errors come back as values, so that they keep their types across processes."""
    try:
        return Outcome(task, report=worker.extract(task))
    except StrataError as error:
        return Outcome(task, error=error, cause="failed", detail=type(error).__name__)
    except Exception as error:  # noqa: BLE001  the worker's boundary: the driver decides
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(task, error=RuntimeError(text), cause="failed", detail=text[:200])

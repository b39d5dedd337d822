"""Executor that runs units in this process: no Ray, one worker."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from pipeline.extract.executors.base import Outcome, UnitWorker, attempt, can_take
from pipeline.extract.messages import UnitTask


class InlineExecutor:
    """Runs units in this process, one at a time; a unit that hangs is not stopped.

    While a unit is encoded, the next one is decoded. A unit is committed before the next one is
    encoded, so an interrupt drops one unit at most.
    """

    def __init__(self, make_worker: Callable[[], UnitWorker]) -> None:
        self._make_worker = make_worker
        self._worker: UnitWorker | None = None
        self._tasks: deque[UnitTask] = deque()

    def has_room(self, exclusive: bool = False) -> bool:
        """Whether another unit can be submitted."""
        return can_take(self._tasks, exclusive)

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Queue a unit for `poll`; the time limit is ignored."""
        self._tasks.append(task)
        return f"inline-{os.getpid()}"

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Run the oldest unit, however long it takes; the first call creates the worker."""
        if not self._tasks:
            return []
        if self._worker is None:
            self._worker = self._make_worker()
        for task in self._tasks:
            self._worker.prefetch(task)
        task = self._tasks.popleft()
        return [attempt(self._worker.extract, task)]

    def close(self) -> None:
        """Stop the worker and drop the queued units."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
        self._tasks.clear()

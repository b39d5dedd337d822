"""Executor that runs units in this process: no Ray, one worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from pipeline.errors import RunError
from pipeline.extract.executors.base import Cause, Outcome, UnitWorker, attempt, can_take
from pipeline.extract.executors.encoding_thread import EncodingThread
from pipeline.extract.messages import UnitReport, UnitTask


class InlineExecutor:
    """Runs units in this process with one worker; a unit that hangs is not stopped.

    While a unit is encoded, the unit before it is committed and the next one is decoded. So an
    interrupt drops one unit that was being encoded, and what was decoded of the next ones.
    """

    def __init__(self, make_worker: Callable[[], UnitWorker], units_per_worker: int) -> None:
        self._make_worker, self._units_per_worker = make_worker, units_per_worker
        self._worker: EncodingThread | None = None
        self._tasks: list[UnitTask] = []  # in the order of submission
        self._reports: dict[int, Future[UnitReport]] = {}  # of those that the worker has, by slot

    def has_room(self, exclusive: bool = False) -> bool:
        """Whether another unit can be submitted."""
        return can_take(self._tasks, exclusive, self._units_per_worker)

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Give a unit to the worker, if that exists already; the time limit is ignored."""
        self._tasks.append(task)
        if self._worker is not None:
            self._reports[task.slot] = self._worker.submit(task)
        return f"inline-{os.getpid()}"

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Wait for the first unit that ends; the first call creates the worker.

        Raises:
            RunError: The GPU has failed.
        """
        if not self._tasks:
            return []
        if self._worker is None:
            self._worker = EncodingThread(self._make_worker)
            self._reports = {task.slot: self._worker.submit(task) for task in self._tasks}
        wait(self._reports.values(), timeout_s, FIRST_COMPLETED)
        ended = [task for task in self._tasks if self._reports[task.slot].done()]
        outcomes = [attempt(task, self._reports.pop(task.slot)) for task in ended]
        self._tasks = [task for task in self._tasks if task.slot in self._reports]
        for outcome in outcomes:
            if outcome.cause == Cause.DIED:
                raise RunError(
                    f"{outcome.error}. This process can extract no more units; those that are "
                    "committed are safe: run the same command again to continue"
                ) from outcome.error
        return outcomes

    def close(self) -> None:
        """Stop the worker and drop the units that are not encoded."""
        worker, self._worker = self._worker, None
        self._tasks, self._reports = [], {}
        if worker is not None:
            worker.close()

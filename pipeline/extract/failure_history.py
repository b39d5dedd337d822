"""Failed attempts at each unit; they decide which units run exclusively or are isolated."""

from __future__ import annotations

from collections import Counter

from pipeline.extract.executors.base import Cause, Outcome
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.run_log import now
from pipeline.store.coordination.worker_failures import (
    Isolation,
    WorkerFailure,
    isolate,
    read_failures,
    record_failure,
    take_marker,
)


class FailureHistory:
    """Failed attempts at each unit, in earlier runs (from the ledger) and in this one.

    Attributes:
        n_attempts: Failed attempts of this run that count towards run.max_attempts, by unit.
    """

    def __init__(self, backend: Backend, run_id: str) -> None:
        self._backend, self._run_id = backend, run_id
        self._failures: dict[int, list[WorkerFailure]] = {}
        self._shared: set[int] = set()
        self.n_attempts: Counter[int] = Counter()

    def load(self) -> None:
        """Read the failures of earlier runs from the ledger."""
        self._failures = read_failures(self._backend)

    def is_exclusive(self, unit: int) -> bool:
        """Whether a unit must run without another unit in its worker.

        A worker failure is recorded for every unit that the worker had. From then on, each of these
        units runs exclusively, so that the next failure has one possible cause.
        """
        return bool(self._failures.get(unit)) or unit in self._shared

    def isolation(self, unit: int) -> Isolation | None:
        """Return how to run a unit that failed repeatedly; None for any other unit."""
        return isolate(self._failures.get(unit, ()))

    def add_shared(self, unit: int) -> None:
        """Record that a unit's worker was stopped because of another unit."""
        self._shared.add(unit)

    def add(self, outcome: Outcome) -> WorkerFailure:
        """Record a failed attempt, also in the ledger, with the utterance that its worker was at.

        The attempt counts towards `run.max_attempts`, unless this utterance is known or another
        unit may be the cause.
        """
        task = outcome.task
        position, name, signal = take_marker(self._backend, task.slot)
        detail = outcome.detail
        if outcome.cause == Cause.DIED:
            detail = signal or detail or "killed, or out of memory"
        cause = outcome.cause or Cause.FAILED
        failure = WorkerFailure(
            task.slot, task.unit, cause, detail, position, name, self._run_id, now()
        )
        record_failure(self._backend, failure)
        self._failures.setdefault(task.unit, []).append(failure)
        self.n_attempts[task.unit] += not (position is not None or outcome.is_ambiguous)
        return failure

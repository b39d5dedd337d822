"""The loop that gives out units until every one is committed or given up.

What came before and what comes after (plan, identity, sweep) is run.py's; who runs the workers is
the engine's. Here are claims, attempts, suspicion and the end of a run.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.errors import RunError, StrataError
from pipeline.events import Observer
from pipeline.extract.deferral import deferred_rows
from pipeline.extract.executors.base import Cause, Executor, Outcome
from pipeline.extract.messages import UnitReport, UnitTask
from pipeline.extract.planning import check_space
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import now
from pipeline.store.coordination.worker_failures import (
    Death,
    judge,
    read_deaths,
    record_death,
    take_trail,
)
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import Plan
from pipeline.store.write.documents import resize, write_plan

POLL_S = 1.0
MIN_LIMIT_S = 300.0
"""Least time a unit may take where run.unit_timeout_s is left to Strata."""
LIMIT_PER_AUDIO_S = 20.0
"""Times its audio that a unit may take, as long as nothing is known of the workers' speed."""
LIMIT_PER_SLOWEST = 10.0
"""Times the slowest speed so far, after that."""
CAREFUL = 3.0
"""Times the limit that a unit on probation has: each utterance is encoded alone, too."""
GRACE_S = 20.0
"""How long a run that is asked to stop waits for the units in flight."""
COMPACT_EVERY_S, COMPACT_UNITS = 60.0, 500
"""How often the compaction follows a long run, so that readers and `status` open quickly: after so
many units, but not more often than that."""


class Stop:
    """Asks a run to end: at first when the units in flight are done, the second time at once.

    Attributes:
        reason: Who asked, e.g. SIGTERM; empty if nobody did.
        is_graceful: Whether the run has units in flight elsewhere for which it can wait.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.is_graceful = False

    def request(self, reason: str) -> None:
        """Asks once; safe in a signal handler.

        Raises:
            KeyboardInterrupt: It is asked again, or there is nothing to wait for.
        """
        again, self.reason = bool(self.reason), self.reason or reason
        if again or not self.is_graceful:
            raise KeyboardInterrupt


@dataclass
class Driver:
    """Gives out units until none is left.

    Attributes:
        observer: Receives the events of the run; the run log is among its observers.
        open_executor: Starts the executor, given the number of units to do.
        failures: Units that were given up, with the last error.
    """

    config: Config
    backend: Backend
    layout: Layout
    geometry: FrameGeometry
    plan: Plan
    lease: Lease
    observer: Observer
    open_executor: Callable[[int], Executor]
    run_id: str
    stop: Stop = field(default_factory=Stop)
    failures: dict[int, Exception] = field(default_factory=dict)
    _deaths: dict[int, list[Death]] = field(default_factory=dict)
    _tries: Counter[int] = field(default_factory=Counter)
    _wary: set[int] = field(default_factory=set)  # units that were with another one that hung
    _slowest: float | None = None  # wall seconds per second of audio
    _compacted_s: float = field(default_factory=time.monotonic)
    _n_new: int = 0  # units committed since

    def run(self) -> None:
        """Extracts the missing units, then those of utterances that had to be deferred.

        Raises:
            RunError: The run was asked to stop.
            StoreError: The store cannot be written any more.
        """
        committed = set(index_files.committed_units(self.backend))
        audio_s = self.plan.n_frames / self.geometry.frame_rate_hz
        self.observer.planned(self.plan, len(committed), audio_s)
        self._adopt_deferred()
        todo = [unit for unit in range(self.plan.n_units) if unit not in committed]
        if not todo:
            return
        check_space(len(todo), self.layout, self.backend)
        if index_files.cached_units(self.backend).intersection(todo):  # a commit was taken back
            index_files.drop_cache(self.backend)
        self.observer.run_started(len(todo))
        ledger = Ledger.open(self.backend, self.plan.n_units)
        self._deaths = read_deaths(self.backend)
        executor = self.open_executor(len(todo))
        try:
            self.stop.is_graceful = self.config.engine.kind != "inline"
            while todo:
                self._extract(todo, executor, ledger)
                todo = self._adopt_deferred()
                ledger.grow(self.plan.n_units)
        finally:
            self.stop.is_graceful = False
            executor.close()
            self.observer.run_ended(sorted(self.failures), self.stop.reason)

    def _extract(self, todo: list[int], executor: Executor, ledger: Ledger) -> None:
        waiting = deque(todo)
        in_flight = 0
        while waiting or in_flight:
            if self.stop.reason:
                self._drain(executor, in_flight)
            self.lease.check()
            while (unit := self._next(waiting, executor)) is not None:
                self._submit(unit, executor, ledger)
                in_flight += 1
            for outcome in executor.poll(POLL_S):
                in_flight -= 1
                if self._needs_retry(outcome):
                    waiting.append(outcome.task.unit)
            self._compact_now_and_then()

    def _drain(self, executor: Executor, in_flight: int) -> None:
        """Waits for the units in flight, but not for long.

        Raises:
            RunError: Always.
        """
        if in_flight:
            self.observer.note(
                f"{self.stop.reason}: waiting up to {GRACE_S:.0f} s for {in_flight} units in "
                "flight; a second signal ends at once"
            )
        end_s = time.monotonic() + GRACE_S
        while in_flight and (left_s := end_s - time.monotonic()) > 0:
            for outcome in executor.poll(min(POLL_S, left_s)):
                in_flight -= 1
                if outcome.report is not None:
                    self._record_commit(outcome.report)
        done = len(index_files.committed_units(self.backend))
        raise RunError(
            f"stopped by {self.stop.reason}; {done} of {self.plan.n_units} units are committed and "
            "safe: run the same command again to go on"
        )

    def _next(self, waiting: deque[int], executor: Executor) -> int | None:
        """Takes the first unit that waits and for which there is room; None if there is none."""
        if not executor.has_room():
            return None
        for unit in waiting:
            if not self._is_suspect(unit) or executor.has_room(exclusive=True):
                waiting.remove(unit)
                return unit
        return None

    def _is_suspect(self, unit: int) -> bool:
        """Whether a unit is done with no other one in its worker.

        Whose worker dies is held against all units that it had. From then on each is done alone,
        so that no further death can be laid to the innocent one.
        """
        return bool(self._deaths.get(unit)) or unit in self._wary

    def _submit(self, unit: int, executor: Executor, ledger: Ledger) -> None:
        n_slots = ledger.n_slots
        claim = ledger.claim(unit, self.run_id, self.config.engine.kind, now())
        if claim.slot >= n_slots:
            resize(self.backend, self.layout, ledger.n_slots)
        rows = self.plan.unit_rows(unit)
        probation = judge(self._deaths.get(unit, ()))
        limit_s = self._limit_s(rows) * (CAREFUL if probation else 1)
        exclusive = self._is_suspect(unit)
        task = UnitTask(unit, claim.slot, claim.attempt, rows, probation, exclusive)
        executor.submit(task, limit_s)

    def _limit_s(self, rows: pa.Table) -> float:
        """How long a unit may take before it counts as hung."""
        asked = self.config.run.unit_timeout_s
        if asked is not None:
            return asked
        factor = LIMIT_PER_AUDIO_S
        if self._slowest is not None:
            factor = min(factor, LIMIT_PER_SLOWEST * self._slowest)
        audio_s: float = pc.sum(rows["n_frames"]).as_py() / self.geometry.frame_rate_hz
        return max(MIN_LIMIT_S, factor * audio_s)

    def _needs_retry(self, outcome: Outcome) -> bool:
        """Record how an attempt ended and return whether to retry the unit."""
        if outcome.report is not None:
            self._record_commit(outcome.report)
            return False
        error, cause, unit = outcome.error, outcome.cause, outcome.task.unit
        assert error is not None  # an outcome has a report, or an error and its cause
        assert cause is not None
        self.observer.unit_failed(unit, outcome.task.slot, cause, error)
        if isinstance(error, StrataError):  # it would fail the same way again
            raise error
        if cause == Cause.LOST:
            self.observer.note(f"unit {unit} was lost with its node and will be done again")
            return True
        if cause == Cause.SHARED:
            self._wary.add(unit)
            self.observer.note(f"unit {unit} was in the same worker and will be done again")
            return True
        is_explained = self._record_failure(outcome)
        self._tries[unit] += not (is_explained or outcome.is_ambiguous)
        if self._tries[unit] < self.config.run.max_attempts:
            self.observer.note(f"unit {unit} failed and will be tried again: {error}")
            return True
        self.failures[unit] = error
        self.observer.note(f"unit {unit} failed {self._tries[unit]} times, left out: {error}")
        return False

    def _record_failure(self, outcome: Outcome) -> bool:
        """Records a death in the ledger; returns whether it is known whose fault it was."""
        task = outcome.task
        position, name, signal = take_trail(self.backend, task.slot)
        detail = outcome.detail
        if outcome.cause == Cause.DIED:
            detail = signal or "killed, or out of memory"
        cause = outcome.cause or Cause.FAILED
        death = Death(task.slot, task.unit, cause, detail, position, name, self.run_id, now())
        record_death(self.backend, death)
        self._deaths.setdefault(task.unit, []).append(death)
        if position is not None:
            self.observer.note(f"utterance {name!r} of unit {task.unit} is suspect: {detail}")
        return position is not None

    def _record_commit(self, report: UnitReport) -> None:
        self._n_new += 1
        speed = report.wall_s / max(report.audio_s, 1.0)
        self._slowest = max(self._slowest or 0.0, speed)
        self.observer.unit_committed(report)

    def _compact_now_and_then(self) -> None:
        due = time.monotonic() - self._compacted_s > COMPACT_EVERY_S
        if due and self._n_new >= COMPACT_UNITS:
            index_files.refresh_cache(self.backend)
            self._compacted_s, self._n_new = time.monotonic(), 0

    def _adopt_deferred(self) -> list[int]:
        """Appends units for the utterances that committed units have deferred."""
        added = deferred_rows(self.backend, self.plan, self.geometry)
        if not len(added):
            return []
        first_new = self.plan.n_units
        self.plan = self.plan.extended(added)
        write_plan(self.backend, self.plan)
        resize(self.backend, self.layout, Ledger.open(self.backend, self.plan.n_units).n_slots)
        return list(range(first_new, self.plan.n_units))


def failure_message(failures: Mapping[int, Exception], backend: Backend) -> str:
    """What to tell of units that were given up."""
    unit, error = next(iter(failures.items()))
    units = ", ".join(str(number) for number in sorted(failures)[:10])
    return (
        f"{len(failures)} units failed again and again (units {units}); unit {unit}: {error}. All "
        f"others are committed in {backend}; run the same command again to retry these"
    )

"""The driver's loop: claim a slot for each unit, submit it, record the outcome, retry.

`run.py` makes the plan and the store before the loop, and cleans up after it. An executor runs the
workers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.errors import RunError, StrataError
from pipeline.events import Observer, announced
from pipeline.extract.executors.base import Cause, Executor, Outcome
from pipeline.extract.failure_history import FailureHistory
from pipeline.extract.messages import Place, UnitReport, UnitTask
from pipeline.extract.planning.estimate import check_space
from pipeline.extract.planning.replanning import deferred_rows
from pipeline.extract.stop import Stop
from pipeline.extract.time_limit import TimeLimit
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import now
from pipeline.store.coordination.visibility import await_commits
from pipeline.store.documents import check_form, resize, write_plan
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import Plan

POLL_S = 1.0
GRACE_S = 20.0
"""Seconds that a run waits for the units in flight when it is stopped."""
COMPACT_EVERY_S, COMPACT_UNITS = 60.0, 500
"""Minimum time and minimum number of new units between two compactions of the index, which let
readers and `status` open quickly during a long run."""


@dataclass(frozen=True)
class LeasedStore:
    """The store that a run writes to.

    Attributes:
        backend: Storage of the store.
        layout: Shapes of its arrays.
        geometry: Frame rate of its features.
        lease: The lease that the run holds.
        run_id: Id of the run, for claims and failures.
    """

    backend: Backend
    layout: Layout
    geometry: FrameGeometry
    lease: Lease
    run_id: str


class Share:
    """The units that a driver extracts: all of them.

    Several drivers of one job may extract units of a store, each its own; see
    `pipeline/online/shares.py`. One of them leads: it makes the plan and the store before. It plans
    deferred utterances and tidies up afterwards.

    Attributes:
        leads: Whether this driver leads.
        is_alone: Whether no other driver extracts.
    """

    leads = True
    is_alone = True

    def lease(self, store: Location, run_id: str) -> Lease:
        """Return the lease that the driver must hold."""
        return Lease(store, run_id)

    def begin(self, run_id: str) -> None:
        """Take note that plan and store are made, before the first unit is extracted."""

    def end(self) -> None:
        """Take note that the driver ends, well or not."""

    def check(self) -> None:
        """Check, every second or so, that this driver may go on.

        Raises:
            StoreBusyError: It may not.
        """

    def choose(self, missing: Sequence[int]) -> list[int]:
        """Return the units to extract next, of those that are not committed; perhaps none."""
        return list(missing)

    def waits(self, missing: Sequence[int]) -> bool:
        """Whether to ask again later, after `choose` has returned none of the missing units."""
        return False


@dataclass
class Driver:
    """Runs units on an executor until each is committed, or has failed `run.max_attempts` times.

    Attributes:
        config: Configuration of the run.
        store: The store to write to.
        plan: The store's plan; it grows by deferred utterances.
        observer: Receives the events of the run; the run log is among its observers.
        open_executor: Starts the executor, given the number of units to extract.
        stop: Request to stop.
        places: Returns the places of the audio of given utterances, by their plan's `row`; None if
            that is the row of the source.
        labels: Returns the columns to carry of given utterances; None lets workers read them.
        share: The units that this driver extracts.
        failures: Units that failed `run.max_attempts` times, with their last error.
    """

    config: Config
    store: LeasedStore
    plan: Plan
    observer: Observer
    open_executor: Callable[[int], Executor]
    stop: Stop = field(default_factory=Stop)
    places: Callable[[Sequence[int]], Sequence[Place]] | None = None
    labels: Callable[[Sequence[int]], pa.Table] | None = None
    share: Share = field(default_factory=Share)
    failures: dict[int, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._history = FailureHistory(self.store.backend, self.store.run_id)
        self._limit = TimeLimit(self.config.run.unit_timeout_s)
        self._compacted_s = time.monotonic()
        self._n_new = 0  # units committed since the last compaction
        self._reported: set[int] = set()  # committed units, as workers report them
        self._told_of_memory = False

    def run(self) -> None:
        """Extract the missing units, then the units of deferred utterances.

        Raises:
            RunError: The run was stopped.
            StoreError: The store cannot be written.
            StrataError: An attempt failed with an error that a retry would raise again.
        """
        backend = self.store.backend
        committed = set(index_files.committed_units(backend))
        audio_s = self.plan.audio_seconds(self.store.geometry.sample_rate_hz)
        self.observer.planned(self.plan, len(committed), audio_s)
        self._plan_deferred()
        todo = self._choose()
        if not todo:
            return
        check_form(backend, self.store.layout)
        check_space(len(todo), self.store.layout, backend)
        if index_files.cached_units(backend).intersection(todo):  # a commit was revoked
            index_files.drop_cache(backend)
        self.observer.run_started(len(todo))
        ledger = self._open_ledger()
        self._history.load()
        with announced(self.observer, f"starting engine={self.config.engine.kind}"):
            executor = self.open_executor(len(todo))
        try:
            self.stop.is_graceful = self.config.engine.kind != "inline"
            while todo:
                self._extract(todo, executor, ledger)
                await_commits(backend, self._reported)  # before they are counted and looked into
                todo = self._plan_deferred() or self._choose_more()
                ledger.grow(self.plan.n_units)
        finally:
            self.stop.is_graceful = False
            executor.close()
            self.observer.run_ended(sorted(self.failures), self.stop.reason)

    def _choose(self) -> list[int]:
        """Return the units to extract now; wait for those of other drivers."""
        while True:
            committed = set(index_files.committed_units(self.store.backend))
            left = range(self.plan.n_units)
            missing = [u for u in left if u not in committed and u not in self.failures]
            todo = self.share.choose(missing)
            if todo or not self.share.waits(missing):
                return todo
            self._check()
            time.sleep(POLL_S)

    def _choose_more(self) -> list[int]:
        """Return further units, after the chosen ones are extracted."""
        if self.share.is_alone:
            return []
        return self._choose() or self._plan_deferred()

    def _check(self) -> None:
        """Check that this driver still holds what it extracts.

        Raises:
            StoreBusyError: It does not.
            StoreError: The store is gone.
            RunError: The run was stopped.
        """
        if self.stop.reason:
            self._raise_stopped()
        self.store.lease.check()
        self.share.check()

    def _open_ledger(self) -> Ledger:
        is_shared = not self.share.is_alone
        return Ledger.open(self.store.backend, self.plan.n_units, is_shared)

    def _extract(self, todo: list[int], executor: Executor, ledger: Ledger) -> None:
        waiting = deque(todo)
        in_flight = 0
        while waiting or in_flight:
            if self.stop.reason:
                self._drain_and_stop(executor, in_flight)
            self._check()
            while (unit := self._next(waiting, executor)) is not None:
                self._submit(unit, executor, ledger)
                in_flight += 1
            for outcome in executor.poll(POLL_S):
                in_flight -= 1
                if self._needs_retry(outcome):
                    waiting.append(outcome.task.unit)
            self._compact_if_due()

    def _next(self, waiting: deque[int], executor: Executor) -> int | None:
        """Remove and return the first waiting unit for which there is room, else None."""
        if not executor.has_room():
            return None
        for unit in waiting:
            if not self._history.is_exclusive(unit) or executor.has_room(exclusive=True):
                waiting.remove(unit)
                return unit
        return None

    def _submit(self, unit: int, executor: Executor, ledger: Ledger) -> None:
        """Claim a slot for a unit and give it to a worker."""
        n_slots = ledger.n_slots
        claim = ledger.claim(unit, self.store.run_id, self.config.engine.kind, now())
        if claim.slot >= n_slots:
            resize(self.store.backend, self.store.layout, ledger.n_slots)
        rows = self.plan.unit_rows(unit)
        isolation = self._history.isolation(unit)
        exclusive = self._history.is_exclusive(unit)
        numbers = rows["row"].to_pylist()
        task = UnitTask(
            unit,
            claim.slot,
            claim.attempt,
            rows,
            places=self.places(numbers) if self.places else None,
            isolation=isolation,
            exclusive=exclusive,
            labels=self.labels(numbers) if self.labels else None,
            claim=claim,
        )
        audio_s = self._audio_s(pc.sum(rows["n_frames"]).as_py())
        executor.submit(task, self._limit.limit_s(audio_s, isolated=isolation is not None))

    def _needs_retry(self, outcome: Outcome) -> bool:
        """Record how an attempt ended and return whether to retry the unit.

        Raises:
            StrataError: A retry would raise it again.
        """
        if outcome.report is not None:
            self._record_commit(outcome.report)
            return False
        error, cause, unit = outcome.error, outcome.cause, outcome.task.unit
        assert error is not None  # an outcome has a report, or an error and its cause
        assert cause is not None
        self.observer.unit_failed(unit, outcome.task.slot, cause, error)
        if isinstance(error, StrataError):
            raise error
        if cause == Cause.LOST:
            self.observer.note(f"unit {unit}: its node was lost; the unit will be retried")
            return True
        if cause == Cause.SHARED:
            self._history.add_shared(unit)
            self.observer.note(
                f"unit {unit}: its worker was stopped because of another unit; the unit will be "
                "retried"
            )
            return True
        return self._record_failure(outcome, error)

    def _record_failure(self, outcome: Outcome, error: Exception) -> bool:
        """Record a failure that the unit may have caused; return whether to retry the unit."""
        unit = outcome.task.unit
        failure = self._history.add(outcome)
        if failure.position is not None:
            self.observer.note(
                f"utterance {failure.id!r} of unit {unit} may be the cause: {failure.detail}"
            )
        n_attempts = self._history.n_attempts[unit]
        if n_attempts < self.config.run.max_attempts:
            self.observer.note(f"unit {unit} failed and will be retried: {error}")
            return True
        self.failures[unit] = error
        self.observer.note(f"unit {unit} failed {n_attempts} times and is left out: {error}")
        return False

    def _record_commit(self, report: UnitReport) -> None:
        self._n_new += 1
        self._reported.add(report.unit)
        if report.n_halved and not self._told_of_memory:
            self._told_of_memory = True
            self.observer.note(
                "the device was out of memory with a batch; it was encoded in halves, and nothing "
                "is lost. To encode faster, lower extract.max_batch_s or free memory there"
            )
        self._limit.observe(report.audio_s, report.wall_s)
        self.observer.unit_committed(report)

    def _compact_if_due(self) -> None:
        """Compact the index if enough time has passed and enough units are new."""
        due = self.share.leads and time.monotonic() - self._compacted_s > COMPACT_EVERY_S
        if due and self._n_new >= COMPACT_UNITS:
            index_files.refresh_cache(self.store.backend)
            self._compacted_s, self._n_new = time.monotonic(), 0

    def _plan_deferred(self) -> list[int]:
        """Append units for utterances that committed units have deferred; return the new units."""
        backend = self.store.backend
        if not self.share.leads:
            return []
        added = deferred_rows(backend, self.plan, self.store.geometry)
        if not len(added):
            return []
        first_new = self.plan.n_units
        self.plan = self.plan.extended(added)
        write_plan(backend, self.plan)
        resize(backend, self.store.layout, self._open_ledger().n_slots)
        return list(range(first_new, self.plan.n_units))

    def _audio_s(self, n_frames: int) -> float:
        return n_frames / self.store.geometry.frame_rate_hz

    def _drain_and_stop(self, executor: Executor, in_flight: int) -> None:
        """Wait up to `GRACE_S` for the units in flight, then end the run.

        Raises:
            RunError: Always.
        """
        if in_flight:
            self.observer.note(
                f"{self.stop.reason}: waiting up to {GRACE_S:.0f} s for {in_flight} units in "
                "flight; a second signal stops at once"
            )
        end_s = time.monotonic() + GRACE_S
        while in_flight and (left_s := end_s - time.monotonic()) > 0:
            for outcome in executor.poll(min(POLL_S, left_s)):
                in_flight -= 1
                if outcome.report is not None:
                    self._record_commit(outcome.report)
        self._raise_stopped()

    def _raise_stopped(self) -> NoReturn:
        """Raise that the run was stopped."""
        n_committed = len(index_files.committed_units(self.store.backend))
        raise RunError(
            f"stopped by {self.stop.reason}; {n_committed} of {self.plan.n_units} units are "
            "committed and safe: run the same command again to continue"
        )


def failure_message(failures: Mapping[int, Exception], store: Location) -> str:
    """Describe the units that failed in every attempt, in one line."""
    unit, error = next(iter(failures.items()))
    units = ", ".join(str(number) for number in sorted(failures)[:10])
    return (
        f"{len(failures)} units failed in every attempt (units {units}); unit {unit}: {error}. All "
        f"others are committed in {store}; run the same command again to retry these"
    )

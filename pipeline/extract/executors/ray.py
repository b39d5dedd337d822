"""Executor that runs units in Ray actors, on this machine or a cluster.

Ray's own retries are off: a dead actor is replaced, its units are reported as failed, and the
driver decides on another attempt.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import EngineConfig
from pipeline.errors import RunError, StrataError
from pipeline.extract.executors.base import (
    Cause,
    Outcome,
    UnitWorker,
    attempt,
    units_per_worker,
)
from pipeline.extract.executors.encoding_thread import EncodingThread
from pipeline.extract.executors.ray_actor import RemoteActor, UnitInFlight
from pipeline.extract.executors.ray_cluster import (
    Metrics,
    connect,
    disconnect,
    draining_nodes,
    why_no_start,
    worker_folders,
)
from pipeline.extract.messages import UnitTask
from pipeline.extract.resources import Resources

MAX_FAILED_STARTS = 4
"""Consecutive failed starts of actors that are allowed, in addition to one per worker."""
RETRY_START_S = 60.0
"""Seconds until the next start of an actor after too many failed starts, while others work."""
DRAIN_CHECK_S = 2.0
"""Seconds between two queries for nodes that are about to be removed."""


@dataclass(frozen=True)
class _Started:
    """Result of starting an actor.

    Attributes:
        node: Id of its node.
        worker: Host and process, as `host:pid`.
        error: Why the worker could not be created; None if it is ready.
    """

    node: str
    worker: str
    error: Exception | None = None


class _Actor:
    """A worker in its own process."""

    def __init__(self, make_worker: Callable[[], UnitWorker]) -> None:
        self._make_worker = make_worker
        self._worker: EncodingThread | None = None
        self._turn = threading.Condition()
        self._n_taken = 0

    def start(self) -> _Started:
        """Create the worker: open the source and load the encoder."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        name = f"{socket.gethostname()}:{os.getpid()}"
        try:
            self._worker = EncodingThread(self._make_worker)
        except StrataError as error:
            return _Started(node, name, error)
        return _Started(node, name)

    def extract(self, task: UnitTask, number: int) -> Outcome:
        """Run a unit, while other calls run in other threads.

        Ray starts these threads in any order: a unit waits until those before it are taken.

        Args:
            task: The unit.
            number: Number of units that were sent to this actor before.
        """
        assert self._worker is not None  # units are sent only after `start` has returned
        with self._turn:
            self._turn.wait_for(lambda: self._n_taken == number)
            try:
                report = self._worker.submit(task)
            finally:  # else the units after this one would wait for ever
                self._n_taken += 1
                self._turn.notify_all()
        return attempt(task, report)


class RayExecutor:
    """Runs units in Ray actors; a dead actor is replaced.

    An actor has up to `units_per_worker` units, in different stages. Units are sent only to actors
    that have started, so a failed start costs no attempt, and on a cluster that shrank no unit
    waits for a node.
    """

    def __init__(
        self,
        config: EngineConfig,
        resources: Resources,
        make_worker: Callable[[], UnitWorker],
        n_units: int | None = None,
    ) -> None:
        import ray

        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        self._folders = worker_folders(config)
        if self._owns_ray:
            connect(config, resources.n_workers * resources.threads)
        gpus = 1 if resources.device == "cuda" else 0
        actor_class: Any = ray.remote(
            num_cpus=resources.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._units_per_worker = units_per_worker(resources.device)
        self._actor_class: Any = actor_class.options(max_concurrency=self._units_per_worker)
        self._make_worker = ray.put(make_worker)
        self._n_workers = min(resources.n_workers, n_units or resources.n_workers)
        self._n_unsubmitted: float = math.inf if n_units is None else n_units
        self._n_started = 0
        self._n_failed_starts = 0
        self._no_start_before_s = 0.0
        self._starting: dict[Any, RemoteActor] = {}
        self._ready: list[RemoteActor] = []
        self._drain_check_s = 0.0
        self._draining: set[str] = set()
        self._metrics = Metrics()
        self._start_actors()

    def has_room(self, exclusive: bool = False) -> bool:
        """Whether an actor can take a unit; with `exclusive`, whether an idle actor can."""
        return self._choose(exclusive) is not None

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Send a unit to an actor that has room for it."""
        remote = self._choose(task.exclusive)
        assert remote is not None  # submit is called only where there is room
        reference = remote.handle.extract.remote(task, remote.n_sent)
        remote.add(reference, UnitInFlight(task, limit_s))
        self._n_unsubmitted -= 1
        return remote.name

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Wait until an attempt ends or an actor has started; return the outcomes.

        Raises:
            RunError: Too many actors died before they had started.
            StrataError: A worker cannot be created on any node.
        """
        self._start_actors()
        holders = {reference: remote for remote in self._ready for reference in remote.in_flight}
        pending = [*holders, *self._starting]
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        outcomes = []
        for reference in ready:
            if reference in self._starting:
                self._on_ready(reference)
            elif reference in holders[reference].in_flight:
                outcomes += self._collect(holders[reference], reference)
        outcomes += self._stop_overdue()
        self._retire_draining()
        for outcome in outcomes:
            self._metrics.count(outcome)
            self._n_unsubmitted += outcome.report is None
        return outcomes

    def close(self) -> None:
        """Kill the actors, and shut Ray down if this executor started it."""
        for remote in [*self._ready, *self._starting.values()]:
            self._ray.kill(remote.handle)
        self._starting, self._ready = {}, []
        if self._owns_ray:
            disconnect()

    def _choose(self, exclusive: bool) -> RemoteActor | None:
        """Return an idle actor, else the actor whose first unit has run longest, else None.

        The last units are kept for the actors that are starting.
        """
        able = [r for r in self._ready if r.node not in self._draining and r.can_take(exclusive)]
        idle = [remote for remote in able if not remote.in_flight]
        if idle:
            return idle[-1]
        if self._n_unsubmitted <= len(self._starting):
            return None
        return min(able, key=lambda remote: remote.since_s, default=None)

    def _start_actors(self) -> None:
        """Start actors until the number of workers is reached."""
        if self._ready and time.monotonic() < self._no_start_before_s:
            return
        while len(self._starting) + len(self._ready) < self._n_workers:
            self._n_started += 1
            handle = self._actor_class.remote(self._make_worker)
            name = f"actor-{self._n_started}"
            remote = RemoteActor(name, handle, self._units_per_worker)
            self._starting[handle.start.remote()] = remote

    def _on_ready(self, reference: Any) -> None:
        """Handle the end of an actor's start: it is ready, dead, or without a worker."""
        remote = self._starting.pop(reference)
        try:
            started: _Started = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(remote.handle)
            self._n_failed_starts += 1
            if self._n_failed_starts > MAX_FAILED_STARTS + self._n_workers:
                if self._ready:  # a GPU that has failed, for example, must not end the run
                    self._no_start_before_s = time.monotonic() + RETRY_START_S
                    return
                why = why_no_start(error, self._folders, self._n_workers)
                raise RunError(
                    f"{self._n_failed_starts} workers died before they could take a unit; the "
                    f"last: {why}"
                ) from error
            return
        if started.error is not None:
            raise started.error
        self._n_failed_starts = 0
        remote.node = started.node
        self._ready.append(remote)

    def _collect(self, remote: RemoteActor, reference: Any) -> list[Outcome]:
        """Return the outcome of a unit; if its actor died, the outcomes of all of its units."""
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            cause = Cause.LOST if self._is_lost(error, remote.node) else Cause.DIED
            reason = " ".join(str(error).split())[:500]
            outcomes, dropped = self._kill_actor(remote)
            return outcomes + [
                Outcome(
                    unit.task,
                    error=RuntimeError(f"{remote.name} {cause}: {reason}"),
                    cause=cause,
                    is_ambiguous=len(dropped) > 1,
                )
                for unit in dropped
            ]
        remote.end(reference)
        return self._replace(remote, outcome) if outcome.cause == Cause.DIED else [outcome]

    def _replace(self, remote: RemoteActor, outcome: Outcome) -> list[Outcome]:
        """Kill an actor whose GPU has failed; return the outcomes of its units.

        If several failed, any of them may be the culprit.
        """
        ended, dropped = self._kill_actor(remote)
        error = RuntimeError(f"{remote.name} was stopped, because its device failed")
        found = [outcome, *ended]
        found += [Outcome(unit.task, error=error, cause=Cause.DIED) for unit in dropped]
        n_failed = sum(item.report is None for item in found)
        return [replace(x, is_ambiguous=x.report is None and n_failed > 1) for x in found]

    def _kill_actor(self, remote: RemoteActor) -> tuple[list[Outcome], list[UnitInFlight]]:
        """Kill an actor; return the outcomes that it had finished, and its other units."""
        self._ready.remove(remote)
        references = list(remote.in_flight)
        ended, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        outcomes = []
        for reference in ended:
            with suppress(self._ray.exceptions.RayError):
                outcomes.append(self._ray.get(reference))
                remote.end(reference)
        dropped = list(remote.in_flight.values())
        remote.in_flight.clear()
        self._ray.kill(remote.handle)
        return outcomes, dropped

    def _is_lost(self, error: Exception, node: str) -> bool:
        """Whether an actor ended with its node or became unreachable, which no unit causes."""
        if isinstance(error, self._ray.exceptions.ActorUnavailableError):
            return True
        if getattr(error, "preempted", False):
            return True
        nodes: list[dict[str, Any]] = self._ray.nodes()  # type: ignore[no-untyped-call]
        return not any(item["NodeID"] == node and item["Alive"] for item in nodes)

    def _stop_overdue(self) -> list[Outcome]:
        """Kill actors whose first unit exceeded its limit; `poll` starts their replacements."""
        outcomes = []
        for remote in list(self._ready):
            late = remote.overdue
            if late is None:
                continue
            finished, dropped = self._kill_actor(remote)
            outcomes += finished
            limit = f"{late.limit_s:.0f} s"
            error = RuntimeError(f"{remote.name} did not end within {limit} and was stopped")
            for unit in dropped:
                cause = Cause.HUNG if unit is late else Cause.SHARED
                outcomes.append(Outcome(unit.task, error=error, cause=cause, detail=limit))
        return outcomes

    def _retire_draining(self) -> None:
        """Kill idle actors on nodes that are about to be removed; units in flight may end there."""
        if time.monotonic() - self._drain_check_s > DRAIN_CHECK_S:
            self._drain_check_s = time.monotonic()
            self._draining = draining_nodes(DRAIN_CHECK_S)
        for remote in list(self._ready):
            if remote.node in self._draining and not remote.in_flight:
                self._ready.remove(remote)
                self._ray.kill(remote.handle)

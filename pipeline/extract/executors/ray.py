"""What runs the workers: this process, or Ray actors.

An engine hands units to workers and hands back outcomes; which unit comes next, what is tried again
and what is given up is the driver's business (driver.py). Ray's own retries are off: an attempt
that died is reported, its actor is replaced, and the driver claims a new slot.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.config import EngineConfig
from pipeline.errors import RunError, StrataError
from pipeline.extract.executors.inline import (
    LOST,
    SHARED,
    UNITS_PER_WORKER,
    Engine,
    InlineEngine,
    Outcome,
    attempt,
)
from pipeline.extract.executors.ray_actor import Flight, Remote
from pipeline.extract.executors.ray_cluster import Metrics, connect, draining_nodes
from pipeline.extract.messages import Job, UnitReport, UnitTask
from pipeline.extract.resources import Resources
from pipeline.extract.worker import Worker
from pipeline.store.coordination.worker_failures import DIED, HUNG

MAX_STILLBORN = 4
"""Actors, beside one per worker, that may die in a row before they are ready."""
DRAIN_CHECK_S = 2.0


def open_engine(
    config: EngineConfig,
    resources: Resources,
    job: Job,
    worker: Callable[[], Worker],
    n_units: int | None = None,
) -> Engine:
    """Starts an engine.

    Args:
        config: Which one.
        resources: What its workers get.
        job: What a remote worker is made from.
        worker: Makes the worker of the inline engine, with what is already open.
        n_units: Units that there are to do: no more workers than these are started.
    """
    if config.kind == "inline":
        return InlineEngine(worker)
    return RayEngine(config, resources, job, n_units)


@dataclass(frozen=True)
class _Started:
    """Word of a worker that is ready.

    Attributes:
        node: Its node.
        worker: Its host and process, as `host:pid`.
        error: Why it is not ready after all.
    """

    node: str
    worker: str
    error: Exception | None = None


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None
        # One thread makes the worker and encodes, whichever of Ray's threads asks for it: results
        # depend on the threads that PyTorch has, and it has a pool of them for each caller.
        self._encoding = ThreadPoolExecutor(1, "encode")

    def start(self) -> _Started:
        """Opens the source and loads the encoder."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        name = f"{socket.gethostname()}:{os.getpid()}"
        try:
            self._worker = self._encoding.submit(Worker, self._job).result()
        except StrataError as error:
            return _Started(node, name, error)
        return _Started(node, name)

    def extract(self, task: UnitTask) -> Outcome:
        """Does a unit, in its turn; two such calls may be under way."""
        return attempt(self._extract, task)

    def _extract(self, task: UnitTask) -> UnitReport:
        assert self._worker is not None  # a unit is sent only after word of the start has come
        self._worker.prefetch(task)
        committed = self._encoding.submit(self._worker.begin, task).result()
        return committed.result()


class RayEngine:
    """Runs units in Ray actors; a dead actor is replaced.

    An actor has one unit in hand, and the next one to decode meanwhile. A unit goes only to an
    actor that has said that it is ready, so the death of one that starts costs no attempt, and a
    cluster that has shrunk keeps no unit waiting for a node.
    """

    def __init__(
        self, config: EngineConfig, resources: Resources, job: Job, n_units: int | None = None
    ) -> None:
        import ray

        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            connect(config, resources.n_workers * resources.threads)
        gpus = 1 if resources.device == "cuda" else 0
        once: Any = ray.remote(
            num_cpus=resources.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._actor_class: Any = once.options(max_concurrency=UNITS_PER_WORKER)
        self._job = ray.put(job)
        self._n_workers = min(resources.n_workers, n_units or resources.n_workers)
        self._n_to_come: float = math.inf if n_units is None else n_units
        self._n_started = 0
        self._n_stillborn = 0
        self._starting: dict[Any, Remote] = {}
        self._ready: list[Remote] = []
        self._drain_check_s = 0.0
        self._draining: set[str] = set()
        self._metrics = Metrics()
        self._fill()

    def has_room(self, alone: bool = False) -> bool:
        """Whether an actor can take a unit; with `alone`, one that has none."""
        return self._choose(alone) is not None

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Sends a unit to an actor that has room for it."""
        remote = self._choose(task.alone)
        assert remote is not None  # submit is called only where there is room
        remote.add(remote.actor.extract.remote(task), Flight(task, limit_s))
        self._n_to_come -= 1
        return remote.name

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Waits for an attempt to end, or for an actor to become ready.

        Raises:
            RunError: Actors die before they are ready, again and again.
            StrataError: A worker cannot be made, here or anywhere.
        """
        self._fill()
        holders = {reference: remote for remote in self._ready for reference in remote.flights}
        pending = [*holders, *self._starting]
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        outcomes = []
        for reference in ready:
            if reference in self._starting:
                self._welcome(reference)
            elif reference in holders[reference].flights:
                outcomes += self._collect(holders[reference], reference)
        outcomes += self._end_overdue()
        self._retire_draining()
        for outcome in outcomes:
            self._metrics.count(outcome)
            self._n_to_come += outcome.report is None
        return outcomes

    def close(self) -> None:
        """Ends the actors and, if it was started here, Ray."""
        for remote in [*self._ready, *self._starting.values()]:
            self._ray.kill(remote.actor)
        self._starting, self._ready = {}, []
        if self._owns_ray:
            self._ray.shutdown()

    def _choose(self, alone: bool) -> Remote | None:
        """An actor without a unit; else, as a hint, the one whose turn to change comes first.

        The last units are kept for the actors that are about to be ready.
        """
        able = [r for r in self._ready if r.node not in self._draining and r.can_take(alone)]
        idle = [remote for remote in able if not remote.flights]
        if idle:
            return idle[-1]
        if self._n_to_come <= len(self._starting):
            return None
        return min(able, key=lambda remote: remote.since_s, default=None)

    def _fill(self) -> None:
        """Starts actors until there are as many as asked for."""
        while len(self._starting) + len(self._ready) < self._n_workers:
            self._n_started += 1
            actor = self._actor_class.remote(self._job)
            self._starting[actor.start.remote()] = Remote(f"actor-{self._n_started}", actor)

    def _welcome(self, reference: Any) -> None:
        remote = self._starting.pop(reference)
        try:
            started: _Started = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(remote.actor)
            self._n_stillborn += 1
            if self._n_stillborn > MAX_STILLBORN + self._n_workers:
                reason = " ".join(str(error).split())[:500]
                raise RunError(
                    f"{self._n_stillborn} workers died before they could take a unit; the last: "
                    f"{reason}. Is there enough memory for {self._n_workers} workers?"
                ) from error
            return
        if started.error is not None:
            raise started.error
        self._n_stillborn = 0
        remote.node = started.node
        self._ready.append(remote)

    def _collect(self, remote: Remote, reference: Any) -> list[Outcome]:
        """The outcome of a unit; of all units of its actor, if that has died."""
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            cause = LOST if self._is_lost(error, remote.node) else DIED
            reason = " ".join(str(error).split())[:500]
            outcomes, dead = self._bury(remote)
            return outcomes + [
                Outcome(
                    flight.task,
                    error=RuntimeError(f"{remote.name} {cause}: {reason}"),
                    cause=cause,
                    in_company=len(dead) > 1,
                )
                for flight in dead
            ]
        remote.end(reference)
        return [outcome]

    def _bury(self, remote: Remote) -> tuple[list[Outcome], list[Flight]]:
        """Ends an actor: the outcomes of units that it had done before, and the others."""
        self._ready.remove(remote)
        done, _ = self._ray.wait(list(remote.flights), num_returns=len(remote.flights), timeout=0)
        outcomes = []
        for reference in done:
            with suppress(self._ray.exceptions.RayError):
                outcomes.append(self._ray.get(reference))
                remote.end(reference)
        dead = list(remote.flights.values())
        remote.flights.clear()
        self._ray.kill(remote.actor)
        return outcomes, dead

    def _is_lost(self, error: Exception, node: str) -> bool:
        """Whether an actor went with its node, or out of reach: no fault of its unit."""
        if isinstance(error, self._ray.exceptions.ActorUnavailableError):
            return True
        if getattr(error, "preempted", False):
            return True
        nodes: list[dict[str, Any]] = self._ray.nodes()  # type: ignore[no-untyped-call]
        return not any(item["NodeID"] == node and item["Alive"] for item in nodes)

    def _end_overdue(self) -> list[Outcome]:
        """Ends actors that have held a unit for too long; those that wait here get replaced."""
        outcomes = []
        for remote in list(self._ready):
            late = remote.overdue
            if late is None:
                continue
            done, dead = self._bury(remote)
            outcomes += done
            limit = f"{late.limit_s:.0f} s"
            error = RuntimeError(f"{remote.name} did not end within {limit} and was stopped")
            for flight in dead:
                cause = HUNG if flight is late else SHARED
                outcomes.append(Outcome(flight.task, error=error, cause=cause, detail=limit))
        return outcomes

    def _retire_draining(self) -> None:
        """Gives no further unit to nodes that are about to go; what is in flight may end there."""
        if time.monotonic() - self._drain_check_s > DRAIN_CHECK_S:
            self._drain_check_s = time.monotonic()
            self._draining = draining_nodes(DRAIN_CHECK_S)
        for remote in list(self._ready):
            if remote.node in self._draining and not remote.flights:
                self._ready.remove(remote)
                self._ray.kill(remote.actor)

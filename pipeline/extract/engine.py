"""What runs the workers: this process, or Ray actors. The only module that imports ray.

An engine takes one unit per worker and hands back outcomes; which unit comes next, what is tried
again and what is given up is the driver's business (run.py). Ray's own retries are off: an attempt
that died is reported, its actor is replaced, and the driver claims a new slot.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, RunError, StrataError
from pipeline.extract.inline import LOST, Engine, InlineEngine, Outcome, attempt
from pipeline.extract.worker import Job, UnitTask, Worker
from pipeline.store.deaths import DIED, HUNG

CPUS_PER_WORKER = 4
"""CPUs of one worker where none is asked for and there is no GPU."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory; features never pass through it."""
MAX_STILLBORN = 4
"""Actors, beside one per worker, that may die in a row before they are ready."""
DRAIN_CHECK_S = 2.0


@dataclass(frozen=True)
class Resources:
    """What the workers of a run get.

    Attributes:
        n_workers: Number of workers.
        threads: CPU threads of each.
        device: cpu or cuda.
    """

    n_workers: int
    threads: int
    device: str


def find_resources(config: EngineConfig) -> Resources:
    """Decides on workers, threads and device, starting nothing but a connection to a cluster.

    Raises:
        ConfigError: The settings ask for what is not there.
    """
    cpus, gpus = _machine(config)
    device = config.device
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"engine.device is {device!r}; expected auto, cpu or cuda")
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError("engine.device is cuda, but there is no GPU; leave it at auto")
    for name, value in (("workers", config.workers), ("threads", config.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"engine.{name} is {value}; expected at least 1")
    if config.kind == "inline":
        if config.workers not in (None, 1):
            raise ConfigError("engine=inline has one worker; use engine=ray for more")
        return Resources(1, config.threads or cpus, device)
    threads = config.threads
    if device == "cuda":
        n_workers = config.workers or gpus
    elif threads:
        n_workers = config.workers or max(1, cpus // threads)
    else:
        n_workers = config.workers or max(1, cpus // CPUS_PER_WORKER)
    return Resources(n_workers, threads or max(1, cpus // n_workers), device)


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

    def start(self) -> _Started:
        """Opens the source and loads the encoder."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        name = f"{socket.gethostname()}:{os.getpid()}"
        try:
            self._worker = Worker(self._job)
        except StrataError as error:
            return _Started(node, name, error)
        return _Started(node, name)

    def extract(self, task: UnitTask) -> Outcome:
        """Does a unit."""
        assert self._worker is not None  # a unit is sent only after word of the start has come
        return attempt(self._worker, task)


@dataclass
class _Remote:
    """An actor as the driver sees it."""

    name: str
    actor: Any
    node: str = ""
    task: UnitTask | None = None
    limit_s: float = math.inf
    began_s: float = 0.0


class RayEngine:
    """Runs units in Ray actors, one in flight per actor; a dead actor is replaced.

    A unit goes only to an actor that has said that it is ready, so the death of one that starts
    costs no attempt, and a cluster that has shrunk keeps no unit waiting for a node.
    """

    def __init__(
        self, config: EngineConfig, resources: Resources, job: Job, n_units: int | None = None
    ) -> None:
        import ray

        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(config, resources)
        gpus = 1 if resources.device == "cuda" else 0
        self._actor_class: Any = ray.remote(
            num_cpus=resources.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._job = ray.put(job)
        self._n_workers = min(resources.n_workers, n_units or resources.n_workers)
        self._n_started = 0
        self._n_stillborn = 0
        self._starting: dict[Any, _Remote] = {}
        self._free: list[_Remote] = []
        self._busy: dict[Any, _Remote] = {}
        self._drain_check_s = 0.0
        self._draining: set[str] = set()
        self._metrics = _Metrics()
        self._fill()

    def has_room(self) -> bool:
        """Whether an actor is ready."""
        return bool(self._free)

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Sends a unit to an actor that is ready."""
        remote = self._free.pop()
        remote.task, remote.limit_s, remote.began_s = task, limit_s, time.monotonic()
        self._busy[remote.actor.extract.remote(task)] = remote
        return remote.name

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Waits for an attempt to end, or for an actor to become ready.

        Raises:
            RunError: Actors die before they are ready, again and again.
            StrataError: A worker cannot be made, here or anywhere.
        """
        self._fill()
        pending = [*self._busy, *self._starting]
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        outcomes = []
        for reference in ready:
            if reference in self._starting:
                self._welcome(reference)
            else:
                outcomes.append(self._collect(reference))
        outcomes += self._end_overdue()
        self._retire_draining()
        for outcome in outcomes:
            self._metrics.count(outcome)
        return outcomes

    def close(self) -> None:
        """Ends the actors and, if it was started here, Ray."""
        for remote in [*self._free, *self._busy.values(), *self._starting.values()]:
            self._ray.kill(remote.actor)
        self._starting, self._free, self._busy = {}, [], {}
        if self._owns_ray:
            self._ray.shutdown()

    def _fill(self) -> None:
        """Starts actors until there are as many as asked for."""
        while len(self._starting) + len(self._free) + len(self._busy) < self._n_workers:
            self._n_started += 1
            actor = self._actor_class.remote(self._job)
            self._starting[actor.start.remote()] = _Remote(f"actor-{self._n_started}", actor)

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
        self._free.append(remote)

    def _collect(self, reference: Any) -> Outcome:
        remote = self._busy.pop(reference)
        task = remote.task
        assert task is not None  # busy ones have a task
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(remote.actor)
            cause = LOST if self._is_lost(error, remote.node) else DIED
            reason = " ".join(str(error).split())[:500]
            return Outcome(
                task, error=RuntimeError(f"{remote.name} {cause}: {reason}"), cause=cause
            )
        self._free.append(remote)
        return outcome

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
        for reference, remote in list(self._busy.items()):
            task = remote.task
            if task is None or time.monotonic() - remote.began_s <= remote.limit_s:
                continue
            del self._busy[reference]
            self._ray.kill(remote.actor)
            limit = f"{remote.limit_s:.0f} s"
            error = RuntimeError(f"{remote.name} did not end within {limit} and was stopped")
            outcomes.append(Outcome(task, error=error, cause=HUNG, detail=limit))
        return outcomes

    def _retire_draining(self) -> None:
        """Gives no further unit to nodes that are about to go; what is in flight may end there."""
        if time.monotonic() - self._drain_check_s > DRAIN_CHECK_S:
            self._drain_check_s = time.monotonic()
            self._draining = _draining_nodes()
        for remote in [remote for remote in self._free if remote.node in self._draining]:
            self._free.remove(remote)
            self._ray.kill(remote.actor)


class _Metrics:
    """What Ray exports to Prometheus."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        worker = ("worker",)
        self._units = Counter("strata_units", "Units committed.", worker)
        self._audio = Counter("strata_audio_seconds", "Seconds of audio extracted.", worker)
        self._failures = Counter("strata_failures", "Attempts that failed.", ("cause",))
        self._speed = Gauge("strata_realtime_factor", "Audio per wall second, last unit.", worker)

    def count(self, outcome: Outcome) -> None:
        report = outcome.report
        if report is None:
            self._failures.inc(1, {"cause": outcome.cause or "failed"})
            return
        tags = {"worker": report.worker}
        self._units.inc(1, tags)
        if report.audio_s > 0:  # a counter refuses 0
            self._audio.inc(report.audio_s, tags)
        self._speed.set(report.audio_s / max(report.wall_s, 1e-9), tags)


def _draining_nodes() -> set[str]:
    """Nodes that have been given notice; none where this Ray does not tell."""
    from ray._private import worker

    client: Any = getattr(worker.global_worker, "gcs_client", None)
    try:
        return set(client.get_draining_nodes(timeout=DRAIN_CHECK_S))
    except Exception:  # noqa: BLE001  no public call exists; without it a drained node is a lost one
        return set()


def _machine(config: EngineConfig) -> tuple[int, int]:
    """CPUs and GPUs of this machine, or of the cluster."""
    if config.kind == "ray" and _address(config):
        import ray

        if not ray.is_initialized():
            _connect(config, None)
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, math.floor(total.get("CPU", 1))), math.floor(total.get("GPU", 0))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cpus or 1, torch.cuda.device_count()


def _address(config: EngineConfig) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS") or None


def _connect(config: EngineConfig, resources: Resources | None) -> None:
    """Connects to the cluster there is, or starts a local one as large as the workers need."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = _address(config)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        assert resources is not None  # a local cluster is started only to run workers
        ray.init(
            address="local",
            num_cpus=resources.n_workers * resources.threads,
            num_gpus=torch.cuda.device_count(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise RunError(f"cannot start {where}: {error}") from error
    finally:
        if handler is not None:  # ray.init puts its own in place, which ends without a word
            signal.signal(signal.SIGTERM, handler)

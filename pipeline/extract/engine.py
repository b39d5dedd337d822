"""What runs the workers: this process, or Ray actors. The only module that imports ray.

An engine takes one unit per worker and hands back outcomes; which unit comes next, what is tried
again and what is given up is the driver's business (run.py). Ray's own retries are off: an attempt
that died is reported, its actor is replaced, and the driver claims a new slot.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, RunError, StrataError
from pipeline.extract.worker import Job, UnitReport, UnitTask, Worker

CPUS_PER_WORKER = 4
"""CPUs of one worker where none is asked for and there is no GPU."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory; features never pass through it."""


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


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with a report, or with an error.

    Attributes:
        task: The attempt.
        report: What was done; None if it failed.
        error: Why it failed; a StrataError will fail again, anything else may be tried again.
        worker_died: Whether the worker's process is gone.
    """

    task: UnitTask
    report: UnitReport | None = None
    error: Exception | None = None
    worker_died: bool = False


class Engine(Protocol):
    """Runs one unit per worker."""

    def has_room(self) -> bool:
        """Whether a worker is free."""

    def submit(self, task: UnitTask) -> str:
        """Gives a unit to a free worker; returns the worker's name."""

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes of attempts that have ended, after at most `timeout_s` (inline: one unit)."""

    def close(self) -> None:
        """Ends the workers; units in flight are dropped."""


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
    config: EngineConfig, resources: Resources, job: Job, worker: Callable[[], Worker]
) -> Engine:
    """Starts an engine.

    Args:
        config: Which one.
        resources: What its workers get.
        job: What a remote worker is made from.
        worker: Makes the worker of the inline engine, with what is already open.
    """
    if config.kind == "inline":
        return InlineEngine(worker)
    return RayEngine(config, resources, job)


class InlineEngine:
    """Runs units in this process, one at a time."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None
        self._task: UnitTask | None = None

    def has_room(self) -> bool:
        """Whether no unit waits."""
        return self._task is None

    def submit(self, task: UnitTask) -> str:
        """Keeps the unit for the next `poll`."""
        self._task = task
        return f"inline-{os.getpid()}"

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Does the unit that waits, however long it takes."""
        task, self._task = self._task, None
        if task is None:
            return []
        try:
            if self._worker is None:
                self._worker = self._make_worker()
            return [Outcome(task, report=self._worker.extract(task))]
        except Exception as error:  # noqa: BLE001  the worker's boundary: the driver decides
            return [Outcome(task, error=error)]

    def close(self) -> None:
        """Lets go of the worker."""
        self._worker = None


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def extract(self, task: UnitTask) -> Outcome:
        """Does a unit; errors come back as values, so that they keep their types."""
        try:
            if self._worker is None:
                self._worker = Worker(self._job)
            return Outcome(task, report=self._worker.extract(task))
        except StrataError as error:
            return Outcome(task, error=error)
        except Exception as error:  # noqa: BLE001  the worker's boundary: the driver decides
            return Outcome(task, error=RuntimeError(f"{type(error).__name__}: {error}"))


class RayEngine:
    """Runs units in Ray actors, one in flight per actor; a dead actor is replaced."""

    def __init__(self, config: EngineConfig, resources: Resources, job: Job) -> None:
        import ray

        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(config, resources)
        gpus = 1 if resources.device == "cuda" else 0
        self._actor_class = ray.remote(
            num_cpus=resources.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._job = ray.put(job)
        self._n_workers = resources.n_workers
        self._n_started = 0
        self._free: list[tuple[str, Any]] = []
        self._busy: dict[Any, tuple[str, Any, UnitTask]] = {}

    def has_room(self) -> bool:
        """Whether an actor is free, or may be started."""
        return len(self._busy) < self._n_workers

    def submit(self, task: UnitTask) -> str:
        """Sends a unit to a free actor, or to a new one."""
        if not self._free:
            self._n_started += 1
            actor = self._actor_class.remote(self._job)
            self._free.append((f"actor-{self._n_started}", actor))
        name, actor = self._free.pop()
        self._busy[actor.extract.remote(task)] = (name, actor, task)
        return name

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Waits for an attempt to end."""
        if not self._busy:
            return []
        ready, _ = self._ray.wait(
            list(self._busy), num_returns=1, timeout=timeout_s, fetch_local=True
        )
        return [self._collect(reference) for reference in ready]

    def close(self) -> None:
        """Ends the actors and, if it was started here, Ray."""
        for _, actor in [*self._free, *((name, actor) for name, actor, _ in self._busy.values())]:
            self._ray.kill(actor)
        self._free, self._busy = [], {}
        if self._owns_ray:
            self._ray.shutdown()

    def _collect(self, reference: Any) -> Outcome:
        name, actor, task = self._busy.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            reason = " ".join(str(error).split())
            return Outcome(task, error=RuntimeError(f"{name} died: {reason}"), worker_died=True)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            return Outcome(task, error=RuntimeError(str(error)), worker_died=True)
        self._free.append((name, actor))
        return outcome


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

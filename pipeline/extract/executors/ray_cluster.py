"""Ray around the actors: the cluster, its machines and notices, and what it exports.

This and engine.py are the only modules that import ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import EngineConfig
from pipeline.errors import RunError
from pipeline.extract.executors.inline import Outcome

OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory; features never pass through it."""


class Metrics:
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


def draining_nodes(timeout_s: float) -> set[str]:
    """Nodes that have been given notice; none where this Ray does not tell."""
    from ray._private import worker

    client: Any = getattr(worker.global_worker, "gcs_client", None)
    try:
        return set(client.get_draining_nodes(timeout=timeout_s))
    except Exception:  # noqa: BLE001  no public call exists; without it a drained node is a lost one
        return set()


@dataclass(frozen=True)
class Machine:
    """What there is to work with, here or in the cluster.

    Attributes:
        n_cpus: CPUs that this process may use, or of the cluster.
        n_gpus: GPUs.
        memory_bytes: Memory of the machine or the container, or what Ray counts in the cluster.
    """

    n_cpus: int
    n_gpus: int
    memory_bytes: int


def find_machine(config: EngineConfig) -> Machine:
    """This machine, or the cluster that the engine is to use."""
    if config.kind == "ray" and _address(config):
        import ray

        if not ray.is_initialized():
            connect(config, None)
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus, memory = (math.floor(total.get(name, 0)) for name in ("CPU", "GPU", "memory"))
        return Machine(max(1, cpus), gpus, memory)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(here or 1, torch.cuda.device_count(), _memory_bytes())


def _memory_bytes() -> int:
    """Memory of this machine, or of the container if it has less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file, or "max"
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return limit


def _address(config: EngineConfig) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS") or None


def connect(config: EngineConfig, n_cpus: int | None) -> None:
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
        assert n_cpus is not None  # a local cluster is started only to run workers
        ray.init(
            address="local",
            num_cpus=n_cpus,
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

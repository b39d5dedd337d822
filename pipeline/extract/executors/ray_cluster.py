"""The Ray cluster: connecting to it, its resources, nodes about to be removed, and metrics."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pipeline.config import EngineConfig
from pipeline.errors import RunError
from pipeline.extract.executors.base import Outcome
from pipeline.extract.executors.ray_access import (
    LOOPBACK,
    REMEDY,
    forget_token,
    match_token,
    private_ray,
)

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of Ray's shared memory; features never pass through it."""


class Metrics:
    """Metrics that Ray exports to Prometheus."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        worker = ("worker",)
        self._units = Counter("strata_units", "Units committed.", worker)
        self._audio = Counter("strata_audio_seconds", "Seconds of audio extracted.", worker)
        self._failures = Counter("strata_failures", "Attempts that failed.", ("cause",))
        self._speed = Gauge("strata_realtime_factor", "Audio per wall second, last unit.", worker)

    def count(self, outcome: Outcome) -> None:
        """Count an attempt that ended."""
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
    """Return the ids of nodes that are about to be removed; empty if Ray does not report them."""
    from ray._private import state, worker

    client: Any = getattr(worker.global_worker, "gcs_client", None)
    try:
        if not hasattr(client, "get_draining_nodes"):  # before Ray 2.60
            return set(state.state.get_draining_nodes())
        return set(client.get_draining_nodes(timeout=timeout_s))
    except Exception:  # noqa: BLE001  there is no public API; without it such a node counts as lost
        return set()


@dataclass(frozen=True)
class Machine:
    """Resources of this machine or of the cluster.

    Attributes:
        n_cpus: CPUs that this process may use, or CPUs of the cluster.
        n_gpus: GPUs.
        memory_bytes: Memory of the machine or the container, or the memory that Ray reports.
    """

    n_cpus: int
    n_gpus: int
    memory_bytes: int


def find_machine(config: EngineConfig) -> Machine:
    """Return the resources of this machine, or of the cluster that the configuration names."""
    if is_cluster(config):
        import ray

        if not ray.is_initialized():
            connect(config, None)
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus, memory = (math.floor(total.get(name, 0)) for name in ("CPU", "GPU", "memory"))
        return Machine(max(1, cpus), gpus, memory)
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(n_cpus or 1, _n_gpus(), _memory_bytes())


def _n_gpus() -> int:
    """Return the number of GPUs of this machine."""
    from pipeline.devices import count_gpus  # imports torch, and a Ray actor imports this file, too

    return count_gpus()


def _memory_bytes() -> int:
    """Return the memory of this machine, or of the container if that is less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file, or "max"
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return limit


def is_cluster(config: EngineConfig) -> bool:
    """Return whether a run uses Ray on a cluster that is already running."""
    return config.kind == "ray" and _address(config) is not None


def _address(config: EngineConfig) -> str | None:
    """Return the address of a cluster; None for a Ray of this run's own."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def worker_folders(config: EngineConfig) -> list[Path]:
    """Return the folders that Ray's workers search before all others, in this order.

    Ray puts the folder of the script there, and the working directory, which `connect` prevents
    where this process does not search it.
    """
    script = Path(sys.argv[0]).resolve().parent
    ray: Any = sys.modules.get("ray")
    is_started = ray is not None and ray.is_initialized()
    is_added = is_started or is_cluster(config) or _searches(Path.cwd())
    return [Path.cwd(), script] if is_added else [script]


def _searches(folder: Path) -> bool:
    """Whether this process searches a folder for modules."""
    return any(Path(entry or ".").resolve() == folder.resolve() for entry in sys.path)


def hiding_module(folders: Sequence[Path], names: Iterable[str]) -> tuple[str, str] | None:
    """Return a file in some folders that is imported in the place of a module, and its name.

    A folder without `__init__.py` hides nothing: Python prefers a package that has one.

    Args:
        folders: Folders that are searched first.
        names: Modules that this process has imported from elsewhere.
    """
    for folder in folders:
        for name in names:
            spec = PathFinder.find_spec(name, [str(folder)])
            found = None if spec is None or not spec.has_location else spec.origin
            own = getattr(sys.modules.get(name), "__file__", None) or ""
            if found is not None and Path(found).resolve() != Path(own).resolve():
                return found, name
    return None


def check_importable(folders: Sequence[Path]) -> None:
    """Check that nothing in the way hides this package from Ray's workers.

    Args:
        folders: Folders that the workers search first; see `worker_folders`.

    Raises:
        RunError: One of them holds another module or package of this name.
    """
    package = Path(__file__).resolve().parents[2]
    hiding = hiding_module(folders, [package.name])
    if hiding is not None:
        raise RunError(
            f"{hiding[0]} hides the package of strata from Ray's workers, which look there first; "
            "rename it, run in another folder, or use engine=inline"
        )


def why_no_start(error: Exception, folders: Sequence[Path], n_workers: int) -> str:
    """Return why workers of Ray do not start, and what to do.

    Args:
        error: The error of Ray.
        folders: Folders that the workers search first; see `worker_folders`.
        n_workers: Number of workers.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if "creation task" not in str(error):  # killed, or its node is gone
        reason = " ".join(lines)[:500]
        return f"{reason}. Is there enough memory for {n_workers} workers?"
    names = {name.partition(".")[0] for name in list(sys.modules)}
    names -= {"__main__", *sys.builtin_module_names}
    hiding = hiding_module(folders, sorted(names))
    if hiding is None:
        return lines[-1][:500]
    return (
        f"{lines[-1][:300]}. {hiding[0]} hides the module {hiding[1]} from the workers, which look "
        "there first: rename it, run in another folder, or use engine=inline"
    )


def connect(config: EngineConfig, n_cpus: int | None) -> None:
    """Connect to the configured cluster, or start a local one with `n_cpus` CPUs.

    Raises:
        RunError: Ray cannot be reached or started, or its workers would import another `pipeline`.
    """
    check_importable(worker_folders(config))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = _address(config)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        if address:
            match_token(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        assert n_cpus is not None  # a local cluster is started only for workers
        os.environ.setdefault("RAY_worker_niceness", "0")  # the priority of an inline worker
        with private_ray():
            ray.init(
                address="local",
                num_cpus=n_cpus,
                num_gpus=_n_gpus(),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=LOOPBACK,
                job_config=_job(),
            )
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        if not address:
            raise RunError(f"cannot start a local Ray: {reason}") from error
        raise RunError(
            f"cannot connect to the Ray cluster at {address}: {reason}. Is it running, with the "
            f"same version of Ray, and can this machine reach it? If it asks for a token, {REMEDY}"
        ) from error
    finally:
        if handler is not None:  # ray.init installs its own, which exits without a message
            signal.signal(signal.SIGTERM, handler)


def _job() -> Any:
    """Return the settings of a job whose workers search no folder that this process does not.

    Ray puts the working directory in front of all others: any file there that is called like a
    module (random.py, datasets.py) would be imported in its place. There is no public setting.
    """
    from ray.job_config import JobConfig

    found = JobConfig()
    found._client_job = not _searches(Path.cwd())
    return found


def disconnect() -> None:
    """Shut down the Ray to which `connect` has connected this process."""
    import ray

    ray.shutdown()
    forget_token()

"""How many workers a run has, and with how many threads each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.config import EngineConfig
from pipeline.errors import ConfigError
from pipeline.extract.executors.ray_cluster import find_machine

WORKER_BYTES = 6 * 10**9
"""Memory for one worker where their number is left to Strata: enough for a large model (24 layers
of 1,024 features: 1.3 GB of weights, 2.9 GB for a unit's features, half that while it computes)."""


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


def check_engine(config: EngineConfig) -> None:
    """Check the settings of the engine, whatever the machine or the cluster has.

    Raises:
        ConfigError: A setting is wrong.
    """
    if config.kind not in ("inline", "ray"):
        raise ConfigError(f"engine.kind is {config.kind!r}; expected inline or ray")
    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"engine.device is {config.device!r}; expected auto, cpu or cuda")
    for name, value in (("workers", config.workers), ("threads", config.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"engine.{name} is {value}; expected at least 1")
    if config.kind == "inline" and config.workers not in (None, 1):
        raise ConfigError("engine=inline has one worker; use engine=ray for more")


def find_resources(
    config: EngineConfig, n_units: int | None = None, threads_before: int | None = None
) -> Resources:
    """Decides on workers, threads and device, starting nothing but a connection to a cluster.

    Without a GPU every CPU has a worker of its own, as far as memory and units go; what CPUs are
    left are further threads (benchmarks/bench_workers.py compares the two).

    Args:
        config: What is asked for; what is not is decided here.
        n_units: Units of the plan, done or not, so that a resumed run decides alike; None before
            there is a plan.
        threads_before: Threads per worker that the store was begun with on CPUs: taken again, so
            that the bits are the same, where nothing else is asked for and there are as many.

    Raises:
        ConfigError: The settings ask for what is not there.
    """
    check_engine(config)
    machine = find_machine(config)
    cpus, gpus = machine.n_cpus, machine.n_gpus
    device = config.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError("engine.device is cuda, but there is no GPU; leave it at auto")
    may_follow = config.threads is None and device == "cpu"
    if threads_before and may_follow and (config.workers or 1) * threads_before <= cpus:
        config = replace(config, threads=threads_before)
    if config.kind == "inline":
        return Resources(1, config.threads or cpus, device)
    if device == "cuda":
        fitting = gpus
    else:
        fitting = min(cpus // (config.threads or 1), machine.memory_bytes // WORKER_BYTES)
    if n_units is not None:
        fitting = min(fitting, n_units)
    n_workers = config.workers or max(1, fitting)
    return Resources(n_workers, config.threads or max(1, cpus // n_workers), device)

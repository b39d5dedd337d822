"""Resources of a run: number of workers, threads of each, and device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipeline.config import EngineConfig
from pipeline.devices import check_gpu
from pipeline.errors import ConfigError
from pipeline.extract.executors.base import units_per_worker
from pipeline.extract.executors.ray_cluster import (
    check_importable,
    find_machine,
    is_cluster,
    worker_folders,
)
from pipeline.store.format.layout import Layout

WORKER_BYTES = 6 * 10**9
"""Memory per worker that is assumed before the plan is made."""
_PROCESS_BYTES = 1_300_000_000
"""Libraries, and the activations of a batch on a CPU; less for small models."""
_FLOAT_BYTES = 4  # of a sample and of a weight
_HOP_SAMPLES = 320  # of the wav2vec 2.0 family
_WEIGHT_COPIES = 2  # as loaded, and as laid out for the CPU's products


@dataclass(frozen=True)
class Resources:
    """Resources of the workers of a run.

    Attributes:
        n_workers: Number of workers.
        threads: CPU threads of each worker.
        device: cpu or cuda.
    """

    n_workers: int
    threads: int
    device: str


def worker_bytes(
    layout: Layout | None = None,
    writes_in_memory: bool = False,
    hop_samples: int = _HOP_SAMPLES,
) -> int:
    """Return the memory that a worker on a CPU needs at most.

    It holds the features of one unit, the audio of two, and the model, whose size is that of the
    transformer blocks up to the deepest layer: about 12 · dim² weights each. For a codec with
    scales it also holds a recording longer than a window, which may fill a unit, in float32. In a
    bucket, every unit that the worker has may be in memory as objects, too: one goes up while the
    next one is encoded.

    Args:
        layout: Shapes of the store's arrays; None before planning.
        writes_in_memory: As of the store's backend.
        hop_samples: Samples between two frames of the encoder.
    """
    if layout is None:
        return WORKER_BYTES
    values = layout.n_layers * layout.frames_per_unit * layout.dim
    held = values * _FLOAT_BYTES if layout.codec.n_scales else 0
    features = values * layout.codec.bytes_per_value + layout.pooled_bytes + held
    audio = 2 * layout.frames_per_unit * hop_samples * _FLOAT_BYTES
    model = 12 * layout.dim**2 * max(0, *layout.layers) * _FLOAT_BYTES * _WEIGHT_COPIES
    objects = units_per_worker("cpu") * layout.slot_bytes if writes_in_memory else 0
    return features + objects + audio + model + _PROCESS_BYTES


def check_engine(config: EngineConfig) -> None:
    """Check the settings of the engine, independently of the machine and the cluster.

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
    config: EngineConfig,
    n_units: int | None = None,
    threads_before: int | None = None,
    layout: Layout | None = None,
    writes_in_memory: bool = False,
    hop_samples: int = _HOP_SAMPLES,
) -> Resources:
    """Choose workers, threads and device.

    Connects to the configured Ray cluster, if any; starts no local one.

    Without a GPU there is one worker per CPU, limited by memory and by the number of units. The
    remaining CPUs become threads (benchmarks/bench_workers.py compares the two).

    Args:
        config: Settings of the engine; None values are chosen here.
        n_units: Units of the plan, committed ones included, so that a resumed run chooses the same.
            None before planning.
        threads_before: Threads per worker that the store was started with, on CPUs. Resuming uses
            the same number, which keeps the features bit-identical, unless `config.threads` is set
            or there are too few CPUs.
        layout: Shapes of the store's arrays, which determine the memory of a worker.
        writes_in_memory: As of the store's backend; the same.
        hop_samples: Samples between two frames of the encoder; the same.

    Raises:
        ConfigError: A setting is wrong, or exceeds the machine.
        RunError: Ray's workers would import another package than this one.
    """
    check_engine(config)
    if config.kind == "ray":
        check_importable(worker_folders(config))
    machine = find_machine(config)
    cpus, gpus = machine.n_cpus, machine.n_gpus
    device = config.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        if is_cluster(config):
            raise ConfigError(
                "engine.device is cuda, and the Ray cluster has no GPU; use engine.device=auto"
            )
        check_gpu(torch.device("cuda"), "engine.device is cuda")
    keeps_threads = config.threads is None and device == "cpu"
    if threads_before and keeps_threads and (config.workers or 1) * threads_before <= cpus:
        config = replace(config, threads=threads_before)
    if config.kind == "inline":
        return Resources(1, config.threads or cpus, device)
    if device == "cuda":
        n_fitting = gpus
    else:
        needed = worker_bytes(layout, writes_in_memory, hop_samples)
        n_fitting = min(cpus // (config.threads or 1), machine.memory_bytes // needed)
    if n_units is not None:
        n_fitting = min(n_fitting, n_units)
    n_workers = config.workers or max(1, n_fitting)
    return Resources(n_workers, config.threads or max(1, cpus // n_workers), device)

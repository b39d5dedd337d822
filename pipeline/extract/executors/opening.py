"""Choice of the executor that the configuration names."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import EngineConfig
from pipeline.extract.executors.base import Executor, UnitWorker
from pipeline.extract.executors.inline import InlineExecutor
from pipeline.extract.executors.ray import RayExecutor
from pipeline.extract.resources import Resources


def open_executor(
    config: EngineConfig,
    resources: Resources,
    make_worker: Callable[[], UnitWorker],
    n_units: int | None = None,
) -> Executor:
    """Start an executor.

    Args:
        config: Which one.
        resources: Number of workers, their threads and device.
        make_worker: Creates a worker, in the thread that will use it; it must pickle for Ray.
        n_units: Units to do; an executor starts no more workers than this.
    """
    if config.kind == "inline":
        return InlineExecutor(make_worker)
    return RayExecutor(config, resources, make_worker, n_units)

"""Choice of the executor that the configuration names."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import EngineConfig
from pipeline.extract.executors.base import Executor, UnitWorker, units_per_worker
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
        config: Settings of the engine; `kind` selects the executor.
        resources: Number of workers, their threads and device.
        make_worker: Creates a worker, in the thread that will use it; picklable for Ray.
        n_units: Units to extract, the maximum number of workers; None for no maximum.
    """
    if config.kind == "inline":
        return InlineExecutor(make_worker, units_per_worker(resources.device))
    return RayExecutor(config, resources, make_worker, n_units)

"""Reading of headers on the nodes of a Ray cluster, for the plan of a large dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from pipeline.config import EngineConfig
from pipeline.errors import RunError
from pipeline.extract.executors.ray_cluster import connect, is_cluster
from pipeline.extract.planning.scan import (
    Facts,
    Probing,
    probe_in_threads,
    probe_segments,
    threads_and_rows,
)
from pipeline.sources.base import Segment, Source
from pipeline.store.format.geometry import FrameGeometry

FEWEST_ROWS = 20_000
"""A smaller dataset is scanned by the driver, which takes a second at most on a local disk."""
_ROWS_PER_TASK = 4096
_TASKS_PER_CPU = 2  # one that runs and one that waits


def choose_probing(config: EngineConfig, source: Source) -> Probing:
    """Return how to read the headers of a source: on the cluster, if there is one and it pays.

    Args:
        config: Settings of the engine.
        source: The dataset. If other machines do not have its files, the driver reads the headers.
    """
    if is_cluster(config) and len(source) >= FEWEST_ROWS and source.is_shared:
        return partial(probe_on_cluster, config)
    return probe_in_threads


def probe_on_cluster(
    config: EngineConfig, source: Source, geometry: FrameGeometry
) -> Iterator[Facts]:
    """Read the headers of a source in tasks of the cluster; see `Probing`.

    The driver holds the segments of the tasks in flight, and no others.

    Raises:
        RunError: The cluster cannot be reached, or a task failed repeatedly.
    """
    import ray

    if not ray.is_initialized():
        connect(config, None)
    n_cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_probe)
    pending: deque[Any] = deque()
    try:
        for start in range(0, len(source), _ROWS_PER_TASK):
            if len(pending) >= max(1, n_cpus) * _TASKS_PER_CPU:
                yield ray.get(pending.popleft())
            rows = range(start, min(start + _ROWS_PER_TASK, len(source)))
            pending.append(task.remote([source.segment(row) for row in rows], geometry))
        while pending:
            yield ray.get(pending.popleft())
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"planning on the Ray cluster failed: {reason}") from error


def _probe(segments: Sequence[Segment], geometry: FrameGeometry) -> Facts:
    """Read the headers of a task's segments, in threads that wait for the file system."""
    n_threads, n_rows = threads_and_rows(segments[0], len(segments))
    chunks = [segments[i : i + n_rows] for i in range(0, len(segments), n_rows)]
    with ThreadPoolExecutor(n_threads) as pool:
        return np.concatenate([*pool.map(lambda c: probe_segments(c, geometry), chunks)], axis=1)

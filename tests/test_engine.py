"""Engines: who gets a unit when, and what becomes of workers that cannot be made."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DatasetConfig, EngineConfig
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.extract import engine as engine_module
from pipeline.extract.engine import RayEngine, Resources, find_resources
from pipeline.extract.inline import InlineEngine
from pipeline.extract.worker import Job
from pipeline.store.layout import Layout


def no_weights() -> Any:
    raise WeightsError("these weights are of another architecture")


def no_process() -> Any:
    os._exit(1)


def job(load: Any) -> Job:
    layout = Layout((1,), 4, 256, 8)
    return Job(Path("nowhere"), layout, DatasetConfig("audiofolder"), load, 100, 1)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A small Ray, to which this module's functions are shipped by value."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def poll_until_it_ends(engine: RayEngine) -> None:
    try:
        for _ in range(120):
            assert engine.poll(1.0) == []
            assert not engine.has_room()
    finally:
        engine.close()


def test_a_worker_that_cannot_be_made_ends_the_run_with_its_own_error(ray_cluster: None) -> None:
    """Missing weights are missing everywhere: no retry, and no unit is spent."""
    engine = RayEngine(EngineConfig("ray"), Resources(1, 1, "cpu"), job(no_weights))
    with pytest.raises(WeightsError, match="another architecture"):
        poll_until_it_ends(engine)


def test_workers_that_die_before_they_are_ready_end_the_run(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few in a row, with a hint; a single one is just replaced."""
    monkeypatch.setattr(engine_module, "MAX_STILLBORN", 0)
    engine = RayEngine(EngineConfig("ray"), Resources(1, 1, "cpu"), job(no_process))
    with pytest.raises(RunError, match="2 workers died before they could take a unit"):
        poll_until_it_ends(engine)


def test_no_more_workers_are_started_than_there_are_units(ray_cluster: None) -> None:
    """Resuming the last unit must not load 64 encoders."""
    engine = RayEngine(EngineConfig("ray"), Resources(64, 1, "cpu"), job(no_process), n_units=1)
    assert engine._n_started == 1
    engine.close()


def test_the_inline_engine_makes_its_worker_when_it_is_needed() -> None:
    """A finished store costs no buffer; the worker's own errors are not a unit's."""

    def make() -> Any:
        raise WeightsError("none")

    engine = InlineEngine(make)
    assert engine.has_room()
    assert engine.poll(1.0) == []
    engine.submit("task", 1.0)  # type: ignore[arg-type]
    assert not engine.has_room()
    with pytest.raises(WeightsError):
        engine.poll(1.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "inline", "workers": 2}, "engine=inline has one worker"),
        ({"kind": "ray", "threads": 0}, "engine.threads is 0"),
        ({"kind": "ray", "device": "tpu"}, "expected auto, cpu or cuda"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], named: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=named):
        find_resources(EngineConfig(**settings))

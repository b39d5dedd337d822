"""Engines: who gets a unit when, and what becomes of workers that cannot be made."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import DatasetConfig, EngineConfig
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.extract import resources
from pipeline.extract.executors import ray as engine_module
from pipeline.extract.executors.inline import InlineEngine
from pipeline.extract.executors.ray import RayEngine
from pipeline.extract.executors.ray_actor import Flight, Remote
from pipeline.extract.executors.ray_cluster import Machine
from pipeline.extract.resources import Resources, find_resources
from pipeline.extract.worker import Job, UnitTask
from pipeline.store.format.layout import Layout


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
    engine.submit(task(0), 1.0)
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


def task(unit: int, alone: bool = False) -> UnitTask:
    return UnitTask(unit, unit, 1, pa.table({}), alone=alone)


@pytest.mark.parametrize("kind", ["inline", "remote"])
def test_a_worker_has_one_unit_in_hand_and_the_next_as_a_hint(kind: str) -> None:
    """A unit that is to be alone gets a worker without any, and keeps the others out."""

    def holder(*held: UnitTask) -> Callable[[bool], bool]:
        if kind == "inline":
            engine = InlineEngine(lambda: None)  # type: ignore[arg-type, return-value]
            for one in held:
                engine.submit(one, 1.0)
            return engine.has_room
        remote = Remote("actor-1", None)
        for one in held:
            remote.add(object(), Flight(one, 1.0))
        return remote.can_take

    assert [holder()(alone) for alone in (False, True)] == [True, True]
    assert [holder(task(0))(alone) for alone in (False, True)] == [True, False]
    assert [holder(task(0), task(1))(alone) for alone in (False, True)] == [False, False]
    assert [holder(task(0, True))(alone) for alone in (False, True)] == [False, False]


def test_the_time_of_a_unit_runs_from_when_it_is_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that waits for its turn is never overdue; the one in hand is, by its own limit."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    remote = Remote("actor-1", None)
    remote.add("first", Flight(task(0), 50.0))
    remote.add("second", Flight(task(1), 10.0))
    now = 149.0
    assert remote.overdue is None
    assert remote.end("first").unit == 0
    now = 158.0
    assert remote.overdue is None
    now = 160.0
    late = remote.overdue
    assert late is not None
    assert late.task.unit == 1


@pytest.mark.parametrize(
    ("machine", "settings", "expected"),
    [
        ((2, 0, 23), {}, (2, 1, "cpu")),
        ((2, 0, 8), {}, (1, 2, "cpu")),
        ((64, 0, 256), {}, (42, 1, "cpu")),
        ((64, 0, 100), {}, (16, 4, "cpu")),
        ((64, 0, 1024), {"threads": 8}, (8, 8, "cpu")),
        ((2, 0, 1), {"workers": 2}, (2, 1, "cpu")),
        ((16, 4, 64), {}, (4, 4, "cuda")),
        ((16, 4, 64), {"device": "cpu"}, (10, 1, "cpu")),
        ((3, 0, 1), {"kind": "inline"}, (1, 3, "cpu")),
    ],
)
def test_workers_fill_the_cpus_as_far_as_memory_goes(
    machine: tuple[int, int, int],
    settings: dict[str, Any],
    expected: tuple[int, int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread to a worker; one worker to a GPU; what is asked for is given."""
    cpus, gpus, gigabytes = machine
    found = Machine(cpus, gpus, gigabytes * 10**9)
    monkeypatch.setattr(resources, "find_machine", lambda config: found)
    config = EngineConfig(**{"kind": "ray", **settings})
    assert find_resources(config) == Resources(*expected)


@pytest.mark.parametrize(
    ("settings", "n_units", "before", "expected"),
    [
        ({}, 1, None, (1, 16)),
        ({}, 3, None, (3, 5)),
        ({}, 300, None, (16, 1)),
        ({"threads": 2}, 3, None, (3, 2)),
        ({"workers": 4}, 1, None, (4, 4)),
        ({}, 300, 4, (4, 4)),
        ({"threads": 1}, 300, 4, (16, 1)),
        ({"workers": 2}, 300, 8, (2, 8)),
        ({"workers": 4}, 300, 8, (4, 4)),
        ({}, 300, 32, (16, 1)),
        ({"kind": "inline"}, 300, 4, (1, 4)),
    ],
)
def test_few_units_and_a_store_that_was_begun_decide_the_threads(
    settings: dict[str, Any],
    n_units: int,
    before: int | None,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No CPU idles for want of units, and a resumed run has the threads it was begun with."""
    monkeypatch.setattr(resources, "find_machine", lambda config: Machine(16, 0, 10**12))
    config = EngineConfig(**{"kind": "ray", **settings})
    assert find_resources(config, n_units, before) == Resources(*expected, "cpu")

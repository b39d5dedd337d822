"""Executors: a conformance suite for all of them, and tests of each."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, RunError, SourceError, WeightsError
from pipeline.extract import resources
from pipeline.extract.executors import encoding_thread
from pipeline.extract.executors import ray as ray_module
from pipeline.extract.executors.base import Cause, Executor, Outcome, units_per_worker
from pipeline.extract.executors.encoding_thread import EncodingThread
from pipeline.extract.executors.inline import InlineExecutor
from pipeline.extract.executors.opening import open_executor
from pipeline.extract.executors.ray import RayExecutor
from pipeline.extract.executors.ray_actor import RemoteActor, UnitInFlight
from pipeline.extract.executors.ray_cluster import Machine
from pipeline.extract.messages import DeviceLostError, UnitReport, UnitTask
from pipeline.extract.resources import Resources, find_resources
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.coordination import worker_failures
from pipeline.store.format.layout import Layout

ONE = Resources(1, 1, "cpu")
LONG_S = 60.0


class ScriptedWorker:
    """Worker that runs the action in the unit's only row."""

    def __init__(self) -> None:
        self.n_units = 0

    def prefetch(self, task: UnitTask) -> None:
        """Decode nothing."""

    def begin(self, task: UnitTask) -> Future[UnitReport]:
        """Run the unit's script; the report's `n_bytes` counts the units started."""
        [row] = task.rows.to_pylist()
        self.n_units += 1
        number = self.n_units
        time.sleep(row["sleep_s"])
        match row["action"]:
            case "strata":
                raise SourceError(f"unit {task.unit} is not the planned one")
            case "error":
                raise ValueError(f"unit {task.unit}\nis odd")
            case "device":
                raise DeviceLostError("cuda:0 has failed: CUDA error:\nan illegal memory access")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "":
                pass
            case path:
                Path(path).touch()
        future: Future[UnitReport] = Future()
        future.set_result(UnitReport(task.unit, task.slot, True, 1, 0, 0, 0, 1.0, 1.0, number, "w"))
        return future

    def interrupt(self) -> None:
        """Nothing to interrupt."""

    def close(self) -> None:
        """Nothing to stop."""


def no_weights() -> Any:
    raise WeightsError("these weights are of another architecture")


def no_process() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def task(unit: int, action: str = "", sleep_s: float = 0.0, exclusive: bool = False) -> UnitTask:
    rows = pa.table({"action": [action], "sleep_s": [sleep_s]})
    return UnitTask(unit, unit, 1, rows, exclusive=exclusive)


def run(executor: Executor, tasks: Sequence[UnitTask]) -> dict[int, Outcome]:
    """Submit tasks in order as soon as there is room; return the outcomes by unit."""
    waiting, outcomes = list(tasks), []
    deadline = time.monotonic() + 60
    while len(outcomes) < len(tasks):
        assert time.monotonic() < deadline
        while waiting and executor.has_room(waiting[0].exclusive):
            assert executor.submit(waiting.pop(0), LONG_S)
        outcomes += executor.poll(1.0)
    assert executor.poll(0.1) == []
    found = {outcome.task.unit: outcome for outcome in outcomes}
    assert len(found) == len(outcomes) == len(tasks)
    return found


def wait_for_room(executor: Executor) -> None:
    """Wait until a worker is ready, if the executor starts workers ahead."""
    deadline = time.monotonic() + 60
    while not executor.has_room(exclusive=True):
        assert executor.poll(1.0) == []
        assert time.monotonic() < deadline


@pytest.fixture
def by_value() -> Iterator[None]:
    """Ship this module's classes and functions to Ray's workers, which cannot import it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def local_ray(ray_session: None, by_value: None) -> None:
    """Ray, and this module's classes in its workers; no CPU is held by an actor of another test."""
    gc.collect()  # the handle of one may be in a cycle with an exception


Opener = Callable[[Callable[[], Any]], Executor]


@pytest.fixture(params=["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def open_(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Open an executor with one worker; the parameter is the implementation under test."""
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    opened: list[Executor] = []

    def open_one(make_worker: Callable[[], Any]) -> Executor:
        opened.append(open_executor(EngineConfig(request.param), ONE, make_worker))
        return opened[-1]

    yield open_one
    for executor in opened:
        executor.close()


@pytest.fixture(scope="class")
def idle_executors() -> Iterator[dict[str, Executor]]:
    opened: dict[str, Executor] = {}
    yield opened
    for executor in opened.values():
        executor.close()


@pytest.fixture
def idle(open_: Opener, idle_executors: dict[str, Executor], request: Any) -> Executor:
    """An executor with an idle worker, which tests share and leave idle: workers start slowly."""
    kind = request.node.callspec.params["open_"]
    if kind not in idle_executors:
        idle_executors[kind] = open_executor(EngineConfig(kind), ONE, ScriptedWorker)
    wait_for_room(idle_executors[kind])
    return idle_executors[kind]


class TestConformance:
    """What `Executor` promises, for each implementation."""

    def test_every_unit_has_one_outcome(self, idle: Executor) -> None:
        """Reports and errors come back, each with its task; an error ends no other unit.

        A StrataError keeps its type and message; any other exception becomes a RuntimeError of one
        line. Units of one worker are encoded in the order of submission.
        """
        first = run(idle, [task(9)])[9].report
        assert first is not None
        tasks = [
            task(0, sleep_s=0.05),
            task(1, "strata", sleep_s=0.05),
            task(2, "error", sleep_s=0.05),
            task(3, exclusive=True),
            task(4),
            task(5),
        ]
        found = run(idle, tasks)
        assert {unit: outcome.task for unit, outcome in found.items()} == dict(enumerate(tasks))
        reports = {unit: outcome.report for unit, outcome in found.items() if outcome.report}
        assert {unit: (r.unit, r.slot, r.n_bytes) for unit, r in reports.items()} == {
            unit: (unit, unit, first.n_bytes + unit + 1) for unit in (0, 3, 4, 5)
        }
        for unit in reports:
            assert (found[unit].error, found[unit].cause) == (None, None)
        strata, other = found[1], found[2]
        assert type(strata.error) is SourceError
        assert str(strata.error) == "unit 1 is not the planned one"
        assert (strata.cause, strata.detail) == (Cause.FAILED, "SourceError")
        assert type(other.error) is RuntimeError
        assert str(other.error) == other.detail == "ValueError: unit 2 is odd"
        assert other.cause == Cause.FAILED
        assert [strata.is_ambiguous, other.is_ambiguous] == [False, False]

    def test_a_worker_holds_two_units(self, idle: Executor) -> None:
        """The unit that it encodes and the next one; there is room again when one has ended."""
        executor = idle
        for unit in range(units_per_worker("cpu")):
            assert executor.has_room()
            executor.submit(task(unit, sleep_s=0.5), LONG_S)
        assert not executor.has_room()
        ended = executor.poll(30.0)
        assert ended
        assert executor.has_room()
        while len(ended) < units_per_worker("cpu"):
            ended += executor.poll(30.0)

    def test_an_exclusive_unit_has_its_worker_to_itself(self, idle: Executor) -> None:
        """It goes to an idle worker only, and keeps other units out until it has ended."""
        executor = idle
        executor.submit(task(0, sleep_s=0.5), LONG_S)
        assert [executor.has_room(), executor.has_room(exclusive=True)] == [True, False]
        assert len(executor.poll(30.0)) == 1
        assert executor.has_room(exclusive=True)
        executor.submit(task(1, sleep_s=0.5, exclusive=True), LONG_S)
        assert [executor.has_room(), executor.has_room(exclusive=True)] == [False, False]
        assert len(executor.poll(30.0)) == 1
        assert executor.has_room()

    def test_close_drops_units_in_flight(self, open_: Opener, tmp_path: Path) -> None:
        """It does not wait for them, and they are not completed later; closing twice is safe."""
        executor = open_(ScriptedWorker)
        wait_for_room(executor)
        marks = [tmp_path / f"unit-{unit}" for unit in range(2)]
        for unit, mark in enumerate(marks):
            executor.submit(task(unit, str(mark), sleep_s=2.0), LONG_S)
        start_s = time.monotonic()
        executor.close()
        executor.close()
        assert time.monotonic() - start_s < 2.0
        time.sleep(max(0.0, start_s + 2.5 - time.monotonic()))
        assert not any(mark.exists() for mark in marks)

    def test_a_worker_that_cannot_be_created_ends_the_run(self, open_: Opener) -> None:
        """`poll` raises the worker's own error: no retry, and no unit is charged."""
        executor = open_(no_weights)
        with pytest.raises(WeightsError, match="another architecture"):
            run(executor, [task(0)])


def test_tasks_and_outcomes_pickle() -> None:
    """Both cross processes; a StrataError in an outcome keeps its type."""
    sent = UnitTask(
        3, 9, 2, task(3).rows, isolation=worker_failures.Isolation(4, {1: "SIGBUS"}), exclusive=True
    )
    assert pickle.loads(pickle.dumps(sent)) == sent
    outcome = Outcome(sent, error=SourceError("changed"), cause=Cause.FAILED, detail="d")
    received = pickle.loads(pickle.dumps(outcome))
    assert (received.task, received.cause) == (sent, Cause.FAILED)
    assert type(received.error) is SourceError
    assert str(received.error) == "changed"


def test_causes_are_those_that_the_store_records() -> None:
    """Executors know nothing of the store, which names the same three causes in its ledger."""
    assert [Cause.DIED, Cause.HUNG, Cause.FAILED] == [
        worker_failures.DIED,
        worker_failures.HUNG,
        worker_failures.FAILED,
    ]


def test_executors_know_nothing_of_the_store() -> None:
    """No module of executors/ imports one of store/."""
    folder = Path(ray_module.__file__).parent
    for path in folder.glob("*.py"):
        assert "pipeline.store" not in path.read_text(), path.name


def ray_executor(make_worker: Callable[[], Any], *, n_units: int | None = None) -> RayExecutor:
    return RayExecutor(EngineConfig("ray"), ONE, make_worker, n_units)


def test_workers_that_die_before_they_are_ready_end_the_run(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few consecutive failed starts, with a hint; a single one is just replaced."""
    monkeypatch.setattr(ray_module, "MAX_FAILED_STARTS", 0)
    executor = ray_executor(no_process)
    try:
        with pytest.raises(RunError, match="2 workers died before they could take a unit"):
            wait_for_room(executor)
    finally:
        executor.close()


def test_workers_that_cannot_start_do_not_end_a_run_in_which_others_work(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with one GPU of several that has failed: its worker is started again later."""
    monkeypatch.setattr(ray_module, "MAX_FAILED_STARTS", -2)  # one failure of two is too many
    first = tmp_path / "first"

    def one_works() -> ScriptedWorker:
        with suppress(FileExistsError):
            first.touch(exist_ok=False)
            return ScriptedWorker()
        time.sleep(2)  # it fails when the other one is ready
        return no_process()

    two = Resources(2, 1, "cpu")
    executor = RayExecutor(EngineConfig("ray"), two, one_works)
    try:
        wait_until(lambda: executor.poll(0.5) == [] and bool(executor._no_start_before_s))
        found = run(executor, [task(unit) for unit in range(4)])
        assert all(outcome.report is not None for outcome in found.values())
        assert len(executor._ready) == 1
        assert not executor._starting
    finally:
        executor.close()


def test_no_more_workers_are_started_than_there_are_units(local_ray: None) -> None:
    """Resuming the last unit must not load 64 encoders."""
    many = Resources(64, 1, "cpu")
    executor = RayExecutor(EngineConfig("ray"), many, ScriptedWorker, n_units=1)
    assert executor._n_started == 1
    executor.close()


def test_the_units_of_a_dead_worker_fail_and_the_worker_is_replaced(local_ray: None) -> None:
    """Either unit may be the culprit, so both outcomes are ambiguous; a retry succeeds."""
    executor = ray_executor(ScriptedWorker)
    try:
        found = run(executor, [task(0, "die", sleep_s=0.5), task(1)])
        assert {outcome.cause for outcome in found.values()} == {Cause.DIED}
        assert all(outcome.is_ambiguous for outcome in found.values())
        assert all("actor-1 died" in str(outcome.error) for outcome in found.values())
        assert run(executor, [task(1)])[1].report is not None
    finally:
        executor.close()


def test_a_worker_whose_gpu_fails_is_replaced(local_ray: None) -> None:
    """As if its process had died: it would fail every unit from then on, and take all of them."""
    executor = ray_executor(ScriptedWorker)
    try:
        wait_for_room(executor)
        found = run(executor, [task(0, "device", sleep_s=0.5), task(1, sleep_s=0.5)])
        assert found[0].cause == Cause.DIED
        assert found[0].is_ambiguous == (found[1].report is None)
        assert str(found[0].error) == "cuda:0 has failed: CUDA error: an illegal memory access"
        again = run(executor, [task(0, exclusive=True)])[0].report
        assert again is not None
        assert again.n_bytes == 1  # the first unit of its worker
    finally:
        executor.close()


def test_inline_a_gpu_that_fails_ends_the_run() -> None:
    """This process cannot use it any more, so no unit is tried again."""
    executor = InlineExecutor(ScriptedWorker, 2)
    executor.submit(task(0, "device"), LONG_S)
    executor.submit(task(1), LONG_S)
    with pytest.raises(RunError, match=r"^cuda:0 has failed: .* memory access\. This process can"):
        executor.poll(LONG_S)
    executor.close()


def test_a_unit_over_its_limit_is_stopped_and_the_other_is_not_blamed(local_ray: None) -> None:
    """The first unit hung; the one behind it shared its worker."""
    executor = ray_executor(ScriptedWorker)
    try:
        wait_for_room(executor)
        executor.submit(task(0, sleep_s=LONG_S), 1.0)
        executor.submit(task(1), LONG_S)
        outcomes: list[Outcome] = []
        while len(outcomes) < 2:
            outcomes += executor.poll(0.2)
        assert [(o.task.unit, o.cause, o.detail) for o in outcomes] == [
            (0, Cause.HUNG, "1 s"),
            (1, Cause.SHARED, "1 s"),
        ]
        assert "did not end within 1 s" in str(outcomes[0].error)
    finally:
        executor.close()


class ListingWorker(ScriptedWorker):
    """Worker that lists the units in the order in which they are encoded, and commits slowly.

    Attributes:
        begun: Units that were encoded.
        commits: Future reports of these units, which the test sets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        self.commits: list[Future[UnitReport]] = []

    def begin(self, task: UnitTask) -> Future[UnitReport]:
        """Encode a unit; its commit is left to the test."""
        self.begun.append(task.unit)
        time.sleep(task.rows["sleep_s"][0].as_py())
        self.commits.append(Future())
        return self.commits[-1]

    def commit(self, n: int) -> None:
        """Complete the oldest `n` commits."""
        for _ in range(n):
            future = self.commits.pop(0)
            future.set_result(UnitReport(0, 0, True, 1, 0, 0, 0, 1.0, 1.0, 1, "w"))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, or a process of Ray."""
    end_s = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_an_actor_encodes_in_the_order_of_submission() -> None:
    """Whichever of the threads that serve the calls runs first."""
    worker = ListingWorker()
    actor = ray_module._Actor(lambda: worker)
    actor._worker = EncodingThread(actor._make_worker)
    with ThreadPoolExecutor(3) as calls:
        outcomes = {}
        for unit in (2, 1, 0):
            outcomes[unit] = calls.submit(actor.extract, task(unit), unit)
            time.sleep(0.05)
        wait_until(lambda: len(worker.begun) == 3)
        worker.commit(3)
        assert [outcomes[unit].result().task.unit for unit in range(3)] == [0, 1, 2]
    assert worker.begun == [0, 1, 2]
    actor._worker.close()


def test_inline_a_unit_is_encoded_while_the_one_before_is_committed() -> None:
    """With room for three units on a GPU, a third one is decoded meanwhile."""
    worker = ListingWorker()
    executor = InlineExecutor(lambda: worker, units_per_worker("cuda"))
    for unit in range(3):
        executor.submit(task(unit), LONG_S)
    assert not executor.has_room()
    assert executor.poll(0.0) == []
    wait_until(lambda: worker.begun == [0, 1, 2])
    worker.commit(1)
    assert [outcome.task.unit for outcome in executor.poll(LONG_S)] == [0]
    assert executor.has_room()
    worker.commit(2)
    assert [outcome.task.unit for outcome in executor.poll(LONG_S)] == [1, 2]
    executor.close()


def test_closing_waits_for_the_unit_that_is_encoded_and_for_no_other() -> None:
    """Units that were dropped do not keep the worker from closing at once."""
    worker = ListingWorker()
    executor = InlineExecutor(lambda: worker, 3)
    executor.submit(task(0, sleep_s=0.5), LONG_S)
    executor.submit(task(1), LONG_S)
    executor.submit(task(2), LONG_S)
    executor.poll(0.0)
    wait_until(lambda: worker.begun == [0])
    start_s = time.monotonic()
    executor.close()
    assert time.monotonic() - start_s < encoding_thread.STOP_S / 2
    assert worker.begun == [0]


def test_a_gpu_worker_has_a_unit_more() -> None:
    """One that is committed, one that is encoded and one that is decoded."""
    assert [units_per_worker(device) for device in ("cpu", "cuda")] == [2, 3]


def test_the_inline_executor_creates_its_worker_when_it_is_needed() -> None:
    """A finished store costs no buffer; the worker's own errors are not a unit's."""
    executor = InlineExecutor(no_weights, 2)
    assert executor.has_room()
    assert executor.poll(1.0) == []
    executor.submit(task(0), 1.0)
    with pytest.raises(WeightsError):
        executor.poll(1.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "inline", "workers": 2}, "engine=inline has one worker"),
        ({"kind": "ray", "threads": 0}, "engine.threads is 0"),
        ({"kind": "ray", "device": "tpu"}, "expected auto, cpu or cuda"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    """A ConfigError is raised before anything is started."""
    with pytest.raises(ConfigError, match=named):
        find_resources(EngineConfig(**settings))


@pytest.mark.parametrize("kind", ["inline", "remote"])
def test_a_worker_holds_its_current_unit_and_the_next(kind: str) -> None:
    """An exclusive unit gets an idle worker and keeps other units out."""

    def holder(*held: UnitTask) -> Callable[[bool], bool]:
        if kind == "inline":
            executor = InlineExecutor(ScriptedWorker, 2)
            for one in held:
                executor.submit(one, 1.0)
            return executor.has_room
        remote = RemoteActor("actor-1", None, 2)
        for one in held:
            remote.add(object(), UnitInFlight(one, 1.0))
        return remote.can_take

    only = partial(task, exclusive=True)
    assert [holder()(exclusive) for exclusive in (False, True)] == [True, True]
    assert [holder(task(0))(exclusive) for exclusive in (False, True)] == [True, False]
    assert [holder(task(0), task(1))(e) for e in (False, True)] == [False, False]
    assert [holder(only(0))(exclusive) for exclusive in (False, True)] == [False, False]


def test_the_time_of_a_unit_runs_from_when_it_is_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A waiting unit is never overdue; the current one is, by its own limit."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    remote = RemoteActor("actor-1", None, 2)
    remote.add("first", UnitInFlight(task(0), 50.0))
    remote.add("second", UnitInFlight(task(1), 10.0))
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
def test_workers_are_limited_by_cpus_and_memory(
    machine: tuple[int, int, int],
    settings: dict[str, Any],
    expected: tuple[int, int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread per worker, one worker per GPU; explicit settings are kept."""
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
def test_threads_follow_the_units_and_the_existing_store(
    settings: dict[str, Any],
    n_units: int,
    before: int | None,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few units get more threads each, and a resumed run uses the store's thread count."""
    monkeypatch.setattr(resources, "find_machine", lambda config: Machine(16, 0, 10**12))
    config = EngineConfig(**{"kind": "ray", **settings})
    assert find_resources(config, n_units, before) == Resources(*expected, "cpu")


@pytest.mark.parametrize(
    ("layout", "gigabytes"),
    [
        (Layout(tuple(range(1, 13)), 768, 60_160, 60), (3.0, 3.6)),
        (Layout((12,), 768, 60_160, 60), (2.0, 2.5)),
        (Layout(tuple(range(1, 25)), 1024, 60_160, 60), (6.5, 7.2)),
        (Layout(tuple(range(1, 13)), 768, 180_480, 180), (5.2, 6.2)),
    ],
    ids=["base", "one layer", "large", "long units"],
)
def test_memory_of_a_worker_follows_the_layout(
    layout: Layout, gigabytes: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer workers where layers, features or units are larger; the large model took 6.5 GB."""
    needed = resources.worker_bytes(layout)
    assert gigabytes[0] <= needed / 1e9 <= gigabytes[1]
    monkeypatch.setattr(resources, "find_machine", lambda config: Machine(64, 0, 10 * needed))
    assert find_resources(EngineConfig("ray"), layout=layout).n_workers == 10


def test_memory_of_a_worker_has_the_audio_of_long_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two units: four times as much for an encoder with 12.5 frames a second as for 50."""
    layout = Layout(tuple(range(1, 13)), 768, 60_160, 60)
    needed = resources.worker_bytes(layout)
    more = resources.worker_bytes(layout, hop_samples=1280) - needed
    assert more == 2 * 60_160 * (1280 - 320) * 4
    monkeypatch.setattr(resources, "find_machine", lambda config: Machine(64, 0, 10 * needed))
    found = find_resources(EngineConfig("ray"), layout=layout, hop_samples=1280)
    assert found.n_workers == 10 * needed // (needed + more)


def test_memory_of_a_worker_has_the_objects_that_go_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket: one unit as objects while it goes up, and one that is written; not in a folder.

    Then fewer workers are chosen.
    """
    layout = Layout(tuple(range(1, 13)), 768, 60_160, 60)
    needed = resources.worker_bytes(layout)
    more = resources.worker_bytes(layout, RemoteBackend.writes_in_memory) - needed
    assert more == units_per_worker("cpu") * layout.slot_bytes
    assert resources.worker_bytes(layout, LocalBackend.writes_in_memory) == needed
    monkeypatch.setattr(resources, "find_machine", lambda config: Machine(64, 0, 10 * needed))
    found = find_resources(EngineConfig("ray"), layout=layout, writes_in_memory=True)
    assert found.n_workers == 10 * needed // (needed + more)

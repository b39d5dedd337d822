"""Fixtures that tests of several packages use, and the order of the tests."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from copy import copy
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import tests.helpers.environment  # noqa: F401 - before what imports torch
from tests.helpers.fake_store import FakeStore, make_store
from tests.helpers.forked import start_server
from tests.helpers.network import refused_network
from tests.helpers.ray_workers import RayWorkers
from tests.servers.fixtures import azurite, gcs, localbucket, proxy, rclone, s3, s3_of_module

__all__ = ["azurite", "gcs", "localbucket", "proxy", "rclone", "s3", "s3_of_module"]
"""Fixtures that are defined elsewhere."""

settings.register_profile("strata", max_examples=60, deadline=None)
settings.load_profile("strata")


gc.disable()
"""Until all tests are collected: imports make millions of objects, and hardly any garbage."""


def module_of(nodeid: str) -> str:
    """`tests/store/test_plan.py::test_x[1]` → tests/store/test_plan.py."""
    return nodeid.partition("::")[0]


RAY_TESTS = Path(tempfile.gettempdir()) / f"strata-ray-tests-{os.getpid()}"
"""File with the ids of the tests that use Ray: the processes that run tests collect them, and the
one that distributes the tests knows ids only."""


def fixtures(item: pytest.Item) -> list[str]:
    """Names of the fixtures that a test has as arguments, and of theirs."""
    return getattr(item, "fixturenames", [])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that use the shared Ray; run the tests that use Ray first.

    They take longest. Those with a Ray of their own are the last of them: some end the shared one.
    Modules without slow tests come last, so that all processes have work until the end.
    """
    for item in items:
        if "ray_session" in fixtures(item):
            item.add_marker("ray")
            item.add_marker("slow")
    slow = {module_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: module_of(item.nodeid) not in slow)
    items.sort(
        key=lambda item: not (item.name.endswith("[ray]") or "ray_session" in fixtures(item))
    )
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    process = getattr(config, "workerinput", {})
    if "ray_tests" in process:
        ids = [item.nodeid for item in items if item.get_closest_marker("ray")]
        Path(process["ray_tests"]).write_text("\n".join(ids))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that runs tests where to write `RAY_TESTS`."""
    node.workerinput["ray_tests"] = str(RAY_TESTS)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Let the process that distributes the tests know why there are none.

    From then on, the garbage collector looks at what tests make, not at modules and the tests.
    """
    try:
        return (yield)
    except pytest.UsageError as error:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["usage_error"] = list(map(str, error.args))
        raise
    finally:
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)  # of 700, 10, 10: two percent of the CPU time
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Fork the parent of `tests.helpers.forked.Forked` before any test has run."""
    if session.items:
        start_server()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Report a mistyped path as without `-n`."""
    if "usage_error" in getattr(node, "workeroutput", {}):
        raise pytest.UsageError(*node.workeroutput["usage_error"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests over processes by module, all tests that use Ray to one process.

    The tests of a module share its fixtures. Two Ray sessions at once would compete for memory and
    for the CPUs.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def schedule(self) -> None:
            self.ray_tests: set[str] = set()
            if RAY_TESTS.exists():  # no process collects any test of a path that does not exist
                self.ray_tests = set(RAY_TESTS.read_text().splitlines())
                RAY_TESTS.unlink()
            super().schedule()

        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid in self.ray_tests else module_of(nodeid)

    return ByModule(config, log)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse connections to other machines: tests run without a network."""
    with refused_network():
        yield


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Let `os.fsync` return at once in this process: no test cuts the power.

    Other writers of the disk would make most tests several times as slow. Tests of what is synced,
    or of errors of it, replace the function themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which also fails for what is no open file
        yield


@pytest.fixture(scope="session", autouse=True)
def random_models_once() -> Iterator[None]:
    """Initialise a random model once for all extractions of this process, which only read it.

    `load_encoder`, with which tests of encoders load theirs, initialises a model for each call.
    """
    from pipeline.encoders.wav2vec2 import families

    load, kept = families.load_model, {}

    def load_once(spec, weights, seed):
        if weights != "random":
            return load(spec, weights, seed)
        key = (repr(spec), seed)
        if key not in kept:
            kept[key] = load(spec, weights, seed)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "load_model", load_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def tiny_encoders_once(random_models_once: None) -> Iterator[None]:
    """Prepare the tiny encoder, and check it on as many usual clips, once for all extractions.

    This takes half of the time of a short extraction. Each gets a copy with a clock of its own, and
    with modules that were prepared for its number of threads: oneDNN's layout of the weights, and
    with it the rounding, depends on that.
    """
    import torch

    from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
    from pipeline.encoders.wav2vec2.families import TorchaudioFamily
    from pipeline.extract import selfcheck as checks

    class OfThreads(dict[Any, Any]):
        """Items that are kept for each number of threads."""

        def __contains__(self, key):
            return super().__contains__((key, torch.get_num_threads()))

        def __getitem__(self, key):
            return super().__getitem__((key, torch.get_num_threads()))

        def __setitem__(self, key, value):
            super().__setitem__((key, torch.get_num_threads()), value)

    load, check = TorchaudioFamily.load, checks.selfcheck
    kept: dict[Any, Any] = {}
    found: dict[Any, Any] = {}

    @wraps(load)  # pickled by this name
    def load_once(self, model, settings):
        if (model.name, model.weights) != ("tiny", "random"):
            return load(self, model, settings)
        key = (model.seed, settings)
        if key not in kept:
            kept[key] = load(self, model, settings)
            kept[key]._modules = OfThreads()
        return copy(kept[key])

    def check_once(encoder, waveforms, codec, **more):
        if type(encoder) is not Wav2Vec2Encoder or encoder.name != "tiny":
            return check(encoder, waveforms, codec, **more)
        setting = (json.dumps(encoder.identity), codec.name, *more.values())
        clips = [clip.numpy() for clip in waveforms]
        is_usual = all(0.01 < abs(clip).max() <= 1 and len(clip) > 1600 for clip in clips)
        key = (setting, len(clips) if is_usual else tuple(clip.tobytes() for clip in clips))
        if key not in found:
            found[key] = check(encoder, waveforms, codec, **more)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchaudioFamily, "load", load_once)
        patch.setattr(checks, "selfcheck", check_once)
        yield


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    """Let torch compute in as many threads as before a module whose encoders took more.

    More threads than free cores wait for each other, and spend CPU time on it.
    """
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def unrendered_charts() -> Iterator[None]:
    """Plot charts, but render none: PDF, SVG and PNG take most of the time of a short sweep.

    Tests of what a reader sees use the fixture `rendered_charts`.
    """
    from tests.helpers.charts import unrendered

    with unrendered():
        yield


@pytest.fixture
def rendered_charts(unrendered_charts: None) -> Iterator[None]:
    """Render the charts of a test, as users get them."""
    from tests.helpers.charts import rendered

    with rendered():
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_once() -> Iterator[None]:
    """Build the verbs of `strata` once: typer takes 12 ms for it, in each test of a command."""
    from typer import testing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "_get_command", cache(testing._get_command))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """The store that the fixture `store` copies; read-only."""
    lengths = [100, 200, 212, 300, 256, 7, 1, 500, 12, 130, 140]
    return make_store(tmp_path_factory.mktemp("made") / "store", lengths, {3: "the file is empty"})


@pytest.fixture
def store(made_once: FakeStore, tmp_path: Path) -> FakeStore:
    """A finished store of five units; utterance 3 is quarantined, most units are partly full."""
    shutil.copytree(made_once.root, tmp_path / "store")
    return replace(made_once, root=tmp_path / "store")


@pytest.fixture(scope="session")
def ray_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    """Ray's workers are forked from its server; the shared Ray ends before it."""
    with closing(RayWorkers(tmp_path_factory.mktemp("ray"))) as workers:
        yield workers
        import ray

        ray.shutdown()


@pytest.fixture
def ray_session(ray_workers: RayWorkers) -> str:
    """The address of a local Ray with two CPUs; started again where another test has ended it."""
    import ray

    if not ray.is_initialized():
        with ray_workers.forked():
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
            )
    address: str = ray.get_runtime_context().gcs_address
    return address

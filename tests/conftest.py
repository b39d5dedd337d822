"""Fixtures that tests of several packages use, and the order of the tests."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.fake_store import FakeStore, make_store
from tests.helpers.network import refused_network

settings.register_profile("strata", max_examples=60, deadline=None)
settings.load_profile("strata")


def module_of(nodeid: str) -> str:
    """`tests/store/test_plan.py::test_x[1]` → tests/store/test_plan.py."""
    return nodeid.partition("::")[0]


ROOT = Path(__file__).parents[1]
RAY_MODULES = frozenset(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("tests/**/test_*.py")
    if re.search(r"\bray_session\b|\bmark\.ray\b", path.read_text(encoding="utf-8"))
)
"""Modules with tests that use Ray."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the shared Ray; run the modules that use Ray first.

    They take longest.
    """
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
            item.add_marker("slow")
    items.sort(key=lambda item: module_of(item.nodeid) not in RAY_MODULES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests over processes by module, all modules that use Ray to one process.

    The tests of a module share its fixtures. Two Ray sessions at once would compete for memory and
    for the CPUs.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = module_of(nodeid)
            return "ray" if module in RAY_MODULES else module

    return ByModule(config, log)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse connections to other machines: tests run without a network."""
    with refused_network():
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

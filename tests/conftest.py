"""Fixtures that many rooms need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.fake_store import FakeStore, make_store
from tests.helpers.network import refused_network

settings.register_profile("strata", max_examples=60, deadline=None)
settings.load_profile("strata")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Distribute tests over processes (`pytest -n 2 --dist loadgroup`).

    The tests of a module stay in one process, and share its fixtures. All tests that use Ray stay
    in one process and run first: two sessions at once would compete for memory and for the CPUs,
    and they take longest.
    """
    for item in items:
        module = item.nodeid.partition("::")[0]
        group = "ray" if item.get_closest_marker("ray") else module
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse connections to other machines: tests run without a network."""
    with refused_network():
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """The store that `store` copies: nobody may write to it."""
    lengths = [100, 200, 212, 300, 256, 7, 1, 500, 12, 130, 140]
    return make_store(tmp_path_factory.mktemp("made") / "store", lengths, {3: "the file is empty"})


@pytest.fixture
def store(made_once: FakeStore, tmp_path: Path) -> FakeStore:
    """A finished store of five units; utterance 3 is quarantined, most units are partly full."""
    shutil.copytree(made_once.root, tmp_path / "store")
    return replace(made_once, root=tmp_path / "store")

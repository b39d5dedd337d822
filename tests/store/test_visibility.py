"""What one host creates is seen late on another one, or never."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.extract import run
from pipeline.store.backend.local import LocalBackend
from pipeline.store.coordination import visibility
from pipeline.store.coordination.ledger import Claim, Ledger
from pipeline.store.coordination.visibility import await_claim, await_commits
from pipeline.store.format.layout import INDEX_DIR, LEDGER_DIR, index_key, ledger_key
from pipeline.store.index import cached_units
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured
from tests.helpers.fake_store import FakeStore, make_store


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    """A store of two units."""
    return make_store(tmp_path / "s", [400, 400])


@pytest.fixture
def claim(store: FakeStore) -> Claim:
    """A claim of a running driver."""
    return Ledger.open(store.root, 2).claim(1, "mine", "ray", "2025-01-01T00:00:00.000+00:00")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "VISIBLE_S", 0.5)
    monkeypatch.setattr(visibility, "GONE_S", 0.1)
    monkeypatch.setattr(visibility, "LOOK_S", 0.01)


def test_a_claim_that_is_seen_late_is_waited_for(store: FakeStore, claim: Claim) -> None:
    """A worker begins once it sees the claim, whole."""
    path = store.path(ledger_key(claim.slot))
    content = path.read_bytes()
    path.write_bytes(content[:9])
    seen = threading.Timer(0.2, path.write_bytes, [content])
    seen.start()
    began = time.monotonic()
    await_claim(store.root, claim)
    assert time.monotonic() - began > 0.15
    seen.join()


def test_a_claim_that_is_never_seen_stops_the_worker(store: FakeStore, claim: Claim) -> None:
    """The message names the file, the host and the remedy."""
    path = store.path(ledger_key(claim.slot))
    path.unlink()
    with pytest.raises(StoreError, match=f"{path}, which .* cannot be seen on .* all nodes share"):
        await_claim(store.root, claim)


def test_a_slot_that_another_driver_has_claimed_stops_the_worker(
    store: FakeStore, claim: Claim
) -> None:
    """Two drivers that do not see each other would write to the same slot."""
    with pytest.raises(StoreError, match="is the claim of another driver"):
        await_claim(store.root, replace(claim, run_id="other"))


def test_a_store_that_is_not_there_is_not_waited_for_long(
    store: FakeStore, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not mounted on that node."""
    monkeypatch.setattr(visibility, "VISIBLE_S", 100.0)
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot be seen on"):
        await_claim(store.root / "elsewhere", claim)
    assert time.monotonic() - began < 10


def test_commits_that_are_never_seen_stop_the_driver(store: FakeStore) -> None:
    """With their number, the first of them, and the place."""
    await_commits(store.root, {0, 1})
    store.path(index_key(1)).unlink()
    with pytest.raises(StoreError, match=rf"commits of 2 units \(units 1, 7\).* in {store.root}"):
        await_commits(store.root, {0, 1, 7})


class StaleBackend(LocalBackend):
    """A folder of which a listing is as old as that of a network file system."""

    age_s = 0.0

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._listed: dict[str, tuple[float, Sequence[str]]] = {}

    def children(self, folder: str) -> Sequence[str]:
        """List a folder, from memory if possible."""
        if folder != INDEX_DIR:
            return super().children(folder)
        seen_s, names = self._listed.get(folder, (-1e9, []))
        if time.monotonic() - seen_s > self.age_s:
            names = super().children(folder)
            self._listed[folder] = (time.monotonic(), names)
        return names


@pytest.mark.parametrize("age_s", [1.5, 1e9])
def test_a_run_ends_when_it_sees_all_its_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float
) -> None:
    """The status and the compacted index hold all units; or the run ends with an error."""
    clips = write_folder(tmp_path / "clips", mixed_lengths(12))
    backend = StaleBackend(tmp_path / "s")
    monkeypatch.setattr(StaleBackend, "age_s", age_s)
    config = configured(clips, tmp_path / "s", *INLINE)
    if age_s > 100:
        with pytest.raises(StoreError, match="cannot be seen on"):
            run.extract(config, backend=backend)
        return
    monkeypatch.setattr(visibility, "VISIBLE_S", 20.0)
    status = run.extract(config, backend=backend)
    assert status.units_committed == status.units_total > 1
    assert cached_units(tmp_path / "s") == set(range(status.units_total))


class BlindBackend(LocalBackend):
    """A folder in which nobody sees a claim."""

    def read(self, key: str) -> bytes:
        """Read a file, unless it is a claim."""
        if key.startswith(LEDGER_DIR):
            raise FileNotFoundError(errno.ENOENT, "No such file", key)
        return super().read(key)


def test_a_worker_that_does_not_see_its_claim_commits_nothing(tmp_path: Path) -> None:
    """The run ends with an error: the worker's node has another folder at that path."""
    clips = write_folder(tmp_path / "clips", [0.5])
    config = configured(clips, tmp_path / "s", *INLINE)
    with pytest.raises(StoreError, match="which the driver has created, cannot be seen on"):
        run.extract(config, backend=BlindBackend(tmp_path / "s"))
    assert list((tmp_path / "s" / INDEX_DIR).iterdir()) == []

"""Clean-up removes garbage, and keeps what is committed or may still be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.store.documents import resize
from pipeline.store.format.layout import FRAMES, INDEX_DIR, LEDGER_DIR, POOLED, index_key
from pipeline.store.index import compact, read_unit
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.maintain.verify import verify_store
from pipeline.store.read.opening import open_store
from pipeline.store.write.slot import commit_unit
from tests.helpers.fake_store import FakeStore, begin_store


@pytest.fixture
def retried(tmp_path: Path) -> FakeStore:
    """Unit 0 was committed by its second attempt, in slot 3; units 1 and 2 at once."""
    store = begin_store(tmp_path, [300, 300, 300])
    half_done = store.claim(0)
    for key in (*store.layout.shard_keys(half_done)[:2], store.layout.pooled_key(half_done)):
        store.path(key).parent.mkdir(parents=True)
        store.path(key).write_bytes(b"half")
    for unit in range(3):
        assert store.commit(unit, store.claim(unit)).won
    resize(tmp_path, store.layout, 4)
    return store


def files_of(root: Path) -> dict[Path, bytes]:
    """Return every file with its bytes."""
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_slot_of_a_failed_attempt_is_removed(retried: FakeStore) -> None:
    """And nothing else; a second clean-up finds nothing."""
    before = files_of(retried.root)
    assert remove_leftovers(retried.root, retried.layout) == [0]
    gone = before.keys() - files_of(retried.root).keys()
    assert gone == {
        retried.path(key)
        for key in (*retried.layout.shard_keys(0)[:2], retried.layout.pooled_key(0))
    }
    assert remove_leftovers(retried.root, retried.layout) == []
    assert verify_store(retried.root).ok


def test_the_slots_of_an_uncommitted_unit_are_kept(retried: FakeStore) -> None:
    """A zombie worker may still commit one of them; without its shards that would be damage."""
    retried.path(index_key(0)).unlink()
    before = files_of(retried.root)
    assert remove_leftovers(retried.root, retried.layout) == []
    assert files_of(retried.root) == before
    buffer, records = retried.buffer(0)
    assert commit_unit(retried.root, buffer, 0, 0, retried.index(0, 0, records)).won
    assert remove_leftovers(retried.root, retried.layout) == [3]
    assert verify_store(retried.root).ok


def test_a_wrong_compaction_does_not_matter(retried: FakeStore) -> None:
    """The slot of a unit is read from the unit's own file."""
    compact(retried.root)
    retried.path(index_key(0)).unlink()
    assert retried.commit(0, retried.claim(0)).won  # slot 4; the cache still says slot 3
    resize(retried.root, retried.layout, 5)
    assert remove_leftovers(retried.root, retried.layout) == [0, 3]
    assert read_unit(retried.root, 0)["slot"].to_pylist() == [4]
    compact(retried.root)
    assert verify_store(retried.root).ok
    reader = open_store(retried.root)
    np.testing.assert_array_equal(reader.read(0).numpy(), retried.features(0))


def test_half_written_files_are_removed(retried: FakeStore) -> None:
    """In every folder where a crash can leave them."""
    remove_leftovers(retried.root, retried.layout)
    before = files_of(retried.root)
    shard = retried.layout.shard_key(0, 0)
    for key in (
        "plan.parquet",
        f"{INDEX_DIR}/unit-1.parquet",
        f"{LEDGER_DIR}/slot-9.json",
        f"{FRAMES}/zarr.json",
        f"{POOLED}/c/7/0/0/0",
        shard,
    ):
        path = retried.path(f"{key}.{'01' * 16}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    remove_leftovers(retried.root, retried.layout)
    assert files_of(retried.root) == before


def test_a_sound_store_does_not_change(store: FakeStore) -> None:
    """Without garbage no file changes."""
    before = files_of(store.root)
    assert remove_leftovers(store.root, store.layout) == []
    assert files_of(store.root) == before

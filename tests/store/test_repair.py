"""Damage is found and named; its units are revoked, and extracted again byte for byte."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DamagedError, StoreBusyError
from pipeline.store.backend.local import LocalBackend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import read_log
from pipeline.store.coordination.worker_failures import DIED, WorkerFailure, record_failure
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.layout import INDEX_CACHE, Layout, index_key, ledger_key, marker_key
from pipeline.store.index import read_unit
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from tests.helpers.backends import in_memory
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import contents, extract

INLINE = ("engine=inline", "engine.threads=1")
UNIT = 3
"""The damaged unit; it is in the slot of the same number."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(24))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store that was never disturbed."""
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    extract(folder, store, *INLINE)
    return store


@pytest.fixture
def store(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it that tests damage."""
    return shutil.copytree(undisturbed, tmp_path / "s")


def layout_at(store: Path) -> Layout:
    return layout_of(read_attributes(store))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def read_units(store: Path) -> int:
    plan = read_plan(store)
    assert plan is not None
    return plan.n_units


def running_attempt(store: Path) -> int:
    """Return the slot of a running attempt of a killed driver; it has one shard so far."""
    slot = Ledger.open(store, read_units(store)).claim(UNIT, "dead", "ray", "then").slot
    path = store / layout_at(store).shard_key(0, slot)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"running")
    return slot


def shard(store: Path) -> Path:
    return store / layout_at(store).shard_key(5, UNIT)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated shard": (lambda s: cut(shard(s)), r"5/3/0 is damaged"),
    "bit of the payload": (lambda s: flip(shard(s), 1000), r"layer 6 of utterance 'clip-\d+.wav'"),
    "bit of a frame that belongs to nobody": (
        lambda s: flip(shard(s), layout_at(s).shard_data_bytes - 2),
        r"layer 6 has values in frames without an utterance",
    ),
    "bit of the shard's index": (lambda s: flip(shard(s), -3), r"5/3/0 is damaged"),
    "missing shard": (lambda s: shard(s).unlink(), r"5/3/0 is missing"),
    "bit of the pooled chunk": (
        lambda s: flip(s / layout_at(s).pooled_key(UNIT), 500),
        r"pooled/c/3/0/0/0 has a wrong checksum",
    ),
    "missing pooled chunk": (
        lambda s: (s / layout_at(s).pooled_key(UNIT)).unlink(),
        r"pooled/c/3/0/0/0 is missing",
    ),
    "torn index file": (lambda s: cut(s / index_key(UNIT)), "index of unit 3 is not readable"),
    "bit of the index file": (lambda s: flip(s / index_key(UNIT), 200), "index of unit 3 is not"),
    "missing index file": (lambda s: (s / index_key(UNIT)).unlink(), "unit-3.parquet is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_revoked_and_extracted_again(
    folder: Path, undisturbed: Path, store: Path, kind: str
) -> None:
    """Exactly the damaged unit, and with the same bytes."""
    damage, named = DAMAGES[kind]
    damage(store)
    found = verify_store(store)
    assert found.damaged_units == [UNIT]
    assert any(re.search(named, item.problem) for item in found.damages), found.damages
    copy = in_memory(store)
    fixed = repair_store(store)
    assert fixed.units == repair_store(copy).units == [UNIT]
    assert verify_store(store).ok
    assert verify_store(copy).ok
    assert set(copy.list()) == set(LocalBackend(store).list())
    status = extract(folder, store, *INLINE)
    assert status.units_committed == status.units_total
    assert contents(store) == contents(undisturbed)
    found = verify_store(store)
    assert (found.ok, found.orphans) == (True, ())
    assert any(event["event"] == "unit_taken_back" for event in read_log(store))


def test_several_units_at_once(folder: Path, undisturbed: Path, store: Path) -> None:
    """All of them are revoked, and no other unit changes."""
    layout = layout_at(store)
    flip(store / layout.shard_key(0, 0), 10)
    (store / layout.shard_key(7, 2)).unlink()
    cut(store / index_key(3))
    untouched = {unit: (store / index_key(unit)).stat().st_mtime_ns for unit in (1,)}
    assert repair_store(store).units == [0, 2, 3]
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)
    assert {u: (store / index_key(u)).stat().st_mtime_ns for u in untouched} == untouched


def test_a_stale_compaction_does_not_outlive_a_repair(
    folder: Path, undisturbed: Path, store: Path
) -> None:
    """Readers must not use the old place of a unit that is extracted again."""
    assert (store / INDEX_CACHE).exists()
    flip(shard(store), 1000)
    repair_store(store)
    assert not (store / INDEX_CACHE).exists()
    extract(folder, store, *INLINE)
    assert read_unit(store, UNIT)["slot"][0].as_py() != UNIT
    assert contents(store) == contents(undisturbed)


def test_a_commit_removed_by_hand_does_not_leave_a_stale_compaction(
    folder: Path, undisturbed: Path, store: Path
) -> None:
    """If only the index file was removed, readers use the unit's new place, too."""
    (store / index_key(UNIT)).unlink()
    extract(folder, store, *INLINE)
    from pipeline.store.index import read_index

    rows = read_index(store).to_pylist()
    assert {row["slot"] for row in rows if row["unit"] == UNIT} != {UNIT}
    assert contents(store) == contents(undisturbed)


def test_garbage_is_named_and_removed(undisturbed: Path, store: Path) -> None:
    """Half-written files, orphan slots and markers; they are no damage."""
    layout = layout_at(store)
    n_units = len(list((store / "index").iterdir()))
    dead = Ledger.open(store, n_units).claim(UNIT, "dead", "ray", "then").slot
    unclaimed = dead + 3
    for slot in (dead, unclaimed):
        path = store / layout.shard_key(0, slot)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"orphan")
    (store / marker_key(dead)).write_text("{}")
    half = [
        store / "index" / f"unit-9.parquet.{'0a' * 16}.partial",
        shard(store).with_name(f"0.{'1b' * 16}.partial"),
    ]
    for path in half:
        path.write_bytes(b"half")
    found = verify_store(store)
    assert found.ok
    named = {orphan.path: orphan.what for orphan in found.orphans}
    assert f"unit {UNIT} is committed in slot {UNIT}" in named[f"slot {dead}"]
    assert "without a claim" in named[f"slot {unclaimed}"]
    assert sum("half-written" in what for what in named.values()) == 2
    fixed = repair_store(store)
    assert (fixed.units, len(fixed.removed)) == ([], 5)
    assert not verify_store(store).orphans
    assert contents(store) == contents(undisturbed)


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt",
        "index/copy of unit-1.parquet",
        "ledger/x",
        "features.zarr/frames/c/0/a",
        "features.zarr/frames/c/99/0/0",
        "labels/generation-1.txt",
        "thesis.partial",
        "plan.parquet.partial",
        f"plan.parquet.{'0a' * 15}.partial",
        f"plan.parquet.{'XY' * 16}.partial",
        f"index/unit-1.parquet.bak.{'0a' * 16}.partial",
        f"notes/plan.parquet.{'0a' * 16}.partial",
        f"features.zarr/frames/c/0/0/mine.{'0a' * 16}.partial",
        "plan.parquet~",
        ".plan.parquet.swp",
    ],
)
def test_foreign_files_are_named_and_kept(store: Path, key: str) -> None:
    """A repair and a clean-up remove only files that Strata wrote, whatever others are named."""
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_text("mine")
    remove_leftovers(store, layout_at(store))
    for found in (verify_store(store), repair_store(store).found):
        assert found.ok
        assert [(orphan.path, orphan.is_garbage) for orphan in found.orphans] == [(key, False)]
    assert (store / key).read_text() == "mine"


def test_an_unreadable_claim_is_replaced(folder: Path, undisturbed: Path, store: Path) -> None:
    """It would stop every run. Failure records in the same folder are no claims, and stay."""
    (store / ledger_key(1)).write_text("")
    record_failure(store, WorkerFailure(1, 1, DIED, "SIGSEGV", None, None, "r", "t"))
    with pytest.raises(DamagedError, match="--repair"):
        verify_store(store)
    fixed = repair_store(store)
    assert fixed.claims == ["slot-1.json"]
    assert "1 unreadable claim replaced" in fixed.summary()
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)
    assert verify_store(store).ok
    assert repair_store(store).claims == []


@pytest.mark.parametrize("content", ["", '{"slot": 99, "unit": 1}'])
def test_a_slot_whose_claim_is_lost_is_never_claimed_again(
    folder: Path, undisturbed: Path, store: Path, content: str
) -> None:
    """Its worker may still write: two attempts in one slot would mix their shards."""
    (store / index_key(UNIT)).unlink()
    n_units = read_units(store)
    slot = Ledger.open(store, n_units).claim(UNIT, "dead", "ray", "then").slot
    (store / ledger_key(slot)).write_text(content)
    repair_store(store)
    assert Ledger.open(store, n_units).claim(UNIT, "next", "ray", "then").slot == slot + 1
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)


@pytest.mark.parametrize("missing", [True, False])
def test_a_slot_whose_claim_is_lost_is_kept_until_all_is_committed(
    folder: Path, undisturbed: Path, store: Path, missing: bool
) -> None:
    """Shards of a worker that may still commit must not be removed.

    A unit that this very repair takes back is one that may yet be committed.
    """
    slot = running_attempt(store)
    if missing:
        (store / index_key(UNIT)).unlink()
    else:
        flip(shard(store), 1000)
    (store / ledger_key(slot)).write_text("")
    path = store / layout_at(store).shard_key(0, slot)
    for _ in range(2):
        assert repair_store(store).removed == []
        assert path.exists()
    extract(folder, store, *INLINE)
    assert [orphan.slot for orphan in repair_store(store).removed] == [slot]
    assert not path.exists()
    assert contents(store) == contents(undisturbed)


def test_attempts_at_a_revoked_unit_are_kept(folder: Path, undisturbed: Path, store: Path) -> None:
    """They could not commit before; now one of them may."""
    slot = running_attempt(store)
    path = store / layout_at(store).shard_key(0, slot)
    flip(shard(store), 1000)
    fixed = repair_store(store)
    assert (fixed.units, fixed.removed) == ([UNIT], [])
    assert path.exists()
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)
    assert not path.exists()


def test_a_store_with_a_running_driver_is_not_repaired(store: Path) -> None:
    """The repair is refused."""
    with Lease(store, "driver"), pytest.raises(StoreBusyError):
        repair_store(store)


def test_a_sample_reads_some_units_and_checks_the_files_of_all(store: Path) -> None:
    """Missing and truncated files are found in all units, flipped bits only in the sample."""
    whole = verify_store(store)
    some = verify_store(store, sample=0.3)
    assert some.ok
    assert 0 < some.n_bytes < whole.n_bytes
    assert some.units_committed == whole.units_committed
    cut(shard(store))
    for _ in range(5):
        assert verify_store(store, sample=0.01).damaged_units == [UNIT]
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="expected a share"):
            verify_store(store, sample=wrong)

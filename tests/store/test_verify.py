"""Verification finds every damage to a store, and names it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from crc32c import crc32c

from pipeline import files
from pipeline.errors import DamagedError, StoreError, StoreNotFoundError
from pipeline.store.coordination.lease import Lease
from pipeline.store.documents import resize, write_plan
from pipeline.store.format.layout import FRAMES, GROUP, PLAN, POOLED, index_key, ledger_key
from pipeline.store.format.records import DEFERRED, OK, Record
from pipeline.store.index import compact
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import Damage, Verification, verify_store
from pipeline.store.read.opening import open_store
from pipeline.store.serialization import parquet_bytes
from pipeline.store.write.slot import commit_unit
from tests.helpers.backends import in_memory
from tests.helpers.fake_store import FakeStore, begin_store, make_store, plan_rows
from tests.helpers.feature_stores import rewrite

# The fixture `store`: unit 0 = utterances 0-2, full; unit 1 = 3-4, 3 quarantined; ...


def test_a_sound_store_is_sound(store: FakeStore) -> None:
    """With the right counts, with or without a compaction."""
    found = verify_store(store.root)
    frames = sum(store.features(row).shape[1] for row in range(11) if row != 3)
    assert found == Verification((), 5, 5, 10, 1, frames * 3 * 4 * 2)
    assert found.ok
    assert verify_in_memory(store.root) == found
    compact(store.root)
    assert verify_store(store.root) == found


def test_missing_units_are_no_damage(tmp_path: Path) -> None:
    """An unfinished store is sound."""
    store = begin_store(tmp_path, [300] * 3)
    assert verify_store(tmp_path) == Verification((), 0, 3, 0, 0, 0)
    store.commit(1)
    found = verify_store(tmp_path)
    assert (found.ok, found.units_committed, found.units_total) == (True, 1, 3)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)


def flip_payload(store: FakeStore) -> None:
    """Flip a bit of frame 150 of unit 0, which is in utterance 1."""
    flip(store.path(store.layout.shard_key(1, 0)), 150 * store.layout.dim * 2 + 3)


def flip_shard_index(store: FakeStore) -> None:
    """Flip a bit of the index at the end of a shard."""
    flip(store.path(store.layout.shard_key(2, 0)), -7)


def flip_shard_index_crc(store: FakeStore) -> None:
    """Flip a bit of the checksum of that index."""
    flip(store.path(store.layout.shard_key(2, 0)), -1)


def flip_beyond_the_last_frame(store: FakeStore) -> None:
    """Change a frame after the 264 frames of unit 2, which is NaN."""
    path = store.path(store.layout.shard_key(0, 2))
    matrix = np.memmap(path, "<f2", mode="r+", shape=(512, 4))
    assert np.isnan(matrix[500]).all()
    matrix[500, 2] = 1
    matrix.flush()


def truncate_shard(store: FakeStore) -> None:
    """Remove the last byte of a shard."""
    path = store.path(store.layout.shard_key(0, 0))
    path.write_bytes(path.read_bytes()[:-1])


def empty_shard(store: FakeStore) -> None:
    """Empty a shard, which Zarr may take for one that was never written."""
    store.path(store.layout.shard_key(0, 0)).write_bytes(b"")


def lengthen_shard(store: FakeStore) -> None:
    """Append bytes to a shard."""
    with store.path(store.layout.shard_key(0, 0)).open("ab") as file:
        file.write(b"x")


def remove_shard(store: FakeStore) -> None:
    """Remove a shard, which Zarr then reads as fill."""
    store.path(store.layout.shard_key(1, 0)).unlink()


def swap_shards(store: FakeStore) -> None:
    """Swap two layers of one unit, whose sizes and indexes are equal."""
    a, b = (store.path(store.layout.shard_key(axis, 0)) for axis in (0, 2))
    swap(a, b)


def flip_pooled(store: FakeStore) -> None:
    """Flip a bit of the pooled chunk."""
    flip(store.path(store.layout.pooled_key(0)), 5)


def truncate_pooled(store: FakeStore) -> None:
    """Remove the checksum of the pooled chunk."""
    path = store.path(store.layout.pooled_key(0))
    path.write_bytes(path.read_bytes()[:-4])


def empty_pooled(store: FakeStore) -> None:
    """Empty the pooled chunk."""
    store.path(store.layout.pooled_key(0)).write_bytes(b"")


def remove_pooled(store: FakeStore) -> None:
    """Remove the pooled chunk."""
    store.path(store.layout.pooled_key(0)).unlink()


def wrong_pooled(store: FakeStore) -> None:
    """Change a pooled vector by one bit, with a right checksum."""
    path = store.path(store.layout.pooled_key(0))
    values = np.frombuffer(path.read_bytes()[:-4], np.float32).copy()
    values[9] = np.nextafter(values[9], np.float32(np.inf))
    path.write_bytes(values.tobytes() + crc32c(values).to_bytes(4, "little"))


def tear_unit_index(store: FakeStore) -> None:
    """Truncate a commit."""
    path = store.path(index_key(0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_unit_index(store: FakeStore) -> None:
    """Flip a bit in the name of a carried column, which no Parquet checksum covers."""
    path = store.path(index_key(0))
    flip(path, path.read_bytes().rindex(b"speaker"))


def swap(a: Path, b: Path) -> None:
    """Swap two files."""
    raw = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(raw)


def swap_unit_indexes(store: FakeStore) -> None:
    """Swap two commits."""
    swap(store.path(index_key(0)), store.path(index_key(2)))


def relabel(unit: int, change: Callable[[list[Record]], list[Record]], slot: int | None = None):
    """Return a function that writes a wrong commit with a right checksum."""

    def damage(store: FakeStore) -> None:
        _, records = store.buffer(unit)
        table = store.index(unit, unit, change(records))
        if slot is not None:
            column = table.schema.get_field_index("slot")
            values = pa.array([slot] * len(table), pa.int32())
            table = table.set_column(column, table.schema.field(column), values)
        files.write_atomic(store.path(index_key(unit)), [parquet_bytes(table)])

    return damage


def change_first(**changes: object) -> Callable[[list[Record]], list[Record]]:
    """Return a function that changes the first record of a unit."""
    return lambda records: [replace(records[0], **changes), *records[1:]]


DAMAGES: dict[str, tuple[Callable[[FakeStore], None], list[int], str]] = {
    "payload bit": (flip_payload, [0], "layer 6 of utterance 'utterance-1' has a wrong checksum"),
    "shard index bit": (flip_shard_index, [0], r"c/2/0/0 is damaged"),
    "shard index crc bit": (flip_shard_index_crc, [0], r"c/2/0/0 is damaged"),
    "value in an unused frame": (flip_beyond_the_last_frame, [2], "layer 1 has values in frames"),
    "truncated shard": (truncate_shard, [0], "c/0/0/0|utterance-0"),
    "empty shard": (empty_shard, [0], "c/0/0/0|utterance-0|slot 0 is not readable"),
    "lengthened shard": (lengthen_shard, [0], "c/0/0/0|utterance-0"),
    "missing shard": (remove_shard, [0], r"c/1/0/0 is missing"),
    "swapped shards": (swap_shards, [0], "layer 1 of utterance 'utterance-0' has a wrong checksum"),
    "pooled bit": (flip_pooled, [0], "pooled"),
    "truncated pooled": (truncate_pooled, [0], "pooled"),
    "empty pooled": (empty_pooled, [0], "pooled"),
    "missing pooled": (remove_pooled, [0], "pooled.*missing"),
    "wrong pooled": (wrong_pooled, [0], "pooled vector of utterance 'utterance-0' is not the mean"),
    "torn unit index": (tear_unit_index, [0], "index of unit 0 is not readable"),
    "unit index bit": (flip_unit_index, [0], "index of unit 0 is not readable.*wrong checksum"),
    "swapped unit indexes": (swap_unit_indexes, [0, 2], "is not the index of unit"),
    "frame_start shifted": (
        relabel(0, change_first(frame_start=1)),
        [0],
        "utterance 'utterance-0' has a wrong checksum",
    ),
    "frame_start of the next one": (
        relabel(0, change_first(frame_start=100)),
        [0],
        "'utterance-1' overlaps another utterance",
    ),
    "frame_start before the slot": (
        relabel(2, change_first(frame_start=-1)),
        [2],
        "no valid range of frames in slot 2",
    ),
    "frame_start in the next slot": (
        relabel(2, change_first(frame_start=512)),
        [2],
        "no valid range of frames in slot 2",
    ),
    "no frame_start": (
        relabel(0, change_first(frame_start=None)),
        [0],
        "has no frame_start",
    ),
    "no checksums": (relabel(0, change_first(crc32c=None)), [0], "not one checksum per layer"),
    "too few checksums": (relabel(0, change_first(crc32c=(1,))), [0], "not one checksum per layer"),
    "n_frames too many": (relabel(2, change_first(n_frames=9)), [2], "wrong checksum|overlaps"),
    "n_frames zero": (
        relabel(0, change_first(n_frames=0)),
        [0],
        "no valid range of frames in slot 0",
    ),
    "another id": (relabel(0, change_first(id="utterance-1")), [0], "different id columns"),
    "another row": (relabel(0, change_first(row=1)), [0], "different row columns"),
    "an utterance twice": (
        relabel(0, lambda records: [*records, records[-1]]),
        [0],
        "'utterance-2' overlaps another utterance",
    ),
    "an utterance left out": (
        relabel(0, lambda records: records[:-1]),
        [0],
        "different id columns",
    ),
    "rows in another order": (
        relabel(0, lambda records: records[::-1]),
        [0],
        "different id columns",
    ),
    "no rows": (relabel(0, lambda records: []), [0], "is not the index of unit 0"),
    "the slot of another unit": (relabel(1, list, slot=0), [1], "it shares slot 0 with unit 0"),
    "quarantined without a reason": (
        relabel(1, change_first(reason=None)),
        [1],
        "'utterance-3' is quarantined without a reason",
    ),
    "unknown status": (relabel(0, change_first(status="good")), [0], "unknown status 'good'"),
}


def verify_in_memory(root: Path) -> Verification:
    """Verify a copy of the store in memory; return the result with paths of the folder."""
    backend = in_memory(root)
    found = verify_store(backend)
    damages = tuple(
        Damage(item.unit, item.problem.replace(backend.uri, str(root))) for item in found.damages
    )
    return replace(found, damages=damages)


def without_zarr_messages(found: Verification) -> Verification:
    """Return the result without the messages of zarr-python, which differ between backends."""
    kept = [re.sub(r" \(\w+: .*\)$", "", item.problem) for item in found.damages]
    damages = [Damage(item.unit, text) for item, text in zip(found.damages, kept, strict=True)]
    return replace(found, damages=tuple(damages))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(store: FakeStore, name: str) -> None:
    """Each damage is found in its unit only, and described."""
    damage, units, pattern = DAMAGES[name]
    damage(store)
    found = verify_store(store.root)
    assert not found.ok
    assert found.damaged_units == units
    assert without_zarr_messages(verify_in_memory(store.root)) == without_zarr_messages(found)
    assert any(re.search(pattern, item.problem) for item in found.damages), found.damages


def test_any_flipped_byte_of_a_unit_is_found(tmp_path: Path) -> None:
    """Random bytes of every file of a unit: no committed byte is unprotected."""
    store = make_store(tmp_path, [255, 200])
    random = np.random.default_rng(0)
    keys = (*store.layout.shard_keys(0), store.layout.pooled_key(0), index_key(0))
    owned = 455 * store.layout.dim * 2
    for key in keys:
        path = store.path(key)
        sound = path.read_bytes()
        size = len(sound)
        places = {*random.integers(0, size, 10).tolist(), 0, size - 1}
        for at in places:
            if key.startswith(FRAMES) and owned <= at < store.layout.shard_data_bytes:
                continue  # an unused frame; covered by another test
            flip(path, at, int(random.integers(8)))
            assert verify_store(tmp_path).damaged_units == [0], (key, at)
            path.write_bytes(sound)
    assert verify_store(tmp_path).ok


def test_all_damaged_units_are_listed(store: FakeStore) -> None:
    """One damage does not hide another."""
    remove_shard(store)
    tear = store.path(index_key(4))
    tear.write_bytes(b"")
    assert verify_store(store.root).damaged_units == [0, 4]


def test_progress_is_called_for_every_unit(store: FakeStore) -> None:
    """For damaged ones, too, and once before the first; a repair passes it on."""
    tear_unit_index(store)
    for check in (verify_store, repair_store):
        seen: list[tuple[int, int]] = []
        check(store.root, lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == [(done, 5) for done in range(6)]


def test_a_slot_that_was_claimed_for_another_unit_is_found(store: FakeStore) -> None:
    """The ledger and the commits must agree."""
    path = store.path(ledger_key(1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "unit": 3}))
    found = verify_store(store.root)
    assert found.damaged_units == [1]
    assert "slot 1 was claimed for unit 3" in found.damages[0].problem


def test_a_commit_beyond_the_plan_is_found(store: FakeStore) -> None:
    """A unit that is not in the plan."""
    _, records = store.buffer(0)
    table = store.index(9, 9, records)
    files.write_atomic(store.path(index_key(9)), [parquet_bytes(table)])
    found = verify_store(store.root)
    assert found.damaged_units == [9]
    assert "the plan has only 5 units" in found.damages[0].problem


def test_an_utterance_that_two_units_have_is_found(tmp_path: Path) -> None:
    """Deferred and then extracted is sound; extracted twice is a duplicate."""
    store = begin_store(tmp_path, [300, 300])
    plan = store.plan.extended(plan_rows([300, 300]).slice(1))
    write_plan(tmp_path, plan)
    store = replace(store, plan=plan)
    for unit in range(3):
        buffer, records = store.buffer(unit)
        if unit == 1:
            late = replace(
                records[0],
                status=DEFERRED,
                reason="longer than its header said",
                crc32c=None,
                frame_start=None,
                n_frames=0,
            )
            records, deferred = [late], records
        index = store.index(unit, store.claim(unit), records)
        assert commit_unit(tmp_path, buffer, unit, unit, index).won
    resize(tmp_path, store.layout, 3)
    assert verify_store(tmp_path).ok
    table = store.index(1, 1, deferred)
    assert table["status"].to_pylist() == [OK]
    files.write_atomic(store.path(index_key(1)), [parquet_bytes(table)])
    found = verify_store(tmp_path)
    assert found.damaged_units == [2]
    assert "'utterance-1' is in unit 1 too" in found.damages[0].problem


@pytest.mark.parametrize("key", [FRAMES, POOLED])
@pytest.mark.parametrize("damage", ["missing", "torn", "short", "long", "odd", "renamed", "list"])
def test_zarr_documents_that_hide_the_features_are_damage(
    store: FakeStore, key: str, damage: str
) -> None:
    """Strata does not use them, but every other reader of the arrays does."""
    path = store.path(f"{key}/zarr.json")
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:50])
    else:
        document = json.loads(path.read_text())
        axis = 1 if key == FRAMES else 0
        length = document["shape"][axis]
        changes = {"short": -length // store.plan.n_units, "long": length, "odd": 0.5}
        document["shape"][axis] += changes.get(damage, 0)
        if damage == "renamed":
            document["dimension_names"][axis] = "time"
        path.write_text(json.dumps([document] if damage == "list" else document))
    named = rf"{re.escape(str(path))} .*run `strata extract` again"
    with pytest.raises(DamagedError, match=named):
        verify_store(store.root)


def test_arrays_may_be_longer_while_a_driver_runs(store: FakeStore) -> None:
    """It extends them before it commits into the new slots."""
    resize(store.root, store.layout, 9)
    with pytest.raises(DamagedError, match=r"the store has 5"):
        verify_store(store.root)
    with Lease(store.root, "run"):
        assert verify_store(store.root).ok


def test_attributes_of_other_tools_are_no_damage(store: FakeStore) -> None:
    """They may annotate the group and the arrays; another format of the group is damage."""
    for key in (GROUP, FRAMES, POOLED):
        path = store.path(f"{key}/zarr.json")
        document = json.loads(path.read_text())
        document["attributes"]["units"] = "a note"
        path.write_text(json.dumps(document))
    assert verify_store(store.root).ok
    path = store.path(f"{GROUP}/zarr.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"zarr_format": 2}))
    with pytest.raises(DamagedError, match=r"features\.zarr/zarr\.json was changed .*zarr_format"):
        verify_store(store.root)


def test_a_store_that_another_tool_has_rewritten_is_sound(store: FakeStore) -> None:
    """Shards that are not flat are read through zarr-python, with the same result."""
    rewrite(store.root)
    assert verify_store(store.root).ok
    reader = open_store(store.root)
    np.testing.assert_array_equal(reader.read("utterance-7").numpy(), store.features(7))


def test_a_missing_plan_or_store_is_reported(store: FakeStore, tmp_path: Path) -> None:
    """With one clear error."""
    with pytest.raises(StoreNotFoundError):
        verify_store(tmp_path / "none")
    store.path(PLAN).unlink()
    with pytest.raises(DamagedError, match="no plan"):
        verify_store(store.root)


def test_a_flipped_bit_of_the_plan_is_found(store: FakeStore) -> None:
    """Commits are compared with the plan, so it has a checksum, too."""
    path = store.path(PLAN)
    flip(path, path.stat().st_size // 3)
    with pytest.raises(StoreError, match=r"plan\.parquet has a wrong checksum"):
        verify_store(store.root)

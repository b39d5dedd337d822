"""The commit: a unit is completely visible, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedError, IdentityError, StoreError, StoreNotFoundError
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.documents import (
    check_format_shape,
    layout_of,
    read_attributes,
    resize,
    write_group,
)
from pipeline.store.format.codecs import FLOAT16
from pipeline.store.format.layout import FRAMES, GROUP, KEPT, POOLED, Layout, index_key
from pipeline.store.format.pooling import pool
from pipeline.store.index import committed_units, read_unit
from pipeline.store.maintain.verify import verify_store
from pipeline.store.read.opening import open_store
from pipeline.store.write import slot as slot_module
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import SlotWriter
from tests.helpers.fake_store import KILL, MEET, FakeStore, attributes, begin_store
from tests.helpers.forked import Forked, finish

NO_SCALES = np.empty((1, 0, 0), np.float32)


def slot_files(store: FakeStore, slot: int) -> list[str]:
    """Return the keys of a slot's files that exist."""
    keys = (*store.layout.shard_keys(slot), store.layout.pooled_key(slot))
    return [key for key in keys if store.path(key).exists()]


def partials(root: Path) -> list[Path]:
    """Return the half-written files."""
    return list(root.rglob("*.partial"))


def test_a_commit_leaves_shards_pooled_and_index_and_nothing_else(tmp_path: Path) -> None:
    """Every file of the slot has the size that the layout says; no half-written file remains."""
    store = begin_store(tmp_path, [300, 300])
    outcome = store.commit(1, slot=1)
    assert outcome.won
    assert committed_units(tmp_path) == [1]
    sizes = [store.path(key).stat().st_size for key in slot_files(store, 1)]
    assert sum(sizes) == outcome.n_bytes == store.layout.slot_bytes
    assert slot_files(store, 0) == []
    assert partials(tmp_path) == []


def test_the_second_commit_of_a_unit_loses_and_its_slot_is_removed(tmp_path: Path) -> None:
    """The bytes of the first one do not change."""
    store = begin_store(tmp_path, [300])
    store.commit(0, slot=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = store.commit(0, slot=1)
    assert not outcome.won
    assert slot_files(store, 1) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


RACE = (
    MEET
    + """
import sys
from pathlib import Path
from tests.helpers.fake_store import FakeStore, Layout, LAYERS, DIM
from pipeline.store.documents import read_plan
root, me = Path(sys.argv[1]), int(sys.argv[2])
plan = read_plan(root)
layout = Layout(LAYERS, DIM, plan.frames_per_unit, plan.utterances_per_slot)
store = FakeStore(root, plan, layout, {})
for unit in range(plan.n_units):
    meet(root, unit, me, 2)
    print(int(store.commit(unit, slot=unit + me * plan.n_units).won))
"""
)


@pytest.mark.slow
def test_of_two_racing_commits_exactly_one_wins(tmp_path: Path) -> None:
    """50 rounds of two processes: the loser's slot is removed, the store is sound."""
    n = 50
    store = begin_store(tmp_path, [300] * n)
    racers = [Forked(RACE, tmp_path, me) for me in (0, 1)]
    won = [finish(racer).split() for racer in racers]
    for unit in range(n):
        assert sorted((won[0][unit], won[1][unit])) == ["0", "1"]
        winner = won[1][unit] == "1"
        assert read_unit(tmp_path, unit)["slot"][0].as_py() == unit + n * winner
        assert len(slot_files(store, unit + n * winner)) == 4
        assert slot_files(store, unit + n * (not winner)) == []
    resize(tmp_path, store.layout, 2 * n)
    assert verify_store(tmp_path).ok
    reader = open_store(tmp_path)
    for row in range(n):
        np.testing.assert_array_equal(reader.read(row).numpy(), store.features(row))


KILL_COMMIT = (
    KILL
    + """
import json
from pathlib import Path
from tests.helpers.fake_store import begin_store
store = begin_store(Path(sys.argv[1]), [300] * 200)
for n in range(200):
    buffer, records = store.buffer(n)
    if not killed_at(n, lambda: store.commit(n)):
        break
print(n)
"""
)


@pytest.mark.slow
def test_a_commit_killed_at_any_step_is_complete_or_invisible(tmp_path: Path) -> None:
    """SIGKILL before each system call of the commit in turn; then each unit is committed again."""
    steps = int(finish(Forked(KILL_COMMIT, tmp_path)))
    assert 30 < steps < 199
    store = begin_store(tmp_path, [300] * 200)
    visible = committed_units(tmp_path)
    assert visible == list(range(visible[0], steps + 1))  # from some step on, and for good
    assert 0 < visible[0] < steps
    assert verify_store(tmp_path).ok
    for unit in range(0, steps + 1, 5):
        assert store.commit(unit, slot=200 + unit).won == (unit not in visible)
    resize(tmp_path, store.layout, Ledger.open(tmp_path, 200).n_slots)
    assert verify_store(tmp_path).ok
    reader = open_store(tmp_path)
    for i, name in enumerate(reader.ids):
        row = int(name.removeprefix("utterance-"))
        np.testing.assert_array_equal(reader.read(i).numpy(), store.features(row))


FILL = """
import json, shutil, sys
from pathlib import Path
from tests.helpers.fake_store import begin_store
from pipeline.errors import NoSpaceError
from pipeline.store.index import committed_units, compact
from pipeline.store.format.layout import Layout
from pipeline.store.coordination.lease import Lease
from pipeline.store.read.opening import open_store
from pipeline.store.maintain.verify import verify_store
from pipeline.store.documents import resize
root = Path(sys.argv[1]) / "store"
store = begin_store(root, [500] * 40)
filler = Path(sys.argv[1]) / "filler"
def no_space(act):
    try:
        act()
    except NoSpaceError as error:
        return str(error)
    raise SystemExit("there was space")
done, message = [], ""
for unit in range(40):
    try:
        store.commit(unit, store.claim(unit))
        done.append(unit)
    except NoSpaceError as error:
        message = str(error)
        break
keys = (*store.layout.shard_keys(unit), store.layout.pooled_key(unit))
left = [key for key in keys if store.path(key).exists()]
same = committed_units(root) == done and verify_store(root).ok
with filler.open("wb", buffering=0) as file:
    try:
        while file.write(bytes(512)):
            pass
    except OSError:
        pass
def lease():
    with Lease(root, "run"):
        pass
messages = [no_space(act) for act in (lease, lambda: store.claim(30), lambda: compact(root))]
filler.unlink()
(Path(sys.argv[1]) / "room").unlink()
slot = store.claim(unit)
resize(root, store.layout, slot + 1)
won = store.commit(unit, slot).won
compact(root)
lease()
print(json.dumps({
    "done": len(done), "message": message, "left": left, "same": same, "messages": messages,
    "won": won, "slot": slot, "sound": verify_store(root).ok, "readable": len(open_store(root)),
    "partials": [str(p) for p in root.rglob("*.partial")],
}))
"""


def namespace() -> list[str] | None:
    """Return a command that mounts a 400 kB file system at $1, where that is permitted."""
    script = (
        'mount -t tmpfs -o size=400k none "$0" && head -c 90000 /dev/zero > "$0/room" && exec "$@"'
    )
    for flags in (["-m"], ["-Urm"]):
        wrapper = ["unshare", *flags, "sh", "-c", script]
        try:
            tried = subprocess.run([*wrapper, "/mnt", "true"], capture_output=True, timeout=20)
        except OSError:
            return None
        if tried.returncode == 0:
            return wrapper
    return None


@pytest.mark.slow
def test_a_full_disk_is_reported_and_leaves_nothing_visible(tmp_path: Path) -> None:
    """A real small file system: NoSpaceError, the slot is removed; with room, commits succeed."""
    wrapper = namespace()
    if wrapper is None:
        pytest.skip("mounting a small file system is not permitted here")
    command = [*wrapper, str(tmp_path), sys.executable, "-c", FILL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 2 < found["done"] < 39
    assert found["message"].startswith(f"unit {found['done']} (")
    assert "no space left" in found["message"]
    assert "make room and run the same command again" in found["message"]
    assert found["left"] == []
    assert found["same"]
    for message, name in zip(
        found["messages"], ("/store: make room", "slot-30.json", "index.parquet"), strict=True
    ):
        assert name in message
    assert found["won"]
    assert found["slot"] == 40
    assert found["sound"]
    assert found["readable"] == found["done"] + 1
    assert found["partials"] == []


LIMITED = """
import resource, sys
from pathlib import Path
from tests.helpers.fake_store import begin_store
from pipeline.errors import NoSpaceError, StoreError
from pipeline.store.index import committed_units
root = Path(sys.argv[1])
store = begin_store(root, [300, 300])
store.commit(0)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
try:
    store.commit(1)
except NoSpaceError:
    raise SystemExit("a file that is too large is not a full disk")
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
keys = (*store.layout.shard_keys(1), store.layout.pooled_key(1))
assert committed_units(root) == [0]
assert not any(store.path(key).exists() for key in keys)
assert not list(root.rglob("*.partial"))
assert store.commit(1).won
"""


@pytest.mark.parametrize("limit", [1000, 4200])
def test_a_write_that_fails_in_the_middle_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """The shard (1,000 bytes) or the unit's index (4,200) exceeds a limit, which is then lifted."""
    assert "unit 1 (" in finish(Forked(LIMITED, tmp_path, limit))
    assert verify_store(tmp_path).ok


def test_unused_frames_are_nan(tmp_path: Path) -> None:
    """Also if the unit before had more frames."""
    store = begin_store(tmp_path, [500, 100])
    full, _ = store.buffer(0)
    full.start(100)
    assert np.isnan(full.frames[:, 100:]).all()
    assert not np.isnan(full.frames[:, :100]).any()
    assert np.isnan(full.pooled).all()
    full.blank(10, 20)
    assert np.isnan(full.frames[:, 10:20]).all()
    assert not np.isnan(full.frames[:, :10]).any()


@given(
    st.integers(1, 3),
    st.integers(1, 700),
    st.sampled_from([1, 2, 3, 8, 32]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 3000.0]),
)
def test_pooling_a_layer_alone_gives_the_same_bits(
    n_layers: int, n_frames: int, dim: int, seed: int, scale: float
) -> None:
    """The writer pools all layers at once, the verifier one at a time and from other memory."""
    random = np.random.default_rng(seed)
    buffer = UnitBuffer(Layout(tuple(range(n_layers)), dim, 1024, 1))
    values = scale * random.standard_normal((n_layers, n_frames, dim))
    buffer.frames[:, 9 : 9 + n_frames] = values
    checksums = buffer.seal(0, 9, 9 + n_frames)
    for layer in range(n_layers):
        alone = np.ascontiguousarray(buffer.frames[layer, 9 : 9 + n_frames])
        assert np.array_equal(
            pool(FLOAT16, alone[None], NO_SCALES)[0, 0], buffer.pooled[0, 0, layer]
        )
        assert crc32c(alone) == checksums[layer]


def slot_writer(store: FakeStore, unit: int, slot: int) -> tuple[SlotWriter, pa.Table]:
    """Return a writer of a unit, and the unit's index."""
    buffer, records = store.buffer(unit)
    return SlotWriter(store.root, buffer, unit, slot), store.index(unit, slot, records)


def test_frames_may_come_in_any_order(tmp_path: Path) -> None:
    """A unit that is written in parts has the bytes of one that is written at once."""
    for name in ("at once", "in parts"):
        store = begin_store(tmp_path / name, [300])
        if name == "at once":
            store.commit(0)
            continue
        writer, index = slot_writer(store, 0, 0)
        for start, stop in ((200, 300), (300, 512), (0, 10), (10, 10), (10, 200)):
            writer.write(start, stop)
        writer.complete()
        writer._buffer.frames.fill(0)  # it may be used again
        writer._buffer.pooled.fill(0)
        assert committed_units(store.root) == []
        assert writer.commit(index).won
    keys = [index_key(0), *slot_files(store, 0)]
    assert len(keys) == 5
    for key in keys:
        assert len({(tmp_path / n / key).read_bytes() for n in ("at once", "in parts")}) == 1


def test_several_threads_may_write_a_unit(tmp_path: Path) -> None:
    """Parts of frames and of layers, in any thread: the bytes of a unit that one thread wrote."""
    for name, n_threads in (("one", 1), ("several", 4)):
        store = begin_store(tmp_path / name, [300])
        buffer, records = store.buffer(0)
        with ThreadPoolExecutor(n_threads) as threads:
            writer = SlotWriter(store.root, buffer, 0, 0, run=threads.map)
            for start in range(0, 512, 8):
                for axis in range(store.layout.n_layers):
                    threads.submit(writer.write, start, start + 8, slice(axis, axis + 1))
        writer.complete()
        with ThreadPoolExecutor(n_threads) as threads:
            writer._run = threads.map
            assert writer.commit(store.index(0, 0, records)).won
    for key in [index_key(0), *slot_files(store, 0)]:
        assert len({(tmp_path / name / key).read_bytes() for name in ("one", "several")}) == 1


def test_a_unit_may_keep_its_statistics_only(tmp_path: Path) -> None:
    """No shard is written; the pooled chunk is that of a complete unit, with its checksums."""
    chunks = {}
    for keep in (KEPT, ("pooled",)):
        store = begin_store(tmp_path / "-".join(keep), [300])
        store = replace(store, layout=replace(store.layout, keep=keep))
        buffer, records = store.buffer(0)
        writer = SlotWriter(store.root, buffer, 0, 0)
        writer.write(0, 512)
        writer.complete()
        assert writer.commit(store.index(0, 0, records)).n_bytes == writer.n_bytes
        chunks[keep] = store.path(store.layout.pooled_key(0)).read_bytes()
    assert len(set(chunks.values())) == 1
    assert slot_files(store, 0) == [store.layout.pooled_key(0)]
    assert len(chunks[keep]) == writer.n_bytes
    rows = buffer.pooled[0, 0]
    assert records[0].crc32c == tuple(crc32c(row.tobytes()) for row in rows)


def test_a_failing_disk_is_reported_with_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that fails: nothing of the unit is visible or left, and a later attempt commits."""
    store = begin_store(tmp_path, [300])
    fsync, calls = os.fsync, []

    def fails_third(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_third)
    with pytest.raises(StoreError, match=r"unit 0 \(.* is not committed: .*Input/output error"):
        store.commit(0)
    assert committed_units(tmp_path) == slot_files(store, 0) == partials(tmp_path) == []
    assert store.commit(0, slot=0).won
    assert verify_store(tmp_path).ok


def test_leaving_the_block_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    """Half-written shards are removed and were never visible."""
    store = begin_store(tmp_path, [300])
    writer, _ = slot_writer(store, 0, 0)
    with writer:
        writer.write(0, 300)
        assert len(partials(tmp_path)) == 3
        assert slot_files(store, 0) == []
    assert partials(tmp_path) == []


def test_a_slot_whose_data_were_removed_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the unit was committed elsewhere, this slot cleaned up, and that commit revoked."""
    store = begin_store(tmp_path, [300])
    shard, pooled = store.layout.shard_key(1, 0), store.layout.pooled_key(0)

    def remove_a_shard(root: Path) -> None:
        if store.path(pooled).exists():  # all files have their names
            store.path(shard).unlink()

    monkeypatch.setattr(slot_module, "check_exists", remove_a_shard)
    with pytest.raises(StoreError, match="removed while the attempt was still writing"):
        store.commit(0)
    assert not store.path(index_key(0)).exists()
    assert slot_files(store, 0) == []


@pytest.mark.parametrize("when", ["before it is written", "before it is committed"])
def test_a_store_that_vanishes_is_not_recreated(tmp_path: Path, when: str) -> None:
    """The commit reports it, and nothing is created at its path."""
    store = begin_store(tmp_path / "s", [300])
    writer, index = slot_writer(store, 0, 0)
    if when == "before it is written":
        store.root.rename(tmp_path / "elsewhere")
    writer.write(0, 512)
    writer.complete()
    if when == "before it is committed":
        store.root.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"unit 0 .* has vanished"):
        writer.commit(index)
    assert not store.root.exists()


def test_a_missing_store_is_reported(tmp_path: Path) -> None:
    """No folder, an empty folder, a file."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path, tmp_path / "file"):
        with pytest.raises(StoreNotFoundError, match="no store at"):
            read_attributes(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '"x"', '{"attributes": null}', '{"attributes": [1]}', "\xff"]
)
def test_unreadable_attributes_are_reported(store: FakeStore, text: str) -> None:
    """Without the group's zarr.json nothing is known about a store."""
    (store.root / GROUP / "zarr.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedError, match="restore it from a copy"):
        read_attributes(store.root)


def test_another_format_version_is_refused(store: FakeStore) -> None:
    """The message has both versions."""
    path = store.root / GROUP / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["format_version"] = 4
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="format version 4; this strata reads 1, 2 and 3"):
        read_attributes(store.root)


@pytest.mark.parametrize("key", ["layers", "feature_dim", "frames_per_unit", "utterances_per_slot"])
def test_attributes_without_a_layout_are_reported(store: FakeStore, key: str) -> None:
    """A missing key, or an invalid number."""
    good = attributes(store.layout)
    assert layout_of(good) == store.layout
    for bad in ({k: v for k, v in good.items() if k != key}, {**good, key: 0}, {**good, key: []}):
        with pytest.raises(DamagedError, match="attributes"):
            layout_of(bad)


def test_a_plan_of_another_shape_is_refused(store: FakeStore) -> None:
    """A plan that was copied from another store does not match the arrays."""
    layout = store.layout
    other = Layout(layout.layers, layout.dim, 2 * layout.frames_per_unit, 3)
    with pytest.raises(IdentityError, match="frames_per_unit=1024"):
        check_format_shape(attributes(layout), other, store.root)


def test_resizing_keeps_data_and_attributes(store: FakeStore) -> None:
    """More slots, the same values and attributes."""
    before = {path: path.read_bytes() for path in store.root.rglob("c/**/*") if path.is_file()}
    named = read_attributes(store.root)
    resize(store.root, store.layout, 40)
    assert {path: path.read_bytes() for path in before} == before
    assert read_attributes(store.root) == named
    for key, axis in ((FRAMES, 1), (POOLED, 0)):
        shape = json.loads(store.path(f"{key}/zarr.json").read_text())["shape"]
        assert shape[axis] == 40 * (store.layout.frames_per_unit if key == FRAMES else 1)


def test_a_store_can_be_moved(store: FakeStore, tmp_path: Path) -> None:
    """It does not contain its own path."""
    moved = tmp_path / "split=train" / "a b#c"
    moved.parent.mkdir()
    shutil.move(store.root, moved)
    assert verify_store(moved).ok
    reader = open_store(moved)
    assert reader.metadata.column_names == ["id", "speaker", "digit"]
    np.testing.assert_array_equal(reader.read("utterance-7").numpy(), store.features(7))


def test_the_group_document_is_written_last(tmp_path: Path) -> None:
    """So a store that opens has its arrays."""
    layout = Layout((1,), 4, 256, 1)
    (tmp_path / FRAMES).mkdir(parents=True)
    (tmp_path / POOLED).write_text("in the way")
    with pytest.raises(StoreError):
        write_group(tmp_path, layout, 1, attributes(layout))
    with pytest.raises(StoreNotFoundError):
        read_attributes(tmp_path)


def test_equal_stores_are_byte_identical(tmp_path: Path) -> None:
    """Shards, pooled chunks and unit indexes depend on the features and records alone."""
    for name in ("a", "b"):
        store = begin_store(tmp_path / name, [300, 200, 400])
        for unit in (1, 0) if name == "a" else (0, 1):
            store.commit(unit)
    keys = [index_key(unit) for unit in (0, 1)]
    keys += [key for unit in (0, 1) for key in slot_files(store, unit)]
    assert len(keys) == 10
    for key in keys:
        assert (tmp_path / "a" / key).read_bytes() == (tmp_path / "b" / key).read_bytes()

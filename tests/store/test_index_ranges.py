"""Range files: the cache of the index on storage where large objects are not replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.store import index_ranges
from pipeline.store.backend.local import LocalBackend
from pipeline.store.documents import resize
from pipeline.store.format.layout import (
    INDEX_CACHE,
    INDEX_DIR,
    INDEX_RANGES,
    index_key,
    labels_key,
)
from pipeline.store.index import (
    cached_units,
    committed_units,
    compact,
    drop_cache,
    is_compact,
    lost_units,
    read_index,
    read_unit,
    refresh_cache,
)
from pipeline.store.index_ranges import UNITS_PER_RANGE, Range, ranges_among
from pipeline.store.labels import committed_labels, write_labels
from pipeline.store.maintain.verify import verify_store
from pipeline.store.read.opening import open_store
from tests.helpers.fake_store import FakeStore, make_store


class Ranged(LocalBackend):
    """A folder that is treated as object stores are; it notes what is read and written."""

    replaces_cheaply = False

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []
        self.puts: list[str] = []

    def read(self, key: str) -> bytes:
        self.reads.append(key)
        return super().read(key)

    def put(self, key, parts) -> None:
        self.puts.append(key)
        super().put(key, parts)

    def objects(self) -> list[str]:
        """Keys of the objects of ranges, sorted."""
        return sorted(f"{INDEX_RANGES}/{name}" for name in self.children(INDEX_RANGES))

    def rows(self) -> list[str]:
        """Keys of those with the rows."""
        return [key for key in self.objects() if not key.endswith(".crc32c.parquet")]


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five units of the store are in three ranges: 0-1, 2-3 and 4."""
    monkeypatch.setattr(index_ranges, "UNITS_PER_RANGE", 2)


@pytest.fixture
def backend(store: FakeStore) -> Ranged:
    """The store, with its ranges."""
    found = Ranged(store.root)
    compact(found)
    found.reads.clear(), found.puts.clear()
    return found


def truth_of(backend: Ranged) -> pa.Table:
    """What the unit files say."""
    tables = [read_unit(backend, unit) for unit in committed_units(backend)]
    backend.reads.clear()
    return pa.concat_tables(tables, promote_options="default")


def test_the_ranges_are_used(backend: Ranged) -> None:
    """No unit file is read; `index.parquet` is not written."""
    truth = truth_of(backend)
    assert [found[:2] for found in names_of(backend)] == [(0, 1), (2, 3), (4, 4)]
    assert is_compact(backend)
    assert read_index(backend).equals(truth)
    assert not [key for key in backend.reads if key.startswith(f"{INDEX_DIR}/")]
    assert not backend.exists(INDEX_CACHE)
    assert cached_units(backend) == set(range(5))


def names_of(backend: Ranged) -> list[tuple[int, int, int]]:
    """First unit, last unit and number of units, as the names of the ranges say."""
    return [(item.first, item.last, item.n_units) for item in ranges_among(backend.objects())]


def test_opening_reads_no_checksums(backend: Ranged) -> None:
    """These are five sixths of the bytes. Every other column is in the objects that are read."""
    open_store(backend)
    assert [key for key in backend.reads if key.startswith(INDEX_RANGES)] == backend.rows()


def test_some_columns_are_read_as_from_the_unit_files(backend: Ranged) -> None:
    """In the order in which they are asked for, with and without the checksums."""
    truth = truth_of(backend)
    for names in (["unit", "crc32c"], ["crc32c", "unit", "digit"], ["id", "unit"], ["unit"]):
        assert read_index(backend, columns=names).equals(truth.select(names)), names
    rest = read_index(backend, without=["crc32c", "flags"])
    assert rest.equals(truth.drop_columns(["crc32c", "flags"]))


def test_what_is_new_changes_one_range(store: FakeStore, tmp_path: Path) -> None:
    """The others stay as they are; the old one goes when the new one is there."""
    backend = Ranged(store.root)
    kept = backend.read(index_key(3))
    backend.delete(index_key(3))
    compact(backend)
    before = backend.objects()
    assert names_of(backend) == [(0, 1, 2), (2, 2, 1), (4, 4, 1)]
    assert backend.put_if_absent(index_key(3), [kept])
    assert not is_compact(backend)
    backend.reads.clear(), backend.puts.clear()
    assert read_index(backend).equals(truth_of(backend))
    refresh_cache(backend)
    assert names_of(backend) == [(0, 1, 2), (2, 3, 2), (4, 4, 1)]
    changed = set(backend.objects()) - set(before)
    assert set(backend.puts) == changed
    assert len(changed) == 2
    assert len(backend.objects()) == len(before)
    assert [key for key in backend.reads if key.startswith(INDEX_DIR + "/")] == [index_key(3)]
    assert is_compact(backend)


def tear(path: Path) -> None:
    """Cut the object short."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip a bit."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 4
    path.write_bytes(raw)


def remove(path: Path) -> None:
    """Delete the object."""
    path.unlink()


def swap(path: Path) -> None:
    """Replace the object by that of another range."""
    kind = ".crc32c." in path.name
    others = [item for item in sorted(path.parent.iterdir()) if (".crc32c." in item.name) == kind]
    shutil.copyfile(next(item for item in others if item != path), path)


@pytest.mark.parametrize("change", [tear, flip, remove, swap])
@pytest.mark.parametrize("which", [0, 1], ids=["rows", "checksums"])
def test_ranges_are_only_a_cache(backend: Ranged, change: Callable, which: int) -> None:
    """The same rows are read, whatever state one of them is in; the next compaction repairs it."""
    truth = truth_of(backend)
    change(Path(backend.locate(ranges_among(backend.objects())[1].keys[which])))
    assert read_index(backend).equals(truth)
    assert read_index(backend, columns=["unit", "crc32c"]).equals(truth.select(["unit", "crc32c"]))
    compact(backend)
    assert is_compact(backend)
    assert read_index(backend).equals(truth)
    assert len(backend.objects()) == 6


def test_verify_names_damaged_and_replaced_ranges(backend: Ranged, tmp_path: Path) -> None:
    """As garbage that a repair removes; sound ones are not named."""
    assert not verify_store(backend).orphans
    first, second, _ = ranges_among(backend.objects())
    flip(Path(backend.locate(second.keys[1])))
    older = f"{INDEX_RANGES}/units-0-0-1-{'0' * 16}.parquet"
    shutil.copyfile(backend.locate(first.keys[0]), backend.locate(older))
    found = {item.path: item for item in verify_store(backend).orphans}
    assert found.keys() == {*second.keys, older}
    assert "damaged" in found[second.keys[0]].what
    assert "replaced" in found[older].what
    assert all(item.is_garbage for item in found.values())


def test_a_refresh_reads_no_index_where_nothing_is_new(store: FakeStore, backend: Ranged) -> None:
    """It lists the units. A selection compares with when it was made, not with its store."""
    kept = backend.read(index_key(4))
    backend.delete(index_key(4))
    opened = open_store(backend)
    selected = opened.select("n_frames > 1")
    backend.reads.clear()
    opened.refresh(), selected.refresh()
    assert [key for key in backend.reads if INDEX_DIR in key] == []
    assert backend.put_if_absent(index_key(4), [kept])
    opened.refresh()
    assert len(opened) == 10
    assert len(selected) == 7
    selected.refresh()
    assert len(selected) == 9
    backend.delete(index_key(0))
    opened.refresh()
    assert len(opened) == 7


def test_a_refresh_shows_new_labels(store: FakeStore, backend: Ranged) -> None:
    """Of a new generation; and of one that was rewritten, as after a drop."""
    opened = open_store(backend)
    first = committed_labels(backend)
    write_labels(backend, first)
    write_labels(backend, replace(first, table=first.table.slice(0, 3)))
    opened.refresh()
    assert opened.ids == first.table["id"][:3].to_pylist()
    backend.put(labels_key(1), [backend.read(labels_key(2))])
    generation = open_store(backend, labels=1)
    backend.put(labels_key(1), [backend.read(labels_key(0))])
    generation.refresh()
    assert len(generation) == 10
    opened.refresh()
    assert len(opened) == 3


def test_ranges_of_another_store_are_not_used(backend: Ranged, tmp_path: Path) -> None:
    """They have the same units, but other labels: checksums of the unit files tell them apart."""
    other = Ranged(shutil.copytree(backend.local_path(""), tmp_path / "other"))
    for unit in committed_units(other):
        rows = read_unit(other, unit)
        digits = pa.array([9 - digit for digit in rows["digit"].to_pylist()], pa.int64())
        rows = rows.set_column(rows.schema.get_field_index("digit"), "digit", digits)
        other.put(index_key(unit), [index_ranges.cache_bytes(rows, {})])
    compact(other)
    shutil.rmtree(backend.locate(INDEX_RANGES))
    shutil.copytree(other.locate(INDEX_RANGES), backend.locate(INDEX_RANGES))
    truth = truth_of(backend)
    assert not truth["digit"].equals(truth_of(other)["digit"])
    assert read_index(backend).equals(truth)
    assert not is_compact(backend)
    assert "other files of 2 units" in verify_store(backend).orphans[0].what
    refresh_cache(backend)
    assert is_compact(backend)
    assert len(backend.objects()) == 6


def test_a_copied_store_compares_checksums_until_it_is_compacted(
    backend: Ranged, tmp_path: Path
) -> None:
    """Then its stamps are known, and no unit file is read again."""
    copy = Ranged(shutil.copytree(backend.local_path(""), tmp_path / "copy"))
    truth = truth_of(copy)
    assert read_index(copy).equals(truth)
    compared = [key for key in copy.reads if key.startswith(INDEX_DIR + "/")]
    assert sorted(compared) == [index_key(unit) for unit in range(5)]
    assert not is_compact(copy)
    refresh_cache(copy)
    assert is_compact(copy)
    copy.reads.clear()
    assert read_index(copy).equals(truth)
    assert not [key for key in copy.reads if key.startswith(INDEX_DIR + "/")]
    assert len(copy.objects()) == 6


def test_a_revoked_unit_is_not_read_from_a_range(store: FakeStore, backend: Ranged) -> None:
    """Even if the range was not removed before, and the unit is committed anew in another slot."""
    backend.delete(index_key(2))
    truth = truth_of(backend)
    assert set(truth["unit"].to_pylist()) == {0, 1, 3, 4}
    assert read_index(backend).equals(truth)
    assert lost_units(backend) == [2]
    slot = store.claim(2)
    resize(backend, store.layout, slot + 1)
    assert store.commit(2, slot).won
    truth = truth_of(backend)
    rows = read_index(backend)
    assert rows.equals(truth)
    assert set(rows.filter(pc.equal(rows["unit"], 2))["slot"].to_pylist()) == {slot}
    assert lost_units(backend) == []


def test_a_range_that_is_replaced_while_it_is_read_is_listed_again(
    backend: Ranged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that comes while a driver compacts sees the same rows, and reads no unit files."""
    truth = truth_of(backend)
    read, pending = Ranged.read, [backend.rows()[1]]

    def replaced(self: Ranged, key: str) -> bytes:
        if pending and key == pending[0]:
            moved = pending.pop()
            new = moved.replace(moved[-24:-8], "f" * 16)
            for suffix in ("", ".crc32c"):
                old = moved.removesuffix(".parquet") + suffix + ".parquet"
                target = new.removesuffix(".parquet") + suffix + ".parquet"
                Path(self.locate(old)).rename(self.locate(target))
        return read(self, key)

    monkeypatch.setattr(Ranged, "read", replaced)
    assert read_index(backend, without=["crc32c"]).equals(truth.drop_columns(["crc32c"]))
    assert not pending
    assert not [key for key in backend.reads if key.startswith(INDEX_DIR + "/")]


def test_compaction_gives_the_same_names_whatever_was_there(backend: Ranged) -> None:
    """The name is a function of the content."""
    first = backend.objects()
    compact(backend)
    assert backend.objects() == first
    drop_cache(backend)
    assert backend.objects() == []
    refresh_cache(backend)
    assert backend.objects() == first


def test_no_commits_have_no_ranges(tmp_path: Path) -> None:
    """An empty store is compact without them."""
    backend = Ranged(make_store(tmp_path / "store", [10]).root)
    for unit in committed_units(backend):
        backend.delete(index_key(unit))
    assert is_compact(backend)
    refresh_cache(backend)
    assert backend.objects() == []
    assert len(read_index(backend)) == 0


def test_each_storage_has_its_own_form(backend: Ranged, store: FakeStore) -> None:
    """A store that was downloaded has ranges that no reader uses; a repair may remove them."""
    local = LocalBackend(store.root)
    assert not is_compact(local)
    truth = truth_of(backend)
    assert read_index(local).equals(truth)
    named = {item.path: item for item in verify_store(local).orphans}
    assert set(named) == set(backend.objects())
    assert all(item.is_garbage and "not used" in item.what for item in named.values())
    compact(local)
    assert backend.objects() == []
    assert local.exists(INDEX_CACHE)
    assert [item.path for item in verify_store(backend).orphans] == [INDEX_CACHE]


def test_the_range_with_most_units_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several of the same thousand units; other names do not count."""
    monkeypatch.setattr(index_ranges, "UNITS_PER_RANGE", UNITS_PER_RANGE)
    names = [f"units-{what}-{'a' * 16}.parquet" for what in ("0-998-999", "0-999-1000", "1000-1-1")]
    names += [names[1].replace(".parquet", ".crc32c.parquet"), "units-x.parquet", "a"]
    found = ranges_among(f"{INDEX_RANGES}/{name}" for name in names)
    assert found == [Range(names[1], 0, 999, 1000), Range(names[2], 1000, 1, 1)]

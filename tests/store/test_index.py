"""The committed rows, and their compaction, which is only a cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import files
from pipeline.errors import DamagedError
from pipeline.store import index
from pipeline.store.backend.local import LocalBackend
from pipeline.store.documents import resize
from pipeline.store.format.layout import INDEX_CACHE, INDEX_DIR, index_key
from pipeline.store.format.records import FIELDS, OK, Record, records_table
from pipeline.store.index import (
    committed_units,
    compact,
    drop_cache,
    is_compact,
    lost_units,
    read_index,
    read_unit,
    refresh_cache,
)
from pipeline.store.maintain.verify import verify_store
from pipeline.store.serialization import parquet_bytes, parse_parquet
from tests.helpers.fake_store import FakeStore, begin_store, make_store


def test_rows_are_sorted_by_unit_and_position(store: FakeStore) -> None:
    """All rows of all units, with the carried columns and their types."""
    table = read_index(store.root)
    assert table["row"].to_pylist() == list(range(11))
    assert table["id"].to_pylist() == [f"utterance-{row}" for row in range(11)]
    assert table["unit"].to_pylist() == store.plan.table["unit"].to_pylist()
    assert table["status"].to_pylist() == [OK] * 3 + ["quarantined"] + [OK] * 7
    assert table["digit"].to_pylist() == [row % 10 for row in range(11)]
    assert table.schema.field("digit").type == pa.int64()


def test_a_store_without_commits_has_an_empty_table(tmp_path: Path) -> None:
    """With all fixed columns, so that readers need no special case."""
    begin_store(tmp_path, [10])
    assert committed_units(tmp_path) == []
    assert read_index(tmp_path).schema.names == [item.name for item in FIELDS]
    assert len(read_index(tmp_path)) == 0
    assert committed_units(tmp_path / "nowhere") == []


def test_other_names_in_the_index_do_not_count(store: FakeStore) -> None:
    """Half-written files and copies made by users are no commits."""
    before = committed_units(store.root)
    for name in ("unit-9.parquet.abc.partial", "unit-9.parquet.bak", "unit-x.parquet", "a.parquet"):
        (store.root / "index" / name).write_bytes(b"?")
    assert committed_units(store.root) == before
    assert len(read_index(store.root)) == 11


def delete(path: Path) -> None:
    """Remove the cache."""
    path.unlink()


def tear(path: Path) -> None:
    """Truncate the cache."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Empty the cache."""
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Flip a bit that renames a column."""
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"speaker")] ^= 1
    path.write_bytes(raw)


def shorten(path: Path) -> None:
    """Write a cache without the last two units."""
    table = parse_parquet(path.read_bytes(), str(path))
    files.write_atomic(path, [parquet_bytes(table.slice(0, 3))])


def lengthen(path: Path) -> None:
    """Write a cache with a unit whose commit was revoked."""
    table = parse_parquet(path.read_bytes(), str(path))
    gone = table.set_column(2, FIELDS[2], pa.array([77] * len(table), pa.int32()))
    files.write_atomic(path, [parquet_bytes(pa.concat_tables([table, gone]))])


def foreign(path: Path) -> None:
    """Write another table under the name of the cache."""
    files.write_atomic(path, [parquet_bytes(pa.table({"unit": pa.array([0], pa.int32())}))])


def unsealed(path: Path) -> None:
    """Rewrite the cache with another program, and with other values."""
    table = parse_parquet(path.read_bytes(), str(path))
    pq.write_table(table.set_column(0, FIELDS[0], pa.array(["?"] * len(table))), path)


@pytest.mark.parametrize(
    "change", [delete, tear, empty, flip, shorten, lengthen, foreign, unsealed]
)
def test_the_compaction_is_only_a_cache(store: FakeStore, change: Callable) -> None:
    """The same rows are read, whatever state it is in."""
    truth = read_index(store.root)
    compact(store.root)
    assert is_compact(store.root)
    assert read_index(store.root).equals(truth)
    change(store.root / INDEX_CACHE)
    assert read_index(store.root).equals(truth)
    compact(store.root)
    assert is_compact(store.root)
    assert read_index(store.root).equals(truth)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The unit files that are read, in order."""
    names: list[str] = []
    read = LocalBackend.read

    def noted(self: LocalBackend, key: str) -> bytes:
        names.extend([key] * key.startswith(f"{INDEX_DIR}/"))
        return read(self, key)

    monkeypatch.setattr(LocalBackend, "read", noted)
    return names


def test_the_compaction_is_used(store: FakeStore, read_files: list[str]) -> None:
    """Opening a large store reads one file and no unit files."""
    compact(store.root)
    truth = read_index(store.root)
    read_files.clear()
    assert read_index(store.root).equals(truth)
    assert is_compact(store.root)
    assert read_files == []


def test_a_copied_store_has_a_sound_cache(
    store: FakeStore, tmp_path: Path, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksums of its unit files are compared, but none of them is decoded."""
    compact(store.root)
    truth = read_index(store.root)
    copy = shutil.copytree(store.root, tmp_path / "copy")
    read_files.clear()
    monkeypatch.setattr(index, "_read_unit", None)
    assert read_index(copy).equals(truth)
    assert is_compact(copy)
    assert sorted(read_files) == sorted(2 * [index_key(unit) for unit in range(5)])


def of_another_store(store: FakeStore, other: Path) -> None:
    """The cache of a store with the same utterances, units and sizes, but other labels."""
    table = read_index(store.root)
    shutil.copytree(store.root, other)
    for unit in committed_units(other):
        rows = table.filter(pc.equal(table["unit"], unit))
        digits = pa.array([9 - digit for digit in rows["digit"].to_pylist()], pa.int64())
        rows = rows.set_column(rows.schema.get_field_index("digit"), "digit", digits)
        files.write_atomic(other / index_key(unit), [parquet_bytes(rows)])
        files.write_atomic(
            store.root / index_key(unit), [(store.root / index_key(unit)).read_bytes()]
        )
    compact(other)
    shutil.copy2(other / INDEX_CACHE, store.root / INDEX_CACHE)


def of_before_a_repair(store: FakeStore, other: Path) -> None:
    """The cache of before a unit was revoked and committed again, in another slot."""
    compact(store.root)
    old = (store.root / INDEX_CACHE).read_bytes()
    (store.root / index_key(2)).unlink()
    slot = store.claim(2)
    resize(store.root, store.layout, slot + 1)
    assert store.commit(2, slot).won
    (store.root / INDEX_CACHE).write_bytes(old)


def of_a_later_date(store: FakeStore, other: Path) -> None:
    """The same, and every file has the times that it had, but the cache is the newest."""
    times = {path: path.stat() for path in (store.root / "index").iterdir()}
    of_before_a_repair(store, other)
    for path, at in times.items():
        os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


def of_an_earlier_version(store: FakeStore, other: Path) -> None:
    """A cache that does not say which files it is from, and here has other labels."""
    of_another_store(store, other)
    table = read_index(other)
    files.write_atomic(store.root / INDEX_CACHE, [parquet_bytes(table)])


def of_one_unit_of_another_store(store: FakeStore, other: Path) -> None:
    """A sound cache, but then the file of one unit is replaced by another of the same size."""
    of_another_store(store, other)
    compact(store.root)
    assert is_compact(store.root)
    shutil.copy2(other / index_key(3), store.root / index_key(3))


@pytest.mark.parametrize(
    "make",
    [
        of_another_store,
        of_before_a_repair,
        of_a_later_date,
        of_an_earlier_version,
        of_one_unit_of_another_store,
    ],
)
def test_a_foreign_cache_is_not_used(store: FakeStore, tmp_path: Path, make: Callable) -> None:
    """What is read is what the unit files say. `verify` names the cache; it is rewritten."""
    make(store, tmp_path / "other")
    truth = pa.concat_tables([read_unit(store.root, unit) for unit in committed_units(store.root)])
    cached = parse_parquet((store.root / INDEX_CACHE).read_bytes(), "cache")
    assert cached["unit"].equals(truth["unit"])
    assert not cached.replace_schema_metadata(None).equals(truth)
    assert read_index(store.root).equals(truth)
    assert not is_compact(store.root)
    [named] = [item for item in verify_store(store.root).orphans if item.path == INDEX_CACHE]
    assert "readers do without it" in named.what
    refresh_cache(store.root)
    assert is_compact(store.root)
    assert read_index(store.root).equals(truth)
    assert not [item for item in verify_store(store.root).orphans if item.path == INDEX_CACHE]


def test_a_cache_of_a_larger_store_is_no_damage(store: FakeStore, tmp_path: Path) -> None:
    """It lists units that this store never had; only the own cache is proof of a lost commit."""
    larger = make_store(tmp_path / "larger", [500] * 8)
    compact(larger.root)
    shutil.copy2(larger.root / INDEX_CACHE, store.root / INDEX_CACHE)
    assert lost_units(store.root) == []
    assert verify_store(store.root).ok
    compact(store.root)
    (store.root / index_key(1)).unlink()
    assert lost_units(store.root) == [1]
    assert verify_store(store.root).damaged_units == [1]


def test_is_compact_detects_missing_and_extra_units(store: FakeStore) -> None:
    """Only a cache of exactly the committed units is compact."""
    assert not is_compact(store.root)
    compact(store.root)
    (store.root / index_key(1)).rename(store.root / "aside")
    assert not is_compact(store.root)
    (store.root / "aside").rename(store.root / index_key(1))
    assert is_compact(store.root)
    drop_cache(store.root)
    drop_cache(store.root)
    assert not is_compact(store.root)


def test_compaction_gives_the_same_bytes_whatever_was_cached(store: FakeStore) -> None:
    """A resumed run ends with the index of an uninterrupted one."""
    compact(store.root)
    first = (store.root / INDEX_CACHE).read_bytes()
    shorten(store.root / INDEX_CACHE)
    compact(store.root)
    assert (store.root / INDEX_CACHE).read_bytes() == first


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "swapped", "foreign"])
def test_a_changed_unit_index_is_damaged(store: FakeStore, damage: str) -> None:
    """The message names the unit and the remedy."""
    path = store.root / index_key(1)
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        empty(path)
    elif damage == "torn":
        tear(path)
    elif damage == "swapped":
        path.write_bytes((store.root / index_key(2)).read_bytes())
    else:
        foreign(path)
    with pytest.raises(DamagedError, match=r"unit.1.*strata verify"):
        read_unit(store.root, 1)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.tuples(texts, texts | st.none(), st.lists(texts, max_size=3)), min_size=1),
    st.lists(st.floats(width=32) | st.none(), min_size=1, max_size=1),
)
def test_records_survive_their_file(tmp_path_factory, rows: list, extra: list) -> None:
    """Any ids, reasons, flags and carried columns are read back unchanged."""
    root = tmp_path_factory.mktemp("store")
    records = [
        Record(name, i, i, "quarantined", reason, flags=tuple(flags), crc32c=(0, 2**32 - 1))
        for i, (name, reason, flags) in enumerate(rows)
    ]
    metadata = pa.table({"a b": pa.array(extra * len(rows), pa.float32())})
    table = records_table(records, 5, 7, metadata)
    files.write_atomic(root / index_key(5), [parquet_bytes(table)])
    again = read_unit(root, 5)
    assert again.drop_columns(["a b"]).equals(table.drop_columns(["a b"]))
    assert str(again["a b"].to_pylist()) == str(table["a b"].to_pylist())

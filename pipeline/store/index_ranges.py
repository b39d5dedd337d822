"""Range files: the cache of the index where large objects should not be replaced often.

`index.parquet` of a store of 25,000 units is 60 MB, and would be uploaded again whenever units are
new. Range files never change. Each has the rows of the committed units among 1,000 consecutive
ones, and when more of them are committed, another file takes its place. Its name has the first and
last unit, the number of units and a checksum of the content.

Most of an index are the checksums of the features, which opening a store does not need. So a range
is two objects of the same rows: all other columns, and `crc32c`. The second one is written first
and deleted last.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.base import Backend
from pipeline.store.format.layout import INDEX_RANGES
from pipeline.store.format.records import FIELDS
from pipeline.store.index_cache import (
    IndexCache,
    Origin,
    cache_bytes,
    parse_cache,
    units_of,
)

UNITS_PER_RANGE = 1000
RANGE_NAME = re.compile(r"units-(\d+)-(\d+)-(\d+)-([0-9a-f]{16})(\.crc32c)?\.parquet")

_CHECKSUMS = "crc32c"
_KEYS = ("unit", "position")
_ROWS_FIELDS = tuple(item for item in FIELDS if item.name != _CHECKSUMS)
_SUMS_FIELDS = tuple(item for item in FIELDS if item.name in (*_KEYS, _CHECKSUMS))

Complete = Callable[[IndexCache | None, Mapping[int, str]], tuple[pa.Table, dict[int, Origin]]]
"""Returns the rows of all units with given stamps, of a cache and otherwise of their files."""


@dataclass(frozen=True)
class Range:
    """A range file, as its name describes it.

    Attributes:
        name: Name of the object with all columns but the checksums.
        first: Its first unit.
        last: Its last unit.
        n_units: Number of its units.
    """

    name: str
    first: int
    last: int
    n_units: int

    @property
    def block(self) -> int:
        """Number of the 1,000 units that it is of."""
        return self.first // UNITS_PER_RANGE

    @property
    def keys(self) -> tuple[str, str]:
        """Keys of its objects: the rows, and their checksums."""
        stem = self.name.removesuffix(".parquet")
        return f"{INDEX_RANGES}/{self.name}", f"{INDEX_RANGES}/{stem}.{_CHECKSUMS}.parquet"


def range_objects(backend: Backend) -> list[str]:
    """Return the keys of all objects of ranges."""
    return [f"{INDEX_RANGES}/{name}" for name in sorted(backend.children(INDEX_RANGES))]


def ranges_among(keys: Iterable[str]) -> list[Range]:
    """Return the ranges that readers use: the one with most units of each block, ascending."""
    best: dict[int, Range] = {}
    for key in sorted(keys):
        match = RANGE_NAME.fullmatch(key.rpartition("/")[2])
        if match is None or match[5]:
            continue
        found = Range(match[0], *(int(match[i]) for i in (1, 2, 3)))
        if found.block not in best or best[found.block].n_units < found.n_units:
            best[found.block] = found
    return [best[block] for block in sorted(best)]


def read_ranges(
    backend: Backend,
    ranges: Sequence[Range],
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
    may_be_lost: bool = False,
) -> IndexCache | None:
    """Read the rows of ranges; units of a damaged one have none.

    Args:
        backend: The store.
        ranges: What `ranges_among` returned.
        columns: Columns to read, `unit` among them; None reads all.
        without: Columns to omit.
        may_be_lost: Whether a range with a missing object counts as damaged.

    Returns:
        None if there are no rows.

    Raises:
        FileNotFoundError: A range has been replaced since it was listed.
    """
    reader = _read_whole if may_be_lost else _read_range
    read = partial(reader, backend, columns=columns, without=without)
    found = run_parallel(read, ranges, backend.parallel_reads)
    parts = [part for part in found if part is not None]
    if not parts:
        return None
    origins = {unit: origin for part in parts for unit, origin in part.origins.items()}
    tables = [part.table for part in parts]
    return IndexCache(pa.concat_tables(tables, promote_options="default"), origins)


def write_ranges(backend: Backend, stamps: Mapping[int, str], complete: Complete) -> None:
    """Bring the ranges up to date. Only blocks of which something has changed are written.

    Args:
        backend: The store.
        stamps: Stamps of its units, from `unit_stamps`.
        complete: Completes the rows of a block from the files of its units.
    """
    listed = range_objects(backend)
    known = {found.block: found for found in ranges_among(listed)}
    blocks: dict[int, dict[int, str]] = {}
    for unit, stamp in stamps.items():
        blocks.setdefault(unit // UNITS_PER_RANGE, {})[unit] = stamp
    kept: set[str] = set()
    for block, wanted in blocks.items():
        found = known.get(block)
        if found is None or not _is_current(backend, found, wanted, listed):
            cached = None if found is None else _read_whole(backend, found)
            found = _write_range(backend, *complete(cached, wanted))
        kept.update(found.keys)
    _delete(backend, [key for key in listed if key not in kept])


def drop_ranges(backend: Backend) -> None:
    """Remove all ranges, durably."""
    _delete(backend, range_objects(backend))


def are_current(backend: Backend, stamps: Mapping[int, str]) -> bool:
    """Return whether the ranges are of exactly the units with these stamps, and nothing else."""
    listed = range_objects(backend)
    ranges = ranges_among(listed)
    if sorted(key for found in ranges for key in found.keys) != listed:
        return False
    cached = read_ranges(backend, ranges, ["unit"], may_be_lost=True)
    return not stamps if cached is None else cached.has_stamps(stamps)


def range_problems(backend: Backend, stamps: Mapping[int, str]) -> dict[str, str]:
    """Return why readers do not use objects of ranges, or parts of them, by key."""
    listed = range_objects(backend)
    problems: dict[str, str] = {}
    used: set[str] = set()
    for found in ranges_among(listed):
        used.update(found.keys)
        cached = _read_whole(backend, found)
        if cached is None:
            problems.update(dict.fromkeys(set(found.keys) & set(listed), "damaged"))
            continue
        known = cached.origins.keys() & stamps.keys()
        foreign = len(known) - len(cached.current(backend, stamps))
        if foreign:
            reason = f"made from other files of {foreign} units"
            problems.update(dict.fromkeys(found.keys, reason))
    left = {key: "replaced by another" for key in listed if key not in used}
    return problems | left


def _read_range(
    backend: Backend,
    found: Range,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> IndexCache | None:
    """Read one range; return None if it is damaged.

    Raises:
        FileNotFoundError: It does not exist any more.
    """
    has_sums = _CHECKSUMS not in without if columns is None else _CHECKSUMS in columns
    wanted = None
    if columns is not None:
        added = _KEYS if has_sums else ()
        wanted = [name for name in dict.fromkeys([*columns, *added]) if name != _CHECKSUMS]
    rows_key, sums_key = found.keys
    rows = parse_cache(backend.read(rows_key), rows_key, wanted, without, _ROWS_FIELDS)
    if rows is None or not has_sums:
        return rows
    sums = parse_cache(backend.read(sums_key), sums_key, None, (), _SUMS_FIELDS)
    if sums is None or not sums.table.select(_KEYS).equals(rows.table.select(_KEYS)):
        return None
    names = [name for name in rows.table.column_names if columns is None or name in columns]
    at = len([name for name in names if name in {item.name for item in _ROWS_FIELDS}])
    field = next(item for item in FIELDS if item.name == _CHECKSUMS)
    table = rows.table.select(names).add_column(at, field, sums.table[_CHECKSUMS])
    return IndexCache(table, rows.origins)


def _read_whole(
    backend: Backend,
    found: Range,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> IndexCache | None:
    """Read one range; return None if it is damaged, or one of its objects is missing."""
    try:
        return _read_range(backend, found, columns, without)
    except FileNotFoundError:
        return None


def _is_current(
    backend: Backend, found: Range, stamps: Mapping[int, str], listed: Sequence[str]
) -> bool:
    if found.n_units != len(stamps) or not set(found.keys) <= set(listed):
        return False
    cached = _read_whole(backend, found, ["unit"])
    return cached is not None and cached.has_stamps(stamps)


def _write_range(backend: Backend, table: pa.Table, origins: Mapping[int, Origin]) -> Range:
    rows = cache_bytes(table.drop_columns([_CHECKSUMS]), origins)
    sums = cache_bytes(table.select([*_KEYS, _CHECKSUMS]), origins)
    units = units_of(table)
    digest = hashlib.blake2b(rows, digest_size=8)
    digest.update(sums)
    bounds = f"{min(units)}-{max(units)}-{len(units)}"
    name = f"units-{bounds}-{digest.hexdigest()}.parquet"
    found = Range(name, min(units), max(units), len(units))
    for key, content in zip(reversed(found.keys), (sums, rows), strict=True):
        backend.put(key, [content])
    return found


def _delete(backend: Backend, keys: Sequence[str]) -> None:
    """Delete objects of ranges, the rows before their checksums."""
    for key in sorted(keys, key=lambda key: key.endswith(f".{_CHECKSUMS}.parquet")):
        backend.delete(key)
    if keys:
        backend.sync(INDEX_RANGES)

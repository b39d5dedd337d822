"""The committed rows of a store: one Parquet file per unit, and a cache of them.

A unit is committed if and only if its file exists. The cache (`index_cache.py`) must be removed
before a commit is revoked. It is `index.parquet`, or range files where a large object should not be
replaced often (`Backend.replaces_cheaply`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DamagedError, UnreachableError
from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import INDEX_CACHE, INDEX_DIR, index_key
from pipeline.store.format.records import FIELDS, OK, QUARANTINED
from pipeline.store.index_cache import (
    UNIT_NAME,
    IndexCache,
    Origin,
    cache_bytes,
    has_fields,
    read_cache,
    unit_stamps,
    write_cache,
)
from pipeline.store.index_ranges import (
    are_current,
    drop_ranges,
    range_objects,
    range_problems,
    ranges_among,
    read_ranges,
    write_ranges,
)
from pipeline.store.serialization import parse_parquet, seal_of


def committed_units(store: Location) -> list[int]:
    """Return the numbers of the committed units, ascending."""
    names = open_backend(store).children(INDEX_DIR)
    return sorted(int(match[1]) for name in names if (match := UNIT_NAME.fullmatch(name)))


def read_unit(store: Location, unit: int) -> pa.Table:
    """Read the index of one committed unit.

    Raises:
        DamagedError: The file is missing, damaged, or of another unit.
    """
    return _read_unit(open_backend(store), unit)[0]


def read_units(store: Location, units: Sequence[int]) -> pa.Table:
    """Read the indices of committed units, at least one, without the cache.

    Raises:
        DamagedError: A file is missing, damaged, or of another unit.
    """
    tables = [read_unit(store, unit) for unit in units]
    return pa.concat_tables(tables, promote_options="default")


def read_index(
    store: Location, without: Sequence[str] = (), columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the rows of all committed units, by unit and position.

    Units that the cache lacks, or has from another file, are read from their files.

    Args:
        store: The store.
        without: Columns to omit.
        columns: Columns to read, `unit` among them; None reads all.

    Raises:
        DamagedError: A unit's index is unreadable.
    """
    return read_committed(store, without, columns)[0]


def read_committed(
    store: Location, without: Sequence[str] = (), columns: Sequence[str] | None = None
) -> tuple[pa.Table, str]:
    """Read rows as `read_index` does; return them, and the state of the index; see `index_state`.

    Raises:
        DamagedError: A unit's index is unreadable.
    """
    table, origins = _gather(open_backend(store), without, columns)
    return table, _state({unit: origin.stamp for unit, origin in origins.items()})


def index_state(store: Location, last: int = -1) -> str:
    """Return a text that is another one when other units are committed, or from other files.

    This lists the units and reads nothing.

    Args:
        store: The store.
        last: Highest unit that is probably committed; see `Backend.stamps`.
    """
    return _state(unit_stamps(open_backend(store), last))


def complete_utterances(table: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Select the pieces of complete utterances: those of which all pieces are committed.

    Args:
        table: Index rows with at least row, piece, n_pieces and status.

    Returns:
        The pieces, sorted by source row and piece; and the first piece of each utterance, then the
        number of pieces: [n_utterances + 1].
    """
    done = _is(table["status"], OK)
    pieces = table if pc.all(done).as_py() else table.filter(done)
    row = numbers(pieces["row"])
    if len(row) > 1 and not bool(np.all(row[1:] > row[:-1])):
        order = [("row", "ascending"), ("piece", "ascending")]
        pieces = pieces.take(pc.sort_indices(pieces, sort_keys=order))
        row = numbers(pieces["row"])
    if pc.max(pieces["n_pieces"]).as_py() not in (None, 1):
        found = np.bincount(np.unique(row, return_inverse=True)[1])
        complete = np.repeat(found, found) == numbers(pieces["n_pieces"])
        pieces, row = pieces.take(row_numbers(np.flatnonzero(complete))), row[complete]
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    return pieces, np.append(starts, len(row))


def still_quarantined(table: pa.Table) -> pa.Table:
    """Select the quarantined utterances, one row each, by source row.

    Utterances that were retried and are complete are not among them. Of an utterance that was
    quarantined repeatedly, the newest record is returned.

    Args:
        table: Index rows with at least row, unit, status and n_pieces.
    """
    lost = of_status(table, QUARANTINED)
    if not len(lost):
        return lost
    same = pc.is_in(table["row"], value_set=pc.unique(lost["row"]))
    done = of_status(table.filter(same), OK)
    rows, place = np.unique(numbers(done["row"]), return_inverse=True)
    expected = np.zeros(len(rows), np.int64)
    np.maximum.at(expected, place, numbers(done["n_pieces"]))
    complete = rows[np.bincount(place, minlength=len(rows)) >= expected]
    lost = lost.filter(pc.invert(pc.is_in(lost["row"], value_set=row_numbers(complete))))
    lost = lost.take(pc.sort_indices(lost, [("row", "ascending"), ("unit", "descending")]))
    newest = np.unique(numbers(lost["row"]), return_index=True)[1]
    return lost.take(row_numbers(newest))


def compact(store: Location) -> None:
    """Write the cache anew from the unit files."""
    backend = open_backend(store)
    drop_cache(backend)
    refresh_cache(backend)


def refresh_cache(store: Location) -> None:
    """Add newly committed units to the cache, and replace what is not of this store's files."""
    backend = open_backend(store)
    if backend.replaces_cheaply:
        write_cache(backend, *_gather(backend))
    else:
        write_ranges(
            backend,
            unit_stamps(backend),
            lambda cached, stamps: _complete(backend, cached, stamps),
        )


def cache_of_copy(store: Location, stamps: Mapping[int, str]) -> bytes:
    """Return `index.parquet` for a copy of a store whose unit files are equal.

    Args:
        store: The store that was copied.
        stamps: Stamps of the copy's unit files, from `unit_stamps`.
    """
    table, origins = _gather(open_backend(store))
    kept = {unit: origins[unit]._replace(stamp=stamp) for unit, stamp in stamps.items()}
    return bytes(cache_bytes(table, kept))


def cached_units(store: Location) -> set[int]:
    """Return the units that the cache lists."""
    cached, _ = _cached(open_backend(store), columns=["unit"])
    return set() if cached is None else set(cached.origins)


def is_compact(store: Location) -> bool:
    """Return whether the cache covers exactly the committed units, from their present files.

    Range files are not compact either if their stamps are those of other files with equal contents,
    which every reader would have to compare.
    """
    backend = open_backend(store)
    if not backend.replaces_cheaply:
        return are_current(backend, unit_stamps(backend))
    cached, stamps = _cached(backend, columns=["unit"])
    if cached is None:
        return False
    return stamps.keys() == cached.origins.keys() == cached.current(backend, stamps).keys()


def lost_units(store: Location) -> list[int]:
    """Return the units that the cache lists but that have no file, ascending.

    A cache none of whose units has its file here is of another store, and proves nothing.
    """
    backend = open_backend(store)
    cached, stamps = _cached(backend, columns=["unit"])
    if cached is None or (stamps and not cached.current(backend, stamps)):
        return []
    return sorted(cached.origins.keys() - stamps.keys())


def cache_problems(store: Location) -> dict[str, str]:
    """Return why readers do not use objects of the cache, or parts of them, by key."""
    backend = open_backend(store)
    if not backend.replaces_cheaply:
        unused = {INDEX_CACHE: "not used on this storage"} if backend.exists(INDEX_CACHE) else {}
        return range_problems(backend, unit_stamps(backend)) | unused
    problems = dict.fromkeys(range_objects(backend), "not used on this storage")
    if not backend.exists(INDEX_CACHE):
        return problems
    cached, stamps = _cached(backend, columns=["unit"])
    if cached is None:
        return problems | {INDEX_CACHE: "damaged, or of an earlier version"}
    foreign = (cached.origins.keys() & stamps.keys()) - cached.current(backend, stamps).keys()
    if foreign:
        problems[INDEX_CACHE] = f"made from other files of {len(foreign)} units"
    return problems


def drop_cache(store: Location) -> None:
    """Remove the cache in all its forms, durably; the unit files stay."""
    backend = open_backend(store)
    backend.delete(INDEX_CACHE)
    drop_ranges(backend)
    backend.sync("")


def _cached(
    backend: Backend, columns: Sequence[str] | None = None, without: Sequence[str] = ()
) -> tuple[IndexCache | None, dict[int, str]]:
    """Return the cache, and the stamps of all committed units, which were listed after it."""
    if backend.replaces_cheaply:
        cached = read_cache(backend, columns, without)
        return cached, unit_stamps(backend)
    before: list[str] = []
    while True:
        listed = range_objects(backend)
        ranges = ranges_among(listed)
        last = ranges[-1].last if ranges else -1
        read = partial(read_ranges, backend, ranges, columns, without, listed == before)
        stamp = partial(unit_stamps, backend, last)
        calls: list[Callable[[], Any]] = [read, stamp]
        try:
            cached, stamps = run_parallel(lambda call: call(), calls, len(calls))
        except FileNotFoundError:  # a driver has replaced a range meanwhile
            before = listed
        else:
            return cached, stamps


def _state(stamps: Mapping[int, str]) -> str:
    listed = json.dumps(sorted(stamps.items()), separators=(",", ":"))
    return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()


def _gather(
    backend: Backend, without: Sequence[str] = (), columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[int, Origin]]:
    """Return the rows of all committed units, and the file that those of each unit are from."""
    cached, stamps = _cached(backend, columns, without)
    return _complete(backend, cached, stamps, without, columns)


def _complete(
    backend: Backend,
    cached: IndexCache | None,
    stamps: Mapping[int, str],
    without: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> tuple[pa.Table, dict[int, Origin]]:
    """Return the rows of the units with these stamps, of a cache and otherwise of their files."""
    current = {} if cached is None else cached.current(backend, stamps)
    tables = [] if cached is None else [cached.rows(current)]
    missing = [unit for unit in stamps if unit not in current]
    read = run_parallel(lambda unit: _read_unit(backend, unit), missing, backend.parallel_reads)
    for unit, (table, checksum) in zip(missing, read, strict=True):
        tables.append(_some(table, without, columns))
        current[unit] = Origin(checksum, stamps[unit])
    if not tables:
        empty = _some(pa.schema(FIELDS).empty_table(), without, columns)
        return _with_all(empty, columns), {}
    table = _with_all(pa.concat_tables(tables, promote_options="default"), columns)
    return _sorted(table, len(tables)), dict(sorted(current.items()))


def _sorted(table: pa.Table, n_tables: int) -> pa.Table:
    """Sort rows by unit; those of one unit, which are of one table, keep their order."""
    unit = numbers(table["unit"]) if n_tables > 1 else np.empty(0)
    if bool(np.all(unit[1:] >= unit[:-1])):
        return table
    return table.take(row_numbers(np.argsort(unit, kind="stable")))


def _read_unit(backend: Backend, unit: int) -> tuple[pa.Table, int]:
    """Return the index of a unit, and the checksum that its file carries."""
    key = index_key(unit)
    path = backend.locate(key)
    try:
        raw = backend.read(key)
        table, checksum = parse_parquet(raw, path), seal_of(raw, path)
    except UnreachableError:
        raise
    except (DamagedError, OSError) as error:
        raise DamagedError(
            f"index of unit {unit} is not readable ({error}); run `strata verify`"
        ) from error
    if not has_fields(table.schema) or pc.unique(table["unit"]).to_pylist() != [unit]:
        raise DamagedError(f"{path} is not the index of unit {unit}; run `strata verify`")
    return table, checksum


def _some(table: pa.Table, without: Sequence[str], columns: Sequence[str] | None) -> pa.Table:
    if columns is not None:
        return table.select([name for name in columns if name in table.column_names])
    return table.drop_columns(list(without))


def _with_all(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Return rows with empty columns for those of the dataset that no unit has.

    A unit that is extracted when the dataset has none of its utterances any more lacks them.
    """
    if columns is None:
        return table
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table)))
    return table.select(list(columns))


def numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return a column of numbers without nulls as an array.

    `to_numpy` imports pandas if it is installed, which takes as long as the rest of opening a
    store.
    """
    chunks = column.chunks or [pa.nulls(0, column.type)]
    return np.concatenate([np.from_dlpack(chunk) for chunk in chunks])


def row_numbers(values: npt.NDArray[np.int64]) -> pa.Array:
    """Return row numbers for `take`, without pandas."""
    values = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def of_status(table: pa.Table, which: str) -> pa.Table:
    """Return the index rows with a status."""
    return table.filter(_is(table["status"], which))


def _is(status: pa.ChunkedArray, which: str) -> pa.ChunkedArray:
    """Compare a status column with a status, without pandas; no status is a prefix of another."""
    return pc.starts_with(status, pattern=which)

"""The committed rows of a store: one Parquet file per unit, and a cache of them.

`index.parquet` is only a cache of the unit files: a unit is committed if and only if its file
exists. The cache must be removed before a commit is revoked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DamagedError
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import INDEX_CACHE, INDEX_DIR, index_key
from pipeline.store.format.records import FIELDS, OK, QUARANTINED
from pipeline.store.serialization import parquet_bytes, parse_parquet, read_parquet

_UNIT_NAME = re.compile(r"unit-(\d+)\.parquet")


def committed_units(store: Location) -> list[int]:
    """Return the numbers of the committed units, ascending."""
    names = open_backend(store).children(INDEX_DIR)
    return sorted(int(match[1]) for name in names if (match := _UNIT_NAME.fullmatch(name)))


def read_unit(store: Location, unit: int) -> pa.Table:
    """Read the index of one committed unit.

    Raises:
        DamagedError: The file is missing, damaged, or of another unit.
    """
    backend, key = open_backend(store), index_key(unit)
    try:
        table = read_parquet(backend, key)
    except (DamagedError, OSError) as error:
        raise DamagedError(
            f"index of unit {unit} is not readable ({error}); run `strata verify`"
        ) from error
    if not _has_fields(table.schema) or pc.unique(table["unit"]).to_pylist() != [unit]:
        raise DamagedError(
            f"{backend.locate(key)} is not the index of unit {unit}; run `strata verify`"
        )
    return table


def read_index(
    store: Location, without: Sequence[str] = (), columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the rows of all committed units, by unit and position.

    Units that the cache lacks are read from their files.

    Args:
        store: The store.
        without: Columns to omit.
        columns: Columns to read, `unit` among them; None reads all.

    Raises:
        DamagedError: A unit's index is unreadable.
    """
    backend = open_backend(store)
    units = committed_units(backend)
    cached = _read_cache(backend, list(columns) if columns else None, without)
    known = set(pc.unique(cached["unit"]).to_pylist()) if cached is not None else set()
    tables = []
    if cached is not None:
        stale = known.difference(units)
        if stale:
            keep = pc.invert(pc.is_in(cached["unit"], value_set=pa.array(stale, pa.int32())))
            cached = cached.filter(keep)
        tables.append(cached)
    fresh = [read_unit(backend, unit) for unit in units if unit not in known]
    tables += [_some(table, without, columns) for table in fresh]
    if not tables:
        return _some(pa.schema(FIELDS).empty_table(), without, columns)
    table = pa.concat_tables(tables, promote_options="default")
    if len(tables) > 1 and cached is not None and "position" in table.column_names:
        table = table.sort_by([("unit", "ascending"), ("position", "ascending")])
    return table


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
    lost = table.filter(_is(table["status"], QUARANTINED))
    if not len(lost):
        return lost
    same = pc.is_in(table["row"], value_set=pc.unique(lost["row"]))
    done = table.filter(pc.and_(same, _is(table["status"], OK)))
    rows, place = np.unique(numbers(done["row"]), return_inverse=True)
    expected = np.zeros(len(rows), np.int64)
    np.maximum.at(expected, place, numbers(done["n_pieces"]))
    complete = rows[np.bincount(place, minlength=len(rows)) >= expected]
    lost = lost.filter(pc.invert(pc.is_in(lost["row"], value_set=row_numbers(complete))))
    lost = lost.take(pc.sort_indices(lost, [("row", "ascending"), ("unit", "descending")]))
    newest = np.unique(numbers(lost["row"]), return_index=True)[1]
    return lost.take(row_numbers(newest))


def compact(store: Location) -> pa.Table:
    """Rewrite `index.parquet` from the unit files; return its rows."""
    backend = open_backend(store)
    drop_cache(backend)
    table = read_index(backend)
    backend.put(INDEX_CACHE, [parquet_bytes(table)])
    return table


def refresh_cache(store: Location) -> None:
    """Add newly committed units to `index.parquet`, which must not hold revoked ones."""
    backend = open_backend(store)
    backend.put(INDEX_CACHE, [parquet_bytes(read_index(backend))])


def cached_units(store: Location) -> set[int]:
    """Return the units that the cache covers."""
    cached = _read_cache(open_backend(store), columns=["unit"])
    return set() if cached is None else set(pc.unique(cached["unit"]).to_pylist())


def is_compact(store: Location) -> bool:
    """Return whether the cache covers exactly the committed units."""
    backend = open_backend(store)
    return backend.exists(INDEX_CACHE) and sorted(cached_units(backend)) == committed_units(backend)


def drop_cache(store: Location) -> None:
    """Remove the cache, durably; the unit files stay."""
    backend = open_backend(store)
    backend.delete(INDEX_CACHE)
    backend.sync("")


def _read_cache(
    backend: Backend, columns: list[str] | None = None, without: Sequence[str] = ()
) -> pa.Table | None:
    try:
        raw = backend.read(INDEX_CACHE)
        schema = pq.read_schema(pa.BufferReader(raw))
        if not _has_fields(schema):
            return None
        wanted = columns or [name for name in schema.names if name not in without]
        return parse_parquet(raw, backend.locate(INDEX_CACHE), wanted)
    except (DamagedError, OSError, pa.ArrowException):
        return None  # the unit files are complete


def _some(table: pa.Table, without: Sequence[str], columns: Sequence[str] | None) -> pa.Table:
    if columns is not None:
        return table.select(list(columns))
    return table.drop_columns(list(without))


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


def _is(status: pa.ChunkedArray, which: str) -> pa.ChunkedArray:
    """Compare a status column with a status, without pandas; no status is a prefix of another."""
    return pc.starts_with(status, pattern=which)


def _has_fields(schema: pa.Schema) -> bool:
    """Return whether all fixed columns exist with their types."""
    types = dict(zip(schema.names, schema.types, strict=True))
    return all(types.get(item.name) == item.type for item in FIELDS)

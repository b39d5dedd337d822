"""Caches of the rows of all unit files, so that a store opens quickly.

For every unit a cache states from which file its rows are: the checksum that the file carries, and
its stamp (`Backend.stamps`). Rows are used only if the unit's file is still that one. Equal stamps
prove it without opening the file. The files of a copied store have other stamps; they are read and
their checksums compared, which takes a fraction of decoding them. So a cache that was copied from
another store, or is from before a unit was committed again, changes nothing.

There are two forms: `index.parquet`, which this module reads and writes, and range files
(`index_ranges.py`) where a large object should not be replaced often.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DamagedError
from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.base import Backend
from pipeline.store.format.layout import INDEX_CACHE, INDEX_DIR, index_key
from pipeline.store.format.records import FIELDS
from pipeline.store.serialization import parquet_bytes, parse_parquet, seal_of

_ORIGINS = b"strata.units"
UNIT_NAME = re.compile(r"unit-(\d+)\.parquet")


class Origin(NamedTuple):
    """The file of a unit.

    Attributes:
        checksum: The checksum that it carries, crc32c.
        stamp: Its stamp.
    """

    checksum: int
    stamp: str


@dataclass(frozen=True)
class IndexCache:
    """Rows of committed units, by unit and position.

    Attributes:
        table: The rows.
        origins: The file that the rows of each unit are from. Rows of other units are not used.
    """

    table: pa.Table
    origins: Mapping[int, Origin]

    def current(self, backend: Backend, stamps: Mapping[int, str]) -> dict[int, Origin]:
        """Return the units whose rows are those of their file, with the file's present stamp.

        Args:
            backend: The store.
            stamps: Stamps of its units, from `unit_stamps`.
        """
        known = {unit: origin for unit, origin in self.origins.items() if unit in stamps}
        moved = [unit for unit, origin in known.items() if origin.stamp != stamps[unit]]
        checksums = run_parallel(partial(_checksum, backend), moved, backend.parallel_reads)
        for unit, checksum in zip(moved, checksums, strict=True):
            if checksum == known[unit].checksum:
                known[unit] = Origin(checksum, stamps[unit])
            else:
                del known[unit]
        return known

    def has_stamps(self, stamps: Mapping[int, str]) -> bool:
        """Return whether its rows are of exactly the units with these stamps, without a read."""
        return {unit: origin.stamp for unit, origin in self.origins.items()} == dict(stamps)

    def rows(self, units: Iterable[int]) -> pa.Table:
        """Return the rows of some units, all of which have an origin."""
        wanted = set(units)
        if wanted == units_of(self.table):
            return self.table
        kept = pc.is_in(self.table["unit"], value_set=pa.array(sorted(wanted), pa.int32()))
        return self.table.filter(kept)


def unit_stamps(backend: Backend, last: int = -1) -> dict[int, str]:
    """Return the stamp of the file of every committed unit, by unit.

    Args:
        backend: The store.
        last: Highest unit that probably has a file; see `Backend.stamps`.
    """
    expected = [unit_name(unit) for unit in range(last + 1)]
    stamps = backend.stamps(INDEX_DIR, expected)
    found = {int(m[1]): stamp for name, stamp in stamps.items() if (m := UNIT_NAME.fullmatch(name))}
    return dict(sorted(found.items()))


def unit_name(unit: int) -> str:
    """Return the name of the file of a unit."""
    return index_key(unit).rpartition("/")[2]


def read_cache(
    backend: Backend, columns: Sequence[str] | None = None, without: Sequence[str] = ()
) -> IndexCache | None:
    """Read the cache.

    Args:
        backend: The store.
        columns: Columns to read, `unit` among them; None reads all.
        without: Columns to omit.

    Returns:
        None if there is none, or it is damaged or does not state its origins: the unit files are
        complete without it.
    """
    try:
        return parse_cache(backend.read(INDEX_CACHE), INDEX_CACHE, columns, without)
    except OSError:
        return None


def write_cache(backend: Backend, table: pa.Table, origins: Mapping[int, Origin]) -> None:
    """Write the cache.

    Args:
        backend: The store.
        table: The rows of all units of `origins`, with all columns, by unit and position.
        origins: The file that the rows of each unit are from.
    """
    backend.put(INDEX_CACHE, [cache_bytes(table, origins)])


def cache_bytes(table: pa.Table, origins: Mapping[int, Origin]) -> memoryview:
    """Return rows, and the file that those of each unit are from, as a sealed Parquet file."""
    stated = {str(unit): [origin.checksum, origin.stamp] for unit, origin in origins.items()}
    content = json.dumps(stated, separators=(",", ":")).encode()
    return parquet_bytes(table, {_ORIGINS: content})


def parse_cache(
    raw: bytes,
    name: str,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
    fields: Sequence[pa.Field] = FIELDS,
) -> IndexCache | None:
    """Return what `cache_bytes` made.

    Args:
        raw: The bytes.
        name: What messages call the file.
        columns: Columns to read, `unit` among them; None reads all.
        without: Columns to omit.
        fields: Columns that it must have.

    Returns:
        None if they are damaged, lack a column, or do not state their origins.
    """
    try:
        schema = pq.read_schema(pa.BufferReader(raw))
        if not has_fields(schema, fields):
            return None
        wanted = columns or [name for name in schema.names if name not in without]
        table = parse_parquet(raw, name, wanted)
        stated = json.loads((table.schema.metadata or {})[_ORIGINS])
        origins = {int(unit): Origin(*origin) for unit, origin in stated.items()}
    except (DamagedError, OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
    metadata = {key: value for key, value in table.schema.metadata.items() if key != _ORIGINS}
    for unit in origins.keys() - units_of(table):
        del origins[unit]
    return IndexCache(table.replace_schema_metadata(metadata or None), origins)


def has_fields(schema: pa.Schema, fields: Sequence[pa.Field] = FIELDS) -> bool:
    """Return whether all fixed columns exist with their types."""
    types = dict(zip(schema.names, schema.types, strict=True))
    return all(types.get(item.name) == item.type for item in fields)


def units_of(table: pa.Table) -> set[int]:
    """Return the units that have rows in a table."""
    return set(pc.unique(table["unit"]).to_pylist())


def _checksum(backend: Backend, unit: int) -> int | None:
    """Return the checksum that a unit's file carries; None if it is not the file's."""
    key = index_key(unit)
    try:
        return seal_of(backend.read(key), key)
    except (DamagedError, OSError):
        return None

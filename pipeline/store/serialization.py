"""Documents of a store as bytes: JSON, and Parquet files that carry a checksum of themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

from pipeline.errors import DamagedError
from pipeline.store.backend.base import Backend

_SEAL_KEY = b"strata.seal"
_SEAL = re.compile(rb"crc32c:([0-9a-f]{8})")
_OPEN_SEAL = b"crc32c:00000000"
_THREADED_BYTES = 2**20  # threads that decode smaller tables take longer to start


def json_bytes(document: Any) -> bytes:
    """Return a document as indented JSON."""
    return (json.dumps(document, indent=2) + "\n").encode()


def parquet_bytes(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> memoryview:
    """Return a table as the bytes of a sealed Parquet file; equal tables give equal bytes.

    `metadata` is added to that of the table's schema.

    Parquet has no checksum over its footer, and a flipped bit there can rename a column or move a
    value without an error. So the footer carries, as one more key, the crc32c of the whole file
    with the eight digits of that crc taken as zeros.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**(metadata or {}), _SEAL_KEY: _OPEN_SEAL})
    raw = bytearray(sink.getvalue())
    at = raw.rindex(_OPEN_SEAL) + len(_OPEN_SEAL) - 8
    raw[at : at + 8] = b"%08x" % crc32c(raw)
    return memoryview(raw)


def read_parquet(backend: Backend, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table that `parquet_bytes` made.

    Args:
        backend: The store.
        key: The object.
        columns: Columns to read; None reads all.

    Raises:
        FileNotFoundError: There is no such object.
        DamagedError: It is not a byte-for-byte copy of what was written.
    """
    return parse_parquet(backend.read(key), backend.locate(key), columns)


def parse_parquet(raw: bytes, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in the bytes of a sealed Parquet file.

    Args:
        raw: The bytes.
        name: What messages call the file.
        columns: Columns to decode; None decodes all.

    Raises:
        DamagedError: They are not what `parquet_bytes` returned.
    """
    seal_of(raw, name)
    try:
        content = pa.BufferReader(_arrow_buffer(raw))
        wanted = None if columns is None else [*columns]
        table = pq.ParquetFile(content).read(wanted, use_threads=len(raw) > _THREADED_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{name} is not a Parquet file: {error}") from error
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != _SEAL_KEY}
    return table.replace_schema_metadata(metadata or None)


def seal_of(raw: bytes, name: str) -> int:
    """Return the checksum that the bytes of a sealed Parquet file carry, crc32c.

    Args:
        raw: The bytes.
        name: What messages call the file.

    Raises:
        DamagedError: It is not theirs.
    """
    seals = list(_SEAL.finditer(raw))
    if not seals:
        raise DamagedError(f"{name} is cut short, or was not written by strata")
    seal = seals[-1]
    view = memoryview(raw)
    crc = crc32c(view[: seal.start(1)])
    crc = crc32c(view[seal.end(1) :], crc32c(b"0" * 8, crc))
    if crc != int(seal[1], 16):
        raise DamagedError(f"{name} has a wrong checksum")
    return int(seal[1], 16)


def _arrow_buffer(raw: bytes) -> pa.Buffer:
    """Copy bytes into memory that belongs to Arrow.

    A thread of Arrow that is the last to release a buffer of Python needs the interpreter's lock,
    and aborts the process if the interpreter is exiting.
    """
    buffer = pa.allocate_buffer(len(raw))
    memoryview(buffer).cast("B")[:] = raw
    return buffer

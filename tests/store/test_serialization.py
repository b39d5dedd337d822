"""Parquet documents that detect any change of their bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedError
from pipeline.store.backend.local import LocalBackend
from pipeline.store.serialization import parquet_bytes, parse_parquet, read_parquet

TABLE = pa.table(
    {"id": ["a", "b", "crc32c:00000000"], "n": [1, 2, None], "flags": [["x"], [], ["y", "z"]]}
)


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    """In another process and with other column chunks, too: commits are byte-identical."""
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    assert bytes(parquet_bytes(chunked.combine_chunks())) == bytes(parquet_bytes(TABLE))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import hashlib\n"
    code += "import tests.store.test_serialization as t\n"
    code += "print(hashlib.sha256(t.parquet_bytes(t.TABLE)).hexdigest())"
    other = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == [hashlib.sha256(parquet_bytes(TABLE)).hexdigest()]


def test_a_sealed_file_is_plain_parquet(tmp_path: Path) -> None:
    """Any Parquet reader opens it; `read_parquet` returns the table with its own metadata."""
    backend = LocalBackend(tmp_path)
    backend.put("t.parquet", [parquet_bytes(TABLE.replace_schema_metadata({"k": "v"}))])
    assert pq.read_table(tmp_path / "t.parquet").equals(TABLE)
    assert read_parquet(backend, "t.parquet").equals(TABLE)
    assert read_parquet(backend, "t.parquet").schema.metadata == {b"k": b"v"}
    assert read_parquet(backend, "t.parquet", ["n"]).column_names == ["n"]
    with pytest.raises(FileNotFoundError):
        read_parquet(backend, "none")


SEALED = bytes(parquet_bytes(TABLE))


@given(st.integers(0, len(SEALED) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_found(position: int, bit: int) -> None:
    """Parquet alone misses most flips in its footer; the checksum misses none."""
    raw = bytearray(SEALED)
    raw[position] ^= 1 << bit
    with pytest.raises(DamagedError):
        parse_parquet(bytes(raw), "t")


@given(st.integers(0, len(SEALED) - 1))
def test_any_truncation_is_found(length: int) -> None:
    """At any length."""
    with pytest.raises(DamagedError):
        parse_parquet(SEALED[:length], "t")


def test_a_foreign_parquet_file_is_not_trusted(tmp_path: Path) -> None:
    """A file without the checksum was not written by strata, or its checksum was damaged."""
    pq.write_table(TABLE.slice(0, 2), tmp_path / "t")
    with pytest.raises(DamagedError, match=r"/t .*not written by strata"):
        read_parquet(LocalBackend(tmp_path), "t")

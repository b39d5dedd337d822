"""Damaged Parquet files: an error or the bytes that Arrow reads, never others, and no hang."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.archives.parquet.pages import (
    UNCOMPRESSED,
    Chunk,
    PageError,
    Read,
    UnknownFormError,
    decompress,
    read_pages,
)
from pipeline.sources.archives.parquet.thrift import ThriftError, read_struct
from pipeline.sources.archives.parquet.values import Values, hybrid, locate
from tests.helpers.parquet_files import audio

LAYOUTS = [
    {"compression": "none", "use_dictionary": False, "data_page_version": "1.0"},
    {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    {"compression": "none", "use_dictionary": True, "data_page_version": "1.0"},
    {"compression": "snappy", "use_dictionary": True, "data_page_version": "2.0"},
]
MAX_BYTES = 50_000_000
"""Memory that a damaged chunk of 30 kB may take."""


class Sample(NamedTuple):
    """A column chunk and its bytes."""

    chunk: Chunk
    data: bytes


def sample(layout: int) -> Sample:
    rng = random.Random(layout)
    clips = [rng.randbytes(rng.randrange(300)) if i % 5 else None for i in range(150)]
    sink = pa.BufferOutputStream()
    table = pa.table({"audio": audio(clips)})
    pq.write_table(table, sink, data_page_size=2000, write_batch_size=8, **LAYOUTS[layout])
    content = sink.getvalue().to_pybytes()
    column = pq.read_metadata(pa.BufferReader(content)).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    sizes = column.total_compressed_size, column.total_uncompressed_size
    codec = {"UNCOMPRESSED": UNCOMPRESSED, "SNAPPY": 1}[column.compression]
    chunk = Chunk(0, *sizes, column.num_values, codec, 2)
    return Sample(chunk, content[start : start + sizes[0]])


SAMPLES = [sample(i) for i in range(len(LAYOUTS))]


def reader(data: bytes) -> Read:
    def read(start: int, n_bytes: int) -> bytes:
        if not 0 <= start <= start + n_bytes <= len(data):
            raise PageError("beyond the end")
        return data[start : start + n_bytes]

    return read


def walk(chunk: Chunk, data: bytes) -> list[bytes | None]:
    """Read all values of a chunk."""
    read = reader(data)
    dictionary: tuple[bytes, Values] | None = None
    found: list[bytes | None] = []
    for page in read_pages(read, chunk):
        content = decompress(read, chunk, page)
        values = locate(reader(content), 0, chunk, page, dictionary and dictionary[1])
        if page.is_dictionary:
            dictionary = content, values
            continue
        source = dictionary[0] if dictionary and page.refers_to_dictionary else content
        for start, length in zip(*(part.tolist() for part in values), strict=True):
            assert start >= 0
            assert start + length <= len(source)
            found.append(None if length < 0 else source[start : start + length])
    return found


@settings(max_examples=300)
@given(st.integers(0, len(LAYOUTS) - 1), st.data())
def test_a_damaged_chunk_is_an_error_or_has_all_values(layout: int, data: st.DataObject) -> None:
    """Any bytes of it are replaced, or its end is missing. The memory is bounded."""
    chunk, content = SAMPLES[layout]
    assert len(walk(chunk, content)) == chunk.n_values
    damaged = bytearray(content)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    places = st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=8))
    near_headers = st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=8))
    for place, replaced in data.draw(st.lists(places | near_headers, max_size=4)):
        damaged[place : place + len(replaced)] = replaced[: len(damaged) - place]
    tracemalloc.start()
    try:
        assert len(walk(chunk, bytes(damaged))) == chunk.n_values
    except (PageError, UnknownFormError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES


@given(st.binary(max_size=200))
def test_any_bytes_are_a_struct_or_an_error(data: bytes) -> None:
    try:
        fields, position = read_struct(data)
    except ThriftError:
        return
    assert position <= len(data)
    assert all(isinstance(number, int) for number in fields)


def test_a_deep_or_endless_struct_is_an_error() -> None:
    for data in (b"\x1c" * 100_000, b"\x19\xff" + b"\xff" * 100, b"\x18" + b"\xff" * 9 + b"\x01"):
        with pytest.raises(ThriftError):
            read_struct(data)


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 20)), max_size=8),
    st.booleans(),
)
def test_numbers_in_runs(n_bits: int, runs: list[tuple[int, int]], packed: bool) -> None:
    """Runs of one number, and groups of eight packed ones, are decoded to what was encoded."""
    numbers = [value % (1 << n_bits) for value, n in runs for _ in range(n)]
    if packed:
        padded = numbers + [0] * (-len(numbers) % 8)
        bits = "".join(f"{value:0{n_bits}b}"[::-1] for value in padded if n_bits)
        data = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
        head = len(padded) // 8 << 1 | 1
        data = bytes([head & 0x7F | 0x80, head >> 7]) + data
    else:
        width = (n_bits + 7) // 8
        data = b"".join(
            bytes([n << 1]) + (value % (1 << n_bits)).to_bytes(width, "little") for value, n in runs
        )
    assert hybrid(data, n_bits, len(numbers)).tolist() == numbers
    if numbers and n_bits:
        with pytest.raises(PageError):
            hybrid(data[:-1], n_bits, len(numbers) + 8)
    assert hybrid(b"", 3, 0).dtype == np.int64


FUZZ = """
import random, resource, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.archives.parquet.source import open_parquet
from tests.helpers.parquet_files import audio, contents, write_parquet
from tests.sources.test_parquet_damage import LAYOUTS

resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
folder, rng, counts = Path(sys.argv[1]), random.Random(0), {}
for layout in LAYOUTS:
    clips = [rng.randbytes(rng.randrange(300)) if i % 5 else None for i in range(60)]
    table = pa.table({"audio": audio(clips), "n": range(60)})
    options = {"row_group_size": 40, "data_page_size": 2000, "write_batch_size": 8, **layout}
    content = write_parquet(folder / "good.parquet", table, **options).read_bytes()
    for _ in range(int(sys.argv[2])):
        damaged = bytearray(content)
        tail = rng.random() < 0.5  # the footer
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(content) - 900 if tail else 0, len(content))
            damaged[place] = rng.randrange(256)
        if rng.random() < 0.1:
            del damaged[rng.randrange(len(damaged)):]
        path = folder / "bad.parquet"
        path.write_bytes(damaged)
        try:
            found = contents(open_parquet(DatasetConfig("parquet", str(path), id_column="n")))
        except SourceError as error:
            assert str(path) in str(error) or "dataset." in str(error), error
            counts["refused"] = counts.get("refused", 0) + 1
            continue
        try:
            column = pq.ParquetFile(path).read(columns=["audio.bytes"])["audio"].to_pylist()
            expected = [row and row["bytes"] for row in column]
        except (pa.ArrowException, OSError, KeyError):  # KeyError: the column has another name
            expected = found
            counts["only here"] = counts.get("only here", 0) + 1
        assert found == expected
        counts["read"] = counts.get("read", 0) + 1
print(counts)
"""


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_read_as_arrow_reads_it(tmp_path: Path) -> None:
    """Single bytes of pages and footers are replaced, in a process with little memory."""
    command = [sys.executable, "-c", FUZZ, str(tmp_path), "150"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused" in done.stdout
    assert "read" in done.stdout

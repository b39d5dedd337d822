"""Damaged Parquet files: an error or the bytes that Arrow reads, never others, and no hang."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.archives.parquet.footer import read_chunks
from pipeline.sources.archives.parquet.pages import (
    UNCOMPRESSED,
    Chunk,
    PageError,
    Read,
    UnknownFormError,
    decompress,
    read_pages,
)
from pipeline.sources.archives.parquet.rows import ParquetSource
from pipeline.sources.archives.parquet.thrift import ThriftError, read_struct
from pipeline.sources.archives.parquet.values import Values, hybrid, locate
from pipeline.sources.opening import open_source
from tests.helpers.parquet_files import audio, write_parquet

LAYOUTS = [
    {"compression": "none", "use_dictionary": False, "data_page_version": "1.0"},
    {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    {"compression": "none", "use_dictionary": True, "data_page_version": "1.0"},
    {"compression": "snappy", "use_dictionary": True, "data_page_version": "2.0"},
]
ZSTD = {"compression": "zstd"}
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


def encoded(fields: dict[int, Any]) -> bytes:
    """Encode a struct of numbers, structs and lists of structs."""
    parts, last = [], 0
    for number, value in sorted(fields.items()):
        kind = 0x06 if isinstance(value, int) else 0x0C if isinstance(value, dict) else 0x09
        parts.append(bytes([(number - last) << 4 | kind]))
        last = number
        if isinstance(value, int):
            rest = value << 1 if value >= 0 else -value * 2 - 1
            while rest >= 0x80:
                parts.append(bytes([rest & 0x7F | 0x80]))
                rest >>= 7
            parts.append(bytes([rest]))
        elif isinstance(value, dict):
            parts.append(encoded(value))
        else:
            parts.append(bytes([len(value) << 4 | 0x0C]))
            parts += [encoded(one) for one in value]
    return b"".join([*parts, b"\0"])


def page_of(n_uncompressed: int, n_bytes: int, n_values: int) -> bytes:
    """Encode the header of a page of version 1."""
    data_page = {1: n_values, 2: 0, 3: 3, 4: 3}
    return encoded({1: 0, 2: n_uncompressed, 3: n_bytes, 5: data_page})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (page_of(2**31, 2**31, 10), "impossible size"),
        (page_of(20, 20, -1), "impossible size"),
        (page_of(20, 30, 10), "two sizes"),
        (page_of(4000, 4000, 10), "longer than its column chunk"),
        (page_of(20, 20, 11), "more than 10 values"),
        (encoded({1: 0, 2: 20, 3: 20}), "lacks the part 5"),
        (encoded({1: 0, 2: 20, 5: {1: 10}}), "lacks the number 3"),
        (page_of(20, 20, 10)[:-1], "does not end"),
    ],
)
def test_headers_that_contradict_their_chunk(header: bytes, message: str) -> None:
    """An uncompressed chunk of 10 values in 1,000 bytes."""
    n_bytes = len(header) if "end" in message else 1000
    chunk = Chunk(0, n_bytes, 2**40, 10, UNCOMPRESSED, 1)
    with pytest.raises(PageError, match=message):
        read_pages(reader(header.ljust(n_bytes, b"\xff")), chunk)


def test_a_page_that_states_other_nulls() -> None:
    chunk, content = SAMPLES[1]
    read = reader(content)
    page = read_pages(read, chunk)[0]
    assert page.n_nulls
    with pytest.raises(PageError, match="another number of nulls"):
        locate(read, page.start, chunk, replace(page, n_nulls=page.n_nulls + 1))


GROUP = {1: 6, 4: 0, 5: 10, 6: 1000, 7: 1000, 9: 4}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({4: [{1: [{3: GROUP}], 3: 11}]}, PageError, "has 11 rows, but 10 values"),
        ({4: [{1: [{3: GROUP | {5: -1}}], 3: -1}]}, PageError, "has -1 rows"),
        ({4: [{1: [], 3: 10}]}, PageError, "lacks columns"),
        ({4: [{1: [{2: 4}], 3: 10}]}, PageError, "lacks the part 3"),
        ({4: [{1: [{3: GROUP | {1: 2}}], 3: 10}]}, UnknownFormError, "not of bytes"),
    ],
)
def test_footers_that_contradict_themselves(
    fields: dict[int, Any], error: type[ValueError], message: str
) -> None:
    footer = encoded(fields)
    content = footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(error, match=message):
        read_chunks(reader(content), len(content), 0, 2)
    good = encoded({4: [{1: [{3: GROUP | {11: 2}}], 3: 10}]})
    content = good + len(good).to_bytes(4, "little") + b"PAR1"
    assert read_chunks(reader(content), len(content), 0, 2) == [
        (Chunk(2, 1000, 1000, 10, UNCOMPRESSED, 2), None)
    ]
    with pytest.raises(PageError, match="no footer"):
        read_chunks(reader(b"PAR1"), 4, 0, 2)


def test_a_null_that_the_footer_denies_is_damage(tmp_path: Path) -> None:
    """It has no bytes; those of another value are not returned in its place."""
    path = write_parquet(tmp_path / "a.parquet", pa.table({"audio": audio([b"x", None])}), **ZSTD)
    source = open_source(DatasetConfig("parquet", str(path)))
    assert isinstance(source, ParquetSource)
    places = source._audio._places
    assert places.chunk.tolist() == [0, -1]
    places.chunk[1] = 0  # as if the footer stated no null
    assert source.segment(0).data == b"x"
    with pytest.raises(SourceError, match="has a null where its footer states none"):
        source.segment(1)


def test_an_index_beyond_the_dictionary_is_damage() -> None:
    chunk, content = SAMPLES[2]
    read = reader(content)
    first, *pages = read_pages(read, chunk)
    whole = locate(read, first.start, chunk, first)
    short = Values(whole.start[:1], whole.length[:1])
    page = next(page for page in pages if page.refers_to_dictionary)
    assert len(locate(read, page.start, chunk, page, whole).start) == page.n_values
    with pytest.raises(PageError, match="its dictionary does not have"):
        locate(read, page.start, chunk, page, short)

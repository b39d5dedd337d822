"""Search for the embedded audio of a Parquet file, in every row group of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.archives.parquet.embedded import Audio, PackedPages, named, opened
from pipeline.sources.archives.parquet.footer import read_chunks
from pipeline.sources.archives.parquet.pages import (
    UNCOMPRESSED,
    Chunk,
    Page,
    PageError,
    Read,
    UnknownFormError,
    read_pages,
)
from pipeline.sources.archives.parquet.places import PackedChunk, Places, joined, without_bytes
from pipeline.sources.archives.parquet.values import Values, locate
from pipeline.sources.remote.file import RemoteFile

_MAX_CHECKED_BYTES = 1 << 22
"""Size of the first page up to which Arrow reads it, whole, to check its first value."""
_MAX_FAR_BYTES = 1 << 16  # the same over a network
_N_THREADS = 8  # row groups of a file on the hub at once
_EMPTY = np.empty(0, np.int64)


def find_places(path: Path | RemoteFile, file: pq.ParquetFile, leaf: str) -> Places:
    """Find the values of a column of bytes in every row group of a file.

    The values of every page must fill it exactly, and their number must be that of the rows. Where
    Arrow need not read much for it, the first value is compared with what Arrow reads.

    Args:
        path: Path of the file.
        file: The file.
        leaf: Path of the column in its schema, e.g. `audio.bytes`.

    Raises:
        SourceError: The file is damaged.
        UnknownFormError: The column has a form that is not read here.
    """
    parts: list[Places] = []
    first_pages: dict[int, int] = {}
    name = str(path)
    is_far = isinstance(path, RemoteFile)
    with ExitStack() as stack:
        stack.enter_context(named(name))
        read = stack.enter_context(opened(name))
        n_file_bytes = path.n_bytes if isinstance(path, RemoteFile) else path.stat().st_size
        chunks = read_chunks(read, n_file_bytes, *_column(file, leaf))
        if len(chunks) != file.num_row_groups:
            raise PageError("its footer cannot be read")

        def find(group: tuple[Chunk, int | None]) -> tuple[Places, list[Page]]:
            chunk, n_nulls = group
            pages = read_pages(read, chunk)
            if chunk.codec == UNCOMPRESSED:
                return _ranges(name, _values(read, chunk, pages)), pages
            return _packed(name, chunk, n_nulls, pages), pages

        found: Iterable[tuple[Places, list[Page]]] = map(find, chunks)
        if is_far:  # every read waits for the network
            found = stack.enter_context(ThreadPoolExecutor(_N_THREADS)).map(find, chunks)
        for i, (part, pages) in enumerate(found):
            parts.append(part)
            sizes = [page.n_uncompressed_bytes for page in pages if not page.is_dictionary]
            first_pages |= {i: sizes[0]} if sizes else {}
        smallest = min(first_pages, key=lambda i: first_pages[i], default=None)
        max_bytes = _MAX_FAR_BYTES if is_far else _MAX_CHECKED_BYTES
        if smallest is not None and first_pages[smallest] <= max_bytes:
            _check_first(file, smallest, leaf, Audio(parts[smallest]))
    return joined([without_bytes(0), *parts])


def _column(file: pq.ParquetFile, leaf: str) -> tuple[int, int]:
    """Return the number of a column, and the definition level of its values.

    Raises:
        UnknownFormError: The column is a list, or there are several of this name.
    """
    schema = file.schema
    paths = [schema.column(i).path for i in range(len(schema.names))]
    if paths.count(leaf) != 1:
        raise UnknownFormError(f"the file has {paths.count(leaf)} such columns")
    column = schema.column(paths.index(leaf))
    if column.max_repetition_level:
        raise UnknownFormError("it is a list")
    return paths.index(leaf), column.max_definition_level


def _values(read: Read, chunk: Chunk, pages: Sequence[Page]) -> Values:
    """Find all values of a chunk that is not compressed."""
    dictionary = None
    parts = [Values(_EMPTY, _EMPTY)]
    for page in pages:
        values = locate(read, page.start, chunk, page, dictionary)
        if page.is_dictionary:
            dictionary = values
        else:
            parts.append(values)
    starts, lengths = zip(*parts, strict=True)
    return Values(np.concatenate(starts), np.concatenate(lengths))


def _ranges(path: str, values: Values) -> Places:
    none = np.full(len(values.start), -1, np.int32)
    file = np.where(values.length < 0, none, 0).astype(np.int32)
    return Places((path,), (), file, none, values.start, values.length)


def _packed(path: str, chunk: Chunk, n_nulls: int | None, pages: Sequence[Page]) -> Places:
    """Return the places of the rows of a compressed chunk.

    Pages are decompressed for it only if the footer does not exclude nulls.
    """
    data = tuple(page for page in pages if not page.is_dictionary)
    first_rows = np.cumsum([0, *(page.n_values for page in data)]).tolist()[:-1]
    dictionary = next((page for page in pages if page.is_dictionary), None)
    packed = PackedChunk(path, chunk, data, tuple(first_rows), dictionary)
    n = chunk.n_values
    none, zero = np.full(n, -1, np.int32), np.zeros(n, np.int64)
    is_present = np.ones(n, np.bool_)
    if chunk.max_level and n and n_nulls != 0:
        is_present = PackedPages([packed]).is_present(0)
    return Places((), (packed,), none, np.where(is_present, 0, none), np.arange(n), zero)


def _check_first(file: pq.ParquetFile, group: int, leaf: str, audio: Audio) -> None:
    """Compare the first value of a row group with what Arrow reads."""
    batches = file.iter_batches(batch_size=1, row_groups=[group], columns=[leaf])
    batch = next(batches, None)
    if batch is None or len(batch) == 0:
        return
    column = batch.column(0)
    if pa.types.is_struct(column.type):
        column = column.field(0)
    place = audio.of(0)
    data = place.get("data")
    if place.get("path") is not None:
        with opened(place["path"]) as read:
            data = read(place["byte_offset"], place["byte_length"])
    if column[0].as_py() != data:
        raise UnknownFormError(f"the first value of row group {group} is not what Arrow reads")

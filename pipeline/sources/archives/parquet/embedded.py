"""Audio that is embedded in Parquet files: its bytes, by their places.

Bytes that the file holds as they are have a range in it. Those in compressed pages have none; they
are decompressed page by page when they are asked for.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.sources.archives.parquet.pages import PageError, Read, decompress
from pipeline.sources.archives.parquet.places import PackedChunk, Places
from pipeline.sources.archives.parquet.values import Values, locate
from pipeline.sources.remote.file import read_exactly, size_of
from pipeline.sources.remote.uri import is_remote

CACHE_BYTES = 1 << 28
"""Decompressed pages that are kept. Two always are: Arrow writes up to 1,024 rows in a page."""
_MIN_KEPT = 2
_DICTIONARY = -1  # in the place of the number of a page


class Audio:
    """The bytes of rows, by their places; thread-safe."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._pages = PackedPages(places.chunks)

    def of(self, row: int) -> dict[str, Any]:
        """Return the arguments of a row for `Segment`; none if it has no bytes."""
        places = self._places
        file, chunk = int(places.file[row]), int(places.chunk[row])
        if chunk >= 0:
            return {"data": self._pages.value(chunk, int(places.start[row]))}
        if file < 0:
            return {}
        start, length = int(places.start[row]), int(places.length[row])
        place = {"byte_offset": start, "byte_length": length}
        return {"path": places.paths[file], "container": "parquet", **place}


class _Content(NamedTuple):
    """A decompressed page, and where its values are in `data`."""

    data: bytes
    values: Values


class PackedPages:
    """Values of compressed chunks. The pages that were used last are kept."""

    def __init__(self, chunks: Sequence[PackedChunk]) -> None:
        self._chunks = chunks
        self._changed = threading.Condition()
        self._is_busy = False  # a page is being decompressed
        self._kept: OrderedDict[tuple[int, int], _Content] = OrderedDict()
        self._n_kept_bytes = 0

    def value(self, chunk: int, row: int) -> bytes:
        """Return the value of a row that is not null."""
        packed = self._chunks[chunk]
        page = bisect_right(packed.first_rows, row) - 1
        i = row - packed.first_rows[page]
        with named(packed.path):
            content = self._content(chunk, page)
            start, length = int(content.values.start[i]), int(content.values.length[i])
            if length < 0:
                raise PageError("it has a null where its footer states none")
        return content.data[start : start + length]

    def is_present(self, chunk: int) -> npt.NDArray[np.bool_]:
        """Return which values of a chunk are not null: bool `[n_rows]`."""
        pages = range(len(self._chunks[chunk].pages))
        return np.concatenate([self._content(chunk, page).values.length >= 0 for page in pages])

    def _content(self, chunk: int, page: int) -> _Content:
        """Return the content of a page; that of the dictionary if the page refers to it.

        One page at a time is decompressed, because they may be large. Threads that wait for the
        same page go on as soon as it is there.
        """
        key, packed = (chunk, page), self._chunks[chunk]
        dictionary = None
        if page != _DICTIONARY and packed.dictionary is not None:
            dictionary = self._content(chunk, _DICTIONARY)
        with self._changed:
            self._changed.wait_for(lambda: key in self._kept or not self._is_busy)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            self._is_busy = True
        content = None
        try:
            content = _read_page(packed, page, dictionary)
        finally:
            with self._changed:
                self._is_busy = False
                if content is not None:
                    self._keep(key, content)
                self._changed.notify_all()
        return content

    def _keep(self, key: tuple[int, int], content: _Content) -> None:
        self._kept[key] = content
        self._n_kept_bytes += len(content.data)
        while self._n_kept_bytes > CACHE_BYTES and len(self._kept) > _MIN_KEPT:
            self._n_kept_bytes -= len(self._kept.popitem(last=False)[1].data)


def _read_page(packed: PackedChunk, number: int, dictionary: _Content | None) -> _Content:
    """Decompress a page, or the dictionary of a chunk."""
    page = packed.dictionary if number == _DICTIONARY else packed.pages[number]
    if page is None:
        raise PageError("it has no dictionary")
    with opened(packed.path) as read:
        data = decompress(read, packed.chunk, page)

    def part(start: int, n_bytes: int) -> bytes:
        return data[start : start + n_bytes]

    values = locate(part, 0, packed.chunk, page, dictionary and dictionary.values)
    if dictionary is not None and page.refers_to_dictionary:
        data = dictionary.data
    return _Content(data, values)


@contextmanager
def opened(path: str) -> Iterator[Read]:
    """Open a file to read a few bytes at many places.

    Raises:
        PageError: Bytes do not exist.
    """
    if is_remote(path):
        yield _remote(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    n_file_bytes = os.fstat(descriptor).st_size

    def read(start: int, n_bytes: int) -> bytes:
        if not 0 <= start <= start + n_bytes <= n_file_bytes:
            raise PageError("a part of it lies beyond the end of the file")
        data = os.pread(descriptor, n_bytes, start)
        if len(data) != n_bytes:
            raise PageError("it became shorter while it was read")
        return data

    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield read
    finally:
        os.close(descriptor)


def _remote(path: str) -> Read:
    n_file_bytes = size_of(path)

    def read(start: int, n_bytes: int) -> bytes:
        if not 0 <= start <= start + n_bytes <= n_file_bytes:
            raise PageError("a part of it lies beyond the end of the file")
        return read_exactly(path, start, n_bytes)

    return read


@contextmanager
def named(path: str) -> Iterator[None]:
    """Name the file in the error of a damaged page, or one that cannot be read."""
    try:
        yield
    except PageError as error:
        raise SourceError(f"{path} is damaged: {error}; {_remedy(path)}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = _remedy(path)
        raise SourceError(f"{path} is damaged, or cannot be read: {reason}; {remedy}") from error


def _remedy(path: str) -> str:
    """Return how to get a damaged file anew; the cache of the hub has links to what it fetched."""
    if os.path.islink(path) and "/snapshots/" in path:  # noqa: PTH114 - as the paths of rows
        return f"delete {os.path.realpath(path)} to have it fetched again"
    return "replace it"

"""Pages of a Parquet column chunk, by their headers.

A column chunk is a sequence of pages, each with a header; perhaps a dictionary is the first. See
https://parquet.apache.org/docs/file-format/data-pages/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.sources.archives.parquet.thrift import (
    IncompleteError,
    Struct,
    ThriftError,
    number_of,
    read_struct,
    struct_of,
)

Read = Callable[[int, int], bytes]
"""Reads so many bytes from a position; raises `PageError` if they do not exist."""

UNCOMPRESSED = 0
"""Number of the compression that is none."""
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
"""Names of compressions in Arrow."""
_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = range(4)
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8
"""Encodings of values and levels."""
_MAX_PAGE_BYTES = 2**31 - 1
_HEADER_WINDOWS = (512, 1 << 15, 1 << 20)  # a header may hold statistics of 4 KiB each


class PageError(ValueError):
    """A column chunk that contradicts itself: the file is damaged."""


class UnknownFormError(ValueError):
    """A column chunk in a form that is not read here, such as another encoding."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column chunk of bytes, as the footer of its file states it.

    Attributes:
        start: First byte in the file.
        n_bytes: Number of bytes, with the headers of its pages.
        n_uncompressed_bytes: The same after decompression.
        n_values: Number of values, with those that are null.
        codec: Number of the compression.
        max_level: Definition level of a value that is not null.
    """

    start: int
    n_bytes: int
    n_uncompressed_bytes: int
    n_values: int
    codec: int
    max_level: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page, as its header states it.

    Attributes:
        start: First byte after the header.
        n_bytes: Number of bytes.
        n_uncompressed_bytes: The same after decompression.
        n_values: Number of values, with those that are null.
        encoding: Encoding of the values.
        is_dictionary: Whether it is a dictionary.
        n_level_bytes: Bytes of the definition levels, which are not compressed, in a page of
            version 2. None in one of version 1, where they are a part of the content.
        n_nulls: Number of nulls; None if it is not stated.
        is_compressed: Whether the content is compressed.
    """

    start: int
    n_bytes: int
    n_uncompressed_bytes: int
    n_values: int
    encoding: int
    is_dictionary: bool = False
    n_level_bytes: int | None = None
    n_nulls: int | None = None
    is_compressed: bool = True

    @property
    def refers_to_dictionary(self) -> bool:
        """Whether the values are those of a dictionary."""
        return not self.is_dictionary and self.encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY)


def read_pages(read: Read, chunk: Chunk) -> list[Page]:
    """Read the headers of all pages of a chunk, without their content.

    Raises:
        PageError: They do not fit into the chunk, or have another number of values.
        UnknownFormError: The chunk is compressed in a way that is not known.
    """
    if chunk.codec != UNCOMPRESSED and chunk.codec not in _CODECS:
        raise UnknownFormError(f"its compression has the unknown number {chunk.codec}")
    pages: list[Page] = []
    position, stop = chunk.start, chunk.start + chunk.n_bytes
    n_left, n_bytes_left = chunk.n_values, chunk.n_uncompressed_bytes
    while n_left:
        fields, start = _read_header(read, position, stop)
        try:
            page = _page(fields, start, chunk)
        except ThriftError as error:
            raise PageError(f"a page has no header: {error}") from error
        position = start + page.n_bytes
        n_bytes_left -= page.n_uncompressed_bytes
        if not 0 <= page.n_bytes <= stop - start or n_bytes_left < 0:
            raise PageError("a page is longer than its column chunk")
        if page.is_dictionary and any(not earlier.is_dictionary for earlier in pages):
            raise PageError("a dictionary follows the values")
        if not page.is_dictionary:
            n_left -= page.n_values
        if n_left < 0:
            raise PageError(f"its pages hold more than {chunk.n_values} values")
        pages.append(page)
    return [page for page in pages if page.n_values or page.is_dictionary]


def _read_header(read: Read, position: int, stop: int) -> tuple[Struct, int]:
    """Read the header of a page that ends before `stop`; return it and the position after it."""
    for n_bytes in _HEADER_WINDOWS:
        n = min(n_bytes, stop - position)
        try:
            fields, n_header_bytes = read_struct(read(position, n))
        except IncompleteError as error:
            if n == stop - position or n_bytes == _HEADER_WINDOWS[-1]:
                raise PageError("the header of a page does not end") from error
        except ThriftError as error:
            raise PageError(f"a page has no header: {error}") from error
        else:
            return fields, position + n_header_bytes
    raise PageError("a page has no header")


def _page(fields: Struct, start: int, chunk: Chunk) -> Page:
    """Interpret the header of a page."""
    kind, n_uncompressed, n_bytes = (number_of(fields, i) for i in (1, 2, 3))
    sizes = start, n_bytes, n_uncompressed
    is_compressed = chunk.codec != UNCOMPRESSED
    if kind == _DICTIONARY_PAGE:
        head = struct_of(fields, 7)
        if number_of(head, 2) not in (PLAIN, PLAIN_DICTIONARY):
            raise UnknownFormError("it has a dictionary of another encoding than PLAIN")
        page = Page(*sizes, number_of(head, 1), PLAIN, True, is_compressed=is_compressed)
    elif kind == _DATA_PAGE:
        head = struct_of(fields, 5)
        if chunk.max_level and number_of(head, 3) != RLE:
            raise UnknownFormError("its definition levels have another encoding than RLE")
        page = Page(*sizes, number_of(head, 1), number_of(head, 2), is_compressed=is_compressed)
    elif kind == _DATA_PAGE_V2:
        head = struct_of(fields, 8)
        n_level_bytes = number_of(head, 5)
        if number_of(head, 6) or not 0 <= n_level_bytes <= min(n_bytes, n_uncompressed):
            raise PageError("the levels of a page do not fit into it")
        is_compressed = is_compressed and head.get(7, 1) == 1
        counts = number_of(head, 1), number_of(head, 4)
        page = Page(*sizes, *counts, False, n_level_bytes, number_of(head, 2), is_compressed)
    elif kind == _INDEX_PAGE:
        page = Page(*sizes, 0, PLAIN)
    else:
        raise UnknownFormError(f"it has a page of the unknown type {kind}")
    if min(page.n_values, n_uncompressed) < 0 or n_uncompressed > _MAX_PAGE_BYTES:
        raise PageError("a page has an impossible size")
    if not page.is_compressed and n_bytes != n_uncompressed:
        raise PageError("a page that is not compressed has two sizes")
    return page


def decompress(read: Read, chunk: Chunk, page: Page) -> bytes:
    """Read the content of a page: the definition levels and the values.

    Raises:
        PageError: It cannot be decompressed to the size that its header states.
    """
    content = read(page.start, page.n_bytes)
    n_levels = page.n_level_bytes or 0
    n_values_bytes = page.n_uncompressed_bytes - n_levels
    if not page.is_compressed or n_values_bytes == 0:
        return content
    try:
        values = pa.Codec(_CODECS[chunk.codec]).decompress(
            content[n_levels:], n_values_bytes, asbytes=True
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PageError(f"a page cannot be decompressed ({error})") from error
    if len(values) != n_values_bytes:
        raise PageError("a page has another size after decompression than its header states")
    return content[:n_levels] + bytes(values)

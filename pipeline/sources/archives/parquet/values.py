"""Values of a Parquet page of bytes: where each is, without reading the values.

A page of PLAIN encoding holds, after the definition levels, each value with its length before it.
Only levels and lengths are read, or indices of a dictionary. See
https://parquet.apache.org/docs/file-format/data-pages/encodings/.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.sources.archives.parquet.pages import (
    PLAIN,
    Chunk,
    Page,
    PageError,
    Read,
    UnknownFormError,
)
from pipeline.sources.archives.parquet.thrift import read_varint

Integers = npt.NDArray[np.int64]

_OTHER_ENCODINGS = {
    5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY",
    7: "DELTA_BYTE_ARRAY",
    9: "BYTE_STREAM_SPLIT",
}
_MAX_BITS = 32  # of a level, or an index of a dictionary


class Values(NamedTuple):
    """Where values are.

    Attributes:
        start: First byte of each, int64 `[n_values]`.
        length: Number of bytes, int64 `[n_values]`; -1 = null.
    """

    start: Integers
    length: Integers


def locate(
    read: Read, start: int, chunk: Chunk, page: Page, dictionary: Values | None = None
) -> Values:
    """Find the values of a page by their lengths.

    Args:
        read: Reads the file, or the content of the page if that was decompressed.
        start: Position of the page's content for `read`.
        chunk: The chunk.
        page: The page.
        dictionary: Values of the chunk's dictionary; None if it has none.

    Returns:
        The values; where they are in the dictionary, if the page refers to it.

    Raises:
        PageError: The levels or values do not fill the page exactly.
        UnknownFormError: The values have an encoding that is not known.
    """
    stop = start + page.n_uncompressed_bytes
    is_present = np.ones(page.n_values, np.bool_)
    if chunk.max_level and not page.is_dictionary:
        n_bytes = page.n_level_bytes
        if n_bytes is None:
            n_bytes = int.from_bytes(_within(read, start, 4, stop), "little")
            start += 4
        levels = _within(read, start, n_bytes, stop)
        start += n_bytes
        is_present = hybrid(levels, chunk.max_level.bit_length(), page.n_values) == chunk.max_level
    n_present = int(is_present.sum())
    if page.n_nulls is not None and page.n_nulls != page.n_values - n_present:
        raise PageError("a page has another number of nulls than its header states")
    if page.encoding == PLAIN:
        found = _hop(read, start, stop, n_present)
    elif page.refers_to_dictionary and dictionary is not None:
        found = _look_up(_within(read, start, stop - start, stop), n_present, dictionary)
    else:
        name = _OTHER_ENCODINGS.get(page.encoding, str(page.encoding))
        raise UnknownFormError(f"its values have the encoding {name}")
    if n_present == page.n_values:
        return found
    values = Values(np.zeros(page.n_values, np.int64), np.full(page.n_values, -1, np.int64))
    values.start[is_present], values.length[is_present] = found
    return values


def _within(read: Read, start: int, n_bytes: int, stop: int) -> bytes:
    """Read bytes of a page that ends at `stop`."""
    if n_bytes > stop - start:
        raise PageError("a part of a page is longer than the page")
    return read(start, n_bytes)


def _hop(read: Read, position: int, stop: int, n_values: int) -> Values:
    """Go from length to length; the values must end at `stop`."""
    if 4 * n_values > stop - position:
        raise PageError("a page is too short for its values")
    starts, lengths = [], []
    for _ in range(n_values):
        length = int.from_bytes(read(position, 4), "little")
        starts.append(position + 4)
        lengths.append(length)
        position += 4 + length
        if position > stop:
            break
    if position != stop:
        raise PageError("the values of a page do not end where the page does")
    return Values(np.array(starts, np.int64), np.array(lengths, np.int64))


def _look_up(data: bytes, n_values: int, dictionary: Values) -> Values:
    """Find values by their indices in a dictionary."""
    if n_values == 0:
        return Values(np.empty(0, np.int64), np.empty(0, np.int64))
    indices = hybrid(data[1:], data[0] if data else 0, n_values)
    if indices.max(initial=0) >= len(dictionary.start):
        raise PageError("a page refers to a value that its dictionary does not have")
    return Values(dictionary.start[indices], dictionary.length[indices])


def hybrid(data: bytes, n_bits: int, n_values: int) -> Integers:
    """Decode numbers of the encoding RLE: runs of one number, and groups of 8 packed ones.

    Args:
        data: The runs.
        n_bits: Bits of a number.
        n_values: Number of numbers.

    Returns:
        int64 `[n_values]`.

    Raises:
        PageError: The data end too early, or a number has more than 32 bits.
    """
    if n_bits > _MAX_BITS:
        raise PageError(f"a page has numbers of {n_bits} bits")
    values = np.zeros(n_values, np.int64)
    position = n_done = 0
    while n_bits and n_done < n_values:
        try:
            head, position = read_varint(data, position)
        except ValueError as error:
            raise PageError(f"a run of a page cannot be read: {error}") from error
        is_packed, count = head & 1, head >> 1
        n_bytes = count * n_bits if is_packed else (n_bits + 7) // 8
        n_taken = min(8 * count if is_packed else count, n_values - n_done)
        run = data[position : position + n_bytes]
        position += n_bytes
        if 8 * len(run) < n_bits * (n_taken if is_packed else 1):
            raise PageError("a run of a page ends too early")
        if is_packed:
            bits = np.unpackbits(np.frombuffer(run, np.uint8), bitorder="little")
            rows = bits[: n_taken * n_bits].reshape(n_taken, n_bits)
            values[n_done : n_done + n_taken] = rows @ (1 << np.arange(n_bits, dtype=np.int64))
        else:
            values[n_done : n_done + n_taken] = int.from_bytes(run, "little")
        n_done += n_taken
    return values

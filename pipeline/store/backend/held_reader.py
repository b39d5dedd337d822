"""Reads of objects of which some ranges are in memory."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.backend.base_reader import ObjectReader
from pipeline.store.backend.ends import OtherEndError

Range = tuple[int, npt.NDArray[np.uint8]]
"""First byte of a range of an object, and its content, one-dimensional."""
OpenBehind = Callable[[], ObjectReader | None]
"""Returns the reader of the whole object, or None if it cannot be read by ranges."""


class HeldRanges:
    """Ranges of objects that are in memory. They are replaced while nothing is read from them."""

    def __init__(self) -> None:
        self._ranges: Mapping[Hashable, Sequence[Range]] = {}

    def replace(self, ranges: Mapping[Hashable, Sequence[Range]]) -> None:
        """Hold other ranges.

        Args:
            ranges: By object, in the order of their bytes; they may not overlap.
        """
        self._ranges = ranges

    def reader(self, key: Hashable, behind: OpenBehind) -> ObjectReader | None:
        """Return the reader of an object.

        Args:
            key: The object.
            behind: Opens it, for what is not in memory.
        """
        ranges = self._ranges.get(key)
        return behind() if ranges is None else HeldReader(ranges, behind)


class HeldReader(ObjectReader):
    """An object of which some ranges are in memory; the rest is read by another reader.

    Args:
        ranges: In the order of their bytes.
        behind: Opens the object, for what is not in memory.
    """

    mapped = None

    def __init__(self, ranges: Sequence[Range], behind: OpenBehind) -> None:
        self._ranges, self._open = ranges, behind

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._behind.size

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        held = self._held(offset, length)
        return self._behind.read(offset, length) if held is None else held.tobytes()

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Copy a range into arrays."""
        if not self._copy(parts, offset):
            self._behind.read_into(parts, offset, streams)

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Copy a range that is in memory; leave another one to the reader of the object."""
        return self._copy(parts, offset) or self._behind.read_cached(parts, offset, streams)

    def prefetch(self, offset: int, length: int) -> None:
        """Do nothing for what is in memory."""
        if self._held(offset, length) is None:
            self._behind.prefetch(offset, length)

    @property
    def _behind(self) -> ObjectReader:
        found = self._open()
        if found is None:
            raise OtherEndError(errno.EIO, "the object cannot be read by ranges")
        return found

    def _held(self, offset: int, length: int) -> npt.NDArray[np.uint8] | None:
        """Return a range, if all of it is in memory."""
        at = bisect_right(self._ranges, offset, key=_first) - 1
        if at < 0:
            return None
        first, content = self._ranges[at]
        is_within = offset + length <= first + len(content)
        return content[offset - first : offset - first + length] if is_within else None

    def _copy(self, parts: Sequence[npt.NDArray[Any]], offset: int) -> bool:
        content = self._held(offset, sum(part.nbytes for part in parts))
        if content is None:
            return False
        at = 0
        for part in parts:
            if part.nbytes:
                target = np.frombuffer(part.data.cast("B"), np.uint8)
                np.copyto(target, content[at : at + part.nbytes])
                at += part.nbytes
        return True


def _first(item: Range) -> int:
    return item[0]

"""Reads of one object, each a request for a range of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.objects.base import Objects
from pipeline.store.backend.base import ObjectReader

_REQUEST_BYTES = 8 << 20
"""A longer read is divided into requests of this size, which are in flight together."""


class RemoteReader(ObjectReader):
    """An object as it was when it was opened: if it is replaced, reads fail with ESTALE.

    Raises:
        FileNotFoundError: On creation, if there is no such object.
    """

    mapped = None

    def __init__(self, client: Objects, key: str) -> None:
        self._client, self._key = client, key
        info = client.head(key)
        self._size, self._etag = info.size, info.etag

    @property
    def size(self) -> int:
        """Bytes of the object when it was opened."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        return b"".join(self._parts(offset, length))

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Copy a range into arrays."""
        views = [part.data.cast("B") for part in parts if part.nbytes]
        received = self._parts(offset, sum(len(view) for view in views))
        at, part = 0, memoryview(b"")
        for view in views:
            filled = 0
            while filled < len(view):
                if at == len(part):
                    at, part = 0, received.pop(0)
                n = min(len(view) - filled, len(part) - at)
                _copy(view[filled : filled + n], part[at : at + n])
                filled, at = filled + n, at + n

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Return False: every read waits for the server."""
        return False

    def prefetch(self, offset: int, length: int) -> None:
        """Do nothing: there is no cache to fetch into."""

    def _parts(self, offset: int, length: int) -> list[memoryview]:
        if length and offset >= 0 and offset + length > self._size:
            raise EOFError(f"{self._client.locate(self._key)} ends at byte {self._size}")
        if length <= _REQUEST_BYTES:
            return [self._client.get_range(self._key, offset, length, self._etag)]
        starts = list(range(offset, offset + length, _REQUEST_BYTES))
        lengths = [min(_REQUEST_BYTES, offset + length - start) for start in starts]
        found = self._client.get_ranges(self._key, starts, lengths, -1, self._etag)
        return list(found)


def _copy(target: memoryview, source: memoryview) -> None:
    """Copy bytes without the interpreter's lock, which other threads need."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))

"""Reads of one object by ranges."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.objects.base import ObjectInfo, Objects
from pipeline.objects.library import generation
from pipeline.objects.ranges import LONGEST_BYTES
from pipeline.store.backend.base import ObjectReader
from pipeline.store.backend.ends import End, OtherEndError
from pipeline.store.backend.remote.fetching import Segments


class SeenObject:
    """An object as it was when it was first seen: every answer must have the same size and ETag."""

    def __init__(self, client: Objects, key: str) -> None:
        self._client, self._key = client, key
        self._seen: dict[str, tuple[int, str]] = {}  # an entry is made once, by whatever thread

    @property
    def key(self) -> str:
        """Its key."""
        return self._key

    @property
    def location(self) -> str:
        """Where it is."""
        return self._client.locate(self._key)

    @property
    def place(self) -> str:
        """The bucket and the prefix."""
        return self._client.uri

    @property
    def etag(self) -> str:
        """Its ETag; empty before anything of it was seen, or if the place tells none."""
        return self._seen.get(self._key, (-1, ""))[1]

    @property
    def size(self) -> int:
        """Its bytes; -1 before anything of it was seen."""
        return self._seen.get(self._key, (-1, ""))[0]

    def look(self) -> None:
        """Ask for its size and its ETag.

        Raises:
            FileNotFoundError: It does not exist.
            OSError: It was replaced.
        """
        self._compare(self._client.head(self._key))

    def fetch(self, start: int, length: int) -> memoryview:
        """Fetch a range.

        Raises:
            EOFError: It ends before.
            OSError: It cannot be read, or was replaced.
        """
        content, info = self._client.fetch(self._key, start, length, self.etag)
        if info is not None:
            self._compare(info)
        elif self.size < 0:
            self.look()
        return content

    def _compare(self, info: ObjectInfo) -> None:
        found = info.size, info.etag
        if self._seen.setdefault(self._key, found) != found:
            raise OSError(errno.ESTALE, "the object has changed since it was opened", self.location)


class RemoteReader(ObjectReader):
    """An object as it was when it was first seen: if it is replaced, reads fail with ESTALE.

    What is announced (`prefetch`, `read_cached`) is fetched together, see `fetching.py`.

    Args:
        client: The bucket and the prefix.
        key: The object.
        end: How it should end: nothing is asked for before the first read, which compares it.
            Without, size and ETag are asked for at once.

    Raises:
        FileNotFoundError: On creation without `end`, if there is no such object.
    """

    mapped = None

    def __init__(self, client: Objects, key: str, end: End | None = None) -> None:
        self._object, self._end = SeenObject(client, key), end
        self._has_other_end = self._is_end_announced = False
        self._ahead: tuple[int, Segments] | None = None
        if end is None:
            self._object.look()

    @property
    def seen(self) -> SeenObject:
        """The object as it was when it was first seen."""
        return self._object

    def announce_end(self) -> None:
        """Announce a read of the object's end, if it is to be compared."""
        segments, end = self._segments, self._end
        if end is not None and end.tail and not self._is_end_announced:
            self._is_end_announced = True
            segments.add(end.size - len(end.tail), end.size)

    def compare_end(self) -> None:
        """Compare the object's end now, if that was not done yet; then it was seen.

        Raises:
            OtherEndError: It has another end than was expected.
        """
        if self._end is not None:
            if not self._end.tail:
                self._object.look()
            self._read_first(self._segments, self._end, 0, 0)

    @property
    def size(self) -> int:
        """Bytes of the object when it was first seen."""
        if self._object.size < 0:
            self._object.look()
        return self._object.size

    def has_end(self, end: End) -> bool | None:
        """Return None, and compare it with the first read, if that is what it was opened for."""
        return None if end == self._end else super().has_end(end)

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        return b"".join(self._read(offset, length))

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Copy a range into arrays."""
        views = [part.data.cast("B") for part in parts if part.nbytes]
        received = self._read(offset, sum(len(view) for view in views))
        at, part = 0, memoryview(b"")
        for view in views:
            filled = 0
            while filled < len(view):
                if at == len(part):
                    at, part = 0, received.pop(0)
                n = min(len(view) - filled, len(part) - at)
                _copy(view[filled : filled + n], part[at : at + n])
                filled, at = filled + n, at + n

    def check_end(self) -> None:
        """Compare the object's end now, if that was not done yet."""
        self.compare_end()

    def fetch_into(self, part: npt.NDArray[Any], offset: int) -> None:
        """Copy a range into an array, by one request that waits for no others."""
        if part.nbytes:
            _copy(part.data.cast("B"), self._object.fetch(offset, part.nbytes))

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Announce a read, which waits for the server; return False, unless it is of nothing."""
        length = sum(part.nbytes for part in parts)
        self.prefetch(offset, length)
        return not length

    def prefetch(self, offset: int, length: int) -> None:
        """Announce a read: it is requested together with others, when one of them waits."""
        known = self._object.size if self._end is None else self._end.size
        if 0 <= offset < offset + length <= known and not self._has_other_end:
            self.announce_end()
            self._segments.announce(offset, offset + length)

    @property
    def _segments(self) -> Segments:
        """What is fetched in this process; a fork has nothing of what its parent has fetched."""
        if self._ahead is None or self._ahead[0] != generation():
            self._is_end_announced = False
            self._ahead = generation(), Segments(self._object.fetch, self._object.place)
        return self._ahead[1]

    def _read(self, offset: int, length: int) -> list[memoryview]:
        found = self._object
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, f"no range: {length} bytes from {offset}", found.location)
        if not length:
            return []
        segments = self._segments
        if self._end is not None:
            return self._read_first(segments, self._end, offset, offset + length)
        if 0 <= found.size < offset + length:
            raise EOFError(f"{found.location} ends at byte {found.size}")
        if length <= LONGEST_BYTES and not segments.is_ahead(offset):
            return [found.fetch(offset, length)]
        return segments.take(offset, offset + length)

    def _read_first(self, segments: Segments, end: End, start: int, stop: int) -> list[memoryview]:
        """Read a range, and compare the end of the object, by requests at the same time.

        Raises:
            OtherEndError: The object has another end than was expected.
        """
        if not self._has_other_end:
            self.announce_end()
            if not segments.is_ahead(start):
                segments.announce(start, stop)
            try:
                tail = b"".join(segments.take(end.size - len(end.tail), end.size))
                parts = segments.take(start, stop)
            except EOFError:
                if self._object.size == end.size:
                    raise
            else:
                if tail == end.tail and self._object.size == end.size:
                    self._end = None
                    return parts
            self._has_other_end = True
        raise OtherEndError(
            errno.EIO, "the object has another end than was expected", self._object.location
        )


def _copy(target: memoryview, source: memoryview) -> None:
    """Copy bytes without the interpreter's lock, which other threads need."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))

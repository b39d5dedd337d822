"""A byte range of a file on the hub, read like a separate file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.audio.byte_range import ByteRange
from pipeline.errors import AudioError, SourceError
from pipeline.sources.repository.remote import read_range, size_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from pipeline.sources.base import Segment

_BLOCK_BYTES = 1 << 14
_WHOLE_BYTES = 1 << 20  # what is no larger is read at once, except for its ends
_MAX_BLOCK_BYTES = 1 << 22  # of a file that is read from one end to the other
_COPIED_BYTES = 1 << 24


class RemoteRange(ByteRange):
    """A byte range of a file on the hub; unbuffered for the caller, in blocks for the hub.

    libsndfile takes an error of a callback for the end of the file. So a failure is kept, and
    raised when the range is closed.

    Args:
        path: URL of the file.
        start: First byte.
        n_bytes: Number of bytes.
        head: Bytes that precede the range.
        whole: Range that this one is a part of; failures are kept there.
    """

    def __init__(
        self,
        path: str,
        start: int,
        n_bytes: int,
        head: bytes = b"",
        whole: RemoteRange | None = None,
    ) -> None:
        self._path, self._head = path, head
        self._start, self._n_bytes = start - len(head), len(head) + n_bytes
        self._position = 0
        self._block, self._block_start, self._block_bytes = b"", 0, _BLOCK_BYTES
        self._failures: list[SourceError] = [] if whole is None else whole._failures

    def part(self, start: int, n_bytes: int, head: bytes) -> RemoteRange:
        """Return a part of this range, which has no head, with a head of its own."""
        return RemoteRange(self._path, self._start + start, n_bytes, head, self)

    def ends(self, n_bytes: int) -> tuple[bytes, int, bytes]:
        """Return the first bytes, the number of all, and the last bytes; see `ByteRange`."""
        n, self._block_start = min(n_bytes, self._n_bytes), 0
        if self._n_bytes <= _BLOCK_BYTES:  # one request is faster than two
            self._block = read_range(self._path, self._start, self._n_bytes)
            return self._block[:n], self._n_bytes, self._block[self._n_bytes - n :]
        self._block = read_range(self._path, self._start, n)
        tail = read_range(self._path, self._start + self._n_bytes - n, n)
        return self._block, self._n_bytes, tail

    def copy_to(self, descriptor: int) -> None:
        """Copy all bytes to another file."""
        os.write(descriptor, self._head)
        for position in range(len(self._head), self._n_bytes, _COPIED_BYTES):
            n = min(_COPIED_BYTES, self._n_bytes - position)
            view = memoryview(read_range(self._path, self._start + position, n))
            while len(view):
                view = view[os.write(descriptor, view) :]

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer, up to the end of the range; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        if self._position < len(self._head):
            part = self._head[self._position : self._position + len(view)]
        else:
            part = self._bytes_at(self._position, len(view))
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _bytes_at(self, position: int, n_wanted: int) -> bytes:
        """Return some bytes at a position, at least one of those that are wanted and exist."""
        n_left = self._n_bytes - position
        if min(n_wanted, n_left) <= 0 or self._failures:
            return b""
        first = position - self._block_start
        if not 0 <= first < len(self._block):
            is_next = first == len(self._block)
            grown = min(2 * self._block_bytes, _MAX_BLOCK_BYTES)
            self._block_bytes = grown if is_next else _BLOCK_BYTES
            n = min(n_left, max(n_wanted, self._block_bytes))
            if self._n_bytes <= _WHOLE_BYTES:
                position, n = len(self._head), self._n_bytes - len(self._head)
            try:
                self._block = read_range(self._path, self._start + position, n)
            except SourceError as error:
                self._failures.append(error)
                return b""
            first += self._block_start - position
            self._block_start = position
        return self._block[first : first + n_wanted]

    def close(self) -> None:
        """Raise the error of a read that failed."""
        if not self.closed:
            super(ByteRange, self).close()
            if self._failures:
                raise self._failures.pop()


def open_remote(segment: Segment, path: str) -> RemoteRange:
    """Open the encoded bytes of a segment whose path is a URL of the hub.

    Raises:
        AudioError: They do not lie within the file.
        SourceError: The hub refuses the file, or does not answer.
    """
    start, n_bytes = segment.byte_offset, segment.byte_length
    if n_bytes == -1 or start < 0:
        n_file_bytes = size_of(path)
        n_bytes = n_file_bytes - start if n_bytes == -1 else n_bytes
        if not 0 <= start <= start + n_bytes <= n_file_bytes:
            raise AudioError(f"the bytes [{start}, {start + n_bytes}) do not lie within the file")
    return RemoteRange(path, start, n_bytes)

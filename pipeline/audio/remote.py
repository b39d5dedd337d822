"""A byte range of a file in a bucket or on the hub, read like a separate file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.audio.byte_range import ByteRange
from pipeline.errors import AudioError, SourceError
from pipeline.sources.remote.extents import extents

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from pipeline.sources.base import Segment

_FIRST_BYTES = 1 << 14
_WHOLE_BYTES = 1 << 20  # what is no larger is read at once, except for its ends
_MAX_AHEAD_BYTES = 1 << 22  # of a file that is read from one end to the other
_COPIED_BYTES = 1 << 24


class RemoteRange(ByteRange):
    """A byte range of a remote file; unbuffered for the caller, read ahead for the server.

    A request asks for 16 KiB, and for twice as much as the last one if it goes on where that ended.

    libsndfile takes an error of a callback for the end of the file. So a failure is kept, and
    raised when the range is closed.

    Args:
        path: URI of the file.
        start: First byte.
        n_bytes: Number of bytes.
        head: Bytes that precede the range.
        whole: Range that this one is a part of; failures are kept there.
        is_sought: Whether only a part of the bytes will be read.
    """

    def __init__(
        self,
        path: str,
        start: int,
        n_bytes: int,
        head: bytes = b"",
        whole: RemoteRange | None = None,
        is_sought: bool = False,
    ) -> None:
        self._path, self._head = path, head
        self._start, self._n_bytes = start - len(head), len(head) + n_bytes
        self._position = 0
        self._block, self._block_start, self._n_ahead = b"", 0, _FIRST_BYTES
        self._failures: list[SourceError | AudioError] = [] if whole is None else whole._failures
        self.is_sought = is_sought and n_bytes > _WHOLE_BYTES

    def part(self, start: int, n_bytes: int, head: bytes) -> RemoteRange:
        """Return a part of this range, which has no head, with a head of its own."""
        return RemoteRange(self._path, self._start + start, n_bytes, head, self, self.is_sought)

    def ends(self, n_bytes: int) -> tuple[bytes, int, bytes]:
        """Return the first bytes, the number of all, and the last bytes; see `ByteRange`."""
        n = min(n_bytes, self._n_bytes)
        if self._n_bytes <= _FIRST_BYTES:  # one request is faster than two
            content = extents.all_of(self._path, self._start, self._n_bytes)
            return content[:n], self._n_bytes, content[self._n_bytes - n :]
        head = extents.all_of(self._path, self._start, n)
        return head, self._n_bytes, extents.all_of(self._path, self._stop - n, n)

    @property
    def _stop(self) -> int:
        return self._start + self._n_bytes

    def copy_to(self, descriptor: int) -> None:
        """Copy all bytes to another file."""
        os.write(descriptor, self._head)
        position = self._start + len(self._head)
        while position < self._stop:
            n_ahead = min(_COPIED_BYTES, self._stop - position)
            first, block = extents.read(self._path, position, n_ahead)
            view = memoryview(block)[position - first : self._stop - first]
            position += len(view)
            while len(view):
                view = view[os.write(descriptor, view) :]

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer, up to the end of the range; return the number of bytes read.

        libsndfile takes fewer bytes for the end of the file.
        """
        view, n_read = memoryview(buffer).cast("B"), 0
        while n_read < len(view):
            if self._position < len(self._head):
                part = self._head[self._position : self._position + len(view) - n_read]
            else:
                part = self._bytes_at(self._position, len(view) - n_read)
            if not part:
                break
            view[n_read : n_read + len(part)] = part
            self._position += len(part)
            n_read += len(part)
        return n_read

    def _bytes_at(self, position: int, n_wanted: int) -> bytes:
        """Return some bytes at a position, at least one of those that are wanted and exist."""
        n_wanted = min(n_wanted, self._n_bytes - position)
        if n_wanted <= 0 or self._failures:
            return b""
        wanted = self._start + position
        if not self._block_start <= wanted < self._block_start + len(self._block):
            is_next = wanted == self._block_start + len(self._block)
            grown = min(2 * self._n_ahead, _MAX_AHEAD_BYTES)
            self._n_ahead = grown if is_next else _FIRST_BYTES
            is_small = self._n_bytes <= _WHOLE_BYTES
            n_ahead = self._n_bytes if is_small else max(n_wanted, self._n_ahead)
            n_ahead = min(n_ahead, self._stop - wanted)
            try:
                self._block_start, self._block = extents.read(self._path, wanted, n_ahead)
            except (SourceError, AudioError) as error:
                self._failures.append(error)
                return b""
        first = wanted - self._block_start
        return self._block[first : first + n_wanted]

    @property
    def has_failed(self) -> bool:
        """Whether a read has failed, so that `close` will raise."""
        return bool(self._failures)

    def close(self) -> None:
        """Raise the error of a read that failed."""
        if not self.closed:
            super(ByteRange, self).close()
            if self._failures:
                raise self._failures.pop()


def open_remote(segment: Segment, path: str) -> RemoteRange:
    """Open the encoded bytes of a segment whose path is a URI.

    Raises:
        AudioError: They do not lie within the file, or there is none.
        SourceError: The server refuses the file, or does not answer.
    """
    start, n_bytes = segment.byte_offset, segment.byte_length
    if n_bytes == -1 or start < 0:
        n_file_bytes = extents.info(path).n_bytes
        n_bytes = n_file_bytes - start if n_bytes == -1 else n_bytes
        if not 0 <= start <= start + n_bytes <= n_file_bytes:
            raise AudioError(f"the bytes [{start}, {start + n_bytes}) do not lie within the file")
    return RemoteRange(path, start, n_bytes, is_sought=segment.has_end)

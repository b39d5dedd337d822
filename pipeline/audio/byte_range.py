"""A byte range of a file, read like a separate file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import AudioError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class ByteRange(io.RawIOBase):
    """A byte range of a file, read like a separate file; unbuffered.

    Args:
        file: The file; closed with this one.
        start: First byte.
        n_bytes: Number of bytes; all of them must exist.
        head: Bytes that precede the range.
    """

    def __init__(self, file: io.FileIO, start: int, n_bytes: int, head: bytes = b"") -> None:
        self._file, self._head = file, head
        self._start, self._n_bytes = start - len(head), len(head) + n_bytes
        self._position = 0

    def part(self, start: int, n_bytes: int, head: bytes) -> ByteRange:
        """Return a part of this range, which has no head, with a head of its own."""
        return ByteRange(self._file, self._start + start, n_bytes, head)

    def ends(self, n_bytes: int) -> tuple[bytes, int, bytes]:
        """Return the first bytes, the number of all, and the last bytes, of a range without head.

        Args:
            n_bytes: Number of bytes of each end, or fewer if there are not so many.
        """
        n = min(n_bytes, self._n_bytes)
        descriptor, stop = self._file.fileno(), self._start + self._n_bytes
        with one_file_only():
            return (
                os.pread(descriptor, n, self._start),
                self._n_bytes,
                os.pread(descriptor, n, stop - n),
            )

    def copy_to(self, descriptor: int) -> None:
        """Copy all bytes to another file; those of the range within the kernel."""
        n_copied = os.write(descriptor, self._head) if self._head else 0
        while n_copied < self._n_bytes:
            first, n_left = self._start + n_copied, self._n_bytes - n_copied
            n = os.sendfile(descriptor, self._file.fileno(), first, n_left)
            if n == 0:
                raise AudioError("the file became shorter while it was read")
            n_copied += n

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the range and return its number."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._n_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"seek to byte {origin + offset} of a byte range")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer, up to the end of the range; return the number of bytes read."""
        if self._position < len(self._head):
            part = self._head[self._position : self._position + len(memoryview(buffer))]
            memoryview(buffer)[: len(part)] = part
            self._position += len(part)
            return len(part)
        n_left = max(0, self._n_bytes - self._position)
        self._file.seek(self._start + self._position)
        n_read = self._file.readinto(memoryview(buffer)[:n_left])
        self._position += n_read
        return n_read

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()


@contextmanager
def one_file_only() -> Iterator[None]:
    """Make an error of the file system, e.g. a bad sector, one that concerns this file only."""
    try:
        yield
    except OSError as error:
        raise AudioError(f"the file cannot be read: {error.strerror or error}") from error

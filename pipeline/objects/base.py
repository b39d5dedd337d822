"""What readers and backends need of a place with objects: a bucket, or a file system."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.files import Buffer
from pipeline.objects.ranges import COALESCE_BYTES, fetch_merged


@dataclass(frozen=True)
class ObjectInfo:
    """What a server says of an object.

    Attributes:
        key: Its key below the client's prefix.
        size: Bytes.
        etag: Another one for every content; empty if the place does not tell.
        modified_s: When it was written by the server's clock, in whole seconds since the epoch
            with most servers.
    """

    key: str
    size: int
    etag: str
    modified_s: float


class Objects(Protocol):
    """The objects below a prefix. Safe to use from several threads and after a fork.

    Reads raise a FileNotFoundError for a missing object and another OSError otherwise; its
    `filename` is the object's URI. Writes raise a StoreError.
    """

    @property
    def uri(self) -> str:
        """The URI of the prefix."""

    def locate(self, key: str) -> str:
        """Return the URI of an object."""

    def get(self, key: str) -> bytes:
        """Read a whole object."""

    def get_range(self, key: str, start: int, length: int, etag: str = "") -> memoryview:
        """Read a range of an object.

        Args:
            key: The object.
            start: First byte.
            length: Bytes.
            etag: What the object must have, where the place can compare it; empty for any.

        Raises:
            EOFError: The object ends before.
            OSError: It cannot be read, or has changed; then its `errno` is ESTALE.
        """
        if start < 0 or length < 0:
            raise OSError(errno.EINVAL, f"no range: {length} bytes from {start}", self.locate(key))
        return self.fetch(key, start, length, etag)[0] if length else memoryview(b"")

    def fetch(
        self, key: str, start: int, length: int, etag: str = ""
    ) -> tuple[memoryview, ObjectInfo | None]:
        """Read a range of at least one byte, as `get_range` does, and what is told of the object.

        Returns:
            None in place of the latter if the answer does not tell.
        """

    def get_ranges(
        self,
        key: str,
        starts: Sequence[int],
        lengths: Sequence[int],
        coalesce: int = COALESCE_BYTES,
        etag: str = "",
    ) -> Sequence[memoryview]:
        """Read many ranges of an object, those near to each other by one request.

        Args:
            key: The object.
            starts: First byte of each range.
            lengths: Bytes of each.
            coalesce: Bytes between two ranges that are rather read than requested apart.
            etag: As for `get_range`.

        Raises:
            EOFError: The object ends before.
            OSError: It cannot be read, or has changed.
        """
        return fetch_merged(
            lambda start, length: self.get_range(key, start, length, etag),
            starts,
            lengths,
            coalesce,
        )

    def head(self, key: str) -> ObjectInfo:
        """Return the size, the ETag and the time of an object."""

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        try:
            self.head(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "", offset: str = "", last: str = "") -> Sequence[ObjectInfo]:
        """List the objects below a folder whose keys come after `offset`, not after `last`."""

    def children(self, folder: str = "") -> Sequence[str]:
        """List the names directly below a folder, of objects and folders alike."""
        objects, folders = self.list_folder(folder)
        return [*(info.key.rpartition("/")[2] for info in objects), *folders]

    def list_folder(self, folder: str = "") -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Return the objects directly below a folder, and the names of the folders there."""

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object."""

    def create(self, key: str, content: Buffer) -> bool:
        """Create a small object, unless there is one."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

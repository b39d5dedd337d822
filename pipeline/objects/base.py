"""What readers and backends need of a place with objects: a bucket, or a file system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.files import Buffer
from pipeline.objects.ranges import COALESCE_BYTES


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
        """Read a range of an object, which must have this ETag, if one is given.

        Raises:
            EOFError: The object ends before.
        """

    def fetch(
        self, key: str, start: int, length: int, etag: str = ""
    ) -> tuple[memoryview, ObjectInfo | None]:
        """Read a range as `get_range` does, with what the answer says of the object, if it does."""
        return self.get_range(key, start, length, etag), None

    def get_ranges(
        self,
        key: str,
        starts: Sequence[int],
        lengths: Sequence[int],
        coalesce: int = COALESCE_BYTES,
        etag: str = "",
    ) -> Sequence[memoryview]:
        """Read many ranges of an object, those near to each other by one request."""

    def head(self, key: str) -> ObjectInfo:
        """Return the size, the ETag and the time of an object."""

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""

    def list(self, prefix: str = "", offset: str = "", last: str = "") -> Sequence[ObjectInfo]:
        """List the objects below a folder whose keys come after `offset`, not after `last`."""

    def children(self, folder: str = "") -> Sequence[str]:
        """List the names directly below a folder, of objects and folders alike."""

    def list_folder(self, folder: str = "") -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Return the objects directly below a folder, and the names of the folders there."""

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object."""

    def create(self, key: str, content: Buffer) -> bool:
        """Create a small object, unless there is one."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

"""The contract of a storage backend.

A store is a set of objects. An object has a key: a relative path with forward slashes, such as
`index/unit-3.parquet`. `store/format` defines the keys; a backend stores the bytes.
`tests/store/test_backends.py` tests every implementation against this contract.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.files import Buffer, Map, final_name
from pipeline.store.backend.base_reader import ObjectReader
from pipeline.store.backend.ends import CheckCopy, End

__all__ = [
    "Backend",
    "Buffer",
    "FoundLease",
    "LeaseOperations",
    "Location",
    "Map",
    "ObjectReader",
    "PartialObject",
    "final_name",
]


class PartialObject(Protocol):
    """An object that is written in any order and is invisible until `Backend.publish`.

    Several threads may write to it. None may be writing when it is published or discarded.
    """

    def write(self, data: Buffer, offset: int) -> None:
        """Write bytes to their place; `data` may be reused as soon as this returns.

        Bytes before the end of the object that are never written are zero.

        Raises:
            NoSpaceError: The storage is full.
            StoreError: The bytes cannot be written.
        """

    def discard(self) -> None:
        """Drop what was written, unless it was published. Never raises."""


@dataclass(frozen=True)
class FoundLease:
    """A lease that stands, i.e. that was neither released nor removed.

    Attributes:
        content: What its holder wrote.
        heartbeat_s: Its last heartbeat by the storage's clock, in seconds since the epoch.
    """

    content: bytes
    heartbeat_s: float


class LeaseOperations(Protocol):
    """What leases are made of; `store/coordination/lease.py` says what they are for.

    At most one lease stands under a key. Contents are unique: no two leases have the same. Folders
    keep a lease as a file with the heartbeat as its time (`file_leases.py`). Object stores, which
    have no locks, no rename and no time that can be set, number them (`remote/leases.py`).
    """

    def check(self) -> str:
        """Check that the storage keeps the promises of `Backend`, as far as a trial shows it.

        Called by a driver before it takes the lease. Creates the store's folder if need be, and
        leaves nothing else.

        Returns:
            A warning for the user: what no trial on one machine can show. Empty if there is none.

        Raises:
            NoSpaceError: The storage is full.
            StoreError: The store cannot be written, or the storage lacks something; it is named.
        """

    def lock(self, key: str, timeout_s: float) -> AbstractContextManager[float]:
        """Exclude other processes while the `with` block runs.

        The lock must be released when its process dies, and when the block ends even if a fork has
        inherited it. Where the storage has no locks the block runs without one, and `create`
        decides alone. Creates the store's folder if need be.

        Returns:
            A context manager that yields the current time by the storage's clock, the one that
            heartbeats are recorded in.

        Raises:
            TimeoutError: Another process has held the lock for `timeout_s`.
            StoreError: The store cannot be written.
        """

    def now_s(self) -> float:
        """Return the time by the storage's clock, as well as it is known without a write."""

    def find(self, key: str) -> FoundLease | None:
        """Return the lease that stands.

        Raises:
            OSError: It cannot be read.
        """

    def create(self, key: str, content: bytes) -> bool:
        """Make a lease, unless one stands: of any number of callers exactly one gets True.

        Raises:
            StoreError: The store cannot be written.
        """

    def beat(self, key: str, content: bytes) -> None:
        """Record a heartbeat of the lease that the caller has made, if it still stands.

        Raises:
            OSError: The storage refuses; StoreError likewise.
        """

    def expire(self, key: str, is_live: Callable[[FoundLease], bool]) -> None:
        """Remove the lease that stands, if there is one, unless it is live.

        Another driver may put a live one in its place at any moment: that must not be removed.

        Raises:
            StoreError: The storage refuses.
        """

    def release(self, key: str, content: bytes) -> None:
        """Remove the lease that the caller has made, if it still stands.

        Raises:
            OSError: The storage refuses; StoreError likewise.
        """


class Backend(Protocol):
    """The storage of one store.

    An implementation must satisfy this:

    - Objects appear whole. A reader sees an object's old content, its new content, or no object.
    - `put_if_absent` is atomic: of any number of callers, on any number of hosts, exactly one gets
      True. Commits depend on it and on nothing else.
    - What a write or a publish has reported as done survives a crash of the machine.
    - It pickles, without secrets, and may be used after a fork and by several threads.
    - A missing object is a FileNotFoundError; any other failure to read is an OSError, whose
      `filename` says where. A failure to write is a StoreError that names the object, a
      NoSpaceError if the storage is full.

    Large objects are written once under keys that are unique to an attempt, so plain puts do for
    them. Only small objects are created conditionally.

    Attributes:
        max_readers: Readers that one process may keep open at a time.
        parallel_reads: Reads that are worth having in flight at a time.
        replaces_cheaply: Whether a large object may be replaced whenever a little is new. If not,
            what grows is kept in several objects that never change.
        writes_in_memory: Whether what is written stays in memory until it is published.
        reads_wait: Whether reads wait for a server, so that large ranges are worth being fetched
            before they are needed.
    """

    max_readers: int
    parallel_reads: int
    replaces_cheaply: bool = True
    writes_in_memory: bool = False
    reads_wait: bool = False

    @property
    def uri(self) -> str:
        """Where the store is, for people and for `open_backend`."""

    def locate(self, key: str) -> str:
        """Where an object is, for messages."""

    def __str__(self) -> str:
        return self.uri

    # Reading

    def read(self, key: str) -> bytes:
        """Read a whole object; of one that `append` writes, all lines in order."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Read a part of an object.

        Raises:
            EOFError: The object ends before.
        """
        return self.open_reader(key).read(offset, length)

    def open_reader(self, key: str, *, whole: bool = False, end: End | None = None) -> ObjectReader:
        """Open an object for many reads.

        Args:
            key: The object.
            whole: Whether most of it will be read: more may be fetched at a time than is asked for.
            end: How it should end. Where opening it takes a request, that is then left to the first
                read, which raises what opening would raise, and compares the end.

        Raises:
            FileNotFoundError: It does not exist.
            OSError: It cannot be opened; EMFILE or ENFILE if too many are open.
        """

    def exists(self, key: str) -> bool:
        """Return whether there is an object under a key."""

    def size(self, key: str) -> int:
        """Return the bytes of an object."""

    def modified_s(self, key: str) -> float:
        """Return when an object was last written or touched, in seconds since the epoch."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """List every key below a folder (`""`: the store), in any order.

        Half-written objects may be among them; `final_name` knows their names.
        """

    def children(self, folder: str) -> Sequence[str]:
        """List the names directly below a folder, of objects and folders alike, in any order.

        This must cost one listing, not a walk. A folder that does not exist has no children.
        """

    def stamps(self, folder: str, expected: Sequence[str] = ()) -> Mapping[str, str]:
        """Return a stamp of every object directly below a folder, by name.

        An object with other content than before has another stamp: two equal stamps of a name are
        stamps of equal contents. The content may be the same although the stamp differs, e.g. of a
        copy. This must cost one listing, and no read of any object.

        Args:
            folder: The folder.
            expected: Names that are probably there. A storage that lists by pages may divide the
                listing by them; what it returns does not depend on them.
        """

    # Writing

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object of `parts`, one after the other; replace an older one atomically."""

    def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create an object of `parts`, unless there is one under the key already.

        Callers that race, and act upon the answer, give each its own content: a storage that has
        lost an answer compares what is there, and takes an equal object for the caller's.

        Returns:
            False if there was one; it is left as it was.

        Raises:
            UnansweredError: The object may appear later: what it refers to must be kept.
            StoreError: The object was not created.
        """

    def open_partial(self, key: str) -> PartialObject:
        """Begin an object whose bytes come in any order."""

    def publish(self, partials: Sequence[Any], run: Map = map) -> None:
        """Make objects visible under their keys, whole and durably; replace older ones.

        When it returns, all are visible and durable. When it raises, any of them may be visible.

        Args:
            partials: Results of `open_partial`.
            run: Calls a function with each of several items, perhaps in parallel threads.

        Raises:
            NoSpaceError: The storage is full.
            StoreError: An object cannot be published.
        """

    def append(self, key: str, line: bytes) -> None:
        r"""Append a line, which ends in `\n`; end a line first that a crash has cut short.

        Lines of several writers must not be mixed. Durability is not required.
        """

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

    def sync(self, folder: str) -> None:
        """Make deletions below a folder durable."""

    def free_bytes(self) -> int:
        """Return the bytes that can still be written; `files.UNKNOWN_BYTES` if that is unknown."""

    # Optional

    def check_copies(self, check: CheckCopy, n_bytes: int) -> None:
        """Have copies of whole objects, of at most `n_bytes`, checked before they are used.

        Raises:
            ConfigError: Copies are kept, and there is too little room for them.
        """
        del check, n_bytes

    @property
    def leases(self) -> LeaseOperations:
        """What `Lease` needs.

        Raises:
            StoreError: This storage offers none: it can only be read.
        """

    def ensure_folder(self, folder: str) -> None:
        """Create an empty folder, where the storage has folders that exist without content."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder that has no objects, where the storage has such folders."""
        del folder

    def local_path(self, key: str) -> Path | None:
        """Return an object's path, where objects are files of this machine; else None."""
        return None


Location = str | os.PathLike[str] | Backend
"""A store's backend, or its path; `open_backend` makes a backend of any of them."""

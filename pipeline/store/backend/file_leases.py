"""Leases of storages that have locks, renames and times: a file, whose time is the heartbeat."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from pipeline.store.backend.base import Buffer, FoundLease, LeaseOperations


class LeaseFiles(Protocol):
    """What a backend has whose objects can be locked, renamed and dated."""

    def read(self, key: str) -> bytes:
        """As `Backend.read`."""

    def modified_s(self, key: str) -> float:
        """As `Backend.modified_s`."""

    def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> bool:
        """As `Backend.put_if_absent`."""

    def delete(self, key: str) -> None:
        """As `Backend.delete`."""

    def check(self) -> str:
        """As `LeaseOperations.check`."""

    def lock(self, key: str, timeout_s: float) -> AbstractContextManager[float]:
        """As `LeaseOperations.lock`."""

    def now_s(self) -> float:
        """As `LeaseOperations.now_s`."""

    def touch(self, key: str) -> None:
        """Set an object's modification time to now, without changing its content.

        Raises:
            OSError: It does not exist, or the storage refuses.
        """

    def move(self, key: str, new: str) -> None:
        """Rename an object atomically: of several callers exactly one succeeds.

        Raises:
            FileNotFoundError: It does not exist any more.
            StoreError: The storage refuses.
        """

    def restore(self, key: str, new: str) -> None:
        """Make the object at `key` appear under `new` too, with its modification time.

        Raises:
            FileExistsError: `new` exists; it is left as it is.
        """


class FileLeases(LeaseOperations):
    """Leases as files of a store."""

    def __init__(self, backend: LeaseFiles) -> None:
        self._backend = backend

    def check(self) -> str:
        """Try what the storage can do."""
        return self._backend.check()

    def lock(self, key: str, timeout_s: float) -> AbstractContextManager[float]:
        """Lock a file."""
        return self._backend.lock(key, timeout_s)

    def now_s(self) -> float:
        """Return the time of this machine; only `lock` asks the storage."""
        return self._backend.now_s()

    def find(self, key: str) -> FoundLease | None:
        """Read the file and its time."""
        try:
            return FoundLease(self._backend.read(key), self._backend.modified_s(key))
        except FileNotFoundError:
            return None

    def create(self, key: str, content: bytes) -> bool:
        """Create the file exclusively."""
        return self._backend.put_if_absent(key, [content])

    def beat(self, key: str, content: bytes) -> None:
        """Set the file's time."""
        if self._is(key, content):
            self._backend.touch(key)

    def expire(self, key: str, is_live: Callable[[FoundLease], bool]) -> None:
        """Move the file aside, look at it again, and put a live one back."""
        aside = f"{key}.{uuid.uuid4().hex[:12]}.dead"
        with suppress(FileNotFoundError):
            self._backend.move(key, aside)
            found = self.find(aside)
            if found is not None and is_live(found):
                with suppress(FileExistsError):
                    self._backend.restore(aside, key)
            self._backend.delete(aside)

    def release(self, key: str, content: bytes) -> None:
        """Delete the file."""
        if self._is(key, content):
            self._backend.delete(key)

    def _is(self, key: str, content: bytes) -> bool:
        with suppress(FileNotFoundError):
            return self._backend.read(key) == content
        return False

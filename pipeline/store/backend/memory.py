"""A store in the memory of this process: for tests, and for stores that need not outlive it."""

from __future__ import annotations

import errno
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreNotFoundError
from pipeline.files import UNKNOWN_BYTES
from pipeline.store.backend.base import Backend, Buffer, Map, ObjectReader, PartialObject
from pipeline.store.backend.ends import End
from pipeline.store.backend.file_leases import FileLeases

_open_stores: WeakValueDictionary[str, MemoryBackend] = WeakValueDictionary()


class MemoryBackend(Backend):
    """A store in a dictionary.

    A pickle holds only the URI, so it loads only in this process or a fork. A fork has its own
    copy: the parent does not see its writes. Extract with `engine=inline`.
    """

    max_readers = 1024
    parallel_reads = 1

    def __init__(self) -> None:
        self._uri = f"memory://{uuid.uuid4().hex}"
        self._objects: dict[str, bytes] = {}
        self._modified_s: dict[str, float] = {}
        self._written: dict[str, int] = {}
        self._n_written = 0
        self._guard = threading.RLock()
        self._named_locks: dict[str, threading.Lock] = {}
        _open_stores[self._uri] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return find_store, (self._uri,)

    def __repr__(self) -> str:
        return f"<MemoryBackend {self._uri}: {len(self._objects)} objects>"

    @property
    def uri(self) -> str:
        """The URI, unique in this process."""
        return self._uri

    def locate(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self._uri}/{key}"

    def read(self, key: str) -> bytes:
        """Read a whole object."""
        with self._guard:
            return self._get(key)

    def open_reader(self, key: str, *, whole: bool = False, end: End | None = None) -> MemoryReader:
        """Open an object as it is now."""
        return MemoryReader(self.read(key))

    def exists(self, key: str) -> bool:
        """Return whether there is an object under a key."""
        return key in self._objects

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        return len(self.read(key))

    def modified_s(self, key: str) -> float:
        """Return when an object was last written or touched."""
        with self._guard:
            self._get(key)
            return self._modified_s[key]

    def list(self, prefix: str = "") -> Iterator[str]:
        """List the keys below a folder."""
        start = prefix and prefix.rstrip("/") + "/"
        with self._guard:
            keys = [key for key in self._objects if key.startswith(start)]
        yield from keys

    def children(self, folder: str) -> Sequence[str]:
        """List the names directly below a folder."""
        start = len(folder and folder.rstrip("/") + "/")
        return sorted({key[start:].partition("/")[0] for key in self.list(folder)})

    def stamps(self, folder: str, expected: Sequence[str] = ()) -> dict[str, str]:
        """Stamp each object by the number of objects that were written before it."""
        start = folder and folder.rstrip("/") + "/"
        with self._guard:
            return {
                key.removeprefix(start): f"{self._uri}-{number}"
                for key, number in self._written.items()
                if key.startswith(start) and "/" not in key.removeprefix(start)
            }

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object."""
        self._set(key, b"".join(parts))

    def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create an object."""
        content = b"".join(parts)
        with self._guard:
            if key in self._objects:
                return False
            self._set(key, content)
            return True

    def open_partial(self, key: str) -> _PartialObject:
        """Open an object for writing in any order."""
        return _PartialObject(key)

    def publish(self, partials: Sequence[_PartialObject], run: Map = map) -> None:
        """Publish the bytes under their keys."""
        for partial in partials:
            self.put(partial.key, [bytes(partial.content)])

    def append(self, key: str, line: bytes) -> None:
        """Append a line."""
        with self._guard:
            before = self._objects.get(key, b"")
            end = b"\n" if before and not before.endswith(b"\n") else b""
            self._set(key, before + end + line)

    def ensure_folder(self, folder: str) -> None:
        """Do nothing: folders exist while there are objects in them."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        with self._guard:
            self._objects.pop(key, None)
            self._modified_s.pop(key, None)
            self._written.pop(key, None)

    def sync(self, folder: str) -> None:
        """Do nothing: there is nothing to make durable."""

    def free_bytes(self) -> int:
        """Return 2**62: the limit is unknown."""
        return UNKNOWN_BYTES

    @property
    def leases(self) -> FileLeases:
        """Leases as objects of this store."""
        return FileLeases(self)

    def now_s(self) -> float:
        """Return the time of this machine."""
        return time.time()

    def check(self) -> str:
        """Do nothing: memory lacks nothing."""
        return ""

    @contextmanager
    def lock(self, key: str, timeout_s: float) -> Iterator[float]:
        """Hold a named lock against other threads; yield the time in seconds since the epoch."""
        with self._guard:
            lock = self._named_locks.setdefault(key, threading.Lock())
        if not lock.acquire(timeout=timeout_s):
            raise TimeoutError(f"{self.locate(key)} is locked by another thread")
        try:
            yield time.time()
        finally:
            lock.release()

    def touch(self, key: str) -> None:
        """Set an object's modification time to now."""
        with self._guard:
            self._set(key, self._get(key))

    def move(self, key: str, new: str) -> None:
        """Rename an object."""
        with self._guard:
            modified_s = self.modified_s(key)
            self._set(new, self._get(key), modified_s)
            self.delete(key)

    def restore(self, key: str, new: str) -> None:
        """Copy an object to a second key, unless that is taken."""
        with self._guard:
            if new in self._objects:
                raise FileExistsError(self.locate(new))
            self._set(new, self._get(key), self._modified_s[key])

    def _get(self, key: str) -> bytes:
        try:
            return self._objects[key]
        except KeyError:
            raise FileNotFoundError(2, "no such object", self.locate(key)) from None

    def _set(self, key: str, content: bytes, modified_s: float | None = None) -> None:
        with self._guard:
            self._objects[key] = content
            self._n_written += 1
            self._written[key] = self._n_written
            self._modified_s[key] = time.time() if modified_s is None else modified_s


class MemoryReader(ObjectReader):
    """The content of an object at the time it was opened."""

    def __init__(self, content: bytes) -> None:
        self._content = np.frombuffer(content, np.uint8)

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        return self._range(offset, length).tobytes()

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Copy bytes into arrays."""
        for part in parts:
            if part.nbytes:
                view = np.frombuffer(part.data.cast("B"), np.uint8)
                view[:] = self._range(offset, len(view))
                offset += len(view)

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Read at once, unless the object is too short."""
        if offset + sum(part.nbytes for part in parts) > self.size:
            return False
        self.read_into(parts, offset)
        return True

    def prefetch(self, offset: int, length: int) -> None:
        """Do nothing: the object is in memory."""

    def _range(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, f"no range of an object: {length} bytes from {offset}")
        if length and offset + length > self.size:
            raise EOFError(f"it ends at byte {self.size}")
        return self._content[offset : offset + length]


class _PartialObject(PartialObject):
    """Bytes that become an object when they are published."""

    def __init__(self, key: str) -> None:
        self.key, self.content = key, bytearray()
        self._guard = threading.Lock()

    def write(self, data: Buffer, offset: int) -> None:
        """Copy bytes to their place."""
        view = memoryview(data).cast("B")
        with self._guard:
            missing = offset + len(view) - len(self.content)
            if missing > 0:
                self.content.extend(bytes(missing))
            self.content[offset : offset + len(view)] = view

    def discard(self) -> None:
        """Drop the bytes."""
        self.content = bytearray()


def find_store(uri: str) -> MemoryBackend:
    """Return the store in this process's memory that has a URI.

    Raises:
        StoreNotFoundError: The store belongs to another process, or was dropped.
    """
    found = _open_stores.get(uri)
    if found is None:
        raise StoreNotFoundError(
            f"no store {uri} in this process: it was dropped, or belongs to another process; write "
            "the store to a folder instead"
        )
    return found

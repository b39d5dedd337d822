"""The Zarr arrays of a store, opened with zarr-python on any backend."""

from __future__ import annotations

import os
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from pipeline.errors import DamagedError, UnreachableError
from pipeline.store.backend.base import Backend


def open_array(backend: Backend, key: str) -> Any:
    """Open an array for reading; raise whatever zarr-python raises."""
    path = backend.local_path(key)
    if path is not None:
        return zarr.open_array(path, mode="r")
    return zarr.open_array(_ReadOnlyStore(backend), path=key, mode="r")


def open_group(backend: Backend, key: str) -> Any:
    """Open a group for reading; raise whatever zarr-python raises."""
    path = backend.local_path(key)
    if path is not None:
        return zarr.open_group(path, mode="r")
    return zarr.open_group(_ReadOnlyStore(backend), path=key, mode="r")


class ZarrArrays:
    """The arrays of one store, each opened once per process.

    A forked process opens them again, because zarr-python's event loop does not survive a fork.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._arrays: dict[str, tuple[int, Any]] = {}

    def __getitem__(self, key: str) -> Any:
        """An array, opened in this process."""
        owner, array = self._arrays.get(key, (-1, None))
        if owner != os.getpid():
            array = open_array(self._backend, key)
            self._arrays[key] = (os.getpid(), array)
        return array


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Report an error of zarr-python, which raises whatever its codecs raise, as damage.

    The error is in the frames of its own traceback, in a future of zarr-python's event loop. They
    are cleared: that reference cycle would keep files open until a garbage collection.

    Args:
        what: What is read, for the message.

    Raises:
        DamagedError: It cannot be read.
        UnreachableError: A server does not answer.
    """
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, UnreachableError):
            raise
        raise DamagedError(f"{what} is damaged; run `strata verify`") from error


class _ReadOnlyStore(Store):
    """A backend as a store of zarr-python."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, backend: Backend) -> None:
        super().__init__(read_only=True)
        self._backend = backend

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ReadOnlyStore) and other._backend is self._backend

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            reader = self._backend.open_reader(key)
        except FileNotFoundError:
            return None
        start, stop = 0, reader.size
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, min(stop, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, stop - byte_range.suffix)
        return prototype.buffer.from_bytes(reader.read(start, max(0, stop - start)))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return self._backend.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError("strata writes its arrays itself")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("strata writes its arrays itself")

    async def list(self) -> AsyncIterator[str]:
        for key in self._backend.list():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._backend.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self._backend.children(prefix):
            yield name

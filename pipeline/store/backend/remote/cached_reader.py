"""Reads of one object of which a whole copy may be in a folder of this machine."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.errors import DamagedError
from pipeline.objects.library import generation
from pipeline.objects.ranges import LONGEST_BYTES
from pipeline.store.backend.base import ObjectReader
from pipeline.store.backend.ends import CheckCopy, End
from pipeline.store.backend.local_reader import LocalReader
from pipeline.store.backend.remote.cache_folder import CacheFolder
from pipeline.store.backend.remote.fetching import run_together
from pipeline.store.backend.remote.reader import RemoteReader
from pipeline.store.native.mapped import MappedFile

_FILLS = 4  # copies that a process makes at a time; the ranges of each are fetched together
_TOUCH_S = 1.0
_WANTED_READS = 8
"""Where the folder is full, an object takes the place of one that was not used during so many reads
of it from the server, of an eighth of its bytes together; or while twice its bytes were read. So a
full shuffle of more shards than there is room for changes no copies, and a window that moves on
does."""


class _UncheckedError(Exception):
    """A copy cannot be checked, so it is not made."""


@dataclass
class _Missed:
    """Reads of an object from the server.

    Attributes:
        since_s: When they are counted from, in seconds since the epoch.
        n_reads: How many there were.
        n_bytes: Their bytes.
    """

    since_s: float
    n_reads: int = 0
    n_bytes: int = 0


class CachedReader(ObjectReader):
    """An object that is copied as a whole before it is first read, if there is room.

    Reads of the copy are those of a file. Without a copy they are those of the server: there is no
    room for it, or it was removed for another one.

    Args:
        remote: The object on its server.
        folder: The copies of this machine.
        check: Checks a copy before it is used; without one, none is made.
    """

    def __init__(self, remote: RemoteReader, folder: CacheFolder, check: CheckCopy | None) -> None:
        self._remote, self._folder, self._check = remote, folder, check
        self._copy: tuple[LocalReader, Path] | None = None
        self._opening: tuple[int, Future[bool]] | None = None
        self._missed = _Missed(time.time())
        self._touched_s = 0.0

    @property
    def mapped(self) -> MappedFile | None:  # type: ignore[override]
        """The copy as a map, if there is one."""
        return None if self._copy is None else self._used(self._copy).mapped

    @property
    def size(self) -> int:
        """Bytes of the object when it was first seen."""
        return self._remote.size

    def has_end(self, end: End) -> bool | None:
        """Return None, if the first read compares the end."""
        return self._remote.has_end(end)

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        found = self._open()
        if found is not None:
            try:
                return found.read(offset, length)
            except EOFError:
                self._copy = None
        self._note_missed(length)
        return self._remote.read(offset, length)

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Copy a range into arrays."""
        found = self._open()
        if found is not None:
            try:
                found.read_into(parts, offset, streams)
            except EOFError:  # it was removed, or the read goes beyond the end
                self._copy = None
            else:
                return
        self._note_missed(sum(part.nbytes for part in parts))
        self._remote.read_into(parts, offset, streams)

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Read what is in memory of the copy; else begin to copy, or announce the read."""
        if self._copy is not None:
            return self._used(self._copy).read_cached(parts, offset, streams)
        self.prefetch(offset, sum(part.nbytes for part in parts))
        return False

    def prefetch(self, offset: int, length: int) -> None:
        """Fetch a range from the disk, begin to copy, or announce the read."""
        if self._copy is not None:
            self._copy[0].prefetch(offset, length)
        elif self._is_without():
            self._remote.prefetch(offset, length)
        else:
            self._begin()

    def _used(self, found: tuple[LocalReader, Path]) -> LocalReader:
        """Note that the copy is used."""
        now_s = time.monotonic()
        if now_s - self._touched_s > _TOUCH_S:
            self._touched_s = now_s
            with suppress(OSError):
                os.utime(found[1])
        return found[0]

    def _open(self) -> LocalReader | None:
        """Return the copy, which is made first; None if there is none."""
        if self._copy is None:
            self._begin().result()
        found = self._copy
        return None if found is None else self._used(found)

    def _is_without(self) -> bool:
        """Return whether it is known that there is no room for a copy."""
        opening = self._opening
        return (
            opening is not None
            and opening[0] == generation()
            and opening[1].done()
            and opening[1].exception() is None
            and not opening[1].result()
        )

    def _begin(self, unused_since_s: float | None = None) -> Future[bool]:
        """Begin to make a copy, unless that was done or has failed for want of room."""
        opening = self._opening
        if opening is None or opening[0] != generation() or _has_failed(opening[1], self._copy):
            self._remote.announce_end()
            opening = generation(), _pool(generation()).submit(self._make, unused_since_s)
            self._opening = opening
        return opening[1]

    def _make(self, unused_since_s: float | None) -> bool:
        """Make or find the copy; return whether there is one."""
        self._remote.compare_end()
        found = self._remote.seen
        path = self._folder.path(found.location, found.size, found.etag)
        if not found.etag:  # another content could not be told apart
            return False
        try:
            if not self._folder.add(path, found.size, self._fill, self._is_sound, unused_since_s):
                return False
            self._copy = LocalReader(path, whole=True), path
        except (_UncheckedError, FileNotFoundError):
            return False
        return True

    def _fill(self, descriptor: int) -> None:
        """Write the object to a file, and check it.

        Raises:
            DamagedError: It is not what was committed.
        """
        found = self._remote.seen
        if self._check is None:
            raise _UncheckedError

        def copy_range(start: int) -> None:
            content = found.fetch(start, min(LONGEST_BYTES, found.size - start))
            while content:
                n = os.pwrite(descriptor, content, start)
                content, start = content[n:], start + n

        run_together(copy_range, range(0, found.size, LONGEST_BYTES))
        if not self._compare(descriptor):
            raise _UncheckedError

    def _compare(self, descriptor: int) -> bool:
        """Compare a copy with what was committed; return whether that can be done.

        Raises:
            DamagedError: It is not what was committed.
        """
        found = self._remote.seen
        with (
            mmap.mmap(descriptor, found.size, prot=mmap.PROT_READ) as content,
            memoryview(content) as view,
        ):
            return self._check is not None and self._check(found.key, view)

    def _is_sound(self, path: Path) -> bool:
        """Return whether a copy is what was committed."""
        with path.open("rb") as file:
            try:
                is_whole = os.fstat(file.fileno()).st_size == self._remote.size
                return is_whole and self._compare(file.fileno())
            except DamagedError:
                return False

    def _note_missed(self, n_bytes: int) -> None:
        """Count what was read from the server; at last try again to make a copy."""
        size, missed = self._remote.size, self._missed
        is_wanted = missed.n_bytes >= 2 * size or (
            missed.n_reads >= _WANTED_READS and missed.n_bytes * _WANTED_READS >= size
        )
        if is_wanted and self._is_without():
            self._opening = None
            self._begin(missed.since_s).result()
            missed = self._missed = _Missed(time.time())
        missed.n_reads += 1
        missed.n_bytes += n_bytes


def _has_failed(opening: Future[bool], found: object) -> bool:
    """Return whether a copy that was made is gone, or could not be made for an error."""
    if not opening.done():
        return False
    return opening.exception() is not None or (opening.result() and found is None)


@cache
def _pool(generation: int) -> ThreadPoolExecutor:
    """Return the threads of this process that make copies."""
    return ThreadPoolExecutor(_FILLS, "strata-copy")

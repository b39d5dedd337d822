"""Reads of one file: copies out of a memory map, or system calls where there is no map.

A map that is read as any memory ends the process with a signal if the file is cut short or its disk
fails. `MappedFile` reports that instead; the system call that follows says what is wrong.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.store.backend.base import ObjectReader
from pipeline.store.native.mapped import BLOCKS, READY, map_file

_N_FETCHING = 4  # threads; one fetches half of what a fast disk gives
_MOST_PARTS = 1024  # of one preadv; IOV_MAX on Linux
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux; elsewhere every read waits
_n_bytes = attrgetter("nbytes")


class LocalReader(ObjectReader):
    """A file that is open for reading, and is closed when its last reference is dropped.

    A cache may drop it while another thread still reads from it.
    """

    __slots__ = ("descriptor", "mapped")

    def __init__(self, path: Path, whole: bool = False) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.mapped = map_file(self.descriptor, whole)

    def __del__(
        self, close: Callable[[int], None] = os.close, error: type[Exception] = OSError
    ) -> None:
        if self.descriptor >= 0:  # at the end of the process `os` may be gone
            try:  # noqa: SIM105 - and so may `suppress`
                close(self.descriptor)
            except error:
                pass  # what was read is read, whatever the file system says now

    @property
    def size(self) -> int:
        """Size of the file; 0 if it is no regular one."""
        status = os.fstat(self.descriptor)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        parts = []
        while length:
            part = os.pread(self.descriptor, length, offset)
            if not part:
                raise EOFError(f"it ends at byte {offset}")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Fill arrays from the map, or by one system call, if the system does not cut it short."""
        if self.mapped is not None and self.mapped.read_into(parts, offset, streams):
            return
        got = os.preadv(self.descriptor, _first(parts), offset)
        if got != (parts[0].nbytes if len(parts) == 1 else sum(map(_n_bytes, parts))):
            _read_rest(self.descriptor, parts, offset, got)

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Read what the system has in memory; have it fetch the rest."""
        if self.mapped is not None:
            is_filled = self.mapped.read_ready(parts, offset, streams)
        else:
            try:
                got = os.preadv(self.descriptor, _first(parts), offset, _NO_WAIT)
            except OSError:  # it would have to wait, or `read_into` will report what is wrong
                got = 0
            is_filled = got == sum(map(_n_bytes, parts))
        if not is_filled:
            self.prefetch(offset, sum(map(_n_bytes, parts)))
        return is_filled

    def prefetch(self, offset: int, length: int) -> None:
        """Fetch whole blocks in other threads, or advise the system that a range will be read."""
        if self.mapped is not None:
            needs = self.mapped.needs(offset, length)
            if needs == BLOCKS:
                _fetching_threads(os.getpid()).submit(self.mapped.fetch, offset, length)
            if needs in (READY, BLOCKS):
                return
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, offset, length, os.POSIX_FADV_WILLNEED)


@cache
def _fetching_threads(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process; a fork has none of its parent's."""
    return ThreadPoolExecutor(_N_FETCHING, "strata-fetch")


def _first(parts: Sequence[npt.NDArray[Any]]) -> Any:
    """Return what one preadv can fill: NumPy arrays are buffers, which their types do not say."""
    return parts if len(parts) <= _MOST_PARTS else parts[:_MOST_PARTS]


def _read_rest(descriptor: int, parts: Sequence[npt.NDArray[Any]], offset: int, done: int) -> None:
    """Read what is missing of `parts` after their first `done` bytes.

    Raises:
        EOFError: The file ends before they are full.
    """
    for part in parts:
        view = part.data.cast("B")
        known = min(done, len(view))
        view, offset, done = view[known:], offset + known, done - known
        while len(view):
            got = os.preadv(descriptor, [view], offset)
            if not got:
                raise EOFError(f"it ends at byte {offset}")
            view, offset = view[got:], offset + got

"""Durable writes on a file system: a file exists completely, or not at all.

An error of the operating system is raised as a StoreError that names the file; a full disk is a
NoSpaceError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from pipeline.errors import ConfigError, NoSpaceError, SourceError, StoreError

Buffer = bytes | memoryview
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Calls a function with each item, perhaps in several threads, as the built-in `map` does."""
PARTIAL_SUFFIX = ".partial"
_PARTIAL = re.compile(rf"(.+)\.[0-9a-f]{{32}}{re.escape(PARTIAL_SUFFIX)}", re.DOTALL)

UNKNOWN_BYTES = 1 << 62
"""Free bytes of a storage that does not say how many there are."""
_WRITEBACK_BYTES = 4 << 20
"""Bytes after which the system is told to start writing a file to the disk. Otherwise the disk is
idle until the file is synced: a unit that is written at once took 1.5 times as long."""
_SYNC_FILE_RANGE_WRITE = 2  # start to write what is dirty, do not wait
_FULL = (errno.ENOSPC, errno.EDQUOT)
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_READ_ONLY_ADVICE = "; what was committed is safe: make it writable and run the same command again"


def is_uri(text: str | os.PathLike[str]) -> bool:
    """Return whether a text is a URI, perhaps one that has lost a slash as a path."""
    return _URI.match(os.fspath(text)) is not None


def local_folder(name: str, text: str | os.PathLike[str]) -> Path:
    """Return a folder of this machine that is to be written.

    Args:
        name: The setting, for the message.
        text: Its value.

    Raises:
        ConfigError: It is a URI, perhaps one that has lost a slash as a path.
    """
    if is_uri(text):
        raise ConfigError(f"{name}={os.fspath(text)}: expected a folder of this machine")
    return Path(text)


def require_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device in the place of a table, which may never end.

    A pipe can be read once only, and tables are read several times.

    Raises:
        SourceError: The path exists and is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise SourceError(f"{path} is not a regular file; save the table as a file")


def write_atomic(path: Path, parts: Sequence[Buffer]) -> None:
    """Write `parts` one after the other to `path`: temporary name, fsync, rename.

    Raises:
        NoSpaceError: The disk is full.
        StoreError: The file cannot be written.
    """
    with partial_file(path) as partial:
        write_synced(partial, parts)
        partial.replace(path)
    sync_folder(path.parent)


class PartialFile:
    """A file that is written in any order under a temporary name, and then published.

    Several threads may write to it. None may be writing when it is published or discarded.

    Attributes:
        path: Its final name.

    Raises:
        NoSpaceError: The disk is full; `write` and `flush` raise it, too.
        StoreError: The file cannot be written; all methods but `discard` raise it, too.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, partial_name(path)
        with store_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)  # `publish` makes the folders durable
            self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._n_dirty = 0  # bytes since the last start of a writeback, about

    def write(self, data: Buffer, offset: int) -> None:
        """Write bytes at an offset."""
        with store_errors(self.path):
            view = memoryview(data)
            while len(view):
                written = os.pwrite(self._descriptor, view[:_WRITEBACK_BYTES], offset)
                view, offset = view[written:], offset + written
                self._n_dirty += written
                if self._n_dirty >= _WRITEBACK_BYTES:
                    self._n_dirty = 0
                    _start_writeback(self._descriptor)

    def flush(self) -> None:
        """Make the bytes durable."""
        with store_errors(self.path):
            os.fsync(self._descriptor)

    def rename(self) -> None:
        """Give the file its final name."""
        with store_errors(self.path):
            self._close()
            self._partial.replace(self.path)

    def discard(self) -> None:
        """Remove the file, unless it was published."""
        with suppress(OSError):  # the error that led here matters more; a clean-up removes it
            self._close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def publish(partials: Sequence[PartialFile], root: Path, run: Map = map) -> None:
    """Give files their final names, durably, with all folders between `root` and them.

    The bytes of all files are durable before the first one gets its name. A folder is synced once,
    however many of the files are in it.

    Args:
        partials: The files, below `root`.
        root: A folder that exists durably.
        run: Syncs several files at a time.

    Raises:
        NoSpaceError: The disk is full.
        StoreError: A file or folder cannot be written.
    """
    _all(run(PartialFile.flush, partials))
    for partial in partials:
        partial.rename()
    folders = {
        folder
        for partial in partials
        for folder in partial.path.parents
        if folder.is_relative_to(root)
    }
    _all(run(sync_folder, folders))


def _start_writeback(descriptor: int) -> None:
    """Start to write a file to the disk, without waiting; a later fsync reports errors."""
    sync_file_range = _find_sync_file_range()
    if sync_file_range is not None:
        sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


@cache
def _find_sync_file_range() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def _all(results: Iterable[Any]) -> None:
    for _ in results:
        pass


def write_synced(path: Path, parts: Sequence[Buffer], mode: str = "wb") -> None:
    """Write a file and sync it; mode `xb` is a FileExistsError if it exists."""
    with path.open(mode, buffering=0) as file:
        for part in parts:
            write_all(file, part)
        os.fsync(file.fileno())


def write_all(file: IO[bytes], part: Buffer) -> None:
    """Write to a file without a buffer, which may take a part at a time."""
    view = memoryview(part).cast("B")
    while len(view):
        view = view[file.write(view) :]


def remove(path: Path) -> None:
    """Remove a file, if it exists.

    Raises:
        StoreError: It cannot be removed.
    """
    with store_errors(path):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and links in `folder` durable.

    Raises:
        NoSpaceError: The disk is full.
        StoreError: The disk reports a failure.
    """
    with store_errors(folder):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.EIO, *_FULL):
                raise
            # some network file systems refuse to sync a folder, and do not need it


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as a StoreError or NoSpaceError about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError(
                f"no space left to write {path}; what was committed is safe: make room and run "
                "the same command again"
            ) from error
        rest = _READ_ONLY_ADVICE if error.errno == errno.EROFS else ""
        raise StoreError(f"{path} cannot be written: {error.strerror or error}{rest}") from error


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; remove its file at the end."""
    partial = partial_name(path)
    with store_errors(path):
        make_folder(path.parent)
        try:
            yield partial
        finally:
            with suppress(OSError):  # the error that led here matters more; a clean-up removes it
                partial.unlink(missing_ok=True)


def final_name(partial: str) -> str | None:
    """Return the final name of a partial file from its name; None if it is not named like one."""
    match = _PARTIAL.fullmatch(partial)
    return match[1] if match else None


def partial_name(path: Path) -> Path:
    """Return a temporary name beside `path` that no other file has."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")

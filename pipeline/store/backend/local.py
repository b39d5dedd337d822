"""A store in a folder of a file system, local or shared by a network."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline import exclusive, files
from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend, Buffer, Map, ObjectReader
from pipeline.store.backend.folder_check import check_folder, warn_of_caches

MAX_READERS = 256
"""Files that one reader of a store keeps open, if the process may open four times as many."""

_MOST_PARTS = 1024  # of one preadv; IOV_MAX on Linux
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux; elsewhere every read waits
_APPEND_TIMEOUT_S = 1.0
_UNKNOWN_BYTES = 1 << 62
_n_bytes = attrgetter("nbytes")
_MISSING = (FileNotFoundError, NotADirectoryError)  # the latter: a file in place of a folder


class LocalBackend(Backend):
    """A store in a folder.

    Writes are durable: temporary name, fsync, rename or link, fsync of the folder. Reads go through
    `preadv`, not through memory maps: a map of a file that is cut short, or on a failing disk, ends
    the process with a signal, where a read ends in an error that names the file.
    """

    parallel_reads = min(8, os.cpu_count() or 1)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root).absolute()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalBackend) and self._root == other._root

    def __hash__(self) -> int:
        return hash(self._root)

    def __repr__(self) -> str:
        return f"LocalBackend({str(self._root)!r})"

    @property
    def max_readers(self) -> int:  # type: ignore[override]
        """Files that may be kept open under this process's limit."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return MAX_READERS
        return max(1, min(MAX_READERS, soft // 4))

    @property
    def uri(self) -> str:
        """The folder's path."""
        return str(self._root)

    def locate(self, key: str) -> str:
        """Return the file's path as text."""
        return str(self._root / key)

    def local_path(self, key: str) -> Path:
        """Return the file's path."""
        return self._root / key

    def read(self, key: str) -> bytes:
        """Read a whole file."""
        path = self._root / key
        with _missing_is_not_found(), _named(path):
            content = path.read_bytes()
        if not content and exclusive.is_reserved(path):
            raise FileNotFoundError(errno.ENOENT, "not created yet", str(path))
        return content

    def open_reader(self, key: str) -> LocalReader:
        """Open a file for reading."""
        with _missing_is_not_found():
            return LocalReader(self._root / key)

    def exists(self, key: str) -> bool:
        """Return whether there is a file."""
        path = self._root / key
        return path.is_file() and not exclusive.is_reserved(path)

    def size(self, key: str) -> int:
        """Return the size of a file."""
        with _missing_is_not_found():
            return (self._root / key).stat().st_size

    def modified_s(self, key: str) -> float:
        """Return the modification time of a file.

        It is opened, because network file systems ask the server then: an old time in a cache
        would make the heartbeat of another host look old.
        """
        path = self._root / key
        with _missing_is_not_found(), _named(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Walk a folder; symbolic links are listed, not followed."""
        pending = [prefix and prefix.rstrip("/") + "/"]
        while pending:
            folder = pending.pop()
            with suppress(*_MISSING), os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{folder}{entry.name}/")
                    else:
                        yield f"{folder}{entry.name}"

    def children(self, folder: str) -> Sequence[str]:
        """List a folder; names that are only reserved are left out."""
        path = self._root / folder
        try:
            names = os.listdir(path)  # noqa: PTH208 - names, without a Path for each
        except _MISSING:
            return []
        return exclusive.without_reserved(path, names)

    def stamps(self, folder: str) -> dict[str, str]:
        """Stamp each file by its size, inode and times.

        The time of the last change of the inode is among them, which no program can set. Names that
        are only reserved are left out.
        """
        path, found = self._root / folder, {}
        with suppress(*_MISSING), os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    at = entry.stat()
                    found[entry.name] = (
                        f"{at.st_size}-{at.st_ino}-{at.st_mtime_ns}-{at.st_ctime_ns}"
                    )
        return {name: found[name] for name in exclusive.without_reserved(path, list(found))}

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write a file: temporary name, fsync, rename."""
        files.write_atomic(self._root / key, parts)

    def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create a file: temporary name, fsync, hard link or what replaces it."""
        return exclusive.create_exclusive(self._root / key, parts)

    def open_partial(self, key: str) -> files.PartialFile:
        """Begin a file under a temporary name."""
        return files.PartialFile(self._root / key)

    def publish(self, partials: Sequence[files.PartialFile], run: Map = map) -> None:
        """Sync all files, rename them, then sync each folder once."""
        files.publish(partials, self._root, run)

    def append(self, key: str, line: bytes) -> None:
        """Append a line, by one write if the system takes it whole; the folder must exist.

        The file is locked meanwhile, so that the line of another writer is not taken for one that a
        crash has cut short. A writer that is suspended holds up the others for a moment only.
        """
        path = self._root / key
        with files.store_errors(path), path.open("ab+", buffering=0) as file:
            with suppress(TimeoutError):
                _flock(file.fileno(), _APPEND_TIMEOUT_S)
            file.seek(0, os.SEEK_END)
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # a crash has cut the line before short
            files.write_all(file, line)

    def ensure_folder(self, folder: str) -> None:
        """Create a folder and those above it, durably."""
        with files.store_errors(self._root / folder):
            files.make_folder(self._root / folder)

    def delete(self, key: str) -> None:
        """Delete a file, if it exists."""
        path = self._root / key
        if exclusive.reserved_name(path.name) is not None:
            with files.store_errors(path):
                exclusive.drop_reservation(path)
        files.remove(path)

    def sync(self, folder: str) -> None:
        """Sync a folder."""
        files.sync_folder(self._root / folder)

    def free_bytes(self) -> int:
        """Return the bytes free for this user on the disk that has, or would have, the folder.

        Many FUSE file systems do not know: they have no size. Then it is 2**62.
        """
        folder = self._root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.exists():
            return 0
        usage = shutil.disk_usage(folder)
        return usage.free if usage.total else _UNKNOWN_BYTES

    @property
    def leases(self) -> LocalBackend:
        """This backend: a file system has what a lease needs."""
        return self

    @contextmanager
    def lock(self, key: str, timeout_s: float) -> Iterator[float]:
        """Lock a file with `flock`, which the kernel drops with its process.

        The lock is released explicitly: a process that was forked meanwhile has a copy of the open
        file, which would keep the lock for as long as it lives.
        """
        path = self._root / key
        with files.store_errors(path):
            files.make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(descriptor, timeout_s)
            with suppress(OSError):
                os.utime(descriptor)
            yield os.fstat(descriptor).st_mtime
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def touch(self, key: str) -> None:
        """Set a file's modification time to now."""
        os.utime(self._root / key)

    def move(self, key: str, new: str) -> None:
        """Rename a file."""
        path = self._root / key
        try:
            path.rename(self._root / new)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{path} cannot be renamed: {error.strerror or error}") from error

    def restore(self, key: str, new: str) -> None:
        """Link a file to a second name, or copy it where there are no links."""
        exclusive.link_exclusive(self._root / key, self._root / new)

    def check(self) -> str:
        """Try what a driver needs in the store's folder."""
        check_folder(self._root)
        return warn_of_caches(self._root)


class LocalReader(ObjectReader):
    """A file that is open for reading, and is closed when its last reference is dropped.

    A cache may drop it while another thread still reads from it.
    """

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

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

    def read_into(self, parts: Sequence[npt.NDArray[Any]], offset: int) -> None:
        """Fill arrays by one system call, if the system does not cut it short."""
        got = os.preadv(self.descriptor, _first(parts), offset)
        if got != (parts[0].nbytes if len(parts) == 1 else sum(map(_n_bytes, parts))):
            _read_rest(self.descriptor, parts, offset, got)

    def read_cached(self, parts: Sequence[npt.NDArray[Any]], offset: int) -> bool:
        """Read what the system has in memory; have it fetch the rest."""
        wanted: int = sum(map(_n_bytes, parts))
        try:
            got = os.preadv(self.descriptor, _first(parts), offset, _NO_WAIT)
        except OSError:  # it would have to wait, or `read_into` will report what is wrong
            got = 0
        if got != wanted:
            self.prefetch(offset, wanted)
        return got == wanted

    def prefetch(self, offset: int, length: int) -> None:
        """Advise the system that a range will be read."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, offset, length, os.POSIX_FADV_WILLNEED)


@contextmanager
def _missing_is_not_found() -> Iterator[None]:
    """Raise FileNotFoundError, too, where a file takes the place of one of an object's folders."""
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, error.strerror, error.filename) from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in the error of a read, which names none itself."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


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


def _flock(descriptor: int, timeout_s: float) -> None:
    """Lock an open file; do without a lock where the file system has none.

    Raises:
        TimeoutError: Another process has kept it locked for `timeout_s`.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end_s:
                raise TimeoutError(errno.ETIMEDOUT, "locked by another process") from None
            time.sleep(0.02)
        except OSError:
            return None

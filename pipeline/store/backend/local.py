"""A store in a folder of a file system, local or shared by a network."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline import exclusive, files
from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend, Buffer, Map
from pipeline.store.backend.ends import End
from pipeline.store.backend.file_leases import FileLeases
from pipeline.store.backend.folder_check import check_folder, warn_of_caches
from pipeline.store.backend.local_reader import LocalReader

MAX_READERS = 256
"""Files that one reader of a store keeps open, if the process may open four times as many."""

_APPEND_TIMEOUT_S = 1.0
_MISSING = (FileNotFoundError, NotADirectoryError)  # the latter: a file in place of a folder


class LocalBackend(Backend):
    """A store in a folder.

    Writes are durable: temporary name, fsync, rename or link, fsync of the folder.
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

    def open_reader(self, key: str, *, whole: bool = False, end: End | None = None) -> LocalReader:
        """Open a file for reading."""
        with _missing_is_not_found():
            return LocalReader(self._root / key, whole)

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

    def stamps(self, folder: str, expected: Sequence[str] = ()) -> dict[str, str]:
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

    def remove_folder(self, folder: str) -> None:
        """Remove a folder, and those in it, unless they have files."""
        for path, _, _ in os.walk(self._root / folder, topdown=False):
            with suppress(OSError):  # it has files
                Path(path).rmdir()

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
        return usage.free if usage.total else files.UNKNOWN_BYTES

    @property
    def leases(self) -> FileLeases:
        """Leases as files of this store."""
        return FileLeases(self)

    def now_s(self) -> float:
        """Return the time of this machine."""
        return time.time()

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

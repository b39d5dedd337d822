"""A folder of this machine with copies of whole objects, shared by its processes.

Each copy has the name of its object's URI, size and ETag, so another content is another copy. A
copy is written under the name `.part`, with its whole size reserved, then checked and renamed. It
is not synced, which would halve the speed: a copy from before the last start of the machine is
checked again before it is used. What the folder holds, reserved bytes included, never exceeds its
bound: space is reserved and freed under one lock. Freeing cuts a copy to nothing before it is
removed; readers that have it open then fail, and read from the server instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import ConfigError

_PART, _COPY = ".part", ".copy"
_LOCK = "lock"
_LEAST_COPIES = 4
_HALTED_S = 30.0  # without a byte written; others do not wait for such a process

Fill = Callable[[int], None]
"""Writes the content of an object to an open file, and checks it."""
Check = Callable[[Path], bool]
"""Returns whether a copy has the content of its object."""


@dataclass(frozen=True)
class CacheFolder:
    """A bounded folder of copies.

    Attributes:
        folder: Its path. It is made when the first copy is.
        n_bytes: What it may hold.
    """

    folder: Path
    n_bytes: int

    def check_bound(self, object_bytes: int) -> None:
        """Check that the bound is large enough for a few objects of a size.

        Raises:
            ConfigError: It is not.
        """
        if self.n_bytes < _LEAST_COPIES * object_bytes:
            raise ConfigError(
                f"cache_bytes={self.n_bytes:,} is too small: a shard of this store has "
                f"{object_bytes:,} bytes, and whole shards are kept; give at least "
                f"{_LEAST_COPIES * object_bytes:,}, or no cache"
            )

    def path(self, uri: str, size: int, etag: str) -> Path:
        """Return where the copy of an object is, or would be."""
        named = f"{uri}\n{size}\n{etag}".encode()
        return self.folder / f"{hashlib.blake2b(named, digest_size=16).hexdigest()}{_COPY}"

    def find(self, path: Path, is_sound: Check) -> bool:
        """Return whether there is a copy; note that it is used.

        Args:
            path: From `path`.
            is_sound: Checks one that may not have reached the disk before the machine stopped.
        """
        try:
            if path.stat().st_ctime < _started_s() and not is_sound(path):
                _free(path)
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def add(
        self, path: Path, size: int, fill: Fill, is_sound: Check, unused_since_s: float | None
    ) -> bool:
        """Make a copy, or wait for the process that makes it.

        Args:
            path: From `path`.
            size: Bytes of the object.
            fill: Writes and checks them. What it raises is raised.
            is_sound: As for `find`.
            unused_since_s: Copies that were not used since then, in seconds since the epoch, may be
                removed to make room; None removes none.

        Returns:
            Whether there is a copy. If not, there is no room for it.
        """
        while not self.find(path, is_sound):
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(_PART)
            descriptor = self._reserve(path, size, unused_since_s)
            if descriptor is None:
                return False
            if descriptor < 0:  # another process makes it
                if not _await(part):
                    return False
                continue
            try:
                fill(descriptor)
                with self._locked():
                    part.rename(path)
            except BaseException:
                _free(part)
                raise
            finally:  # a fork of this process may have the file open, and would keep the lock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)
        return True

    def _reserve(self, path: Path, size: int, unused_since_s: float | None) -> int | None:
        """Reserve space for a copy under the lock of the folder.

        Returns:
            The file to write, locked; -1 if another process writes it or has written it; None if
            there is no room.
        """
        part = path.with_suffix(_PART)
        with self._locked():
            if path.exists() or (part.exists() and not _is_stale(part)):
                return -1
            with suppress(FileNotFoundError):
                part.unlink()
            if not self._make_room(size, unused_since_s):
                return None
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.posix_fallocate(descriptor, 0, size)
            except OSError:  # the disk itself is full
                os.close(descriptor)
                _free(part)
                return None
            return descriptor

    def _make_room(self, size: int, unused_since_s: float | None) -> bool:
        """Free space for so many bytes, of the copies that were not used for longest."""
        copies: list[tuple[float, int, Path]] = []
        used = 0
        for entry in os.scandir(self.folder):
            found = Path(entry.path)
            with suppress(FileNotFoundError):
                if found.suffix == _PART and _is_stale(found):
                    _free(found)
                elif found.suffix in (_PART, _COPY):
                    status = entry.stat()
                    used += status.st_size
                    if found.suffix == _COPY:
                        copies.append((status.st_mtime, status.st_size, found))
        copies.sort(key=lambda item: item[:2])
        missing = used + size - self.n_bytes
        chosen = []
        for used_s, n_bytes, found in copies:
            if missing <= 0:
                break
            if unused_since_s is None or used_s > unused_since_s:
                return False
            chosen.append(found)
            missing -= n_bytes
        if missing > 0:
            return False
        for found in chosen:
            _free(found)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _await(part: Path) -> bool:
    """Wait until a copy is written or given up; return False if its writer has come to a halt."""
    while True:
        try:
            age_s = time.time() - part.stat().st_mtime
        except FileNotFoundError:
            return True
        if _is_stale(part):
            return True
        if age_s > _HALTED_S:
            return False
        time.sleep(0.01)


@cache
def _started_s() -> float:
    """Return when this machine was started, in seconds since the epoch; 0 if it does not say."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/stat").read_text().partition("\nbtime ")[2]
        return float(status.split()[0])
    return 0.0


def _is_stale(part: Path) -> bool:
    """Return whether the process that wrote a part is gone: it would hold a lock."""
    try:
        descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _free(path: Path) -> None:
    """Remove a file. Its space is free at once, even if a process has it open."""
    with suppress(FileNotFoundError):
        os.truncate(path, 0)
        path.unlink()

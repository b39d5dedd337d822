"""A folder mounted again, with the faults of network and cloud file systems.

    faulty_mount.py FOLDER MOUNT_POINT [--no-links EIO] [--stale-s 2] ...

It stays in the foreground until it is unmounted. Two mounts of one folder with `--stale-s` are like
two machines that share a file system and keep what they have seen for a while. Needs FUSE (root, or
`fusermount`) and the package mfusepy.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy

_TIMES_NS = ("st_atime", "st_mtime", "st_ctime")
_PLAIN = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_blocks")


class FaultyFolder(mfusepy.Operations):
    """The operations on a folder; `options` are the faults, as the command line names them."""

    use_ns = True

    def __init__(self, folder: str, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.listed: dict[str, tuple[float, list[str]]] = {}
        self.n_reads = self.n_written = 0
        self.guard = threading.Lock()

    def real(self, path: str) -> str:
        """Return the path in the folder; with `--fold-case`, of any spelling of it."""
        found = self.folder
        for part in filter(None, path.split("/")):
            if self.options.fold_case and not os.path.lexists(f"{found}/{part}"):
                names = os.listdir(found) if os.path.isdir(found) else []
                part = next((n for n in names if n.lower() == part.lower()), part)
            found = f"{found}/{part}"
        return found

    # --- what exists ------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.fstat(fh) if fh else os.lstat(self.real(path))
        coarse_ns = int(self.options.coarse_times_s * 1e9)
        found: dict[str, Any] = {name: getattr(status, name) for name in _PLAIN}
        for name in _TIMES_NS:
            value = getattr(status, f"{name}_ns")
            found[name] = value - value % coarse_ns if coarse_ns else value
        return found

    def readdir(self, path: str, fh: int) -> list[str]:
        now = time.monotonic()
        seen_s, names = self.listed.get(path, (-1e9, []))
        if now - seen_s >= self.options.stale_s:
            names = [".", "..", *os.listdir(self.real(path))]
            self.listed[path] = (now, names)
        return names

    def statfs(self, path: str) -> dict[str, int]:
        if self.options.no_size:
            return {}
        status = os.statvfs(self.folder)
        return {name: getattr(status, name) for name in dir(status) if name.startswith("f_")}

    # --- names ------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self.real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self.real(path))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self.real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        source, target = self.real(old), self.real(new)
        if self.options.rename_in_steps and os.path.exists(target):
            os.stat(source)
            os.unlink(target)
            time.sleep(0.02)
        os.rename(source, target)
        return 0

    def link(self, target: str, source: str) -> int:
        if self.options.no_links:
            raise OSError(getattr(errno, self.options.no_links), "no links")
        os.link(self.real(source), self.real(target))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self.real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self.real(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if not self.options.no_times:
            os.utime(self.real(path), ns=times)
        return 0

    # --- content ----------------------------------------------------------------------------

    def create(self, path: str, mode: int, flags: int) -> int:
        if self.options.no_exclusive:
            flags &= ~os.O_EXCL
        return os.open(self.real(path), (flags | os.O_CREAT) & ~os.O_APPEND, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.real(path), flags & ~os.O_APPEND)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self.guard:
            self.n_reads += 1
            n = self.n_reads
        every = self.options.read_error_every  # twice: the kernel reads again what failed once
        if every and n % every < 2:
            raise OSError(errno.EIO, "read")
        if self.options.short_io:
            size = max(1, size * 2 // 3)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if self.options.in_order and offset != os.fstat(fh).st_size:
            raise OSError(errno.EPERM, "not in order")
        if self.options.short_io and len(data) > 1:
            data = data[: len(data) * 2 // 3]
        with self.guard:
            self.n_written += len(data)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(fh or self.real(path), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        if self.options.no_fsync:
            raise OSError(getattr(errno, self.options.no_fsync), "fsync")
        os.fsync(fh)
        return 0

    def flush(self, path: str, fh: int) -> int:
        limit = self.options.full_at_close_mb * 2**20
        is_written = fcntl.fcntl(fh, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if limit and self.n_written > limit and is_written and os.fstat(fh).st_size:
            os.ftruncate(fh, os.fstat(fh).st_size // 2)
            raise OSError(errno.ENOSPC, "close")
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


class WithoutLocks(FaultyFolder):
    """The same folder on a file system that refuses locks."""

    def flock(self, path: str, fh: int, op: int) -> int:
        raise OSError(errno.ENOLCK, "no locks")


def main() -> None:
    """Mount the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("mount_point", type=Path)
    parser.add_argument("--no-links", default="", metavar="ERRNO")
    parser.add_argument("--no-fsync", default="", metavar="ERRNO")
    parser.add_argument("--stale-s", type=float, default=0.0)
    parser.add_argument("--coarse-times-s", type=float, default=0.0)
    parser.add_argument("--read-error-every", type=int, default=0, metavar="N")
    parser.add_argument("--full-at-close-mb", type=float, default=0.0)
    for name in ("fold-case", "rename-in-steps", "no-exclusive", "no-locks", "no-times"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("short-io", "in-order", "no-size"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    kind = WithoutLocks if options.no_locks else FaultyFolder
    stale = {f"{name}_timeout": options.stale_s for name in ("entry", "attr", "negative")}
    mfusepy.FUSE(
        kind(str(options.folder.absolute()), options),
        str(options.mount_point),
        foreground=True,
        hard_remove=True,
        direct_io=options.short_io,
        big_writes=True,
        default_permissions=True,
        allow_other=True,
        fsname="faulty",
        **stale,
    )


if __name__ == "__main__":
    main()

"""A trial of what a store needs from the file system of its folder.

Some file systems accept a call and do not do it, or fail in the middle of a run: mounts of cloud
storage that write a file only from its start to its end, or ignore times. A driver finds out
before it begins, and names what is missing.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.errors import NoSpaceError, StoreError

_HEAD, _TAIL = b"strata", b"check"
_TAIL_START = 5000
_OLD_S = 1_000_000_000
_COARSE_S = 100_000
"""A modification time may be off by a time zone and two seconds, as on FAT."""
_CACHING = {
    f"fuse.{name}"
    for name in (
        *("rclone", "s3fs", "gcsfuse", "goofys", "geesefs", "blobfuse", "blobfuse2"),
        *("mountpoint-s3", "cloudfuse"),
    )
}
"""Mounts of cloud storage, each with a cache of its own."""
_OCTAL = re.compile(r"\\(\d{3})")  # a space in the name of a mount point is \040
_TRIAL = "lease.json"
"""The trial's files are named like partial files of this object, which any clean-up removes."""
_N_TRIALS = 3
"""A driver that has just got the lease may clean up the files of another driver's trial."""


def check_folder(root: Path) -> None:
    """Check that files can be written at any offset, renamed and dated in a folder.

    The folder is created if need be. Exclusive creation is checked where it is used first
    (`pipeline/exclusive.py`).

    Raises:
        NoSpaceError: The disk is full.
        StoreError: The folder cannot be written, or something is missing; the message names it.
    """
    with files.store_errors(root):
        files.make_folder(root)
    for n_left in reversed(range(_N_TRIALS)):
        try:
            _try(root)
        except StoreError as error:
            if n_left == 0 or not isinstance(error.__cause__, FileNotFoundError):
                raise
        else:
            return


def _try(root: Path) -> None:
    """Make one trial; raise what `check_folder` raises."""
    first, second = (files.partial_name(root / _TRIAL) for _ in range(2))
    need = "create a file"
    try:
        descriptor = os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            need = "write a file in any order (`rclone mount` needs --vfs-cache-mode writes)"
            _write(descriptor, _TAIL, _TAIL_START)
            _write(descriptor, _HEAD, 0)
            need = "sync a file"
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        need = "read back what was written"
        content = first.read_bytes()
        gap = bytes(_TAIL_START - len(_HEAD))
        if content != _HEAD + gap + _TAIL:
            raise OSError(errno.EIO, f"{len(content)} bytes came back, and not those")
        need = "replace a file by a rename"
        second.write_bytes(b"old")
        first.replace(second)
        if second.read_bytes() != content or first.exists():
            raise OSError(errno.EIO, "the old file is still there")
        need = "set the time of a file, which a driver does to show that it is alive"
        _check_times(second)
    except OSError as error:
        _raise(root, need, error)
    finally:
        for path in (first, second):
            with suppress(OSError):
                path.unlink()


def warn_of_caches(root: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return a warning if machines that mount the folder do not see each other's files at once.

    Args:
        root: The folder.
        mounts: The mounts of this process, in the form of Linux; without them there is no warning.
    """
    kinds = {}
    with suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), before.split()[4])
            kinds[point] = after.split()[0]
    real = root.resolve()
    found = next((kinds[str(p)] for p in (real, *real.parents) if str(p) in kinds), "")
    if found not in _CACHING:
        return ""
    return (
        f"WARNING: {root} is on {found.removeprefix('fuse.')}, which shows for minutes what it has "
        "seen before: a driver or worker on another machine would not be noticed. Use this store "
        "from one machine at a time"
    )


def _write(descriptor: int, content: bytes, offset: int) -> None:
    while content:
        n = os.pwrite(descriptor, content, offset)
        content, offset = content[n:], offset + n


def _check_times(path: Path) -> None:
    os.utime(path, (_OLD_S, _OLD_S))
    old_s = path.stat().st_mtime
    os.utime(path)
    new_s = path.stat().st_mtime
    if abs(old_s - _OLD_S) > _COARSE_S or new_s - old_s < _COARSE_S:
        raise OSError(errno.EIO, "the time stays as it was")


def _raise(root: Path, need: str, error: OSError) -> None:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise NoSpaceError(
            f"no space left in {root}: make room and run the same command again"
        ) from error
    if error.errno in (errno.EACCES, errno.EROFS) or need == "create a file":
        with files.store_errors(root):
            raise error
    raise StoreError(
        f"{root}: this file system cannot {need}: {reason}. Put the store on another one"
    ) from error

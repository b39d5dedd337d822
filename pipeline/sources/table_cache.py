"""Cache folders of tables that `datasets` has read: one for each state of a file.

`datasets` knows a file by its path and modification time, which `cp -p`, `rsync -t` and archives
carry over to other contents. Here the name of the folder depends on the content, too. Folders of
earlier states, and of files that were not read for long, are removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import SourceError

MAX_HASHED_BYTES = 1 << 26
"""Larger files, tables with embedded audio, are hashed in part: 40 ms for a file of this size."""
MAX_TABLES = 32
"""Folders that are kept, besides those in use."""
IN_USE_S = 3600.0
"""A folder that was opened within this time may be in use, and is kept."""
_END_BYTES, _BLOCK_BYTES, _N_BLOCKS = 1 << 20, 1 << 16, 64
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}|[0-9a-f]{32}")


def content_digest(path: Path) -> str:
    """Return a digest of a file's content.

    Of a file larger than `MAX_HASHED_BYTES` it covers the size, the modification time, both ends (a
    parquet's footer with the statistics of its row groups is at the end) and 64 blocks between.
    What was changed elsewhere in place, and got its old time back, has the same digest, but another
    folder in the cache: see `cache_folder`.

    Returns:
        32 hexadecimal digits.
    """
    with _named(path), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size <= MAX_HASHED_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        digest.update(file.read(_END_BYTES))
        for i in range(_N_BLOCKS):
            file.seek(status.st_size * i // _N_BLOCKS)
            digest.update(file.read(_BLOCK_BYTES))
        file.seek(-_END_BYTES, os.SEEK_END)
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()[:32]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the table in the error of a read, which names no file itself."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def table_state(path: Path) -> str:
    """Return a digest of a table's content, and its modification time."""
    return f"{content_digest(path)} {path.stat().st_mtime_ns}"


def cache_folder(cache: Path, path: Path) -> Path:
    """Return the folder in which `datasets` keeps what it reads from a file or folder.

    Its name depends on the path, the content (of a folder: the stamps of its files), and the
    modification time, change time and inode, of which the change time cannot be set by a program.
    When it is made, folders of other states of this path are removed, and all but the newest
    `MAX_TABLES` of all paths, unless they may be in use.

    Args:
        cache: Folder for all tables.
        path: File or folder to read.
    """
    state = _stamp(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        state += "".join(f"\n{file.relative_to(path)} {_stamp(file)}" for file in files)
    else:
        state += content_digest(path)
    folder = cache / f"{_hash(str(path.absolute()))}-{_hash(state)}"
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)  # the time of its last use
    if is_new:
        _prune(cache, folder)
    return folder


def _prune(cache: Path, newest: Path) -> None:
    """Remove folders of other states of the newest one's path, and the least recently used ones."""
    used = {folder: _last_use(folder) for folder in cache.iterdir() if _NAME.fullmatch(folder.name)}
    by_use = sorted(used, key=lambda folder: used[folder], reverse=True)
    prefix = newest.name.partition("-")[0] + "-"
    for rank, folder in enumerate(by_use):
        is_old = rank >= MAX_TABLES or folder.name.startswith(prefix)
        if folder != newest and is_old and _last_use(folder) < time.time() - IN_USE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0  # another process has removed it


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} "


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]

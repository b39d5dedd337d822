"""The fingerprint of a source: a hash over its rows, its settings and its files' stat stamps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.sources.remote.listing import Stamps, stamp_of
from pipeline.sources.remote.uri import is_remote

_BLOCK_ROWS = 1 << 12
_N_THREADS = 32  # they wait for the file system, which may be remote


def fingerprint(facts: object, ids: pa.StringArray, paths: pa.ChunkedArray) -> str:
    """Hash a source's content without reading its files.

    Args:
        facts: JSON-able: state of the table, and the source's identity.
        ids: Id of every row.
        paths: Path of every row's file; null where there is none.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(facts).encode())
    remote = Stamps()
    with ThreadPoolExecutor(_N_THREADS) as pool:
        for start in range(0, len(ids), _BLOCK_ROWS):
            names = ids.slice(start, _BLOCK_ROWS).to_pylist()
            files = paths.slice(start, _BLOCK_ROWS).to_pylist()
            distinct = list(dict.fromkeys(files))  # segments share files
            stamps: dict[str | None, str] = {}
            stamps.update(remote.of(path for path in distinct if path and is_remote(path)))
            distinct = [path for path in distinct if path not in stamps]
            parts = [distinct[i::_N_THREADS] for i in range(min(_N_THREADS, len(distinct)))]
            for found in pool.map(_stat_stamps, parts):
                stamps |= found
            rows = zip(names, files, strict=True)
            digest.update("".join(f"{name}\0{stamps[path]}\n" for name, path in rows).encode())
    return digest.hexdigest()[:32]


def stamps_of(paths: Iterable[str]) -> list[str]:
    """Return `stat_stamp` of each of some files; remote ones are asked for at once."""
    named = list(paths)
    remote = Stamps().of(path for path in named if is_remote(path))
    return [remote[path] if path in remote else stat_stamp(path) for path in named]


def _stat_stamps(paths: list[str | None]) -> dict[str | None, str]:
    return {path: stat_stamp(path) for path in paths}


def stat_stamp(path: str | None) -> str:
    """Return a file's size and modification time; `bytes` without a path, or `missing`.

    Of a remote file it is the size and the ETag.
    """
    if path is None:
        return "bytes"
    if is_remote(path):
        return stamp_of(path)
    try:
        stat = os.stat(path)  # noqa: PTH116 - no Path for each of a million files
    except (OSError, ValueError):  # ValueError: a null character in the path
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"

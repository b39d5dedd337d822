"""Stores on other backends than a folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.memory import MemoryBackend
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.format.layout import INDEX_CACHE
from pipeline.store.index import refresh_cache


def copy_objects(source: Backend, target: Backend) -> None:
    """Copy every object of a store."""
    for key in source.list():
        target.put(key, [source.read(key)])


def in_memory(root: Path) -> MemoryBackend:
    """Return a copy of a local store in memory."""
    backend = MemoryBackend()
    copy_objects(LocalBackend(root), backend)
    return backend


def in_bucket(root: Path, uri: str) -> RemoteBackend:
    """Return a copy of a local store in a bucket, with the cache of its index if it has one."""
    backend = RemoteBackend(uri)
    with ThreadPoolExecutor(8) as pool:
        local = LocalBackend(root)
        keys = [key for key in local.list() if key != INDEX_CACHE]
        list(pool.map(lambda key: backend.put(key, [local.read(key)]), keys))
    if local.exists(INDEX_CACHE):
        refresh_cache(backend)
    return backend


def contents(backend: Backend) -> dict[str, bytes]:
    """Return every object of a store."""
    return {key: backend.read(key) for key in backend.list()}

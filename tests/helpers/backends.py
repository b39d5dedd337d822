"""Stores on other backends than a folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.memory import MemoryBackend


def copy_objects(source: Backend, target: Backend) -> None:
    """Copy every object of a store."""
    for key in source.list():
        target.put(key, [source.read(key)])


def in_memory(root: Path) -> MemoryBackend:
    """Return a copy of a local store in memory."""
    backend = MemoryBackend()
    copy_objects(LocalBackend(root), backend)
    return backend


def contents(backend: Backend) -> dict[str, bytes]:
    """Return every object of a store."""
    return {key: backend.read(key) for key in backend.list()}

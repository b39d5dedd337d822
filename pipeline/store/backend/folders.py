"""Places of stores: how folders and buckets lie to each other, and stores that appear whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline import files
from pipeline.errors import ConfigError, StoreError
from pipeline.objects.client import ObjectClient
from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.staged import StagedBackend
from pipeline.store.format.layout import ATTRIBUTES, LEASE

_MOST_CHILDREN = 64
"""Folders in the place of a new store that are looked into."""


def folder_of(backend: Backend) -> Path:
    """Return the folder of a store, which need not exist yet.

    Raises:
        StoreError: It is not in a folder of this machine.
    """
    path = backend.local_path("")
    if path is None:
        raise StoreError(f"store {backend} is not in a folder of this machine, which is needed")
    return path


def is_there(backend: Backend) -> bool:
    """Return whether there is anything at the place of a store, even a dangling link.

    In a bucket, what is no store and no beginning of one does not count.
    """
    if isinstance(backend, StagedBackend):
        return bool(backend.children(""))
    if isinstance(backend, RemoteBackend):
        return backend.exists(ATTRIBUTES)
    return os.path.lexists(folder_of(backend))


def unseen(backend: Backend, suffix: str) -> Backend:
    """Return where a store is written that shall appear at a place when it is complete.

    That is the folder beside it whose name has a suffix more; in a bucket, the same place.
    """
    if isinstance(backend, RemoteBackend):
        return StagedBackend(backend)
    folder = folder_of(backend)
    return LocalBackend(folder.with_name(f"{folder.name}{suffix}"))


def name_of(backend: Backend) -> str:
    """Return the name of the folder of a store, or the last part of its address."""
    path = backend.local_path("")
    return str(backend).rstrip("/").rpartition("/")[2] if path is None else path.resolve().name


def relation(one: Backend, other: Backend) -> str | None:
    """Return how the folder of a store lies to that of another one, links followed.

    Returns:
        "the same folder as", "inside" or "around"; None if they have nothing in common.
    """
    paths = one.local_path(""), other.local_path("")
    if paths[0] is None or paths[1] is None:
        return _relation_of_uris(str(one), str(other))
    first, second = (path.resolve() for path in paths if path is not None)
    with suppress(OSError):
        if first.samefile(second):  # names may differ in case
            return "the same folder as"
    if first == second:
        return "the same folder as"
    if second in first.parents:
        return "inside"
    return "around" if first in second.parents else None


def _relation_of_uris(one: str, other: str) -> str | None:
    if one == other:
        return "the same folder as"
    if one.startswith(f"{other}/"):
        return "inside"
    return "around" if other.startswith(f"{one}/") else None


def check_apart(backend: Backend) -> None:
    """Check that a store that is not there yet does not lie in another one, or around one.

    The files of one would be strays in the other: removed with it, listed and copied with it.

    Raises:
        ConfigError: It does; both are named.
    """
    if backend.exists(ATTRIBUTES):
        return
    around = next(_stores_around(backend), None)
    if around is not None:
        raise ConfigError(f"{backend} is inside the store {around}; give a place outside of it")
    within = _store_within(backend)
    if within is not None:
        raise ConfigError(
            f"{backend} has the store {within} in it; give a place of its own, such as "
            f"{backend}/NAME"
        )


def _stores_around(backend: Backend) -> Iterator[str]:
    """Yield the stores in whose folders a place lies, except those that this user may not see."""
    path = backend.local_path("")
    if path is not None:
        for parent in path.resolve().parents:
            with suppress(OSError):
                if (parent / ATTRIBUTES).exists():
                    yield str(parent)
    elif isinstance(backend, RemoteBackend) and isinstance(backend.client, ObjectClient):
        client, place = backend.client, backend.client.place
        while place.prefix:
            place = replace(place, prefix=place.prefix.rpartition("/")[0])
            with suppress(OSError):
                if ObjectClient(place, client.limits, client.server).exists(ATTRIBUTES):
                    yield str(place)


def _store_within(backend: Backend) -> str | None:
    """Return a store whose folder is directly in a place; None if none is found."""
    exists = backend.client.exists if isinstance(backend, RemoteBackend) else backend.exists
    with suppress(OSError):
        names = sorted(backend.children(""))[:_MOST_CHILDREN]
        keys = [f"{name}/{ATTRIBUTES}" for name in names]
        found = run_parallel(exists, keys, backend.parallel_reads)
        return next(
            (backend.locate(name) for name, there in zip(names, found, strict=True) if there), None
        )
    return None


def absolute_name(backend: Backend) -> str:
    """Return the path of a store with links followed, or its URI."""
    path = backend.local_path("")
    return str(backend if path is None else path.resolve())


def show_store(backend: Backend, new: Backend) -> None:
    """Make a store that was written unseen appear at its place, durably.

    Args:
        backend: The complete store (`unseen`).
        new: Its place.

    Raises:
        StoreError: There is something at its place, or the storage refuses.
    """
    if isinstance(backend, StagedBackend) and isinstance(new, RemoteBackend):
        if is_there(new):
            raise StoreError(f"{new} has appeared meanwhile; remove it, or copy to another place")
        backend.publish_to(new)
        return
    folder, target = folder_of(backend), folder_of(new)
    if is_there(new):
        raise StoreError(f"{target} has appeared meanwhile; the new store is complete in {folder}")
    try:
        folder.rename(target)
    except OSError as error:
        raise StoreError(
            f"{folder} is complete, but cannot be renamed to {target}: "
            f"{error.strerror or error}; run the same command again, or rename it by hand"
        ) from error
    files.sync_folder(target.parent)
    new.delete(LEASE)  # it has moved with the store

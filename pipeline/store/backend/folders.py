"""Stores as folders of this machine: where they are to each other, and renames of whole stores."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend


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
    """Return whether there is anything at the place of a store, even a dangling link."""
    return os.path.lexists(folder_of(backend))


def sibling(backend: Backend, suffix: str) -> LocalBackend:
    """Return the place beside a store whose name has a suffix more."""
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
        return "the same folder as" if str(one) == str(other) else None
    first, second = (path.resolve() for path in paths if path is not None)
    with suppress(OSError):
        if first.samefile(second):  # names may differ in case
            return "the same folder as"
    if first == second:
        return "the same folder as"
    if second in first.parents:
        return "inside"
    return "around" if first in second.parents else None


def rename_store(backend: Backend, new: Backend) -> None:
    """Give the folder of a store another name in the same parent folder, durably.

    Raises:
        StoreError: There is something under the new name, or the file system refuses.
    """
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

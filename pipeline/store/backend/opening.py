"""From a path or URI to a backend."""

from __future__ import annotations

import os

from pipeline.errors import StoreNotFoundError
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.local import LocalBackend


def open_backend(location: Location) -> Backend:
    """Return the backend of a store, which need not exist yet.

    Args:
        location: A path, or a backend, which is returned as it is.

    Raises:
        StoreNotFoundError: No backend knows this kind of URI.
    """
    if not isinstance(location, str | os.PathLike):
        return location
    text = os.fspath(location)
    if "://" in text:
        raise StoreNotFoundError(f"{text}: only stores on a file system can be opened so far")
    return LocalBackend(text)

"""From a path or URI to a backend."""

from __future__ import annotations

import os
from typing import cast

from pipeline.errors import StoreNotFoundError
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.local import LocalBackend


def open_backend(location: Location) -> Backend:
    """Return the backend of a store, which need not exist yet.

    Args:
        location: A path, or a backend, which is returned as it is.

    Raises:
        StoreNotFoundError: No backend knows this kind of URI.
        TypeError: The location is neither a path nor a backend.
    """
    if hasattr(location, "put_if_absent"):
        return cast("Backend", location)
    text = os.fspath(location)
    if not isinstance(text, str):
        raise TypeError(f"a store is a path as text or a backend, not {type(location).__name__}")
    if "://" in text:
        raise StoreNotFoundError(f"{text}: only stores on a file system can be opened so far")
    return LocalBackend(text)

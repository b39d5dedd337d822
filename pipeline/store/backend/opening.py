"""From a path or URI to a backend."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import cast

from pipeline.errors import ConfigError, StoreNotFoundError
from pipeline.objects.filesystem import FileSystemClient, is_known
from pipeline.objects.uri import file_path, is_object_uri, scheme_of
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.cache_folder import CacheFolder
from pipeline.store.backend.remote.read_only import ReadOnlyBackend

_ONE_SLASH = re.compile(r"(s3|gs|az|hf|https?|file):/(?!/)(.*)", re.DOTALL | re.IGNORECASE)


def absolute_location(text: str) -> str:
    """Return the location of a store for a process with another working directory.

    Raises:
        ConfigError: A URI is not complete.
    """
    _refuse_one_slash(text)
    scheme = scheme_of(text)
    if scheme and scheme != "file":
        return text
    path = file_path(text) if scheme else text
    return str(Path(path).expanduser().absolute())


def open_backend(location: Location) -> Backend:
    """Return the backend of a store, which need not exist yet.

    Args:
        location: A path, a URI (`s3://`, `gs://`, `az://`, `file:///`; to read also `hf://`,
            `https://` and others that fsspec knows), or a backend, which is returned as it is.

    Raises:
        ConfigError: A URI is not complete, or the environment does not lead to its server.
        StoreNotFoundError: No backend knows this kind of URI.
        TypeError: The location is neither a path nor a backend.
    """
    if hasattr(location, "put_if_absent"):
        return cast("Backend", location)
    text = os.fspath(location)
    if not isinstance(text, str):
        raise TypeError(f"a store is a path as text or a backend, not {type(location).__name__}")
    _refuse_one_slash(text)
    if is_object_uri(text):
        return RemoteBackend(text)
    if scheme_of(text) == "file":
        return LocalBackend(file_path(text))
    if "://" in text:
        if not is_known(text):
            raise StoreNotFoundError(
                f"{text}: no kind of store; expected a path, file:///PATH, s3://BUCKET/PREFIX, "
                "gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; or, to read, hf://datasets/USER/NAME "
                "or another URI that fsspec knows"
            )
        return ReadOnlyBackend(FileSystemClient(text))
    return LocalBackend(text)


def with_copies(location: Location, folder: object, n_bytes: object) -> Backend:
    """Return the backend of a store in a bucket, with copies of its large objects in a folder.

    Args:
        location: As for `open_backend`.
        folder: Path of the folder.
        n_bytes: What it may hold.

    Raises:
        ConfigError: The store is not in a bucket, or one of the others is missing or unusable.
    """
    backend = open_backend(location)
    is_bound = isinstance(n_bytes, int) and not isinstance(n_bytes, bool) and n_bytes > 0
    is_folder = isinstance(folder, str | os.PathLike) and "://" not in os.fsdecode(folder)
    if not is_folder or not is_bound:
        raise ConfigError(
            f"cache={folder!r} and cache_bytes={n_bytes!r}; expected both: a folder of this "
            "machine, and how many bytes it may hold, as a whole number such as 500_000_000_000"
        )
    if not isinstance(backend, RemoteBackend):
        raise ConfigError(
            f"cache={folder!r} is for stores in buckets; {backend} is not in one: leave it out"
        )
    path = Path(os.fsdecode(cast("str", folder))).absolute()
    _check_folder(path)
    return backend.cached(CacheFolder(path, cast("int", n_bytes)))


def _check_folder(path: Path) -> None:
    """Check that the folder of a cache is there, or can be made, and can be written."""
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        reason = f"{place} is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"this process may not write to {place}"
    else:
        return
    raise ConfigError(
        f"cache={str(path)!r}: no copies can be kept there, because {reason}; name a folder of "
        "this machine that can be written, or leave it out"
    )


def _refuse_one_slash(text: str) -> None:
    """Refuse s3:/BUCKET, which `Path("s3://BUCKET")` is as text: it would be a folder here."""
    found = _ONE_SLASH.match(text)
    if found:
        raise ConfigError(
            f"{text}: a URI has two slashes after its colon, and a Path of one keeps only one of "
            f"them; expected {found[1]}://{found[2]} as text, or ./{text} for a local folder"
        )

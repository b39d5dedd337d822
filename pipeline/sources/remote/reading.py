"""Requests for bytes of remote files, and what their failures mean for a run.

What concerns one file (it is gone, or has changed) is an AudioError, and its utterances are
quarantined. What would concern others as well (a server that is down, missing permissions) is a
SourceError, which ends the run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from pipeline.errors import AudioError, NoBucketError, SourceError
from pipeline.objects.base import ObjectInfo
from pipeline.objects.client import ObjectClient
from pipeline.objects.requests import Limits
from pipeline.objects.uri import ObjectUri
from pipeline.sources.remote.uri import is_hub, split

LIMITS = Limits()
"""How long to wait for a server."""
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_HOST")
_AGAIN = "run the same command again: what is extracted is kept"
_ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL and AWS_REGION",
    "gs": "GOOGLE_BASE_URL",
    "az": "AZURE_STORAGE_ENDPOINT",
}


class Info(NamedTuple):
    """What a server says of a file.

    Attributes:
        n_bytes: Its size.
        stamp: Another one for every content; empty on the hub, where a commit never changes.
    """

    n_bytes: int
    stamp: str


def info_of(uri: str) -> Info:
    """Return the size and the stamp of a file.

    Raises:
        AudioError: It does not exist.
        SourceError: The server does not answer, or refuses it.
    """
    if is_hub(uri):
        return Info(_hub().size_of(uri), "")
    with explained(uri):
        client, key = client_of(uri)
        return as_info(client.head(key))


def read_start(uri: str, n_bytes: int) -> tuple[bytes, Info]:
    """Read the first bytes of a file, or all of it if it has fewer, and learn its size.

    Raises:
        AudioError: It does not exist.
        SourceError: The server does not answer, or refuses it.
    """
    if is_hub(uri):
        info = info_of(uri)
        return read_range(uri, 0, min(n_bytes, info.n_bytes)), info
    with explained(uri):
        client, key = client_of(uri)
        try:
            content, found = client.fetch(key, 0, n_bytes)
        except EOFError:  # it has fewer
            found = client.head(key)
            content = client.get_range(key, 0, found.size, found.etag)
        return bytes(content), as_info(found or client.head(key))


def read_range(uri: str, start: int, n_bytes: int, stamp: str = "") -> bytes:
    """Read bytes of a file, exactly as many as are asked for.

    Args:
        uri: The file.
        start: First byte.
        n_bytes: Number of bytes.
        stamp: What the file must still have; empty for any.

    Raises:
        AudioError: The file does not exist, is shorter, or has another stamp.
        SourceError: The server does not answer, or refuses it.
    """
    if is_hub(uri):
        content: bytes = _hub().read_range(uri, start, n_bytes)
        return content
    with explained(uri):
        client, key = client_of(uri)
        return bytes(client.get_range(key, start, n_bytes, stamp))


def fetch_whole(uri: str) -> tuple[bytes, float]:
    """Return all of a small file, and when it was written, in seconds since the epoch.

    Raises:
        AudioError: It does not exist.
        SourceError: The server does not answer, or refuses it.
    """
    if is_hub(uri):
        return read_range(uri, 0, info_of(uri).n_bytes), 0.0
    with explained(uri):
        client, key = client_of(uri)
        return client.get(key), client.head(key).modified_s


def hub_listing(folder: str) -> dict[str, Info]:
    """List the files below a folder of the hub; the stamp is the digest of their content.

    Raises:
        SourceError: The hub does not answer, or refuses it.
    """
    return {name: Info(*found) for name, found in _hub().list_files(folder).items()}


def resolved(uri: str) -> str:
    """Return the URI of a file or folder of the hub with its commit, which never changes.

    Raises:
        SourceError: The hub does not answer, or has no such repository or revision.
    """
    found: str = _hub().resolved(uri) if is_hub(uri) else uri
    return found


def as_info(found: ObjectInfo) -> Info:
    """Return the size and the stamp of an object."""
    return Info(found.size, found.etag or f"{found.modified_s:.3f}")


def client_of(uri: str) -> tuple[ObjectClient, str]:
    """Return a client of the bucket of an object, and the object's key.

    Raises:
        SourceError: It is no URI of a bucket.
        ConfigError: obstore is not installed, or the environment names no usable server.
    """
    bucket, key = split(uri)
    variables = tuple(sorted(i for i in os.environ.items() if i[0].startswith(_VARIABLES)))
    return _client(bucket, hash(variables)), key  # some of them are secrets, which are not kept


@lru_cache(64)
def _client(bucket: ObjectUri, environment: int) -> ObjectClient:
    return ObjectClient(bucket, LIMITS)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Say what an error of a request means for the dataset, and what to do.

    Raises:
        AudioError: It concerns this object alone.
        SourceError: It would concern others, too.
    """
    try:
        yield
    except NoBucketError as error:
        raise SourceError(str(error)) from error
    except FileNotFoundError as error:
        raise AudioError("the file cannot be opened: no such object in the bucket") from error
    except PermissionError as error:
        raise SourceError(
            f"{uri} may not be read: {error.strerror}. Give credentials that may read and list the "
            f"bucket, then {_AGAIN}"
        ) from error
    except EOFError as error:
        raise AudioError("the file became shorter while it was read") from error
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise AudioError("the file was replaced while it was read") from error
        if error.errno == errno.EINVAL:
            raise SourceError(f"{uri} cannot be read: {error.strerror}") from error
        raise SourceError(
            f"{uri} cannot be read: {error.strerror or error}; check the network and "
            f"{_endpoint(uri)}, then {_AGAIN}"
        ) from error


def _endpoint(uri: str) -> str:
    return f"the address of the server ({_of_scheme(_ENDPOINTS, uri)})"


def _of_scheme(texts: dict[str, str], uri: str) -> str:
    return texts.get(uri.partition("://")[0].lower(), "the environment")


def _hub() -> ModuleType:
    """Return the functions that read files of the hub; its library is imported for them alone."""
    return import_module("pipeline.sources.repository.remote")

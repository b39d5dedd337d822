"""URIs of remote files, as text: a path of a segment may be one."""

from __future__ import annotations

from pipeline.errors import ConfigError, SourceError
from pipeline.objects.uri import ObjectUri, is_object_uri, parse_uri, scheme_of

HUB = "hf"


def is_remote(path: str | None) -> bool:
    """Return whether a path is a URI of a bucket or of the hub."""
    return path is not None and "://" in path and (is_hub(path) or is_object_uri(path))


def is_hub(path: str) -> bool:
    """Return whether a path is a URI of the hub."""
    return path[:5].lower() == f"{HUB}://"


def check_uri(uri: str) -> None:
    """Check that a URI names a bucket or a repository, and something in it.

    Raises:
        SourceError: It is misspelt.
    """
    if not is_hub(uri):
        split(uri)


def split(uri: str) -> tuple[ObjectUri, str]:
    """Return the bucket of an object, and its key there; an empty key for the bucket itself.

    Raises:
        SourceError: It is no URI of a bucket.
    """
    scheme, _, rest = uri.partition("://")
    if "@" in rest.partition("/")[0]:
        uri = f"{scheme}://…"  # the rest may be a secret
    try:
        bucket = parse_uri(f"{scheme}://{rest.partition('/')[0]}")
    except ConfigError as error:
        raise SourceError(f"{uri}: {error}") from error
    return bucket, rest.partition("/")[2].strip("/")


def joined(folder: str, name: str) -> str:
    """Return the URI of a file below a folder."""
    return f"{folder.rstrip('/')}/{name}"


def folder_of(uri: str) -> str:
    """Return the URI of the folder that a file is in."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('/')[0]}"


def name_of(uri: str) -> str:
    """Return the name of a file without its folder."""
    return uri.rpartition("/")[2]


__all__ = [
    "HUB", "check_uri", "folder_of", "is_hub", "is_remote", "joined", "name_of", "scheme_of",
    "split",
]  # fmt: skip

"""URIs of buckets: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError

SCHEMES = ("s3", "gs", "az")
_OTHER_NAMES = {
    "s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az",
}  # fmt: skip
LONGEST_PREFIX = 900
"""Bytes. Keys may have 1024 with all providers, and a store adds up to 100 to its prefix."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")


@dataclass(frozen=True)
class ObjectUri:
    """A bucket and the prefix of the objects that are meant.

    Attributes:
        scheme: One of `SCHEMES`.
        bucket: Name of the bucket, or of Azure's container.
        prefix: Without a slash at either end; empty for the whole bucket.
    """

    scheme: str
    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def key(self, name: str) -> str:
        """Return the key within the bucket of an object below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name


def scheme_of(text: str) -> str:
    """Return the scheme of a URI, in lower case; empty if the text is a path."""
    scheme, separator, _ = text.partition("://")
    return scheme.lower() if separator else ""


def is_object_uri(text: str) -> bool:
    """Return whether a text is a URI of a bucket, or looks like one that is misspelt."""
    return scheme_of(text) in SCHEMES or scheme_of(text) in _OTHER_NAMES


def parse_uri(text: str) -> ObjectUri:
    """Return the parts of a URI of a bucket.

    Raises:
        ConfigError: It is not such a URI, or it has credentials in it, which are not repeated.
    """
    scheme, rest = scheme_of(text), text.partition("://")[2]
    expected = "expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    if scheme not in SCHEMES:
        hint = f"; write {_OTHER_NAMES[scheme]}://" if scheme in _OTHER_NAMES else ""
        raise ConfigError(f"{scheme or text}: no kind of bucket; {expected}{hint}")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"a {scheme}:// URI names a bucket and nothing else; {expected}. Credentials and the "
            "address of the server come from the environment, such as AWS_ACCESS_KEY_ID and "
            "AWS_ENDPOINT_URL"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{text}: {bucket!r} cannot be the name of a bucket; {expected}")
    prefix = prefix.strip("/")
    bad = next((part for part in prefix.split("/") if part in ("", ".", "..")), None)
    if prefix and bad is not None:
        raise ConfigError(
            f"{text}: a prefix may not have {bad!r} between its slashes; leave that out"
        )
    if any(ord(character) < 32 for character in prefix):
        raise ConfigError(f"{text!r}: a prefix may not have control characters")
    if len(prefix.encode()) > LONGEST_PREFIX:
        raise ConfigError(
            f"{text[:60]}...: a prefix of {len(prefix.encode()):,} bytes leaves no room for keys; "
            f"give one of at most {LONGEST_PREFIX}"
        )
    return ObjectUri(scheme, bucket, prefix)


def file_path(text: str) -> str:
    """Return the path of a `file:///` URI.

    Raises:
        ConfigError: It names another machine, or no absolute path.
    """
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigError(f"{text}: expected file:///PATH with an absolute path of this machine")
    return unquote(text.partition("://")[2].removeprefix("localhost"))

"""An S3 server that honours conditional creation: localbucket, a package of PyPI.

It checks no credentials. A bucket is a folder, an object a file of it.
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.base import free_port, running, s3_environment

BUCKET = "test-bucket"
_START = """
import localbucket
whole_bucket = localbucket.S3Handler._list_entries

def one_folder(self, bucket, prefix, delimiter, marker, *more):
    at = prefix[: prefix.rfind("/") + 1]
    is_other = marker and (not marker.startswith(at) or marker == at)
    if is_other or {"", ".", ".."} & set(at[:-1].split("/")):
        return whole_bucket(self, bucket, prefix, delimiter, marker, *more)
    n = len(at)
    contents, folders, is_cut, last = whole_bucket(
        self, bucket / at, prefix[n:], delimiter, marker[n:], *more
    )
    contents = [(at + key, path) for key, path in contents]
    return contents, [at + name for name in folders], is_cut, last and last[:2] + at + last[2:]

localbucket.S3Handler._list_entries = one_folder
localbucket.S3Handler.disable_nagle_algorithm = True
localbucket.ThreadingHTTPServer.request_queue_size = 128
localbucket.main()
"""
"""The server as its own command starts it, with three changes: a list walks the folder of its
prefix only, not the thousands of objects of all tests; small answers, which are sent in two parts,
do not take 40 ms; and clients do not wait for a second if more than five connect at once."""
SECRET = "a-secret-key-that-nothing-may-show"


@dataclass(frozen=True)
class LocalBucket:
    """A running server.

    Attributes:
        url: Its address.
        folder: Has a folder for each bucket.
        pid: Its process.
    """

    url: str
    folder: Path
    pid: int

    def files(self, prefix: str) -> dict[str, Path]:
        """Return the objects below a prefix of the bucket, by their keys there."""
        root = self.folder / BUCKET / prefix
        paths = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path for path in paths}

    @property
    def unfinished(self) -> list[Path]:
        """The multipart uploads that were neither completed nor aborted."""
        return list((self.folder / ".localbucket-uploads").glob("*"))


@contextmanager
def start_localbucket(folder: Path) -> Iterator[LocalBucket]:
    """Run a server with one bucket, `BUCKET`."""
    port, data = free_port(), folder / "data"
    command = [sys.executable, "-c", _START, str(data), "--port", str(port)]
    with running(command, port, folder / "localbucket.log") as pid:
        url = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request).close()
        yield LocalBucket(url, data, pid)


def environment(url: str) -> Mapping[str, str]:
    """Return the variables with which a process finds a server of S3."""
    return s3_environment(url, "an-access-key", SECRET)

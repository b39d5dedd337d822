"""Files in the bucket of the S3 server of the tests, and what was read of them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.servers.localbucket import BUCKET, LocalBucket
from tests.servers.proxy import Proxy, Request


def upload(folder: Path, server: LocalBucket, uri: str) -> None:
    """Put the files of a folder below a URI; paths of the folder in lists become URIs."""
    target = place_of(server, uri)
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix in (".tsv", ".csv", ".jsonl", ".scp"):
                content = content.replace(str(folder).encode(), uri.encode())
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)


def place_of(server: LocalBucket, uri: str) -> Path:
    """Return where the server keeps an object, or those below a prefix."""
    return server.folder / BUCKET / uri.removeprefix(f"s3://{BUCKET}/")


def gets(proxy: Proxy, name: str = "") -> list[Request]:
    """Return the requests for content of objects whose path ends with a name."""
    return [r for r in proxy.requests if r.kind == "GET" and r.path.endswith(name)]


def n_bytes(proxy: Proxy, name: str, size: int) -> int:
    """Return how many bytes of an object of some size were asked for."""
    total = 0
    for request in gets(proxy, name):
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        total += min(int(found[2]) + 1, size) - int(found[1]) if found else size
    return total

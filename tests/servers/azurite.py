"""Azurite (npm): the emulator of Azure Blob Storage that Microsoft publishes.

`scripts/setup test` installs it into `.venv/azurite/` where there is npm.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.servers.base import Bucket, free_port, running

ACCOUNT = "strata"
KEY = base64.b64encode(b"a key for tests on the loopback").decode()
VERSION = "2021-12-02"
ROOT = Path(__file__).parents[2]


def azurite_command() -> str:
    """Return the path of Azurite; skip the test if it is not installed."""
    found = ROOT / ".venv" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if not found.exists():
        pytest.skip("azurite is not installed (npm; `scripts/setup test` installs it)")
    return str(found)


@contextmanager
def azurite_bucket(folder: Path) -> Iterator[Bucket]:
    """Serve an empty container."""
    port, log = free_port(), folder / "azurite.log"
    command = [
        azurite_command(),
        *("--blobPort", str(port), "--inMemoryPersistence"),
        *("--silent", "--disableTelemetry", "--skipApiVersionCheck"),
    ]
    environment = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
        "AZURE_ALLOW_HTTP": "true",
    }
    with running(command, port, log, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}) as pid:
        _create_container(port, "bucket")
        endpoint = environment["AZURE_STORAGE_ENDPOINT"]
        yield Bucket("az://bucket", endpoint, environment, log, pid)


def _create_container(port: int, name: str) -> None:
    """Create a container: the one call that obstore does not have."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
    named = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + named + resource  # eleven headers that are not sent
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
        answer = connection.getresponse()
        if answer.status != 201:
            raise RuntimeError(f"no container: {answer.status} {answer.read()!r}")
    finally:
        connection.close()

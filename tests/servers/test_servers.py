"""What each server does that a store depends on, tried with obstore itself.

docs/buckets.md has the results as a table. A test that fails after an upgrade means that the table,
or the way that a store is read from this server, has to change.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.servers.base import Bucket, free_port, running
from tests.servers.gcs import upload

obstore = pytest.importorskip("obstore", reason="obstore is not installed (the extra `cloud`)")
HTTP = {"client_options": {"allow_http": True}}


def opened(bucket: Bucket, patch: pytest.MonkeyPatch) -> Any:
    """Open a bucket as obstore does by itself, from the environment."""
    return obstore.store.from_url(bucket.use(patch), **HTTP)


def winners(store: Any, key: str) -> int:
    """Return how many of eight clients believe that they have created an object."""

    def create(number: int) -> bool:
        try:
            obstore.put(store, key, b"%d" % number, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(create, range(8)))


def etag(meta: Any) -> str:
    """Return an ETag without quotes: listings of some servers leave them out."""
    return str(meta["e_tag"]).strip('"')


def test_rclone_lets_every_client_create_the_same_object(
    rclone: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores the condition, and does not say so: no commit would be safe."""
    store = opened(rclone, monkeypatch)
    assert winners(store, "race/a") == 8


def test_rclone_serves_ranges_with_the_wrong_status(
    rclone: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 in place of 206, which obstore refuses: only whole objects can be read there."""
    store = opened(rclone, monkeypatch)
    obstore.put(store, "range/a", b"0123456789")
    assert bytes(obstore.get(store, "range/a").bytes()) == b"0123456789"
    with pytest.raises(obstore.exceptions.GenericError, match="non-partial"):
        obstore.get_range(store, "range/a", start=2, length=3)


def test_azurite_lets_one_client_create_an_object(
    azurite: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Azure does."""
    assert winners(opened(azurite, monkeypatch), "race/a") == 1


def test_azurite_checks_if_match_and_begins_a_listing_where_it_is_told(
    azurite: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 3.37 it listed everything, so what comes before must be dropped by the client."""
    store = opened(azurite, monkeypatch)
    for name in "abc":
        obstore.put(store, f"list/{name}", b"0123456789")
    found = obstore.get(store, "list/a", options={"range": (2, 5)})
    assert bytes(found.bytes()) == b"234"
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store, "list/a", options={"range": (2, 5), "if_match": '"0x0"'})
    listed = obstore.list(store, "list", offset="list/b").collect()
    assert [item["path"] for item in listed] == ["list/c"]
    assert etag(obstore.head(store, "list/c")) == etag(listed[0])


def test_the_gcs_emulator_can_be_read_only(gcs: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves ranges, ETags and listings to obstore, but no upload and no condition."""
    store = opened(gcs, monkeypatch)
    for name in "ab":
        upload(gcs, f"read/{name}", b"0123456789")
    found = obstore.get(store, "read/a", options={"range": (2, 5), "if_match": '"0"'})
    assert bytes(found.bytes()) == b"234"
    listed = obstore.list(store, "read", offset="read/a").collect()
    assert [item["path"] for item in listed] == ["read/a", "read/b"]
    assert etag(found.meta) == etag(listed[0])
    with pytest.raises(obstore.exceptions.GenericError, match="uploadType"):
        obstore.put(store, "read/c", b"content")


def test_a_server_that_does_not_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    """Not a test that waits."""
    failing = [sys.executable, "-c", "raise SystemExit('no such volume')"]
    with (
        pytest.raises(RuntimeError, match=r"(?s)status 1.*no such volume"),
        running(failing, free_port(), tmp_path / "log"),
    ):
        pass


def test_a_server_ends_with_its_block(tmp_path: Path) -> None:
    """Its process is gone afterwards."""
    port = free_port()
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with running(serve, port, tmp_path / "log") as pid:
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)

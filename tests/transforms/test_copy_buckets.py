"""Copies into, out of and between buckets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.errors import ConfigError, StoreError, StoreNotFoundError
from pipeline.objects import requests as requests_module
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import ATTRIBUTES
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.collapse import collapse
from pipeline.transforms.copy import CopySettings, copy_stores
from pipeline.transforms.copy import run as copy_run
from tests.helpers.fake_store import FakeStore
from tests.servers.base import Bucket
from tests.servers.proxy import Fault, Proxy

FEW = CopySettings(layers=[1, 12])


def check_same(location: object, store: FakeStore) -> None:
    """Check that a copy is sound and has the features of two layers of a store."""
    found = verify_store(location)  # type: ignore[arg-type]
    assert (found.ok, found.orphans) == (True, ())
    copy, original = pipeline.open_store(location), pipeline.open_store(store.root)  # type: ignore[arg-type]
    assert copy.ids == original.ids
    assert copy.layers == (1, 12)
    for name in original.ids:
        np.testing.assert_array_equal(copy.read(name), original.read(name, layers=[1, 12]))


def test_a_store_goes_up_across_and_down(store: FakeStore, s3: str, tmp_path: Path) -> None:
    """From a folder to a bucket, to another place there, and to a folder again."""
    copy_stores(store.root, f"{s3}/up", FEW)
    check_same(f"{s3}/up", store)
    copy_stores(f"{s3}/up", f"{s3}/across", CopySettings())
    check_same(f"{s3}/across", store)
    copy_stores(f"{s3}/across", tmp_path / "down", CopySettings())
    check_same(tmp_path / "down", store)
    again = copy_stores(store.root, f"{s3}/up", FEW)
    assert again.utterances == len(pipeline.open_store(store.root).ids)


def test_a_copy_appears_when_it_is_complete(
    store: FakeStore, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is interrupted is no store; the same command completes it, and keeps its units."""

    def fail(place: object) -> None:
        with pytest.raises(StoreNotFoundError):
            pipeline.open_store(s3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(copy_run, "check_written", fail)
        with pytest.raises(KeyboardInterrupt):
            copy_stores(store.root, s3, FEW)
    backend = open_backend(s3)
    commits = backend.stamps("index")
    assert commits
    assert not backend.exists(ATTRIBUTES)
    copy_stores(store.root, s3, FEW)
    check_same(s3, store)
    assert backend.stamps("index") == commits


def test_a_server_without_conditions_takes_copies(
    store: FakeStore, rclone: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is refused by every other verb that writes; the copy can be read there, and goes down."""
    uri = f"{rclone.use(monkeypatch)}/copies"
    copy_stores(store.root, uri, FEW)
    check_same(uri, store)
    with pytest.raises(StoreError, match="does not support conditional creation"):
        collapse(uri, f"{uri}-collapsed", "average")
    copy_stores(uri, tmp_path / "down", CopySettings())
    check_same(tmp_path / "down", store)


def test_azure_takes_copies(
    store: FakeStore, azurite: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Up and down; it honours conditions, so a collapse may be written there, too."""
    uri = f"{azurite.use(monkeypatch)}/copies"
    copy_stores(store.root, uri, FEW)
    check_same(uri, store)
    assert collapse(uri, f"{uri}-collapsed", "average").units_committed > 0
    assert verify_store(f"{uri}-collapsed").ok
    copy_stores(uri, tmp_path / "down", CopySettings())
    check_same(tmp_path / "down", store)


def test_faults_of_the_server_do_not_end_a_copy(
    store: FakeStore, proxy: Proxy, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request of six fails, in turn in each way."""
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.02)
    proxy.moment_s = 0.03
    kinds = list(Fault)

    def choose(request: object) -> Fault | None:
        n = len(proxy.requests)
        return kinds[n // 6 % len(kinds)] if n % 6 == 0 else None

    proxy.choose = choose
    copy_stores(store.root, s3, FEW)
    assert set(proxy.injected) == set(kinds)
    proxy.choose = lambda request: None
    check_same(s3, store)


def test_a_copy_into_its_source_is_refused(store: FakeStore, s3: str) -> None:
    """Also within the source, and around it."""
    copy_stores(store.root, f"{s3}/a/b", FEW)
    for place in (f"{s3}/a/b", f"{s3}/a/b/c", f"{s3}/a"):
        with pytest.raises(ConfigError, match=re.escape(f"source {s3}/a/b")):
            copy_stores(f"{s3}/a/b", place, FEW)


def test_a_place_with_something_else_is_refused(store: FakeStore, s3: str) -> None:
    """What is there is not touched."""
    backend = open_backend(s3)
    backend.put("notes.txt", [b"mine"])
    with pytest.raises(StoreError, match=r"is no copy \(it has notes\.txt\)"):
        copy_stores(store.root, s3, FEW)
    assert list(backend.list()) == ["notes.txt"]

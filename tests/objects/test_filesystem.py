"""Objects of file systems that fsspec knows: a web server, and the memory of this process."""

from __future__ import annotations

import errno
import multiprocessing
import pickle
from pathlib import Path

import fsspec
import pytest
import torch

import pipeline
from pipeline.errors import (
    ConfigError,
    DamagedError,
    StoreError,
    StoreNotFoundError,
    UnreachableError,
)
from pipeline.objects import filesystem
from pipeline.objects.filesystem import FileSystemClient
from pipeline.store.backend.opening import open_backend
from pipeline.store.maintain.verify import verify_store
from tests.helpers.feature_stores import make_store
from tests.servers.web import serve_folder


@pytest.fixture
def folder(tmp_path):
    for key, content in {"a/1": b"0123456789", "a/b/2": b"two", "3": b"three"}.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)
    return tmp_path


@pytest.fixture(params=["http", "memory"])
def client(request, folder):
    """The same files on both."""
    if request.param == "http":
        with serve_folder(folder) as address:
            yield FileSystemClient(f"{address}/")
        return
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/top/{path.relative_to(folder)}": path.read_bytes() for path in files(folder)})
    yield FileSystemClient("memory://top")
    memory.rm("/top", recursive=True)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_files_are_objects(client):
    """They are listed at any depth and by folder, and read whole or by range."""
    assert {info.key for info in client.list()} == {"a/1", "a/b/2", "3"}
    assert [info.key for info in client.list("a", offset="a/1")] == ["a/b/2"]
    assert sorted(client.children()) == ["3", "a"]
    objects, folders = client.list_folder("a")
    assert ([info.key for info in objects], list(folders)) == (["a/1"], ["b"])
    assert client.get("a/1") == b"0123456789"
    assert bytes(client.get_range("a/1", 3, 4)) == b"3456"
    assert bytes(client.get_range("a/1", 3, 0)) == b""
    assert [bytes(part) for part in client.get_ranges("a/1", [7, 0], [3, 2])] == [b"789", b"01"]
    info = client.head("a/b/2")
    assert (info.key, info.size) == ("a/b/2", 3)
    assert info.etag


def test_what_is_not_there(client):
    """A file, a folder, and bytes beyond the end."""
    assert client.list("nope") == []
    assert client.children("nope") == []
    assert not client.exists("nope")
    assert client.exists("3")
    with pytest.raises(FileNotFoundError, match="no such object") as found:
        client.get("a/nope")
    assert found.value.filename == client.locate("a/nope")
    with pytest.raises(EOFError, match="ends at byte 10"):
        client.get_range("a/1", 8, 3)
    with pytest.raises(EOFError, match="ends at byte 10"):
        client.get_range("a/1", 20, 3)
    with pytest.raises(OSError, match="no range"):
        client.get_range("a/1", -1, 3)


def test_nothing_is_written(client):
    """The error says where to write, and what sends a store there."""
    for write in (
        lambda: client.put("x", [b"x"]),
        lambda: client.create("x", b"x"),
        lambda: client.delete("3"),
    ):
        with pytest.raises(StoreError, match="can only be read; write the store to a folder"):
            write()
    assert client.exists("3")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nope://x/y", "unknown scheme"),
        ("https://user:secret@host/x", "has a password in it"),
        ("https://host/x?token=secret", "without"),
        ("https://", "names no place"),
    ],
)
def test_wrong_uris_are_refused(uri, message):
    """No secret is repeated."""
    with pytest.raises(ConfigError, match=message) as found:
        FileSystemClient(uri)
    assert "secret" not in str(found.value)
    with pytest.raises((ConfigError, StoreNotFoundError)):
        open_backend(uri)


def test_a_library_that_is_missing_is_named():
    """Fsspec knows which one."""
    with pytest.raises(ConfigError, match="paramiko"):
        FileSystemClient("sftp://host/folder")


def test_a_server_without_ranges_is_refused(folder):
    """Else every read of a frame would fetch a shard."""
    with serve_folder(folder, has_ranges=False) as address:
        client = FileSystemClient(address)
        assert client.get("3") == b"three"
        with pytest.raises(OSError, match="sends whole files for ranges"):
            client.get_range("a/1", 3, 4)


def test_a_server_that_is_gone_is_one_line(folder, monkeypatch):
    """After a few attempts."""
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 2)
    with serve_folder(folder) as address:
        client = FileSystemClient(address)
        client.get("3")
    with pytest.raises(OSError, match="http: ") as found:
        client.get("3")
    assert found.value.filename == f"{address}/3"
    assert "\n" not in str(found.value)
    for ask in (client.head, client.exists, client.list):  # fsspec calls some of these missing
        with pytest.raises(UnreachableError, match="cannot be read: http: "):
            ask("3")


def _read(store, position, queue):
    queue.put(store.read(position, [1]).numpy())


def test_a_store_behind_a_web_server_is_read(tmp_path):
    """As the one on the disk is, in forked processes too, and it cannot be changed."""
    make_store(tmp_path / "store", lengths=[200, 20, 70])
    with serve_folder(tmp_path) as address:
        here, there = (
            pipeline.open_store(tmp_path / "store"),
            pipeline.open_store(f"{address}/store"),
        )
        assert there.ids == here.ids
        for layers in (None, [2]):
            for a, b in zip(
                there.read_many(range(3), layers), here.read_many(range(3), layers), strict=True
            ):
                assert torch.equal(a, b)
        assert torch.equal(there.pooled(), here.pooled())
        again = pickle.loads(pickle.dumps(there))
        assert torch.equal(again.read(1, verify=True), here.read(1))
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_read, args=(there, 2, queue))
        process.start()
        found = torch.from_numpy(queue.get(timeout=30))
        process.join()
        assert torch.equal(found, here.read(2, [1]))
        assert verify_store(f"{address}/store").ok
        with pytest.raises(StoreError, match="can only be read; copy it to a folder"):
            pipeline.drop(f"{address}/store", ids=["a"], confirm=True)


def test_a_server_that_is_gone_is_no_damage(tmp_path, monkeypatch):
    """Neither for a reader nor for verify, whose repair would revoke sound commits."""
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 1)
    make_store(tmp_path / "store", lengths=[200, 20, 70])
    with serve_folder(tmp_path) as address:
        store = pipeline.open_store(f"{address}/store")
        store.read(0)
    for action in (
        lambda: store.read(0),
        lambda: store.read_many([2, 1], [3]),
        lambda: store.read(1, verify=True),
        store.pooled,
        store.refresh,
        lambda: verify_store(f"{address}/store"),
        lambda: pipeline.open_store(f"{address}/store"),
    ):
        with pytest.raises(UnreachableError, match="cannot be read: http: ") as found:
            action()
        assert not isinstance(found.value, DamagedError)


def test_a_server_that_goes_while_verify_reads_is_no_damage(tmp_path, monkeypatch):
    """Each shard is asked for when plan and index were read already."""
    make_store(tmp_path / "store", lengths=[200, 20, 70])
    fetch = FileSystemClient.fetch

    def gone(client, key, *arguments):
        if "/c/" in key:
            raise UnreachableError(errno.EIO, "http: gone", client.locate(key))
        return fetch(client, key, *arguments)

    with serve_folder(tmp_path) as address:
        assert verify_store(f"{address}/store").ok
        monkeypatch.setattr(FileSystemClient, "fetch", gone)
        with pytest.raises(UnreachableError, match="http: gone"):
            verify_store(f"{address}/store")

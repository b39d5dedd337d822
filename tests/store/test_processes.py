"""One store in many processes and threads, and under a low limit on open files."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr

import pipeline
from pipeline.errors import DamagedError, StoreError
from pipeline.store.backend import local
from pipeline.store.read.shards import ShardReader
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [50, 120, 200, 90, 256, 30]


@pytest.fixture
def root(tmp_path):
    make_store(tmp_path / "store", LENGTHS, features=noise)
    return tmp_path / "store"


def rewritten(root):
    """Rewrite the store as another tool might: compressed, so that no shard is flat."""
    frames = zarr.open_array(root / "features.zarr" / "frames", mode="r")
    values, shape, shards, chunks = frames[...], frames.shape, frames.shards, frames.chunks
    zarr.create_array(
        root / "features.zarr" / "frames",
        shape=shape,
        shards=shards,
        chunks=chunks,
        dtype="float16",
        fill_value=float("nan"),
        overwrite=True,
    )[...] = values


def sums(stores):
    return [float(tensor.double().sum()) for store in stores for tensor in store[:]]


def read_all(stores, results):
    """Put the sums of all features, or the error, into a queue."""
    try:
        results.put(sums(stores))
    except Exception as error:  # noqa: BLE001 - the parent compares it
        results.put(repr(error))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_read_after_the_parent_has_read(root, tmp_path, start):
    """Stores that were used before the fork read the same in the child.

    Through zarr-python too, whose event loop thread does not survive a fork.
    """
    make_store(tmp_path / "rewritten", LENGTHS, features=noise)
    rewritten(tmp_path / "rewritten")
    stores = [pipeline.open_store(path) for path in (root, tmp_path / "rewritten")]
    here = sums(stores)
    context = multiprocessing.get_context(start)
    results = context.Queue()
    children = [context.Process(target=read_all, args=(stores, results)) for _ in range(2)]
    for child in children:
        child.start()
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert found == [here] * 2
    assert sums(stores) == here


def test_a_zarr_handle_belongs_to_the_process_that_opened_it(root, monkeypatch):
    """Another process opens its own array, whatever zarr-python does about forks."""
    rewritten(root)
    store = pipeline.open_store(root)
    opened = []
    real = zarr.open_array
    monkeypatch.setattr(zarr, "open_array", lambda *a, **k: opened.append(1) or real(*a, **k))
    store.read(0)
    store.read(1)
    assert len(opened) == 1
    monkeypatch.setattr("pipeline.store.backend.zarr_arrays.os.getpid", lambda: -5)
    store.read(0)
    assert len(opened) == 2


def test_shards_that_are_not_flat_read_the_same(root):
    """Shards that another tool has compressed are read by zarr-python, in pieces and slices."""
    before = pipeline.open_store(root)
    wanted = before[:]
    rewritten(root)
    store = pipeline.open_store(root)
    assert all(torch.equal(a, b) for a, b in zip(store[:], wanted, strict=True))
    assert torch.equal(store.read(2, [3], 10, 20), wanted[2][2:, 10:20])


def test_other_zarr_readers_see_the_same_frames(root):
    """zarr-python and tensorstore read what the store reads."""
    store = pipeline.open_store(root)
    path = root / "features.zarr" / "frames"
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    arrays = [zarr.open_array(path, mode="r"), tensorstore.open(driver).result()]
    for name in store.ids:
        record = store.record(name)
        where = slice(record["frame_start"], record["frame_start"] + record["n_frames"])
        for array in arrays:
            assert np.array_equal(np.asarray(array[:, where]), store.read(name).numpy())


def test_threads_share_a_reader_that_closes_files(root, monkeypatch):
    """A file that is dropped from the cache stays open for a thread that is reading it."""
    monkeypatch.setattr("pipeline.store.backend.local.MAX_READERS", 1)
    store = pipeline.open_store(root)
    wanted = store[:]
    wrong = []

    def read_some(seed):
        random = np.random.default_rng(seed)
        chosen = random.integers(0, len(LENGTHS), 300).tolist()
        wrong.extend(i for i in chosen if not torch.equal(store.read(i), wanted[i]))

    threads = [threading.Thread(target=read_some, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def fill_up(others):
    """Open files until the system refuses one."""
    while True:
        try:
            others.append(open(os.devnull))  # noqa: PTH123, SIM115
        except OSError:
            return


def test_many_shards_fit_under_a_low_limit_on_open_files(tmp_path):
    """A store with more shards than the process may open files can be read.

    Even where other files take what the reader counts on: it closes its own and tries again.
    """
    make_store(tmp_path / "s", [200] * 40, layers=tuple(range(1, 5)), dim=2, features=noise)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    store = pipeline.open_store(tmp_path / "s")
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, hard))
    others = []
    try:
        for _ in range(2):
            assert all(t.shape == (4, 200, 2) for t in store.read_many(range(40)))
        fill_up(others)
        assert store.read(0).shape == (4, 200, 2)
        store._shards.reader.cache_clear()
        fill_up(others)
        with pytest.raises(StoreError, match="ulimit -n"):
            store.read(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in others:
            file.close()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "index", "after the check"])
def test_a_damaged_shard_is_an_error_that_names_it(root, damage):
    """DamagedError with the path, not fill values or a signal; also if cut after the check."""
    store = pipeline.open_store(root)
    shard = root / "features.zarr" / "frames" / "c" / "1" / "1" / "0"
    raw = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "cut":
        shard.write_bytes(raw[: len(raw) // 2])
    elif damage == "index":
        shard.write_bytes(raw[:-20] + b"x" * 20)
    else:
        store.read("utt-0002")
        with shard.open("r+b") as file:
            file.truncate(100)
    with pytest.raises(DamagedError, match=r"frames/c/1/1/0.*strata verify"):
        store.read("utt-0002")
    assert store.read("utt-0002", layers=[1]).shape == (1, 200, 8)


def test_an_unreadable_file_is_an_error_that_names_it(root):
    """Such as a folder in place of the file."""
    shard = root / "features.zarr" / "frames" / "c" / "0" / "0" / "0"
    shard.unlink()
    shard.mkdir()
    with pytest.raises(DamagedError, match="frames/c/0/0/0"):
        pipeline.open_store(root).read(0)


@pytest.mark.parametrize("damage", ["missing", "byte", "cut"])
def test_a_damaged_pooled_chunk_is_an_error_that_names_it(root, damage):
    """Pooled means are verified against their checksum."""
    chunk = root / "features.zarr" / "pooled" / "c" / "1" / "0" / "0" / "0"
    raw = chunk.read_bytes()
    chunk.unlink()
    if damage == "byte":
        chunk.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "cut":
        chunk.write_bytes(raw[:-9])
    with pytest.raises(DamagedError, match="pooled/c/1/0/0/0"):
        pipeline.open_store(root).pooled()


def test_a_short_read_is_completed(root, monkeypatch):
    """The system may return fewer bytes than requested; the rest is requested again."""
    store = pipeline.open_store(root)
    wanted = store.read_many([0, 1])
    real = local.os.preadv

    def stingy(descriptor, parts, offset, flags=0):
        return real(descriptor, [memoryview(parts[0]).cast("B")[:7]], offset)

    monkeypatch.setattr(local.os, "preadv", stingy)
    found = store.read_many([0, 1])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_shards_are_checked_once_and_kept_open(root):
    """A reader opens a shard once; a selection shares it."""
    store = pipeline.open_store(root)
    store[:]
    before = store._shards.reader.cache_info().misses
    store[:]
    store.select(digit=1)[:]
    assert store._shards.reader.cache_info().misses == before
    assert isinstance(store._shards, ShardReader)

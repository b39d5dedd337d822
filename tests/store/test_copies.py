"""Whole copies of shards in a folder: `open_store(uri, cache=…, cache_bytes=…)`."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.errors import ConfigError, DamagedError
from pipeline.objects.client import ObjectClient
from pipeline.store.backend.remote import cache_folder, cached_reader
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.cache_folder import CacheFolder
from pipeline.store.format.codecs import INT8
from pipeline.store.format.layout import FRAMES
from tests.helpers.backends import in_bucket
from tests.helpers.feature_stores import make_store, noise, rewrite
from tests.servers.proxy import Proxy

LENGTHS = [int(n) for n in np.random.default_rng(5).integers(20, 250, 40)]
MANY = 1 << 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three layers and many units."""
    path = tmp_path_factory.mktemp("copied") / "store"
    make_store(path, LENGTHS, features=noise, frames_per_unit=512)
    return path


@pytest.fixture
def bucket(root: Path, s3: str) -> RemoteBackend:
    """A copy of it in a bucket."""
    return in_bucket(root, s3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of copies, which is not there yet."""
    return tmp_path / "cache"


def check(store: pipeline.FeatureStore, rows: list[int], layers: list[int]) -> None:
    for row, found in zip(rows, store.read_many(rows, layers), strict=True):
        for axis, layer in enumerate(layers):
            assert np.array_equal(found[axis].numpy(), noise(row, layer, LENGTHS[row], 8))


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.copy"))


def used(folder: Path) -> int:
    """Bytes that a folder takes, copies that are being made included."""
    return sum(path.stat().st_size for path in folder.glob("*.[cp][oa]*"))


def shard_bytes(store: pipeline.FeatureStore) -> int:
    return store._layout.shard_bytes


def first_of(store: pipeline.FeatureStore, n: int) -> list[int]:
    """The first utterance of each of some slots."""
    return [int(np.flatnonzero(store.slots == slot)[0]) for slot in range(n)]


def test_a_shard_is_copied_once_and_then_read_from_the_disk(
    bucket: RemoteBackend, proxy: Proxy, folder: Path
) -> None:
    """By any number of stores. A new process asks only for the end of each shard, with its ETag."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    check(store, list(range(40)), [2])
    n_units = len(set(store.slots.tolist()))
    assert len(copies(folder)) == n_units
    proxy.requests.clear()
    check(store, list(range(40))[::-1], [2])
    check(store.select("n_frames > 30"), [0], [2])
    assert proxy.counts == {}
    again = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    proxy.requests.clear()
    check(again, list(range(40)), [2])
    assert proxy.counts == {"GET": n_units}
    assert all("range" in request.headers for request in proxy.requests)
    assert again.weighted_sum(3, [0.0, 1.0, 0.0]).shape == (LENGTHS[3], 8)
    assert len(copies(folder)) == n_units


def test_scales_are_copied_too(s3: str, tmp_path: Path, folder: Path) -> None:
    """Of int8; every read is that of the store in its folder."""
    make_store(tmp_path / "store", [60, 80, 200], features=noise, codec=INT8)
    expected = pipeline.open_store(tmp_path / "store")
    uri = in_bucket(tmp_path / "store", s3).uri
    store = pipeline.open_store(uri, cache=folder, cache_bytes=MANY)
    for _ in range(2):
        for found, wanted in zip(
            store.read_many([2, 0, 1]), expected.read_many([2, 0, 1]), strict=True
        ):
            assert np.array_equal(found.numpy(), wanted.numpy())
    assert len(copies(folder)) == 4 * len(set(store.slots.tolist()))


@pytest.mark.parametrize(
    ("cache", "n_bytes", "message"),
    [
        ("c", None, "expected both"),
        (None, 10, "expected both"),
        ("c", 0, "expected both"),
        ("c", True, "expected both"),
        ("c", "1 GB", "as a whole number such as"),
        ("s3://bucket/copies", 10, "expected both: a folder of this machine"),
        (7, 10, "expected both"),
        ("c", 10_000, r"too small: a shard of this store has [\d,]+ bytes"),
    ],
)
def test_a_bound_that_cannot_work_is_refused(
    bucket: RemoteBackend, cache: object, n_bytes: object, message: str
) -> None:
    """When the store is opened, with what would do."""
    with pytest.raises(ConfigError, match=message):
        pipeline.open_store(bucket.uri, cache=cache, cache_bytes=n_bytes)


def test_a_cache_that_cannot_be_written_is_refused(bucket: RemoteBackend, tmp_path: Path) -> None:
    """When the store is opened, by its name; it is no damage of the store."""
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="file is no folder; name a folder of this machine"):
            pipeline.open_store(bucket.uri, cache=cache, cache_bytes=MANY)
    pipeline.open_store(bucket.uri, cache=tmp_path / "copies" / "below", cache_bytes=MANY)


def test_a_store_in_a_folder_has_no_copies(root: Path, folder: Path) -> None:
    """It is there already."""
    with pytest.raises(ConfigError, match="is for stores in buckets"):
        pipeline.open_store(root, cache=folder, cache_bytes=MANY)


def test_the_bound_holds_while_more_is_read(
    bucket: RemoteBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six shards fit. In a full shuffle they stay; the others are read from the server."""
    monkeypatch.setattr(cached_reader, "_TOUCH_S", 0.0)
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    bound = 6 * shard_bytes(store) + 100
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=bound)
    some = random.Random(1)
    kept: set[Path] = set()
    for _ in range(6):
        rows = list(range(40))
        some.shuffle(rows)
        for row in rows:
            check(store, [row], [1])
            assert used(folder) <= bound
        kept = kept or set(copies(folder))
    assert len(copies(folder)) == 6
    assert len(kept & set(copies(folder))) >= 5


def test_a_window_that_moves_on_takes_the_place_of_the_last_one(
    bucket: RemoteBackend, folder: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not used for longest is removed, once enough of another shard was read."""
    monkeypatch.setattr(cached_reader, "_TOUCH_S", 0.0)
    probe = pipeline.open_store(bucket.uri)
    bound = 4 * shard_bytes(probe)
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=bound)
    for first in (0, 4, 8):
        rows = np.flatnonzero((store.slots >= first) & (store.slots < first + 4)).tolist()
        for _ in range(8):
            check(store, rows, [3])
            assert used(folder) <= bound
        proxy.requests.clear()
        check(store, rows, [3])
        assert sum(proxy.counts.values()) == 0
    assert len(copies(folder)) == 4


def test_a_copy_that_is_removed_while_it_is_read_costs_nothing_but_time(
    bucket: RemoteBackend, folder: Path
) -> None:
    """Its space is free at once, though it is open; the server is asked instead."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    check(store, list(range(40)), [1])
    for path in copies(folder):
        cache_folder._free(path)
    assert used(folder) == 0
    check(store, list(range(40)), [1])
    check(store, list(range(40)), [1])
    assert len(copies(folder)) == len(set(store.slots.tolist()))


def test_a_copy_is_compared_with_the_index_when_it_is_made(
    bucket: RemoteBackend, folder: Path
) -> None:
    """A value that has changed in the bucket, which a plain read does not notice."""
    store = pipeline.open_store(bucket.uri)
    [row] = first_of(store, 1)
    key = f"{FRAMES}/c/1/0/0"
    raw = bytearray(bucket.read(key))
    raw[3] ^= 1
    bucket.put(key, [raw])
    pipeline.open_store(bucket.uri).read(row, [2])
    cached = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    name = re.escape(store.ids[row])
    with pytest.raises(DamagedError, match=f"{key} has other features of '{name}'"):
        cached.read(row, [2])
    assert not list(folder.glob("*.[cp][oa]*"))
    check(cached, [row], [1])
    bucket.put(key, [bytes([raw[3] ^ 1]).join([raw[:3], raw[4:]])])
    check(pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY), [row], [2])


def test_a_replaced_shard_is_not_read_from_an_old_copy(
    bucket: RemoteBackend, folder: Path, root: Path
) -> None:
    """A store under the same URI with other content has other ETags."""
    check(pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY), [0, 20], [1, 2, 3])
    other = root.parent / "other"
    make_store(other, LENGTHS, features=lambda *a: -noise(*a), frames_per_unit=512)
    in_bucket(other, bucket.uri)
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    assert np.array_equal(store.read(0)[1].numpy(), -noise(0, 2, LENGTHS[0], 8))
    assert np.array_equal(store.read(20)[1].numpy(), -noise(20, 2, LENGTHS[20], 8))


def test_a_shard_of_another_tool_is_not_copied(s3: str, tmp_path: Path, folder: Path) -> None:
    """It is read as without a cache."""
    make_store(tmp_path / "store", LENGTHS[:8], features=noise, frames_per_unit=512)
    rewrite(tmp_path / "store")
    uri = in_bucket(tmp_path / "store", s3).uri
    store = pipeline.open_store(uri, cache=folder, cache_bytes=MANY)
    check(store, [7, 0, 3], [3, 1])
    assert not folder.exists() or not copies(folder)


def test_what_a_killed_process_left_is_removed(bucket: RemoteBackend, folder: Path) -> None:
    """Its unfinished copy counts until then; another process makes the copy."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    child = os.fork()
    if not child:
        fetch = ObjectClient.fetch

        def die(*arguments):
            if arguments[2] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return fetch(*arguments)

        ObjectClient.fetch = die
        check(store, first_of(store, 1), [1])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    [part] = folder.glob("*.part")
    assert part.stat().st_size == shard_bytes(store)
    check(store, first_of(store, 3), [1])
    assert not list(folder.glob("*.part"))
    assert len(copies(folder)) == 3


def test_copies_of_before_a_crash_are_checked_again(
    bucket: RemoteBackend, folder: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were not synced: one may be cut short, or have holes."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    check(store, first_of(store, 4), [1])
    lost, cut, *_ = copies(folder)
    lost.write_bytes(bytes(lost.stat().st_size))
    cut.write_bytes(cut.read_bytes()[:-100])
    monkeypatch.setattr(cache_folder, "_started_s", lambda: time.time() + 60)
    again = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    proxy.requests.clear()
    check(again, first_of(store, 4), [1])
    whole = [r for r in proxy.requests if r.headers.get("range", "").startswith("bytes=0-")]
    assert len(whole) == 2
    monkeypatch.undo()


def test_processes_share_copies(bucket: RemoteBackend, folder: Path, proxy: Proxy) -> None:
    """Each shard is fetched once, by whichever process comes first; the others wait for it."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    n_units, n_children = len(set(store.slots.tolist())), 3
    proxy.requests.clear()
    children = []
    for seed in range(n_children):
        child = os.fork()
        if not child:
            status = 1
            try:
                rows = list(range(40))
                random.Random(seed).shuffle(rows)
                check(store, rows, [1])
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * n_children
    whole = [r for r in proxy.requests if r.headers.get("range", "").startswith("bytes=0-")]
    assert len(whole) == n_units
    assert len(copies(folder)) == n_units


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_use_the_copies(bucket: RemoteBackend, folder: Path, method: str) -> None:
    """After their parent has read; forks also over two epochs. A spawned one imports torch."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    check(store, [0, 5], [2])
    loader = pipeline.make_loader(
        pipeline.FeatureDataset(store, [2]),
        max_frames_per_batch=700,
        num_workers=2 if method == "fork" else 1,
        multiprocessing_context=method,
    )
    for _ in range(2 if method == "fork" else 1):
        seen = 0
        for batch in loader:
            for i, name in enumerate(batch.ids):
                row, n = int(name.rpartition("-")[2]), int(batch.lengths[i])
                assert np.array_equal(batch.features[i, 0, :n], noise(row, 2, n, 8))
                seen += 1
        assert seen == len(LENGTHS)
    assert len(copies(folder)) == len(set(store.slots.tolist()))


def test_a_pickled_store_keeps_its_cache(bucket: RemoteBackend, folder: Path) -> None:
    """Its copies are checked there, too."""
    store = pipeline.open_store(bucket.uri, cache=folder, cache_bytes=MANY)
    check(pickle.loads(pickle.dumps(store)), [3, 1], [2])
    assert copies(folder)


def filled(folder: CacheFolder, name: str, size: int, since_s: float | None = None) -> bool:
    """Add a copy of some bytes."""
    path = folder.path(name, size, "etag")
    return folder.add(path, size, lambda file: os.pwrite(file, b"x" * size, 0), sound, since_s)


def sound(path: Path) -> bool:
    """Take any copy."""
    return path.exists()


def test_the_bound_of_a_folder_is_exact_with_many_writers(tmp_path: Path) -> None:
    """Space is reserved before a byte is written; what is there never exceeds it."""
    folder = CacheFolder(tmp_path / "cache", 10_000)
    stop, most = time.monotonic() + 1.5, 0

    def add(seed: int) -> int:
        some, n = random.Random(seed), 0
        while time.monotonic() < stop:
            n += filled(folder, f"{some.randrange(60)}", 1000, time.time())
        return n

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(add, seed) for seed in range(5)]
        while time.monotonic() < stop:
            for names in sizes_of(tmp_path / "cache"):
                most = max(most, names)
    assert sum(item.result() for item in running) > 50
    assert 5_000 <= most <= 10_000


def sizes_of(folder: Path) -> Iterator[int]:
    """Bytes in a folder, now, as far as one look can tell."""
    try:
        total = 0
        for entry in os.scandir(folder):
            total += entry.stat().st_size
        yield total
    except FileNotFoundError:
        return


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Its space is free again."""
    folder = CacheFolder(tmp_path / "cache", 3_000)

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "no")

    with pytest.raises(OSError, match="no"):
        folder.add(folder.path("a", 2_000, "e"), 2_000, fail, sound, None)
    assert filled(folder, "b", 3_000)
    assert not filled(folder, "c", 1_000)
    assert filled(folder, "c", 1_000, time.time())
    assert [path.stat().st_size for path in copies(tmp_path / "cache")] == [1_000]


def test_nobody_waits_for_a_process_that_has_come_to_a_halt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended while it makes a copy: the others do without one."""
    monkeypatch.setattr(cache_folder, "_HALTED_S", 0.2)
    folder = CacheFolder(tmp_path / "cache", 3_000)

    def halt(file: int) -> None:
        time.sleep(1.0)

    with ThreadPoolExecutor(1) as pool:
        halted = pool.submit(folder.add, folder.path("a", 100, "etag"), 100, halt, sound, None)
        while not list((tmp_path / "cache").glob("*.part")):
            time.sleep(0.01)
        assert not filled(folder, "a", 100)
        assert halted.result()
    assert filled(folder, "a", 100)

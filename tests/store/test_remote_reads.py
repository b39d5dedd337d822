"""Reads of stores in a bucket: requests, errors, processes.

That the values are right is tested with other stores: `test_features.py`, `test_utterances.py` and
`test_forms.py` read a bucket, too.
"""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import os
import pickle
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.errors import DamagedError
from pipeline.objects import ranges
from pipeline.objects import requests as requests_module
from pipeline.objects.client import ObjectClient
from pipeline.objects.library import generation
from pipeline.store.backend.ends import End, OtherEndError
from pipeline.store.backend.remote import fetching
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.reader import RemoteReader, SeenObject
from pipeline.store.format.codecs import INT8
from pipeline.store.format.layout import FRAMES, SCALE
from tests.helpers.backends import in_bucket
from tests.helpers.feature_stores import make_store, noise, rewrite
from tests.servers.localbucket import SECRET
from tests.servers.proxy import Fault, Proxy, Request

LENGTHS = [int(n) for n in np.random.default_rng(5).integers(20, 250, 40)]


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """What readers of other tests have fetched and not read does not count here."""
    monkeypatch.setattr(fetching, "_fetcher", functools.cache(lambda _: fetching._Fetcher()))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.02)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three layers and many units."""
    path = tmp_path_factory.mktemp("remote") / "store"
    make_store(path, LENGTHS, features=noise, frames_per_unit=512)
    return path


@pytest.fixture
def bucket(root: Path, s3: str) -> RemoteBackend:
    """A copy of it in a bucket."""
    return in_bucket(root, s3)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ranges without a gap are one request: the shards of these stores are small."""
    monkeypatch.setattr(fetching, "COALESCE_BYTES", 0)
    monkeypatch.setattr(fetching, "_LEAST_GAP_BYTES", 0)


def frames_asked_for(proxy: Proxy) -> Counter[str]:
    """How many requests there were for each object of frames and scales."""
    asked = (request for request in proxy.requests if request.kind == "GET")
    keys = (request.path.partition("features.zarr/")[2] for request in asked)
    return Counter(key for key in keys if key.startswith(("frames/c", "scale/c")))


def check(store: pipeline.FeatureStore, rows: list[int], layers: list[int]) -> None:
    for row, found in zip(rows, store.read_many(rows, layers), strict=True):
        for axis, layer in enumerate(layers):
            assert np.array_equal(found[axis].numpy(), noise(row, layer, LENGTHS[row], 8))


def announce(store: pipeline.FeatureStore, row: int) -> None:
    """Have all layers of an utterance fetched."""
    for slot, start, stop, _ in store._catalogue.spans(row, 0, LENGTHS[row]):
        for axis in (0, 1, 2):
            store.shards_of(slot).prefetch(axis, slot, start, stop)


def test_a_shard_is_opened_by_the_request_that_reads_it(
    bucket: RemoteBackend, proxy: Proxy, apart: None
) -> None:
    """One request more for the end of each shard, in the same moment, once; no HEAD at all."""
    store = pipeline.open_store(bucket.uri)
    proxy.requests.clear()
    check(store, [0], [1, 2, 3])
    assert frames_asked_for(proxy) == {f"frames/c/{axis}/0/0": 2 for axis in range(3)}
    assert proxy.counts["HEAD"] == 0
    proxy.requests.clear()
    check(store, [0], [2])
    assert frames_asked_for(proxy) == {"frames/c/1/0/0": 1}


def test_near_ranges_are_one_request(bucket: RemoteBackend, proxy: Proxy) -> None:
    """All utterances of a layer, in any order, are a request for each shard, with its end."""
    store = pipeline.open_store(bucket.uri)
    n_units = len(set(store.slots[:].tolist()))
    assert n_units > 10
    proxy.requests.clear()
    rows = list(range(len(LENGTHS)))
    random.Random(0).shuffle(rows)
    check(store, rows, [2])
    asked = frames_asked_for(proxy)
    assert set(asked.values()) == {1}
    assert len(asked) == n_units
    assert sum(proxy.counts.values()) == n_units


def test_a_batch_is_asked_for_before_it_is_waited_for(
    bucket: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of a batch wait for the server at the same time, not one after the other."""
    store = pipeline.open_store(bucket.uri)
    fetch, meeting = ObjectClient.fetch, threading.Barrier(8, timeout=10)

    def fetch_together(*arguments):
        meeting.wait()  # fails if fewer are under way
        return fetch(*arguments)

    monkeypatch.setattr(ObjectClient, "fetch", fetch_together)
    first = [int(np.flatnonzero(store.slots == slot)[0]) for slot in range(8)]
    check(store, first, [3])


def test_a_prefetched_range_is_read_in_parts(
    bucket: RemoteBackend, proxy: Proxy, apart: None
) -> None:
    """By one request. What was not prefetched is fetched, too."""
    key = f"{FRAMES}/c/1/0/0"
    reader = RemoteReader(ObjectClient(bucket.uri), key)
    content = bucket.read(key)
    proxy.requests.clear()
    reader.prefetch(100, 600)
    assert reader.read(300, 100) == content[300:400]
    assert reader.read(100, 200) == content[100:300]
    assert reader.read(400, 300) == content[400:700]
    assert proxy.counts == {"GET": 1}
    assert held() == 0
    reader.prefetch(100, 100)
    assert reader.read(50, 300) == content[50:350]
    assert held() == 0


def held() -> int:
    """Bytes that this process has fetched for reads that have not come."""
    return fetching._fetcher(generation()).n_held


def test_what_is_fetched_ahead_is_bounded(
    bucket: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announced reads that never come keep no more than the bound; other readers lose nothing."""
    monkeypatch.setattr(fetching, "MOST_AHEAD_BYTES", 3000)
    monkeypatch.setattr(fetching, "_WINDOW_BYTES", 1000)
    key = f"{FRAMES}/c/0/0/0"
    content = bucket.read(key)
    readers = [RemoteReader(bucket.client, key) for _ in range(30)]
    for reader in readers:
        reader.prefetch(0, 500)
        reader.prefetch(2000, 500)
        assert reader.read(100, 200) == content[100:300]
        assert held() <= 3000
    for reader in readers:
        assert reader.read(0, 4000) == content[:4000]
    del reader, readers
    gc.collect()
    other = RemoteReader(bucket.client, key)
    other.prefetch(0, 10)
    assert other.read(0, 10) == content[:10]
    assert held() == 0


def test_ranges_with_gaps_that_exceed_the_bound_are_fetched_once(
    bucket: RemoteBackend, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is closed of gaps counts, too: nothing that was announced is dropped before its read."""
    monkeypatch.setattr(fetching, "MOST_AHEAD_BYTES", 12_000)
    monkeypatch.setattr(fetching, "_WINDOW_BYTES", 2_000)
    client = ObjectClient(bucket.uri)
    keys = [f"{FRAMES}/c/{axis}/{slot}/0" for axis in range(3) for slot in range(4)]
    contents = [bucket.read(key) for key in keys]
    readers = [RemoteReader(client, key) for key in keys]
    proxy.requests.clear()
    for reader in readers:
        for start in (0, 2500, 5000):
            reader.prefetch(start, 100)
    for reader, content in zip(readers, contents, strict=True):
        for start in (0, 2500, 5000):
            assert reader.read(start, 100) == content[start : start + 100]
    assert proxy.counts == {"GET": len(keys)}
    assert held() == 0


def test_random_ranges_of_more_than_fits_are_requested_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of more objects than fit: no request takes the room of another one that is being made.

    A range that was dropped would be requested alone when it is read, one after the other.
    """
    monkeypatch.setattr(fetching, "MOST_AHEAD_BYTES", 100_000)
    monkeypatch.setattr(fetching, "_MOST_WAITING_BYTES", 5_000)
    for module in (fetching, ranges):
        monkeypatch.setattr(module, "LONGEST_BYTES", 8_000)
    content, sent = bytes(range(250)) * 160, list[tuple[int, int, int]]()

    def fetcher(number: int) -> fetching.Fetch:
        def fetch(start: int, length: int) -> memoryview:
            sent.append((number, start, length))
            return memoryview(content)[start : start + length]

        return fetch

    objects = [fetching.Segments(fetcher(number), "somewhere") for number in range(9)]
    random = np.random.default_rng(0)
    starts = {found: random.integers(len(content) - 100, size=60).tolist() for found in objects}
    for found in objects:
        for start in starts[found]:
            found.add(start, start + 100)
    for found in objects:
        for start in starts[found]:
            parts = found.take(start, start + 100)
            assert b"".join(parts) == content[start : start + 100]
    assert len(sent) <= 9 * 8  # for 60 ranges each
    bounds = sorted((number, start, start + length) for number, start, length in sent)
    for before, after in itertools.pairwise(bounds):
        assert before[0] < after[0] or before[2] <= after[1]
    assert held() == 0


@pytest.mark.parametrize(
    ("request_s", "n_requests"), [(0.0005, 3), (0.008, 2), (0.05, 1), (None, 1)]
)
def test_gaps_are_closed_that_take_less_time_than_a_request(
    bucket: RemoteBackend,
    request_s: float | None,
    n_requests: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gaps of 400 KB and 900 KB: of 256 KB at least, of 1 MB at most and before a time is known."""
    content = bytes(range(256)) * 8192
    bucket.put("large", [content])
    sent: list[tuple[int, int]] = []
    fetch = SeenObject.fetch

    def count(found: SeenObject, start: int, length: int) -> memoryview:
        sent.append((start, length))
        return fetch(found, start, length)

    monkeypatch.setattr(SeenObject, "fetch", count)
    reader = RemoteReader(bucket.client, "large")
    if request_s is not None:
        fetching._fetcher(generation()).note_time(bucket.uri, request_s)
    starts = 0, 400_000, 1_300_000
    for start in starts:
        reader.prefetch(start, 100)
    assert [reader.read(start, 100) for start in starts] == [content[s : s + 100] for s in starts]
    assert len(sent) == n_requests


def test_random_reads_and_announcements_of_several_threads(bucket: RemoteBackend) -> None:
    """Every read returns its own bytes, whatever else is fetched; nothing is kept at the end."""
    key = f"{FRAMES}/c/2/1/0"
    content = bucket.read(key)
    size = len(content)
    reader = RemoteReader(bucket.client, key, End(size, content[-20:]))

    def work(seed: int) -> None:
        some = random.Random(seed)
        for _ in range(60):
            start = some.randrange(size)
            stop = some.randrange(start, min(size, start + 900)) + 1
            if some.random() < 0.5:
                out = np.empty(stop - start, np.uint8)
                assert not reader.read_cached([out], start)
                reader.read_into([out], start)
                assert out.tobytes() == content[start:stop]
            else:
                assert reader.read(start, stop - start) == content[start:stop]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_shard_of_another_tool_is_read_by_its_index(root: Path, s3: str, tmp_path: Path) -> None:
    """Its end is not that of a flat shard, which is seen before any of its bytes is returned."""
    make_store(tmp_path / "store", LENGTHS[:8], features=noise, frames_per_unit=512)
    rewrite(tmp_path / "store")
    store = pipeline.open_store(in_bucket(tmp_path / "store", s3))
    check(store, [7, 0, 3], [3, 1])
    check(store, [7, 0, 3], [3, 1])


def test_an_object_of_another_size_is_seen_at_the_first_read(bucket: RemoteBackend) -> None:
    """Also where no bytes at its end are expected, and where it ends before the read."""
    bucket.put("x", [bytes(1000)])
    for end in (End(999), End(1001), End(5000, b"abc"), End(1000, b"abc")):
        reader = RemoteReader(bucket.client, "x", end)
        assert reader.has_end(end) is None
        for _ in range(2):
            with pytest.raises(OtherEndError):
                reader.read(10, 20)
        assert reader.size == 1000
    reader = RemoteReader(bucket.client, "x", End(1000, bytes(5)))
    with pytest.raises(EOFError):
        reader.read(990, 20)
    assert reader.read(0, 1000) == bytes(1000)
    with pytest.raises(OSError, match="no range"):
        reader.read(-1, 2)
    assert reader.read(3, 0) == b""


def test_damaged_shards_are_named(bucket: RemoteBackend) -> None:
    """Missing, cut short, empty, and replaced while the store is open."""
    keys = [f"{FRAMES}/c/0/{slot}/0" for slot in range(4)]
    opened = pipeline.open_store(bucket.uri)
    first = [int(np.flatnonzero(opened.slots == slot)[0]) for slot in range(4)]
    check(opened, [first[3]], [1])
    bucket.delete(keys[0])
    bucket.put(keys[1], [bucket.read(keys[1])[:-30]])
    bucket.put(keys[2], [b""])
    bucket.put(keys[3], [bytes(len(bucket.read(keys[3])))])
    for slot, reason in enumerate(("is missing", "is damaged", "no.*content", "has changed")):
        with pytest.raises(DamagedError, match=f"{FRAMES}/c/0/{slot}/0.*{reason}"):
            opened.read(first[slot], [1])
    check(opened, first, [2])


def test_a_replaced_object_is_never_mixed_with_the_old_one(bucket: RemoteBackend) -> None:
    """Every answer has the ETag of the first one, also of those that were under way."""
    bucket.put("x", [b"a" * 4000])
    reader = RemoteReader(bucket.client, "x", End(4000))
    assert reader.read(0, 10) == b"a" * 10
    bucket.put("x", [b"b" * 4000])
    with pytest.raises(OSError, match="changed") as raised:
        reader.read(0, 10)
    assert raised.value.errno == errno.ESTALE
    reader.prefetch(100, 50)
    with pytest.raises(OSError, match="changed"):
        reader.read(100, 50)


def test_answers_that_are_cut_short_are_asked_for_again(
    bucket: RemoteBackend, proxy: Proxy
) -> None:
    """As are those that do not come; what is returned is right."""
    store = pipeline.open_store(bucket.uri)
    some = random.Random(1)

    def choose(request: Request) -> Fault | None:
        faults = (Fault.SHORT, Fault.DROP, Fault.BUSY, Fault.LOST, Fault.SLOW_DOWN)
        return some.choice(faults) if some.random() < 0.3 and "/c/" in request.path else None

    proxy.choose = choose
    check(store, list(range(len(LENGTHS))), [1, 3])
    assert sum(proxy.injected.values()) > 5


def test_scales_are_fetched_with_their_frames(
    s3: str, tmp_path: Path, proxy: Proxy, apart: None
) -> None:
    """Of int8: two objects, no request for their sizes, one round for all layers."""
    make_store(tmp_path / "store", [60, 80], features=noise, codec=INT8)
    store = pipeline.open_store(in_bucket(tmp_path / "store", s3))
    expected = pipeline.open_store(tmp_path / "store").read_many([0, 1])
    proxy.requests.clear()
    for found, wanted in zip(store.read_many([1, 0]), expected[::-1], strict=True):
        assert np.array_equal(found.numpy(), wanted.numpy())
    asked = frames_asked_for(proxy)
    assert proxy.counts.keys() == {"GET"}
    assert {key for key in asked if key.startswith("scale/")} == {f"{SCALE[14:]}/c/0/0/0/0/0"}
    assert sum(asked.values()) <= 3 * (2 + 1) + 6


def features_of(loader: pipeline.feed.loader.FeatureLoader) -> Iterator[tuple[str, np.ndarray]]:
    for batch in loader:
        for i, name in enumerate(batch.ids):
            yield name, batch.features[i, :, : int(batch.lengths[i])].numpy().copy()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.slow
def test_workers_read_after_their_parent_has(bucket: RemoteBackend, method: str) -> None:
    """The parent has requests under way, and threads, which a fork does not have."""
    store = pipeline.open_store(bucket.uri)
    check(store, [0, 5], [2])
    announce(store, 9)
    loader = pipeline.make_loader(
        pipeline.FeatureDataset(store, [2]),
        max_frames_per_batch=700,
        num_workers=2,
        multiprocessing_context=method,
    )
    found = dict(features_of(loader))
    assert len(found) == len(LENGTHS)
    for name, values in found.items():
        row = int(name.rpartition("-")[2])
        assert np.array_equal(values[0], noise(row, 2, LENGTHS[row], 8))
    check(store, [3, 9], [1])


def test_a_fork_reads_what_its_parent_was_fetching(bucket: RemoteBackend) -> None:
    """It fetches that itself. The parent goes on, too."""
    store = pipeline.open_store(bucket.uri)
    check(store, [0], [1])
    announce(store, 1)
    child = os.fork()
    if not child:
        status = 1
        try:
            check(store, [1, 0, 7], [1, 2, 3])
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    check(store, [1, 2], [1, 2, 3])


def test_a_pickled_store_has_no_secret(bucket: RemoteBackend) -> None:
    """Nor what was fetched. It opens in another place with the environment there."""
    store = pipeline.open_store(bucket.uri)
    check(store, [0], [1])
    announce(store, 1)
    raw = pickle.dumps(store)
    assert SECRET.encode() not in raw
    assert b"an-access-key" not in raw
    check(pickle.loads(raw), [1, 0], [2])

"""Epochs over a bucket: what is fetched ahead, by which requests, in how much memory."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.errors import ConfigError, DamagedError
from pipeline.feed.ahead.fetching import ReadAhead
from pipeline.feed.ahead.memory import N_HALVES, NOTED_BYTES, AheadMemory
from pipeline.feed.ahead.planning import Form, Portion, portions
from pipeline.feed.batching import BatchSpec
from pipeline.feed.frames import windows
from pipeline.feed.frames.axis import FrameAxis
from pipeline.feed.loader import FeatureLoader
from pipeline.feed.mixture import mix
from pipeline.store.format.codecs import INT8
from pipeline.store.format.layout import FRAMES
from tests.helpers.backends import in_bucket
from tests.helpers.feature_stores import make_store, noise, rewrite
from tests.servers.proxy import Fault, Proxy, Request
from tests.servers.web import serve_folder

LENGTHS = [int(n) for n in np.random.default_rng(3).integers(1, 90, 120)]
SMALL = NOTED_BYTES + 3 * (64 << 10)
"""Memory that holds less than a window of these stores."""
WORKERS = ("num_workers", "multiprocessing_context")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many units."""
    path = tmp_path_factory.mktemp("ahead") / "store"
    make_store(path, LENGTHS, features=noise, pieces={7: 2, 40: 3})
    return path


@pytest.fixture(scope="module")
def uri(root: Path, s3_of_module: str) -> str:
    """The store in a bucket, which no test changes."""
    return in_bucket(root, s3_of_module)


@pytest.fixture
def remote(uri: str) -> pipeline.FeatureStore:
    """The store in the bucket."""
    return pipeline.open_store(uri)


def loaders(
    local: pipeline.FeatureStore, remote: pipeline.FeatureStore, **given: object
) -> tuple[FeatureLoader, FeatureLoader]:
    """Return loaders of the same batches of a folder and a bucket."""
    max_frames, memory = given.pop("max_frames", None), given.pop("read_ahead", "64MB")
    given = {"max_frames_per_batch": 400, "window_units": 3} | given
    of_folder, of_bucket = (
        pipeline.FeatureDataset(store, [2, 1], max_frames=max_frames) for store in (local, remote)
    )
    of_caller = {name: value for name, value in given.items() if name not in WORKERS}
    return (
        pipeline.make_loader(of_folder, **of_caller),
        pipeline.make_loader(of_bucket, read_ahead=memory, **given),
    )


def check_equal(expected: FeatureLoader, found: FeatureLoader) -> int:
    """Compare an epoch; return the number of batches."""
    n_batches = 0
    for one, other in zip(expected, found, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.features, other.features)
        n_batches += 1
    return n_batches


def shard_ranges(proxy: Proxy) -> dict[str, list[tuple[int, int]]]:
    """Return the ranges of frames that were asked for, by shard; not those of their ends."""
    found = defaultdict(list)
    for request in proxy.requests:
        if request.kind == "GET" and f"{FRAMES}/c/" in request.path:
            low, high = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"]).groups()
            if int(low) < 256 * 16:  # before the index
                found[request.path].append((int(low), int(high) + 1))
    return found


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"window_units": None},
        {"shuffle": False, "window_units": None},
        {"max_frames": 20},
        {"world_size": 3, "rank": 1},
        {"read_ahead": SMALL},
        {"read_ahead": 1},
        {"read_ahead": 0},
        {"num_workers": 2},
        {"num_workers": 2, "read_ahead": SMALL, "world_size": 2, "rank": 1},
    ],
    ids=str,
)
def test_batches_are_those_of_a_folder(
    root: Path, remote: pipeline.FeatureStore, given: dict[str, object]
) -> None:
    """Whatever is fetched ahead, in two epochs."""
    pair = loaders(pipeline.open_store(root), remote, **given)
    for _ in range(2):
        assert check_equal(*pair) > 3


@pytest.mark.slow
def test_workers_share_the_memory(root: Path, remote: pipeline.FeatureStore) -> None:
    """They inherit nothing: it is passed to them, and what is written later is seen."""
    given = {"num_workers": 2, "multiprocessing_context": "forkserver"}
    assert check_equal(*loaders(pipeline.open_store(root), remote, **given)) > 3


def test_int8_and_several_stores(root: Path, tmp_path: Path, s3: str) -> None:
    """Scales are fetched with their frames; a store in a folder beside one in a bucket is read."""
    make_store(tmp_path / "coded", LENGTHS[:60], features=noise, codec=INT8)
    pairs = [
        (tmp_path / "coded", in_bucket(tmp_path / "coded", s3)),
        ([root, tmp_path / "other"], [in_bucket(root, f"{s3}-2"), tmp_path / "other"]),
    ]
    make_store(tmp_path / "other", LENGTHS[:50], features=noise, ids=[f"x{i}" for i in range(50)])
    for local, remote in pairs:
        assert check_equal(*loaders(pipeline.open_store(local), pipeline.open_store(remote))) > 3


@pytest.mark.parametrize("max_frames", [None, 20])
def test_verified_batches_are_those_of_a_folder(
    root: Path, s3: str, max_frames: int | None
) -> None:
    """What a checksum needs and a crop has not is read besides."""
    stores = [pipeline.open_store(at, verify=True) for at in (root, in_bucket(root, s3))]
    assert check_equal(*loaders(*stores, max_frames=max_frames)) > 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_byte_is_requested_once(root: Path, s3: str, proxy: Proxy, num_workers: int) -> None:
    """One request reads the frames of a shard of this size, and one its end, by all workers."""
    store = pipeline.open_store(in_bucket(root, s3))
    pair = loaders(pipeline.open_store(root), store, num_workers=num_workers)
    proxy.requests.clear()
    check_equal(*pair)
    found = shard_ranges(proxy)
    assert len(found) == 2 * len(np.unique(store.slots))
    assert all(len(ranges) == 1 for ranges in found.values())
    assert proxy.counts == {"GET": 2 * len(found)}


def test_a_dataset_that_fits_is_fetched_once(root: Path, s3: str, proxy: Proxy) -> None:
    """Later epochs, and the rest of one that was left, make no requests."""
    store = pipeline.open_store(in_bucket(root, s3))
    pair = loaders(pipeline.open_store(root), store, window_units=None)
    next(iter(pair[1]))
    pair[1].set_epoch(0)
    check_equal(*pair)
    n_requests = len(proxy.requests)
    assert sum(map(len, shard_ranges(proxy).values())) == 2 * len(np.unique(store.slots))
    check_equal(*pair)
    assert len(proxy.requests) == n_requests


def test_crops_and_shares_are_requested_without_wide_gaps(tmp_path: Path, s3: str) -> None:
    """What is fetched is decided by bytes: gaps that would be most of them are left out."""
    lengths = [4000] * 12
    make_store(tmp_path / "store", lengths, dim=256, frames_per_unit=24_064, layers=(1,))
    store = pipeline.open_store(tmp_path / "store")
    axis = FrameAxis.of(store.piece_places(), by_disk=False)
    form = Form((0,), 512, 0, -1, lambda slot: True)
    whole = BatchSpec(np.arange(12), np.zeros(12, np.int64), np.full(12, 4000))
    crops = BatchSpec(np.arange(12), np.full(12, 9), np.full(12, 300))
    assert Portion(axis, form, [whole], 4 << 20).n_bytes == 12 * 4000 * 512
    assert Portion(axis, form, [crops], 4 << 20).n_bytes == 12 * 300 * 512
    most = BatchSpec(np.arange(12), np.full(12, 9), np.full(12, 3800))
    assert Portion(axis, form, [most], 4 << 20).n_bytes > 11 * 4000 * 512


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    most_bytes=st.integers(1, 20_000),
    chunk_bytes=st.integers(1, 600),
)
@settings(max_examples=60, deadline=None)
def test_portions_have_all_that_batches_need(
    lengths: list[int], seed: int, most_bytes: int, chunk_bytes: int
) -> None:
    """Each batch finds its frames in chunks that are at the places it is told, within the bound."""
    random = np.random.default_rng(seed)
    frame_bytes, axes = 4, (0, 2)
    slot = np.cumsum(random.integers(0, 2, len(lengths)))
    starts = [sum(lengths[j] for j in range(i) if slot[j] == slot[i]) for i in range(len(lengths))]
    places = np.arange(len(lengths)), slot, np.array(starts), np.array(lengths)
    axis = FrameAxis.of(places, by_disk=False)
    scale_bytes = int(random.integers(0, 30))
    form = Form(axes, frame_bytes, scale_bytes, -1, lambda slot: slot != 1)
    order = random.permutation(len(lengths))
    specs = []
    for positions in np.array_split(order, 4):
        first = np.array([random.integers(0, lengths[i]) for i in positions], np.int64)
        size = np.array(
            [
                random.integers(1, lengths[i] - at + 1)
                for i, at in zip(positions, first, strict=True)
            ],
            np.int64,
        )
        specs.append(BatchSpec(positions, first, size))
    given = list(specs)
    windows = [specs[:2], specs[2:]]
    for found in portions(axis, form, windows, most_bytes, most_bytes, chunk_bytes):
        if isinstance(found, int):
            given.pop(0)
            continue
        chunks = dict(found.chunks())
        assert sorted(chunks) == list(range(found.n_chunks))
        taken = np.zeros(found.n_bytes, int)
        for chunk in chunks.values():
            taken[chunk.place : chunk.place + chunk.stop - chunk.start] += 1
            is_small = chunk.stop - chunk.start <= max(chunk_bytes, frame_bytes)
            assert is_small
        assert (taken == 1).all()
        assert found.n_bytes <= most_bytes
        for number in range(found.n_batches):
            needed = found.needed(number)
            held = set()
            for (at, slot_, start, stop, place), (low, high) in zip(
                needed.ranges.tolist(), needed.chunks.tolist(), strict=True
            ):
                parts = [chunks[i] for i in range(low, high)]
                assert (parts[0].start, parts[-1].stop) == (start, stop)
                assert all((p.axis, p.slot) == (at, slot_) for p in parts)
                assert all(p.place - place == p.start - start for p in parts)
                held |= {(at, slot_, byte) for byte in range(start, stop)}
            spec = given.pop(0)
            for position, first, size in zip(
                spec.positions, spec.starts, spec.lengths, strict=True
            ):
                if slot[position] != 1:
                    low = (starts[position] + first) * frame_bytes
                    wanted = range(low, low + size * frame_bytes)
                    assert {(a, slot[position], b) for a in axes for b in wanted} <= held
    assert not given


@pytest.mark.parametrize("n_bytes", [SMALL, 5_000_000, 2 * 10**9])
def test_the_memory_is_bounded(remote: pipeline.FeatureStore, n_bytes: int) -> None:
    """Portions, notes and the answers under way take no more than was given, and most of that."""
    ahead = ReadAhead(pipeline.FeatureDataset(remote), n_bytes)
    in_flight = ahead._n_threads * ahead._chunk_bytes
    size = os.fstat(ahead.memory._descriptor).st_size
    assert size + in_flight <= n_bytes
    assert N_HALVES * ahead.memory.half_bytes >= 0.85 * (n_bytes - NOTED_BYTES) - (128 << 10)


def test_requests_under_way_are_bounded(
    root: Path, remote: pipeline.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than two portions of a window are fetched before one is read."""
    begun: list[int] = []
    original = ReadAhead._begin_portion

    def begin(self: ReadAhead, number: int, portion: Portion) -> None:
        begun.append(number)
        original(self, number, portion)

    monkeypatch.setattr(ReadAhead, "_begin_portion", begin)
    _, loader = loaders(pipeline.open_store(root), remote, window_units=2)
    batches = iter(loader)
    next(batches)
    assert begun == [1, 2]
    n_windows = -(-len(np.unique(remote.slots)) // 2)
    for _ in batches:
        assert len(begun) <= n_windows
    assert begun == list(range(1, n_windows + 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_that_are_left_do_not_spoil_others(
    root: Path, remote: pipeline.FeatureStore, num_workers: int
) -> None:
    """Memory is filled again only when nobody reads it; what is half there is not taken for whole.

    Of two windows, which are in memory, the next epoch has others or the same.
    """
    pair = loaders(pipeline.open_store(root), remote, num_workers=num_workers, window_units=2)
    for epoch, n_batches in enumerate([1, 3, 0, 9, 2, 1]):
        batches = iter(pair[1])
        for _ in range(n_batches):
            next(batches)
        del batches
        pair[0].set_epoch(epoch + 1)
    pair[1].set_epoch(6)
    check_equal(*pair)


def test_an_iteration_that_is_dropped_does_not_stop_the_next_one(
    root: Path, remote: pipeline.FeatureStore
) -> None:
    """Both belong to one loader, which fetches ahead for the second one."""
    expected, loader = loaders(pipeline.open_store(root), remote)
    expected.set_epoch(1)
    first = iter(loader)
    next(first)
    second = iter(loader)
    ids = [next(second).ids]
    del first
    assert ids + [batch.ids for batch in second] == [batch.ids for batch in expected]


def test_what_was_overwritten_is_not_taken_for_what_is_there(
    root: Path, remote: pipeline.FeatureStore
) -> None:
    """Notes of an older portion with more chunks are not those of a later one that was left."""
    ahead = ReadAhead(pipeline.FeatureDataset(remote), 8_000_000)
    ahead.memory.note(1, 5, True)
    ahead.memory.note(3, 0, True)
    ahead.memory.renumber(3, 5)
    assert ahead.memory.is_filled(5, 0, 1) is True
    assert ahead.memory.is_filled(5, 5, 6) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_is_resumed(root: Path, remote: pipeline.FeatureStore, num_workers: int) -> None:
    """A loader with the state of another one returns the remaining batches."""
    local, first = loaders(pipeline.open_store(root), remote, num_workers=num_workers)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    state = first.state_dict()
    del batches
    _, second = loaders(pipeline.open_store(root), remote, num_workers=num_workers)
    local.load_state_dict(state)
    second.load_state_dict(state)
    assert check_equal(local, second) == len(local) - 5


def test_failures_that_pass_are_repeated(root: Path, s3: str, proxy: Proxy) -> None:
    """Each answer is whole, or asked for again."""
    store = pipeline.open_store(in_bucket(root, s3))
    some = np.random.default_rng(1)

    def choose(request: Request) -> Fault | None:
        faults = (Fault.SHORT, Fault.DROP, Fault.BUSY)
        return faults[some.integers(3)] if some.random() < 0.2 and "/c/" in request.path else None

    proxy.choose = choose
    check_equal(*loaders(pipeline.open_store(root), store))
    assert sum(proxy.injected.values()) > 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_missing_shard_is_an_error(root: Path, s3: str, num_workers: int) -> None:
    """The batch that needs it raises it, with its name; batches before it were returned."""
    uri = in_bucket(root, s3)
    store = pipeline.open_store(uri)
    shard = f"{FRAMES}/c/1/{int(store.slots[-1])}/0"
    store.backend.delete(shard)
    given = {"num_workers": num_workers, "shuffle": False, "window_units": None}
    pair = loaders(pipeline.open_store(root), store, **given)
    found = []
    with pytest.raises((DamagedError, RuntimeError), match=re.escape(shard)):
        found.extend(batch.ids for batch in pair[1])
    assert len(found) > 3
    assert found == [batch.ids for batch in pair[0]][: len(found)]


def test_a_store_that_is_not_flat_is_read(root: Path, tmp_path: Path, s3: str) -> None:
    """zarr-python reads what another tool has rewritten."""
    make_store(tmp_path / "store", LENGTHS[:30], features=noise)
    rewrite(tmp_path / "store")
    stores = [
        pipeline.open_store(at) for at in (tmp_path / "store", in_bucket(tmp_path / "store", s3))
    ]
    assert check_equal(*loaders(*stores)) > 3


def test_folders_and_copies_are_not_fetched_ahead(root: Path, s3: str, tmp_path: Path) -> None:
    """There is nothing to wait for; a copy on this machine is made by its own requests, once."""
    copied = pipeline.open_store(in_bucket(root, s3), cache=tmp_path / "copies", cache_bytes=10**9)
    local = pipeline.open_store(root)
    for pair in (loaders(local, copied), loaders(local, local)):
        check_equal(*pair)
        assert pair[1]._ahead is None


def test_a_store_on_a_web_server_is_fetched_ahead(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ranges, through another client than that of buckets: nothing is left to the readers."""
    noted: list[bool] = []
    note = AheadMemory.note

    def watch(memory: AheadMemory, portion: int, chunk: int, is_filled: bool) -> None:
        noted.append(is_filled)
        note(memory, portion, chunk, is_filled)

    monkeypatch.setattr(AheadMemory, "note", watch)
    with serve_folder(Path("/")) as address:
        pair = loaders(pipeline.open_store(root), pipeline.open_store(f"{address}{root}"))
        assert check_equal(*pair) > 3
    assert len(noted) > 10
    assert all(noted)


def test_the_memory_of_a_mixture_is_divided(
    remote: pipeline.FeatureStore,
) -> None:
    """Each dataset has its share."""
    data = [pipeline.FeatureDataset(remote, [1]) for _ in range(3)]
    mixture = mix(data, max_frames_per_batch=400, read_ahead="30MB")
    assert [item._workers.read_ahead_bytes for item in mixture._loaders] == [10**7] * 3
    assert len([batch.ids for batch in mixture]) == len(mixture)


@pytest.mark.parametrize("value", ["many", -1, 1.5, True, None])
def test_a_size_that_is_none_is_refused(root: Path, value: object) -> None:
    """The message names the setting and the value."""
    dataset = pipeline.FeatureDataset(pipeline.open_store(root))
    with pytest.raises(ConfigError, match=rf"read_ahead is {value!r}.*0 for none"):
        pipeline.make_loader(dataset, max_frames_per_batch=400, read_ahead=value)


@pytest.mark.parametrize("shuffle", ["units", "reservoir", False])
def test_frames_of_a_bucket_are_those_of_a_folder(
    root: Path, remote: pipeline.FeatureStore, shuffle: str | bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by many small blocks, each announced while the one before it is read."""
    monkeypatch.setattr(windows, "READ_BYTES", 400)
    monkeypatch.setattr(windows, "REMOTE_READS", 2)
    announced: list[tuple[int, int]] = []
    announce = windows._Part._announce

    def note(part: windows._Part, start: int, stop: int) -> None:
        announced.append((start, stop))
        announce(part, start, stop)

    monkeypatch.setattr(windows._Part, "_announce", note)
    given = {"frames_per_batch": 300, "shuffle": shuffle, "memory": 200_000, "num_workers": 2}
    pair = [
        pipeline.make_frame_loader(pipeline.FeatureDataset(store, [2, 1]), **given)
        for store in (pipeline.open_store(root), remote)
    ]
    for one, other in zip(*pair, strict=True):
        assert torch.equal(one.utterances, other.utterances)
        assert torch.equal(one.features, other.features)
    assert len(announced) > 20

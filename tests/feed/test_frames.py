"""Loaders of frames: exact cover, order, resume, memory, normalisation, errors."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.config.sizes import parse_bytes
from pipeline.errors import ConfigError, DamagedError, StoreError
from pipeline.feed.frames.axis import FrameAxis
from pipeline.feed.frames.order import BlockOrder, FramePolicy, RankBatches, RankOrder
from pipeline.store.backend.memory import MemoryBackend
from pipeline.store.format.codecs import FLOAT32, INT8
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [int(n) for n in np.random.default_rng(3).integers(1, 90, 40)]
SHUFFLES = ("reservoir", "units", False)
FRAME_BYTES = 3 * 8 * 2 + 56
"""What a frame of the stores here takes in memory, with its labels and its order."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store with a recording in two pieces, a lost utterance, and several units."""
    path = tmp_path_factory.mktemp("frames") / "store"
    make_store(path, LENGTHS, features=noise, frames_per_unit=512, pieces={3: 2}, lost=(4,))
    return path


@pytest.fixture(scope="module")
def opened(root):
    return pipeline.open_store(root)


def memory_for(n_frames, shuffle):
    """Return the bytes that windows of `n_frames` frames need."""
    return (5 if shuffle == "reservoir" else 2) * n_frames * FRAME_BYTES


def loader_of(store, window=64, shuffle="reservoir", **options):
    dataset = store
    if isinstance(store, pipeline.FeatureStore):
        dataset = pipeline.FeatureDataset(store)
    options = {"frames_per_batch": 16, "memory": memory_for(window, shuffle)} | options
    return pipeline.make_frame_loader(dataset, shuffle=shuffle, **options)


def frames_of(batches):
    """Return (utterance, frame) of all frames, in order."""
    return [
        pair
        for batch in batches
        for pair in zip(batch.utterances.tolist(), batch.frames.tolist(), strict=True)
    ]


def all_frames(store):
    return [(i, frame) for i, n in enumerate(store.frame_counts) for frame in range(n)]


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize(("n_ranks", "n_threads"), [(1, 0), (1, 1), (3, 2)])
@pytest.mark.parametrize("window", [64, 10_000])
def test_every_frame_is_in_one_batch(opened, shuffle, n_ranks, n_threads, window):
    """Of one rank, as the store's `read` returns it, with the id of its utterance."""
    seen = []
    for rank in range(n_ranks):
        loader = loader_of(
            opened, window, shuffle, rank=rank, world_size=n_ranks, num_workers=n_threads
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        assert {len(batch) for batch in batches[:-2]} <= {16}
        for batch in batches:
            assert batch.ids == [opened.ids[i] for i in batch.utterances.tolist()]
            expected = [opened.read(i)[:, k] for i, k in frames_of([batch])]
            assert torch.equal(batch.features, torch.stack(expected))
        seen += frames_of(batches)
    assert sorted(seen) == all_frames(opened)
    assert (seen == all_frames(opened)) == (shuffle is False)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_order_depends_on_seed_and_epoch_only(opened, shuffle):
    """Not on threads; each epoch has another order unless there is none."""
    first, again = loader_of(opened, 64, shuffle), loader_of(opened, 64, shuffle, num_workers=2)
    orders = [frames_of(loader) for loader in (first, again, first)]
    other = frames_of(loader_of(opened, 64, shuffle, seed=1, num_workers=0))
    assert orders[0] == orders[1]
    assert (orders[0] != orders[2]) == (orders[0] != other) == bool(shuffle)
    again.set_epoch(0)
    assert frames_of(again) == orders[0]


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("n_threads", [0, 1, 2])
@pytest.mark.parametrize("n_done", [1, 9, 60])
def test_a_state_resumes_with_the_remaining_batches(root, shuffle, n_threads, n_done):
    """In a new loader of a newly opened store, in any epoch, with any number of threads."""
    loader = loader_of(pipeline.open_store(root), 64, shuffle, num_workers=n_threads)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(n_done):
        next(batches)
    state = loader.state_dict()
    expected = [(b.features.clone(), b.utterances, b.frames) for b in batches]
    resumed = loader_of(pipeline.open_store(root), 64, shuffle, num_workers=(n_threads + 1) % 3)
    resumed.load_state_dict(state)
    found = [(b.features.clone(), b.utterances, b.frames) for b in resumed]
    assert len(found) == len(expected) == len(loader) - n_done
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))
    assert resumed.epoch == 3


def test_a_state_of_other_batches_is_refused(opened):
    """The message says what differs; at the start of an epoch nothing is lost."""
    loader = loader_of(opened)
    next(iter(loader))
    state = loader.state_dict()
    other = loader_of(opened, 128, layers=[2])
    with pytest.raises(ConfigError, match=r"window_frames was 64, is \d+.*layers was \[1, 2, 3\]"):
        other.load_state_dict(state)
    with pytest.raises(ConfigError, match="data was"):
        loader_of(opened.select("n_frames > 30")).load_state_dict(state)
    other.load_state_dict(state | {"batches_done": 0})


def test_an_epoch_that_is_left_early_is_followed_by_the_next(opened):
    """And its threads stop."""
    loader = loader_of(opened, num_workers=2)
    for _batch in loader:
        break
    assert loader.state_dict()["batches_done"] == 1
    assert sorted(frames_of(loader)) == all_frames(opened)
    assert loader.epoch == 2


def test_batches_that_are_kept_do_not_change(opened):
    """The memory of a window is reused when no batch of it is left."""
    loader = loader_of(opened)
    kept = [batch for _ in range(3) for batch in loader]
    for batch in kept[::7]:
        expected = [opened.read(i)[:, k] for i, k in frames_of([batch])]
        assert torch.equal(batch.features, torch.stack(expected))


def test_drop_last_leaves_full_batches(opened):
    """On every rank, without repeating a frame."""
    loaders = [loader_of(opened, rank=r, world_size=3, drop_last=True) for r in range(3)]
    batches = [list(loader) for loader in loaders]
    assert len({len(found) for found in batches}) == 1
    assert {len(batch) for found in batches for batch in found} == {16}
    seen = frames_of(batch for found in batches for batch in found)
    assert len(set(seen)) == len(seen) > len(all_frames(opened)) - 3 * 16


def test_selections_subsets_and_repeated_utterances(opened):
    """Only the frames of the dataset's utterances are read, each as often as it is there."""
    chosen = opened.select("n_frames > 30")
    assert sorted(frames_of(loader_of(chosen))) == all_frames(chosen)
    dataset = pipeline.FeatureDataset(opened, columns=["speaker"], classes=["digit"])
    subset = torch.utils.data.Subset(dataset, [7, 2, 7])
    counts = opened.frame_counts[[7, 2, 7]].tolist()
    (batch,) = loader_of(subset, frames_per_batch=sum(counts), window=10_000)
    assert sorted(frames_of([batch])) == [(i, k) for i, n in enumerate(counts) for k in range(n)]
    assert set(batch.ids) == {opened.ids[7], opened.ids[2]}
    positions = np.array([7, 2, 7])[batch.utterances]
    assert batch.column("digit").tolist() == dataset.column("digit")[positions].tolist()
    assert batch.column("speaker") == [dataset.column("speaker")[i] for i in positions]


def test_several_stores_of_different_dtypes(tmp_path):
    """Frames of int8 stores are decoded on the way; order and labels are those of the dataset."""
    make_store(tmp_path / "a", [30, 70, 11], features=noise)
    names = ["x", "y", "z"]
    make_store(tmp_path / "b", [80, 5, 300], features=noise, codec=INT8, ids=names, pieces={2: 2})
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    batches = list(loader_of(store, layers=[3, 1]))
    assert sorted(frames_of(batches)) == all_frames(store)
    for batch in batches:
        expected = [store.read(i, [3, 1])[:, k] for i, k in frames_of([batch])]
        assert torch.equal(batch.features, torch.stack(expected))


def test_layer_norm_and_dtype(opened):
    """Each frame of each layer, in float32, as torch does; rounded to the dtype of the batch."""
    for dtype in ("float32", torch.float16):
        loader = loader_of(opened, normalize="layer_norm", dtype=dtype, memory="10MB")
        batch = next(iter(loader))
        x = torch.stack([opened.read(i)[:, k] for i, k in frames_of([batch])]).double().numpy()
        expected = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-5)
        assert str(batch.features.dtype) == f"torch.{str(dtype).removeprefix('torch.')}"
        tolerance = 1e-6 if dtype == "float32" else 2e-3
        assert np.allclose(batch.features.double().numpy(), expected, atol=tolerance)
    plain = next(iter(loader_of(opened, dtype="float32", memory="10MB")))
    assert torch.equal(plain.features, batch_of(opened, plain).float())


def batch_of(store, batch):
    return torch.stack([store.read(i)[:, k] for i, k in frames_of([batch])])


def stacked(store):
    """Return all frames, float64 [n, n_layers, dim]."""
    return np.concatenate([x.double().numpy() for x in store[:]], axis=1).swapaxes(0, 1)


def test_statistics_equal_those_of_numpy(opened):
    """Of a store, of layers and utterances of it, and of constant features."""
    whole, x = pipeline.frame_statistics(opened), stacked(opened)
    assert (whole.layers, whole.n_frames) == ((1, 2, 3), len(x))
    assert np.allclose(whole.mean, x.mean(0), atol=1e-6)
    assert np.allclose(whole.std, x.std(0), rtol=1e-5)
    assert np.allclose(whole.norm, np.linalg.norm(x, axis=2).mean(0), rtol=1e-6)
    chosen = opened.take(range(5))
    part = pipeline.frame_statistics(pipeline.FeatureDataset(chosen, [3]))
    assert np.allclose(part.mean, stacked(chosen)[:, 2:].mean(0), atol=1e-6)
    assert np.allclose(part.of_layers([3]).std, stacked(chosen)[:, 2:].std(0), rtol=1e-5)


def test_statistics_far_from_zero_keep_their_precision(tmp_path):
    """A feature with a mean of 1,000 standard deviations, and one that is constant."""

    def far(row, layer, n_frames, dim):
        x = noise(row, layer, n_frames, dim).astype(np.float32)
        x[:, 0] = 1000 + np.round(x[:, 0])
        x[:, 1] = 7
        return x

    make_store(tmp_path / "s", [250, 90, 200], features=far, codec=FLOAT32)
    store = pipeline.open_store(tmp_path / "s")
    found = pipeline.frame_statistics(store)
    assert np.allclose(found.std, stacked(store).std(0), rtol=1e-4)
    loader = loader_of(store, memory="10MB", normalize=found)
    features = torch.cat([batch.features.clone() for batch in loader]).double()
    assert (features[:, :, 1] == 0).all()
    assert features.mean(0).abs().max() < 1e-4
    assert (features.std(0, correction=0)[:, [0, *range(2, 8)]] - 1).abs().max() < 1e-3


def test_standardize_takes_the_statistics_of_the_whole_store(opened):
    """Also for a selection, so that train and test are scaled alike; computed with a warning."""
    chosen = opened.select("n_frames > 30")
    with pytest.warns(UserWarning, match="strata layers .* frame_statistics=true"):
        loader = loader_of(chosen, memory="10MB", normalize="standardize", layers=[2])
    batch = next(iter(loader))
    x = stacked(opened)[:, 1:2]
    expected = (batch_of(chosen, batch)[:, 1:2].double().numpy() - x.mean(0)) / x.std(0)
    assert np.allclose(batch.features.double().numpy(), expected, atol=4e-3)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_memory_bounds_what_an_epoch_takes(tmp_path):
    """Memory of a process, maps of shards left out, in epochs of six times as many bytes."""
    lengths = [900] * 50
    make_store(tmp_path / "s", lengths, layers=(1, 2), dim=768, frames_per_unit=4608)
    program = (
        "import sys, pathlib, torch, pipeline\n"
        "torch.set_num_threads(1)\n"
        "def status(name):\n"
        "    text = pathlib.Path('/proc/self/status').read_text()\n"
        "    return int(text.split(name + ':')[1].split()[0]) / 1000\n"
        "dataset = pipeline.FeatureDataset(pipeline.open_store(sys.argv[1]))\n"
        "def run(shuffle, memory):\n"
        "    peak = 0\n"
        "    loader = pipeline.make_frame_loader(\n"
        "        dataset, frames_per_batch=256, shuffle=shuffle, memory=memory)\n"
        "    for _ in range(2):\n"
        "        for batch in loader: peak = max(peak, status('RssAnon'))\n"
        "    return peak\n"
        "run('units', '3MB')\n"
        "before = status('RssAnon')\n"
        "for shuffle in ('reservoir', 'units'):\n"
        "    print(run(shuffle, '24MB') - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [float(line) for line in done.stdout.split()]
    assert all(12 < peak < 24 + 4 for peak in peaks), peaks


def test_a_damaged_shard_ends_the_epoch(tmp_path):
    """With an error that names it, from threads as well; threads stop."""
    make_store(tmp_path / "s", LENGTHS, features=noise)
    shard = tmp_path / "s/features.zarr/frames/c/1/2/0"
    shard.write_bytes(shard.read_bytes()[:1000])
    for n_threads in (0, 1, 2):
        with pytest.raises(DamagedError, match=r"frames/c/1/2/0"):
            list(loader_of(pipeline.open_store(tmp_path / "s"), num_workers=n_threads))


def test_a_verified_store_is_verified(tmp_path):
    """A flipped bit, which a plain read cannot notice, is an error."""
    make_store(tmp_path / "s", LENGTHS, features=noise)
    shard = tmp_path / "s/features.zarr/frames/c/0/1/0"
    raw = bytearray(shard.read_bytes())
    raw[40] ^= 4
    shard.write_bytes(raw)
    list(loader_of(pipeline.open_store(tmp_path / "s")))
    with pytest.raises(DamagedError, match="wrong checksum"):
        list(loader_of(pipeline.open_store(tmp_path / "s", verify=True)))


def test_stores_without_frames_are_refused(tmp_path):
    """In one line."""
    make_store(tmp_path / "s", [5, 6], keep=("pooled",))
    with pytest.raises(StoreError, match="keeps no frames"):
        loader_of(pipeline.open_store(tmp_path / "s"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_batch": 0}, "frames_per_batch is 0; expected a whole number of at least 1"),
        ({"frames_per_batch": 64.0}, "frames_per_batch is 64.0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_workers": True}, "num_workers is True"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; expected 0 to 1"),
        ({"shuffle": True}, 'shuffle is True; expected "reservoir", "units" or False'),
        ({"normalize": "batch"}, 'normalize is .batch.; expected "layer_norm", "standardize"'),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float16, float32"),
        ({"memory": "2 pounds"}, "memory is '2 pounds'; expected bytes, or text"),
        ({"memory": 0}, "memory is 0"),
        ({"memory": 1000}, "memory is 1000; batches of 16 frames of 3 layers .* at least 8,320"),
        ({"layers": 2}, r"layers is 2; expected a list of layers, such as \[6\]"),
        ({"frames_per_batch": 600, "world_size": 7, "drop_last": True}, "with drop_last on every"),
        ({"frames_per_batch": 1, "world_size": 10_000}, "lower frames_per_batch or world_size"),
    ],
)
def test_wrong_settings_are_refused(opened, options, message):
    """The message names the setting, its value, and what is expected."""
    with pytest.raises(ConfigError, match=message):
        loader_of(opened, **({"window": 1000} | options))


def test_wrong_datasets_and_statistics_are_refused(opened):
    """A store, a dataset that crops, unknown layers, and statistics of other layers."""
    with pytest.raises(ConfigError, match=r"pipeline.FeatureDataset\(store\)"):
        pipeline.make_frame_loader(opened, frames_per_batch=8)
    with pytest.raises(ConfigError, match="without max_frames"):
        loader_of(pipeline.FeatureDataset(opened, max_frames=9))
    with pytest.raises(StoreError, match="no layers \\[9\\]"):
        loader_of(opened, layers=[9])
    own = pipeline.frame_statistics(pipeline.FeatureDataset(opened, [3]))
    with pytest.raises(ConfigError, match=r"statistics of layers \[3\] of 8 features; expected"):
        loader_of(opened, normalize=own)


def test_sizes_are_numbers_with_units():
    """Decimal and binary, with and without a space."""
    texts = ["2GB", "1.5 MB", "3KiB", "12", "2 gib"]
    assert [*map(parse_bytes, texts)] == [2 * 10**9, 1_500_000, 3072, 12, 2 << 30]


@given(
    n=st.integers(1, 400),
    size=st.integers(1, 9),
    n_batches=st.integers(1, 9),
    n_ranks=st.integers(1, 4),
    shuffle=st.sampled_from(SHUFFLES),
)
@settings(max_examples=40, deadline=None)
def test_places_are_an_exact_cover(n, size, n_batches, n_ranks, shuffle):
    """Every frame of the input has one place in a window that exists, for any sizes.

    A window is complete after as many parts as `needed` says, and no more windows than the policy
    allows are in memory. Batches cover the output, are not empty, and are in one window each.
    """
    policy = FramePolicy(size, shuffle, 0, size * n_batches, n_ranks)
    shares = []
    for rank in range(n_ranks):
        try:
            share = RankBatches(policy, n, rank)
        except ConfigError:
            return
        order = RankOrder(policy, 1, rank, share.n_frames)
        shares.append((share.start, share.start + share.n_frames, share.n_batches))
        filled = [np.zeros(order.window_size(i), int) for i in range(order.n_windows)]
        for part in range(order.n_parts):
            low, high = order.part_bounds(part)
            taken = np.zeros(high - low, int)
            for item in order.transfers(part):
                np.add.at(taken, item.sources, 1)
                np.add.at(filled[item.window], item.places, 1)
            assert (taken == 1).all()
            for first in {part // 2, part + 1}:
                left = [item for item in order.transfers(part) if item.window >= first]
                assert [x.window for x in order.transfers(part, first)] == [x.window for x in left]
            complete = [bool((window == 1).all()) for window in filled]
            begun = [bool(window.any()) for window in filled]
            for number in range(order.n_windows):
                assert complete[number] or part + 1 < order.needed(number)
                assert not begun[number] or part + 1 >= order.needed(number) - policy.n_windows + 2
        assert all((window == 1).all() for window in filled)
        bounds = [share.bounds(i) for i in range(share.n_batches)]
        assert (bounds[0][0], bounds[-1][1]) == (0, share.n_frames)
        assert all(one[1] == other[0] for one, other in pairwise(bounds))
        assert all(0 < high - low <= size for low, high in bounds)
        assert all(low // order.width == (high - 1) // order.width for low, high in bounds)
    assert [shares[0][0], shares[-1][1]] == [0, n]
    assert all(one[1] == other[0] for one, other in pairwise(shares))
    assert len({share[2] for share in shares}) == 1


@pytest.mark.parametrize("shuffle", ["reservoir", "units"])
def test_neighbours_are_parted(shuffle):
    """Of a reservoir, they go to different windows; the places of a window are in random order."""
    policy = FramePolicy(16, shuffle, 0, 64)
    order = RankOrder(policy, 0, 0, 1000)
    for part in range(order.n_parts):
        low, high = order.part_bounds(part)
        window, place = np.empty(high - low, int), np.empty(high - low, int)
        for item in order.transfers(part):
            window[item.sources], place[item.sources] = item.window, item.places
        if shuffle == "reservoir" and len(np.unique(window)) > 1:
            assert (np.diff(window) != 0).mean() > (0.99 if high - low == 64 else 0.7)
        if high - low >= 16:
            assert abs(np.corrcoef(np.arange(high - low), place)[0, 1]) < 0.6
    assert {order.needed(i) - i for i in range(order.n_windows)} == {policy.depth}


@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=30),
    cuts=st.lists(st.floats(0, 1), max_size=5),
    shuffle=st.sampled_from(SHUFFLES),
)
@settings(max_examples=50, deadline=None)
def test_blocks_are_an_exact_cover_of_the_corpus(lengths, cuts, shuffle):
    """However the sequence of blocks is divided, every frame of every utterance is there once."""
    counts = np.array(lengths)
    utterance, slot = np.arange(len(counts)), np.arange(len(counts)) // 4
    start = np.cumsum(counts) - counts
    axis = FrameAxis.of((utterance, slot, start, counts), by_disk=bool(shuffle))
    if not len(axis):
        return
    blocks = BlockOrder(axis, FramePolicy(8, shuffle, 3, 64), 0)
    bounds = sorted({0, len(axis), *(int(cut * len(axis)) for cut in cuts)})
    seen = []
    for low, high in pairwise(bounds):
        ranges = blocks.ranges(low, high)
        positions, firsts, ns = axis.cuts(*ranges)
        assert ns.sum() == high - low
        places = []
        for position, first, n in zip(positions, firsts, ns, strict=True):
            seen += [(int(position), int(first) + i) for i in range(n)]
            places += [(int(slot[position]), int(start[position] + first) + i) for i in range(n)]
        slots, begins, ns = axis.runs(*ranges)
        runs = list(zip(slots.tolist(), begins.tolist(), ns.tolist(), strict=True))
        assert [(at, begin + i) for at, begin, n in runs for i in range(n)] == places
        assert all((at, begin + n) != later[:2] for (at, begin, n), later in pairwise(runs))
    expected = [(i, frame) for i, n in enumerate(lengths) for frame in range(n)]
    assert sorted(seen) == expected
    assert shuffle or seen == expected


def test_reservoir_mixes_better_than_units(tmp_path):
    """Batches have more utterances, and fewer pairs of frames of the same one."""
    make_store(tmp_path / "s", [300] * 60, layers=(1,), frames_per_unit=3072)
    store = pipeline.open_store(tmp_path / "s")
    distinct = {}
    for shuffle in ("reservoir", "units"):
        loader = loader_of(store, shuffle=shuffle, frames_per_batch=64, memory=400_000)
        distinct[shuffle] = np.mean([len(batch.utterances.unique()) for batch in loader])
    assert distinct["reservoir"] > 2 * distinct["units"]


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_store_elsewhere_gives_the_same_batches(root, opened, shuffle):
    """All layers of a block are asked for together where each read may wait for a server."""
    backend = MemoryBackend()
    for path in root.rglob("*"):
        if path.is_file():
            backend.put(path.relative_to(root).as_posix(), [path.read_bytes()])
    asked = []

    class Counting(pipeline.FeatureStore):
        def read_into(self, cuts, axes, norm=None, *, verify=None):
            asked.append(len(axes))
            super().read_into(cuts, axes, norm, verify=verify)

    there = loader_of(Counting(backend), shuffle=shuffle, window=256)
    for a, b in zip(there, loader_of(opened, shuffle=shuffle, window=256), strict=True):
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.frames, b.frames)
    assert set(asked) == {3}

"""Statistics of spans equal those of a plain loop, in every form of a store and in any memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, StoreError
from pipeline.spans.placing import place_spans
from pipeline.spans.pooling import iter_pooled_spans, pool_spans
from pipeline.spans.table import Spans
from pipeline.store.format.codecs import codec_of
from pipeline.store.read.opening import open_store
from tests.helpers.backends import in_memory
from tests.helpers.feature_stores import make_store, noise

STATISTICS = {
    "mean": lambda x: x.mean(1),
    "std": lambda x: x.std(1, correction=0),
    "max": lambda x: x.amax(1),
    "first": lambda x: x[:, 0],
    "last": lambda x: x[:, -1],
}
LENGTHS = [40, 300, 25, 60, 1, 90]


def random_spans(n=60, seed=0, prefix=""):
    """Return spans of all lengths, which overlap, in no order."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        utterance = int(random.integers(len(LENGTHS)))
        start, length = random.uniform(0, LENGTHS[utterance] / 50), random.exponential(0.5)
        rows.append((f"{prefix}utt-{utterance:04d}", start, start + length, "x"))
    rows.append((f"{prefix}utt-0001", 0.0, 6.5, "whole"))
    rows.append((f"{prefix}utt-0004", 0.0, 1.0, "one frame"))
    return Spans.of(*zip(*rows, strict=True))


def by_loop(store, spans, statistic="mean", layers=None):
    """Return what `pool_spans` must return, from one read for each span."""
    found = []
    for span in spans:
        frames = store.read(span.id, layers, span=span).float()
        nothing = torch.full((frames.shape[0], frames.shape[2]), torch.nan)
        found.append(STATISTICS[statistic](frames) if frames.shape[1] else nothing)
    return torch.stack(found)


def same(got, wanted):
    return torch.allclose(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


def store_at(root, **settings):
    """Write a store whose utterance 1 is in three pieces, which are in several units; open it."""
    form = {"frames_per_unit": 128, "features": noise, "pieces": {1: 3}}
    make_store(root, LENGTHS, **form | settings)
    return open_store(root)


@pytest.fixture(params=["float16", "float32", "bfloat16", "int8"])
def store(tmp_path, request):
    """Stores of each codec; utterance 1 is in three pieces, which are in several units."""
    return store_at(tmp_path, codec=codec_of(request.param))


@pytest.mark.filterwarnings("ignore:.*spans? of")
@pytest.mark.parametrize("memory", ["1MB", 6000])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_spans_are_pooled_as_by_a_plain_loop(store, statistic, memory):
    """Whether spans fit in memory together or are read in parts, each row is that of its span."""
    spans = random_spans()
    got = pool_spans(store, spans, [3, 1], statistic, memory=memory)
    assert got.dtype == torch.float32
    assert same(got, by_loop(store, spans, statistic, [3, 1]))


def test_spans_without_frames_are_nan_and_counted(tmp_path):
    """A warning counts them; the other rows are as without them."""
    store = store_at(tmp_path)
    spans = Spans.of(["utt-0000", "other", "utt-0002"], [0.0, 0, 0.1], [0.1, 1, 0.101], "abc")
    with pytest.warns(UserWarning, match="span of") as caught:
        got = pool_spans(store, spans)
    assert got.isnan().flatten(1).all(1).tolist() == [False, True, True]
    assert len(caught) == 2


@pytest.mark.filterwarnings("ignore:.*spans? of")
def test_joined_stores_and_selections(tmp_path):
    """Ids of several stores are found in each; those that are not selected have no values."""
    roots = [tmp_path / name for name in ("a", "b")]
    for number, root in enumerate(roots):
        store_at(root, features=lambda row, *rest, n=number: noise(row + 100 * n, *rest))
    both = open_store(roots, prefix=True)
    spans = Spans.of(
        ["a/utt-0000", "b/utt-0001", "b/utt-0000"], [0.0, 1, 0.0], [0.5, 2, 0.5], ["x", "y", "z"]
    )
    assert same(pool_spans(both, spans), by_loop(both, spans))
    chosen = both.select("id like 'b/%'")
    got = pool_spans(chosen, spans)
    assert got[0].isnan().all()
    assert same(got[1:], by_loop(both, spans)[1:])


def test_a_store_that_is_no_folder(tmp_path):
    """Spans are pooled through the backend, whatever it is."""
    local = store_at(tmp_path, codec=codec_of("int8"))
    spans = random_spans(20).take(range(20))
    placed = place_spans(local, spans)
    memory = open_store(in_memory(tmp_path))
    parts = [
        list(iter_pooled_spans(store, placed, [2], memory=30_000)) for store in (local, memory)
    ]
    for (rows, values), (expected_rows, expected) in zip(*parts, strict=True):
        assert rows.tolist() == expected_rows.tolist()
        assert torch.equal(values, expected)


def test_every_span_comes_once_in_the_order_of_the_disk(tmp_path):
    """The iterator reads units in order, and no frame that no span needs."""
    store = store_at(tmp_path)
    placed = place_spans(store, random_spans().take(range(60)))
    read, plain = [], store.read_into
    store.read_into = lambda cuts, axes: (read.extend(cuts), plain(cuts, axes))[1]
    rows = [row for some, _ in iter_pooled_spans(store, placed, memory=20_000) for row in some]
    assert sorted(rows) == list(range(len(placed)))
    positions = [position for position, _, _ in read]
    assert positions == sorted(positions)
    for position, first, where in read:
        own = placed.position == position
        assert placed.first[own].min() <= first
        assert first + where.shape[1] <= placed.last[own].max()


def test_frames_between_distant_spans_are_not_read(tmp_path):
    """Those of near spans are read with them."""
    store = store_at(tmp_path)
    spans = Spans.of(["utt-0001"] * 3, [0.0, 0.3, 5.0], [0.1, 0.4, 5.1], "abc")
    placed = place_spans(store, spans)
    read, plain = [], store.read_into
    store.read_into = lambda cuts, axes: (read.extend(cuts), plain(cuts, axes))[1]
    assert len(list(iter_pooled_spans(store, placed))) == 1
    assert [(first, where.shape[1]) for _, first, where in read] == [(0, 20), (250, 5)]


def test_results_go_to_a_given_array(tmp_path):
    """Such as a memory map; another shape, and unknown settings, are refused."""
    store, spans = store_at(tmp_path / "s"), Spans.of(["utt-0000"], [0.0], [0.5], ["x"])
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(1, 3, 8))
    pool_spans(store, spans, out=out)
    assert same(torch.from_numpy(np.array(out)), by_loop(store, spans))
    with pytest.raises(
        ConfigError, match=r"out is float32 \[1, 3, 8\]; expected float32 \[1, 2, 8\]"
    ):
        pool_spans(store, spans, [1, 2], out=out)
    with pytest.raises(ConfigError, match="no statistic 'median'"):
        pool_spans(store, spans, statistic="median")
    with pytest.raises(ConfigError, match="a frame of 3 layers takes"):
        pool_spans(store, spans, memory=10)
    with pytest.raises(StoreError, match="no layers"):
        pool_spans(store, spans, [9])

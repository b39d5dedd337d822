"""Datasets and loaders of several stores that are opened as one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

import pipeline
from pipeline.errors import ConfigError
from pipeline.store.format.codecs import INT8
from tests.helpers.feature_stores import make_store, noise

SIZES = {"a": 30, "b": 21, "c": 9}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three stores with units of different sizes, the second one int8, with lost utterances."""
    root, random = tmp_path_factory.mktemp("several"), np.random.default_rng(3)
    for number, (name, n) in enumerate(SIZES.items()):
        lengths = [int(length) for length in random.integers(5, 250, n)]
        words = [f"word-{(i + number) % 4}" for i in range(n)]
        form = {"codec": INT8} if name == "b" else {}
        make_store(
            root / name,
            [*lengths, 600] if name == "a" else lengths,
            features=lambda row, *rest, number=number: noise(row + 100 * number, *rest),
            frames_per_unit=256 * (number + 1),
            columns=pa.table({"word": [*words, "word-1"] if name == "a" else words}),
            pieces={n: 3} if name == "a" else None,
            ids=[f"{name}-{i:02d}" for i in range(n + (name == "a"))],
            lost=(4,),
            **form,
        )
    return root


@pytest.fixture(scope="module")
def joined(root):
    return pipeline.open_store([root / name for name in SIZES])


@pytest.fixture(scope="module")
def values(root):
    """Id → all layers, as the single stores return them."""
    stores = [pipeline.open_store(root / name) for name in SIZES]
    return {name: store.read(name) for store in stores for name in store.ids}


def loader_of(store, layers=(3, 1), max_frames=None, **options):
    dataset = pipeline.FeatureDataset(store, layers, max_frames=max_frames, classes=["word"])
    return pipeline.make_loader(dataset, **({"max_frames_per_batch": 700} | options))


def check(batch, values, number_of):
    """Check values, padding and columns of a batch."""
    for i, name in enumerate(batch.ids):
        start, n = int(batch.starts[i]), int(batch.lengths[i])
        expected = values[name][[2, 0], start : start + n]
        assert torch.equal(batch.features[i, :, :n], expected)
        assert not batch.features[i, :, n:].any()
        assert int(batch.columns["word"][i]) == number_of[name]


@pytest.fixture(scope="module")
def number_of(joined):
    words = joined.metadata["word"].to_pylist()
    return {name: int(word[-1]) for name, word in zip(joined.ids, words, strict=True)}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"window_units": 2}, {"shuffle": False}])
def test_an_epoch_has_every_utterance_once(joined, values, number_of, num_workers, options):
    """With the values and classes of its store, in batches that mix the stores."""
    loader = loader_of(joined, num_workers=num_workers, **options)
    assert loader.dataset.class_names == {"word": [f"word-{i}" for i in range(4)]}
    for _ in range(2):
        seen, mixed = Counter(), 0
        for batch in loader:
            seen.update(batch.ids)
            mixed += len({name[0] for name in batch.ids}) > 1
            check(batch, values, number_of)
        assert seen == Counter(joined.ids)
        assert mixed or options


def test_windows_are_units_of_all_stores(joined):
    """A window has utterances of at most so many units: no two stores share a unit."""
    units = dict(zip(joined.ids, joined.slots.tolist(), strict=True))
    n_units = len(set(units.values()))
    loader = loader_of(joined, window_units=1)
    in_order = [units[name] for batch in loader for name in batch.ids]
    changes = sum(a != b for a, b in pairwise(in_order))
    assert changes == n_units - 1 > 10


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_utterances(joined, drop_last):
    """Together they have every utterance, or all but those of dropped batches, and no more."""
    ranks = [loader_of(joined, rank=rank, world_size=3, drop_last=drop_last) for rank in range(3)]
    assert len({len(loader) for loader in ranks}) == 1
    seen = Counter(name for loader in ranks for batch in loader for name in batch.ids)
    batches = len(loader_of(joined))
    if drop_last:
        assert max(seen.values()) == 1
        assert sum(len(loader) for loader in ranks) == batches // 3 * 3
    else:
        assert set(seen) == set(joined.ids)
        assert sum(len(loader) for loader in ranks) == -(-batches // 3) * 3


def test_a_resumed_loader_has_the_remaining_batches(root, joined):
    """In a new process, also with crops; a loader of other stores refuses the state."""
    whole = [batch.ids for batch in loader_of(joined, max_frames=100, window_units=3)]
    stopped = loader_of(joined, max_frames=100, window_units=3)
    first = [batch.ids for _, batch in zip(range(4), stopped, strict=False)]
    again = pipeline.open_store([root / name for name in SIZES])
    resumed = loader_of(again, max_frames=100, window_units=3)
    resumed.load_state_dict(stopped.state_dict())
    n_done = stopped.state_dict()["batches_done"]
    assert n_done == len(first) == 4 < len(whole)
    assert first + [batch.ids for batch in resumed] == whole
    other = loader_of(pipeline.open_store([root / "a", root / "c"]), max_frames=100, window_units=3)
    with pytest.raises(ConfigError, match="data was"):
        other.load_state_dict(stopped.state_dict())


@pytest.mark.slow
def test_workers_that_inherit_nothing_read_the_same(joined, values, number_of):
    """Workers that share nothing with this process open the files of every store."""
    seen = Counter()
    for batch in loader_of(joined, num_workers=2, multiprocessing_context="forkserver"):
        seen.update(batch.ids)
        check(batch, values, number_of)
    assert seen == Counter(joined.ids)


def test_examples_and_hugging_face_rows(joined, values):
    """Single examples, the bridge to `datasets`, and subsets have the values of each store."""
    dataset = pipeline.FeatureDataset(joined, columns=["word"])
    for example in dataset.__getitems__([40, 3, 55, 29]):
        assert torch.equal(example.features, values[example.id])
    rows = dataset.to_hf_dataset()
    assert rows["id"][:] == joined.ids
    for row in (rows[2], rows[35], rows[56]):
        assert torch.equal(row["features"], values[row["id"]])
    half = torch.utils.data.Subset(dataset, [50, 1, 33])
    batches = list(pipeline.make_loader(half, max_frames_per_batch=10_000, shuffle=False))
    assert [name for batch in batches for name in batch.ids] == [joined.ids[i] for i in (50, 1, 33)]


def test_a_column_that_a_store_lacks_is_no_class(root, tmp_path):
    """The message says how to leave the utterances out."""
    make_store(tmp_path / "d", [5, 6], ids=["d-0", "d-1"])
    store = pipeline.open_store([root / "a", tmp_path / "d"])
    with pytest.raises(ConfigError, match="column 'word' has no value for 2 of 32 utterances"):
        pipeline.FeatureDataset(store, classes=["word"])
    some = store.select("word is not null")
    assert len(pipeline.FeatureDataset(some, classes=["word"])) == 30

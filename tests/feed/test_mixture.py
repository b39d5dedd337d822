"""Mixtures of datasets: drawn by weight, the same on all ranks, and resumed exactly."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline.errors import ConfigError
from pipeline.feed.batch import Batch
from pipeline.feed.mixture import MixedLoader
from pipeline.store.format.codecs import FLOAT32
from tests.helpers.feature_stores import make_store

FRAMES = 100


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[pipeline.FeatureDataset]:
    """Three datasets of 40, 20 and 6 utterances, with ids of their own."""
    root = tmp_path_factory.mktemp("mixture")
    random = np.random.default_rng(0)
    made = []
    for name, n in (("a", 40), ("b", 20), ("c", 6)):
        lengths = random.integers(10, 60, n).tolist()
        make_store(root / name, lengths, ids=[f"{name}{i}" for i in range(n)])
        made.append(pipeline.FeatureDataset(pipeline.open_store(root / name), layers=[1, 3]))
    return made


def mixed(datasets: Any, *arguments: Any, **options: Any) -> MixedLoader:
    return pipeline.mix(datasets, *arguments, max_frames_per_batch=FRAMES, **options)


def content(batch: Batch) -> tuple[Any, ...]:
    return batch.dataset, tuple(batch.ids), batch.features.clone().numpy().tobytes()


def test_batches_have_the_features_of_their_dataset(
    datasets: list[pipeline.FeatureDataset],
) -> None:
    """And its number; an epoch has as many batches as all datasets together."""
    loader = mixed(datasets)
    batches = list(loader)
    alone = [pipeline.make_loader(d, max_frames_per_batch=FRAMES) for d in datasets]
    assert len(batches) == len(loader) == sum(map(len, alone))
    for batch in batches:
        store = datasets[batch.dataset].store
        assert {name[0] for name in batch.ids} == {"abc"[batch.dataset]}
        for i, name in enumerate(batch.ids):
            n = int(batch.lengths[i])
            assert torch.equal(batch.features[i, :, :n], store.read(name, [1, 3]))
    assert loader.epoch == 1


def test_datasets_are_drawn_by_their_weights(datasets: list[pipeline.FeatureDataset]) -> None:
    """Within what chance allows; one of weight 0 is never drawn."""
    loader = mixed(datasets, [1, 3, 0], batches_per_epoch=4000)
    counts = Counter(loader.choices())
    assert set(counts) == {0, 1}
    assert abs(counts[1] / 4000 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)
    even = mixed(datasets, batches_per_epoch=4000)
    sizes = np.array([len(item) for item in even._loaders])
    found = np.bincount(even.choices(), minlength=3) / 4000
    assert np.abs(found - sizes / sizes.sum()).max() < 4 * np.sqrt(0.25 / 4000)


def test_a_dataset_is_read_again_in_another_order_when_it_ends(
    datasets: list[pipeline.FeatureDataset],
) -> None:
    """Each of its utterances once before any comes again."""
    n_batches = len(pipeline.make_loader(datasets[2], max_frames_per_batch=FRAMES))
    names = [batch.ids for batch in mixed(datasets[2:], batches_per_epoch=3 * n_batches)]
    rounds = [names[i : i + n_batches] for i in range(0, len(names), n_batches)]
    for batches in rounds:
        assert sorted(chain.from_iterable(batches)) == [f"c{i}" for i in range(6)]
    assert len({tuple(map(tuple, batches)) for batches in rounds}) == 3


def test_epochs_differ_and_are_the_same_again(datasets: list[pipeline.FeatureDataset]) -> None:
    """Whatever was read before; another seed has other batches."""
    loader = mixed(datasets, seed=3)
    first, second = ([content(batch) for batch in loader] for _ in range(2))
    assert first != second
    again = mixed(datasets, seed=3)
    again.set_epoch(1)
    assert [content(batch) for batch in again] == second
    again.set_epoch(0)
    next(iter(again))  # is abandoned
    again.set_epoch(0)
    assert [content(batch) for batch in again] == first
    assert [content(batch) for batch in mixed(datasets, seed=4)] != first


@pytest.mark.parametrize(
    ("n_done", "num_workers"),
    [(0, 0), (1, 0), (7, 0), (1000, 0), pytest.param(7, 1, marks=pytest.mark.slow)],
)
def test_a_state_continues_with_exactly_the_remaining_batches(
    datasets: list[pipeline.FeatureDataset], n_done: int, num_workers: int
) -> None:
    """Through JSON, in a new loader, in the middle of the epochs of datasets, and at an end."""
    options = {"num_workers": num_workers, "batches_per_epoch": 60, "seed": 5}
    loader = mixed(datasets, [1, 1, 3], **options)
    batches = iter(loader)
    for _ in range(min(n_done, 60)):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    rest = [content(batch) for batch in batches]
    other = mixed(datasets, [1, 1, 3], **options)
    other.load_state_dict(state)
    assert [content(batch) for batch in other] == (rest or [])
    assert other.state_dict() == loader.state_dict()


def test_ranks_draw_the_same_datasets_and_share_their_utterances(
    datasets: list[pipeline.FeatureDataset],
) -> None:
    """So the batches of a step have one shape of labels, and no rank waits for another."""
    ranks = [mixed(datasets, rank=rank, world_size=2) for rank in range(2)]
    found = [list(loader) for loader in ranks]
    assert len(found[0]) == len(found[1])
    for first, second in zip(*found, strict=True):
        assert first.dataset == second.dataset
        assert not set(first.ids) & set(second.ids) or first.dataset == 2  # a repeated batch
    assert ranks[0].state_dict() == ranks[1].state_dict()


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([1, 2], {}, "2 weights for 3 datasets"),
        ([1, -1, 1], {}, "expected numbers of at least 0"),
        ([0, 0, 0], {}, "not all 0"),
        ([1, "x", 1], {}, "expected numbers of at least 0"),
        ([1e308, 1e308, 1], {}, "expected numbers of at least 0"),
        ([1, float("inf"), 1], {}, "expected numbers of at least 0"),
        (None, {"batches_per_epoch": 0}, "batches_per_epoch is 0"),
        (None, {"batches_per_epoch": 2.5}, "batches_per_epoch is 2.5"),
        (None, {"rank": 2, "world_size": 2}, "rank is 2"),
    ],
)
def test_what_is_no_mixture_is_refused(
    datasets: list[pipeline.FeatureDataset], weights: Any, options: dict[str, Any], message: str
) -> None:
    """With the value and what was expected."""
    with pytest.raises(ConfigError, match=message):
        mixed(datasets, weights, **options)


def test_datasets_of_other_shapes_are_refused(
    datasets: list[pipeline.FeatureDataset], tmp_path: Path
) -> None:
    """Other layers, dimensions or types; no datasets, and one without utterances."""
    a = datasets[0]
    make_store(tmp_path / "wide", [20], dim=16)
    make_store(tmp_path / "exact", [20], codec=FLOAT32)
    wide, exact = (
        pipeline.FeatureDataset(pipeline.open_store(tmp_path / name), layers=[1, 3])
        for name in ("wide", "exact")
    )
    layers = pipeline.FeatureDataset(a.store, layers=[1, 2])
    for other, message in (
        (layers, r"dataset 1 of the mixture has layers \[1, 2\], dataset 0 \[1, 3\]"),
        (wide, "has dim 16, dataset 0 8"),
        (exact, "has dtype float32, dataset 0 float16"),
    ):
        with pytest.raises(ConfigError, match=message):
            mixed([a, other])
    with pytest.raises(ConfigError, match="at least one dataset"):
        mixed([])
    with pytest.raises(ConfigError, match="dataset 1 of the mixture has no batches"):
        mixed([a, a.take([])])


def test_a_state_of_another_mixture_is_refused(datasets: list[pipeline.FeatureDataset]) -> None:
    """Within an epoch; the message says what differs."""
    loader = mixed(datasets, [1, 1, 1])
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(ConfigError, match=r"weights was .* Make the loader with the same"):
        mixed(datasets, [1, 1, 2]).load_state_dict(state)
    with pytest.raises(ConfigError, match="of 3 datasets; this one has 2"):
        mixed(datasets[:2], [1, 1], batches_per_epoch=5).load_state_dict(
            state | {"batches_done": 0}
        )
    with pytest.raises(ConfigError, match="max_frames_per_batch was 100"):
        pipeline.mix(
            datasets, [1, 1, 1], max_frames_per_batch=120, batches_per_epoch=len(loader)
        ).load_state_dict(state)


def test_loaders_of_epochs_that_were_left_end_at_once(
    datasets: list[pipeline.FeatureDataset],
) -> None:
    """Without a garbage collection, in which their workers would be waited for, 5 s each."""
    loader = mixed(datasets[:2], num_workers=1)
    next(iter(loader))
    alone = pipeline.make_loader(datasets[0], max_frames_per_batch=FRAMES, num_workers=1)
    next(iter(alone))
    left = [weakref.ref(item) for item in (alone, *loader._loaders)]
    gc.disable()
    try:
        del loader, alone
        assert [reference() for reference in left] == [None] * 3
    finally:
        gc.enable()

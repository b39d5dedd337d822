"""Tokens in datasets and loaders: aligned with the frames, padded, cropped."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import pipeline
from pipeline.errors import ConfigError, StoreError
from pipeline.store.format.tokens import chunk_key
from tests.helpers.token_stores import LAYER, clustered_store, codes_of, tokenized

NAME = "layer2-k5"


@pytest.fixture
def root(tmp_path):
    clustered_store(tmp_path / "store")
    tokenized(tmp_path / "store")
    return tmp_path / "store"


def check(store, features, tokens, lengths):
    """Each frame's token is that of the centre that its largest feature tells."""
    code_of = codes_of(store)
    for values, found, n in zip(features, tokens, lengths.tolist(), strict=True):
        centre = (values[0, :n].argmax(1) - LAYER) % 8
        assert found[:n].tolist() == code_of[centre.numpy()].tolist()
        assert (found[n:] == -1).all()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("max_frames", [None, 30])
def test_batches_of_a_loader(root, max_frames, workers):
    """Padded like the features, and cropped with them."""
    store = pipeline.open_store(root)
    dataset = pipeline.FeatureDataset(store, [LAYER], max_frames=max_frames, tokens=NAME)
    loader = pipeline.make_loader(dataset, max_frames_per_batch=300, seed=3, num_workers=workers)
    n_starts = 0
    for batch in loader:
        assert batch.tokens.shape == (batch.features.shape[0], batch.features.shape[2])
        assert batch.tokens.dtype == torch.int64
        check(store, batch.features, batch.tokens, batch.lengths)
        n_starts += int((batch.starts > 0).sum())
    assert (n_starts > 0) == (max_frames is not None)


def test_single_examples_and_collate(root):
    """Your own DataLoader pads them the same way; a subset keeps them."""
    store = pipeline.open_store(root).select("n_frames > 20")
    dataset = pipeline.FeatureDataset(store, [LAYER], tokens=NAME).take([2, 0, 1])
    assert dataset[0].tokens.tolist() == store.tokens(2).tolist()
    (batch,) = DataLoader(dataset, batch_size=9, collate_fn=pipeline.collate)
    check(store, batch.features, batch.tokens, batch.lengths)
    assert batch.to("cpu").tokens.tolist() == batch.tokens.tolist()
    loss = torch.nn.functional.cross_entropy(
        torch.zeros(*batch.tokens.shape, 5).flatten(0, 1), batch.tokens.flatten(), ignore_index=-1
    )
    assert loss == pytest.approx(torch.tensor(5.0).log())
    without = pipeline.FeatureDataset(store, [LAYER])
    assert pipeline.collate([without[0]]).tokens is None


def test_missing_tokens_are_noticed_at_the_start(root):
    """Not in the middle of an epoch; rows of `datasets` have none."""
    store = pipeline.open_store(root)
    with pytest.raises(StoreError, match="has no tokens 'x'"):
        pipeline.FeatureDataset(store, tokens="x")
    with pytest.raises(ConfigError, match="rows of datasets have no tokens"):
        pipeline.FeatureDataset(store, tokens=NAME).to_hf_dataset()
    (root / chunk_key(NAME, 1)).unlink()
    with pytest.raises(StoreError, match="'utt-0003' has no tokens 'layer2-k5' yet"):
        pipeline.FeatureDataset(store, tokens=NAME)
    rest = store.select("n_frames < 101")
    assert len(pipeline.FeatureDataset(rest.take([0, 1]), tokens=NAME)) == 2

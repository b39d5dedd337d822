"""Small stores whose tokens are known: every frame lies beside one of a few far centres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.tokens.run import Tokenization, tokenize
from tests.helpers.feature_stores import make_store

K, DIM, LAYER = 5, 8, 2
LENGTHS = (40, 100, 3, 250, 17, 60, 31)


def true_code(row, frame):
    """Return the centre that frames lie beside; runs of three frames share one."""
    return (row * 2 + np.asarray(frame) // 3) % K


def clustered(row, layer, n_frames, dim):
    """Return frames beside their centres, which other layers have elsewhere."""
    frame = np.arange(n_frames)
    values = np.random.default_rng([row, layer]).normal(0, 0.01, (n_frames, dim))
    values[frame, (true_code(row, frame) + layer) % dim] += 10
    return values.astype(np.float16)


def clustered_store(root, lengths=LENGTHS, **given):
    """Write a store of clustered frames, of layers 1 to 3; return its plan."""
    return make_store(Path(root), lengths, dim=DIM, features=clustered, **given)


def tokenized(root, **given) -> Tokenization:
    """Give a clustered store its tokens."""
    return tokenize(str(root), LAYER, K, **given)


def codes_of(store, name=None):
    """Return which code stands for each centre, from the codebook."""
    return store.codebook(name).centroids[:, [(c + LAYER) % DIM for c in range(K)]].argmax(0)


def expected_tokens(store, row, n_frames, name=None):
    """Return the tokens that an utterance must have."""
    return codes_of(store, name)[true_code(row, np.arange(n_frames))]

"""Stores in which one known layer predicts the classes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tests.helpers.feature_stores import make_store

LAYERS = (1, 2, 3)
DIM = 16


def planted(classes, layer=2, strength=1.5, seed=0):
    """Return features whose mean predicts the class in one layer and in no other."""
    random = np.random.default_rng(seed)
    centres = strength * random.standard_normal((max(classes) + 1, DIM))

    def features(row, at, n_frames, dim):
        noise = np.random.default_rng([seed, row, at])
        values = noise.standard_normal((n_frames, dim)) + 2 * noise.standard_normal(dim)
        if at == layer:
            values += 2 * centres[classes[row]]
        return values.astype(np.float16)

    return features


def write_planted(root, n=120, n_classes=4, columns=None, features=None, **settings):
    """Write a store of `n` 3-frame utterances whose layer 2 predicts `word`; return the classes."""
    classes = [row % n_classes for row in range(n)]
    table = {"word": [f"word-{number}" for number in classes]} | (columns or {})
    make_store(
        root,
        [3] * n,
        layers=LAYERS,
        dim=DIM,
        columns=pa.table(table),
        features=features or planted(classes),
        **settings,
    )
    return classes

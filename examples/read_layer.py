"""Read one layer, all layers, a weighted sum and the pooled means of a store.

    python examples/read_layer.py STORE

STORE is what `strata extract` wrote, e.g. `demo/hubert_base-random` after `scripts/demo`.
"""

from __future__ import annotations

import sys

import pipeline

if len(sys.argv) != 2:
    print("usage: read_layer.py STORE", file=sys.stderr)
    sys.exit(2)
store = pipeline.open_store(sys.argv[1])
print(f"{len(store)} utterances, layers {store.layers}, {store.feature_dim} features per frame")

name = store.ids[0]
layer = store.read(name, layers=[store.layers[-1]])  # float16 [1, n_frames, dim]
every = store.read(name)  # float16 [n_layers, n_frames, dim]
start = store.read(name, stop=5)  # the first five frames of every layer
print(f"{name}: {layer.shape[1]} frames, of all layers {every.nbytes:,} bytes")

equal = [1 / len(store.layers)] * len(store.layers)
mixed = store.weighted_sum(name, equal)  # float32 [n_frames, dim]
print(f"weighted sum {tuple(mixed.shape)}, values {mixed.min():.2f} to {mixed.max():.2f}")

means = store.pooled()  # float32 [n_utterances, n_layers, dim]
print(f"pooled means {tuple(means.shape)}, columns {store.metadata.column_names}")

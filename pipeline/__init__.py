"""Strata: extract every layer of a speech encoder once, read any layer for ever.

The public names load what they need when they are first used: a trainer that opens a store pays
for torch, zarr and pyarrow, not for Ray or datasets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.encoder.encoder import SpeechEncoder, load_encoder
    from pipeline.store.reader import FeatureStore, open_store
    from pipeline.train.batches import BatchPolicy
    from pipeline.train.collapse import collapse
    from pipeline.train.dataset import Batch, FeatureDataset, collate
    from pipeline.train.fetch import FeatureStream
    from pipeline.train.heads import FramewiseLinear, PooledLinear, WeightedSum
    from pipeline.train.loader import FeatureLoader, make_loader

_HOMES = {
    "Batch": "pipeline.train.dataset",
    "BatchPolicy": "pipeline.train.batches",
    "FeatureDataset": "pipeline.train.dataset",
    "FeatureLoader": "pipeline.train.loader",
    "FeatureStore": "pipeline.store.reader",
    "FeatureStream": "pipeline.train.fetch",
    "FramewiseLinear": "pipeline.train.heads",
    "PooledLinear": "pipeline.train.heads",
    "SpeechEncoder": "pipeline.encoder.encoder",
    "WeightedSum": "pipeline.train.heads",
    "collapse": "pipeline.train.collapse",
    "collate": "pipeline.train.dataset",
    "load_encoder": "pipeline.encoder.encoder",
    "make_loader": "pipeline.train.loader",
    "open_store": "pipeline.store.reader",
}

__all__ = [
    "Batch",
    "BatchPolicy",
    "FeatureDataset",
    "FeatureLoader",
    "FeatureStore",
    "FeatureStream",
    "FramewiseLinear",
    "PooledLinear",
    "SpeechEncoder",
    "WeightedSum",
    "collapse",
    "collate",
    "load_encoder",
    "make_loader",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

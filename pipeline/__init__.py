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

_HOMES = {
    "FeatureStore": "pipeline.store.reader",
    "SpeechEncoder": "pipeline.encoder.encoder",
    "load_encoder": "pipeline.encoder.encoder",
    "open_store": "pipeline.store.reader",
}

__all__ = ["FeatureStore", "SpeechEncoder", "load_encoder", "open_store"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

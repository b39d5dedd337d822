"""Strata: extract every layer of a speech encoder once, read any layer for ever.

The public names load what they need when they are first used: a trainer that opens a store pays
for torch, zarr and pyarrow, not for Ray or datasets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.comparing.interactive.result import ComparisonResult
    from pipeline.comparing.interactive.sweeping import report, sweep
    from pipeline.encoders.encoder import SpeechEncoder
    from pipeline.encoders.loading import load_encoder
    from pipeline.encoders.modules.registration import register_encoder
    from pipeline.feed.batch import Batch, collate
    from pipeline.feed.batching import BatchPolicy
    from pipeline.feed.dataset import FeatureDataset
    from pipeline.feed.frames.batch import FrameBatch
    from pipeline.feed.frames.loader import FrameLoader, make_frame_loader
    from pipeline.feed.frames.measuring import frame_statistics
    from pipeline.feed.loader import FeatureLoader, FeatureStream, make_loader
    from pipeline.feed.mixture import MixedLoader, mix
    from pipeline.heads.modules import FramewiseLinear, PooledLinear, WeightedSum
    from pipeline.heads.networks import FramewiseLSTM, FramewiseMLP, PooledAttentive
    from pipeline.online.cached import CachedEncoder, cached
    from pipeline.online.opening import open_or_extract
    from pipeline.predict.predictor import Predictor
    from pipeline.probing.interactive.result import SweepResult
    from pipeline.spans.frame_labels import FrameLabels, frame_labels
    from pipeline.spans.placing import PlacedSpans, place_spans
    from pipeline.spans.pooling import iter_pooled_spans, pool_spans
    from pipeline.spans.reading import read_spans
    from pipeline.spans.table import Spans
    from pipeline.store.format.codebook import Codebook
    from pipeline.store.format.geometry import FrameGeometry
    from pipeline.store.frame_statistics import FrameStatistics
    from pipeline.store.read.features import FeatureStore
    from pipeline.store.read.opening import open_store
    from pipeline.tokens.quality import token_quality
    from pipeline.tokens.run import tokenize
    from pipeline.transforms.collapse import collapse
    from pipeline.transforms.copy.run import copy_stores
    from pipeline.transforms.copy.settings import CopySettings
    from pipeline.transforms.drop.run import drop
    from pipeline.transforms.export.run import export
    from pipeline.transforms.push.run import push

_HOMES = {
    "Batch": "pipeline.feed.batch",
    "BatchPolicy": "pipeline.feed.batching",
    "CachedEncoder": "pipeline.online.cached",
    "Codebook": "pipeline.store.format.codebook",
    "ComparisonResult": "pipeline.comparing.interactive.result",
    "CopySettings": "pipeline.transforms.copy.settings",
    "FeatureDataset": "pipeline.feed.dataset",
    "FeatureLoader": "pipeline.feed.loader",
    "FeatureStore": "pipeline.store.read.features",
    "FeatureStream": "pipeline.feed.loader",
    "FrameBatch": "pipeline.feed.frames.batch",
    "FrameGeometry": "pipeline.store.format.geometry",
    "FrameLabels": "pipeline.spans.frame_labels",
    "FrameLoader": "pipeline.feed.frames.loader",
    "FrameStatistics": "pipeline.store.frame_statistics",
    "FramewiseLSTM": "pipeline.heads.networks",
    "FramewiseLinear": "pipeline.heads.modules",
    "FramewiseMLP": "pipeline.heads.networks",
    "MixedLoader": "pipeline.feed.mixture",
    "PlacedSpans": "pipeline.spans.placing",
    "PooledAttentive": "pipeline.heads.networks",
    "PooledLinear": "pipeline.heads.modules",
    "Predictor": "pipeline.predict.predictor",
    "Spans": "pipeline.spans.table",
    "SpeechEncoder": "pipeline.encoders.encoder",
    "SweepResult": "pipeline.probing.interactive.result",
    "WeightedSum": "pipeline.heads.modules",
    "cached": "pipeline.online.cached",
    "collapse": "pipeline.transforms.collapse",
    "collate": "pipeline.feed.batch",
    "copy_stores": "pipeline.transforms.copy.run",
    "drop": "pipeline.transforms.drop.run",
    "export": "pipeline.transforms.export.run",
    "frame_labels": "pipeline.spans.frame_labels",
    "frame_statistics": "pipeline.feed.frames.measuring",
    "iter_pooled_spans": "pipeline.spans.pooling",
    "load_encoder": "pipeline.encoders.loading",
    "make_frame_loader": "pipeline.feed.frames.loader",
    "make_loader": "pipeline.feed.loader",
    "mix": "pipeline.feed.mixture",
    "open_or_extract": "pipeline.online.opening",
    "open_store": "pipeline.store.read.opening",
    "place_spans": "pipeline.spans.placing",
    "pool_spans": "pipeline.spans.pooling",
    "push": "pipeline.transforms.push.run",
    "read_spans": "pipeline.spans.reading",
    "register_encoder": "pipeline.encoders.modules.registration",
    "report": "pipeline.comparing.interactive.sweeping",
    "sweep": "pipeline.comparing.interactive.sweeping",
    "token_quality": "pipeline.tokens.quality",
    "tokenize": "pipeline.tokens.run",
}

__all__ = [
    "Batch",
    "BatchPolicy",
    "CachedEncoder",
    "Codebook",
    "ComparisonResult",
    "CopySettings",
    "FeatureDataset",
    "FeatureLoader",
    "FeatureStore",
    "FeatureStream",
    "FrameBatch",
    "FrameGeometry",
    "FrameLabels",
    "FrameLoader",
    "FrameStatistics",
    "FramewiseLSTM",
    "FramewiseLinear",
    "FramewiseMLP",
    "MixedLoader",
    "PlacedSpans",
    "PooledAttentive",
    "PooledLinear",
    "Predictor",
    "Spans",
    "SpeechEncoder",
    "SweepResult",
    "WeightedSum",
    "cached",
    "collapse",
    "collate",
    "copy_stores",
    "drop",
    "export",
    "frame_labels",
    "frame_statistics",
    "iter_pooled_spans",
    "load_encoder",
    "make_frame_loader",
    "make_loader",
    "mix",
    "open_or_extract",
    "open_store",
    "place_spans",
    "pool_spans",
    "push",
    "read_spans",
    "register_encoder",
    "report",
    "sweep",
    "token_quality",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

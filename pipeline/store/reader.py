"""Old path of `FeatureStore`, which stores pickled by version 0.1.0 name."""

from pipeline.store.read.features import FeatureStore

__all__ = ["FeatureStore"]

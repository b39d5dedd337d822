"""Compatibility import for stores pickled by version 0.1.0."""

from pipeline.store.read.features import FeatureStore

__all__ = ["FeatureStore"]

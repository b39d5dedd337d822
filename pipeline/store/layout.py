"""Compatibility import for stores pickled by version 0.1.0."""

from pipeline.store.format.layout import Layout

__all__ = ["Layout"]

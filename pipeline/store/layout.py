"""Old path of `Layout`, which stores pickled by version 0.1.0 name."""

from pipeline.store.format.layout import Layout

__all__ = ["Layout"]

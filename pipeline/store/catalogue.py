"""Compatibility import for stores pickled by version 0.1.0."""

from pipeline.store.read.catalogue import Catalogue

__all__ = ["Catalogue"]

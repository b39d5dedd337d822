"""Compatibility import for stores pickled by version 0.1.0."""

from pipeline.store.read.final_norm import FinalNorm

__all__ = ["FinalNorm"]

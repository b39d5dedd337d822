"""Old path of `Catalogue`, which stores pickled by version 0.1.0 name."""

from pipeline.store.read.catalogue import Catalogue

__all__ = ["Catalogue"]

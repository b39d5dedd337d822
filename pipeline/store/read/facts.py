"""What a store is: where it is kept, its layers and shapes, and the form of its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend
from pipeline.store.format.codecs import Codec
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layout import Layout
from pipeline.store.read.catalogue import ALONE, Place
from pipeline.store.read.shards import ShardReader


class StoreFacts:
    """Properties of an opened store that do not depend on its utterances.

    Attributes:
        attributes: Attributes of the Zarr group: format version, layers, identity, provenance.
    """

    attributes: dict[str, Any]
    _backend: Backend
    _layout: Layout
    _shards: ShardReader
    _place: Place = ALONE  # also of stores that an earlier version has pickled

    @property
    def backend(self) -> Backend:
        """Storage of the store; several stores have `backends`."""
        return self._backend

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Storage of each store."""
        return (self._backend,)

    @property
    def location(self) -> str:
        """Where the store is, or the first of several, for messages."""
        return str(self._backend)

    @property
    def id_prefixes(self) -> tuple[str, ...]:
        """What comes before the ids of each store."""
        return (self._place.prefix,)

    @property
    def root(self) -> Path:
        """Folder of the store.

        Raises:
            StoreError: The store is not in a folder of this machine; see `backend`.
        """
        path = self.backend.local_path("")
        if path is None:
            raise StoreError(f"store {self._backend} is not in a folder of this machine")
        return path

    @property
    def _root(self) -> Path:
        return self.root

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that can be read, in the order of the layer axis; dropped ones are left out."""
        return tuple(self._layout.axes)

    @property
    def feature_dim(self) -> int:
        """Features per frame."""
        return self._layout.dim

    @property
    def geometry(self) -> FrameGeometry:
        """Sample rate, hop and receptive field of the encoder."""
        return FrameGeometry.from_attributes(self.attributes)

    @property
    def codec(self) -> Codec:
        """Format of the stored frame values."""
        return self._layout.codec

    def check_frames(self) -> None:
        """Check that frames can be read; a store may keep pooled statistics only.

        Raises:
            StoreError: They cannot.
        """
        self._shards.check_frames()

    @property
    def keeps_frames(self) -> bool:
        """Whether frames can be read; a store may keep pooled statistics only."""
        return self._layout.keeps_frames

    @property
    def statistics(self) -> tuple[str, ...]:
        """Statistics over the frames of an utterance that the store keeps; see `pooled`."""
        return self._layout.statistics if self._layout.keeps_pooled else ()

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second of audio."""
        return float(self.attributes["frame_rate_hz"])

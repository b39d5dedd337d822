"""What a store is: where it is kept, its form, and the sizes and places of its utterances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend
from pipeline.store.format.codecs import Codec
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layers import is_collapsed, label_of
from pipeline.store.format.layout import Layout
from pipeline.store.read.catalogue import ALONE, Catalogue, IntArray, Place
from pipeline.store.read.shards import ShardReader


class StoreFacts:
    """Properties of an opened store that need no ids and no columns.

    Attributes:
        attributes: Attributes of the Zarr group: format version, layers, identity, provenance.
    """

    attributes: dict[str, Any]
    _backend: Backend
    _layout: Layout
    _shards: ShardReader
    _catalogue: Catalogue
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
    def layer_names(self) -> tuple[str, ...]:
        """Name of each layer of `layers`, which readers take in place of its number.

        `conv` is the output of the convolution stack, `input` the input of block 1, `block_6` the
        output of block 6, `final_norm` that of the last block after the model's final norm,
        `collapsed` the weighted sum that `collapse` has written. Layers of other models have the
        names of their modules.
        """
        return tuple(self._layout.kept_names.values())

    @property
    def named_layers(self) -> dict[int, str]:
        """Names of `layers`, by number."""
        return dict(self._layout.kept_names)

    @property
    def layer_labels(self) -> dict[int, str]:
        """What tables call each layer: its number if it is 0 or a block, else its name."""
        return {layer: label_of(layer, name) for layer, name in self._layout.kept_names.items()}

    @property
    def is_collapsed(self) -> bool:
        """Whether the only layer is a weighted sum that `collapse` has written."""
        return is_collapsed(self.attributes)

    def numbers_at(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of the layers at positions on the layer axis."""
        return tuple(self._layout.layers[axis] for axis in axes)

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

    @property
    def frame_counts(self) -> IntArray:
        """Frames of every utterance: int64 [n_utterances]."""
        return self._catalogue.frame_counts

    @property
    def slots(self) -> IntArray:
        """Slot of the first frame of each utterance: int64 [n_utterances].

        Slots of different stores have different numbers.
        """
        return self._catalogue.slot[self._catalogue.first_piece[:-1]].astype(np.int64)

    @property
    def store_numbers(self) -> IntArray:
        """Position in `backends` of the store of each utterance: int64 [n_utterances]."""
        return self._catalogue.store_numbers

    def piece_places(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return where all pieces are, in the order of the utterances.

        Returns:
            Position of the utterance, slot, first frame within the slot and number of frames of
            each piece, int64 [n_pieces].
        """
        return self._catalogue.piece_places()

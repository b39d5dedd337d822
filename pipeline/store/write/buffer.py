"""A unit's features in memory, with their checksums and pooled means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.store.format.codecs import Stored
from pipeline.store.format.layout import Layout
from pipeline.store.format.pooling import pool

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
"""Returns a new contiguous array of a shape and dtype, with undefined content."""
ALL_LAYERS = slice(None)


class UnitBuffer:
    """The features of one unit in memory, laid out as in the shards.

    It is reused for every unit: call `start` with the number of frames, fill or `blank` each
    utterance, `seal` it, and pass the buffer to a `SlotWriter`.

    Args:
        layout: Shapes of the store's arrays.
        allocate: Allocates `frames`. A device copies straight into page-locked memory only.

    Attributes:
        frames: Stored values [n_layers, frames_per_unit, dim], of the codec's dtype.
        pooled: float32 [utterances_per_slot, n_layers, dim].
    """

    def __init__(self, layout: Layout, allocate: Allocate = np.empty) -> None:
        self.layout = layout
        self.frames: Stored = allocate(
            (layout.n_layers, layout.frames_per_unit, layout.dim), layout.codec.dtype
        )
        self.pooled: npt.NDArray[np.float32] = np.empty(
            (layout.utterances_per_slot, layout.n_layers, layout.dim), np.float32
        )

    def start(self, n_frames: int) -> None:
        """Begin a unit of `n_frames`; fill the frames after them, and all means."""
        self.pooled.fill(np.nan)
        self.blank(n_frames, self.layout.frames_per_unit)

    def blank(self, start: int, stop: int) -> None:
        """Fill frames that belong to no utterance with the codec's fill."""
        self.frames[:, start:stop].fill(self.layout.codec.fill)

    def seal(
        self,
        position: int,
        start: int,
        stop: int,
        means: npt.NDArray[np.float32] | None = None,
    ) -> tuple[int, ...]:
        """Compute the means and checksums of an utterance whose frames are in the buffer.

        The means are those of the stored values, so that they can be verified from the store.

        Args:
            position: Position of the utterance in the unit.
            start: Its first frame, within the slot.
            stop: One past its last frame.
            means: Means of its stored values, float32 `[n_layers, dim]`; None computes them.

        Returns:
            crc32c of the stored bytes of each layer.
        """
        self.pool(position, start, stop, means)
        return self.checksums(start, stop)

    def pool(
        self,
        position: int,
        start: int,
        stop: int,
        means: npt.NDArray[np.float32] | None = None,
        layers: slice = ALL_LAYERS,
    ) -> None:
        """Compute the means of an utterance as `seal` does, of some positions on the layer axis."""
        pooled = self.pooled[position, layers]
        pooled[...] = pool(self.frames[layers, start:stop]) if means is None else means[layers]

    def checksums(self, start: int, stop: int, layers: slice = ALL_LAYERS) -> tuple[int, ...]:
        """Return crc32c of frames [start, stop), of some positions on the layer axis."""
        return tuple(crc32c(layer.data) for layer in self.frames[layers, start:stop])

"""A unit's features in memory, with their checksums and pooled statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.format.codecs import FloatArray, Stored, checksum
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
        pooled: Statistics, float32 [utterances_per_slot, n_statistics, n_layers, dim].
        scales: What decoding needs, float32 [utterances_per_slot, n_layers, n_scales, dim].
    """

    def __init__(self, layout: Layout, allocate: Allocate = np.empty) -> None:
        self.layout = layout
        self.frames: Stored = allocate(
            (layout.n_layers, layout.frames_per_unit, layout.dim), layout.codec.dtype
        )
        n_utterances, n_layers, dim = layout.utterances_per_slot, layout.n_layers, layout.dim
        n_statistics, n_scales = len(layout.statistics), layout.codec.n_scales
        self.pooled: FloatArray = np.empty((n_utterances, n_statistics, n_layers, dim), np.float32)
        self.scales: FloatArray = np.empty((n_utterances, n_layers, n_scales, dim), np.float32)

    def start(self, n_frames: int) -> None:
        """Begin a unit of `n_frames`; fill the frames after them, all statistics and scales."""
        self.pooled.fill(np.nan)
        self.scales.fill(np.nan)
        self.blank(n_frames, self.layout.frames_per_unit)

    def blank(self, start: int, stop: int) -> None:
        """Fill frames that belong to no utterance with the codec's fill."""
        self.frames[:, start:stop].fill(self.layout.codec.fill)

    def drop(self, position: int, start: int, stop: int) -> None:
        """Blank the frames and scales of an utterance that is not stored."""
        self.blank(start, stop)
        self.scales[position].fill(np.nan)

    def clear_dropped(self) -> None:
        """Clear statistics and scales of the layers that were dropped."""
        axes = self.layout.dropped_axes
        self.pooled[:, :, axes] = np.nan
        self.scales[:, axes] = np.nan

    def seal(
        self,
        position: int,
        start: int,
        stop: int,
        statistics: FloatArray | None = None,
    ) -> tuple[int, ...]:
        """Compute the statistics and checksums of an utterance whose frames are in the buffer.

        The statistics are those of the stored values, so that they can be verified from the store.

        Args:
            position: Position of the utterance in the unit.
            start: Its first frame, within the slot.
            stop: One past its last frame.
            statistics: Those of its stored values, float32 `[n_statistics, n_layers, dim]`; None
                computes them.

        Returns:
            crc32c of the stored bytes of each layer; see `checksums`.
        """
        self.pool(position, start, stop, statistics)
        return self.checksums(position, start, stop)

    def pool(
        self,
        position: int,
        start: int,
        stop: int,
        statistics: FloatArray | None = None,
        layers: slice = ALL_LAYERS,
    ) -> None:
        """Compute statistics of an utterance as `seal` does, of some layers of the layer axis."""
        if statistics is None:
            codec, names = self.layout.codec, self.layout.statistics
            frames, scales = self.frames[layers, start:stop], self.scales[position, layers]
            self.pooled[position, :, layers] = pool(codec, frames, scales, names)
        else:
            self.pooled[position, :, layers] = statistics[:, layers]

    def checksums(
        self, position: int, start: int, stop: int, layers: slice = ALL_LAYERS
    ) -> tuple[int, ...]:
        """Return the checksums of an utterance, of some positions on the layer axis.

        They are crc32c of its frames [start, stop) and its scales, or, if the store keeps no
        frames, of its statistics.
        """
        if not self.layout.keeps_frames:
            pooled = self.pooled[position, :, layers].swapaxes(0, 1)
            return tuple(checksum(layer) for layer in pooled)
        frames, scales = self.frames[layers, start:stop], self.scales[position, layers]
        return tuple(checksum(*layer) for layer in zip(frames, scales, strict=True))

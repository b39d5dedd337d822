"""A unit's features in memory, with their checksums and pooled means."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from pipeline.store.format.codecs import Stored
from pipeline.store.format.layout import Layout


class UnitBuffer:
    """The features of one unit in memory, laid out as in the shards.

    It is reused for every unit: call `start` with the number of frames, fill or `blank` each
    utterance, `seal` it, and pass the buffer to a `SlotWriter`.

    Attributes:
        frames: Stored values [n_layers, frames_per_unit, dim], of the codec's dtype.
        pooled: float32 [utterances_per_slot, n_layers, dim].
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.frames: Stored = np.empty(
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
        stored = self.frames[:, start:stop]
        self.pooled[position] = pool(stored) if means is None else means
        return tuple(crc32c(layer) for layer in stored)


def pool(stored: Stored) -> npt.NDArray[np.float32]:
    """Return means over frames, [n_layers, n_frames, dim] → [n_layers, dim]; sums are float64."""
    mean = stored.mean(axis=1, dtype=np.float64)
    return np.asarray(mean, np.float32)


def crc32c(array: npt.NDArray[Any]) -> int:
    """Return the checksum of the bytes of a contiguous array."""
    return int(google_crc32c.value(array))

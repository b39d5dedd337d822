"""The frames of a dataset on one axis, in the order of the disk, and the blocks that are shuffled.

Pure arithmetic on the places of utterances, without reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FrameAxis:
    """All frames of a dataset, numbered piece by piece.

    Attributes:
        utterance: Position in the dataset of the utterance of each piece, int64 [n_pieces].
        first: First frame of each piece, within its utterance, int64 [n_pieces].
        slot: Slot of each piece, int64 [n_pieces].
        start: First frame of each piece, within its slot, int64 [n_pieces].
        ends: Number of the first frame of each piece, then the number of frames, int64
            [n_pieces + 1].
    """

    utterance: IntArray
    first: IntArray
    slot: IntArray
    start: IntArray
    ends: IntArray

    @classmethod
    def of(cls, places: tuple[IntArray, IntArray, IntArray, IntArray], by_disk: bool) -> FrameAxis:
        """Number the frames of a store.

        Args:
            places: `FeatureStore.piece_places`.
            by_disk: Whether in the order of the disk; else in the order of the dataset.
        """
        utterance, slot, start, n_frames = places
        before = np.cumsum(n_frames) - n_frames
        is_first = np.diff(utterance, prepend=-1) != 0
        first = before - np.maximum.accumulate(np.where(is_first, before, 0))
        if by_disk:
            order = np.lexsort((start, slot))
            utterance, slot, start, first, n_frames = (
                x[order] for x in (utterance, slot, start, first, n_frames)
            )
        return cls(utterance, first, slot, start, np.concatenate([[0], np.cumsum(n_frames)]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def cuts(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Return what frames of which utterances ranges of the axis are, in order.

        Args:
            low: First number of each range, int64 [n_ranges].
            high: One past the last number of each, above `low`.

        Returns:
            For each cut the position of the utterance, its first frame, and the number of frames.
        """
        piece, skipped, counts, _ = self._pieces(low, high)
        return self.utterance[piece], self.first[piece] + skipped, counts

    def runs(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Return where ranges of the axis are in the slots, in order.

        Args:
            low: First number of each range, int64 [n_ranges].
            high: One past the last number of each, above `low`.

        Returns:
            For each run of frames that are consecutive in a slot: the slot, the first frame within
            it, and the number of frames.
        """
        piece, skipped, counts, _ = self._pieces(low, high)
        slot, start = self.slot[piece], self.start[piece] + skipped
        is_next = (slot[1:] == slot[:-1]) & (start[1:] == start[:-1] + counts[:-1])
        begins = np.flatnonzero(np.concatenate([[True], ~is_next])[: len(slot)])
        return (
            slot[begins],
            start[begins],
            np.add.reduceat(counts, begins) if len(begins) else counts,
        )

    @cached_property
    def first_frames(self) -> IntArray:
        """Number of the first frame of each utterance, if the axis is in the dataset's order."""
        n_utterances = int(self.utterance[-1]) + 1 if len(self.utterance) else 0
        return self.ends[np.searchsorted(self.utterance, np.arange(n_utterances))]

    def places(
        self, low: IntArray, high: IntArray
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return where ranges of the axis are in the slots, piece by piece.

        Args:
            low: First number of each range, int64 [n_ranges].
            high: One past the last number of each.

        Returns:
            For each piece of a range the number of the range, the slot, the first frame within it,
            and the number of frames.
        """
        is_full = high > low
        piece, skipped, counts, number = self._pieces(low[is_full], high[is_full])
        owner = np.flatnonzero(is_full)[number]
        return owner, self.slot[piece], self.start[piece] + skipped, counts

    def _pieces(
        self, low: IntArray, high: IntArray
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return which pieces have ranges of the axis, frames before them in these, and counts.

        Returns:
            Also the number of the range of each.
        """
        begin = np.searchsorted(self.ends, low, side="right") - 1
        n_pieces = np.searchsorted(self.ends, high, side="left") - begin
        piece = counted(begin, n_pieces)
        number = np.repeat(np.arange(len(low)), n_pieces)
        low, high = low[number], high[number]
        start = np.maximum(low, self.ends[piece])
        stop = np.minimum(high, self.ends[piece + 1])
        is_full = stop > start  # a piece without frames has none
        found = piece, start - self.ends[piece], stop - start, number
        piece, skipped, counts, number = (array[is_full] for array in found)
        return piece, skipped, counts, number

    @cached_property
    def _slot_bounds(self) -> IntArray:
        """First frame of each slot on the axis, then the number of frames."""
        change = np.flatnonzero(np.diff(self.slot)) + 1
        return np.unique(self.ends[np.concatenate([[0], change, [len(self.slot)]])])

    def blocks(self, block_frames: int | None) -> IntArray:
        """Return the bounds of the blocks, int64 [n_blocks + 1]: frames that are read together.

        Args:
            block_frames: Largest number of frames of a block, which is in one slot; None makes a
                block of each slot.
        """
        bounds = self._slot_bounds
        if block_frames is None:
            return bounds
        counts = -(-np.diff(bounds) // block_frames)
        inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.append(np.repeat(bounds[:-1], counts) + inner * block_frames, bounds[-1])


def counted(begin: IntArray, counts: IntArray) -> IntArray:
    """Return begin[0], begin[0] + 1, … (counts[0] of them), begin[1], …, int64 [counts.sum()]."""
    offset = np.repeat(begin - (np.cumsum(counts) - counts), counts)
    return offset + np.arange(len(offset))

"""Portions of an epoch: which ranges of which objects some batches need. Pure arithmetic.

Batches of a shuffle window need most bytes of its units, in any order. So a portion, which is as
many batches of a window as fit in memory, is planned at once: what its batches need is merged to
runs of frames, near ones to one, and the runs are cut into chunks of a few megabytes. Each chunk is
one request.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline.feed.batching import BatchSpec
from pipeline.feed.frames.axis import FrameAxis, IntArray, counted

WIDE_GAP_BYTES = 1 << 20
"""Bytes between two ranges that are rather read than requested apart."""
NARROW_GAP_BYTES = 64 << 10
"""The same if the wide gaps of a portion would be more than `MOST_WASTED` of what is fetched, as
of crops, or of a rank's share."""
MOST_WASTED = 0.25
MOST_CHUNKS = 1 << 15
"""Chunks of a portion at most."""
_SLOT_FRAMES = 1 << 40  # more than a slot has


class Chunk(NamedTuple):
    """What is fetched by one request.

    Attributes:
        axis: Position on the layer axis, or `SCALES`.
        slot: The slot.
        start: First byte within the object.
        stop: One past the last byte.
        place: Where it goes, in bytes from the start of the portion.
    """

    axis: int
    slot: int
    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class Needed:
    """What a batch needs of its portion.

    Attributes:
        ranges: Axis, slot, first byte, one past the last byte, and place within the portion, of
            each range, int64 [n_ranges, 5].
        chunks: First and one past the last chunk of each range, int64 [n_ranges, 2].
    """

    ranges: IntArray
    chunks: IntArray


@dataclass(frozen=True)
class Form:
    """How the objects of a dataset look.

    Attributes:
        axes: Positions of its layers on the layer axis.
        frame_bytes: Bytes of a stored frame, one layer.
        scale_bytes: Bytes of the chunk of scales of a slot; 0 if there is none.
        scales: In place of a position on the layer axis: the chunk of scales.
        waits: Returns whether reads of a slot wait for a server.
    """

    axes: tuple[int, ...]
    frame_bytes: int
    scale_bytes: int
    scales: int
    waits: Callable[[int], bool]


class Portion:
    """The ranges that some batches need, and where they are put.

    A batch that needs nothing of a server has no ranges.
    """

    def __init__(
        self, axis: FrameAxis, form: Form, specs: Sequence[BatchSpec], chunk_bytes: int
    ) -> None:
        """Plan some batches.

        Args:
            axis: The frames of the dataset, in its order.
            form: Its objects.
            specs: The batches.
            chunk_bytes: Bytes of a chunk at most.
        """
        self.n_batches = len(specs)
        self._form = form
        self._cuts = _Cuts.of(axis, form, specs)
        most = max(1, chunk_bytes // form.frame_bytes)
        runs = self._cuts.merged(WIDE_GAP_BYTES // form.frame_bytes, most)
        if self._cuts.n_frames < (1 - MOST_WASTED) * runs.n_frames:
            runs = self._cuts.merged(NARROW_GAP_BYTES // form.frame_bytes, most)
        self._runs = runs
        self._layer_bytes = runs.n_frames * form.frame_bytes
        self._scale_slots = self._slots_with_scales()
        self._scale_bounds = [
            (start, min(start + chunk_bytes, form.scale_bytes))
            for start in range(0, form.scale_bytes, chunk_bytes)
        ]

    def __eq__(self, other: object) -> bool:
        """Return whether the same chunks are at the same places."""
        return (
            isinstance(other, Portion)
            and self._form == other._form
            and np.array_equal(self._scale_slots, other._scale_slots)
            and all(map(np.array_equal, self._runs.chunk_table, other._runs.chunk_table))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def n_bytes(self) -> int:
        """Bytes of all ranges."""
        frames = self._layer_bytes * len(self._form.axes)
        return frames + len(self._scale_slots) * self._form.scale_bytes

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        of_scales = len(self._scale_slots) * len(self._scale_bounds)
        return len(self._form.axes) * self._runs.n_chunks + of_scales

    def chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Yield each chunk with its number, those that are needed first before others."""
        form, runs = self._form, self._runs
        for i, slot in enumerate(self._scale_slots.tolist()):
            for j, (start, stop) in enumerate(self._scale_bounds):
                number = self._first_of_scales + i * len(self._scale_bounds) + j
                place = self._place_of_scales(i) + start
                yield number, Chunk(form.scales, slot, start, stop, place)
        size = form.frame_bytes
        for number in np.argsort(runs.first_batch, kind="stable").tolist():
            slot, first, last, place = (int(column[number]) for column in runs.chunk_table)
            for k, axis in enumerate(form.axes):
                at = k * self._layer_bytes + place * size
                chunk = Chunk(axis, slot, first * size, last * size, at)
                yield k * runs.n_chunks + number, chunk

    def needed(self, batch: int) -> Needed:
        """Return what a batch needs, given its number in the portion."""
        form, runs = self._form, self._runs
        low, high = runs.of_batch(batch)
        slot, start, _, place = (column[low] for column in runs.chunk_table)
        stop = runs.chunk_table[2][high - 1]
        ranges = np.empty((len(form.axes), len(low), 5), np.int64)
        layer = np.arange(len(form.axes))[:, None]
        ranges[:, :, 0], ranges[:, :, 1] = np.array(form.axes)[:, None], slot
        ranges[:, :, 2], ranges[:, :, 3] = start * form.frame_bytes, stop * form.frame_bytes
        ranges[:, :, 4] = layer * self._layer_bytes + place * form.frame_bytes
        chunks = np.stack([low, high], axis=-1) + layer[:, :, None] * runs.n_chunks
        of_scales = np.flatnonzero(np.isin(self._scale_slots, slot))
        scales = np.empty((len(of_scales), 5), np.int64)
        scales[:, 0], scales[:, 1] = form.scales, self._scale_slots[of_scales]
        scales[:, 2], scales[:, 3] = 0, form.scale_bytes
        scales[:, 4] = [self._place_of_scales(int(i)) for i in of_scales]
        n = len(self._scale_bounds)
        first = self._first_of_scales + of_scales * n
        return Needed(
            np.concatenate([ranges.reshape(-1, 5), scales]),
            np.concatenate([chunks.reshape(-1, 2), np.stack([first, first + n], axis=-1)]),
        )

    @property
    def _first_of_scales(self) -> int:
        return len(self._form.axes) * self._runs.n_chunks

    def _place_of_scales(self, number: int) -> int:
        return self._layer_bytes * len(self._form.axes) + number * self._form.scale_bytes

    def _slots_with_scales(self) -> IntArray:
        """Return the slots whose scales are fetched: not if they are a large share of the bytes."""
        slots = np.unique(self._runs.slot)
        if not self._form.scale_bytes:
            return slots[:0]
        frames = np.bincount(
            np.searchsorted(slots, self._runs.slot),
            self._runs.stop - self._runs.start,
            minlength=len(slots),
        )
        of_frames = frames * self._form.frame_bytes * len(self._form.axes)
        return slots[self._form.scale_bytes <= MOST_WASTED * of_frames]


@dataclass(frozen=True)
class _Cuts:
    """What batches need, by place on disk: the batch, the slot, and frames of it, [n_cuts]."""

    batch: IntArray
    slot: IntArray
    first: IntArray
    stop: IntArray

    @classmethod
    def of(cls, axis: FrameAxis, form: Form, specs: Sequence[BatchSpec]) -> _Cuts:
        positions, starts, lengths = (
            np.concatenate(list(parts) or [np.zeros(0, np.int64)])
            for parts in (
                [spec.positions for spec in specs],
                [spec.starts for spec in specs],
                [spec.lengths for spec in specs],
            )
        )
        batch = np.repeat(np.arange(len(specs)), [len(spec.positions) for spec in specs])
        low = axis.first_frames[positions] + starts
        number, slot, first, counts = axis.places(low, low + lengths)
        distinct, index = np.unique(slot, return_inverse=True)
        waits = np.array([form.waits(int(item)) for item in distinct], bool)[index]
        order = np.lexsort((first[waits], slot[waits]))
        found = batch[number][waits], slot[waits], first[waits], (first + counts)[waits]
        return cls(*(array[order] for array in found))

    @property
    def n_frames(self) -> int:
        """Frames that are needed."""
        return int((self.stop - self.first).sum())

    def merged(self, gap: int, most: int) -> _Runs:
        """Merge what is near to each other.

        Args:
            gap: Frames between two cuts that are merged, at most.
            most: Frames of a chunk, at most.
        """
        rank = np.cumsum(np.diff(self.slot, prepend=self.slot[:1]) != 0) * _SLOT_FRAMES
        reach = np.maximum.accumulate(rank + self.stop)
        is_new = np.ones(len(self.slot), bool)
        is_new[1:] = (rank + self.first)[1:] > reach[:-1] + gap
        begins = np.flatnonzero(is_new)
        run = np.cumsum(is_new) - 1
        start = self.first[begins]
        stop = np.maximum.reduceat(self.stop, begins) if len(begins) else start
        n_chunks = -(-(stop - start) // most)
        size = -(-(stop - start) // np.maximum(n_chunks, 1))
        first_chunk = np.cumsum(n_chunks) - n_chunks
        low = first_chunk[run] + (self.first - start[run]) // size[run]
        high = first_chunk[run] + (self.stop - 1 - start[run]) // size[run] + 1
        return _Runs(self, self.slot[begins], start, stop, n_chunks, size, low, high)


@dataclass(frozen=True)
class _Runs:
    """Runs of consecutive frames of slots, and their chunks; the same for every layer.

    Attributes:
        cuts: What is needed.
        slot: Of each run.
        start: First frame of each run within its slot.
        stop: One past the last frame of each.
        chunks_of: Number of chunks of each.
        size: Frames of a chunk of each; the last one may have fewer.
        low: First chunk of each cut.
        high: One past the last chunk of each cut.
    """

    cuts: _Cuts
    slot: IntArray
    start: IntArray
    stop: IntArray
    chunks_of: IntArray
    size: IntArray
    low: IntArray
    high: IntArray

    @property
    def n_frames(self) -> int:
        """Frames of all runs."""
        return int((self.stop - self.start).sum())

    @property
    def n_chunks(self) -> int:
        """Chunks of one layer."""
        return int(self.chunks_of.sum())

    @cached_property
    def chunk_table(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Slot, first frame, one past the last, and place in frames, of each chunk."""
        run = np.repeat(np.arange(len(self.slot)), self.chunks_of)
        number = counted(np.zeros_like(self.chunks_of), self.chunks_of)
        first = self.start[run] + number * self.size[run]
        last = np.minimum(first + self.size[run], self.stop[run])
        counts = last - first
        return self.slot[run], first, last, np.cumsum(counts) - counts

    @property
    def first_batch(self) -> IntArray:
        """The first batch that needs each chunk."""
        counts = self.high - self.low
        first: IntArray = np.full(self.n_chunks, len(self.cuts.batch), np.int64)
        np.minimum.at(first, counted(self.low, counts), np.repeat(self.cuts.batch, counts))
        return first

    def of_batch(self, batch: int) -> tuple[IntArray, IntArray]:
        """Return the first and one past the last chunk of each range that a batch needs."""
        cuts = np.flatnonzero(self.cuts.batch == batch)
        low, high = self.low[cuts], self.high[cuts]
        if not len(cuts):
            return low, high
        slot, first, last, _ = self.chunk_table
        reach = np.maximum.accumulate(high)
        is_new = np.ones(len(cuts), bool)
        before, after = reach[:-1] - 1, low[1:]
        is_next = (slot[before] == slot[after]) & (last[before] == first[after])
        is_new[1:] = (after > before) & ~is_next
        begins = np.flatnonzero(is_new)
        return low[begins], np.maximum.reduceat(high, begins)


def portions(
    axis: FrameAxis,
    form: Form,
    windows: Iterable[Sequence[BatchSpec]],
    most_bytes: int,
    whole_bytes: int,
    chunk_bytes: int,
) -> Iterator[Portion | int]:
    """Divide an epoch into portions.

    Args:
        axis: The frames of the dataset, in its order.
        form: Its objects.
        windows: The batches of each shuffle window.
        most_bytes: Bytes of a portion at most, if there are several.
        whole_bytes: The same if there is one.
        chunk_bytes: Bytes of a chunk at most.

    Yields:
        Each portion; for a batch that is larger than one alone, the number of batches, 1.
    """
    windows = iter(windows)
    first = list(itertools.islice(windows, 2))
    if len(first) == 1:
        portion = Portion(axis, form, first[0], chunk_bytes)
        if portion.n_bytes <= whole_bytes and portion.n_chunks <= MOST_CHUNKS:
            yield portion
            return
    for specs in itertools.chain(first, windows):
        n_frames = sum(int(spec.lengths.sum()) for spec in specs)
        n_bytes = n_frames * form.frame_bytes * len(form.axes)
        waiting = _divided(specs, -(-n_bytes // most_bytes))
        while waiting:
            some = waiting.pop(0)
            portion = Portion(axis, form, some, chunk_bytes)
            if portion.n_bytes <= most_bytes and portion.n_chunks <= MOST_CHUNKS:
                yield portion
            elif len(some) == 1:
                yield 1
            else:
                waiting[:0] = _divided(some, 2)


def _divided(specs: Sequence[BatchSpec], n_parts: int) -> list[Sequence[BatchSpec]]:
    """Divide batches into parts of as many batches each."""
    n_parts = max(1, min(n_parts, len(specs)))
    bounds = [len(specs) * i // n_parts for i in range(n_parts + 1)]
    return [specs[low:high] for low, high in itertools.pairwise(bounds)]

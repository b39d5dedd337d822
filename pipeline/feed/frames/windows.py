"""Windows of frames in the order of an epoch, read into bounded memory.

Frames are copied straight from maps of the shards to their places in the windows, and batches are
views of a window. So a frame passes the memory once. Where files are not mapped, or values must be
verified or decoded, a block of one layer is read into memory that stays in the CPU's cache first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.feed.batch_reader import borrow
from pipeline.feed.dataset import FeatureDataset
from pipeline.feed.frames.axis import FrameAxis, IntArray
from pipeline.feed.frames.order import BlockOrder, RankOrder, Transfer
from pipeline.store.format.codecs import Stored
from pipeline.store.native.rows import RowPlaces, RowScatter
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.final_norm import FinalNorm
from pipeline.store.read.merged import Cut

READ_BYTES = 1 << 20
"""Bytes of one layer that a thread reads at a time; they should fit in the cache of one core."""
REMOTE_READS = 32
"""Such reads that are made together where they wait for a server, as many as are in flight."""
LABEL_BYTES = 16
"""Bytes of the utterance and the frame number of one frame."""
ORDER_BYTES = 40
"""Bytes that the order of one frame takes while it is read."""
_AHEAD_BYTES = 8 << 20  # of all layers, that are being fetched while others are copied
_ALIGNMENT = 64


@dataclass(frozen=True)
class Window:
    """Frames in the order of the epoch.

    Attributes:
        features: [n_frames, n_layers, dim] of the codec's `value_dtype`.
        labels: Position of the utterance and frame within it, int64 [n_frames, 2].
    """

    features: Stored
    labels: IntArray


@dataclass(frozen=True)
class FrameSource:
    """What frames are read from.

    Attributes:
        store: The utterances.
        axes: Positions on the layer axis of the layers.
        norm: Final LayerNorm of the model, applied to its layer; None for none.
    """

    store: FeatureStore
    axes: tuple[int, ...]
    norm: FinalNorm | None = None

    @classmethod
    def of(cls, dataset: FeatureDataset, layers: Sequence[int | str]) -> FrameSource:
        """Return the source of layers of a dataset.

        Raises:
            StoreError: The store lacks a layer.
        """
        return cls(dataset.store, tuple(dataset.store.axes(layers)), dataset.norm)

    @property
    def is_remote(self) -> bool:
        """Whether a store is no folder of this machine, so that reads may wait for a server."""
        return any(backend.local_path("") is None for backend in self.store.backends)

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame of all layers, as it is read."""
        dtype: np.dtype[Any] = self.store.codec.value_dtype
        return len(self.axes) * self.store.feature_dim * dtype.itemsize


class WindowPool:
    """Memory of windows; it is reused when no reference to a window or a view of it is left."""

    def __init__(self, source: FrameSource, n_frames: int, most: int) -> None:
        """Take no memory yet.

        Args:
            source: What is read.
            n_frames: Frames of the largest window.
            most: Windows whose memory is kept for reuse.
        """
        self._shape = (len(source.axes), source.store.feature_dim)
        self._dtype = source.store.codec.value_dtype
        self._size, self._most = n_frames * math.prod(self._shape), most
        self._spare: list[Stored] = []

    def take(self, n_frames: int) -> Window:
        """Return a window with undefined content."""
        memory = self._spare.pop() if self._spare else _aligned(self._size, self._dtype)
        spare, most = self._spare, self._most

        def release() -> None:
            if len(spare) < most:
                spare.append(memory)

        features = borrow(memory, (n_frames, *self._shape), release)
        return Window(features, np.empty((n_frames, 2), np.int64))


class WindowReader:
    """Reads the windows of an epoch of one rank, with threads that read ahead.

    Use it in a `with` block: at the end its threads stop.
    """

    def __init__(
        self,
        source: FrameSource,
        blocks: BlockOrder,
        order: RankOrder,
        start: int,
        pool: WindowPool,
        n_threads: int,
        first_window: int = 0,
    ) -> None:
        """Start with a window.

        Args:
            source: What to read.
            blocks: The sequence of blocks of the epoch.
            order: Order of the rank's frames.
            start: First frame of the rank in the sequence.
            pool: Memory of the windows.
            n_threads: Threads that read; 0 reads when a window is requested.
            first_window: The first window that is requested.
        """
        self._source, self._blocks, self._order, self._start = source, blocks, order, start
        self._pool = pool
        self._n_threads = n_threads
        self._first = first_window
        self._windows: dict[int, Window] = {}
        self._pending: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(n_threads, "frames") if n_threads else None
        self._n_parts = first_window  # parts before it have no frames of later windows

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._pending.clear()
        self._windows.clear()

    def windows(self) -> Iterator[Window]:
        """Yield the windows; the next one is read ahead while one is in use."""
        for number in range(self._first, self._order.n_windows):
            window = self.take(number)
            self.read_ahead()
            yield window
            del window

    def take(self, number: int) -> Window:
        """Return a window; each may be taken once, in order.

        Raises:
            DamagedError: A shard is missing or damaged.
        """
        while self._n_parts < self._order.needed(number):
            self._read_next()
        for future in self._pending:
            future.result()
        self._pending.clear()
        return self._windows.pop(number)

    def read_ahead(self) -> None:
        """Start to read what the next window needs, if there are threads for it."""
        if self._threads is not None and self._n_parts < self._order.n_parts:
            self._read_next()

    def _read_next(self) -> None:
        part, self._n_parts = self._n_parts, self._n_parts + 1
        reading = _Part(self._source)
        if self._threads is None:
            self._prepare(reading, part)
            reading.read(0, 1)
            return
        prepared = self._threads.submit(self._prepare, reading, part)
        self._pending.append(prepared)
        for number in range(self._n_threads):
            task = self._threads.submit(_after, prepared, reading, number, self._n_threads)
            self._pending.append(task)

    def _prepare(self, reading: _Part, part: int) -> None:
        """Plan a part: its cuts, and where its frames go."""
        low, high = self._order.part_bounds(part)
        transfers = self._order.transfers(part, self._first)
        for transfer in transfers:
            if transfer.window not in self._windows:
                size = self._order.window_size(transfer.window)
                self._windows[transfer.window] = self._pool.take(size)
        ranges = self._blocks.ranges(self._start + low, self._start + high)
        to = [(item, self._windows[item.window]) for item in transfers]
        reading.plan(self._blocks.axis, ranges, to)


@dataclass
class _Part:
    """A part of the input that is being read.

    Attributes:
        source: What is read.
        block_frames: Frames that are copied at a time.
        layers_at_once: Layers that are read at a time, where frames cannot be copied from a map.
    """

    source: FrameSource
    block_frames: int = field(init=False)
    layers_at_once: int = field(init=False)
    _cuts: tuple[IntArray, IntArray, IntArray] = field(init=False)
    _ends: IntArray = field(init=False)
    _runs: tuple[IntArray, IntArray, IntArray] = field(init=False)
    _scatter: RowScatter = field(init=False)

    def __post_init__(self) -> None:
        n_layers = len(self.source.axes)
        self.block_frames = max(1, READ_BYTES * n_layers // self.source.frame_bytes)
        self.layers_at_once = 1
        if self.source.is_remote:
            self.block_frames *= max(1, REMOTE_READS // n_layers)
            self.layers_at_once = n_layers

    def plan(
        self,
        axis: FrameAxis,
        ranges: tuple[IntArray, IntArray],
        transfers: Sequence[tuple[Transfer, Window]],
    ) -> None:
        """Set what to read, and write the labels of all frames."""
        self._cuts = positions, firsts, counts = axis.cuts(*ranges)
        self._ends, self._runs = np.cumsum(counts), axis.runs(*ranges)
        labels = np.empty((int(counts.sum()), 2), np.int64)
        labels[:, 0] = np.repeat(positions, counts)
        labels[:, 1] = np.arange(len(labels)) + np.repeat(firsts + counts - self._ends, counts)
        self._scatter, scatter_labels = (
            RowScatter(len(labels), [RowPlaces(item.sources, item.places, out) for item, out in to])
            for to in (
                [(item, window.features) for item, window in transfers],
                [(item, window.labels[:, None]) for item, window in transfers],
            )
        )
        scatter_labels.copy(labels, 0)

    def read(self, share: int, n_shares: int) -> None:
        """Read one of several shares of the frames into the windows.

        Raises:
            DamagedError: A shard is missing or damaged.
        """
        size = self.block_frames
        n_frames = int(self._ends[-1]) if len(self._ends) else 0
        n_blocks = -(-n_frames // size)
        first, last = (n_blocks * number // n_shares for number in (share, share + 1))
        if not self._scattered(first * size, min(last * size, n_frames)):
            self._read_blocks(range(first, last), n_frames)

    def _scattered(self, start: int, stop: int) -> bool:
        """Copy frames straight from the shards to their places; return whether that was done."""
        store, axes = self.source.store, self.source.axes
        if self.source.norm is not None or store.verifies:
            return False
        spans = self._spans(start, stop)
        n_ahead = max(1, _AHEAD_BYTES // (self.block_frames * self.source.frame_bytes))
        for number, (slot, at, n) in enumerate(spans):
            for other, first, n_ahead_frames in spans[
                number + n_ahead if number else 0 : number + n_ahead + 1
            ]:
                shards = store.shards_of(other)
                for axis in axes:
                    shards.prefetch(axis, other, first, first + n_ahead_frames)
            shards = store.shards_of(slot)
            for column, axis in enumerate(axes):
                if not shards.scatter(axis, slot, at, n, self._scatter, start, column):
                    return False
            start += n
        return True

    def _spans(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return slot, first frame and number of the frames of runs, at most a block each."""
        slots, firsts, counts = self._runs
        ends = np.cumsum(counts)
        chosen = slice(
            int(np.searchsorted(ends, start, side="right")),
            int(np.searchsorted(ends, stop, side="left")) + 1,
        )
        spans = []
        runs = zip(*(x[chosen].tolist() for x in (slots, firsts, counts, ends)), strict=True)
        for slot, first, n, end in runs:
            low, high = max(start, end - n), min(stop, end)
            for at in range(low, high, self.block_frames):
                n_some = min(self.block_frames, high - at)
                spans.append((slot, first + at - (end - n), n_some))
        return spans

    def _read_blocks(self, blocks: range, n_frames: int) -> None:
        """Read blocks of frames into memory, and copy them to their places."""
        store, axes, n_rows = self.source.store, self.source.axes, self.block_frames
        shape = (self.layers_at_once, n_rows, store.feature_dim)
        block = np.empty(shape, store.codec.value_dtype)
        for number in blocks:
            start = number * n_rows
            if self.source.is_remote and number + 1 < blocks.stop:
                self._announce(start + n_rows, min(start + 2 * n_rows, n_frames))
            cuts = self._block_cuts(start, min(start + n_rows, n_frames), block)
            for column in range(0, len(axes), self.layers_at_once):
                some = axes[column : column + self.layers_at_once]
                store.read_into(cuts, some, self.source.norm)
                for i in range(len(some)):
                    self._scatter.copy(block[i, : n_frames - start], start, column + i)

    def _announce(self, start: int, stop: int) -> None:
        """Have the next block fetched while this one is waited for and copied."""
        for slot, first, n in self._spans(start, stop):
            shards = self.source.store.shards_of(slot)
            for axis in self.source.axes:
                shards.prefetch(axis, slot, first, first + n)

    def _block_cuts(self, start: int, stop: int, block: npt.NDArray[Any]) -> list[Cut]:
        """Return the cuts of frames `start:stop`, with their places in the block."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left")) + 1
        positions, firsts, counts = (x[first:last].tolist() for x in self._cuts)
        cuts: list[Cut] = []
        at = int(self._ends[first]) - counts[0]
        for position, begin, n in zip(positions, firsts, counts, strict=True):
            low, high = max(at, start), min(at + n, stop)
            cuts.append((position, begin + low - at, block[:, low - start : high - start]))
            at += n
        return cuts


def _after(prepared: Future[None], part: _Part, share: int, n_shares: int) -> None:
    """Read a share of a part once it is planned, by a thread that started before this task."""
    prepared.result()
    part.read(share, n_shares)


def _aligned(size: int, dtype: np.dtype[Any]) -> Stored:
    """Return memory that begins with a line of the cache.

    NumPy asks for huge pages, in which shuffled places are found faster.
    """
    raw = np.empty(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)

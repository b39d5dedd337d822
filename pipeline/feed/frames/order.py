"""The order of the frames of an epoch: which frame goes where. Pure arithmetic, without reading.

An epoch has two levels. The blocks of the corpus are shuffled, and each rank takes an equal share
of the frames of this sequence, its input. The input is read part by part, `window_frames` frames
each, and every frame is put at its final place in the output, which is divided into windows of as
many frames. With a depth of one, a part fills one window, in random order. With a depth of `D`, the
frames of a part are distributed over `D` consecutive windows, and a window has frames of `D` parts:
frame `i` of part `s` goes to window `s - D + 1 + i % D`, at a random place. The first and the last
parts have only the frames of windows that exist, so every window has frames of `D` parts. Memory
holds `D` windows that are being filled, and one in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import ConfigError, counted
from pipeline.feed.frames.axis import FrameAxis, IntArray

RESERVOIR, UNITS = "reservoir", "units"
DEPTH = 4
"""Windows over which the frames of a part are distributed by the shuffle `reservoir`."""
BLOCK_FRAMES = 128
"""Frames of a block of the shuffle `reservoir`: 2.6 s, 197 kB of one layer of 768 features."""
_BLOCKS, _PLACES = 0, 1  # random streams of an epoch


@dataclass(frozen=True)
class FramePolicy:
    """How an epoch is ordered, and divided into batches and among ranks.

    Attributes:
        frames_per_batch: Frames of a batch.
        shuffle: "reservoir", "units", or False for the order of the dataset.
        seed: Seed of the order, at least 0; equal on all ranks.
        window_frames: Frames of a window, a multiple of `frames_per_batch`.
        world_size: Number of ranks.
        drop_last: Drop the last frames of each rank, so that all batches are full.
    """

    frames_per_batch: int
    shuffle: str | bool
    seed: int
    window_frames: int
    world_size: int = 1
    drop_last: bool = False

    @property
    def depth(self) -> int:
        """Windows over which the frames of a part are distributed."""
        return DEPTH if self.shuffle == RESERVOIR else 1

    @property
    def n_windows(self) -> int:
        """Windows that are in memory at a time."""
        return self.depth + 1


@dataclass(frozen=True)
class Transfer:
    """Frames of a part that go to one window.

    Attributes:
        window: The window.
        sources: Indices of the frames within the part, ascending, int64 [n].
        places: Places within the window, int64 [n].
    """

    window: int
    sources: IntArray
    places: IntArray


class BlockOrder:
    """The shuffled blocks of an epoch, one after the other: the input of all ranks.

    Attributes:
        axis: The frames of the dataset.
    """

    def __init__(self, axis: FrameAxis, policy: FramePolicy, epoch: int) -> None:
        self.axis = axis
        self._is_sorted = bool(policy.shuffle)
        if policy.shuffle:
            bounds = axis.blocks(BLOCK_FRAMES if policy.shuffle == RESERVOIR else None)
            random = np.random.default_rng([policy.seed, epoch, _BLOCKS])
            order = random.permutation(len(bounds) - 1)
            self._low, self._high = bounds[:-1][order], bounds[1:][order]
        else:
            self._low, self._high = np.zeros(1, np.int64), np.full(1, len(axis), np.int64)
        self._ends = np.concatenate([[0], np.cumsum(self._high - self._low)])

    def ranges(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Return the frames `start:stop` of the sequence, sorted by place on disk.

        Returns:
            First number of each range on the axis, and one past its last.
        """
        first = int(np.searchsorted(self._ends, start, side="right")) - 1
        last = int(np.searchsorted(self._ends, stop, side="left"))
        low, high = self._low[first:last].copy(), self._high[first:last].copy()
        low[0] += start - self._ends[first]
        high[-1] -= self._ends[last] - stop
        if self._is_sorted:
            order = np.argsort(low)
            low, high = low[order], high[order]
        return low, high


class RankOrder:
    """Where each frame of the input of one rank goes, in one epoch.

    Attributes:
        n_frames: Frames of the rank.
        width: Frames of a window; the last one may have fewer.
        n_windows: Windows of the output.
        n_parts: Parts that the input is read in.
    """

    def __init__(self, policy: FramePolicy, epoch: int, rank: int, n_frames: int) -> None:
        self.n_frames = n_frames
        self.width, self._depth = min(policy.window_frames, n_frames), policy.depth
        if policy.shuffle and n_frames <= policy.n_windows * self.width // 2:
            self.width, self._depth = n_frames, 1  # all fits in memory, beside the last batches
        self.n_windows = -(-n_frames // self.width)
        self.n_parts = self.n_windows + self._depth - 1
        self._shuffles = bool(policy.shuffle)
        self._key = (policy.seed, epoch, _PLACES, rank)
        sizes = [sum(n for _, _, n in self._groups(part)) for part in range(self.n_parts)]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self._places_of = _remembering(self._places, self._depth)

    def window_size(self, window: int) -> int:
        """Return the number of frames of a window."""
        return min(self.width, self.n_frames - window * self.width)

    def part_bounds(self, part: int) -> tuple[int, int]:
        """Return the first frame of a part in the input, and one past its last."""
        return self._starts[part], self._starts[part + 1]

    def needed(self, window: int) -> int:
        """Return the number of parts that must be read before a window is complete."""
        return window + self._depth

    def transfers(self, part: int, first_window: int = 0) -> list[Transfer]:
        """Return where the frames of a part go, but those for windows before `first_window`.

        Every place of every window is the destination of exactly one frame of the input.
        """
        groups = self._groups(part)
        found = []
        for (window, age, n), sources in zip(groups, self._sources(groups), strict=True):
            if window >= first_window:
                at = sum(self._group_size(window, younger) for younger in range(age))
                found.append(Transfer(window, sources, self._places_of(window)[at : at + n]))
        return found

    def _groups(self, part: int) -> list[tuple[int, int, int]]:
        """Return window, age and number of the frames of a part that go to each window."""
        first = part - self._depth + 1
        return [
            (first + age, age, self._group_size(first + age, age))
            for age in range(self._depth)
            if 0 <= first + age < self.n_windows
        ]

    def _group_size(self, window: int, age: int) -> int:
        return len(range(age, self.window_size(window), self._depth))

    def _sources(self, groups: Sequence[tuple[int, int, int]]) -> list[IntArray]:
        """Distribute the frames of a part over its groups, neighbours to different ones.

        Returns:
            Indices of the frames of each group within the part, ascending.
        """
        sizes = [n for _, _, n in groups]
        if len(set(sizes)) == 1:
            return [np.arange(i, sum(sizes), len(sizes)) for i in range(len(sizes))]
        when = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes])
        order = np.argsort(when, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return np.split(rank, np.cumsum(sizes)[:-1])

    def _places(self, window: int) -> IntArray:
        """Return the places of a window in random order, int64 [window_size]."""
        n = self.window_size(window)
        if not self._shuffles:
            return np.arange(n)
        state = np.random.SeedSequence([*self._key, window]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        # unlike NumPy's, this lets other threads run
        order: IntArray = torch.randperm(n, generator=generator).numpy()
        return order


class RankBatches:
    """The batches of a rank: how many, and what part of the output each is.

    All ranks have the same number of batches. All but the last are full, except that a rank with
    one frame less than others may have to leave one frame of the last full batch to the last one.

    Attributes:
        start: First frame of the rank in the sequence of blocks.
        n_frames: Frames of the rank.
        n_batches: Batches of the rank.
    """

    def __init__(self, policy: FramePolicy, n_frames: int, rank: int) -> None:
        """Divide the frames of an epoch.

        Raises:
            ConfigError: There are too few frames for that.
        """
        size, n_ranks = policy.frames_per_batch, policy.world_size
        self.start = n_frames * rank // n_ranks
        self.n_frames = n_frames * (rank + 1) // n_ranks - self.start
        fewest, most = n_frames // n_ranks, -(-n_frames // n_ranks)
        self._size = size
        if policy.drop_last:
            self.n_batches = fewest // size
            self.n_frames = self.n_batches * size
        else:
            self.n_batches = -(-most // size)
        if not 1 <= self.n_batches <= fewest:
            raise ConfigError(
                f"{n_frames:,} frames on {counted(n_ranks, 'rank')} give no batches of {size:,} "
                f"frames{' with drop_last' if policy.drop_last else ''} on every rank; lower "
                "frames_per_batch or world_size"
            )

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first frame of a batch in the output of the rank, and one past its last."""
        return self._start(number), self._start(number + 1)

    def _start(self, number: int) -> int:
        return min(number * self._size, self.n_frames - (self.n_batches - number))


def _remembering(compute: Callable[[int], IntArray], most: int) -> Callable[[int], IntArray]:
    """Return a function that remembers its last results."""
    known: dict[int, IntArray] = {}

    def remembered(key: int) -> IntArray:
        if key not in known:
            while len(known) >= most:
                del known[next(iter(known))]
            known[key] = compute(key)
        return known[key]

    return remembered

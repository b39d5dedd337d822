"""Plan of the batches of an epoch: arithmetic on frame counts, without reading.

The batches depend only on frame counts, storage slots, `max_frames`, the policy and the epoch. So
every rank computes the same batches and takes its share, and a resumed loader continues with
exactly the remaining batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.feed.ahead.memory import Held

IntArray = npt.NDArray[np.int64]

POOL_BATCHES = 64
"""Number of batches per length-sorted pool. Larger pools reduce padding and also randomness."""
_ORDER, _CROPS = 0, 1  # random streams of an epoch: order of the utterances, starts of the crops


@dataclass(frozen=True)
class BatchPolicy:
    """How an epoch is divided into batches, and batches among ranks.

    Attributes:
        max_frames_per_batch: Limit of the padded frames of a batch: utterances × longest. A longer
            utterance forms a batch of one.
        shuffle: Whether each epoch has another order; else the order of the dataset.
        seed: Seed of the order and of the crops, at least 0; equal on all ranks.
        window_units: Number of storage units per shuffle window: utterances are shuffled within a
            window, and the windows are shuffled. None shuffles all utterances.
        world_size: Number of ranks.
        drop_last: Drop the last batches if the ranks cannot share them evenly. Otherwise up to
            world_size - 1 batches are repeated.
    """

    max_frames_per_batch: int
    shuffle: bool = True
    seed: int = 0
    window_units: int | None = None
    world_size: int = 1
    drop_last: bool = False

    def check(self) -> None:
        """Raise ConfigError if a number is out of range."""
        for name in ("max_frames_per_batch", "world_size", "window_units"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must not be negative")


@dataclass(frozen=True)
class BatchSpec:
    """Utterances of one batch.

    Attributes:
        positions: Positions in the dataset, int64 [batch].
        starts: First frame of each utterance, int64 [batch]; 0 unless it is cropped.
        lengths: Frames of each utterance after cropping, int64 [batch].
        buffer: Index of the shared buffer that a worker reads the batch into, set by
            `FeatureLoader.assigned_specs`; -1 for none.
        held: What the batch finds in the memory of its loader, set by `FeatureLoader`; None for
            nothing.
    """

    positions: IntArray
    starts: IntArray
    lengths: IntArray
    buffer: int = -1
    held: Held | None = None

    @property
    def padded_frames(self) -> int:
        """Frames of the padded batch: utterances × longest."""
        return len(self.lengths) * int(self.lengths.max(initial=0))


class EpochBatches:
    """Deterministic batch plan: for an epoch and a rank, which utterances form each batch."""

    def __init__(
        self,
        frame_counts: IntArray,
        slots: IntArray,
        policy: BatchPolicy,
        max_frames: int | None = None,
    ) -> None:
        """Store the lengths and check the policy.

        Args:
            frame_counts: Frames of each utterance, int64 [n_utterances].
            slots: Storage slot of each utterance's first frame, int64 [n_utterances]. A committed
                unit is one slot. Used for `window_units` only.
            policy: How to divide an epoch.
            max_frames: Maximum number of frames of an utterance; a longer one is cropped at a
                random place. None crops nothing.

        Raises:
            ConfigError: A number of the policy is out of range.
        """
        policy.check()
        self.policy = policy
        self._frame_counts = frame_counts
        self._lengths = np.minimum(frame_counts, max_frames) if max_frames else frame_counts
        self._slots = slots
        self._cached: tuple[int, list[IntArray], IntArray] | None = None
        """Epoch, its batches, and the shuffle window of each."""

    def rank_batches(self, epoch: int, rank: int) -> list[IntArray]:
        """Return the positions of each batch of one rank, int64 [batch].

        All ranks have the same number of batches. Without `drop_last` every utterance is in at
        least one batch, and at most world_size - 1 batches are repeated.

        Raises:
            ConfigError: `drop_last` drops every batch.
        """
        world_size = self.policy.world_size
        batches = self.batches(epoch)
        if self.policy.drop_last:
            n_even = len(batches) // world_size * world_size
            if batches and not n_even:
                raise ConfigError(
                    f"drop_last drops all {len(batches)} batches, which are fewer than "
                    f"{world_size} ranks; lower max_frames_per_batch"
                )
            batches = batches[:n_even]
        n_repeated = -len(batches) % world_size
        batches = batches + [batches[i % len(batches)] for i in range(n_repeated)]
        return batches[rank::world_size]

    def specs(self, epoch: int, rank: int, first: int = 0) -> Iterator[BatchSpec]:
        """Yield the specs of the batches of one rank, from batch `first` on."""
        starts = self._crops(epoch)
        for positions in self.rank_batches(epoch, rank)[first:]:
            yield BatchSpec(positions, starts[positions], self._lengths[positions])

    def batches(self, epoch: int) -> list[IntArray]:
        """Return the positions of each batch of an epoch; every utterance is in exactly one."""
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, *self._cut(epoch))
        return self._cached[1]

    def windows(self, epoch: int, rank: int, first: int = 0) -> Iterator[list[BatchSpec]]:
        """Yield the specs of `specs`, those of a shuffle window together.

        Without shuffling, or without `window_units`, all are together.
        """
        self.batches(epoch)
        assert self._cached is not None  # by the line before
        number = np.resize(self._cached[2], len(self.rank_batches(epoch, rank)) * self._n_ranks)
        for _, some in itertools.groupby(
            zip(number[rank :: self._n_ranks][first:], self.specs(epoch, rank, first), strict=True),
            key=lambda item: int(item[0]),
        ):
            yield [spec for _, spec in some]

    @property
    def _n_ranks(self) -> int:
        return self.policy.world_size

    def _cut(self, epoch: int) -> tuple[list[IntArray], IntArray]:
        """Shuffle, sort each pool by length, cut it into batches, shuffle the batches of a window.

        Returns:
            Positions of each batch, int64 [batch], and the number of the window of each batch.
        """
        n = len(self._lengths)
        if not self.policy.shuffle:
            cut = cut_in_order(np.arange(n), self._lengths, self.policy.max_frames_per_batch)
            return cut, np.zeros(len(cut), np.int64)
        random = np.random.default_rng([self.policy.seed, epoch, _ORDER])
        batches, numbers = [], []
        for number, window in enumerate(self._windows(random)):
            cut = []
            for pool in self._pools(window):
                longest_first = pool[np.argsort(-self._lengths[pool], kind="stable")]
                cut += cut_in_order(longest_first, self._lengths, self.policy.max_frames_per_batch)
            batches += [cut[i] for i in random.permutation(len(cut))]
            numbers += [number] * len(cut)
        return batches, np.array(numbers, np.int64)

    def _windows(self, random: np.random.Generator) -> Iterator[IntArray]:
        """Yield the shuffled positions of each shuffle window.

        Without `window_units`, all utterances form one window.
        """
        n, width = len(self._lengths), self.policy.window_units
        if width is None:
            yield random.permutation(n)
            return
        slots, slot_index = np.unique(self._slots, return_inverse=True)
        slot_order = random.permutation(len(slots))
        window = slot_order[slot_index] // width  # [n_utterances]
        order = random.permutation(n)
        order = order[np.argsort(window[order], kind="stable")]
        bounds = np.searchsorted(window[order], np.arange(1, -(-len(slots) // width)))
        yield from np.split(order, bounds)

    def _pools(self, window: IntArray) -> list[IntArray]:
        """Divide the positions of a window into pools of about `POOL_BATCHES` batches."""
        frames = np.cumsum(self._lengths[window])
        per_pool = POOL_BATCHES * self.policy.max_frames_per_batch
        n_pools = max(1, round(int(frames[-1]) / per_pool)) if len(frames) else 1
        return np.array_split(window, n_pools)

    def _crops(self, epoch: int) -> IntArray:
        """Return the first frame of each utterance in an epoch, int64 [n_utterances]."""
        spare = self._frame_counts - self._lengths
        if not spare.any():
            return np.zeros(len(spare), np.int64)
        random = np.random.default_rng([self.policy.seed, epoch, _CROPS])
        return random.integers(0, spare + 1)


def cut_in_order(order: IntArray, lengths: IntArray, max_frames: int) -> list[IntArray]:
    """Cut utterances into batches of at most `max_frames` padded frames, in a given order.

    Args:
        order: Positions, in order, int64 [n].
        lengths: Frames of each utterance, by position, int64 [n_utterances].
        max_frames: Limit of utterances × longest; a longer utterance forms a batch of one.

    Returns:
        Positions of each batch, int64 [batch].
    """
    sizes = lengths[order]
    batches = []
    start = 0
    while start < len(order):
        max_batch = max(1, max_frames // max(1, int(sizes[start])))
        longest = np.maximum.accumulate(sizes[start : start + max_batch])
        padded = longest * np.arange(1, len(longest) + 1)
        stop = start + max(1, int(np.searchsorted(padded, max_frames, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches

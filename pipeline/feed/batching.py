"""Which utterances make up each batch of an epoch: arithmetic on frame counts, no reading.

Everything is a function of the frame counts, the policy and the epoch, so that every rank works out
the same batches and takes its own, and a loader that is resumed goes on with exactly what was left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

IntArray = npt.NDArray[np.int64]

POOL_BATCHES = 64
"""Batches that are cut from one pool of utterances, sorted by length: padding against chance."""
_ORDER, _CROPS = 0, 1  # streams of random numbers of an epoch


@dataclass(frozen=True)
class BatchPolicy:
    """How an epoch is cut into batches and shared among ranks.

    Attributes:
        max_frames_per_batch: Bound on utterances × longest of a batch, in padded frames. An
            utterance that is longer by itself is a batch of its own.
        shuffle: Another order in each epoch; otherwise the order of the dataset.
        seed: Of the order and of the crops. All ranks need the same.
        window_units: Shuffle only within windows of this many storage units, and the windows among
            themselves; None shuffles everything.
        world_size: Number of ranks.
        drop_last: Drop what does not go round the ranks; otherwise as many batches are repeated as
            are needed, at most world_size - 1.
    """

    max_frames_per_batch: int
    shuffle: bool = True
    seed: int = 0
    window_units: int | None = None
    world_size: int = 1
    drop_last: bool = False

    def check(self) -> None:
        """Raises ConfigError where a number makes no sense."""
        for name in ("max_frames_per_batch", "world_size", "window_units"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must not be negative")


@dataclass(frozen=True)
class BatchSpec:
    """What one batch is made of.

    Attributes:
        positions: Utterances, positions in the dataset: [batch].
        starts: First frame of each, [batch]; 0 unless it is cropped.
        lengths: Frames of each, [batch].
        buffer: Where a worker is to put it: number of a buffer, or -1 for memory of its own.
    """

    positions: IntArray
    starts: IntArray
    lengths: IntArray
    buffer: int = -1

    @property
    def padded_frames(self) -> int:
        """Utterances × longest."""
        return len(self.lengths) * int(self.lengths.max(initial=0))


class EpochBatches:
    """The batches of any epoch over utterances of known lengths."""

    def __init__(
        self,
        frame_counts: IntArray,
        units: IntArray,
        policy: BatchPolicy,
        max_frames: int | None = None,
    ) -> None:
        """Checks the policy.

        Args:
            frame_counts: Frames of each utterance, [n_utterances].
            units: Storage unit of each utterance, [n_utterances].
            policy: How to cut.
            max_frames: Longer utterances are cropped at random to this many frames.
        """
        policy.check()
        self.policy = policy
        self._frame_counts = frame_counts
        self._lengths = np.minimum(frame_counts, max_frames) if max_frames else frame_counts
        self._units = units
        self._known: tuple[int, list[IntArray]] | None = None

    def rank_batches(self, epoch: int, rank: int) -> list[IntArray]:
        """The batches of one rank, as positions.

        Ranks get equally many. Without `drop_last` every utterance is in at least one of them, and
        at most world_size - 1 batches are there twice.

        Raises:
            ConfigError: `drop_last` leaves nothing.
        """
        world_size = self.policy.world_size
        batches = self.batches(epoch)
        if self.policy.drop_last:
            n_even = len(batches) // world_size * world_size
            if batches and not n_even:
                raise ConfigError(
                    f"{len(batches)} batches do not go round {world_size} ranks, and drop_last "
                    "drops them all; lower max_frames_per_batch"
                )
            batches = batches[:n_even]
        missing = -len(batches) % world_size
        batches = batches + [batches[i % len(batches)] for i in range(missing)]
        return batches[rank::world_size]

    def specs(self, epoch: int, rank: int, first: int = 0) -> Iterator[BatchSpec]:
        """What the batches of one rank are made of, from batch `first` on."""
        starts = self._crops(epoch)
        for positions in self.rank_batches(epoch, rank)[first:]:
            yield BatchSpec(positions, starts[positions], self._lengths[positions])

    def batches(self, epoch: int) -> list[IntArray]:
        """All batches of an epoch, in order: every utterance in exactly one of them."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, self._cut(epoch))
        return self._known[1]

    def _cut(self, epoch: int) -> list[IntArray]:
        n = len(self._lengths)
        if not self.policy.shuffle:
            return cut_in_order(np.arange(n), self._lengths, self.policy.max_frames_per_batch)
        random = np.random.default_rng([self.policy.seed, epoch, _ORDER])
        batches = []
        for segment in self._segments(random):
            cut = []
            for pool in self._pools(segment):
                longest_first = pool[np.argsort(-self._lengths[pool], kind="stable")]
                cut += cut_in_order(longest_first, self._lengths, self.policy.max_frames_per_batch)
            batches += [cut[i] for i in random.permutation(len(cut))]
        return batches

    def _segments(self, random: np.random.Generator) -> Iterator[IntArray]:
        """Runs of the epoch that are shuffled within themselves: windows of units, or all."""
        n, width = len(self._lengths), self.policy.window_units
        if width is None:
            yield random.permutation(n)
            return
        units, inverse = np.unique(self._units, return_inverse=True)
        place = random.permutation(len(units))  # of each unit in the epoch
        window = place[inverse] // width
        order = random.permutation(n)
        order = order[np.argsort(window[order], kind="stable")]
        bounds = np.searchsorted(window[order], np.arange(1, -(-len(units) // width)))
        yield from np.split(order, bounds)

    def _pools(self, segment: IntArray) -> list[IntArray]:
        frames = np.cumsum(self._lengths[segment])
        per_pool = POOL_BATCHES * self.policy.max_frames_per_batch
        n_pools = max(1, round(int(frames[-1]) / per_pool)) if len(frames) else 1
        return np.array_split(segment, n_pools)

    def _crops(self, epoch: int) -> IntArray:
        """First frame of each utterance in this epoch, [n_utterances]."""
        spare = self._frame_counts - self._lengths
        if not spare.any():
            return np.zeros(len(spare), np.int64)
        random = np.random.default_rng([self.policy.seed, epoch, _CROPS])
        return random.integers(0, spare + 1)


def cut_in_order(order: IntArray, lengths: IntArray, max_frames: int) -> list[IntArray]:
    """Cuts utterances into batches of at most `max_frames` padded frames, keeping their order.

    Args:
        order: Positions, in the order wanted.
        lengths: Frames of each utterance, by position.
        max_frames: Bound on utterances × longest; a longer utterance is alone.

    Returns:
        Positions of each batch.
    """
    sizes = lengths[order]
    batches = []
    start = 0
    while start < len(order):
        most = max(1, max_frames // max(1, int(sizes[start])))
        longest = np.maximum.accumulate(sizes[start : start + most])
        padded = longest * np.arange(1, len(longest) + 1)
        stop = start + max(1, int(np.searchsorted(padded, max_frames, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches

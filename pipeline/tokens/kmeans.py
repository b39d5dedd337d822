"""k-means over frames that need not fit in memory. Arithmetic only.

Initial centroids are those of greedy k-means++ on some of the frames (`seeding.py`). Lloyd's
iterations follow, first on small parts of the frames, where the centroids make most of their way,
and last on all of them. Each part contains the one before, as in Newling and Fleuret 2016, "Nested
Mini-Batch K-Means", and has a quarter of the next one, so all parts together cost about as much as
two or three iterations over all frames.

Frames are divided into blocks of a fixed size, each computed in one thread, and the sums of blocks
are added in order. So the result does not depend on the number of threads. On a GPU the last bits
of a result may differ between two runs, because sums are made in any order there.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError, counted
from pipeline.threads import in_order, single_threaded
from pipeline.tokens.nearest import ROWS, Frames, Quantizer, checked_sum
from pipeline.tokens.seeding import INIT_PER_CLUSTER, initial

FloatArray = npt.NDArray[np.float32]

BLOCK_FRAMES = 8192
"""Frames of a block: what a thread reads and sums at a time."""
_FARTHEST = 8  # of each block, to re-seed empty clusters with
_MOST_RESEEDED = 1024  # clusters in an iteration; more wait for the next one
_PART_TOLERANCE = 5e-3
_MOST_PER_PART = 6
_GROWTH = 4  # from a part to the next


@dataclass(frozen=True)
class KMeansSettings:
    """How k-means is computed.

    Attributes:
        k: Number of clusters.
        seed: Seed of the initial centroids.
        max_iterations: Most iterations over all frames.
        tolerance: Iterations end when the inertia falls by less than this share.
    """

    k: int
    seed: int = 0
    max_iterations: int = 30
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Clustering:
    """Result of k-means.

    Attributes:
        centroids: float32 [k, dim].
        inertia: Mean squared distance of the frames to their centroids, before the last update.
        iterations: Iterations over all frames.
        is_converged: Whether the tolerance was reached.
    """

    centroids: FloatArray
    inertia: float
    iterations: int
    is_converged: bool


class Progress(Protocol):
    """Receives the progress of a training."""

    def __call__(
        self, iteration: int, n_frames: int, inertia: float, seconds: float, is_last: bool
    ) -> None:
        """Receive one iteration: its number, frames, mean squared distance and duration."""


@dataclass
class _Sums:
    """What an iteration sums up.

    Attributes:
        totals: Sum of the frames of each cluster, from the centre: [k, dim].
        counts: Frames of each cluster: float64 [k].
        inertia: Sum of the squared distances.
        farthest: Squared distance and number of the frames that are farthest from their centroids.
    """

    totals: Tensor
    counts: Tensor
    inertia: float
    farthest: list[tuple[float, int]]


def train(
    frames: Frames,
    settings: KMeansSettings,
    device: torch.device | None = None,
    n_threads: int = 1,
    progress: Progress | None = None,
    init: FloatArray | None = None,
) -> Clustering:
    """Find k centroids.

    Args:
        frames: The frames, in an order such that every beginning is a sample of them all.
        settings: How.
        device: Where distances are computed; None is the CPU.
        n_threads: Threads that read, and on a CPU compute.
        progress: Called after every iteration.
        init: Centroids to begin with, float32 [k, dim], in place of those of k-means++.

    Raises:
        ConfigError: There are fewer frames, or different frames, than clusters.
        NonFiniteFrameError: A frame is not finite.
    """
    if len(frames) < settings.k:
        raise ConfigError(
            f"k is {settings.k:,}, but there are only {counted(len(frames), 'frame')} to train on; "
            "expected at least one frame for each cluster"
        )
    with single_threaded(n_threads) as pool:
        run = _Run(frames, device or torch.device("cpu"), pool, n_threads)
        if init is None:
            init = initial(frames, settings.k, settings.seed, pool)
        centroids = torch.from_numpy(init)
        parts = _parts(len(frames), settings)
        for n_part in parts[:-1]:
            centroids, *_ = run.iterate(
                centroids, n_part, _MOST_PER_PART, _PART_TOLERANCE, progress, is_last=False
            )
        centroids, inertia, iterations, is_converged = run.iterate(
            centroids,
            len(frames),
            settings.max_iterations,
            settings.tolerance,
            progress,
            is_last=True,
        )
    return Clustering(centroids.numpy(), inertia, iterations, is_converged)


def _parts(n_frames: int, settings: KMeansSettings) -> list[int]:
    """Return the sizes of the nested parts, the last one all frames."""
    least = max(2 * INIT_PER_CLUSTER * settings.k, 4 * BLOCK_FRAMES)
    parts = [n_frames]
    while parts[0] // _GROWTH >= least:
        size = parts[0] // _GROWTH
        parts.insert(0, max(BLOCK_FRAMES, size // BLOCK_FRAMES * BLOCK_FRAMES))
    return parts


class _Run:
    """Lloyd's iterations."""

    def __init__(
        self, frames: Frames, device: torch.device, pool: ThreadPoolExecutor, n_threads: int
    ) -> None:
        self._frames, self._device = frames, device
        self._pool, self._n_ahead = pool, n_threads + 1

    def iterate(
        self,
        centroids: Tensor,
        n_frames: int,
        most: int,
        tolerance: float,
        progress: Progress | None,
        is_last: bool,
    ) -> tuple[Tensor, float, int, bool]:
        """Iterate until the inertia falls by less than a share; return the result."""
        before = math.inf
        for number in range(1, most + 1):
            start_s = time.perf_counter()
            sums, centre = self._sums(centroids, n_frames)
            inertia = sums.inertia / n_frames
            centroids = self._updated(centroids, sums, centre)
            if progress is not None:
                progress(number, n_frames, inertia, time.perf_counter() - start_s, is_last)
            if before - inertia <= tolerance * inertia:
                return centroids, inertia, number, True
            before = inertia
        return centroids, inertia, most, False

    def _sums(self, centroids: Tensor, n_frames: int) -> tuple[_Sums, Tensor]:
        """Assign frames to their nearest centroids, and sum them up."""
        quantizer = Quantizer(centroids, self._device)
        starts = range(0, n_frames, BLOCK_FRAMES)
        calls = [_Block(self._frames, quantizer, start, n_frames) for start in starts]
        k, dim = centroids.shape
        total = _Sums(
            torch.zeros((k, dim), dtype=torch.float64), torch.zeros(k, dtype=torch.float64), 0.0, []
        )
        for found in in_order(self._pool, calls, self._n_ahead):
            total.totals += found.totals.cpu()
            total.counts += found.counts.cpu()
            total.inertia += found.inertia
            total.farthest = _most(total.farthest + found.farthest, min(k, _MOST_RESEEDED))
        return total, quantizer.centre.cpu().double()

    def _updated(self, centroids: Tensor, sums: _Sums, centre: Tensor) -> Tensor:
        """Return the means of the clusters; an empty one gets a frame that is far from its own."""
        means = sums.totals / sums.counts.clamp(min=1)[:, None] + centre
        is_empty = sums.counts == 0
        means[is_empty] = centroids[is_empty].double()
        empty = torch.nonzero(is_empty)[:, 0].tolist()
        for cluster, (distance, frame) in zip(empty, sums.farthest, strict=False):
            if distance > 0:
                means[cluster] = self._frames.read(frame, frame + 1)[0].double()
        return means.float()


@dataclass(frozen=True)
class _Block:
    """The part of an iteration that one thread does."""

    frames: Frames
    quantizer: Quantizer
    start: int
    n_frames: int

    def __call__(self) -> _Sums:
        stop = min(self.start + BLOCK_FRAMES, self.n_frames)
        values = self.frames.read(self.start, stop)
        quantizer = self.quantizer
        dim, k = quantizer._transposed.shape
        totals = torch.zeros((k, dim), device=quantizer.device)
        counts = torch.zeros(k, dtype=torch.int64, device=quantizer.device)
        inertia, farthest = 0.0, []
        for at in range(0, len(values), ROWS):
            moved, labels, distances = quantizer.nearest(values[at : at + ROWS])
            inertia += checked_sum(moved, distances, self.start + at)
            totals.index_add_(0, labels, moved)
            counts += torch.bincount(labels, minlength=k)
            top = distances.topk(min(_FARTHEST, len(distances)))
            found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
            farthest += [(distance, self.start + at + i) for distance, i in found]
        return _Sums(totals, counts.double(), inertia, _most(farthest, _FARTHEST))


def _most(farthest: list[tuple[float, int]], n: int) -> list[tuple[float, int]]:
    """Return the `n` frames that are farthest; of equal ones the first."""
    return sorted(farthest, key=lambda item: (-item[0], item[1]))[:n]

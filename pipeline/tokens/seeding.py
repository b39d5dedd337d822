"""Initial centroids: greedy k-means++ on some of the frames. Arithmetic only.

See Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding", section 5.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError, counted
from pipeline.tokens.nearest import Frames, NonFiniteFrameError

FloatArray = npt.NDArray[np.float32]

INIT_PER_CLUSTER = 10
"""Frames that initial centroids are chosen from, times the number of clusters."""
_LEAST = 8192
_PART_ROWS = 2048  # frames whose distances a thread computes at a time
_BLOCK = 8192  # frames that are read at a time
_GREEDY_UP_TO = 2048  # clusters; for more, k-means++ tries one frame at a time
_PER_CLUSTER_ABOVE = 3  # frames, times the number of clusters, for more
_SAME = 1e-6  # of the squared norm: closer frames are equal but for rounding


def initial(frames: Frames, k: int, seed: int, pool: ThreadPoolExecutor) -> FloatArray:
    """Return the centroids of k-means++ on some of the first frames; on all if these are too few.

    Raises:
        ConfigError: There are fewer different frames than clusters.
    """
    per_cluster = INIT_PER_CLUSTER if k <= _GREEDY_UP_TO else _PER_CLUSTER_ABOVE
    n_some = max(per_cluster * k, _LEAST)
    while True:
        n_some = min(n_some, len(frames))
        chosen = _plus_plus(_read_some(frames, n_some), k, seed, pool)
        if len(chosen) == k:
            return chosen
        if n_some == len(frames):
            raise ConfigError(
                f"k is {k:,}, but training has {counted(n_some, 'frame')} with only "
                f"{counted(len(chosen), 'different value')}; expected at least one for each cluster"
            )
        n_some *= 8


def _read_some(frames: Frames, n: int) -> Tensor:
    """Return the first `n` frames, float32 [n, dim]."""
    blocks = []
    for start in range(0, n, _BLOCK):
        block = frames.read(start, min(start + _BLOCK, n)).float()
        squares = block.square().sum(1)
        if not bool(torch.isfinite(squares).all()):
            raise NonFiniteFrameError(start + int(torch.nonzero(~torch.isfinite(squares))[0, 0]))
        blocks.append(block)
    return torch.cat(blocks)


def _plus_plus(points: Tensor, k: int, seed: int, pool: ThreadPoolExecutor) -> FloatArray:
    """Return the centroids that greedy k-means++ chooses, float32 [k, dim].

    Each next one is the best of a few frames, which are drawn with a chance that is proportional to
    their squared distance from the nearest one chosen so far.

    Returns:
        Fewer than k if there are fewer different frames.
    """
    random = np.random.default_rng(seed)
    n_trials = 2 + int(math.log(k)) if k <= _GREEDY_UP_TO else 1
    centred = points - points.mean(0, dtype=torch.float64).float()
    norms = centred.square().sum(1)
    rows = torch.split(centred, _PART_ROWS)
    row_norms = torch.split(norms, _PART_ROWS)

    def distances(candidates: Tensor) -> npt.NDArray[np.float32]:
        """Return squared distances, float32 [n_candidates, n_points]."""
        own = candidates.square().sum(1)[:, None]

        def some(i: int) -> Tensor:
            found = torch.addmm(row_norms[i][None] + own, candidates, rows[i].T, alpha=-2)
            return found.masked_fill_(found < _SAME * (row_norms[i][None] + own), 0.0)

        found: npt.NDArray[np.float32] = torch.cat(
            list(pool.map(some, range(len(rows)))), 1
        ).numpy()
        return found

    chosen = [int(random.integers(len(points)))]
    nearest = distances(centred[chosen])[0]
    while len(chosen) < k:
        ends = np.cumsum(nearest, dtype=np.float64)
        if not ends[-1] > 0:
            break
        drawn = np.searchsorted(ends, random.random(n_trials) * ends[-1], side="right")
        drawn = np.minimum(drawn, int(np.flatnonzero(nearest)[-1]))
        found = np.minimum(distances(centred[torch.from_numpy(drawn)]), nearest)
        best = int(found.sum(1, dtype=np.float64).argmin())
        chosen.append(int(drawn[best]))
        nearest = found[best]
    picked: FloatArray = points[torch.tensor(chosen)].numpy()
    return picked

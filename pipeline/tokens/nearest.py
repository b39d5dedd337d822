"""The nearest centroids of frames. Arithmetic only."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ROWS = 1024
"""Frames whose distances are computed at a time, so that they stay in the cache of a core."""


class NonFiniteFrameError(ValueError):
    """A frame has a value that is not finite, or whose square is not; `frame` is its number."""

    def __init__(self, frame: int) -> None:
        super().__init__(frame)
        self.frame = frame


class Frames(Protocol):
    """The frames of a training, in memory or not. Any number of threads may read."""

    def __len__(self) -> int:
        """Number of frames."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return frames [start, stop): floating-point values [n, dim] on the CPU."""


class Quantizer:
    """Finds the nearest centroids of frames, on one device.

    Distances are computed from the centre of the centroids, so that large constant parts of the
    features take no precision.
    """

    def __init__(self, centroids: Tensor, device: torch.device | None = None) -> None:
        """Prepare the centroids.

        Args:
            centroids: float32 [k, dim].
            device: Where to compute; None is the CPU.
        """
        self.device = device or torch.device("cpu")
        exact = centroids.double()
        self.centre = exact.mean(0).float().to(self.device)
        moved = (exact - exact.mean(0)).float().to(self.device)
        self._transposed = moved.T
        self._bias = (moved.double().square().sum(1) / 2).float()

    def nearest(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is nearest to frames.

        Args:
            frames: [n, dim] of any floating-point type.

        Returns:
            The frames from the centre, float32 [n, dim]; the number of the nearest centroid, int64
            [n]; and the squared distance to it, float32 [n].
        """
        moved = frames.to(self.device).float() - self.centre
        scores = torch.addmm(self._bias, moved, self._transposed, alpha=-1)  # [n, k]
        if scores.device.type == "cpu":  # NumPy's argmin takes a fifth of torch's time
            labels = torch.from_numpy(scores.numpy().argmin(1))
        else:
            labels = scores.argmin(1)
        least = scores.gather(1, labels[:, None])[:, 0]
        distances = moved.square().sum(1).add_(least, alpha=2)
        return moved, labels, distances.clamp_(min=0)

    def assign(self, frames: Tensor) -> tuple[npt.NDArray[np.int64], float]:
        """Return the code of each frame, int64 [n], and the sum of the squared distances.

        Raises:
            NonFiniteFrameError: A frame is not finite; its number is that among `frames`.
        """
        codes = np.empty(len(frames), np.int64)
        total = 0.0
        for start in range(0, len(frames), ROWS):
            some = frames[start : start + ROWS]
            moved, labels, distances = self.nearest(some)
            total += checked_sum(moved, distances, start)
            codes[start : start + len(some)] = labels.cpu().numpy()
        return codes, total


def checked_sum(moved: Tensor, distances: Tensor, start: int) -> float:
    """Return the sum of squared distances.

    Raises:
        NonFiniteFrameError: One is not finite; `start` is the number of the first frame.
    """
    total = float(distances.sum(dtype=torch.float64))
    if not math.isfinite(total):
        is_wrong = ~torch.isfinite(moved.square().sum(1) + distances)
        raise NonFiniteFrameError(start + int(torch.nonzero(is_wrong)[0, 0]))
    return total

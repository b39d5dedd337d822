"""Statistics of the clips of a batch, computed on the device that has their frames.

They are those of `pipeline.store.format.pooling.pool`, which is the reference, for all clips at a
time: no kernel runs for each clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.encoders.kernels.base import to_device
from pipeline.store.format.pooling import MEAN, STD


class ClipFrames:
    """The packed frames of a batch, by clip.

    Args:
        counts: Frames of each clip.
        device: Where the frames are.

    Attributes:
        owners: Clip of each frame, [n_frames].
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        ends = np.cumsum(counts)
        self._lengths = to_device(torch.tensor(counts), device)
        self._ends = {
            "first": to_device(torch.from_numpy(ends - counts), device),
            "last": to_device(torch.from_numpy(ends - 1), device),
        }
        self.owners = to_device(torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), device)
        clips = torch.arange(len(counts), device=device)
        self._summing = (self.owners == clips[:, None]).double()  # [n_clips, n_frames]
        self._n_frames = self._lengths.double()[:, None]

    def reduce(self, values: Tensor, name: str) -> Tensor:
        """Return "min" or "max" over the frames of each clip: [n_frames, dim] → [n_clips, dim]."""
        # `unsafe` only leaves out a check of the lengths, for which the host would wait.
        return torch.segment_reduce(values, name, lengths=self._lengths, axis=0, unsafe=True)

    def pool(
        self, stored: Tensor, statistics: Sequence[str], scales: Tensor | None = None
    ) -> Tensor:
        """Return statistics of the stored values of each clip.

        Sums of float16 values are exact, as they are multiples of 2⁻²⁴, and those of whole numbers
        are, too.

        Args:
            stored: Stored values of one layer, [n_frames, dim].
            statistics: Of `STATISTICS`.
            scales: Offset and scale of each clip if the values are numbers of steps,
                float32 [n_clips, 2, dim].

        Returns:
            float32 [n_clips, n_statistics, dim].
        """
        values = stored.double()
        found = []
        for name in statistics:
            value = self._statistic(values, name)
            if scales is not None:
                offset, scale = scales.double().unbind(1)
                value = value * scale + (0.0 if name == STD else offset)
            found.append(value.float())
        return torch.stack(found, dim=1)

    def _statistic(self, values: Tensor, name: str) -> Tensor:
        if name == "max":
            return self.reduce(values, "max")
        if name in self._ends:
            return values.index_select(0, self._ends[name])
        mean = self._summing @ values / self._n_frames
        if name == MEAN:
            return mean
        assert name == STD
        squares = (values - mean[self.owners]).square()
        return (self._summing @ squares / self._n_frames).sqrt()

"""A convolution over time of each channel by itself, on all clips of a batch at once.

Clips are placed in one stream with zeros between them, as many as the kernel reaches, so that no
output sees two clips.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.base import Pack


class StreamConvolution:
    """`conv(x)` of each clip, with zeros at its ends, in float32 (float64 for products in it)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Prepare the weights.

        Args:
            weight: float32 or float64 `[dim, kernel]`, the kernel odd.
            bias: `[dim]` of the same dtype.
        """
        self._weight, self._bias = weight[:, None], bias
        self._reach = weight.shape[1] // 2

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Convolve packed frames `[n_frames, dim]`; return the dtype of the weight."""
        reach, dim = self._reach, x.shape[1]
        rows = np.arange(pack.n_frames) + pack.clip_of_frame * reach
        outputs = pack.indices(rows)
        n_outputs = pack.n_frames + (len(pack.counts) - 1) * reach
        stream = x.new_zeros(n_outputs + 2 * reach, dim, dtype=self._weight.dtype)
        stream.index_copy_(0, outputs + reach, x.to(stream.dtype))
        # With a channel per group and float32, torch uses a kernel of its own on GPUs, not cuDNN,
        # which might round to TF32.
        y = F.conv1d(stream.T[None], self._weight, self._bias, groups=dim)
        return y[0].index_select(1, outputs).T

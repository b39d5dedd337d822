"""The contract of the operations that are tuned for a kind of device, and the packing of a batch.

A batch is packed: the frames of its clips lie one after another without padding. `Pack` says where
each clip lies. `reference.py` implements every operation in plain PyTorch, in any dtype on any
device; `cpu.py` and `cuda.py` replace what is faster there. `tests/encoders/test_kernels.py` holds
every implementation against the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Pack:
    """Places of the clips of a batch in its packed frames.

    Index tensors are made on the host on first use and copied without waiting for the device.

    Attributes:
        counts: Frames of each clip.
        device: Device of the index tensors.
        starts: First frame of each clip.
        n_frames: Frames of all clips.
        n_rows: Rows to compute: `n_frames`, rounded up as the device's products prefer. The rows
            after the last frame are undefined.
    """

    def __init__(
        self, counts: Sequence[int], device: torch.device | str, row_multiple: int = 1
    ) -> None:
        self.counts = tuple(counts)
        self.device = torch.device(device)
        ends = np.cumsum(self.counts)
        self.starts = tuple(int(end) - count for end, count in zip(ends, self.counts, strict=True))
        self.n_frames = int(ends[-1])
        self.n_rows = -(-self.n_frames // row_multiple) * row_multiple

    @property
    def longest(self) -> int:
        """Frames of the longest clip."""
        return max(self.counts)

    @cached_property
    def offsets(self) -> Tensor:
        """First frame of each clip, then the number of frames: int32 `[n_clips + 1]`."""
        return self.indices(np.asarray([*self.starts, self.n_frames], np.int32))

    @cached_property
    def clip_of_frame(self) -> npt.NDArray[np.int64]:
        """Clip of each frame, on the host: `[n_frames]`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def frame_in_clip(self) -> npt.NDArray[np.int64]:
        """Position of each frame within its clip, on the host: `[n_frames]`."""
        starts = np.repeat(np.asarray(self.starts, np.int64), self.counts)
        return np.arange(self.n_frames, dtype=np.int64) - starts

    def indices(self, values: npt.NDArray[Any]) -> Tensor:
        """Copy an array to the device without waiting for it."""
        return to_device(torch.from_numpy(np.ascontiguousarray(values)), self.device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the host to CUDA through pinned memory, without waiting."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums, norms and the residual stream: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Linear(Protocol):
    """`x Wᵀ + b`, with an optional GELU or sum."""

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Map `[rows, in]` of any dtype to `[rows, out]` in the dtype of the product."""

    def add(self, x: Tensor, term: Tensor) -> Tensor:
        """Map `[rows, in]` and add `term`, `[rows, out]`, which may be overwritten."""


PositionalConvolution = Callable[[Tensor, Pack], Tensor]
"""Maps packed frames `[n_frames, dim]` to `conv(x)` or `gelu(conv(x))` of each clip, with zeros at
its ends: `[n_frames, dim]`, float32 or the dtype of the products."""

DepthwiseConvolution = Callable[[Tensor, Pack], Tensor]
"""Maps packed frames `[n_frames, dim]` to the convolution of each clip, with zeros at its ends:
`[n_frames, dim]`, float32 at least."""

PositionBias = Callable[[int], Tensor]
"""Returns the relative position bias `[heads, n, n]` of clips of `n` frames."""


@dataclass(frozen=True)
class RelativePositions:
    """Relative positions in the scores of attention: ((q + content)·k + (q + position)·p) / √d.

    Attributes:
        content: Added to the queries that meet keys, `[heads, head_dim]` in the dtype.
        position: Added to the queries that meet positions, `[heads, head_dim]` in the dtype.
        keys: `keys(n)`: p of all positions in clips of n frames, from n - 1 frames before the query
            to n - 1 after it: `[heads, 2 * n - 1, head_dim]` in the dtype.
    """

    content: Tensor
    position: Tensor
    keys: Callable[[int], Tensor]


class Kernels(Protocol):
    """Operations tuned for a kind of device.

    "The dtype" is that of the matrix products. Sums are accumulated in float32 at least. A row of a
    result depends on no clip but its own, except for the rounding of a product of another size.

    Attributes:
        row_multiple: Number of rows of a batch to round up to.
        sums_on_device: Whether the moments of the waveforms are summed for the whole batch at once,
            on the device.
        clip_rows: In the front end, clips start at multiples of this many frames.
        chunk_rows: Frames that the front end computes at once, a multiple of `clip_rows`.
    """

    row_multiple: int
    sums_on_device: bool
    clip_rows: int
    chunk_rows: int

    def linear(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """Prepare a linear map.

        Args:
            weight: float32 `[out, in]`.
            bias: float32 `[out]` or None.
            dtype: Dtype of the product.
        """

    def positional_convolution(
        self,
        weight: Tensor,
        bias: Tensor,
        n_groups: int,
        dtype: torch.dtype,
        *,
        gelu: bool = True,
    ) -> PositionalConvolution:
        """Prepare a grouped convolution over time with stride 1.

        Args:
            weight: float32 `[dim, dim / n_groups, kernel]`. Output t sees inputs
                t - kernel // 2 … t - kernel // 2 + kernel - 1.
            bias: float32 `[dim]`.
            n_groups: Number of groups.
            dtype: Dtype of the products.
            gelu: Whether GELU follows.
        """

    def clip_products(
        self, windows: Tensor, factors: Tensor, owners: npt.NDArray[np.int64], out: Tensor
    ) -> None:
        """Multiply the windows of each clip with the clip's own matrix.

        Args:
            windows: `[n_blocks * rows, k]` in the dtype.
            factors: `[n_clips, k, channels]` in the dtype.
            owners: Clip of each block of `rows` windows, ascending, on the host: `[n_blocks]`.
            out: Result, `[n_blocks * rows, channels]`.
        """

    def attention(
        self,
        projected: Tensor,
        pack: Pack,
        n_heads: int,
        gates: Tensor | None = None,
        bias: PositionBias | None = None,
    ) -> Tensor:
        """Attend within each clip.

        Args:
            projected: Queries, keys and values, `[n_rows, 3 * dim]` in the dtype.
            pack: Places of the clips.
            n_heads: Number of heads.
            gates: float32 `[n_rows, n_heads]`, factors of the bias for each query (WavLM), or None.
            bias: Position bias, given with `gates`; query i and key j have `gates[i] * bias[i, j]`
                added to their score.

        Returns:
            `[n_rows, dim]` in the dtype; finite where `projected` is.
        """

    def relative_attention(
        self, projected: Tensor, pack: Pack, n_heads: int, positions: RelativePositions
    ) -> Tensor:
        """Attend within each clip, with relative positions (Wav2Vec2-Conformer).

        Args:
            projected: Queries, keys and values, `[n_rows, 3 * dim]` in the dtype.
            pack: Places of the clips.
            n_heads: Number of heads.
            positions: Their part of the scores.

        Returns:
            `[n_rows, dim]` in the dtype; finite where `projected` is.
        """

    def depthwise_convolution(self, weight: Tensor, bias: Tensor) -> DepthwiseConvolution:
        """Prepare a convolution over time of each channel by itself, with stride 1.

        Args:
            weight: float32 or float64 `[dim, kernel]`, the kernel odd. Output t sees inputs
                t - kernel // 2 … t + kernel // 2.
            bias: `[dim]` of the same dtype.
        """

"""Every operation in plain PyTorch, in any dtype on any device: what the others are tested against.

It is written to be read, not to be fast. In float64 it is the reference for the errors of the
reduced precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.base import (
    DepthwiseConvolution,
    Linear,
    Pack,
    PositionalConvolution,
    PositionBias,
    RelativePositions,
    wide_dtype,
)


class PlainLinear:
    """`F.linear`, then GELU or a sum."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Map `[rows, in]` of any dtype to `[rows, out]` in the dtype of the product."""
        y = F.linear(x.to(self._weight.dtype), self._weight, self._bias)
        return gelu_(y) if gelu else y

    def add(self, x: Tensor, term: Tensor) -> Tensor:
        """Map `[rows, in]` and add `term` in place."""
        y = term.addmm_(x, self._weight.T)
        return y if self._bias is None else y.add_(self._bias)


def gelu_(x: Tensor) -> Tensor:
    """Apply GELU (by the error function) in place."""
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


class ReferenceKernels:
    """The operations in plain PyTorch."""

    row_multiple = 1
    sums_on_device = False
    clip_rows = 1
    chunk_rows = 128

    def linear(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """Prepare a linear map."""
        return PlainLinear(weight, bias, dtype)

    def positional_convolution(
        self,
        weight: Tensor,
        bias: Tensor,
        n_groups: int,
        dtype: torch.dtype,
        *,
        gelu: bool = True,
    ) -> PositionalConvolution:
        """Prepare a grouped convolution: torch's, clip by clip."""
        # In bfloat16 oneDNN 3.12 with AMX gives wrong values if a group has 8 channels.
        exact = torch.float32 if dtype == torch.bfloat16 else dtype
        weight, bias = weight.detach().to(dtype).to(exact), bias.detach().to(dtype).to(exact)
        reach = weight.shape[2] // 2

        def convolve(x: Tensor, pack: Pack) -> Tensor:
            parts = []
            for clip in torch.split(x.to(dtype), list(pack.counts)):
                y = F.conv1d(clip.T[None].to(exact), weight, bias, padding=reach, groups=n_groups)
                y = y.to(dtype)
                parts.append(y[0, :, : len(clip)].T)  # an even kernel gives one frame too many
            convolved = torch.cat(parts)
            return gelu_(convolved) if gelu else convolved

        return convolve

    def clip_products(
        self, windows: Tensor, factors: Tensor, owners: npt.NDArray[np.int64], out: Tensor
    ) -> None:
        """Multiply clip by clip."""
        rows = windows.shape[0] // len(owners)
        for first, stop in runs(owners):
            part = slice(first * rows, stop * rows)
            torch.mm(windows[part], factors[owners[first]], out=out[part])

    def attention(
        self,
        projected: Tensor,
        pack: Pack,
        n_heads: int,
        gates: Tensor | None = None,
        bias: PositionBias | None = None,
    ) -> Tensor:
        """Attend clip by clip: softmax of the scores, times the values."""

        def score(query: Tensor, key: Tensor, rows: slice) -> Tensor:
            scores: Tensor = query @ key.mT * query.shape[-1] ** -0.5
            if gates is not None and bias is not None:
                scores = scores + gates[rows].T[..., None] * bias(key.shape[1])
            return scores

        return _attend(projected, pack, n_heads, score)

    def relative_attention(
        self, projected: Tensor, pack: Pack, n_heads: int, positions: RelativePositions
    ) -> Tensor:
        """Attend clip by clip; the key of each pair of frames is looked up."""

        def score(query: Tensor, key: Tensor, rows: slice) -> Tensor:
            count = key.shape[1]
            frames = torch.arange(count, device=key.device)
            distances = frames[:, None] - frames  # of query i and key j
            pairs = positions.keys(count).to(key.dtype)[:, count - 1 - distances]  # [h, i, j, dim]
            by_content = (query + positions.content[:, None]) @ key.mT
            moved = query + positions.position[:, None]
            by_position = torch.einsum("hid,hijd->hij", moved, pairs)
            scores: Tensor = (by_content + by_position) * query.shape[-1] ** -0.5
            return scores

        return _attend(projected, pack, n_heads, score)

    def depthwise_convolution(self, weight: Tensor, bias: Tensor) -> DepthwiseConvolution:
        """Prepare a convolution of each channel: torch's, clip by clip."""
        dim, reach = weight.shape[0], weight.shape[1] // 2

        def convolve(x: Tensor, pack: Pack) -> Tensor:
            parts = []
            for clip in torch.split(x.to(weight.dtype), list(pack.counts)):
                y = F.conv1d(clip.T[None], weight[:, None], bias, padding=reach, groups=dim)
                parts.append(y[0].T)
            return torch.cat(parts)

        return convolve


def _attend(
    projected: Tensor,
    pack: Pack,
    n_heads: int,
    score: Callable[[Tensor, Tensor, slice], Tensor],
) -> Tensor:
    """Attend clip by clip.

    Args:
        projected: Queries, keys and values, `[n_rows, 3 * dim]`.
        pack: Places of the clips.
        n_heads: Number of heads.
        score: Maps queries and keys of a clip, `[heads, frames, head_dim]` each, and the rows of
            the clip to the scores `[heads, frames, frames]`.

    Returns:
        `[n_rows, dim]` in the dtype of `projected`.
    """
    dim = projected.shape[1] // 3
    wide = wide_dtype(projected.dtype)
    mixed = projected.new_zeros(projected.shape[0], dim)
    for start, count in zip(pack.starts, pack.counts, strict=True):
        rows = slice(start, start + count)
        heads = projected[rows].to(wide).view(count, 3, n_heads, dim // n_heads)
        query, key, value = heads.permute(1, 2, 0, 3)  # [heads, frames, head_dim]
        weights = score(query, key, rows).softmax(dim=-1)
        mixed[rows] = (weights @ value).transpose(0, 1).reshape(count, dim)
    return mixed


def runs(values: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True)

"""The operations on GPUs: a few large products per batch, and no synchronisation with the device.

Everything but torch's `varlen_attn` also runs on a CPU, where tests compare it with the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.base import (
    DepthwiseConvolution,
    Pack,
    PositionalConvolution,
    PositionBias,
    RelativePositions,
    to_device,
)
from pipeline.encoders.kernels.depthwise import StreamConvolution
from pipeline.encoders.kernels.grouping import PaddedGroup, PaddedGroups, pad_in_groups
from pipeline.encoders.kernels.reference import ReferenceKernels
from pipeline.encoders.kernels.relative import relative_scores
from pipeline.encoders.kernels.toeplitz import ToeplitzConvolution


class CudaKernels(ReferenceKernels):
    """The operations on a GPU."""

    sums_on_device = True
    clip_rows = 8  # frames of the first convolution that share a copy of their clip's matrix
    chunk_rows = 4096  # 0.3 GB of activations of the first convolution

    def __init__(self) -> None:
        self._prepared: tuple[Pack, PaddedGroups, list[Tensor], Tensor | None] | None = None

    def positional_convolution(
        self,
        weight: Tensor,
        bias: Tensor,
        n_groups: int,
        dtype: torch.dtype,
        *,
        gelu: bool = True,
    ) -> PositionalConvolution:
        """Prepare a grouped convolution as a block Toeplitz product."""
        return ToeplitzConvolution(weight, bias, n_groups, dtype, gelu=gelu)

    def clip_products(
        self, windows: Tensor, factors: Tensor, owners: npt.NDArray[np.int64], out: Tensor
    ) -> None:
        """Multiply all blocks in one batched product, each with a copy of its clip's matrix."""
        chosen = to_device(torch.from_numpy(np.ascontiguousarray(owners)), windows.device)
        blocks = windows.view(len(owners), -1, windows.shape[1])
        torch.bmm(blocks, factors[chosen], out=out.view(len(owners), -1, out.shape[1]))

    def attention(
        self,
        projected: Tensor,
        pack: Pack,
        n_heads: int,
        gates: Tensor | None = None,
        bias: PositionBias | None = None,
    ) -> Tensor:
        """Attend by `_varlen_attention`; in padded groups of like length where it does not serve.

        It takes no position bias and no float32, and torch has it from version 2.10.
        """
        varlen = _varlen_attention()
        if varlen is not None and gates is None and can_use_varlen(projected, n_heads):
            heads = projected.view(len(projected), 3, n_heads, -1)
            query, key, value = heads.unbind(1)
            attended: Tensor = varlen(query, key, value, pack)
            return attended.flatten(1)
        padded, masks, table = self._prepare(pack, bias, projected.dtype)
        parts = [
            _attend(projected, group, mask, n_heads, gates, table)
            for group, mask in zip(padded.groups, masks, strict=True)
        ]
        return torch.cat(parts).index_select(0, padded.places)

    def relative_attention(
        self, projected: Tensor, pack: Pack, n_heads: int, positions: RelativePositions
    ) -> Tensor:
        """Attend in padded groups of like length."""
        padded, masks, _ = self._prepare(pack, None, projected.dtype)
        keys = positions.keys(padded.n_frames)
        parts = [
            _attend(projected, group, mask, n_heads, relative=(positions, keys))
            for group, mask in zip(padded.groups, masks, strict=True)
        ]
        return torch.cat(parts).index_select(0, padded.places)

    def depthwise_convolution(self, weight: Tensor, bias: Tensor) -> DepthwiseConvolution:
        """Prepare a convolution of each channel, on all clips at once."""
        return StreamConvolution(weight, bias)

    def _prepare(
        self, pack: Pack, bias: PositionBias | None, dtype: torch.dtype
    ) -> tuple[PaddedGroups, list[Tensor], Tensor | None]:
        """Return the groups of a pack, their masks and the position bias, for all layers."""
        if self._prepared is None or self._prepared[0] is not pack:
            padded = pad_in_groups(pack)
            masks = [_mask(group, dtype) for group in padded.groups]
            table = None if bias is None else bias(padded.n_frames).to(dtype)
            self._prepared = pack, padded, masks, table
        return self._prepared[1:]


def _mask(group: PaddedGroup, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of the keys of a group: `[n_clips, 1, 1, n_frames]`."""
    zeros = torch.zeros(group.is_padding.shape, dtype=dtype, device=group.is_padding.device)
    return zeros.masked_fill_(group.is_padding, -torch.inf)[:, None, None]


def _attend(
    projected: Tensor,
    group: PaddedGroup,
    mask: Tensor,
    n_heads: int,
    gates: Tensor | None = None,
    table: Tensor | None = None,
    relative: tuple[RelativePositions, Tensor] | None = None,
) -> Tensor:
    """Attend within the clips of one group: `[n_clips * n_frames, dim]`."""
    n_clips, n_frames = group.rows.shape
    heads = projected[group.rows].view(n_clips, n_frames, 3, n_heads, -1)
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # [clips, heads, frames, head_dim]
    if gates is not None and table is not None:
        gate = gates[group.rows].transpose(1, 2)[..., None].to(projected.dtype)
        mask = torch.addcmul(mask, gate, table[:, :n_frames, :n_frames])
    if relative is not None:
        positions, keys = relative
        scores = relative_scores(query + positions.position[:, None], keys)
        mask = torch.add(mask, scores, alpha=query.shape[-1] ** -0.5)
        query = query + positions.content[:, None]
    if is_half(projected):
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:  # the fused kernels may compute float32 products in TF32
        scores = (query * query.shape[-1] ** -0.5) @ key.mT + mask
        attended = scores.softmax(dim=-1) @ value
    return attended.transpose(1, 2).reshape(n_clips * n_frames, -1)


def can_use_varlen(projected: Tensor, n_heads: int) -> bool:
    """Return whether torch's attention over packed clips, FlashAttention 2, takes such a tensor."""
    head_dim = projected.shape[1] // (3 * n_heads)
    is_supported = is_half(projected) and head_dim % 8 == 0 and head_dim <= 256
    if not is_supported or not projected.is_cuda:
        return False
    return torch.cuda.get_device_capability(projected.device) >= (8, 0)


def is_half(x: Tensor) -> bool:
    """Return whether the values have 16 bits."""
    return torch.finfo(x.dtype).bits == 16


def _varlen_attention() -> Callable[[Tensor, Tensor, Tensor, Pack], Tensor] | None:
    """Return torch's attention over packed clips, or None before torch 2.10.

    `varlen_attn_out` is FlashAttention. `varlen_attn` takes cuDNN in newer versions, which builds a
    plan, in up to half a second, for every shape that is new: every batch has one.
    """
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    whole: Any = varlen.varlen_attn
    attend_into: Any = getattr(varlen, "varlen_attn_out", None)  # torch 2.12

    def attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
        places = pack.offsets, pack.offsets, pack.longest, pack.longest
        if attend_into is None:
            attended: Tensor = whole(query, key, value, *places)
            return attended
        out = query.new_empty(query.shape)
        attend_into(out, query, key, value, *places)
        return out

    return attend

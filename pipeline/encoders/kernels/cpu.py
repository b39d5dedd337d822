"""The operations on CPUs: products by oneDNN, the positional convolution by FFT.

On x86 CPUs with AVX-512 the weights are reordered once into the layout of oneDNN; `F.linear`
reorders them at every call, or uses MKL for float32. With the sizes of these models oneDNN's
kernels were 10 to 15 % faster on one such CPU, and twice as fast in float32 on another (torch
2.14). A GELU or a sum after the product is computed while the result is in the cache. On other
machines it is `F.linear` followed by these operations: on a CPU with AVX2 only, MKL was 5 to 10 %
faster, and products with oneDNN's fused GELU took 1.4 to 1.5 times as long
(`benchmarks/bench_products.py`).
"""

from __future__ import annotations

import platform
from itertools import groupby
from typing import NamedTuple

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
)
from pipeline.encoders.kernels.depthwise import StreamConvolution
from pipeline.encoders.kernels.fft import FourierConvolution
from pipeline.encoders.kernels.native import attention as native
from pipeline.encoders.kernels.reference import PlainLinear, ReferenceKernels
from pipeline.encoders.kernels.relative import relative_scores

_SCORES = 2**26  # of one attention call: 256 MB in float32 if they are materialised (WavLM)


class PackedLinear:
    """A linear map with weights in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._bias = None if bias is None else bias.to(dtype)
        with torch.inference_mode():
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Map `[rows, in]` of any dtype to `[rows, out]` in the dtype of the product."""
        attribute, algorithm = ("gelu", "none") if gelu else ("none", "")  # "none": exact GELU
        packed = torch.ops.mkldnn._linear_pointwise
        result: Tensor = packed(
            x.to(self._dtype), self._weight, self._bias, attribute, [], algorithm
        )
        return result

    def add(self, x: Tensor, term: Tensor) -> Tensor:
        """Map `[rows, in]` and add `term`, which may be overwritten."""
        packed = torch.ops.mkldnn._linear_pointwise.binary
        result: Tensor = packed(x, term, self._weight, self._bias, "add")
        return result


class CpuKernels(ReferenceKernels):
    """The operations on a CPU."""

    row_multiple = 32  # oneDNN keeps a kernel for every size of a product

    def linear(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """Prepare a linear map; by oneDNN where that is faster."""
        if can_pack(weight.device, dtype) and is_packing_faster():
            return PackedLinear(weight, bias, dtype)
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
        """Prepare a grouped convolution: by FFT, in float32 for every dtype but float64."""
        if dtype == torch.float64:
            return super().positional_convolution(weight, bias, n_groups, dtype, gelu=gelu)
        return FourierConvolution(weight, bias, n_groups, gelu=gelu)

    def attention(
        self,
        projected: Tensor,
        pack: Pack,
        n_heads: int,
        gates: Tensor | None = None,
        bias: PositionBias | None = None,
    ) -> Tensor:
        """Attend in C, or clip by clip, neighbours of equal length in one call, without a mask."""
        dim = projected.shape[1] // 3
        if native.is_available(projected.dtype, dim // n_heads):
            return native.attend(projected, pack, n_heads, gates, bias)
        table = None if bias is None else bias(pack.longest)
        mixed = projected.new_empty(projected.shape[0], dim)
        mixed[pack.n_frames :] = 0.0
        for span in find_spans(pack.counts, n_heads):
            shape = span.n_clips, span.n_frames
            heads = projected[span.rows].view(*shape, 3, n_heads, dim // n_heads)
            query, key, value = heads.permute(2, 0, 3, 1, 4)  # [clips, heads, frames, head_dim]
            mask = None
            if gates is not None and table is not None:
                gate = gates[span.rows].view(*shape, n_heads).transpose(1, 2)[..., None]
                mask = (gate * table[:, : span.n_frames, : span.n_frames]).to(query.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            mixed[span.rows] = attended.transpose(1, 2).reshape(-1, dim)
        return mixed

    def relative_attention(
        self, projected: Tensor, pack: Pack, n_heads: int, positions: RelativePositions
    ) -> Tensor:
        """Attend clip by clip, or neighbours of equal length in one call."""
        dim = projected.shape[1] // 3
        head_dim = dim // n_heads
        keys = positions.keys(pack.longest)
        mixed = projected.new_empty(projected.shape[0], dim)
        mixed[pack.n_frames :] = 0.0
        for span in find_spans(pack.counts, n_heads):
            shape = span.n_clips, span.n_frames
            heads = projected[span.rows].view(*shape, 3, n_heads, head_dim)
            query, key, value = heads.permute(2, 0, 3, 1, 4)  # [clips, heads, frames, head_dim]
            scores = relative_scores(query + positions.position[:, None], keys) * head_dim**-0.5
            attended = F.scaled_dot_product_attention(
                query + positions.content[:, None], key, value, attn_mask=scores
            )
            mixed[span.rows] = attended.transpose(1, 2).reshape(-1, dim)
        return mixed

    def depthwise_convolution(self, weight: Tensor, bias: Tensor) -> DepthwiseConvolution:
        """Prepare a convolution of each channel, on all clips at once."""
        return StreamConvolution(weight, bias)


class Span(NamedTuple):
    """Neighbouring clips of equal length, which share one attention call."""

    rows: slice
    n_clips: int
    n_frames: int


def find_spans(counts: tuple[int, ...], n_heads: int) -> list[Span]:
    """Group neighbours of equal length, up to the size of one attention call.

    Args:
        counts: Number of frames of each clip.
        n_heads: Number of attention heads.

    Returns:
        Spans that cover all rows in order.
    """
    spans: list[Span] = []
    start = 0
    for n_frames, equal in groupby(counts):
        n_left = len(list(equal))
        n_most = max(1, _SCORES // (n_heads * n_frames**2))
        while n_left:
            n_clips = min(n_left, n_most)
            stop = start + n_clips * n_frames
            spans.append(Span(slice(start, stop), n_clips, n_frames))
            start, n_left = stop, n_left - n_clips
    return spans


def is_packing_faster() -> bool:
    """Return whether oneDNN's packed products are the faster ones on this CPU.

    It depends on the kind of CPU alone, not on a measurement: the bits of a feature depend on it.
    """
    capability: str = torch.backends.cpu.get_cpu_capability()
    return capability.startswith(("AVX512", "AVX10"))


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN has fused products for this device and dtype."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32

"""Blocks of Wav2Vec2-Conformer (Gulati et al. 2020, "Conformer"), on packed batches.

`ConformerLayer` holds the weights of a block by the names of transformers, and computes nothing:
transformers is the reference. A block is half a feed-forward, attention, a convolution over time
and half a feed-forward, each added to its input, then a layer norm. Positions enter attention as
relative ones, by rotation, or not at all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.encoders.kernels.base import Kernels, Pack, RelativePositions, wide_dtype
from pipeline.encoders.wav2vec2.norms import BatchNorm, LayerNorm

_TABLE_FRAMES = 256  # the table of relative positions grows in steps of this
_KEY_FRAMES = 64  # products of few sizes: oneDNN keeps a kernel for every size


class ConformerLayer(nn.Module):
    """Weights of one block."""

    def __init__(self, dim: int, inner: int, heads: int, kernel: int, position: str | None) -> None:
        """Make the modules of a block.

        Args:
            dim: Size of a feature vector.
            inner: Inner size of the feed-forwards.
            heads: Attention heads.
            kernel: Frames of the convolution, odd.
            position: "relative", "rotary" or None.
        """
        super().__init__()
        self.ffn1_layer_norm, self.ffn1 = nn.LayerNorm(dim), _feed_forward(dim, inner)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = nn.Module()
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            self.self_attn.add_module(name, nn.Linear(dim, dim))
        if position == "relative":
            self.self_attn.linear_pos = nn.Linear(dim, dim, bias=False)
            for name in ("pos_bias_u", "pos_bias_v"):
                bias = nn.Parameter(torch.zeros(heads, dim // heads))
                self.self_attn.register_parameter(name, bias)
        self.conv_module = nn.Module()
        self.conv_module.layer_norm = nn.LayerNorm(dim)
        self.conv_module.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.conv_module.depthwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)
        self.conv_module.batch_norm = BatchNorm(dim)
        self.conv_module.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)
        self.ffn2_layer_norm, self.ffn2 = nn.LayerNorm(dim), _feed_forward(dim, inner)
        self.final_layer_norm = nn.LayerNorm(dim)


def _feed_forward(dim: int, inner: int) -> nn.Module:
    module = nn.Module()
    module.intermediate_dense = nn.Linear(dim, inner)
    module.output_dense = nn.Linear(inner, dim)
    return module


class RotaryTable(nn.Module):
    """Frequencies of the rotations, which checkpoints hold as a weight."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", 10_000.0**-exponents)


class Positions:
    """What the blocks of a model share about the positions of frames."""

    def __init__(self, model: Any, dim: int, position: str | None, dtype: torch.dtype) -> None:
        """Prepare the tables.

        Args:
            model: The transformer, which for "rotary" has `embed_positions`.
            dim: Size of a feature vector.
            position: "relative", "rotary" or None.
            dtype: Dtype of the matrix products.
        """
        self._wide, self._dim = wide_dtype(dtype), dim
        self.kind = position
        self._table: Tensor | None = None
        self._rotations: tuple[Pack, Tensor, Tensor] | None = None
        self._device = model.layer_norm.weight.device
        self._frequencies: Tensor | None = None
        if position == "rotary":
            self._frequencies = model.embed_positions.inv_freq.to(self._wide)

    def relative(self, n_frames: int) -> Tensor:
        """Return sinusoids of the positions n - 1 … -(n - 1): `[2 * n_frames - 1, dim]`.

        In float32, as in transformers: longer products of position and frequency are rounded alike.
        """
        if self._table is None or len(self._table) < 2 * n_frames - 1:
            n = -(-n_frames // _TABLE_FRAMES) * _TABLE_FRAMES
            places = torch.arange(n - 1, -n, -1, dtype=torch.float32)[:, None]
            even = torch.arange(0, self._dim, 2, dtype=torch.float32)
            angles = places * torch.exp(even * -(math.log(10_000.0) / self._dim))
            table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
            self._table = table.to(self._device, self._wide)
        first = (len(self._table) + 1) // 2 - n_frames
        return self._table[first : first + 2 * n_frames - 1]

    def rotate(self, x: Tensor, pack: Pack, n_heads: int) -> Tensor:
        """Rotate the vectors of each head by the position of their frame: `[n_rows, dim]`."""
        cos, sin = self._rotation(pack)
        heads = x.view(len(x), n_heads, -1)
        begin, end = heads.chunk(2, dim=-1)
        turned = torch.cat([-end, begin], dim=-1)
        return torch.addcmul(heads * cos, turned, sin).flatten(1)

    def _rotation(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of each row, `[n_rows, 1, head_dim]`, once per batch."""
        if self._rotations is None or self._rotations[0] is not pack:
            assert self._frequencies is not None
            places = np.zeros(pack.n_rows, np.int64)
            places[: pack.n_frames] = pack.frame_in_clip
            angles = pack.indices(places)[:, None].to(self._wide) * self._frequencies
            angles = torch.cat([angles, angles], dim=-1)[:, None]
            self._rotations = pack, angles.cos(), angles.sin()
        return self._rotations[1:]


class _FeedForward:
    """Half a feed-forward: the factor 1/2 is in the weights of the second product."""

    def __init__(
        self, norm: Any, module: Any, activation: str, kernels: Kernels, dtype: torch.dtype
    ) -> None:
        inner, outer = module.intermediate_dense, module.output_dense
        self._norm = LayerNorm(norm, dtype)
        self._inner = kernels.linear(inner.weight, inner.bias, dtype)
        self._outer = kernels.linear(0.5 * outer.weight, 0.5 * outer.bias, dtype)
        self._is_gelu = activation == "gelu"

    def __call__(self, x: Tensor) -> Tensor:
        """Map float32 `[n_rows, dim]` to `[n_rows, dim]` in the dtype of the matrix products."""
        y = self._inner(self._norm(x), gelu=self._is_gelu)
        return self._outer(y if self._is_gelu else F.silu(y, inplace=True))


class _Attention:
    """Self-attention of one block."""

    def __init__(
        self, module: Any, positions: Positions, n_heads: int, kernels: Kernels, dtype: torch.dtype
    ) -> None:
        self._n_heads, self._kernels, self._positions = n_heads, kernels, positions
        parts = [module.linear_q, module.linear_k, module.linear_v]
        self._is_rotary = positions.kind == "rotary"
        groups = [parts[:2], parts[2:]] if self._is_rotary else [parts]
        self._projections = [
            kernels.linear(
                torch.cat([part.weight for part in group]),
                torch.cat([part.bias for part in group]),
                dtype,
            )
            for group in groups
        ]
        self._relative: RelativePositions | None = None
        if positions.kind == "relative":
            self._places = kernels.linear(module.linear_pos.weight, None, dtype)
            biases = module.pos_bias_u.detach().to(dtype), module.pos_bias_v.detach().to(dtype)
            self._relative = RelativePositions(*biases, keys=self._keys)
        self._out = kernels.linear(module.linear_out.weight, module.linear_out.bias, dtype)

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Attend within each clip: `[n_rows, dim]` in the dtype of the matrix products."""
        if self._is_rotary:
            rotated = self._positions.rotate(x, pack, self._n_heads)
            turned, plain = self._projections
            projected = torch.cat([turned(rotated), plain(x)], dim=1)
        else:
            projected = self._projections[0](x)  # [n_rows, 3 * dim]
        if self._relative is None:
            return self._out(self._kernels.attention(projected, pack, self._n_heads))
        attend = self._kernels.relative_attention
        return self._out(attend(projected, pack, self._n_heads, self._relative))

    def _keys(self, n_frames: int) -> Tensor:
        """Project the sinusoids of relative positions: `[heads, 2 * n_frames - 1, head_dim]`."""
        n = -(-n_frames // _KEY_FRAMES) * _KEY_FRAMES
        keys = self._places(self._positions.relative(n))[n - n_frames : n + n_frames - 1]
        return keys.view(len(keys), self._n_heads, -1).transpose(0, 1)


class _Convolution:
    """Convolution over time of each channel between two products; its batch norm is folded in."""

    def __init__(self, module: Any, activation: str, kernels: Kernels, dtype: torch.dtype) -> None:
        wide = wide_dtype(dtype)
        factor, term = module.batch_norm.factors()
        weight = module.depthwise_conv.weight[:, 0].double() * factor[:, None]
        self._norm = LayerNorm(module.layer_norm, dtype)
        self._inner = kernels.linear(module.pointwise_conv1.weight[..., 0], None, dtype)
        self._convolve = kernels.depthwise_convolution(weight.to(wide), term.to(wide))
        self._outer = kernels.linear(module.pointwise_conv2.weight[..., 0], None, dtype)
        self._activate = F.gelu if activation == "gelu" else F.silu

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Map float32 `[n_rows, dim]` to `[n_rows, dim]` in the dtype of the matrix products."""
        gated = F.glu(self._inner(self._norm(x)), dim=1)
        y = self._activate(self._convolve(gated[: pack.n_frames], pack))
        return self._outer(F.pad(y, (0, 0, 0, pack.n_rows - pack.n_frames)))


class ConformerBlock:
    """One block in one precision."""

    def __init__(
        self,
        layer: Any,
        positions: Positions,
        n_heads: int,
        activation: str,
        kernels: Kernels,
        dtype: torch.dtype,
    ) -> None:
        """Prepare the weights.

        Args:
            layer: A `ConformerLayer`.
            positions: Tables that the blocks of the model share.
            n_heads: Number of attention heads.
            activation: "gelu" or "silu".
            kernels: Operations for the model's device.
            dtype: Dtype of the matrix products.
        """
        common = activation, kernels, dtype
        self._first = _FeedForward(layer.ffn1_layer_norm, layer.ffn1, *common)
        self._attention_norm = LayerNorm(layer.self_attn_layer_norm, dtype)
        self._attention = _Attention(layer.self_attn, positions, n_heads, kernels, dtype)
        self._convolution = _Convolution(layer.conv_module, *common)
        self._second = _FeedForward(layer.ffn2_layer_norm, layer.ffn2, *common)
        self._norm = LayerNorm(layer.final_layer_norm, dtype)

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Map float32 `[n_rows, dim]` to float32 `[n_rows, dim]`."""
        x = x + self._first(x)
        x = x + self._attention(self._attention_norm(x), pack)
        x = x + self._convolution(x, pack)
        return self._norm(x + self._second(x))

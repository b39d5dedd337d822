"""The transformer of every model in the family, driven block by block on torchaudio's weights.

The residual stream, the norms and the gates stay in float32; only the inputs of matrix products are
cast to the precision. Padded frames are zero before the positional convolution and masked as keys;
a batch of equal lengths has no mask at all, so that attention takes its fastest kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoder.frontend import gelu_, normalize_layers
from pipeline.encoder.registry import ModelSpec

_BIAS_ELEMENTS = 2**26  # of WavLM's attention bias at once: 256 MB in float32
# oneDNN's bf16 convolution for AMX gives wrong sums with 2, 4 or 8 channels in a group (seen in
# torch 2.14), so narrower groups than this are convolved in float32. Real models have 48 or more.
_NARROWEST_GROUP = 16


class _Linear:
    """A linear map with its weights in the precision of the products."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class _Attention:
    """Self-attention of one block; with WavLM's gated relative position bias where it has one."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.n_heads = module.num_heads
        self.gate: Any = None
        if hasattr(module, "attention"):  # WavLM keeps the three projections stacked
            stacked = module.attention
            self.project = _Linear(stacked.in_proj_weight, stacked.in_proj_bias, dtype)
            self.out = _Linear(stacked.out_proj.weight, stacked.out_proj.bias, dtype)
            self.gate = module
        else:
            parts = (module.q_proj, module.k_proj, module.v_proj)
            weight = torch.cat([part.weight for part in parts])
            bias = torch.cat([part.bias for part in parts])
            self.project = _Linear(weight, bias, dtype)
            self.out = _Linear(module.out_proj.weight, module.out_proj.bias, dtype)

    def __call__(self, x: Tensor, key_mask: Tensor | None, position_bias: Tensor | None) -> Tensor:
        """Attend within each utterance.

        Args:
            x: float32 `[batch, frames, dim]`.
            key_mask: bool `[batch, 1, 1, frames]`, True on real frames; None if all are.
            position_bias: float32 `[heads, frames, frames]` of WavLM; None elsewhere.

        Returns:
            `[batch, frames, dim]` in the precision's dtype.
        """
        batch, frames, dim = x.shape
        heads = self.project(x).view(batch, frames, 3, self.n_heads, dim // self.n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [batch, heads, frames, dim / heads]
        if position_bias is None:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        else:
            gate = self._gate(x)
            step = max(1, _BIAS_ELEMENTS // position_bias.numel())
            mixed = torch.cat(
                [
                    F.scaled_dot_product_attention(
                        query[part],
                        key[part],
                        value[part],
                        attn_mask=_bias(gate[part], position_bias, key_mask, part, query.dtype),
                    )
                    for part in (slice(i, i + step) for i in range(0, batch, step))
                ]
            )
        return self.out(mixed.transpose(1, 2).reshape(batch, frames, dim))

    def _gate(self, x: Tensor) -> Tensor:
        """WavLM's gate on the position bias: `[batch, heads, frames, 1]`, float32.

        Chen et al., "WavLM", equations (4) and (5).
        """
        batch, frames, dim = x.shape
        heads = x.view(batch, frames, self.n_heads, dim // self.n_heads).transpose(1, 2)
        linear = self.gate.gru_rel_pos_linear
        logits = F.linear(heads, linear.weight, linear.bias)
        update, reset = (
            logits.view(batch, self.n_heads, frames, 2, 4).sum(-1).sigmoid().chunk(2, dim=-1)
        )
        gate: Tensor = update * (reset * self.gate.gru_rel_pos_const - 1.0) + 2.0
        return gate


def _bias(
    gate: Tensor, position_bias: Tensor, key_mask: Tensor | None, part: slice, dtype: torch.dtype
) -> Tensor:
    """Additive attention mask `[part, heads, frames, frames]` of a part of the batch."""
    bias = gate * position_bias
    if key_mask is not None:
        bias = bias.masked_fill_(~key_mask[part], float("-inf"))
    return bias.to(dtype)


class _Block:
    """One transformer block: pre-norm (large models) or post-norm (base models)."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        self.pre_norm = layer.layer_norm_first
        self.attention = _Attention(layer.attention, dtype)
        self.norm, self.final_norm = layer.layer_norm, layer.final_layer_norm
        inner, outer = layer.feed_forward.intermediate_dense, layer.feed_forward.output_dense
        self.inner = _Linear(inner.weight, inner.bias, dtype)
        self.outer = _Linear(outer.weight, outer.bias, dtype)

    def __call__(self, x: Tensor, key_mask: Tensor | None, position_bias: Tensor | None) -> Tensor:
        """Map float32 `[batch, frames, dim]` to the same shape."""
        if self.pre_norm:
            x = x + self.attention(normalize_layers(x, self.norm), key_mask, position_bias)
            return x + self.outer(gelu_(self.inner(normalize_layers(x, self.final_norm))))
        x = normalize_layers(x + self.attention(x, key_mask, position_bias), self.norm)
        return normalize_layers(x + self.outer(gelu_(self.inner(x))), self.final_norm)


class Transformer:
    """Feature projection, positional convolution and blocks of one model in one precision."""

    def __init__(self, model: Any, spec: ModelSpec, dtype: torch.dtype, depth: int) -> None:
        """Prepare the weights.

        Args:
            model: torchaudio's `Wav2Vec2Model`, float32.
            spec: its settings.
            dtype: of the matrix products.
            depth: number of blocks to prepare; deeper ones are never run.
        """
        encoder = model.encoder
        projection = encoder.feature_projection
        self._input_norm = projection.layer_norm
        self._projection = _Linear(projection.projection.weight, projection.projection.bias, dtype)
        position = encoder.transformer.pos_conv_embed
        per_group = spec.dim // position.conv.groups
        narrow = torch.float32 if per_group < _NARROWEST_GROUP else dtype
        self._position_weight = position.conv.weight.to(narrow)  # weight norm applied once, here
        self._position_bias = position.conv.bias.to(narrow)
        self._position_groups = position.conv.groups
        self._position_padding = position.kernel_size // 2
        self._norm = None if spec.pre_norm else encoder.transformer.layer_norm
        layers = encoder.transformer.layers
        self._relative = layers[0].attention if spec.kind == "wavlm" else None
        self._blocks = [_Block(layer, dtype) for layer in layers[:depth]]

    def __call__(
        self,
        frames: Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        layers: Sequence[int],
        out_dtype: torch.dtype,
    ) -> Tensor:
        """Run the blocks over a batch.

        Args:
            frames: the front end's output, `[rows, channels]`, utterances one after another.
            starts: row at which each utterance begins.
            counts: number of frames of each utterance.
            layers: layers to return, ascending; 0 is the input of block 1.
            out_dtype: of the result.

        Returns:
            `[len(layers), batch, max(counts), dim]`. Beyond an utterance's count it means nothing.
        """
        x = self._projection(normalize_layers(frames, self._input_norm))
        # Zero beyond each utterance: the positional convolution reaches 64 frames to both sides.
        x = torch.nn.utils.rnn.pad_sequence(
            [x[start : start + count] for start, count in zip(starts, counts, strict=True)],
            batch_first=True,
        )  # [batch, frames, dim]
        x = self._add_position(x)
        longest = max(counts)
        key_mask = None
        if min(counts) < longest:
            lengths = torch.tensor(counts, device=x.device)
            inside = torch.arange(longest, device=x.device) < lengths[:, None]
            key_mask = inside[:, None, None, :]
        position_bias = None
        if self._relative is not None:
            position_bias = self._relative.compute_bias(longest, longest)  # [heads, frames, frames]
        out = torch.empty(len(layers), *x.shape, dtype=out_dtype, device=x.device)
        wanted = {layer: i for i, layer in enumerate(layers)}
        if 0 in wanted:
            out[wanted[0]] = x
        for number, block in enumerate(self._blocks[: layers[-1]], start=1):
            x = block(x, key_mask, position_bias)
            if number in wanted:
                out[wanted[number]] = x
        return out

    def _add_position(self, x: Tensor) -> Tensor:
        """Add the positional convolution to `[batch, frames, dim]`; the result is float32."""
        with _exact_convolution(self._position_weight):
            y = F.conv1d(
                x.transpose(1, 2).to(self._position_weight.dtype),
                self._position_weight,
                self._position_bias,
                padding=self._position_padding,
                groups=self._position_groups,
            )
        y = gelu_(y[..., : x.shape[1]]).transpose(1, 2)  # an even kernel makes one frame too many
        x = x.float() + y
        return x if self._norm is None else normalize_layers(x, self._norm)


def _exact_convolution(weight: Tensor) -> AbstractContextManager[None]:
    """Keep cuDNN, which rounds float32 to TF32 unless told not to, from doing so."""
    if weight.is_cuda and weight.dtype == torch.float32:
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()

"""The transformer of the family, block by block, with the weights of torchaudio's modules.

The residual stream, the norms and the gates stay in float32; only the inputs of matrix products are
cast to the precision. A batch is the concatenated rows of its utterances, without padding.
Attention runs over each utterance separately, or over neighbours of equal length in one call, and
needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.cpu import Linear, round_up_rows
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.frontend import normalize_layers
from pipeline.encoders.wav2vec2.position import PositionalConvolution

_SCORES = 2**26  # of one attention call: 256 MB in float32 if they are materialised (WavLM)


class Span(NamedTuple):
    """Neighbouring utterances of equal length, which share one attention call."""

    rows: slice
    n_utterances: int
    n_frames: int


def find_spans(counts: Sequence[int], n_heads: int) -> list[Span]:
    """Group neighbours of equal length, up to the size of one attention call.

    Args:
        counts: Number of frames of each utterance.
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
            n_utterances = min(n_left, n_most)
            stop = start + n_utterances * n_frames
            spans.append(Span(slice(start, stop), n_utterances, n_frames))
            start, n_left = stop, n_left - n_utterances
    return spans


class _Attention:
    """Self-attention of one block, for WavLM with its gated relative position bias."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.n_heads = module.num_heads
        self.gate: Any = None
        if hasattr(module, "attention"):  # WavLM stacks the three projections
            stacked = module.attention
            self.project = Linear(stacked.in_proj_weight, stacked.in_proj_bias, dtype)
            self.out = Linear(stacked.out_proj.weight, stacked.out_proj.bias, dtype)
            self.gate = module
        else:
            parts = (module.q_proj, module.k_proj, module.v_proj)
            weight = torch.cat([part.weight for part in parts])
            bias = torch.cat([part.bias for part in parts])
            self.project = Linear(weight, bias, dtype)
            self.out = Linear(module.out_proj.weight, module.out_proj.bias, dtype)

    def __call__(self, x: Tensor, spans: Sequence[Span], position_bias: Tensor | None) -> Tensor:
        """Attend within each utterance.

        Args:
            x: float32 `[rows, dim]`.
            spans: Utterances in `x`. Rows after the last span are padding.
            position_bias: float32 `[heads, frames, frames]` for the longest utterance (WavLM), or
                None.

        Returns:
            `[rows, dim]` in the dtype of the matrix products.
        """
        dim = x.shape[1]
        projected = self.project(x)  # [rows, 3 * dim]
        gate = None if position_bias is None else self._gate(x)
        mixed = torch.empty(x.shape, dtype=projected.dtype, device=x.device)
        mixed[spans[-1].rows.stop :] = 0.0
        for span in spans:
            heads = projected[span.rows].view(
                span.n_utterances, span.n_frames, 3, self.n_heads, dim // self.n_heads
            )
            query, key, value = heads.permute(2, 0, 3, 1, 4)  # [utterances, heads, frames, ...]
            bias = None
            if gate is not None and position_bias is not None:
                gates = gate[span.rows].view(span.n_utterances, span.n_frames, -1).transpose(1, 2)
                bias = gates[..., None] * position_bias[:, : span.n_frames, : span.n_frames]
                bias = bias.to(query.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            mixed[span.rows] = attended.transpose(1, 2).reshape(-1, dim)
        return self.out(mixed)

    def _gate(self, x: Tensor) -> Tensor:
        """Compute WavLM's gate on the position bias: float32 `[rows, heads]`.

        Chen et al., "WavLM", equations (4) and (5).
        """
        rows, dim = x.shape
        heads = x.view(rows, self.n_heads, dim // self.n_heads)
        linear = self.gate.gru_rel_pos_linear
        logits = F.linear(heads, linear.weight, linear.bias)
        update, reset = logits.view(rows, self.n_heads, 2, 4).sum(-1).sigmoid().unbind(-1)
        constant = self.gate.gru_rel_pos_const.view(self.n_heads)
        gate: Tensor = update * (reset * constant - 1.0) + 2.0
        return gate


class _Block:
    """One transformer block: pre-norm (large models) or post-norm (base models)."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        self.pre_norm = layer.layer_norm_first
        self.attention = _Attention(layer.attention, dtype)
        self.norm, self.final_norm = layer.layer_norm, layer.final_layer_norm
        inner, outer = layer.feed_forward.intermediate_dense, layer.feed_forward.output_dense
        self.inner = Linear(inner.weight, inner.bias, dtype)
        self.outer = Linear(outer.weight, outer.bias, dtype)

    def __call__(self, x: Tensor, spans: Sequence[Span], position_bias: Tensor | None) -> Tensor:
        """Map float32 `[rows, dim]` to float32 `[rows, dim]`."""
        if self.pre_norm:
            x = x + self.attention(normalize_layers(x, self.norm), spans, position_bias)
            return x + self.outer(self.inner(normalize_layers(x, self.final_norm), gelu=True))
        x = normalize_layers(x + self.attention(x, spans, position_bias), self.norm)
        return normalize_layers(x + self.outer(self.inner(x, gelu=True)), self.final_norm)


class Transformer:
    """Feature projection, positional convolution and blocks of one model in one precision."""

    def __init__(self, model: Any, spec: ModelSpec, dtype: torch.dtype, depth: int) -> None:
        """Prepare the weights.

        Args:
            model: torchaudio's `Wav2Vec2Model`, float32.
            spec: Architecture of the model.
            dtype: Dtype of the matrix products.
            depth: Number of blocks to prepare; deeper ones are not run.
        """
        encoder = model.encoder
        projection = encoder.feature_projection
        self._input_norm = projection.layer_norm
        self._projection = Linear(projection.projection.weight, projection.projection.bias, dtype)
        self._position = PositionalConvolution(encoder.transformer.pos_conv_embed, dtype)
        self._norm = None if spec.pre_norm else encoder.transformer.layer_norm
        layers = encoder.transformer.layers
        self._relative = layers[0].attention if spec.kind == "wavlm" else None
        self._blocks = [_Block(layer, dtype) for layer in layers[:depth]]
        self._n_heads = layers[0].attention.num_heads

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
            frames: Output of the front end, `[rows, channels]`, the concatenated utterances.
            starts: First row of each utterance.
            counts: Number of frames of each utterance.
            layers: Layers to return, ascending; 0 is the input of block 1.
            out_dtype: Dtype of the result.

        Returns:
            `[len(layers), batch, max(counts), dim]`, zero beyond an utterance's frames.
        """
        n_frames = sum(counts)
        parts = [frames[start : start + n] for start, n in zip(starts, counts, strict=True)]
        parts.append(frames.new_zeros(n_rows(counts) - n_frames, frames.shape[1]))
        x = self._projection(normalize_layers(torch.cat(parts), self._input_norm))  # [rows, dim]
        inside, outside = _rectangle_rows(counts, x.device)
        position = self._position(x[:n_frames], counts)
        x = x.float()
        x[:n_frames] += position
        if self._norm is not None:
            x = normalize_layers(x, self._norm)
        spans = find_spans(counts, self._n_heads)
        position_bias = None
        if self._relative is not None:
            longest = max(counts)
            position_bias = self._relative.compute_bias(longest, longest)  # [heads, frames, frames]
        shape = len(layers), len(counts), max(counts), x.shape[1]
        out = torch.empty(shape, dtype=out_dtype, device=x.device)
        out_by_layer = {layer: out[i].flatten(0, 1) for i, layer in enumerate(layers)}
        out.flatten(1, 2).index_fill_(1, outside, 0.0)
        if 0 in out_by_layer:
            out_by_layer[0].index_copy_(0, inside, x[:n_frames].to(out_dtype))
        for number, block in enumerate(self._blocks[: layers[-1]], start=1):
            x = block(x, spans, position_bias)
            if number in out_by_layer:
                out_by_layer[number].index_copy_(0, inside, x[:n_frames].to(out_dtype))
        return out


def n_rows(counts: Sequence[int]) -> int:
    """Count the rows to compute: the frames, rounded up."""
    return round_up_rows(sum(counts))


def _rectangle_rows(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index the rows of the flattened rectangle that hold frames, and the padding: int64 each."""
    is_frame = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    inside, outside = is_frame.flatten().nonzero()[:, 0], (~is_frame).flatten().nonzero()[:, 0]
    return inside.to(device, non_blocking=True), outside.to(device, non_blocking=True)

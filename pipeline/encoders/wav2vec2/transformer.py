"""The transformer of every model in the family, driven block by block on torchaudio's weights.

The residual stream, the norms and the gates stay in float32; only the inputs of matrix products are
cast to the precision. A batch is the rows of its utterances one after another, without padding, so
no product is wasted on it; attention runs over each utterance, or over neighbours of equal length
together, and needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.cpu import Linear, fill_up
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.frontend import normalize_layers
from pipeline.encoders.wav2vec2.position import PositionalConvolution

_SCORES = 2**26  # of one attention call: 256 MB in float32 where it has to be made, as for WavLM


class Span(NamedTuple):
    """Neighbouring utterances of equal length, which attention takes together."""

    rows: slice
    n_utterances: int
    n_frames: int


def find_spans(counts: Sequence[int], n_heads: int) -> list[Span]:
    """Groups neighbours of equal length, as many as one attention call may take.

    Args:
        counts: frames of each utterance.
        n_heads: of the attention.

    Returns:
        Spans that cover all rows in order.
    """
    spans: list[Span] = []
    start = 0
    for n_frames, equal in groupby(counts):
        left = len(list(equal))
        most = max(1, _SCORES // (n_heads * n_frames**2))
        while left:
            n_utterances = min(left, most)
            stop = start + n_utterances * n_frames
            spans.append(Span(slice(start, stop), n_utterances, n_frames))
            start, left = stop, left - n_utterances
    return spans


class _Attention:
    """Self-attention of one block; with WavLM's gated relative position bias where it has one."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.n_heads = module.num_heads
        self.gate: Any = None
        if hasattr(module, "attention"):  # WavLM keeps the three projections stacked
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
            spans: the utterances in it; rows behind the last belong to none.
            position_bias: float32 `[heads, frames, frames]` of WavLM, for the longest utterance;
                None elsewhere.

        Returns:
            `[rows, dim]` in the precision's dtype.
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
                own = gate[span.rows].view(span.n_utterances, span.n_frames, -1).transpose(1, 2)
                bias = own[..., None] * position_bias[:, : span.n_frames, : span.n_frames]
                bias = bias.to(query.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            mixed[span.rows] = attended.transpose(1, 2).reshape(-1, dim)
        return self.out(mixed)

    def _gate(self, x: Tensor) -> Tensor:
        """WavLM's gate on the position bias: `[rows, heads]`, float32.

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
        """Map float32 `[rows, dim]` to the same shape."""
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
            spec: its settings.
            dtype: of the matrix products.
            depth: number of blocks to prepare; deeper ones are never run.
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
            frames: the front end's output, `[rows, channels]`, utterances one after another.
            starts: row at which each utterance begins.
            counts: number of frames of each utterance.
            layers: layers to return, ascending; 0 is the input of block 1.
            out_dtype: of the result.

        Returns:
            `[len(layers), batch, max(counts), dim]`, zero beyond an utterance's count.
        """
        n_own = sum(counts)
        own = [frames[start : start + n] for start, n in zip(starts, counts, strict=True)]
        own.append(frames.new_zeros(n_rows(counts) - n_own, frames.shape[1]))
        x = self._projection(normalize_layers(torch.cat(own), self._input_norm))  # [rows, dim]
        places, beyond = _places(counts, x.device)
        position = self._position(x[:n_own], counts)
        x = x.float()
        x[:n_own] += position
        if self._norm is not None:
            x = normalize_layers(x, self._norm)
        spans = find_spans(counts, self._n_heads)
        position_bias = None
        if self._relative is not None:
            longest = max(counts)
            position_bias = self._relative.compute_bias(longest, longest)  # [heads, frames, frames]
        shape = len(layers), len(counts), max(counts), x.shape[1]
        out = torch.empty(shape, dtype=out_dtype, device=x.device)
        wanted = {layer: out[i].flatten(0, 1) for i, layer in enumerate(layers)}
        out.flatten(1, 2).index_fill_(1, beyond, 0.0)
        if 0 in wanted:
            wanted[0].index_copy_(0, places, x[:n_own].to(out_dtype))
        for number, block in enumerate(self._blocks[: layers[-1]], start=1):
            x = block(x, spans, position_bias)
            if number in wanted:
                wanted[number].index_copy_(0, places, x[:n_own].to(out_dtype))
        return out


def n_rows(counts: Sequence[int]) -> int:
    """Rows computed for utterances of so many frames: theirs, and some to fill up."""
    return fill_up(sum(counts))


def _places(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where rows lie in the flattened rectangle, and where nothing does: int64 indices."""
    inside = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    places, beyond = inside.flatten().nonzero()[:, 0], (~inside).flatten().nonzero()[:, 0]
    return places.to(device, non_blocking=True), beyond.to(device, non_blocking=True)

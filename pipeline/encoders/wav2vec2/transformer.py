"""The transformer of the family, block by block, with the weights of torchaudio's modules.

The residual stream, the norms and the gates stay in float32; only the inputs of matrix products are
cast to the precision. A batch is the concatenated rows of its clips, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.base import Clock
from pipeline.encoders.kernels.base import Kernels, Pack, wide_dtype
from pipeline.encoders.kernels.reference import gelu_
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.conformer import ConformerBlock, Positions
from pipeline.encoders.wav2vec2.norms import LayerNorm

_BIAS_FRAMES = 256  # the table of the position bias grows in steps of this


class _Attention:
    """Self-attention of one block, for WavLM with its gated relative position bias."""

    def __init__(self, module: Any, kernels: Kernels, dtype: torch.dtype) -> None:
        self._n_heads = module.num_heads
        self._attend = kernels.attention
        self._gate: _Gate | None = None
        if hasattr(module, "attention"):  # WavLM stacks the three projections
            stacked = module.attention
            weight, bias, out = stacked.in_proj_weight, stacked.in_proj_bias, stacked.out_proj
            self._gate = _Gate(module, dtype)
        else:
            parts = (module.q_proj, module.k_proj, module.v_proj)
            weight = torch.cat([part.weight for part in parts])
            bias = torch.cat([part.bias for part in parts])
            out = module.out_proj
        self._project = kernels.linear(weight, bias, dtype)
        self._out = kernels.linear(out.weight, out.bias, dtype)

    def __call__(self, x: Tensor, pack: Pack, position_bias: _PositionBias | None) -> Tensor:
        """Attend within each clip.

        Args:
            x: float32 `[n_rows, dim]`.
            pack: Places of the clips.
            position_bias: WavLM's position bias, or None.

        Returns:
            `[n_rows, dim]` in the dtype of the matrix products.
        """
        gates = None if self._gate is None else self._gate(x)
        projected = self._project(x)  # [n_rows, 3 * dim]
        return self._out(self._attend(projected, pack, self._n_heads, gates, position_bias))


class _Gate:
    """WavLM's gate on the position bias (Chen et al., "WavLM", equations (4) and (5))."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        wide = wide_dtype(dtype)
        self._n_heads = module.num_heads
        linear = module.gru_rel_pos_linear
        self._weight, self._bias = linear.weight.to(wide), linear.bias.to(wide)
        self._constant = module.gru_rel_pos_const.view(self._n_heads).to(wide)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the gates of float32 `[n_rows, dim]`: float32 `[n_rows, heads]`."""
        heads = x.view(len(x), self._n_heads, -1)
        logits = F.linear(heads, self._weight, self._bias)
        update, reset = logits.view(len(x), self._n_heads, 2, 4).sum(-1).sigmoid().unbind(-1)
        gate: Tensor = update * (reset * self._constant - 1.0) + 2.0
        return gate


class _PositionBias:
    """WavLM's relative position bias; the table of the longest clips so far is kept."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, wide_dtype(dtype)
        self._table: Tensor | None = None

    def __call__(self, n_frames: int) -> Tensor:
        """Return the bias of clips of `n_frames`: float32 `[heads, n_frames, n_frames]`."""
        if self._table is None or self._table.shape[1] < n_frames:
            rounded = -(-n_frames // _BIAS_FRAMES) * _BIAS_FRAMES
            self._table = self._module.compute_bias(rounded, rounded).to(self._dtype)
        return self._table[:, :n_frames, :n_frames]


class _Adapter:
    """Bottleneck after a block (MMS), whose output is added to that of the block."""

    def __init__(self, module: Any, kernels: Kernels, dtype: torch.dtype) -> None:
        self._norm = LayerNorm(module.norm, dtype)
        self._inner = kernels.linear(module.linear_1.weight, module.linear_1.bias, dtype)
        self._outer = kernels.linear(module.linear_2.weight, module.linear_2.bias, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map float32 `[n_rows, dim]` to `[n_rows, dim]` in the dtype of the matrix products."""
        return self._outer(self._inner(self._norm(x)).relu_())


class _Position:
    """Positional convolution, in some HuBERTs after a batch norm, applied as an affine map."""

    def __init__(self, module: Any, kernels: Kernels, dtype: torch.dtype) -> None:
        conv = module.conv
        self._convolve = kernels.positional_convolution(conv.weight, conv.bias, conv.groups, dtype)
        self._affine: tuple[Tensor, Tensor] | None = None
        if hasattr(module, "batch_norm"):
            factor, term = module.batch_norm.factors()
            self._affine = factor.to(wide_dtype(dtype)), term.to(wide_dtype(dtype))

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Map packed frames `[n_frames, dim]` to the same shape."""
        if self._affine is not None:
            factor, term = self._affine
            x = torch.addcmul(term, x.to(factor.dtype), factor)
        return self._convolve(x, pack)


class _PositionStack:
    """data2vec's positional convolutions, each with a layer norm without weights and GELU."""

    def __init__(self, module: Any, kernels: Kernels, dtype: torch.dtype) -> None:
        self._wide = wide_dtype(dtype)
        self._layers = [
            kernels.positional_convolution(
                layer.conv.weight, layer.conv.bias, layer.conv.groups, dtype, gelu=False
            )
            for layer in module.layers
        ]

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Map packed frames `[n_frames, dim]` to float32 of the same shape."""
        for convolve in self._layers:
            x = gelu_(F.layer_norm(convolve(x, pack).to(self._wide), x.shape[1:]))
        return x


class _Block:
    """One transformer block: pre-norm (large models) or post-norm (base models)."""

    def __init__(
        self, layer: Any, kernels: Kernels, dtype: torch.dtype, bias: _PositionBias | None
    ) -> None:
        self._pre_norm, self._bias = layer.layer_norm_first, bias
        self._attention = _Attention(layer.attention, kernels, dtype)
        self._norm = LayerNorm(layer.layer_norm, dtype)
        self._final_norm = LayerNorm(layer.final_layer_norm, dtype)
        inner, outer = layer.feed_forward.intermediate_dense, layer.feed_forward.output_dense
        self._inner = kernels.linear(inner.weight, inner.bias, dtype)
        self._outer = kernels.linear(outer.weight, outer.bias, dtype)
        adapter = getattr(layer, "adapter_layer", None)
        self._adapter = None if adapter is None else _Adapter(adapter, kernels, dtype)

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Map float32 `[n_rows, dim]` to float32 `[n_rows, dim]`."""
        if self._pre_norm:
            x = x + self._attention(self._norm(x), pack, self._bias)
            x = x + self._outer(self._inner(self._final_norm(x), gelu=True))
            return x if self._adapter is None else x + self._adapter(x)
        x = self._norm(x + self._attention(x, pack, self._bias))
        return self._final_norm(x + self._outer(self._inner(x, gelu=True)))


class Transformer:
    """Feature projection, positional convolution and blocks of one model in one precision."""

    def __init__(
        self, model: Any, spec: ModelSpec, kernels: Kernels, dtype: torch.dtype, depth: int
    ) -> None:
        """Prepare the weights.

        Args:
            model: torchaudio's `Wav2Vec2Model`, float32.
            spec: Architecture of the model.
            kernels: Operations for the model's device.
            dtype: Dtype of the matrix products.
            depth: Deepest layer to compute: the number of blocks to prepare, or N + 1 for all N and
                the final norm of a pre-norm model.
        """
        encoder = model.encoder
        projection = encoder.feature_projection
        self._wide = wide_dtype(dtype)
        self._input_norm = (
            LayerNorm(projection.layer_norm, dtype) if spec.parts.projection_norm else None
        )
        linear, transformer = projection.projection, encoder.transformer
        self._projection = kernels.linear(linear.weight, linear.bias, dtype)
        self._position = _make_position(transformer, spec, kernels, dtype)
        norm = LayerNorm(transformer.layer_norm, dtype)
        self._norm = None if spec.pre_norm else norm
        self._final_norm = norm if depth > spec.n_layers else None
        self._blocks = _make_blocks(transformer, spec, kernels, dtype, depth)

    def __call__(self, frames: Tensor, pack: Pack, clock: Clock) -> Iterator[Tensor]:
        """Run the blocks over a batch, one at a time.

        Args:
            frames: Output of the front end, `[n_rows, channels]`.
            pack: Places of the clips.
            clock: Times the computation of each layer.

        Yields:
            Layers 0 (the input of block 1) to `depth`: float32 `[n_frames, dim]` each. Layer N + 1
            is the output of block N after the model's final norm.
        """
        with clock("transformer"):
            if self._input_norm is not None:
                frames = self._input_norm(frames)
            x = self._projection(frames)  # [n_rows, dim]
            position = None
            if self._position is not None:
                position = self._position(x[: pack.n_frames], pack)
            x = x.to(self._wide)
            if position is not None:
                x[: pack.n_frames] += position
            if self._norm is not None:
                x = self._norm(x)
        yield x[: pack.n_frames]
        for block in self._blocks:
            with clock("transformer"):
                x = block(x, pack)
            yield x[: pack.n_frames]
        if self._final_norm is not None:
            with clock("transformer"):
                x = self._final_norm(x)
            yield x[: pack.n_frames]


def _make_position(
    transformer: Any, spec: ModelSpec, kernels: Kernels, dtype: torch.dtype
) -> _Position | _PositionStack | None:
    """Prepare the positional convolution; the Conformer has none."""
    if spec.kind == "conformer":
        return None
    kind = _PositionStack if spec.parts.position == "stack" else _Position
    return kind(transformer.pos_conv_embed, kernels, dtype)


def _make_blocks(
    transformer: Any, spec: ModelSpec, kernels: Kernels, dtype: torch.dtype, depth: int
) -> list[Callable[[Tensor, Pack], Tensor]]:
    """Prepare the first `depth` blocks."""
    layers = transformer.layers[:depth]
    if spec.kind == "conformer":
        heads, activation, position = (
            spec.params[name]
            for name in ("encoder_num_heads", "conformer_activation", "conformer_position")
        )
        positions = Positions(transformer, spec.dim, position, dtype)
        common = positions, heads, activation, kernels, dtype
        return [ConformerBlock(layer, *common) for layer in layers]
    is_wavlm = spec.kind == "wavlm" and depth > 0
    bias = _PositionBias(layers[0].attention, dtype) if is_wavlm else None
    return [_Block(layer, kernels, dtype, bias) for layer in layers]

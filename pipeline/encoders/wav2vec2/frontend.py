"""The convolution stack, from waveforms to 512 channels every 20 ms, as matrix products.

Utterances are concatenated to one stream without padding. Each starts at a multiple of 320 samples,
so the receptive fields of its frames contain no samples of another utterance. The one frame between
two neighbours, whose receptive field contains samples of both, is computed and dropped. Activations
are `[time, channels]`. A convolution of kernel k and stride s is then one matrix product for every
s taps, on views of its input without a copy.

The GroupNorm of the base models' first layer is folded into the weights of that layer, for each
utterance, in closed form. With w_c the kernel of channel c, µ and Σ the mean and covariance of the
utterance's windows, and g the gain of waveform normalisation (1 without it), the channel has mean
w_c·µ and variance g² w_cᵀΣw_c; hence with a_c = γ_c g / sqrt(g² w_cᵀΣw_c + ε)

    GroupNorm(conv(x))_c = a_c w_c·(window − µ) + β_c.

The waveform is centred and scaled to about unit variance first, and the weights undo the scale.
That costs nothing, and keeps the precision of signals with a DC offset and of near-silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.cpu import Linear, gelu_, round_up_rows
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.geometry import GEOMETRY, HOP_SAMPLES
from pipeline.encoders.wav2vec2.moments import KERNEL_SAMPLES, STRIDE_SAMPLES, Moments

_SILENCE_VARIANCE = 1e-10  # 100 dB below full scale; quieter waveforms get no larger scale
_CHUNK_FRAMES = {"cpu": 128, "cuda": 4096}  # frames computed at once, which bounds the activations


@dataclass(frozen=True)
class UtteranceStats:
    """Utterance-wide statistics that each window of the utterance needs.

    Attributes:
        shift: Offset subtracted from the samples.
        scale: Factor that multiplies the shifted samples.
        folded: Weight (float32 `[channels, 10]`) and bias (float32 `[channels]`) of the first
            convolution with its GroupNorm folded in. Empty for models without GroupNorm.
    """

    shift: float
    scale: float
    folded: tuple[Tensor, ...] = ()


def normalize_layers(x: Tensor, norm: Any) -> Tensor:
    """Apply a layer norm over the last axis, in float32 for every dtype of `x`.

    Args:
        x: `[..., channels]`.
        norm: LayerNorm module of torch with float32 weights.

    Returns:
        The same shape and dtype as `x`.
    """
    if x.dtype == torch.float32 or x.device.type == "cpu":  # the CPU kernel computes in float32
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    wide = F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return wide.to(x.dtype)


class _Convolution:
    """One layer of the stack with kernel k and stride s, as ⌈k/s⌉ matrix products."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        weight = block.conv.weight  # [out, in, kernel]
        self.kernel, self.stride = block.kernel_size, block.stride
        self.norm = block.layer_norm
        self.n_out = weight.shape[0]
        taps = [
            group.permute(0, 2, 1).reshape(self.n_out, -1)  # [out, taps × in]
            for group in weight.split(self.stride, dim=2)
        ]
        biases = [block.conv.bias] + [None] * (len(taps) - 1)
        self.widths = [tap.shape[1] for tap in taps]
        self.products = [Linear(*both, dtype) for both in zip(taps, biases, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[time, in]`, contiguous, to `[(time - kernel) // stride + 1, out]`."""
        rows = (x.shape[0] - self.kernel) // self.stride + 1
        step = self.stride * x.shape[1]
        views = [
            x.as_strided((rows, width), (step, 1), x.storage_offset() + i * step)
            for i, width in enumerate(self.widths)
        ]
        if self.norm is None and len(views) == 1:
            return self.products[0](views[0], gelu=True)
        y = self.products[-1](views[-1])
        for view, product in zip(views[:-1], self.products[:-1], strict=True):
            y = product.add(view, y)
        if self.norm is not None:
            y = normalize_layers(y, self.norm)
        return gelu_(y)


class Frontend:
    """The convolution stack of one model in one precision."""

    def __init__(self, model: Any, spec: ModelSpec, dtype: torch.dtype) -> None:
        """Prepare the weights.

        Args:
            model: torchaudio's `Wav2Vec2Model`, float32.
            spec: Architecture of the model.
            dtype: Dtype of the matrix products.
        """
        blocks = model.feature_extractor.conv_layers
        self._spec = spec
        self._dtype = dtype
        self._first = blocks[0]
        self._rest = [_Convolution(block, dtype) for block in blocks[1:]]
        self._device = self._first.conv.weight.device
        self._chunk_frames = _CHUNK_FRAMES.get(self._device.type, _CHUNK_FRAMES["cpu"])

    def __call__(
        self, waveforms: Sequence[Tensor], stats: Sequence[UtteranceStats]
    ) -> tuple[Tensor, list[int]]:
        """Encode waveforms, or windows of waveforms.

        Args:
            waveforms: float32 `[n_samples]` each at 16 kHz, at least 1 sample, on any device.
            stats: One per waveform: statistics of the whole utterance that the waveform is a window
                of.

        Returns:
            Frames of all waveforms, `[≥ Σ (n_frames + 1), channels]` in the dtype of the matrix
            products, and the first row of each waveform. The row after a waveform's last frame and
            the rows after the last waveform are undefined.
        """
        counts = [GEOMETRY.n_frames(waveform.numel()) for waveform in waveforms]
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count + 1)
        rows = n_rows(counts)
        stream = self._concatenate(waveforms, stats, starts, rows)
        channels = self._rest[-1].n_out
        frames = torch.empty(rows, channels, dtype=self._dtype, device=self._device)
        for start in range(0, rows, self._chunk_frames):
            stop = min(start + self._chunk_frames, rows)
            x = self._convolve_first(stream, start, stop, starts, stats)
            for layer in self._rest:
                x = layer(x)
            frames[start:stop] = x
        return frames, starts[:-1]

    def _concatenate(
        self,
        waveforms: Sequence[Tensor],
        stats: Sequence[UtteranceStats],
        starts: list[int],
        rows: int,
    ) -> Tensor:
        """Concatenate the shifted and scaled waveforms: float32 `[samples]` for `rows` frames."""
        stream = torch.zeros(GEOMETRY.n_samples(rows), device=self._device)
        for waveform, stat, start in zip(waveforms, stats, starts[:-1], strict=True):
            count = GEOMETRY.n_frames(waveform.numel())
            # A clip shorter than one frame is padded with zeros before it is shifted and scaled.
            used = GEOMETRY.n_samples(count)
            samples = F.pad(waveform[:used], (0, max(0, used - waveform.numel())))
            # In float64, so that subtracting a DC offset does not cancel digits of the signal.
            centred = (samples.to(self._device).double() - stat.shift) * stat.scale
            stream[start * HOP_SAMPLES :][:used] = centred
        return stream

    def _convolve_first(
        self,
        stream: Tensor,
        start: int,
        stop: int,
        starts: list[int],
        stats: Sequence[UtteranceStats],
    ) -> Tensor:
        """Apply the first layer to frames `start … stop-1` of the stream: `[time, channels]`."""
        samples = stream[start * HOP_SAMPLES :][: GEOMETRY.n_samples(stop - start)]
        windows = _windows(samples, self._dtype)
        weight, bias = self._first.conv.weight[:, 0], self._first.conv.bias
        if not self._spec.group_norm:
            y = windows @ _kernels(weight, bias, self._dtype).T
            return gelu_(normalize_layers(y, self._first.layer_norm))
        per_frame = HOP_SAMPLES // STRIDE_SAMPLES
        y = windows.new_zeros(windows.shape[0], weight.shape[0])
        for stat, first, last in zip(stats, starts[:-1], starts[1:], strict=True):
            low = max(0, (first - start) * per_frame)
            high = min(windows.shape[0], (last - start) * per_frame)
            if low < high:
                folded, offset = (part.to(self._device) for part in stat.folded)
                torch.mm(
                    windows[low:high], _kernels(folded, offset, self._dtype).T, out=y[low:high]
                )
        return gelu_(y)

    def stats(self, moments: Moments) -> UtteranceStats:
        """Compute the statistics of an utterance from its moments."""
        gain = 1.0
        if self._spec.normalize_waveform:
            gain = 1.0 / math.sqrt(moments.variance + self._spec.waveform_norm_eps)
        if not self._spec.group_norm:
            shift = moments.mean if self._spec.normalize_waveform else 0.0
            return UtteranceStats(shift=shift, scale=gain)
        shift = moments.mean
        scale = 1.0 / math.sqrt(moments.variance + _SILENCE_VARIANCE)
        kernel = self._first.conv.weight[:, 0].double().cpu()  # [channels, 10]
        norm = self._first.layer_norm
        variance = torch.einsum("ck,kl,cl->c", kernel, moments.window_covariance, kernel)
        a = norm.weight.double().cpu() * gain
        a = a / torch.sqrt(variance.clamp_min(0.0) * gain**2 + norm.eps)
        folded = kernel * (a / scale)[:, None]
        fed_mean = (moments.window_mean - shift) * scale
        bias = norm.bias.double().cpu() - folded @ fed_mean
        return UtteranceStats(shift, scale, (folded.float(), bias.float()))


def n_rows(counts: Sequence[int]) -> int:
    """Count the rows to compute: the frames and one row between utterances, rounded up."""
    return round_up_rows(sum(counts) + len(counts))


def _windows(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Build the left factor of the first convolution: windows of 10 samples, and ones for the bias.

    In reduced precision it has 32 columns: the rounded samples, their rounding errors, and the
    rounded samples again, to match the three parts of `_kernels`. The product is then as exact as
    in float32, at no cost where products are computed in blocks of 32. The exactness is needed:
    most energy of speech lies in low frequencies, which high-pass kernels suppress. GroupNorm
    scales their output to unit variance, and with it the rounding noise of the samples.

    Args:
        samples: float32 `[n]`.
        dtype: Dtype of the product.

    Returns:
        `[(n - 10) // 5 + 1, 11]` in float32, else `[…, 32]`.
    """
    high, low = _split(samples, dtype)
    parts = [high] if dtype == torch.float32 else [high, low, high]
    columns = [part.unfold(0, KERNEL_SAMPLES, STRIDE_SAMPLES) for part in parts]
    ones = high.new_ones(columns[0].shape[0], 1 if dtype == torch.float32 else 2)
    return torch.cat([*columns, ones], dim=1)


def _kernels(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Build the right factor for `_windows`, transposed: `[channels, 11]` or `[channels, 32]`.

    Args:
        weight: float32 `[channels, 10]`.
        bias: float32 `[channels]` or None.
        dtype: Dtype of the product.
    """
    column = weight.new_zeros(weight.shape[0], 1) if bias is None else bias[:, None]
    if dtype == torch.float32:
        return torch.cat([weight, column], dim=1)
    high, low = _split(weight, dtype)
    return torch.cat([high, high, low, *_split(column, dtype)], dim=1)


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split float32 values into two of `dtype`: the rounded value and its rounding error."""
    high = x.to(dtype)
    return high, (x - high.float()).to(dtype)

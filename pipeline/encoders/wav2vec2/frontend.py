"""The convolution stack, from waveforms to 512 channels every 20 ms, as matrix products.

Utterances are not padded to each other: they are laid end to end in one stream, each beginning at a
multiple of 320 samples, so no utterance's frames see another's samples. The frame between two
neighbours, which would see both, is computed and dropped. Activations are `[time, channels]`; a
convolution of kernel k and stride s is then one matrix product for every s taps, on views of its
input without a copy.

The GroupNorm of the base models' first layer is folded into that layer's weights, for each
utterance, in closed form. With w_c the kernel of channel c, µ and Σ the mean and covariance of the
utterance's windows, and g the gain of waveform normalisation (1 without it), the channel has mean
w_c·µ and variance g² w_cᵀΣw_c; hence with a_c = γ_c g / sqrt(g² w_cᵀΣw_c + ε)

    GroupNorm(conv(x))_c = a_c w_c·(window − µ) + β_c.

The waveform is fed centred and scaled to about unit variance, and the weights undo the scale: that
costs nothing, and neither a DC offset nor near-silence loses digits in any precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.cpu import Linear, fill_up, gelu_
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.geometry import GEOMETRY, HOP_SAMPLES
from pipeline.encoders.wav2vec2.statistics import KERNEL_SAMPLES, STRIDE_SAMPLES, Moments

_SILENCE_VARIANCE = 1e-10  # −100 dB below full scale: quieter waveforms are not scaled up further
_CHUNK_FRAMES = {"cpu": 128, "cuda": 4096}  # frames of the stream in flight: bounds the activations


@dataclass(frozen=True)
class UtteranceStats:
    """All that the encoder must know of an utterance beyond the samples of one window.

    Attributes:
        shift: subtracted from the samples.
        scale: multiplies them afterwards.
        folded: first convolution with its GroupNorm folded in: its weight, float32
            `[channels, 10]`, and its bias, float32 `[channels]`; empty where the model has no
            GroupNorm.
    """

    shift: float
    scale: float
    folded: tuple[Tensor, ...] = ()


def normalize_layers(x: Tensor, norm: Any) -> Tensor:
    """Layer norm over the last axis, in float32 whatever the precision, returned as `x.dtype`.

    Args:
        x: `[..., channels]`.
        norm: torch's LayerNorm module with float32 weights.
    """
    if x.dtype == torch.float32 or x.device.type == "cpu":  # the CPU kernel computes in float32
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    wide = F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return wide.to(x.dtype)


class _Convolution:
    """One layer of the stack: kernel k, stride s, as ⌈k/s⌉ matrix products."""

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
            spec: its settings.
            dtype: of the matrix products.
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
        """Encode waveforms, or windows of them, each with the statistics of its utterance.

        Args:
            waveforms: float32 `[n_samples]`, each at least 1 sample.
            stats: one for each.

        Returns:
            Frames of all waveforms, `[≥ Σ (n_frames + 1), channels]` in the precision's dtype, and
            the row at which each one's frames begin. The row after an utterance's last frame means
            nothing, nor do rows behind the last utterance.
        """
        counts = [GEOMETRY.n_frames(waveform.numel()) for waveform in waveforms]
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count + 1)
        rows = n_rows(counts)
        stream = self._lay(waveforms, stats, starts, rows)
        channels = self._rest[-1].n_out
        frames = torch.empty(rows, channels, dtype=self._dtype, device=self._device)
        for start in range(0, rows, self._chunk_frames):
            stop = min(start + self._chunk_frames, rows)
            x = self._convolve_first(stream, start, stop, starts, stats)
            for layer in self._rest:
                x = layer(x)
            frames[start:stop] = x
        return frames, starts[:-1]

    def _lay(
        self,
        waveforms: Sequence[Tensor],
        stats: Sequence[UtteranceStats],
        starts: list[int],
        rows: int,
    ) -> Tensor:
        """Lay the waveforms, shifted and scaled, end to end; float32 `[samples]` of `rows`."""
        stream = torch.zeros(GEOMETRY.n_samples(rows), device=self._device)
        for waveform, stat, start in zip(waveforms, stats, starts[:-1], strict=True):
            count = GEOMETRY.n_frames(waveform.numel())
            # A clip shorter than a frame is padded with zeros before it is shifted and scaled.
            used = GEOMETRY.n_samples(count)
            samples = F.pad(waveform[:used], (0, max(0, used - waveform.numel())))
            # In float64, or a DC offset would cost the digits that are left of the signal.
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
        """First layer for the frames `start … stop-1` of the stream: `[time, channels]`."""
        own = stream[start * HOP_SAMPLES :][: GEOMETRY.n_samples(stop - start)]
        windows = _windows(own, self._dtype)
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
        """What the stack must know of an utterance with these moments."""
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
        spread = torch.einsum("ck,kl,cl->c", kernel, moments.window_covariance, kernel)
        a = norm.weight.double().cpu() * gain
        a = a / torch.sqrt(spread.clamp_min(0.0) * gain**2 + norm.eps)
        folded = kernel * (a / scale)[:, None]
        fed_mean = (moments.window_mean - shift) * scale
        bias = norm.bias.double().cpu() - folded @ fed_mean
        return UtteranceStats(shift, scale, (folded.float(), bias.float()))


def n_rows(counts: Sequence[int]) -> int:
    """Rows computed for utterances of so many frames: one after each, and some to fill up."""
    return fill_up(sum(counts) + len(counts))


def _windows(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Left factor of the first convolution: the windows of 10 samples, and ones for the bias.

    In reduced precision it has 32 columns: the rounded samples, what rounding left of them, and the
    rounded samples again, to meet the three parts of `_kernels`. The product is then as exact as in
    float32, at no cost where products are made in blocks of 32. It matters: speech is strongest
    where high-pass kernels, whose output GroupNorm brings back to unit variance, are blind, so that
    the rounding noise of the samples would drown what they see.

    Args:
        samples: float32 `[n]`.
        dtype: of the product.

    Returns:
        `[(n - 10) // 5 + 1, 11]` in float32, else `[…, 32]`.
    """
    high, low = _split(samples, dtype)
    parts = [high] if dtype == torch.float32 else [high, low, high]
    columns = [part.unfold(0, KERNEL_SAMPLES, STRIDE_SAMPLES) for part in parts]
    ones = high.new_ones(columns[0].shape[0], 1 if dtype == torch.float32 else 2)
    return torch.cat([*columns, ones], dim=1)


def _kernels(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Right factor that belongs to `_windows`, transposed: `[channels, 11]` or `[channels, 32]`.

    Args:
        weight: float32 `[channels, 10]`.
        bias: float32 `[channels]` or None.
        dtype: of the product.
    """
    column = weight.new_zeros(weight.shape[0], 1) if bias is None else bias[:, None]
    if dtype == torch.float32:
        return torch.cat([weight, column], dim=1)
    high, low = _split(weight, dtype)
    return torch.cat([high, high, low, *_split(column, dtype)], dim=1)


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Write float32 values as a sum of two of `dtype`: the rounded value and the rounded rest."""
    high = x.to(dtype)
    return high, (x - high.float()).to(dtype)

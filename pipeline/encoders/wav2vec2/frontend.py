"""The convolution stack, from waveforms to 512 channels every 20 ms, as matrix products.

Clips are concatenated to one stream without padding (`stream.py`). Activations are
`[time, channels]`. A convolution of kernel k and stride s is then one matrix product for every
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

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.base import Kernels, Pack, wide_dtype
from pipeline.encoders.kernels.reference import gelu_
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.geometry import GEOMETRY, HOP_SAMPLES
from pipeline.encoders.wav2vec2.moments import (
    KERNEL_SAMPLES,
    STRIDE_SAMPLES,
    Moments,
    compute_moments,
    sum_moments,
)
from pipeline.encoders.wav2vec2.norms import LayerNorm
from pipeline.encoders.wav2vec2.stream import Stream

_SILENCE_VARIANCE = 1e-10  # 100 dB below full scale; quieter waveforms get no larger scale


class FoldedStatistics(NamedTuple):
    """What the front end needs of each utterance's statistics, float64.

    Attributes:
        shift: Offset subtracted from the samples, `[n_clips]`.
        scale: Factor that multiplies the shifted samples, `[n_clips]`.
        weight: Weight of the first convolution with its GroupNorm folded in,
            `[n_clips, channels, 10]`; None for models without GroupNorm.
        bias: Its bias, `[n_clips, channels]`; None for models without GroupNorm.
    """

    shift: Tensor
    scale: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


class _Convolution:
    """One layer of the stack with kernel k and stride s, as ⌈k/s⌉ matrix products."""

    def __init__(self, block: Any, kernels: Kernels, dtype: torch.dtype) -> None:
        weight = block.conv.weight  # [out, in, kernel]
        self.kernel, self.stride = block.kernel_size, block.stride
        self.norm = None if block.layer_norm is None else LayerNorm(block.layer_norm, dtype)
        self.n_out = weight.shape[0]
        taps = [
            group.permute(0, 2, 1).reshape(self.n_out, -1)  # [out, taps × in]
            for group in weight.split(self.stride, dim=2)
        ]
        biases = [block.conv.bias] + [None] * (len(taps) - 1)
        self.widths = [tap.shape[1] for tap in taps]
        self.products = [
            kernels.linear(tap, bias, dtype) for tap, bias in zip(taps, biases, strict=True)
        ]

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
            y = self.norm(y)
        return gelu_(y)


class Frontend:
    """The convolution stack of one model in one precision."""

    def __init__(self, model: Any, spec: ModelSpec, kernels: Kernels, dtype: torch.dtype) -> None:
        """Prepare the weights.

        Args:
            model: torchaudio's `Wav2Vec2Model`, float32.
            spec: Architecture of the model.
            kernels: Operations for the model's device.
            dtype: Dtype of the matrix products.
        """
        blocks = model.feature_extractor.conv_layers
        self._spec, self._kernels, self._dtype = spec, kernels, dtype
        self._first = blocks[0]
        self._rest = [_Convolution(block, kernels, dtype) for block in blocks[1:]]
        self._device = self._first.conv.weight.device
        norm = self._first.layer_norm
        self._norm = None if spec.group_norm or norm is None else LayerNorm(norm, dtype)
        self._needs_moments = spec.group_norm or spec.normalize_waveform
        self._sums_on_device = kernels.sums_on_device
        self.chunk_rows = kernels.chunk_rows

    def __call__(
        self, waveforms: Sequence[Tensor], moments: Sequence[Moments | None], pack: Pack
    ) -> Tensor:
        """Encode clips: whole utterances, or windows of them.

        Args:
            waveforms: float32 `[n_samples]` each at 16 kHz, at least 1 sample, on any device.
            moments: For each clip the moments of the whole utterance, if it is a window of one.
            pack: Places of the clips' frames.

        Returns:
            Packed frames, `[n_rows, channels]` in the dtype of the matrix products; the rows after
            the last frame are zero.
        """
        stream = Stream(
            pack,
            [len(waveform) for waveform in waveforms],
            self._kernels.clip_rows,
            self._kernels.row_multiple,
            gap=2 if self._sums_on_device else 1,
        )
        samples = stream.fill(waveforms)
        statistics = None
        if self._needs_moments:
            statistics = self.fold(self._sum_moments(waveforms, moments, stream, samples))
            samples = self._standardize(samples, statistics, stream)
        samples = samples.to(wide_dtype(self._dtype))
        factors = self._first_factors(statistics)
        frames = torch.empty(
            stream.n_rows, self._rest[-1].n_out, dtype=self._dtype, device=self._device
        )
        for start in range(0, stream.n_rows, self.chunk_rows):
            stop = min(start + self.chunk_rows, stream.n_rows)
            x = self._convolve_first(samples, factors, stream, start, stop)
            for layer in self._rest:
                x = layer(x)
            frames[start:stop] = x
        packed = frames.index_select(0, stream.rows_of_frames)
        if pack.n_rows == pack.n_frames:
            return packed
        return F.pad(packed, (0, 0, 0, pack.n_rows - pack.n_frames))

    def fold(self, moments: Moments) -> FoldedStatistics:
        """Compute the statistics of a batch of utterances from their moments."""
        spec, eps = self._spec, self._spec.waveform_norm_eps
        gain = torch.ones_like(moments.mean)
        if spec.normalize_waveform:
            gain = (moments.variance + eps).rsqrt()
        if not spec.group_norm:
            return FoldedStatistics(moments.mean * spec.normalize_waveform, gain)
        shift = moments.mean
        scale = (moments.variance + _SILENCE_VARIANCE).rsqrt()
        kernel = self._first.conv.weight[:, 0].double()  # [channels, 10]
        norm = self._first.layer_norm
        variance = ((kernel @ moments.window_covariance) * kernel).sum(-1)  # [n_clips, channels]
        a = norm.weight.double() * gain[:, None]
        a = a * (variance.clamp_min(0.0) * gain[:, None] ** 2 + norm.eps).rsqrt()
        weight = kernel * (a / scale[:, None])[..., None]
        fed_mean = (moments.window_mean - shift[:, None]) * scale[:, None]  # [n_clips, 10]
        bias = norm.bias.double() - (weight @ fed_mean[..., None])[..., 0]
        return FoldedStatistics(shift, scale, weight, bias)

    def _sum_moments(
        self,
        waveforms: Sequence[Tensor],
        moments: Sequence[Moments | None],
        stream: Stream,
        samples: Tensor,
    ) -> Moments:
        """Return the moments of each clip's utterance: those given, else those of the clip."""
        if not self._sums_on_device or None not in moments:
            pairs = zip(waveforms, moments, strict=True)
            parts = [compute_moments(clip) if given is None else given for clip, given in pairs]
            return Moments.stack(parts).to(self._device)
        pack = stream.pack
        summed = sum_moments(
            samples,
            pack.indices(np.asarray(stream.n_samples)),
            pack.indices(stream.clip_of_row),
            pack.indices(stream.row_in_clip),
            HOP_SAMPLES,
        )
        known = [given for given in moments if given is not None]
        if not known:
            return summed
        filled = [known[0] if given is None else given for given in moments]
        is_known = pack.indices(np.asarray([given is not None for given in moments]))
        return summed.replaced(is_known, Moments.stack(filled).to(self._device))

    def _standardize(self, samples: Tensor, statistics: FoldedStatistics, stream: Stream) -> Tensor:
        """Shift and scale the samples of each clip, float32 (float64 for products in float64).

        A clip shorter than one frame is padded with zeros before that. In float64, so that
        subtracting a DC offset does not cancel digits of the signal.
        """
        owners = stream.pack.indices(stream.clip_of_row)
        shift, scale = statistics.shift[owners, None], statistics.scale[owners, None]
        rows = samples[: stream.n_rows * HOP_SAMPLES].view(stream.n_rows, HOP_SAMPLES)
        standard = samples.new_zeros(len(samples), dtype=wide_dtype(self._dtype))
        standard[: rows.numel()].view_as(rows).copy_((rows.double() - shift) * scale)
        return standard

    def _first_factors(self, statistics: FoldedStatistics | None) -> Tensor:
        """Return the right factors of the first layer: `[n_clips or 1, k, channels]`."""
        if statistics is not None and statistics.weight is not None:
            weight, bias = statistics.weight, statistics.bias
        else:
            weight, bias = self._first.conv.weight[None, :, 0], self._first.conv.bias
            bias = None if bias is None else bias[None]
        wide = wide_dtype(self._dtype)
        return _kernels(weight.to(wide), None if bias is None else bias.to(wide), self._dtype)

    def _convolve_first(
        self, samples: Tensor, factors: Tensor, stream: Stream, start: int, stop: int
    ) -> Tensor:
        """Apply the first layer to rows `start … stop-1` of the stream: `[time, channels]`."""
        part = samples[start * HOP_SAMPLES :][: GEOMETRY.n_samples(stop - start)]
        windows = _windows(part, self._dtype)
        if not self._spec.group_norm:
            y = windows @ factors[0]
            return gelu_(y if self._norm is None else self._norm(y))
        per_row = HOP_SAMPLES // STRIDE_SAMPLES
        n_whole = (stop - start) * per_row  # the last few windows belong to no whole row
        owners = stream.clip_of_row[start : stop : stream.clip_rows]
        y = windows.new_empty(len(windows), factors.shape[2])
        self._kernels.clip_products(windows[:n_whole], factors, owners, y[:n_whole])
        torch.mm(windows[n_whole:], factors[int(owners[-1])], out=y[n_whole:])
        return gelu_(y)


def _windows(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Build the left factor of the first convolution: windows of 10 samples, and ones for the bias.

    In reduced precision it has 32 columns: the rounded samples, their rounding errors, and the
    rounded samples again, to match the three parts of `_kernels`. The product is then as exact as
    in float32, at no cost where products are computed in blocks of 32. The exactness is needed:
    most energy of speech lies in low frequencies, which high-pass kernels suppress. GroupNorm
    scales their output to unit variance, and with it the rounding noise of the samples.

    Args:
        samples: float32 `[n]`, or float64 for products in float64.
        dtype: Dtype of the product.

    Returns:
        `[(n - 10) // 5 + 1, 11]` in float32 and float64, else `[…, 32]`.
    """
    if dtype == samples.dtype:
        parts, n_ones = [samples], 1
    else:
        high, low = _split(samples, dtype)
        parts, n_ones = [high, low, high], 2
    columns = [part.unfold(0, KERNEL_SAMPLES, STRIDE_SAMPLES) for part in parts]
    return torch.cat([*columns, columns[0].new_ones(len(columns[0]), n_ones)], dim=1)


def _kernels(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Build the right factors for `_windows`: `[n, 11, channels]` or `[n, 32, channels]`.

    Args:
        weight: float32 `[n, channels, 10]`, or float64 for products in float64.
        bias: `[n, channels]` of the same dtype, or None.
        dtype: Dtype of the product.
    """
    rows = weight.mT
    row = weight.new_zeros(len(weight), 1, weight.shape[1]) if bias is None else bias[:, None]
    if dtype == weight.dtype:
        return torch.cat([rows, row], dim=1)
    high, low = _split(rows, dtype)
    return torch.cat([high, high, low, *_split(row, dtype)], dim=1)


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split float32 values into two of `dtype`: the rounded value and its rounding error."""
    high = x.to(dtype)
    return high, (x - high.float()).to(dtype)

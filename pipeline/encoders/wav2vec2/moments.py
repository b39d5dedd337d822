"""Moments of a waveform: the statistics of the whole utterance that its features depend on.

Waveform normalisation uses the mean and the variance of the samples. The GroupNorm of the base
models' first convolution uses the mean and the variance over time of each channel. The convolution
is linear: with the mean µ and the covariance Σ of its input windows, channel c with kernel w_c has
mean w_c·µ and variance w_cᵀΣw_c (used in `frontend.py`). The moments are summed in float64 from the
waveform only, so they can be streamed over a file of any length and do not depend on padding or on
other utterances of the batch.

On a CPU, and for a recording that arrives block by block, `MomentAccumulator` sums them. On a GPU
`sum_moments` sums those of a whole batch by batched products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from pipeline.encoders.kernels.base import to_device
from pipeline.encoders.wav2vec2.geometry import CONV_KERNELS, CONV_STRIDES, RECEPTIVE_FIELD_SAMPLES
from pipeline.errors import EncoderError

KERNEL_SAMPLES, STRIDE_SAMPLES = CONV_KERNELS[0], CONV_STRIDES[0]  # of the first convolution
_BLOCK_SAMPLES = STRIDE_SAMPLES * 2**15
"""10 s. Blocks of fixed size keep the order of the sums independent of the caller's chunks."""
_ROWS_AT_ONCE = 4096  # 64 MB of windows, with copies


@dataclass(frozen=True)
class Moments:
    """Sums over one utterance, or over each utterance of a batch, exact to float64 rounding.

    A window is the input of the first convolution for one output: 10 samples, one window every 5.
    All sums are float64. For a batch they have a first axis of its size.

    Attributes:
        n_samples: Number of samples, at least 400: a shorter clip counts with its zero padding.
        sample_sum: Sum of the samples.
        square_sum: Sum of the squares of the samples.
        n_windows: Number of whole windows.
        window_sum: Sum of the windows, `[10]`.
        window_products: Sum of the outer products of the windows, `[10, 10]`.
    """

    n_samples: Tensor
    sample_sum: Tensor
    square_sum: Tensor
    n_windows: Tensor
    window_sum: Tensor
    window_products: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the samples."""
        return self.sample_sum / self.n_samples

    @property
    def variance(self) -> Tensor:
        """Variance of the samples (divided by n), never negative."""
        return (self.square_sum / self.n_samples - self.mean**2).clamp_min(0.0)

    @property
    def window_mean(self) -> Tensor:
        """Mean window µ, `[10]`."""
        return self.window_sum / self.n_windows[..., None]

    @property
    def window_covariance(self) -> Tensor:
        """Covariance Σ of the windows (divided by n), `[10, 10]`."""
        mean = self.window_mean
        products = self.window_products / self.n_windows[..., None, None]
        return products - mean[..., :, None] * mean[..., None, :]

    @classmethod
    def stack(cls, parts: Sequence[Moments]) -> Self:
        """Return the moments of utterances as those of a batch."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.stack([getattr(part, name) for part in parts]) for name in names))

    def to(self, device: torch.device) -> Moments:
        """Copy the sums to a device, without waiting for it."""
        values = [getattr(self, field.name) for field in fields(self)]
        return Moments(*(to_device(value, device) for value in values))

    def replaced(self, is_replaced: Tensor, other: Moments) -> Moments:
        """Return the batch with the utterances of `other` where `is_replaced`, bool `[n]`."""
        values = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            mask = is_replaced.view(-1, *[1] * (mine.ndim - 1))
            values.append(torch.where(mask, theirs, mine))
        return Moments(*values)


class MomentAccumulator:
    """Sums the moments of a waveform that arrives in chunks.

    The chunk sizes do not change the result: it is bit-identical.

    Example:
        >>> accumulator = MomentAccumulator()
        >>> for chunk in chunks:
        ...     accumulator.update(chunk)
        >>> moments = accumulator.finish()
    """

    def __init__(self) -> None:
        """Start without samples."""
        # Samples not yet in a full block, after the last KERNEL - STRIDE samples of the last block.
        self._rest = torch.zeros(0)
        self._n_samples = 0
        self._n_windows = 0
        self._samples = torch.zeros(2, dtype=torch.float64)  # sum, sum of squares
        self._window_sum = torch.zeros(KERNEL_SAMPLES, dtype=torch.float64)
        self._window_products = torch.zeros(KERNEL_SAMPLES, KERNEL_SAMPLES, dtype=torch.float64)

    def update(self, samples: Tensor) -> None:
        """Add the next samples.

        Args:
            samples: float32 `[n]` at 16 kHz, n ≥ 0.
        """
        self._n_samples += samples.numel()
        samples = samples.cpu()
        self._rest = torch.cat([self._rest, samples]) if self._rest.numel() else samples
        whole = _BLOCK_SAMPLES + KERNEL_SAMPLES - STRIDE_SAMPLES
        while self._rest.numel() >= whole:
            self._add(self._rest[:whole], n_new=_BLOCK_SAMPLES)
            self._rest = self._rest[_BLOCK_SAMPLES:]

    def finish(self) -> Moments:
        """Return the moments of all samples. Call once, last.

        A clip shorter than one frame is padded with zeros to one.

        Raises:
            EncoderError: There are no samples.
        """
        if self._n_samples == 0:
            raise EncoderError(
                "a waveform without samples has no features; expected at least 1 sample"
            )
        missing = max(0, RECEPTIVE_FIELD_SAMPLES - self._n_samples)
        self.update(torch.zeros(missing))
        self._add(self._rest, n_new=self._rest.numel())
        counts = torch.tensor([self._n_samples, self._n_windows], dtype=torch.float64)
        return Moments(
            n_samples=counts[0],
            sample_sum=self._samples[0],
            square_sum=self._samples[1],
            n_windows=counts[1],
            window_sum=self._window_sum,
            window_products=self._window_products,
        )

    def _add(self, block: Tensor, n_new: int) -> None:
        """Add the first `n_new` samples of a block, and all windows within the block."""
        samples = block.double()
        new = samples[:n_new]
        self._samples += torch.stack([new.sum(), new @ new])
        if samples.numel() < KERNEL_SAMPLES:
            return
        windows = samples.unfold(0, KERNEL_SAMPLES, STRIDE_SAMPLES)  # [n_windows, 10]
        self._n_windows += windows.shape[0]
        self._window_sum += windows.sum(0)
        self._window_products += windows.T @ windows


def compute_moments(waveform: Tensor) -> Moments:
    """Compute the moments of a whole waveform, float32 `[n]` at 16 kHz."""
    accumulator = MomentAccumulator()
    accumulator.update(waveform)
    return accumulator.finish()


def sum_moments(
    samples: Tensor, n_samples: Tensor, clip_of_row: Tensor, row_in_clip: Tensor, hop_samples: int
) -> Moments:
    """Sum the moments of all clips of a batch by batched products, on the device of the samples.

    Args:
        samples: float32 `[n_rows * hop_samples + at least 5]`. Each clip begins with a row of
            `hop_samples` samples, and is followed by zeros.
        n_samples: Length of each clip in samples, int64 `[n_clips]`.
        clip_of_row: Clip of each row, int64 `[n_rows]`. A clip owns the rows up to the next one.
        row_in_clip: Position of each row within its clip, int64 `[n_rows]`.
        hop_samples: Samples of a row, a multiple of 5.

    Returns:
        The moments of the batch.
    """
    n_rows, n_clips = len(clip_of_row), len(n_samples)
    per_row = hop_samples // STRIDE_SAMPLES  # windows that start in a row
    counted = n_samples.clamp_min(RECEPTIVE_FIELD_SAMPLES)
    n_windows = (counted - KERNEL_SAMPLES) // STRIDE_SAMPLES + 1
    clips = torch.arange(n_clips, device=samples.device)
    totals = samples.new_zeros(n_clips, 2 + KERNEL_SAMPLES + KERNEL_SAMPLES**2, dtype=torch.float64)
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        owners = clip_of_row[rows]
        first = start * hop_samples
        n_here = len(owners)
        needed = n_here * hop_samples + KERNEL_SAMPLES - STRIDE_SAMPLES
        part = samples[first : first + needed].double()
        own = part[: n_here * hop_samples].view(n_here, hop_samples)
        index = row_in_clip[rows, None] * per_row + torch.arange(per_row, device=samples.device)
        is_whole = index < n_windows[owners, None]  # [rows, per_row]
        windows = part.unfold(0, KERNEL_SAMPLES, STRIDE_SAMPLES).view(n_here, per_row, -1)
        windows = windows * is_whole[..., None]
        products = (windows.mT @ windows).flatten(1)
        squares = own.square().sum(1, keepdim=True)
        sums = torch.cat([own.sum(1, keepdim=True), squares, windows.sum(1), products], dim=1)
        totals += (owners == clips[:, None]).double() @ sums  # a product: its order is fixed
    return Moments(
        n_samples=counted.double(),
        sample_sum=totals[:, 0],
        square_sum=totals[:, 1],
        n_windows=n_windows.double(),
        window_sum=totals[:, 2 : 2 + KERNEL_SAMPLES],
        window_products=totals[:, 2 + KERNEL_SAMPLES :].view(-1, KERNEL_SAMPLES, KERNEL_SAMPLES),
    )

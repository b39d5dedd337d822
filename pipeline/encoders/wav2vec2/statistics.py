"""What a feature needs to know of the whole utterance: the moments of its waveform.

Waveform normalisation needs the mean and the variance of the samples. The GroupNorm of the base
models' first convolution needs the mean and the variance over time of each of its channels; the
convolution is linear, so both follow from the mean and the covariance of the windows it looks at.
All of it is summed in float64 from the waveform alone, so it can be streamed over a file of any
length, and padding or batch-mates have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.encoders.wav2vec2.geometry import CONV_KERNELS, CONV_STRIDES, RECEPTIVE_FIELD_SAMPLES
from pipeline.errors import EncoderError

KERNEL_SAMPLES, STRIDE_SAMPLES = CONV_KERNELS[0], CONV_STRIDES[0]  # of the first convolution
_BLOCK_SAMPLES = STRIDE_SAMPLES * 2**15  # 10 s; sums are made block by block, whatever is fed


@dataclass(frozen=True)
class Moments:
    """Sums over one utterance, exact to float64 rounding.

    Attributes:
        n_samples: number of samples, at least 400 (a shorter clip counts with its zero padding).
        sample_sum: sum of the samples.
        square_sum: sum of their squares.
        n_windows: number of whole windows of 10 samples, one every 5.
        window_sum: sum of the windows, float64 `[10]`.
        window_products: sum of the outer products of the windows, float64 `[10, 10]`.
    """

    n_samples: int
    sample_sum: float
    square_sum: float
    n_windows: int
    window_sum: Tensor
    window_products: Tensor

    @property
    def mean(self) -> float:
        """Mean of the samples."""
        return self.sample_sum / self.n_samples

    @property
    def variance(self) -> float:
        """Variance of the samples (divided by n), never negative."""
        return max(0.0, self.square_sum / self.n_samples - self.mean**2)

    @property
    def window_mean(self) -> Tensor:
        """Mean window µ, float64 `[10]`."""
        return self.window_sum / self.n_windows

    @property
    def window_covariance(self) -> Tensor:
        """Covariance Σ of the windows (divided by n), float64 `[10, 10]`."""
        mean = self.window_mean
        return self.window_products / self.n_windows - torch.outer(mean, mean)


class MomentAccumulator:
    """Sums the moments of a waveform that arrives in chunks.

    The result does not depend on how the waveform is cut, to the last bit.

    Example:
        >>> accumulator = MomentAccumulator()
        >>> for chunk in chunks:
        ...     accumulator.update(chunk)
        >>> moments = accumulator.finish()
    """

    def __init__(self) -> None:
        """Start with no samples."""
        self._rest = torch.zeros(0)  # samples not yet in a whole block, and the overlap before them
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
        """Return the moments of all samples added. Call it once, last.

        A clip shorter than a frame counts as padded with zeros to one.

        Raises:
            EncoderError: there was not one sample.
        """
        if self._n_samples == 0:
            raise EncoderError("a waveform without samples has no features; it must be quarantined")
        missing = max(0, RECEPTIVE_FIELD_SAMPLES - self._n_samples)
        self.update(torch.zeros(missing))
        self._add(self._rest, n_new=self._rest.numel())
        sample_sum, square_sum = self._samples.tolist()
        return Moments(
            n_samples=self._n_samples,
            sample_sum=sample_sum,
            square_sum=square_sum,
            n_windows=self._n_windows,
            window_sum=self._window_sum,
            window_products=self._window_products,
        )

    def _add(self, block: Tensor, n_new: int) -> None:
        """Add the first `n_new` samples of a block, and every window that lies within it."""
        samples = block.double()
        new = samples[:n_new]
        self._samples += torch.stack([new.sum(), new @ new])
        if samples.numel() < KERNEL_SAMPLES:
            return
        windows = samples.unfold(0, KERNEL_SAMPLES, STRIDE_SAMPLES)  # [n_windows, 10]
        self._n_windows += windows.shape[0]
        self._window_sum += windows.sum(0)
        self._window_products += windows.T @ windows


def moments(waveform: Tensor) -> Moments:
    """Moments of a whole waveform, float32 `[n]` at 16 kHz."""
    accumulator = MomentAccumulator()
    accumulator.update(waveform)
    return accumulator.finish()

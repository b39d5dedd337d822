"""Moments of a waveform: the statistics of the whole utterance that its features depend on.

Waveform normalisation uses the mean and the variance of the samples. The GroupNorm of the base
models' first convolution uses the mean and the variance over time of each channel. The convolution
is linear: with the mean µ and the covariance Σ of its input windows, channel c with kernel w_c has
mean w_c·µ and variance w_cᵀΣw_c (used in `frontend.py`). The moments are summed in float64 from the
waveform only, so they can be streamed over a file of any length and do not depend on padding or on
other utterances of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.encoders.wav2vec2.geometry import CONV_KERNELS, CONV_STRIDES, RECEPTIVE_FIELD_SAMPLES
from pipeline.errors import EncoderError

KERNEL_SAMPLES, STRIDE_SAMPLES = CONV_KERNELS[0], CONV_STRIDES[0]  # of the first convolution
_BLOCK_SAMPLES = STRIDE_SAMPLES * 2**15
"""10 s. Blocks of fixed size keep the order of the sums independent of the caller's chunks."""


@dataclass(frozen=True)
class Moments:
    """Sums over one utterance, exact to float64 rounding.

    A window is the input of the first convolution for one output: 10 samples, one window every 5.

    Attributes:
        n_samples: Number of samples, at least 400: a shorter clip counts with its zero padding.
        sample_sum: Sum of the samples.
        square_sum: Sum of the squares of the samples.
        n_windows: Number of whole windows.
        window_sum: Sum of the windows, float64 `[10]`.
        window_products: Sum of the outer products of the windows, float64 `[10, 10]`.
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

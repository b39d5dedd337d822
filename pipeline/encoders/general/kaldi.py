"""Kaldi's log-mel filter banks: SeamlessM4T's and Speech2Text's front ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from pipeline.encoders.base import StatisticsAccumulator
from pipeline.encoders.encoder import NoStatistics
from pipeline.encoders.general.frames import FrameAccumulator, FrameMoments, Framing
from pipeline.encoders.general.front_ends import Constant, FrontEnd, pad_to
from pipeline.encoders.general.log_mel import refuse_dither

FRAME_SAMPLES = 400
HOP_SAMPLES = 160
_N_FFT = 512
_FULL_SCALE = 2.0**15  # Kaldi takes 16-bit integers
_PREEMPHASIS = 0.97
_LEAST_POWER = 1.192092955078125e-07
_SEAMLESS_EPS = 1e-7
_FRAMING = Framing(FRAME_SAMPLES, HOP_SAMPLES)


class SeamlessFrontEnd(FrontEnd):
    """Stacked normalised log-mel frames, as `SeamlessM4TFeatureExtractor` computes them."""

    def __init__(self, extractor: Any) -> None:
        """Take the settings of transformers' feature extractor."""
        self.stride = int(extractor.stride)
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float64)
        self.n_mels = filters.shape[1]
        self._filters = Constant(filters)
        self._window = Constant(torch.as_tensor(extractor.window, dtype=torch.float64))

    @property
    def least_samples(self) -> int:
        """Samples of the shortest clip with one frame."""
        return FRAME_SAMPLES + (self.stride - 1) * HOP_SAMPLES

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        return {"input": "seamless fbank", "num_mel_bins": self.n_mels, "stride": self.stride}

    def features(self, waveform: Tensor, stats: FrameMoments | None) -> Tensor:
        """Compute `[n_frames, stride * n_mels]`; see `FrontEnd`."""
        waveform = pad_to(waveform, max(self.least_samples, FRAME_SAMPLES + HOP_SAMPLES))
        values = self._log(_FRAMING.cut(waveform)).double()
        if stats is None:
            mean, variance = values.mean(0), values.var(0)
        else:
            mean, variance = stats.mean.to(values), stats.variance(1).to(values)
        values = ((values - mean) / (variance + _SEAMLESS_EPS).sqrt()).float()
        return values[: len(values) // self.stride * self.stride].reshape(
            -1, self.stride * self.n_mels
        )

    def accumulator(self) -> StatisticsAccumulator:
        """Return an accumulator of mean and variance; see `FrontEnd`."""
        return FrameAccumulator(_FRAMING, self._log)

    def _log(self, frames: Tensor) -> Tensor:
        frames = frames.double() * _FULL_SCALE
        frames = frames - frames.mean(1, keepdim=True)
        first = frames[:, :1] * (1 - _PREEMPHASIS)
        frames = torch.cat([first, frames[:, 1:] - _PREEMPHASIS * frames[:, :-1]], 1)
        # The extractor keeps the spectrum as complex64.
        spectrum = torch.fft.rfft(frames * self._window.on(frames.device), n=_N_FFT)
        parts = torch.view_as_real(spectrum).float().double()
        power = parts.square().sum(-1)
        return (power @ self._filters.on(frames.device)).clamp_min(_LEAST_POWER).log().float()


class Speech2TextFrontEnd(FrontEnd):
    """Log-mel frames with cepstral normalisation, as `Speech2TextFeatureExtractor` has them."""

    def __init__(self, extractor: Any, name: str) -> None:
        """Take the settings of transformers' feature extractor.

        Raises:
            ConfigError: The extractor adds noise.
        """
        refuse_dither(extractor, name)
        normalize = bool(extractor.do_ceptral_normalize)
        self.n_mels = int(extractor.num_mel_bins)
        self._rate_hz = float(extractor.sampling_rate)
        self._means = normalize and bool(extractor.normalize_means)
        self._variances = normalize and bool(extractor.normalize_vars)

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        return {
            "input": "kaldi fbank",
            "num_mel_bins": self.n_mels,
            "normalize_means": self._means,
            "normalize_vars": self._variances,
        }

    def features(self, waveform: Tensor, stats: FrameMoments | None) -> Tensor:
        """Compute `[n_frames, n_mels]`; see `FrontEnd`."""
        # A single frame has no deviation, and the extractor divides by it.
        values = self._log(pad_to(waveform, FRAME_SAMPLES + HOP_SAMPLES))
        wide = values.double()
        if self._means:
            wide = wide - (wide.mean(0) if stats is None else stats.mean.to(wide))
        if self._variances:
            variance = values.double().var(0, correction=0)
            variance = variance if stats is None else stats.variance(0).to(wide)
            wide = wide / variance.sqrt().clamp_min(1e-10)
        return wide.float()

    def accumulator(self) -> StatisticsAccumulator:
        """Return an accumulator of mean and variance; see `FrontEnd`."""
        if not (self._means or self._variances):
            return NoStatistics()
        return FrameAccumulator(_FRAMING, self._log_of_frames)

    def _log(self, waveform: Tensor) -> Tensor:
        values: Tensor = kaldi.fbank(
            (waveform * _FULL_SCALE)[None],
            dither=0.0,
            num_mel_bins=self.n_mels,
            sample_frequency=self._rate_hz,
        )
        return values

    def _log_of_frames(self, frames: Tensor) -> Tensor:
        """Map frames that overlap as cut from a waveform, by putting them together again."""
        hop = frames[:, :HOP_SAMPLES].reshape(-1)
        return self._log(torch.cat([hop, frames[-1, HOP_SAMPLES:]]))

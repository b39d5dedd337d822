"""Log-mel front ends: Whisper's, NeMo's (Parakeet), Google's (LASR) and torchaudio's (Granite)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.base import StatisticsAccumulator
from pipeline.encoders.general.frames import FrameAccumulator, FrameMoments, Framing
from pipeline.encoders.general.front_ends import Constant, FrontEnd, pad_to
from pipeline.errors import ConfigError

_RANGE = 8.0  # Whisper: orders of magnitude of power below the largest value
_LEAST_POWER = 1e-10  # Whisper and Granite
_NEMO_GUARD = 2**-24
_NEMO_EPS = 1e-5
_LASR_LEAST_POWER = 1e-5


class _Spectrum:
    """Power of frames in mel bands, before the logarithm."""

    def __init__(self, window: Tensor, n_fft: int, filters: Tensor) -> None:
        """Take a window of up to `n_fft` samples and the filters `[n_fft // 2 + 1, n_mels]`."""
        missing = n_fft - len(window)
        self._n_fft, self._filters = n_fft, Constant(filters)
        self._window = Constant(window)
        self._centred = Constant(F.pad(window, (missing // 2, missing - missing // 2)))

    def __call__(self, frames: Tensor, *, centred: bool = True) -> Tensor:
        """Map frames `[n, n_fft]`, or `[n, len(window)]` if not `centred`, to `[n, n_mels]`."""
        window = (self._centred if centred else self._window).on(frames.device)
        spectrum = torch.view_as_real(torch.fft.rfft(frames * window, n=self._n_fft))
        return spectrum.square().sum(-1) @ self._filters.on(frames.device)


class _CutOffFrontEnd(FrontEnd):
    """Log-mel features of centred frames, with the clip reflected at its ends.

    Values are cut off at eight orders of magnitude below the largest one of the utterance, also in
    its windows.
    """

    n_fft: int
    hop_samples: int
    _spectrum: _Spectrum

    def accumulator(self) -> StatisticsAccumulator:
        """Return an accumulator of the largest value; see `FrontEnd`."""
        reach = self.n_fft // 2
        return FrameAccumulator(Framing(self.n_fft, self.hop_samples, reach, reach), self._log)

    def _frames(self, waveform: Tensor) -> Tensor:
        """Cut a clip into `[n_frames, n_fft]`."""
        reach = self.n_fft // 2
        padded = F.pad(waveform[None], (reach, reach), mode="reflect")[0]
        return padded.unfold(0, self.n_fft, self.hop_samples)

    def _log(self, frames: Tensor) -> Tensor:
        return self._spectrum(frames).clamp_min(_LEAST_POWER).log10()


class WhisperFrontEnd(_CutOffFrontEnd):
    """Log-mel features of a window of fixed length, as `WhisperFeatureExtractor` computes them."""

    window_samples: int

    def __init__(self, extractor: Any, name: str) -> None:
        """Take the settings of transformers' feature extractor.

        Raises:
            ConfigError: The extractor adds noise.
        """
        refuse_dither(extractor, name)
        self.hop_samples = int(extractor.hop_length)
        self.window_samples = int(extractor.n_samples)
        self.n_fft = int(extractor.n_fft)
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32)
        self.n_mels = filters.shape[1]
        self._spectrum = _Spectrum(torch.hann_window(self.n_fft), self.n_fft, filters)

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        return {
            "input": "whisper log-mel",
            "n_fft": self.n_fft,
            "hop_length": self.hop_samples,
            "feature_size": self.n_mels,
            "n_samples": self.window_samples,
        }

    def features(self, waveform: Tensor, stats: FrameMoments | None) -> Tensor:
        """Compute `[frames of the window, n_mels]`; see `FrontEnd`."""
        values = self._log(self._frames(pad_to(waveform, self.window_samples))[:-1])
        return (_in_range(values, stats) + 4.0) / 4.0


class NemoFrontEnd(FrontEnd):
    """Log-mel features with zero mean and unit variance, as `ParakeetFeatureExtractor` has them."""

    def __init__(self, extractor: Any) -> None:
        """Take the settings of transformers' feature extractor."""
        self.hop_samples = int(extractor.hop_length)
        self.win_samples = int(extractor.win_length)
        self.n_fft = int(extractor.n_fft)
        self.preemphasis = float(extractor.preemphasis or 0.0)
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32).T
        self.n_mels = filters.shape[1]
        window = torch.hann_window(self.win_samples, periodic=False)
        self._spectrum = _Spectrum(window, self.n_fft, filters)

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        return {
            "input": "nemo log-mel",
            "n_fft": self.n_fft,
            "win_length": self.win_samples,
            "hop_length": self.hop_samples,
            "feature_size": self.n_mels,
            "preemphasis": self.preemphasis,
        }

    def features(self, waveform: Tensor, stats: FrameMoments | None) -> Tensor:
        """Compute `[n_samples // hop, n_mels]`; see `FrontEnd`."""
        waveform = pad_to(waveform, 2 * self.hop_samples)  # two frames have a variance
        n_frames = waveform.numel() // self.hop_samples
        shifted = F.pad(waveform[:-1], (1, 0))
        emphasised = waveform - self.preemphasis * shifted
        reach = self.n_fft // 2
        padded = F.pad(emphasised, (reach, reach))
        values = self._log(padded.unfold(0, self.n_fft, self.hop_samples)[:n_frames])
        if stats is None:
            mean, variance = values.mean(0), values.var(0)
        else:
            mean, variance = stats.mean.to(values), stats.variance(1).to(values)
        return (values - mean) / (variance.sqrt() + _NEMO_EPS)

    def accumulator(self) -> StatisticsAccumulator:
        """Return an accumulator of mean and variance; see `FrontEnd`."""
        reach = self.n_fft // 2
        framing = Framing(self.n_fft, self.hop_samples, reach, reach - self.hop_samples)
        return FrameAccumulator(framing, self._log, preemphasis=self.preemphasis)

    def _log(self, frames: Tensor) -> Tensor:
        return (self._spectrum(frames) + _NEMO_GUARD).log()


class LasrFrontEnd(FrontEnd):
    """Log-mel features as `LasrFeatureExtractor` computes them, in float64."""

    def __init__(self, extractor: Any, least_samples: int) -> None:
        """Take the settings of transformers' feature extractor."""
        self.hop_samples = int(extractor.hop_length)
        self.win_samples = int(extractor.win_length)
        self.n_fft = int(extractor.n_fft)
        self._least_samples = least_samples
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float64)
        self.n_mels = filters.shape[1]
        window = torch.hann_window(self.win_samples, periodic=False, dtype=torch.float64)
        self._spectrum = _Spectrum(window, self.n_fft, filters)

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        return {
            "input": "lasr log-mel",
            "n_fft": self.n_fft,
            "win_length": self.win_samples,
            "hop_length": self.hop_samples,
            "feature_size": self.n_mels,
        }

    def features(self, waveform: Tensor, stats: Any) -> Tensor:
        """Compute `[n_frames, n_mels]`; see `FrontEnd`."""
        waveform = pad_to(waveform, self._least_samples).double()
        frames = waveform.unfold(0, self.win_samples, self.hop_samples)
        power = self._spectrum(frames, centred=False)
        return power.clamp_min(_LASR_LEAST_POWER).log().float()


class GraniteFrontEnd(_CutOffFrontEnd):
    """Pairs of log-mel frames, as `GraniteSpeechFeatureExtractor` computes them."""

    def __init__(self, extractor: Any) -> None:
        """Take the settings of transformers' feature extractor."""
        settings = extractor.melspec_kwargs
        self.hop_samples = int(settings["hop_length"])
        self.win_samples = int(settings["win_length"])
        self.n_fft = int(settings["n_fft"])
        filters = extractor.mel_filters.mel_scale.fb.float()
        self.n_mels = filters.shape[1]
        window = torch.hann_window(self.win_samples)
        self._spectrum = _Spectrum(window, self.n_fft, filters)

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        return {
            "input": "granite log-mel",
            "n_fft": self.n_fft,
            "win_length": self.win_samples,
            "hop_length": self.hop_samples,
            "feature_size": self.n_mels,
        }

    def features(self, waveform: Tensor, stats: FrameMoments | None) -> Tensor:
        """Compute `[n_frames, 2 * n_mels]`; see `FrontEnd`."""
        waveform = pad_to(waveform, self.n_fft // 2 + 1)  # a reflection needs one more than it adds
        values = _in_range(self._log(self._frames(waveform)), stats) / 4.0 + 1.0
        return values[: len(values) // 2 * 2].reshape(-1, 2 * self.n_mels)


def _in_range(values: Tensor, stats: FrameMoments | None) -> Tensor:
    """Raise values that are far below the largest one of the utterance."""
    largest = values.max() if stats is None else values.new_full((), stats.largest)
    return torch.maximum(values, largest - _RANGE)


def refuse_dither(extractor: Any, name: str) -> None:
    """Refuse a feature extractor that adds noise.

    Raises:
        ConfigError: It does, so features would be different in each run.
    """
    if dither := float(getattr(extractor, "dither", 0.0)):
        raise ConfigError(
            f"the feature extractor of {name!r} adds noise (dither={dither:g}), so its features "
            "would be different in each run; set dither to 0 in its preprocessor_config.json"
        )

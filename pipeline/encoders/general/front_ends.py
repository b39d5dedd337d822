"""What a model takes: waveforms, or features of them, each clip on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.base import StatisticsAccumulator
from pipeline.encoders.encoder import NoStatistics
from pipeline.encoders.general.frames import FrameAccumulator, FrameMoments, Framing
from pipeline.encoders.kernels.base import to_device

WAVEFORM_EPS = 1e-7  # of Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm


class FrontEnd(ABC):
    """Turns clips into the input of a model; the settings are those of the checkpoint.

    A clip's features depend on the clip and on the statistics of its utterance only.
    `tests/encoders/test_front_ends.py` compares each with transformers' feature extractor.

    Attributes:
        window_samples: Length that every clip is padded to; None if the model takes any length.
    """

    window_samples: int | None = None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the settings that change a feature, ready for JSON."""

    @abstractmethod
    def features(self, waveform: Tensor, stats: Any) -> Tensor:
        """Compute the model's input of one clip.

        Args:
            waveform: float32 `[n_samples]`, at least 1 sample.
            stats: If the clip is a window, the statistics of its utterance, else None.

        Returns:
            float32 `[time, ...]` on the waveform's device.
        """

    def accumulator(self) -> StatisticsAccumulator:
        """Return a new accumulator of the statistics of an utterance."""
        return NoStatistics()


class Constant:
    """A tensor of a front end, copied once to each device on which it is used."""

    def __init__(self, value: Tensor) -> None:
        """Take the tensor, on the CPU."""
        self.value = value
        self._on = {value.device: value}

    def on(self, device: torch.device) -> Tensor:
        """Return the tensor on a device."""
        if device not in self._on:
            self._on[device] = to_device(self.value, device)
        return self._on[device]


def pad_to(values: Tensor, length: int) -> Tensor:
    """Add zeros at the end of the first axis of samples or features that are shorter."""
    return F.pad(values, (0, 0) * (values.ndim - 1) + (0, max(0, length - len(values))))


class WaveformFrontEnd(FrontEnd):
    """Samples, normalised to zero mean and unit variance if the checkpoint says so."""

    def __init__(self, normalize: bool, least_samples: int, eps: float = WAVEFORM_EPS) -> None:
        """Take the settings of the checkpoint.

        Args:
            normalize: Whether clips are normalised.
            least_samples: Shorter clips are padded with zeros.
            eps: Term added to the variance.
        """
        self._normalize, self._least_samples, self._eps = normalize, least_samples, eps

    def facts(self) -> dict[str, Any]:
        """Return the settings; see `FrontEnd`."""
        settings = {"input": "waveform", "normalize": self._normalize}
        return settings | ({"eps": self._eps} if self._normalize else {})

    def features(self, waveform: Tensor, stats: FrameMoments | None) -> Tensor:
        """Return the samples; see `FrontEnd`."""
        if self._normalize:
            if stats is None:
                mean, variance = waveform.double().mean(), waveform.double().var(correction=0)
            else:
                mean, variance = stats.mean[0], stats.variance(0)[0]
            scale = (variance + self._eps).sqrt()
            waveform = (waveform - mean.to(waveform)) / scale.to(waveform)
        return pad_to(waveform, self._least_samples)

    def accumulator(self) -> StatisticsAccumulator:
        """Return an accumulator of mean and variance; see `FrontEnd`."""
        if not self._normalize:
            return NoStatistics()
        return FrameAccumulator(Framing(1, 1), torch.clone)

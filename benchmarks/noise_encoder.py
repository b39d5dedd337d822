"""An encoder that returns noise in the shapes of HuBERT base, for benchmarks of all the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.encoders.base import Clock, EncoderDescription, EncoderSettings
from pipeline.encoders.registry import register_family
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.wav2vec2.moments import MomentAccumulator

NAME = "noise"
"""Value of `model.source` and `model.name` after `register_noise`."""
DESCRIPTION = EncoderDescription(NAME, 12, 768, GEOMETRY, max_window_s=60.0, context_s=2.0)


class NoiseEncoder:
    """Encoder that returns the same noise for every batch; see `Encoder`."""

    name, dim, precision, device = NAME, DESCRIPTION.dim, "fp32", torch.device("cpu")
    geometry, weights_source, is_random, final_norm = GEOMETRY, "none", False, None

    def __init__(self, settings: EncoderSettings, frame_s: float) -> None:
        self.layers, self.windows = settings.layers, settings.windows
        self.identity: dict[str, Any] = {"model": self.name, "layers": list(self.layers)}
        self.clock: Clock = lambda stage: nullcontext()
        self._frame_s = frame_s
        self._noise = torch.randn(20_000, self.dim, generator=torch.Generator().manual_seed(0))

    def encode_batch(self, waveforms: Sequence[Tensor], **_: object) -> Iterator[Tensor]:
        n_frames = sum(GEOMETRY.n_frames(len(waveform)) for waveform in waveforms)
        time.sleep(self._frame_s * n_frames)
        for _layer in self.layers:
            with self.clock("transformer"):
                yield self._noise[:n_frames]

    def statistics_accumulator(self) -> MomentAccumulator:
        return MomentAccumulator()

    def utterance_stats(self, utterance: object) -> None:
        return None


class NoiseFamily:
    """Its family; see `EncoderFamily`."""

    def __init__(self, frame_s: float) -> None:
        self._frame_s = frame_s

    def describe(self, model: ModelConfig) -> EncoderDescription:
        return DESCRIPTION

    def load(self, model: ModelConfig, settings: EncoderSettings) -> NoiseEncoder:
        return NoiseEncoder(settings, self._frame_s)


def register_noise(frame_s: float = 0.0) -> None:
    """Let `model=hf model.source=noise model.name=noise` be this encoder.

    Args:
        frame_s: Seconds that it waits for each frame, as for a GPU.
    """
    register_family(NAME, NoiseFamily(frame_s))

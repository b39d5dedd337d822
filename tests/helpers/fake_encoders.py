"""Encoders of other geometries, whose features spell what they were computed from.

Each sample of a `spelled` waveform holds its utterance's tag, and the number of the frame that
starts at its hop. A fake encoder reads both from the first sample that a frame sees, so a frame
that was computed from other samples than its own, or was stored elsewhere, is visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry

N_CLASSES = 4
DIM = 4 + N_CLASSES
"""Features: tag, layer, frame // 1024, frame % 1024 (float16 holds whole numbers up to 2048), then
the class `tag % 4` as one-hot values, in layer 2 only."""
_SCALE = 2.0**22  # a tag below 64 and a frame below 65,536 fit the 24 digits of a float32

NARROW = EncoderDescription(
    name="narrow-band",
    n_layers=3,
    dim=DIM,
    geometry=FrameGeometry(sample_rate_hz=8_000, hop_samples=80, receptive_field_samples=240),
    max_window_s=10.0,
    context_s=1.0,
)
"""Telephone speech: 8 kHz, a frame every 10 ms that sees 30 ms."""
FIXED_WINDOW = EncoderDescription(
    name="fixed-window",
    n_layers=3,
    dim=DIM,
    geometry=FrameGeometry(16_000, hop_samples=320, receptive_field_samples=400, pads_end=True),
    max_window_s=30.0,
    context_s=5.0,
    window_limit_s=30.0,
)
"""As Whisper: 30 s at once, shorter input is padded to that, a frame for every started hop."""


class FakeEncoder:
    """Features that spell tag, layer and frame.

    It has the contract of `Encoder` alone and is no `SpeechEncoder`, so that tests fail if an
    extraction needs more than the contract.

    Attributes:
        n_encoded: Samples that each encoded batch held, padding included.
    """

    def __init__(self, description: EncoderDescription, settings: EncoderSettings) -> None:
        self.name = description.name
        self.geometry = description.geometry
        self.dim = description.dim
        self.layers = settings.layers
        self.layer_names = tuple(description.names[layer] for layer in settings.layers)
        self.precision = settings.precision
        self.device = torch.device(settings.device)
        self.windows = settings.windows
        self.identity: dict[str, Any] = {
            "model": self.name,
            "precision": self.precision,
            "layers": list(self.layers),
            "max_window_s": self.windows.max_window_s,
            "context_s": self.windows.context_s,
        }
        self.weights_source = "made"
        self.is_random = False
        self.final_norm: dict[str, Any] | None = None
        self.notes: tuple[str, ...] = ()
        self.one_by_one = False
        self.clock: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext()
        self.n_encoded: list[int] = []
        self._fixed_window_s = description.window_limit_s

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[int | None] | None = None,
        precision: str | None = None,
    ) -> Iterator[Tensor]:
        for waveform, n_samples in zip(waveforms, stats or [], strict=stats is not None):
            assert n_samples is None or len(waveform) <= n_samples
        counts = [self.geometry.n_frames(len(waveform)) for waveform in waveforms]
        assert max(counts) <= self.windows.max_window_frames
        n_padded = self.geometry.n_samples(max(counts))
        if self._fixed_window_s is not None:
            n_padded = round(self._fixed_window_s * self.geometry.sample_rate_hz)
        n_padded = max(n_padded, *(len(waveform) for waveform in waveforms))
        self.n_encoded.append(n_padded * len(waveforms))
        with self.clock("front_end"):
            padded = torch.stack([F.pad(w, (0, n_padded - len(w))) for w in waveforms])
            first = padded[:, :: self.geometry.hop_samples][:, : max(counts)]  # [batch, frames]
            tags, frames = read_spelled(first)
        inside = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        for layer in self.layers:
            with self.clock("transformer"):
                features = self._layer(tags[inside], frames[inside], layer)
            yield features

    def _layer(self, tag: Tensor, frame: Tensor, layer: int) -> Tensor:
        numbers = [tag, torch.full_like(tag, layer), frame // 1024, frame % 1024]
        classes = F.one_hot(tag % N_CLASSES, N_CLASSES) * (layer == 2)
        return torch.cat([torch.stack(numbers, dim=-1), classes], dim=-1).float()

    def statistics_accumulator(self) -> LengthAccumulator:
        return LengthAccumulator()

    def utterance_stats(self, utterance: Tensor | int) -> int:
        """Length of the whole utterance in samples."""
        return utterance.numel() if isinstance(utterance, Tensor) else utterance


class LengthAccumulator:
    """Counts samples; see `StatisticsAccumulator`."""

    def __init__(self) -> None:
        self._n_samples = 0

    def update(self, samples: Tensor) -> None:
        self._n_samples += samples.numel()

    def finish(self) -> int:
        return self._n_samples


@dataclass(frozen=True)
class FakeFamily:
    """A family with one model; see `EncoderFamily`."""

    description: EncoderDescription

    def describe(self, model: ModelConfig) -> EncoderDescription:
        if model.name != self.description.name:
            raise ConfigError(f"no model is called {model.name!r}")
        return self.description

    def load(self, model: ModelConfig, settings: EncoderSettings) -> FakeEncoder:
        return FakeEncoder(self.describe(model), settings)


def spelled(tag: int, n_samples: int, geometry: FrameGeometry) -> npt.NDArray[np.float32]:
    """A waveform that spells a tag below 64 and its own frames: float32 [n_samples]."""
    frame = np.arange(n_samples) // geometry.hop_samples
    return ((tag * 2**16 + frame) / _SCALE).astype(np.float32)


def read_spelled(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Tags and frames that samples of `spelled` hold, int64 of the same shape."""
    numbers = (samples.double() * _SCALE).round().long()
    return numbers // 2**16, numbers % 2**16


def expected(tag: int, n_samples: int, layers: Sequence[int], geometry: FrameGeometry) -> Tensor:
    """Features of `spelled(tag, n_samples, geometry)`: float32 [n_layers, n_frames, DIM]."""
    frame = torch.arange(geometry.n_frames(n_samples))
    features = torch.zeros(len(layers), len(frame), DIM)
    features[..., 0] = tag
    features[..., 1] = torch.tensor(layers)[:, None]
    features[..., 2], features[..., 3] = frame // 1024, frame % 1024
    for i, layer in enumerate(layers):
        features[i, :, 4 + tag % N_CLASSES] = float(layer == 2)
    return features


def write_spelled(
    folder: Path, lengths: Sequence[int], geometry: FrameGeometry
) -> dict[str, tuple[int, int]]:
    """Write a folder of spelled wav files with a word and a speaker each.

    Args:
        folder: Where to write.
        lengths: Samples of each file; file `i` has the tag `i + 1`.
        geometry: Whose frames they spell; the files have its sample rate.

    Returns:
        Tag and length of each file, by its name.
    """
    folder.mkdir(parents=True)
    lines, files = ["file_name,word,speaker"], {}
    for i, n_samples in enumerate(lengths):
        name, tag = f"clip-{i:03d}.wav", i + 1
        wave = spelled(tag, n_samples, geometry)
        soundfile.write(folder / name, wave, geometry.sample_rate_hz, "FLOAT")
        lines.append(f"{name},word-{tag % N_CLASSES},s{i % 7}")
        files[name] = (tag, n_samples)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return files


class FaultyEncoder(FakeEncoder):
    """A fake encoder with a fault.

    With one of these, its features depend on what they should not:

    - padding: the longest clip of the batch;
    - equal: how many clips of the batch have its length;
    - order: the place in the batch;
    - ascending: whether the clip before is shorter;
    - random, state: chance, or the number of calls;
    - rounding: the number of calls, in the last bit;
    - coarse: the place in the batch, in reduced precisions only, as their rounding does;

    With one of these, its layer 2 has wrong values:

    - overflow: values that a reduced precision cannot hold;
    - range: values that float16 cannot hold;
    - nan: values that are not finite;
    - constant: one value.

    Attributes:
        batch_sizes: Clips of each batch since the last check of a test, of all faulty encoders.
    """

    batch_sizes: ClassVar[list[int]] = []

    def __init__(
        self, description: EncoderDescription, settings: EncoderSettings, fault: str
    ) -> None:
        super().__init__(description, settings)
        self._fault = fault
        self._n_calls = 0

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[int | None] | None = None,
        precision: str | None = None,
    ) -> Iterator[Tensor]:
        self.batch_sizes.append(len(waveforms))
        self._n_calls += 1
        counts = [self.geometry.n_frames(len(waveform)) for waveform in waveforms]
        layers = super().encode_batch(waveforms, stats=stats, precision=precision)
        for layer, features in zip(self.layers, layers, strict=True):
            parts = [
                self._spoil(part, layer, i, counts, precision or self.precision)
                for i, part in enumerate(torch.split(features, counts))
            ]
            yield torch.cat(parts)

    def _spoil(
        self, features: Tensor, layer: int, place: int, counts: Sequence[int], precision: str
    ) -> Tensor:
        if self._fault == "padding":
            return features * (1 + 0.03 * (max(counts) - counts[place]) / max(counts))
        if self._fault == "ascending":
            return features * (1 + 0.03 * (place > 0 and counts[place - 1] < counts[place]))
        if self._fault == "equal":
            return features * (1 + 0.03 * (counts.count(counts[place]) - 1))
        if self._fault == "coarse":
            return features * (1 + 1e-3 * place * (precision != "fp32"))
        if self._fault == "order":
            return features * (1 + 0.01 * place)
        if self._fault == "random":
            return features + torch.rand_like(features)
        if self._fault == "state":
            return features * (1 + 0.01 * self._n_calls)
        if self._fault == "rounding":
            return features * (1 + 2.0**-23 * (self._n_calls % 2))
        if layer != 2:
            return features
        if self._fault == "overflow":
            return features if precision == "fp32" else torch.full_like(features, torch.inf)
        if self._fault == "range":
            return features * 1e5
        if self._fault == "nan":
            return torch.full_like(features, torch.nan)
        if self._fault == "constant":
            return torch.ones_like(features)
        return features


@dataclass(frozen=True)
class FaultyFamily(FakeFamily):
    """A family of an encoder with a fault, as of `FaultyEncoder`; "" has none."""

    fault: str = ""

    def load(self, model: ModelConfig, settings: EncoderSettings) -> FaultyEncoder:
        return FaultyEncoder(self.describe(model), settings, self.fault)

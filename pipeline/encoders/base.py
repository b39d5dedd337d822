"""The contract of an encoder, and of a family of encoders.

An encoder turns waveforms into hidden layers. A family knows one kind of checkpoint: it describes a
model without its weights, so that planning costs nothing, and it loads the encoder in whichever
process needs it. `tests/encoders/test_conformance.py` checks both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.encoders.windows import Window, Windowing
from pipeline.store.format.geometry import FrameGeometry

Clock = Callable[[str], AbstractContextManager[None]]
"""Times the part of an encoder that it is given the name of."""


class StatisticsAccumulator(Protocol):
    """Sums what the windows of a recording must know of all of it, block by block."""

    def update(self, samples: Tensor) -> None:
        """Add the next samples, float32 `[n]`, n ≥ 0."""

    def finish(self) -> Any:
        """Return the sums, for `Encoder.utterance_stats`. Called once, last."""


class Encoder(Protocol):
    """Waveforms in, hidden layers out.

    An implementation must

    - give an utterance the same features in every batch, up to the rounding of matrix products of
      another size;
    - return `geometry.n_frames(n_samples)` frames for `n_samples` samples;
    - encode any window of `windows` from the window's samples and the utterance's statistics, with
      the same result whichever other windows are encoded;
    - return raw outputs of the layers, whatever normalisation follows the last one;
    - name in `identity` all that changes a feature, and nothing else;
    - enter `clock` around each of its parts.

    Attributes:
        name: Name of the model.
        geometry: Which samples a frame sees.
        layers: Layers returned, ascending. 0 is the input of block 1, i the output of block i.
        dim: Size of a feature vector.
        device: Device of the computation.
        precision: Precision of the matrix products, a key of `settings.PRECISIONS`.
        windows: How long utterances are cut.
        identity: All that changes a feature, ready for JSON.
        weights_source: Origin of the weights: "pretrained", "random", ... Not part of the identity.
        is_random: Whether the weights are random, so that the features mean nothing.
        final_norm: Norm that the last layer has not been through: `weight` and `bias` (float32
            `[dim]`) and `eps`. None if there is none.
        clock: Entered with `front_end` or `transformer` around these parts of every batch. The
            worker sets it.
    """

    name: str
    geometry: FrameGeometry
    layers: tuple[int, ...]
    dim: int
    device: torch.device
    precision: str
    windows: Windowing
    identity: dict[str, Any]
    weights_source: str
    is_random: bool
    final_norm: dict[str, Any] | None
    clock: Clock

    def encode_batch(
        self, waveforms: Sequence[Tensor], *, precision: str | None = None
    ) -> tuple[Tensor, list[int]]:
        """Encode one batch.

        Args:
            waveforms: float32 `[n_samples]` each, none longer than `windows.max_window_s`.
            precision: Used instead of the encoder's own; must accept "fp32".

        Returns:
            Features `[n_layers, batch, max_frames, dim]` on `device`, and the number of frames of
            each utterance. Values beyond that number are undefined.
        """

    def statistics_accumulator(self) -> StatisticsAccumulator:
        """Return a new accumulator for a recording that is decoded block by block.

        Called from other threads than the encoder's.
        """

    def utterance_stats(self, utterance: Any) -> Any:
        """Return what the windows of an utterance must know of all of it.

        Args:
            utterance: All its samples, float32 `[n_samples]`, or the sums of an accumulator.
        """

    def encode_windows(
        self,
        waveform: Tensor,
        windows: Sequence[Window],
        stats: Any,
        *,
        sample_start: int = 0,
        precision: str | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Encode windows of a long utterance, one at a time.

        Args:
            waveform: float32 samples that contain the samples of these windows.
            windows: Windows from `self.windows`, all or some.
            stats: Result of `utterance_stats` for the whole utterance.
            sample_start: Position of `waveform[0]` in the utterance.
            precision: Used instead of the encoder's own; must accept "fp32".

        Yields:
            First frame that the window keeps, and its features `[n_layers, n_kept, dim]` on
            `device`.
        """


@dataclass(frozen=True)
class EncoderDescription:
    """What is known of an encoder without its weights.

    Attributes:
        name: Name of the model.
        n_layers: Number of blocks; layers 0 to `n_layers` can be extracted.
        dim: Size of a feature vector.
        geometry: Which samples a frame sees.
        max_window_s: Default of the longest window, in seconds.
        context_s: Default context on each side of a window, in seconds.
        window_limit_s: Longest window that the model can encode; None if there is no limit.
    """

    name: str
    n_layers: int
    dim: int
    geometry: FrameGeometry
    max_window_s: float
    context_s: float
    window_limit_s: float | None = None


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder, checked and without "auto".

    Attributes:
        layers: Layers to return, ascending.
        precision: Precision of the matrix products, a key of `settings.PRECISIONS`.
        device: A device name of torch.
        windows: How long utterances are cut.
    """

    layers: tuple[int, ...]
    precision: str
    device: str
    windows: Windowing


class EncoderFamily(Protocol):
    """One kind of checkpoint, as named by `model.source`.

    An implementation must pickle, and `describe` must not load weights.
    """

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the model, and check its settings.

        Raises:
            ConfigError: The model is unknown, or its weights do not exist.
            WeightsError: The model's configuration cannot be fetched.
        """

    def load(self, model: ModelConfig, settings: EncoderSettings) -> Encoder:
        """Load the encoder.

        Args:
            model: The model.
            settings: Result of `resolve_settings` for this model's description.

        Raises:
            WeightsError: The weights cannot be read or do not fit the model.
        """

"""The contract of an encoder, and of a family of encoders.

An encoder turns waveforms into hidden layers. A family handles one kind of checkpoint: it describes
a model without its weights, so that planning loads none, and it loads the encoder in the process of
a worker. `pipeline/testing/checks.py` checks both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.encoders.windows import Windowing
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layers import standard_names

Clock = Callable[[str], AbstractContextManager[None]]
"""`clock(stage)`: context manager that times a stage of a batch: `front_end`, `transformer`."""


class StatisticsAccumulator(Protocol):
    """Accumulator of the utterance-wide statistics of a recording that arrives block by block."""

    def update(self, samples: Tensor) -> None:
        """Add the next samples, float32 `[n]` at the encoder's rate, n ≥ 0."""

    def finish(self) -> Any:
        """Return the argument for `Encoder.utterance_stats`. Called once, last."""


class Encoder(Protocol):
    """Waveforms in, hidden layers out.

    An implementation must

    - give an utterance the same features in every batch, except for rounding: the batch size
      changes the order of floating-point sums;
    - return `geometry.n_frames(n_samples)` frames for `n_samples` samples;
    - encode each window of `windows` from the window's samples and the utterance's statistics, as
      an utterance of its own;
    - return the raw output of each block, without a norm that follows the last block;
    - name in `identity` everything that changes a feature by more than rounding, and nothing else;
    - enter `clock` around the computation of the two stages of every batch, never while the caller
      uses a layer.

    Attributes:
        name: Name of the model.
        geometry: Sample rate, hop and receptive field of the frames.
        layers: Layers returned, ascending. 0 is the input of block 1, i the output of block i; see
            `store/format/layers.py`.
        layer_names: Their names.
        dim: Size of a feature vector.
        device: Device of the computation.
        precision: Precision of the matrix products, a key of `settings.PRECISIONS`.
        windows: Windowing of utterances longer than `max_window_s`.
        identity: Everything that changes a feature by more than rounding, JSON-able.
        weights_source: Origin of the weights: "pretrained", "random", ... Not part of the identity.
        is_random: Whether the weights are random, so that the features mean nothing.
        final_norm: Final LayerNorm of a pre-norm model, which is not applied to the last layer:
            `weight` and `bias` (float32 `[dim]`) and `eps`. None for other models.
        notes: What the user should know about the model, in lines.
        one_by_one: Whether each clip is encoded alone, because the model's features depend on the
            other clips of a batch. Callers of `encode_batch` follow it; the self-check finds out.
        clock: Context manager that times one stage, `front_end` or `transformer`, of each batch.
            The worker sets it.
    """

    name: str
    geometry: FrameGeometry
    layers: tuple[int, ...]
    layer_names: tuple[str, ...]
    dim: int
    device: torch.device
    precision: str
    windows: Windowing
    identity: dict[str, Any]
    weights_source: str
    is_random: bool
    final_norm: dict[str, Any] | None
    notes: tuple[str, ...]
    one_by_one: bool
    clock: Clock

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[Any | None] | None = None,
        precision: str | None = None,
    ) -> Iterator[Tensor]:
        """Encode one batch of clips: whole utterances, or windows of utterances.

        The caller may use a layer, e.g. copy it off the device, while the next one is computed.
        `clips.py` has functions that collect the layers.

        Args:
            waveforms: At least one; float32 `[n_samples]` each, at least 1 sample and at most
                `windows.max_window_s`, at `geometry.sample_rate_hz`, nominally in [-1, 1], on any
                device.
            stats: For each clip that is a window the statistics of its utterance, from
                `utterance_stats`, else None. None if all clips are whole utterances.
            precision: Replaces the encoder's precision; "fp32" must be accepted.

        Yields:
            For each layer of `layers` the packed frames of the clips, one clip after another:
            floating-point `[sum of n_frames, dim]` on `device`. They are not changed later.
        """

    def statistics_accumulator(self) -> StatisticsAccumulator:
        """Return a new accumulator for a recording that is decoded block by block.

        Called in the decoding threads.
        """

    def utterance_stats(self, utterance: Any) -> Any:
        """Compute the utterance-wide statistics that each window needs.

        Called in the decoding threads.

        Args:
            utterance: All samples, float32 `[n_samples]`, or the result of
                `StatisticsAccumulator.finish`.
        """


@dataclass(frozen=True)
class EncoderDescription:
    """Properties of an encoder that are known without its weights.

    Attributes:
        name: Name of the model.
        n_layers: N, the number of blocks; "all" extracts layers 1 to N.
        dim: Size of a feature vector.
        geometry: Sample rate, hop and receptive field of the frames.
        max_window_s: Default of the longest window, in seconds.
        context_s: Default context on each side of a window, in seconds.
        window_limit_s: Longest window that the model can encode; None if there is no limit.
        layer_names: Names of all layers that can be extracted, by number; if empty, layers 0 to N
            with the names of `layers.standard_names`.
        layer_dims: Sizes of the layers whose size is not `dim`. A store has layers of one size.
    """

    name: str
    n_layers: int
    dim: int
    geometry: FrameGeometry
    max_window_s: float
    context_s: float
    window_limit_s: float | None = None
    layer_names: Mapping[int, str] = field(default_factory=dict)
    layer_dims: Mapping[int, int] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[int, str]:
        """Names of all layers that can be extracted, by number."""
        return self.layer_names or standard_names(self.n_layers)

    def dim_of(self, layers: Sequence[int]) -> int:
        """Return the size of chosen layers, all of which have one size."""
        return self.layer_dims.get(layers[0], self.dim)


@dataclass(frozen=True)
class EncoderSettings:
    """Checked settings of an encoder, without "auto".

    Attributes:
        layers: Layers to return, ascending.
        precision: Precision of the matrix products, a key of `settings.PRECISIONS`.
        device: Device name of torch: "cpu", "cuda" or "cuda:N".
        windows: Windowing of utterances longer than `max_window_s`.
    """

    layers: tuple[int, ...]
    precision: str
    device: str
    windows: Windowing


class EncoderFamily(Protocol):
    """One kind of checkpoint, as named by `model.source`.

    An implementation must be picklable, and `describe` must not load weights.
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
            settings: Checked settings, without "auto".

        Raises:
            WeightsError: The weights cannot be read or do not fit the model.
        """


@runtime_checkable
class VersionedFamily(Protocol):
    """A family of checkpoints that may change under the same name."""

    def pin(self, model: ModelConfig) -> ModelConfig:
        """Return the same model with the version that it has now in its settings.

        Called once, in the process that distributes the work, so that every process loads the same
        version.

        Raises:
            ConfigError: The model is unknown.
            WeightsError: The version cannot be found.
        """

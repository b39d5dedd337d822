"""`SpeechEncoder`, what the encoders of every family share: waveforms in, hidden layers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import Clock, EncoderDescription, EncoderSettings, StatisticsAccumulator
from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.encoders.cuda_settings import cuda_settings
from pipeline.encoders.settings import PRECISIONS
from pipeline.encoders.windows import Window
from pipeline.errors import ConfigError, EncoderError

_CALL_S = 60.0  # audio seconds of one batch of `SpeechEncoder.__call__`


class SpeechEncoder(ABC):
    """Encoder that returns raw block outputs per utterance; load one with `load_encoder`.

    The other utterances of a batch do not affect a feature, except for rounding: the batch size
    changes the order of floating-point sums.

    Attributes:
        name: Short name of the model.
        geometry: Sample rate, hop and receptive field.
        layers: Layers returned, ascending. 0 is the input of block 1, i the output of block i.
        layer_names: Their names.
        dim: Size of a feature vector.
        n_model_layers: Number of blocks of the model.
        precision: "fp32", "tf32", "bf16" or "fp16".
        precisions: Precisions that `encode_batch` takes.
        device: Device of the computation.
        windows: Windowing of utterances longer than `max_window_s`.
        weights_source: "pretrained", "random", "file" or "huggingface"; not part of the identity.
        is_random: Whether the weights are random, so that the features mean nothing.
        final_norm: For pre-norm models, `weight` and `bias` (float32 `[dim]`) and `eps` of the
            final norm, which is not applied to the last layer. None for post-norm models.
        identity: Everything that changes a feature by more than rounding, JSON-able.
        notes: What the user should know about the model, in lines.
        one_by_one: Whether `__call__` and extractions encode each clip alone, for a model whose
            features depend on the other clips of a batch.
        clock: `clock(stage)`: context manager that times one stage, `front_end` or `transformer`,
            of each batch. The default does nothing.
    """

    precisions: tuple[str, ...] = tuple(PRECISIONS)
    final_norm: dict[str, Any] | None

    def __init__(
        self,
        description: EncoderDescription,
        settings: EncoderSettings,
        *,
        weights_source: str,
        facts: dict[str, Any],
    ) -> None:
        """Use `load_encoder`, which checks the settings.

        Args:
            description: The model.
            settings: Checked settings.
            weights_source: Origin of the weights.
            facts: Entries of the identity beside the name and the settings, JSON-able: the
                architecture and the digest of the weights.
        """
        self.name = description.name
        self.geometry = description.geometry
        self.layers = settings.layers
        self.layer_names = tuple(description.names[layer] for layer in settings.layers)
        self.dim = description.dim_of(settings.layers)
        self.n_model_layers = description.n_layers
        self.precision = settings.precision
        self.device = _with_index(torch.device(settings.device))
        self.windows = settings.windows
        self.weights_source = weights_source
        self.is_random = weights_source == "random"
        self.identity: dict[str, Any] = {
            "model": self.name,
            **facts,
            "precision": self.precision,
            "layers": list(self.layers),
            "max_window_s": self.windows.max_window_s,
            "context_s": self.windows.context_s,
        }
        self.notes: tuple[str, ...] = ()
        self.one_by_one = False
        self.clock: Clock = _no_clock

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of the waveforms."""
        return self.geometry.sample_rate_hz

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.geometry.frame_rate_hz

    @property
    def max_window_s(self) -> float:
        """Longest window, context included, in seconds."""
        return self.windows.max_window_s

    @property
    def context_s(self) -> float:
        """Context on each side of a window, in seconds."""
        return self.windows.context_s

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode any number of utterances of any length.

        Short utterances are batched; long ones are encoded window by window.

        Args:
            waveforms: float32 `[n_samples]` each, at `sample_rate_hz`, at least 1 sample, nominally
                in [-1, 1], on any device.

        Returns:
            Features of each utterance, float32 `[n_layers, n_frames, dim]` on the CPU.

        Raises:
            EncoderError: A waveform is empty, or not one-dimensional float32.
        """
        results: dict[int, Tensor] = {}
        short = []
        for i, waveform in enumerate(waveforms):
            _check(waveform)
            windows = self.windows.plan(waveform.numel())
            if len(windows) == 1:
                short.append(i)
                continue
            parts = self.encode_windows(waveform, windows, self.utterance_stats(waveform))
            results[i] = torch.cat([features.cpu() for _, features in parts], dim=1)
        n_most = 1 if self.one_by_one else round(_CALL_S * self.frame_rate_hz)
        for batch in _cut(
            short, [self.geometry.n_frames(len(waveforms[i])) for i in short], n_most
        ):
            encoded = encode_clips(self, [waveforms[i] for i in batch])
            results |= {i: part.cpu().clone() for i, part in zip(batch, encoded, strict=True)}
        return [results[i] for i in range(len(waveforms))]

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[Any | None] | None = None,
        precision: str | None = None,
    ) -> Iterator[Tensor]:
        """Encode one batch of clips, layer by layer: the worker's hot path.

        Nothing waits for the device. A layer is yielded when it has been submitted to the device.

        Args:
            waveforms: At least one; float32 `[n_samples]` each, at `sample_rate_hz`, at least 1
                sample and at most `max_window_s`, nominally in [-1, 1], on any device.
            stats: For each waveform that is a window the statistics of its utterance, from
                `utterance_stats`, else None. None if the waveforms are whole utterances.
            precision: Replaces the encoder's precision; "fp32" reruns a batch that overflowed.

        Yields:
            For each layer of `layers` the frames of all waveforms, one after another: float32
            `[n_frames, dim]` on the encoder's device.

        Raises:
            ConfigError: The precision is unknown.
            EncoderError: There are no waveforms, or a waveform is empty, too long, or not
                one-dimensional float32.
        """
        precision = precision or self.precision
        if precision not in self.precisions:
            raise ConfigError(f"precision={precision!r} is not one of {', '.join(self.precisions)}")
        if not waveforms:
            raise EncoderError("the batch has no waveforms; expected at least 1")
        for waveform in waveforms:
            _check(waveform)
        counts = [self.geometry.n_frames(waveform.numel()) for waveform in waveforms]
        if max(counts) > self.windows.max_window_frames:
            longest_s = max(waveform.numel() for waveform in waveforms) / self.sample_rate_hz
            raise EncoderError(
                f"a waveform of {longest_s:.1f} s is longer than "
                f"max_window_s={self.windows.max_window_s:g}; encode it with encode_windows"
            )
        moments = [None] * len(waveforms) if stats is None else stats
        return self._encode(waveforms, moments, counts, precision)

    @abstractmethod
    def _encode(
        self,
        waveforms: Sequence[Tensor],
        stats: Sequence[Any | None],
        counts: Sequence[int],
        precision: str,
    ) -> Iterator[Tensor]:
        """Return an iterator over the chosen layers of one batch; see `encode_batch`.

        Called with checked arguments.

        Args:
            waveforms: As for `encode_batch`.
            stats: Statistics of the utterance for each waveform that is a window, else None.
            counts: Frames of each waveform.
            precision: Precision of this batch, one of `precisions`.
        """

    def plan_windows(self, n_samples: int) -> tuple[Window, ...]:
        """Return the windows of an utterance of `n_samples` samples."""
        return self.windows.plan(n_samples)

    def statistics_accumulator(self) -> StatisticsAccumulator:
        """Return a new accumulator, for a recording that is decoded block by block."""
        return NoStatistics()

    def utterance_stats(self, utterance: Any) -> Any:
        """Compute the utterance-wide statistics that each window needs; None if none is needed.

        Args:
            utterance: All samples, float32 `[n_samples]`, or what the accumulator's `finish`
                returned.
        """
        return None

    def encode_windows(
        self,
        waveform: Tensor,
        windows: Sequence[Window],
        stats: Any,
        *,
        sample_start: int = 0,
        precision: str | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Encode windows of a long utterance, one at a time; see `clips.encode_windows`."""
        return encode_windows(
            self, waveform, windows, stats, sample_start=sample_start, precision=precision
        )

    @contextmanager
    def _stage(self, precision: str, stage: str) -> Iterator[None]:
        """Time a stage, and compute it in a precision."""
        with self._settings(precision), self.clock(stage):
            yield

    @contextmanager
    def _settings(self, precision: str) -> Iterator[None]:
        """Compute in a precision, and not in that of a trainer's autocast or settings for CUDA."""
        on_cuda = self.device.type == "cuda"
        settings = cuda_settings(tf32=precision == "tf32") if on_cuda else nullcontext()
        with settings, torch.autocast(self.device.type, enabled=False):
            yield


class NoStatistics:
    """Accumulator of an encoder whose windows need nothing of the utterance."""

    def update(self, samples: Tensor) -> None:
        """Add nothing."""

    def finish(self) -> None:
        """Return no statistics."""


def _with_index(device: torch.device) -> torch.device:
    """Name the GPU that "cuda" is in this thread: in a thread of a worker it may be another one."""
    index: int | None = device.index
    if device.type != "cuda" or index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _cut(clips: Sequence[int], n_frames: Sequence[int], n_most: int) -> Iterator[list[int]]:
    """Cut clips into batches of up to `n_most` frames, in order."""
    batch: list[int] = []
    n_together = 0
    for clip, count in zip(clips, n_frames, strict=True):
        if batch and n_together + count > n_most:
            yield batch
            batch, n_together = [], 0
        batch.append(clip)
        n_together += count
    if batch:
        yield batch


def _no_clock(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def _check(waveform: Tensor) -> None:
    if waveform.ndim != 1 or waveform.dtype != torch.float32:
        raise EncoderError(
            f"a waveform must be one-dimensional float32, not {waveform.ndim}-dimensional "
            f"{str(waveform.dtype).removeprefix('torch.')}"
        )
    if waveform.numel() == 0:
        raise EncoderError("a waveform without samples has no features; expected at least 1 sample")

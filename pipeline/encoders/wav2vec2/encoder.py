"""`SpeechEncoder`, the encoder of the wav2vec 2.0 family: waveforms in, hidden layers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import Clock, EncoderSettings
from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.encoders.kernels import kernels_for
from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.settings import (
    PRECISIONS,
    REFERENCE_PRECISION,
    check_precision,
    resolve_settings,
)
from pipeline.encoders.wav2vec2.bundles import ModelSpec, find_model
from pipeline.encoders.wav2vec2.frontend import Frontend
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.wav2vec2.moments import MomentAccumulator, Moments, compute_moments
from pipeline.encoders.wav2vec2.transformer import Transformer
from pipeline.encoders.wav2vec2.weights import LoadedModel, load_model
from pipeline.encoders.windows import Window
from pipeline.errors import EncoderError

_CALL_FRAMES = 3000  # frames of one batch of `SpeechEncoder.__call__`: one minute


def load_encoder(
    name: str = "hubert_base",
    weights: str | Path = "pretrained",
    *,
    layers: str | Sequence[int] = "all",
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    max_window_s: float | None = None,
    context_s: float | None = None,
) -> SpeechEncoder:
    """Load an encoder by the short name of its model.

    Args:
        name: Short name of the model, as listed by `strata models`.
        weights: "pretrained" (downloaded by torchaudio), "random" (features mean nothing), or the
            path of a state dict with torchaudio's names (.pt, .pth, .safetensors).
        layers: "all" for 1..N, "superb" for 0..N, or a list of layers.
        precision: "fp32", "tf32" (CUDA only), "bf16", "fp16", or "auto": fp32 on a CPU, fp16 on
            CUDA.
        device: "cpu", "cuda", "cuda:1" …, or "auto": CUDA where available.
        seed: Seed of random weights.
        max_window_s: Longest window in seconds; longer utterances are encoded in overlapping
            windows. None for 40.
        context_s: Context on each side of a window in seconds, encoded and discarded. None for 5.

    Raises:
        ConfigError: A setting is unknown or out of range.
        WeightsError: The weights cannot be found or read, or do not fit the model.

    Example:
        >>> encoder = load_encoder("tiny", weights="random")
        >>> [features] = encoder([torch.zeros(16_000)])
        >>> features.shape  # [n_layers, n_frames, dim]
        torch.Size([12, 49, 48])
    """
    spec = find_model(name)
    settings = resolve_settings(spec.describe(), layers, precision, device, max_window_s, context_s)
    return SpeechEncoder(spec, load_model(spec, weights, seed), settings)


class SpeechEncoder:
    """Encoder of the wav2vec 2.0 family: returns raw block outputs per utterance.

    The other utterances of a batch do not affect a feature, except for rounding: the batch size
    changes the order of floating-point sums. Load an encoder with `load_encoder`.

    Attributes:
        name: Short name of the model.
        geometry: Sample rate, hop and receptive field.
        layers: Layers returned, ascending. 0 is the input of block 1, i the output of block i.
        dim: Size of a feature vector.
        n_model_layers: Number of blocks of the model.
        precision: "fp32", "tf32", "bf16" or "fp16".
        device: Device of the computation.
        windows: Windowing of utterances longer than `max_window_s`.
        weights_source: "pretrained", "random", "file" or "huggingface"; not part of the identity.
        is_random: Whether the weights are random, so that the features mean nothing.
        final_norm: For pre-norm models, `weight` and `bias` (float32 `[dim]`) and `eps` of the
            final norm, which is not applied to the last layer. None for post-norm models.
        identity: Everything that changes a feature by more than rounding, JSON-able.
        clock: `clock(stage)`: context manager that times one stage, `front_end` or `transformer`,
            of each batch. The default does nothing.
    """

    def __init__(self, spec: ModelSpec, loaded: LoadedModel, settings: EncoderSettings) -> None:
        """Use `load_encoder`, which checks the settings."""
        self.name = spec.name
        self.geometry = GEOMETRY
        self.layers = settings.layers
        self.dim = spec.dim
        self.n_model_layers = spec.n_layers
        self.precision = settings.precision
        self.device = torch.device(settings.device)
        self.windows = settings.windows
        self.weights_source = loaded.source
        self.is_random = loaded.source == "random"
        self._spec = spec
        self._model = loaded.model.to(self.device)
        self._kernels = kernels_for(self.device)
        self._modules: dict[str, tuple[Frontend, Transformer]] = {}
        self.final_norm = self._find_final_norm()
        self.identity: dict[str, Any] = {
            "model": spec.name,
            "architecture": spec.architecture(),
            "weights": {"sha256": loaded.sha256},
            "precision": self.precision,
            "layers": list(self.layers),
            "max_window_s": self.windows.max_window_s,
            "context_s": self.windows.context_s,
        }
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
            waveforms: float32 `[n_samples]` each, at 16 kHz, at least 1 sample, nominally in
                [-1, 1], on any device.

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
        for batch in _cut(short, [self.geometry.n_frames(len(waveforms[i])) for i in short]):
            encoded = encode_clips(self, [waveforms[i] for i in batch])
            results |= {i: part.cpu().clone() for i, part in zip(batch, encoded, strict=True)}
        return [results[i] for i in range(len(waveforms))]

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[Moments | None] | None = None,
        precision: str | None = None,
    ) -> Iterator[Tensor]:
        """Encode one batch of clips, layer by layer: the worker's hot path.

        Nothing waits for the device. A layer is yielded when it has been submitted to the device.

        Args:
            waveforms: At least one; float32 `[n_samples]` each, at 16 kHz, at least 1 sample and at
                most `max_window_s`, nominally in [-1, 1], on any device.
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
        precision = precision or self.precision
        modules = self._modules_for(precision)
        moments = [None] * len(waveforms) if stats is None else stats
        return self._encode(waveforms, moments, counts, precision, *modules)

    @torch.inference_mode()
    def _encode(
        self,
        waveforms: Sequence[Tensor],
        moments: Sequence[Moments | None],
        counts: Sequence[int],
        precision: str,
        frontend: Frontend,
        transformer: Transformer,
    ) -> Iterator[Tensor]:
        """Yield the chosen layers of one batch."""
        pack = Pack(counts, self.device, self._kernels.row_multiple)
        clock = partial(self._stage, precision)
        with clock("front_end"):
            frames = frontend(waveforms, moments, pack)
        for layer, features in enumerate(transformer(frames, pack, clock)):
            if layer in self.layers:
                yield features

    def plan_windows(self, n_samples: int) -> tuple[Window, ...]:
        """Return the windows of an utterance of `n_samples` samples at 16 kHz."""
        return self.windows.plan(n_samples)

    def statistics_accumulator(self) -> MomentAccumulator:
        """Return a new accumulator, for a recording that is decoded block by block."""
        return MomentAccumulator()

    def utterance_stats(self, utterance: Tensor | Moments) -> Moments:
        """Compute the utterance-wide statistics that each window needs.

        Args:
            utterance: All samples, float32 `[n_samples]` at 16 kHz, or their moments, from
                `statistics_accumulator`.
        """
        return compute_moments(utterance) if isinstance(utterance, Tensor) else utterance

    def encode_windows(
        self,
        waveform: Tensor,
        windows: Sequence[Window],
        stats: Moments,
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
        """Time a stage, with float32 products on CUDA as the precision says.

        The setting is the process's: a trainer that uses TF32 gets it back after the stage.
        """
        if self.device.type != "cuda":
            with self.clock(stage):
                yield
            return
        settings = torch.backends.cuda.matmul
        before = settings.fp32_precision
        settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        try:
            with self.clock(stage):
                yield
        finally:
            settings.fp32_precision = before

    def _modules_for(self, precision: str) -> tuple[Frontend, Transformer]:
        """Return front end and transformer in a precision, prepared on first use."""
        if precision not in self._modules:
            if precision != REFERENCE_PRECISION:
                check_precision(precision)
            dtype = PRECISIONS.get(precision, torch.float64)
            self._modules[precision] = (
                Frontend(self._model, self._spec, self._kernels, dtype),
                Transformer(self._model, self._spec, self._kernels, dtype, depth=self.layers[-1]),
            )
        return self._modules[precision]

    def _find_final_norm(self) -> dict[str, Any] | None:
        if not self._spec.pre_norm:
            return None
        norm: Any = self._model.get_submodule("encoder.transformer.layer_norm")
        return {"weight": norm.weight.cpu(), "bias": norm.bias.cpu(), "eps": norm.eps}


def _cut(clips: Sequence[int], n_frames: Sequence[int]) -> Iterator[list[int]]:
    """Cut clips into batches of up to `_CALL_FRAMES` frames, in order."""
    batch: list[int] = []
    n_together = 0
    for clip, count in zip(clips, n_frames, strict=True):
        if batch and n_together + count > _CALL_FRAMES:
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

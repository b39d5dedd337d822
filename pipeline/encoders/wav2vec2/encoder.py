"""Waveforms in, layers out: the encoder that the rest of Strata sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.wav2vec2.bundles import ModelSpec, find_model
from pipeline.encoders.wav2vec2.frontend import Frontend, UtteranceStats
from pipeline.encoders.wav2vec2.statistics import Moments, moments
from pipeline.encoders.wav2vec2.transformer import Transformer
from pipeline.encoders.wav2vec2.weights import LoadedModel, load_model
from pipeline.encoders.windows import (
    DEFAULT_CONTEXT_S,
    DEFAULT_MAX_WINDOW_S,
    FRAME_RATE_HZ,
    SAMPLE_RATE_HZ,
    Window,
    n_frames,
    plan_windows,
)
from pipeline.errors import ConfigError, EncoderError

LARGEST = 65504.0  # of float16, in which features are stored
_CALL_FRAMES = 3000  # padded frames that `SpeechEncoder.__call__` encodes at once: one minute
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        name: a name in `registry()`.
        weights: "pretrained" (downloaded by torchaudio), "random" (from `seed`; features mean
            nothing), or the path of a state dict with torchaudio's names (.pt, .pth, .safetensors).
        layers: "all" for 1..N, "superb" for 0..N, or the layers themselves.
        precision: "fp32", "bf16", "fp16", or "auto": fp32 on a CPU, fp16 on CUDA.
        device: "cpu", "cuda", "cuda:1"…, or "auto": CUDA where there is one.
        seed: of random weights.
        max_window_s: utterances longer than this are encoded in overlapping windows.
        context_s: context on each side of a window that is encoded and thrown away.

    Raises:
        ConfigError: a setting is not one of these.
        WeightsError: the weights cannot be had or do not fit the model.

    Example:
        >>> encoder = load_encoder("tiny", weights="random")
        >>> [features] = encoder([torch.zeros(16_000)])
        >>> features.shape  # [n_layers, n_frames, dim]
        torch.Size([12, 49, 48])
    """
    spec = find_model(name)
    settings = check_settings(spec, layers, precision, device, max_window_s, context_s)
    return SpeechEncoder(spec, load_model(spec, weights, seed), **settings)


def check_settings(
    spec: ModelSpec,
    layers: str | Sequence[int],
    precision: str,
    device: str,
    max_window_s: float | None,
    context_s: float | None,
) -> dict[str, Any]:
    """Check the settings of an encoder and resolve "auto"; arguments as `load_encoder`.

    Returns:
        Keyword arguments of `SpeechEncoder`.

    Raises:
        ConfigError: a setting is not one that `load_encoder` lists.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "fp16" if device.startswith("cuda") else "fp32"
    if precision not in _DTYPES:
        raise ConfigError(f"precision={precision!r} is not one of auto, {', '.join(_DTYPES)}")
    max_window_s = DEFAULT_MAX_WINDOW_S if max_window_s is None else float(max_window_s)
    context_s = DEFAULT_CONTEXT_S if context_s is None else float(context_s)
    plan_windows(round(2 * max_window_s * SAMPLE_RATE_HZ) + 1, max_window_s, context_s)
    return {
        "layers": choose_layers(layers, spec.n_layers),
        "precision": precision,
        "device": torch.device(device),
        "max_window_s": max_window_s,
        "context_s": context_s,
    }


def choose_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Turn a choice of layers into their numbers, ascending.

    Args:
        layers: "all" for 1..N, "superb" for 0..N, or numbers in 0..N.
        n_layers: N, the number of transformer blocks.

    Raises:
        ConfigError: the choice is empty, repeats a layer, or names one that the model has not.
    """
    if layers == "all":
        return tuple(range(1, n_layers + 1))
    if layers == "superb":
        return tuple(range(n_layers + 1))
    expected = f"expected all, superb, or a list of 0 to {n_layers}, each once, like [1,6,12]"
    if isinstance(layers, str) or not layers:
        raise ConfigError(f"layers={layers!r} names no layers; {expected}")
    numbers = tuple(layers)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise ConfigError(f"layers={list(numbers)!r} are not all whole numbers; {expected}")
    if len(set(numbers)) != len(numbers) or not all(0 <= n <= n_layers for n in numbers):
        raise ConfigError(f"layers={list(numbers)} do not fit the model; {expected}")
    return tuple(sorted(numbers))


class SpeechEncoder:
    """A model of the wav2vec 2.0 family that returns raw block outputs, utterance by utterance.

    A feature depends on its own utterance only, whatever else is in the batch, up to the rounding
    of matrix products of another size.

    Attributes:
        name: short name of the model.
        layers: the layers returned, ascending; 0 is the input of block 1, i the output of block i.
        dim: size of a feature vector.
        n_model_layers: number of blocks the model has.
        sample_rate_hz: rate at which waveforms must come.
        frame_rate_hz: features per second.
        precision: "fp32", "bf16" or "fp16".
        device: where it computes.
        weights_source: "pretrained", "random", "file" or "huggingface"; not part of the identity.
        is_random: whether the weights are random, so that features mean nothing.
        max_window_s: longest stretch encoded at once.
        context_s: context of a window on each side.
        final_norm: for pre-norm models, `weight` and `bias` (float32 `[dim]`) and `eps` of the norm
            that the last layer has not been through; None for post-norm models.
        identity: all that changes a feature, ready for JSON.
        clock: entered with `front_end` and `transformer` around these parts of every batch; does
            nothing, until one that measures is put in its place.
    """

    def __init__(
        self,
        spec: ModelSpec,
        loaded: LoadedModel,
        *,
        layers: tuple[int, ...],
        precision: str,
        device: torch.device,
        max_window_s: float,
        context_s: float,
    ) -> None:
        """Use `load_encoder`, which checks the settings."""
        self.name = spec.name
        self.layers = layers
        self.dim = spec.dim
        self.n_model_layers = spec.n_layers
        self.sample_rate_hz = SAMPLE_RATE_HZ
        self.frame_rate_hz = FRAME_RATE_HZ
        self.precision = precision
        self.device = device
        self.weights_source = loaded.source
        self.is_random = loaded.source == "random"
        self.max_window_s = max_window_s
        self.context_s = context_s
        self._spec = spec
        self._model = loaded.model.to(device)
        self._stacks: dict[str, tuple[Frontend, Transformer]] = {}
        self.final_norm = self._find_final_norm()
        self.identity: dict[str, Any] = {
            "model": spec.name,
            "architecture": spec.architecture(),
            "weights": {"sha256": loaded.sha256},
            "precision": precision,
            "layers": list(layers),
            "max_window_s": max_window_s,
            "context_s": context_s,
        }
        self.clock: Callable[[str], AbstractContextManager[None]] = _no_clock

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode utterances of any number and lengths, in batches of like length.

        Long ones are encoded window by window.

        Args:
            waveforms: float32 `[n_samples]` at 16 kHz, each at least 1 sample.

        Returns:
            For each, float32 `[n_layers, n_frames, dim]` on the CPU.

        Raises:
            EncoderError: a waveform is not one-dimensional float32, or is empty.
        """
        results: dict[int, Tensor] = {}
        short = []
        for i, waveform in enumerate(waveforms):
            _check(waveform)
            windows = self.plan_windows(waveform.numel())
            if len(windows) == 1:
                short.append(i)
                continue
            parts = self.encode_windows(waveform, windows, self.utterance_stats(waveform))
            results[i] = torch.cat([features.cpu() for _, features in parts], dim=1)
        short.sort(key=lambda i: -waveforms[i].numel())
        while short:
            longest = n_frames(waveforms[short[0]].numel())
            n_together = max(1, _CALL_FRAMES // longest)
            batch, short = short[:n_together], short[n_together:]
            features, counts = self.encode_batch([waveforms[i] for i in batch])
            for row, (i, count) in enumerate(zip(batch, counts, strict=True)):
                results[i] = features[:, row, :count].cpu().clone()
        return [results[i] for i in range(len(waveforms))]

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[UtteranceStats] | None = None,
        precision: str | None = None,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, list[int]]:
        """Encode one batch, all of it at once: the worker's hot path.

        Args:
            waveforms: float32 `[n_samples]` at 16 kHz, none longer than `max_window_s`.
            stats: `utterance_stats` of the utterance each waveform is a window of; None if each is
                a whole utterance.
            precision: instead of the encoder's own; "fp32" reruns a batch that did not fit.
            out_dtype: of the features.

        Returns:
            Features `[n_layers, batch, max_frames, dim]` on the encoder's device, and the number of
            frames of each utterance; what lies beyond that number means nothing.

        Raises:
            EncoderError: a waveform is empty, too long, or not one-dimensional float32.
        """
        longest = n_frames(round(self.max_window_s * SAMPLE_RATE_HZ))
        for waveform in waveforms:
            _check(waveform)
            if n_frames(waveform.numel()) > longest:
                raise EncoderError(
                    f"a waveform of {waveform.numel() / SAMPLE_RATE_HZ:.1f} s is longer than "
                    f"max_window_s={self.max_window_s:g}; encode it by windows"
                )
        with torch.inference_mode():
            frontend, transformer = self._stack(precision or self.precision)
            with self.clock("front_end"):
                if stats is None:
                    stats = [self.utterance_stats(waveform) for waveform in waveforms]
                frames, starts = frontend(waveforms, stats)
            counts = [n_frames(waveform.numel()) for waveform in waveforms]
            with self.clock("transformer"):
                return transformer(frames, starts, counts, self.layers, out_dtype), counts

    def plan_windows(self, n_samples: int) -> tuple[Window, ...]:
        """Windows of an utterance of `n_samples`, by this encoder's settings."""
        return plan_windows(n_samples, self.max_window_s, self.context_s)

    def utterance_stats(self, utterance: Tensor | Moments) -> UtteranceStats:
        """What its windows must know of the whole utterance.

        Args:
            utterance: all its samples, float32 `[n_samples]` at 16 kHz, or their moments as summed
                by `MomentAccumulator` while the file was read.
        """
        sums = moments(utterance) if isinstance(utterance, Tensor) else utterance
        return self._stack(self.precision)[0].stats(sums)

    def encode_windows(
        self,
        waveform: Tensor,
        windows: Sequence[Window],
        stats: UtteranceStats,
        *,
        sample_start: int = 0,
        precision: str | None = None,
        out_dtype: torch.dtype = torch.float32,
    ) -> Iterator[tuple[int, Tensor]]:
        """Encode some windows of a long utterance, one at a time, so that memory stays bounded.

        A window's features do not depend on which others are asked for.

        Args:
            waveform: float32 samples at 16 kHz that contain these windows' samples.
            windows: from `plan_windows`, all or some.
            stats: from `utterance_stats`, of the whole utterance.
            sample_start: position of `waveform[0]` in the utterance.
            precision: instead of the encoder's own.
            out_dtype: of the features.

        Yields:
            First frame of the window's kept frames, and `[n_layers, n_kept, dim]` on the device.
        """
        for window in windows:
            low, high = window.sample_start - sample_start, window.sample_stop - sample_start
            features, _ = self.encode_batch(
                [waveform[low:high]], stats=[stats], precision=precision, out_dtype=out_dtype
            )
            first = window.keep_start - window.feed_start
            count = window.keep_stop - window.keep_start
            yield window.keep_start, features[:, 0, first : first + count]

    def misfits(self, features: Tensor, counts: Sequence[int]) -> list[int | None]:
        """Say which utterances of a batch cannot be stored in float16, and from which layer on.

        Args:
            features: from `encode_batch`, `[n_layers, batch, max_frames, dim]`.
            counts: from `encode_batch`.

        Returns:
            For each utterance the first layer with a value that is not finite or beyond ±65504,
            None if there is none.
        """
        with torch.inference_mode():
            lengths = torch.tensor(counts, device=features.device)
            inside = torch.arange(features.shape[2], device=features.device) < lengths[:, None]
            rows = [
                ~(layer.abs().amax(-1) <= LARGEST) & inside  # NaN compares false
                for layer in features
            ]
            bad = torch.stack([row.any(-1) for row in rows]).T.tolist()  # [batch, n_layers]
        return [
            next((layer for layer, wrong in zip(self.layers, row, strict=True) if wrong), None)
            for row in bad
        ]

    def _stack(self, precision: str) -> tuple[Frontend, Transformer]:
        """The weights prepared for a precision, made when it is first asked for."""
        if precision not in _DTYPES:
            raise ConfigError(f"precision={precision!r} is not one of {', '.join(_DTYPES)}")
        if precision not in self._stacks:
            dtype = _DTYPES[precision]
            self._stacks[precision] = (
                Frontend(self._model, self._spec, dtype),
                Transformer(self._model, self._spec, dtype, depth=self.layers[-1]),
            )
        return self._stacks[precision]

    def _find_final_norm(self) -> dict[str, Any] | None:
        if not self._spec.pre_norm:
            return None
        norm: Any = self._model.get_submodule("encoder.transformer.layer_norm")
        return {"weight": norm.weight.cpu(), "bias": norm.bias.cpu(), "eps": norm.eps}


def _no_clock(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def _check(waveform: Tensor) -> None:
    if waveform.ndim != 1 or waveform.dtype != torch.float32:
        raise EncoderError(
            f"a waveform must be one-dimensional float32, not {waveform.ndim}-dimensional "
            f"{str(waveform.dtype).removeprefix('torch.')}"
        )
    if waveform.numel() == 0:
        raise EncoderError("a waveform without samples has no features; it must be quarantined")

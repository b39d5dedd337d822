"""Self-check of an encoder: its errors on the given audio and on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.encoders.clips import encode_clips
from pipeline.store.format.codecs import DEFAULT_CODEC

# Largest relative errors due to rounding. A leak between batch-mates exceeds them.
_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-2, "fp16": 1e-2, "bf16": 6e-2}


@dataclass(frozen=True)
class SelfCheck:
    """Largest relative error of each layer over a few waveforms; `asdict` is ready for JSON.

    The relative error of a layer is max |a - b| / max |b| over the frames and features of an
    utterance.

    Attributes:
        model: Name of the model.
        precision: Precision that was checked.
        layers: Layers, in the order of the errors.
        n_waveforms: Number of waveforms.
        audio_s: Total length of the waveforms in seconds.
        alone_vs_batch: Errors of each waveform encoded separately against all in one batch.
        precision_vs_fp32: Errors of the precision against fp32, encoded separately; zeros for fp32.
        n_misfits: Waveforms with a value that is not finite or cannot be stored.
        tolerance: Largest error due to rounding in this precision.
        ok: Whether all errors are within the tolerance and there are no misfits.
    """

    model: str
    precision: str
    layers: tuple[int, ...]
    n_waveforms: int
    audio_s: float
    alone_vs_batch: tuple[float, ...]
    precision_vs_fp32: tuple[float, ...]
    n_misfits: int
    tolerance: float
    ok: bool


def relative_errors(features: Tensor, reference: Tensor) -> Tensor:
    """Compute the relative error of each layer, max |features - reference| / max |reference|.

    Args:
        features: Floating-point `[n_layers, n_frames, dim]`.
        reference: Floating-point, of the same shape.

    Returns:
        float64 `[n_layers]`; NaN for a layer with a value that is not finite.
    """
    difference = (features.double() - reference.double()).abs().amax((1, 2))
    return difference / reference.double().abs().amax((1, 2)).clamp_min(1e-30)


def selfcheck(encoder: Encoder, waveforms: Sequence[Tensor]) -> SelfCheck:
    """Encode waveforms separately, in one batch and in fp32, and compare.

    Args:
        encoder: The encoder, in the precision to check.
        waveforms: A few waveforms of mixed lengths, float32 `[n_samples]` at the encoder's rate.
            Waveforms longer than `max_window_s` are truncated.
    """
    rate_hz = encoder.geometry.sample_rate_hz
    longest = round(encoder.windows.max_window_s * rate_hz)
    waveforms = [waveform[:longest] for waveform in waveforms]
    batch = encode_clips(encoder, waveforms)
    batch_errors, precision_errors = [], []
    for waveform, together in zip(waveforms, batch, strict=True):
        [separate] = encode_clips(encoder, [waveform])  # [n_layers, n_frames, dim]
        batch_errors.append(relative_errors(together, separate))
        if encoder.precision == "fp32":
            precision_errors.append(torch.zeros_like(batch_errors[-1]))
        else:
            [exact] = encode_clips(encoder, [waveform], precision="fp32")
            precision_errors.append(relative_errors(separate, exact))
    batch_worst = torch.stack(batch_errors).amax(0)
    precision_worst = torch.stack(precision_errors).amax(0)
    tolerance = _TOLERANCE[encoder.precision]
    n_misfits = sum(find_overflow(features, encoder.layers) is not None for features in batch)
    within = bool((batch_worst <= tolerance).all() and (precision_worst <= tolerance).all())
    return SelfCheck(
        model=encoder.name,
        precision=encoder.precision,
        layers=encoder.layers,
        n_waveforms=len(waveforms),
        audio_s=sum(waveform.numel() for waveform in waveforms) / rate_hz,
        alone_vs_batch=tuple(batch_worst.tolist()),
        precision_vs_fp32=tuple(precision_worst.tolist()),
        n_misfits=n_misfits,
        tolerance=tolerance,
        ok=within and n_misfits == 0,
    )


def find_overflow(features: Tensor, layers: Sequence[int]) -> int | None:
    """Find the first layer that exceeds the range of the stored dtype.

    Args:
        features: Floating-point `[n_layers, n_frames, dim]`.
        layers: Layers of `features`.

    Returns:
        The first layer with a value that is not finite or cannot be stored; None if there is none.
    """
    largest = features.abs().amax((1, 2)).tolist()  # NaN propagates
    for layer, value in zip(layers, largest, strict=True):
        if not value <= DEFAULT_CODEC.largest:
            return layer
    return None

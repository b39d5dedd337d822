"""A quick look at how far an encoder can be trusted, on the audio and the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.store.format.codecs import DEFAULT_CODEC

# Largest relative errors that rounding explains; a padding leak or wrong weights exceed them all.
_TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 6e-2}


@dataclass(frozen=True)
class SelfCheck:
    """Largest relative errors per layer over a handful of waveforms; `asdict` is ready for JSON.

    The relative error of a layer of an utterance is max |a - b| / max |b| over its frames and
    features; the largest over the utterances is kept.

    Attributes:
        model: name of the model.
        precision: precision checked.
        layers: layers, in the order of the errors.
        n_waveforms: number of waveforms.
        audio_s: their total length, in seconds.
        alone_vs_batch: each waveform alone against the same among all the others.
        precision_vs_fp32: the precision against fp32, both alone; zeros where it is fp32.
        n_misfits: waveforms with a value that is not finite or does not fit float16.
        tolerance: the largest error that rounding in this precision explains.
        ok: whether every error is within the tolerance and every value fits.
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


def relative_errors(found: Tensor, reference: Tensor) -> Tensor:
    """Relative error of each layer, max |found - reference| / max |reference|.

    Args:
        found: `[n_layers, n_frames, dim]`.
        reference: the same shape.

    Returns:
        `[n_layers]`; NaN where a value is not finite.
    """
    difference = (found.double() - reference.double()).abs().amax((1, 2))
    return difference / reference.double().abs().amax((1, 2)).clamp_min(1e-30)


def selfcheck(encoder: Encoder, waveforms: Sequence[Tensor]) -> SelfCheck:
    """Encode waveforms alone, together, and in fp32, and compare.

    Args:
        encoder: the encoder, in the precision to check.
        waveforms: a few, of mixed lengths, float32 `[n_samples]` at the encoder's rate; what is
            longer than `max_window_s` is cut to it.
    """
    rate_hz = encoder.geometry.sample_rate_hz
    longest = round(encoder.windows.max_window_s * rate_hz)
    waveforms = [waveform[:longest] for waveform in waveforms]
    together, counts = encoder.encode_batch(waveforms)
    overflows = find_overflows(together, counts, encoder.layers)
    batch_errors, precision_errors = [], []
    for row, (waveform, count) in enumerate(zip(waveforms, counts, strict=True)):
        alone = encoder.encode_batch([waveform])[0][:, 0]
        batch_errors.append(relative_errors(together[:, row, :count], alone))
        if encoder.precision == "fp32":
            precision_errors.append(torch.zeros_like(batch_errors[-1]))
        else:
            exact = encoder.encode_batch([waveform], precision="fp32")[0][:, 0]
            precision_errors.append(relative_errors(alone, exact))
    batch_worst = torch.stack(batch_errors).amax(0)
    precision_worst = torch.stack(precision_errors).amax(0)
    tolerance = _TOLERANCE[encoder.precision]
    n_misfits = sum(layer is not None for layer in overflows)
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


def find_overflows(
    features: Tensor, counts: Sequence[int], layers: Sequence[int]
) -> list[int | None]:
    """Find the utterances of a batch that float16 cannot hold.

    Args:
        features: From `Encoder.encode_batch`, `[n_layers, batch, max_frames, dim]`.
        counts: From `Encoder.encode_batch`.
        layers: The encoder's layers.

    Returns:
        For each utterance the first layer with a value that is not finite or beyond ±65504, None if
        there is none.
    """
    with torch.inference_mode():
        lengths = torch.tensor(counts, device=features.device)
        inside = torch.arange(features.shape[2], device=features.device) < lengths[:, None]
        rows = [
            ~(layer.abs().amax(-1) <= DEFAULT_CODEC.largest) & inside  # NaN compares false
            for layer in features
        ]
        bad = torch.stack([row.any(-1) for row in rows]).T.tolist()  # [batch, n_layers]
    return [
        next((layer for layer, wrong in zip(layers, row, strict=True) if wrong), None)
        for row in bad
    ]

"""Self-check of an encoder: its errors on the given audio and on this machine.

What it compares, for a few clips of mixed lengths:

- each clip alone with the same clip in a batch: with the other clips; with them in reverse order
  and one more as long as the longest, as some models run only clips of one length together; and
  with a longer clip of silence at the end, so that a model that pads its batches pads every clip.
  Only the rounding may change. Silence within an utterance is a part of it and is not compared, as
  attention and norms over time may use it;
- a batch, and clips alone, with their encoding a second time: no bit may change;
- the precision with fp32.

Other clips of a batch are compared in fp32, too, where rounding hides no leak.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.encoders.checking.comparisons import (
    BATCH,
    PERMUTED,
    SILENCE,
    Layers,
    Repeats,
    encode_alone,
    errors_in_batch,
    errors_of,
    is_constant,
    largest_errors,
    largest_values,
    relative_errors,
)
from pipeline.store.format.codecs import DEFAULT_CODEC, Codec

__all__ = ["LEAK", "SelfCheck", "find_overflow", "is_silent", "relative_errors", "selfcheck"]

LEAK = 1e-4
"""Error in fp32 above which a clip depends on the other clips of its batch. Rounding stays below a
tenth of it; models whose features depend on padding have errors above its tenfold."""
SILENT_PEAK = 1e-4
"""Largest sample of a silent clip, of which errors say nothing."""
_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-2, "fp16": 1e-2, "bf16": 6e-2}
_EXACT = "fp32"
_N_ALONE_AGAIN = 2


@dataclass(frozen=True)
class SelfCheck:
    """Largest relative error of each layer over a few waveforms; `asdict` is ready for JSON.

    The relative error of a layer is max |a - b| / max |b| over the frames and features of an
    utterance. It is None where no waveform has finite values to compare, and the largest float
    where a value is finite in the reference only.

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
        ok: Whether all errors are within the tolerance, and nothing else was found.
        mates: Largest errors in fp32 of waveforms alone against those in one batch: "batch", in
            reverse order with one more "permuted", and with longer silence behind "silence".
        mates_layer: Layer with the largest of these; None if they are all 0.
        repeated: Largest error of a second encoding of the same batch, or of waveforms alone.
        is_repeatable: Whether a second encoding has the same bits.
        is_deterministic: Whether a second encoding of waveforms alone is the same within rounding.
        largest: Largest magnitude of each layer in this precision; None if a value is not finite.
        largest_fp32: The same in fp32.
        n_unstorable: Waveforms with a value that cannot be stored in fp32 either.
        constant: Layers whose frames are all equal.
        dtype: How values are stored.
        largest_stored: Largest magnitude that can be stored.
        n_silent: Waveforms that are silent.
        is_synthetic: Whether the waveforms are synthetic, not clips of the dataset.
        slowdown: How many times longer waveforms take one by one than in batches; None if it was
            not measured.
    """

    model: str
    precision: str
    layers: tuple[int, ...]
    n_waveforms: int
    audio_s: float
    alone_vs_batch: tuple[float | None, ...]
    precision_vs_fp32: tuple[float | None, ...]
    n_misfits: int
    tolerance: float
    ok: bool
    mates: dict[str, float | None] = field(default_factory=dict)
    mates_layer: int | None = None
    repeated: float = 0.0
    is_repeatable: bool = True
    is_deterministic: bool = True
    largest: tuple[float | None, ...] = ()
    largest_fp32: tuple[float | None, ...] = ()
    n_unstorable: int = 0
    constant: tuple[int, ...] = ()
    dtype: str = DEFAULT_CODEC.name
    largest_stored: float = DEFAULT_CODEC.largest
    n_silent: int = 0
    is_synthetic: bool = False
    slowdown: float | None = None

    @property
    def leaks(self) -> bool:
        """Whether waveforms depend on the others of their batch."""
        bound = max(LEAK, self.tolerance)
        return worst(self.mates.values()) > LEAK or worst(self.alone_vs_batch) > bound


def worst(errors: Iterable[float | None]) -> float:
    """Return the largest of some errors; 0 if none could be measured."""
    return max((error for error in errors if error is not None), default=0.0)


def is_silent(waveform: Tensor) -> bool:
    """Return whether a waveform, `[n_samples]`, is silent."""
    return float(waveform.abs().max()) < SILENT_PEAK


def selfcheck(
    encoder: Encoder,
    waveforms: Sequence[Tensor],
    codec: Codec = DEFAULT_CODEC,
    *,
    precision: str | None = None,
    is_synthetic: bool = False,
) -> SelfCheck:
    """Encode waveforms separately, in batches, a second time and in fp32, and compare.

    Args:
        encoder: The encoder, in the precision to check.
        waveforms: A few waveforms of mixed lengths, float32 `[n_samples]` at the encoder's rate.
            Waveforms longer than `max_window_s` are truncated.
        codec: How features will be stored.
        precision: Precision to check instead of the encoder's.
        is_synthetic: Whether the waveforms are synthetic; for the result.
    """
    precision, rate_hz = precision or encoder.precision, encoder.geometry.sample_rate_hz
    longest = round(encoder.windows.max_window_s * rate_hz)
    clips = [waveform[:longest] for waveform in waveforms]
    alone = encode_alone(encoder, clips, precision)
    exact = alone if precision == _EXACT else encode_alone(encoder, clips, _EXACT)
    batch, again = Repeats(), Repeats()
    packed = list(encoder.encode_batch(clips, precision=precision))
    batch.add(list(encoder.encode_batch(clips, precision=precision)), packed)
    in_batch = errors_in_batch(encoder, clips, alone, precision, encoded=packed)
    del packed
    mates = {BATCH: in_batch} if precision == _EXACT else {}
    for order in (BATCH, PERMUTED, SILENCE):
        if order not in mates:
            mates[order] = errors_in_batch(encoder, clips, exact, _EXACT, order)
    for second, first in zip(
        encode_alone(encoder, clips[:_N_ALONE_AGAIN], precision), alone, strict=False
    ):
        again.add(second, first)
    rounding = largest_errors([errors_of(*pair) for pair in zip(alone, exact, strict=True)])
    tolerance = _TOLERANCE[precision]
    by_layer = _as_floats(largest_errors(list(mates.values())))
    constant = [is_constant([features[i] for features in exact]) for i in range(len(alone[0]))]
    found = SelfCheck(
        model=encoder.name,
        precision=precision,
        layers=encoder.layers,
        n_waveforms=len(clips),
        audio_s=sum(clip.numel() for clip in clips) / rate_hz,
        alone_vs_batch=_as_floats(in_batch),
        precision_vs_fp32=_as_floats(rounding),
        n_misfits=sum(not _fits(features, codec) for features in alone),
        tolerance=tolerance,
        ok=False,
        mates={order: _largest(_as_floats(errors)) for order, errors in mates.items()},
        mates_layer=_layer_of_worst(encoder.layers, by_layer),
        repeated=min(max(batch.error, again.error), sys.float_info.max),
        is_repeatable=batch.is_bit_equal and again.is_bit_equal,
        is_deterministic=again.error <= tolerance,
        largest=_as_floats(largest_values(alone)),
        largest_fp32=_as_floats(largest_values(exact)),
        n_unstorable=sum(not _fits(features, codec) for features in exact),
        constant=tuple(n for n, same in zip(encoder.layers, constant, strict=True) if same),
        dtype=codec.name,
        largest_stored=codec.largest,
        n_silent=sum(map(is_silent, clips)),
        is_synthetic=is_synthetic,
    )
    return replace(found, ok=_is_ok(found))


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


def _is_ok(found: SelfCheck) -> bool:
    mates_bound = found.tolerance if found.precision == _EXACT else LEAK
    return (
        worst(found.alone_vs_batch) <= found.tolerance
        and worst(found.precision_vs_fp32) <= found.tolerance
        and worst(found.mates.values()) <= mates_bound
        and found.repeated <= found.tolerance
        and not found.n_misfits
        and not found.constant
        and found.n_silent < found.n_waveforms
    )


def _fits(features: Layers, codec: Codec) -> bool:
    return all(codec.fits(float(layer.min()), float(layer.max())) for layer in features)


def _as_floats(values: Tensor) -> tuple[float | None, ...]:
    """Return values for JSON, which has neither NaN nor infinity."""
    return tuple(
        None if math.isnan(value) else min(value, sys.float_info.max) for value in values.tolist()
    )


def _largest(errors: Sequence[float | None]) -> float | None:
    return max((error for error in errors if error is not None), default=None)


def _layer_of_worst(layers: Sequence[int], errors: Sequence[float | None]) -> int | None:
    most = worst(errors)
    return layers[list(errors).index(most)] if most > 0 else None

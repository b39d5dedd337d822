"""Comparisons of encodings of the same clips, layer by layer, so that one layer is held at a time.

Errors are float64 `[n_layers]`: NaN where the reference is not finite, infinite where only the
other value is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pipeline.encoders.base import Encoder

BATCH, PERMUTED, SILENCE = "batch", "permuted", "silence"
"""Batches in which a clip is compared with itself alone: all clips, the same in reverse order with
another one that is as long as the longest, and all clips before a clip of silence that is longer
than any of them."""
_LONGER = 1.5  # length of that silence, relative to the longest clip

Layers = Sequence[Tensor]
"""Features of one clip, `[n_frames, dim]` of each layer."""


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


def encode_alone(encoder: Encoder, clips: Sequence[Tensor], precision: str) -> list[Layers]:
    """Encode each clip in a batch of its own."""
    return [list(encoder.encode_batch([clip], precision=precision)) for clip in clips]


def errors_of(features: Layers, reference: Layers) -> Tensor:
    """Return the errors of the layers of a clip."""
    pairs = zip(features, reference, strict=True)
    return torch.stack([_error(*pair) for pair in pairs])


def errors_in_batch(
    encoder: Encoder,
    clips: Sequence[Tensor],
    alone: Sequence[Layers],
    precision: str,
    order: str = BATCH,
    encoded: Iterable[Tensor] | None = None,
) -> Tensor:
    """Encode clips in one batch, and compare each with itself alone.

    Args:
        encoder: The encoder.
        clips: The clips.
        alone: Features of each, encoded alone in the same precision.
        precision: The precision.
        order: `BATCH`, `PERMUTED` or `SILENCE`.
        encoded: Packed layers of this batch; None encodes it.

    Returns:
        Largest errors over the clips.
    """
    places = list(range(len(clips)))
    if order == PERMUTED:
        places.reverse()
    batch = [clips[place] for place in places]
    if order == PERMUTED:
        batch.append(_of_equal_length(clips))
    if order == SILENCE:
        batch.append(_silence(encoder, clips))
    counts = [encoder.geometry.n_frames(clip.numel()) for clip in batch]
    errors = []
    if encoded is None:
        encoded = encoder.encode_batch(batch, precision=precision)
    for i, packed in enumerate(encoded):
        parts = zip(places, torch.split(packed, counts)[: len(places)], strict=True)
        errors.append(largest_errors([_error(part, alone[place][i]) for place, part in parts]))
    return torch.stack(errors)


class Repeats:
    """Differences between encodings of the same batch.

    Attributes:
        is_bit_equal: Whether there are none.
        error: Largest error.
    """

    def __init__(self) -> None:
        self.is_bit_equal = True
        self.error = 0.0

    def add(self, again: Layers, first: Layers) -> None:
        """Compare two encodings; NaN equals NaN."""
        for one, other in zip(again, first, strict=True):
            is_equal = (one == other) | (one.isnan() & other.isnan())
            self.is_bit_equal &= bool(is_equal.all())
            error = float(_error(one, other))
            self.error = max(self.error, 0.0 if math.isnan(error) else error)


def largest_errors(errors: Sequence[Tensor]) -> Tensor:
    """Return the largest of some errors, elementwise; NaN where all are NaN."""
    stacked = torch.stack(list(errors))
    most = stacked.nan_to_num(nan=-1.0, posinf=math.inf).amax(0)
    return torch.where(most < 0, math.nan, most)


def largest_values(clips: Sequence[Layers]) -> Tensor:
    """Return the largest magnitude of each layer over clips, float64; NaN if one is not finite."""
    peaks = [torch.stack([layer.double().abs().max() for layer in layers]) for layers in clips]
    most = torch.stack(peaks).amax(0).cpu()
    return torch.where(most.isfinite(), most, math.nan)


def is_constant(frames: Sequence[Tensor]) -> bool:
    """Whether all frames of a layer are equal and finite, of at least 2 clips `[n_frames, dim]`."""
    if len(frames) < 2:
        return False
    low = torch.stack([part.amin(0) for part in frames]).amin(0)
    high = torch.stack([part.amax(0) for part in frames]).amax(0)
    return bool(((low == high) & low.isfinite()).all())


def _of_equal_length(clips: Sequence[Tensor]) -> Tensor:
    """Return another clip that is as long as the longest, for encoders that pad no batch.

    They run only clips of equal length together, and a check may have no two such clips. The clip
    is the longest one, reversed and half silent, so that its mean and variance differ.
    """
    mate = max(clips, key=len).flip(0)
    mate[: len(mate) // 2] = 0.0
    return mate


def _silence(encoder: Encoder, clips: Sequence[Tensor]) -> Tensor:
    limit = round(encoder.windows.max_window_s * encoder.geometry.sample_rate_hz)
    longest = max(clip.numel() for clip in clips)
    return torch.zeros(min(limit, round(_LONGER * longest) + 1))


def _error(features: Tensor, reference: Tensor) -> Tensor:
    """Return the error of one layer, `[n_frames, dim]`, on the CPU."""
    error = relative_errors(features[None], reference[None])[0]
    if bool(error.isnan()):
        is_finite = bool(torch.isfinite(reference).all())
        return torch.tensor(math.inf if is_finite else math.nan, dtype=torch.float64)
    return error.cpu()

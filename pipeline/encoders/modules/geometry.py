"""Frame geometry of a model, found by running it: hop, needed samples and receptive field.

Convolutions, pooling and framing, one after another, with any padding, always give
`(n_samples - needed) // hop + 1` frames, for some `hop` and `needed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import EncoderError, StrataError, first_few
from pipeline.store.format.geometry import FrameGeometry

Count = Callable[[int], int]
"""Number of frames of a clip of `n` samples."""
_UNSEEN = 1e-6
"""Largest relative change of a frame by samples that it does not see: rounding of products."""


@dataclass(frozen=True)
class FoundGeometry:
    """A geometry, and whether the receptive field was found too.

    Attributes:
        geometry: The geometry.
        is_known: Whether each frame depends on a limited number of samples, the receptive field.
    """

    geometry: FrameGeometry
    is_known: bool


def find_counts(count: Count, rate_hz: int, name: str) -> tuple[int, int]:
    """Find the hop and the samples that frame 0 needs, by bisection between two frames.

    Args:
        count: The model's frames, for clips of about a second.
        rate_hz: Sample rate.
        name: Name of the encoder, for messages.

    Returns:
        Hop and needed samples: a clip of `n` samples has `(n - needed) // hop + 1` frames.

    Raises:
        EncoderError: The number of frames does not grow with the length, or has no such form.
    """
    start = rate_hz
    n_frames, n_twice = count(start), count(2 * start)
    if n_twice <= n_frames:
        raise EncoderError(
            f"{name} gives {n_frames} frames for {start} samples and {n_twice} for {2 * start}: "
            "the number of frames does not grow with the audio. A model with a window of fixed "
            "length needs a family of its own; does `layers` name the outputs of blocks?"
        )
    first = _step(count, start, 2 * start)
    if (n_more := count(first) - n_frames) > 1:
        raise EncoderError(
            f"{name} gives {n_frames} frames for {first - 1} samples and {n_frames + n_more} for "
            f"{first}: {n_more} more at once, as a model of patches does. outputs= can make one "
            "frame of the vectors of a step, e.g. their mean"
        )
    near = max(2, 2 * start // (n_twice - n_frames))  # more than the hop
    second = _step(count, first, first + near)
    hop = second - first
    needed = first - hop * (count(first) - 1)
    if needed < 0:
        raise EncoderError(
            f"{name} gives {n_frames} frames for {start} samples and {n_twice} for {2 * start}: "
            f"with a hop of {hop} samples, more than n_samples // {hop} + 1. Drop the frames that "
            "see nothing but padding in the module"
        )
    return hop, needed


def _step(count: Count, low: int, high: int) -> int:
    """Find the smallest length with more frames than `low`, up to `high`, which has more."""
    before = count(low)
    if count(high) <= before:  # irregular: verification names the counts
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) > before else (middle, high)
    return high


def find_field(
    run: Callable[[Tensor], Tensor], hop: int, needed: int, rate_hz: int
) -> FoundGeometry:
    """Find the receptive field, by changing samples before and after a frame.

    If a frame in the middle changes with the last sample, the model has attention or the like, and
    the field of its front end cannot be measured. The field is then the smallest one that fits the
    numbers of frames, with padding of equal size at both ends.

    Args:
        run: Returns the first layer of a clip, `[1, frames, dim]`.
        hop: Samples between two frames.
        needed: Samples that frame 0 needs beside the padding.
        rate_hz: Sample rate.
    """
    n_samples = max(2 * rate_hz, needed + 40 * hop)
    generator = torch.Generator().manual_seed(3)
    clip = 0.1 * torch.randn(n_samples, generator=generator)
    other = torch.randn(n_samples, generator=generator)
    whole = run(clip)
    middle = whole.shape[1] // 2
    scale = whole.abs().max().clamp_min(1e-30)

    def changes(start: int, stop: int) -> bool:
        """Whether other samples there change the frame in the middle."""
        changed = clip.clone()
        changed[start:stop] = other[start:stop]
        difference = (run(changed)[0, middle] - whole[0, middle]).abs().max()
        return bool(difference > _UNSEEN * scale)

    fallback = _fitting(hop, needed, rate_hz)
    if changes(n_samples - hop, n_samples) or changes(0, hop):
        return FoundGeometry(fallback, is_known=False)
    stop = _bisect(lambda place: not changes(place, n_samples), 0, n_samples)
    start = _bisect(lambda place: changes(0, place), 0, n_samples) - 1
    left = hop * middle - start
    field = stop - start
    right = field - left - needed
    if left < 0 or right < 0:
        return FoundGeometry(fallback, is_known=False)
    found = FrameGeometry(
        rate_hz, hop, field, left_padding_samples=left, right_padding_samples=right
    )
    return FoundGeometry(found, is_known=True)


def _fitting(hop: int, needed: int, rate_hz: int) -> FrameGeometry:
    """Return the geometry with the smallest field: no padding if frames overlap, else a hop."""
    if needed == 1:
        return FrameGeometry(rate_hz, hop, hop, pads_end=True)
    field = max(needed, hop)
    padding = field - needed
    left = padding // 2
    return FrameGeometry(
        rate_hz, hop, field, left_padding_samples=left, right_padding_samples=padding - left
    )


def _bisect(is_beyond: Callable[[int], bool], low: int, high: int) -> int:
    """Find the first place that is beyond; `low` is not, `high` is, and all after the first are."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return high


def shortest_clip(count: Count, geometry: FrameGeometry) -> int:
    """Find the shortest clip that a model takes, at least that of one frame.

    A model may need more than one frame, e.g. if it pads by reflection. Shorter clips are padded
    with zeros to this length, and the frames beyond those of the clip are dropped.

    Raises:
        EncoderError: The model takes no clip up to a second.
    """

    def fails(n_samples: int) -> bool:
        try:
            return count(n_samples) < 1
        except StrataError:
            return True

    low, high = geometry.n_samples(1), geometry.n_samples(1)
    while fails(high):
        if high > geometry.sample_rate_hz:
            count(high)  # raises the model's own error
            raise EncoderError(f"a clip of {high} samples has no frames")
        low, high = high, 2 * high
    if low == high:
        return high
    return _bisect(lambda place: not fails(place), low, high)


def count_difference(count: Count, geometry: FrameGeometry, lengths: Sequence[int]) -> str | None:
    """Compare the model's frames with those of a geometry.

    Returns:
        The differences in words; None if there are none.
    """
    found = {n: count(n) for n in sorted(set(lengths))}
    wrong = [
        f"{n} samples give {n_frames} frames, not {geometry.n_frames(n)}"
        for n, n_frames in found.items()
        if n_frames != geometry.n_frames(n)
    ]
    if not wrong:
        return None
    return (
        f"its frames do not fit to a hop of {geometry.hop_samples} samples and a need of "
        f"{geometry.n_samples(1)} for one frame: {first_few(wrong)}"
    )

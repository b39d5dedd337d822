"""Times of frames, and frames at a lower rate. Pure arithmetic.

A frame belongs to the moment in the middle of what it sees: a part of an utterance in seconds has
the frames whose centres lie in it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry

Seconds = npt.NDArray[np.float64]

_LAST = 2.0**53  # frames, exact as float64; no utterance is as long

MEAN, STRIDE = "mean", "stride"
REDUCTIONS = (MEAN, STRIDE)
"""How frames become fewer: means of as many frames, or the first of as many."""


class FrameTimes(NamedTuple):
    """Times of frames in seconds, counted from the start of the utterance: [n_frames] each.

    Attributes:
        start_s: When what a frame sees begins.
        centre_s: Its middle.
        stop_s: When it ends; after the end of an utterance that was padded to one frame.
    """

    start_s: Seconds
    centre_s: Seconds
    stop_s: Seconds


def frame_times(
    geometry: FrameGeometry, n_frames: int, n_joined: int = 1, reduction: str = MEAN
) -> FrameTimes:
    """Return the times of frames.

    Args:
        geometry: Of the encoder.
        n_frames: Frames of the utterance at the encoder's rate.
        n_joined: Frames that become one; see `frames_to_join`.
        reduction: Of `REDUCTIONS`.
    """
    rate = geometry.sample_rate_hz
    start = (np.arange(n_frames) * geometry.hop_samples - geometry.left_padding_samples) / rate
    stop = start + geometry.receptive_field_samples / rate
    firsts = np.arange(0, n_frames, n_joined)
    lasts = firsts if reduction == STRIDE else np.minimum(firsts + n_joined, n_frames) - 1
    centre = (start[firsts] + stop[lasts]) / 2
    return FrameTimes(np.maximum(start[firsts], 0.0), centre, stop[lasts])


def frames_between(
    geometry: FrameGeometry, start_s: float | None, stop_s: float | None
) -> tuple[int | None, int | None]:
    """Return the first frame and one past the last whose centres lie in `[start_s, stop_s)`.

    Args:
        geometry: Of the encoder.
        start_s: Seconds from the start of the utterance; None is its start.
        stop_s: None is its end.

    Raises:
        ConfigError: A time is negative or no number.
    """
    bounds = []
    for name, time in (("start_s", start_s), ("stop_s", stop_s)):
        if time is not None and (not isinstance(time, int | float | np.number) or not time >= 0):
            raise ConfigError(f"{name} is {time!r}; expected seconds from the start, at least 0")
        bounds.append(None if time is None else _first_at(geometry, float(time)))
    return bounds[0], bounds[1]


def frames_to_join(frame_rate_hz: float, rate_hz: float) -> int:
    """Return how many frames become one at a lower rate.

    Raises:
        ConfigError: The rate is not that of a store divided by a whole number.
    """
    is_rate = isinstance(rate_hz, int | float | np.number) and 0 < rate_hz <= frame_rate_hz
    ratio = frame_rate_hz / rate_hz if is_rate else math.inf
    n_joined = round(ratio) if math.isfinite(ratio) else 0
    if not n_joined or not math.isclose(n_joined * rate_hz, frame_rate_hz, rel_tol=1e-9):
        possible = ", ".join(f"{frame_rate_hz / n:g}" for n in (1, 2, 4, 5))
        raise ConfigError(
            f"rate_hz is {rate_hz!r}; expected {frame_rate_hz:g} divided by a whole number, such "
            f"as {possible}"
        )
    return n_joined


def check_reduction(reduction: str) -> None:
    """Check how frames are to become fewer.

    Raises:
        ConfigError: It is not of `REDUCTIONS`.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")


def join_frames(features: Tensor, n_joined: int, reduction: str) -> Tensor:
    """Return fewer frames: [..., n_frames, dim] → [..., ceil(n_frames / n_joined), dim].

    Means are computed in float32; the last is of the frames that are left.
    """
    if reduction == STRIDE:
        return features[..., ::n_joined, :].clone()
    *shape, n_frames, dim = features.shape
    n_groups = n_frames // n_joined
    values, n_whole = features.float(), n_groups * n_joined
    whole, rest = values[..., :n_whole, :], values[..., n_whole:, :]
    parts = [whole.reshape(*shape, n_groups, n_joined, dim).mean(-2)]
    if rest.shape[-2]:
        parts.append(rest.mean(-2, keepdim=True))
    return torch.cat(parts, dim=-2).to(features.dtype)


def first_frames(geometry: FrameGeometry, times_s: Seconds) -> npt.NDArray[np.int64]:
    """Return the first frame whose centre is not before each time.

    So the frames whose centres lie in `[start_s, stop_s)` are those from the first frame of
    `start_s` up to that of `stop_s`, and adjacent spans share no frame. A centre within a millionth
    of a hop of a time counts as being at it.

    Args:
        geometry: Of the encoder.
        times_s: Seconds from the start of the utterance, at least 0: [n].

    Returns:
        int64 [n]; not limited by the length of an utterance.
    """
    centre = geometry.centre_samples
    hops = (times_s * geometry.sample_rate_hz - centre) / geometry.hop_samples
    return np.clip(np.ceil(np.round(hops, 6)), 0, _LAST).astype(np.int64)


def span_times(span: Any) -> tuple[float, float]:
    """Return start and stop of a span: a row of `Spans`, or a pair of seconds.

    Raises:
        ConfigError: It is neither, or its times are no seconds, or it ends before it starts.
    """
    times = (span.start_s, span.stop_s) if hasattr(span, "start_s") else span
    try:
        start_s, stop_s = (float(time) for time in times)
        is_span = 0 <= start_s <= stop_s
    except (TypeError, ValueError):
        is_span = False
    if not is_span:
        raise ConfigError(
            f"span is {span!r:.80}; expected a row of Spans or a pair (start_s, stop_s) of seconds "
            "from the start of the utterance, at least 0, the start not after the stop"
        )
    return start_s, stop_s


def _first_at(geometry: FrameGeometry, time_s: float) -> int:
    """Return the first frame whose centre is not before a time."""
    return int(first_frames(geometry, np.array([time_s]))[0])

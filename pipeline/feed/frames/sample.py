"""A seeded sample of the frames of a store, of all layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, StoreError
from pipeline.store.read.features import FeatureStore

IntArray = npt.NDArray[np.int64]

MAX_FRAMES = 200_000
"""Largest sample. It is in memory, and more frames hardly change the statistics."""
SLICE_FRAMES = 8
"""Frames of a slice. Slices are drawn, not frames, so that consecutive frames can be compared."""


@dataclass(frozen=True)
class FrameSample:
    """Frames of all layers, slice by slice.

    Attributes:
        features: float16 [n_layers, n_frames, dim].
        utterance: Position of the utterance of each frame: int64 [n_frames].
        follows: Whether a frame is the successor, in the same utterance, of the previous frame of
            the sample: bool [n_frames].
    """

    features: npt.NDArray[Any]
    utterance: npt.NDArray[np.int64]
    follows: npt.NDArray[np.bool_]


def sample_frames(store: FeatureStore, n_frames: int, seed: int) -> FrameSample:
    """Draw slices of `SLICE_FRAMES` frames, uniformly over the frames of a store.

    Each utterance is cut into slices from its first frame; its last slice may be shorter. Slices
    are drawn with equal probability, without replacement.

    Args:
        store: The store, or a selection of it.
        n_frames: Approximate number of frames; all frames if the store has fewer.
        seed: Seed of the draw.

    Raises:
        ConfigError: `n_frames` is out of range.
        StoreError: The store has no frames.
    """
    if not 2 <= n_frames <= MAX_FRAMES:
        raise ConfigError(f"n_frames is {n_frames}; expected 2 to {MAX_FRAMES:,} frames")
    owner, start, length = draw_slices(store, n_frames, seed)
    n_slices = len(owner)
    at = np.concatenate([[0], np.cumsum(length)])  # offsets of the slices, [n_slices + 1]
    features = np.empty(
        (len(store.layers), int(at[-1]), store.feature_dim), store.codec.value_dtype
    )
    cuts = [(int(owner[i]), int(start[i]), features[:, at[i] : at[i + 1]]) for i in range(n_slices)]
    store.read_into(cuts, store.axes(None))
    utterance = np.repeat(owner, length)
    frame = np.arange(at[-1]) - np.repeat(at[:-1] - start, length)
    follows = np.zeros(len(utterance), bool)
    follows[1:] = (utterance[1:] == utterance[:-1]) & (frame[1:] == frame[:-1] + 1)
    return FrameSample(features, utterance, follows)


def draw_slices(
    store: FeatureStore, n_frames: int, seed: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Draw slices as `sample_frames` does; return them in the order of the utterances.

    Returns:
        Position of the utterance, first frame and number of frames of each slice: int64
        [n_slices].

    Raises:
        StoreError: The store has no frames.
    """
    counts = store.frame_counts
    slices = -(-counts // SLICE_FRAMES)  # of each utterance
    ends = np.cumsum(slices)
    if not len(ends) or not ends[-1]:
        raise StoreError(f"{store.location} has no frames; run `strata extract` first")
    n_slices = min(int(ends[-1]), math.ceil(n_frames * int(ends[-1]) / int(counts.sum())))
    random = np.random.default_rng(seed)
    drawn = np.sort(random.choice(int(ends[-1]), n_slices, replace=False, shuffle=False))
    owner = np.searchsorted(ends, drawn, side="right")
    start = (drawn - (ends - slices)[owner]) * SLICE_FRAMES
    return owner, start, np.minimum(SLICE_FRAMES, counts[owner] - start)

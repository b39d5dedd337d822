"""A seeded sample of the frames of a store, of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, StoreError
from pipeline.feed.finite import refuse_not_finite
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
        features: as the store returns them: [n_layers, n_frames, dim].
        utterance: Position of the utterance of each frame: int64 [n_frames].
        frame: Number of each frame within its utterance: int64 [n_frames].
        follows: Whether a frame is the successor, in the same utterance, of the previous frame of
            the sample: bool [n_frames].
    """

    features: npt.NDArray[Any]
    utterance: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int64]
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
        StoreError: The store has no frames, or a value is not finite.
    """
    [sample] = sample_same_frames([store], n_frames, seed)
    return sample


def sample_same_frames(
    stores: Sequence[FeatureStore], n_frames: int, seed: int
) -> list[FrameSample]:
    """Draw the same frames of several stores, as `sample_frames` does of one.

    Args:
        stores: Stores with the same utterances at the same positions. An utterance that is shorter
            in one of them is cut to it in all.
        n_frames: As for `sample_frames`.
        seed: As for `sample_frames`.

    Returns:
        A sample of each store.

    Raises:
        ConfigError: `n_frames` is out of range.
        StoreError: The stores have no frames, or a value is not finite.
    """
    if not 2 <= n_frames <= MAX_FRAMES:
        raise ConfigError(f"n_frames is {n_frames}; expected 2 to {MAX_FRAMES:,} frames")
    counts = np.min([store.frame_counts for store in stores], axis=0)
    owner, start, length = _draw(counts, n_frames, seed, stores[0])
    at = np.concatenate([[0], np.cumsum(length)])  # offsets of the slices, [n_slices + 1]
    utterance = np.repeat(owner, length)
    frame = np.arange(at[-1]) - np.repeat(at[:-1] - start, length)
    follows = np.zeros(len(utterance), bool)
    follows[1:] = (utterance[1:] == utterance[:-1]) & (frame[1:] == frame[:-1] + 1)
    samples = []
    for store in stores:
        shape = (len(store.layers), int(at[-1]), store.feature_dim)
        features = np.empty(shape, store.codec.value_dtype)
        cuts = [
            (int(owner[i]), int(start[i]), features[:, at[i] : at[i + 1]])
            for i in range(len(owner))
        ]
        store.read_into(cuts, store.axes(None))
        _check_finite(store, features, utterance)
        samples.append(FrameSample(features, utterance, frame, follows))
    return samples


def _check_finite(store: FeatureStore, features: npt.NDArray[Any], utterance: IntArray) -> None:
    """Check frames of a store, [n_layers, n_frames, dim], of which `utterance` names the owners.

    Raises:
        StoreError: A value is not finite.
    """
    bad = np.zeros(len(utterance), bool)
    for layer in features:
        bad |= ~np.isfinite(layer).all(axis=1)
    refuse_not_finite(store, np.unique(utterance[bad]).tolist())


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
    return _draw(store.frame_counts, n_frames, seed, store)


def _draw(
    counts: IntArray, n_frames: int, seed: int, store: FeatureStore
) -> tuple[IntArray, IntArray, IntArray]:
    """Draw slices of utterances with so many frames each; `store` is for the message."""
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

"""A seeded sample of the frames of a store, all layers at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, StoreError
from pipeline.store.read.features import FeatureStore

MOST_FRAMES = 200_000
"""Frames that a sample may have: more tell nothing new, and it is held in memory."""
SLICE = 8
"""Consecutive frames of a slice; slices are drawn, so that neighbours can be compared."""


@dataclass(frozen=True)
class Sample:
    """Frames of all layers, slice by slice.

    Attributes:
        features: float16 [n_layers, n_frames, dim].
        utterance: Position of each frame's utterance: int64 [n_frames].
        joined: Whether a frame follows the one before it in its utterance: bool [n_frames].
    """

    features: npt.NDArray[np.float16]
    utterance: npt.NDArray[np.int64]
    joined: npt.NDArray[np.bool_]


def draw_sample(store: FeatureStore, n_frames: int, seed: int) -> Sample:
    """Slices of `SLICE` frames, drawn evenly over all frames of the store.

    An utterance is cut into slices from its start on (the last one may be shorter); each slice of
    the store is as likely as any other, and none is drawn twice.
    """
    if not 2 <= n_frames <= MOST_FRAMES:
        raise ConfigError(f"n_frames is {n_frames}; expected 2 to {MOST_FRAMES:,} frames")
    counts = store.frame_counts
    slices = -(-counts // SLICE)
    ends = np.cumsum(slices)
    if not len(ends) or not ends[-1]:
        raise StoreError(f"{store.root} has no frames to look at; run `strata extract` first")
    n_slices = min(int(ends[-1]), math.ceil(n_frames / SLICE))
    random = np.random.default_rng(seed)
    drawn = np.sort(random.choice(int(ends[-1]), n_slices, replace=False, shuffle=False))
    owner = np.searchsorted(ends, drawn, side="right")
    start = (drawn - (ends - slices)[owner]) * SLICE
    length = np.minimum(SLICE, counts[owner] - start)
    at = np.concatenate([[0], np.cumsum(length)])
    features = np.empty((len(store.layers), int(at[-1]), store.feature_dim), np.float16)
    cuts = [(int(owner[i]), int(start[i]), features[:, at[i] : at[i + 1]]) for i in range(n_slices)]
    store.read_into(cuts, store.axes(None))
    utterance = np.repeat(owner, length)
    frame = np.arange(at[-1]) - np.repeat(at[:-1] - start, length)
    joined = np.zeros(len(utterance), bool)
    joined[1:] = (utterance[1:] == utterance[:-1]) & (frame[1:] == frame[:-1] + 1)
    return Sample(features, utterance, joined)

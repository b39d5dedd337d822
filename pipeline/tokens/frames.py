"""The frames that a codebook is trained on: a sample in memory, or all of a store from the disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import StoreError, counted
from pipeline.feed.frames.axis import FrameAxis
from pipeline.feed.frames.sample import draw_slices
from pipeline.store.format.layers import labels_of, number_layers
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.merged import Cut

Places = npt.NDArray[np.int32]

_SLICES_AT_ONCE = 1024
_PLACE_BYTES = 8
"""Bytes that the place of a sampled frame takes besides its values, about."""


@dataclass(frozen=True)
class LayerSource:
    """One layer of a store, or the weighted sum of its layers.

    Attributes:
        store: The utterances.
        axes: Positions on the layer axis of the layers that are read.
        weights: Weight of each; None for a single layer.
    """

    store: FeatureStore
    axes: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls, store: FeatureStore, layer: int | str | None, weights: Sequence[float] | None
    ) -> LayerSource:
        """Return the source of a layer, or of a weighted sum of all layers if it is None.

        Raises:
            StoreError: The store lacks the layer, or keeps no frames.
        """
        store.check_frames()
        names = store.named_layers
        if weights is None:
            if layer is None:
                raise StoreError(f"{store.location}: no layer is given")
            return cls(store, tuple(store.axes(number_layers([layer], names, store.location))))
        axes = store.axes(None)
        if len(axes) != len(weights):
            raise StoreError(
                f"{counted(len(weights), 'weight')} for the {counted(len(axes), 'layer')} "
                f"{labels_of(names)} of {store.location}"
            )
        used = [(axis, weight) for axis, weight in zip(axes, weights, strict=True) if weight]
        return cls(store, tuple(axis for axis, _ in used), tuple(weight for _, weight in used))

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame in a sample."""
        itemsize = self.store.codec.value_dtype.itemsize if self.weights is None else 4
        return self.store.feature_dim * int(itemsize) + _PLACE_BYTES

    def read(self, cuts: Sequence[tuple[int, int, int]]) -> Tensor:
        """Read frames, one cut after the other.

        Args:
            cuts: Position of the utterance, first frame and number of frames.

        Returns:
            [n_frames, dim], of the dtype that `FeatureStore.read` returns, or float32 for a sum.
        """
        n_frames = sum(n for _, _, n in cuts)
        shape = (len(self.axes), n_frames, self.store.feature_dim)
        out = np.empty(shape, self.store.codec.value_dtype)
        places: list[Cut] = []
        at = 0
        for position, start, n in cuts:
            places.append((position, start, out[:, at : at + n]))
            at += n
        self.store.read_into(places, self.axes)
        return weighted(torch.from_numpy(out), self.weights)


def weighted(features: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Return the only layer, or the weighted sum over layers in float32.

    Args:
        features: [n_layers, n_frames, dim].
        weights: One per layer; None if there is one layer.
    """
    if weights is None:
        return features[0]
    total = torch.zeros(features.shape[1:], dtype=torch.float32)
    for values, weight in zip(features, weights, strict=True):
        total.add_(values.float(), alpha=weight)
    return total


class StoredFrames:
    """All frames of a store or of a selection, read when they are needed, in the disk's order."""

    def __init__(self, source: LayerSource) -> None:
        self._source = source
        self._axis = FrameAxis.of(source.store.piece_places(), by_disk=True)

    def __len__(self) -> int:
        return len(self._axis)

    def read(self, start: int, stop: int) -> Tensor:
        """Return frames [start, stop)."""
        found = self._axis.cuts(np.array([start]), np.array([stop]))
        return self._source.read(list(zip(*(part.tolist() for part in found), strict=True)))

    def owner(self, frame: int) -> tuple[int, int]:
        """Return the position of the utterance of a frame, and the frame within it."""
        position, first, _ = self._axis.cuts(np.array([frame]), np.array([frame + 1]))
        return int(position[0]), int(first[0])


class SampledFrames:
    """A sample of the frames of a store, in memory and in random order."""

    def __init__(self, values: Tensor, positions: Places, frames: Places) -> None:
        self._values, self._positions, self._frames = values, positions, frames

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int) -> Tensor:
        """Return frames [start, stop)."""
        return self._values[start:stop]

    def owner(self, frame: int) -> tuple[int, int]:
        """Return the position of the utterance of a frame, and the frame within it."""
        return int(self._positions[frame]), int(self._frames[frame])


def sample(source: LayerSource, n_frames: int, seed: int, n_threads: int) -> SampledFrames:
    """Draw slices of 8 frames, uniformly and without replacement, and read them into memory.

    Slices cost a disk or a server an eighth of the reads of single frames, and train codebooks that
    are about as good (docs/performance.md). They are in random order, so that every beginning of
    the sample is a sample.

    Args:
        source: What to read.
        n_frames: About how many frames; all if there are fewer.
        seed: Seed of the draw.
        n_threads: Threads that read.

    Raises:
        StoreError: The store has no frames.
    """
    owner, start, length = draw_slices(source.store, n_frames, seed)
    order = np.random.default_rng([seed, 1]).permutation(len(owner))
    to = np.empty(len(owner), np.int64)
    to[order] = np.cumsum(length[order]) - length[order]
    total = int(length.sum())
    dtype = torch.float32
    if source.weights is None:
        dtype = torch.from_numpy(np.empty(0, source.store.codec.value_dtype)).dtype
    values = torch.empty((total, source.store.feature_dim), dtype=dtype)
    positions, frames = np.empty(total, np.int32), np.empty(total, np.int32)

    def fill(first: int) -> None:
        some = slice(first, first + _SLICES_AT_ONCE)
        cuts = list(zip(*(part[some].tolist() for part in (owner, start, length)), strict=True))
        counts = length[some]
        inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(to[some], counts) + inner
        values[torch.from_numpy(rows)] = source.read(cuts)
        positions[rows] = np.repeat(owner[some], counts)
        frames[rows] = np.repeat(start[some], counts) + inner

    with ThreadPoolExecutor(n_threads, "sample") as pool:
        list(pool.map(fill, range(0, len(owner), _SLICES_AT_ONCE)))
    return SampledFrames(values, positions, frames)


def default_sample(k: int, n_frames: int, most: int) -> int:
    """Return the default number of frames of a sample.

    Args:
        k: Number of clusters.
        n_frames: Frames that there are.
        most: Frames that memory has room for.
    """
    return min(n_frames, most, max(1000 * k, 100_000))


def frames_in(source: LayerSource, memory: int) -> int:
    """Return the number of sampled frames that fit in some bytes."""
    return math.floor(memory / source.frame_bytes)

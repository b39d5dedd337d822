"""Statistics over all frames of a dataset, for standardised features."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch

from pipeline.errors import ConfigError, DamagedError
from pipeline.feed.dataset import FeatureDataset
from pipeline.feed.frames.axis import FrameAxis
from pipeline.feed.frames.order import BlockOrder, FramePolicy, RankOrder
from pipeline.feed.frames.windows import FrameSource, WindowPool, WindowReader
from pipeline.store.format.codecs import Stored
from pipeline.store.frame_statistics import (
    FrameStatistics,
    keep_frame_statistics,
    read_frame_statistics,
)
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store

_WINDOW_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20  # of values that are summed in float32


def frame_statistics(data: FeatureDataset | FeatureStore) -> FrameStatistics:
    """Compute mean and standard deviation of every feature, and the mean norm, over all frames.

    All frames are read once. Sums of about a thousand frames are float32, all others float64.

    Args:
        data: A dataset, of whose layers and utterances they are; or a store, or a selection of one,
            with all layers.

    Raises:
        ConfigError: There are no frames.
        StoreError: The store keeps no frames.
        DamagedError: A shard is missing or damaged.

    Example:
        >>> own = frame_statistics(train)                                       # doctest: +SKIP
        >>> loader = make_frame_loader(train, frames_per_batch=4096, normalize=own)
        ...                                                                     # doctest: +SKIP
    """
    dataset = data if isinstance(data, FeatureDataset) else FeatureDataset(data)
    len(dataset)  # an error if utterances of the dataset are still being extracted
    source = FrameSource.of(dataset, dataset.layers)
    axis = FrameAxis.of(dataset.store.piece_places(), by_disk=True)
    if not len(axis):
        raise ConfigError(f"{dataset.store.location}: the dataset has no frames")
    n_frames = max(1, _WINDOW_BYTES // source.frame_bytes)
    policy = FramePolicy(n_frames, False, 0, n_frames)
    order = RankOrder(policy, 0, 0, len(axis))
    pool = WindowPool(source, n_frames, policy.n_windows)
    total: FrameStatistics | None = None
    with WindowReader(source, BlockOrder(axis, policy, 0), order, 0, pool, 1) as reader:
        for window in reader.windows():
            found = _measure(window.features, dataset.layers)
            total = found if total is None else total.joined(found)
    assert total is not None  # there are frames
    return total


def store_statistics(store: FeatureStore) -> FrameStatistics:
    """Return the statistics of all committed utterances of a store, or of several.

    They are those that the store keeps, or else computed, with a warning that says so.

    Args:
        store: The store, or a selection of it, which makes no difference.
    """
    whole = store.whole()
    if len(whole.backends) > 1:
        parts = [store_statistics(open_store(backend)) for backend in whole.backends]
        total = parts[0]
        for part in parts[1:]:
            total = total.joined(part)
        return total
    try:
        kept, why = read_frame_statistics(whole), "keeps no statistics of its present frames"
    except DamagedError as error:
        kept, why = None, f"keeps damaged statistics of its frames ({error})"
    if kept is not None:
        return kept
    warnings.warn(
        f"{whole.location} {why}: they are computed, which reads all frames. `strata layers "
        f"{whole.location} frame_statistics=true` keeps them",
        stacklevel=2,
    )
    return frame_statistics(whole)


def keep_statistics(store: FeatureStore, note: Callable[[str], None] | None = None) -> None:
    """Compute the statistics of all frames, and keep them in the store, or in each of several.

    Nothing is read if the store keeps those of its present frames already.

    Args:
        store: The store.
        note: Called with progress lines.

    Raises:
        StoreError: The store cannot be written, or keeps no frames.
        DamagedError: A shard is missing or damaged.
    """
    note = note or (lambda _: None)
    for backend in store.backends:
        single = open_store(backend)
        try:
            kept = read_frame_statistics(single)
        except DamagedError as error:
            note(f"WARNING: {error}; the statistics are computed again")
            kept = None
        if kept is not None:
            note(f"{backend} keeps the statistics of its {kept.n_frames:,} frames already")
            continue
        n_frames = int(single.frame_counts.sum())
        note(f"{backend}: reading all {n_frames:,} frames of {len(single.layers)} layers")
        keep_frame_statistics(single, frame_statistics(single))
        note(f"{backend}: kept their means and standard deviations")


def _measure(features: Stored, layers: tuple[int, ...]) -> FrameStatistics:
    """Return the statistics of frames, [n_frames, n_layers, dim]."""
    total: FrameStatistics | None = None
    n_rows = max(2, _BLOCK_BYTES // (4 * features[0].size))
    for start in range(0, len(features), n_rows):
        block = torch.from_numpy(features[start : start + n_rows]).float()
        variance, mean = torch.var_mean(block, dim=0, correction=0)
        norm = torch.linalg.vector_norm(block, dim=2).double().mean(0)
        std = variance.double().sqrt()
        arrays: list[np.ndarray] = [x.double().numpy() for x in (mean, std, norm)]
        found = FrameStatistics(layers, len(block), *arrays)
        total = found if total is None else total.joined(found)
    assert total is not None  # a window has frames
    return total

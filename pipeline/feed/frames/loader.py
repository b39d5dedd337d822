"""Loader of frames: epochs over a whole corpus in bounded memory, shuffled, resumable."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from pipeline.config.sizes import parse_bytes
from pipeline.errors import ConfigError
from pipeline.feed.dataset import FeatureDataset, as_feature_dataset
from pipeline.feed.frames.axis import FrameAxis
from pipeline.feed.frames.batch import LAYER_NORM, STANDARDIZE, Conversion, FrameBatch
from pipeline.feed.frames.measuring import store_statistics
from pipeline.feed.frames.order import (
    RESERVOIR,
    UNITS,
    BlockOrder,
    FramePolicy,
    RankBatches,
    RankOrder,
)
from pipeline.feed.frames.windows import (
    LABEL_BYTES,
    ORDER_BYTES,
    FrameSource,
    Window,
    WindowPool,
    WindowReader,
)
from pipeline.feed.resuming import ResumableLoader, check_rank
from pipeline.store.frame_statistics import FrameStatistics

DEFAULT_MEMORY = "2GB"
_ORDERED_BYTES = 64 << 20  # of a window that is not shuffled
_N_CONVERTED = 2  # batches that are converted and not yet dropped: this one and the last


def make_frame_loader(
    dataset: FeatureDataset | Subset[Any],
    *,
    frames_per_batch: int,
    layers: Sequence[int | str] | None = None,
    shuffle: str | bool = RESERVOIR,
    seed: int = 0,
    normalize: str | FrameStatistics | None = None,
    dtype: str | torch.dtype | None = None,
    memory: int | str = DEFAULT_MEMORY,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 1,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> FrameLoader:
    """Make a loader of batches of single frames, drawn from all utterances of a dataset.

    For sparse autoencoders, k-means, normalising flows and probes on frames. Every frame is in
    exactly one batch of one rank per epoch.

    Args:
        dataset: The utterances. Subsets of them are taken as well, such as `random_split` makes.
        frames_per_batch: Frames of a batch; the last batch of an epoch may have fewer.
        layers: Layers to read, in this order; None reads those of the dataset.
        shuffle: "reservoir" reads blocks of 128 frames from random places of the whole corpus, and
            mixes each batch from four fifths of `memory`. "units" reads whole storage units (20
            minutes of audio) in random order, and shuffles the half of `memory`: for hard disks
            and object stores. False keeps the order of the dataset.
        seed: Seed of the order, which is a function of it and the epoch, at least 0; equal on all
            ranks.
        normalize: "layer_norm" gives every frame of a layer mean 0 and variance 1 over its
            features; "standardize" gives every feature mean 0 and variance 1 over the frames of
            the whole store (of all utterances, so that train and test are scaled alike). The
            result of `frame_statistics` standardises with these numbers instead.
        dtype: Type of the features, "float16" or "float32"; None is what the store's readers
            return. Normalisation is computed in float32.
        memory: Largest size of what the loader holds in memory, in bytes or as text such as "2GB";
            each thread needs another megabyte or two, or 64 for a store in a bucket. Larger windows
            shuffle better.
        rank: Rank of this process, from 0.
        world_size: Number of ranks. All have the same number of batches.
        num_workers: Threads that read the next window while one is in use; 0 reads it when it is
            needed. The batches do not depend on it.
        drop_last: Drop the last frames of each rank, so that all batches are full.
        pin_memory: Return batches in pinned memory, for non-blocking copies to a GPU.

    Returns:
        A loader; iterate over it once per epoch.

    Raises:
        ConfigError: A setting is out of range or of the wrong type, `memory` is too small for
            batches of this size, or the dataset has too few frames.
        StoreError: The store keeps no frames, or lacks a layer.

    Example:
        >>> loader = make_frame_loader(dataset, frames_per_batch=4096, layers=[6])
        ...                                                                   # doctest: +SKIP
        >>> for batch in loader:                                              # doctest: +SKIP
        ...     batch.features, batch.ids, batch.frames  # [n, layer, dim], [n], [n]
    """
    dataset = as_feature_dataset(dataset)
    len(dataset)  # an error if utterances of the dataset are still being extracted
    _check(dataset, shuffle, normalize, layers)
    least = {"frames_per_batch": 1, "world_size": 1, "num_workers": 0, "seed": 0}
    given = (frames_per_batch, world_size, num_workers, seed)
    for (name, smallest), value in zip(least.items(), given, strict=True):
        _check_whole(name, value, smallest)
    check_rank(rank, world_size)
    source = FrameSource.of(dataset, dataset.layers if layers is None else layers)
    chosen = dataset.store.numbers_at(source.axes)
    statistics = None
    if isinstance(normalize, FrameStatistics):
        statistics, normalize = _of_layers(normalize, chosen, source), STANDARDIZE
    elif normalize == STANDARDIZE:
        statistics = store_statistics(dataset.store).of_layers(chosen)
    stored = dataset.store.codec.value_dtype
    conversion = Conversion(stored, dtype, normalize, statistics)
    policy = FramePolicy(frames_per_batch, shuffle, seed, 1, world_size, drop_last)
    policy = _fit(policy, source, conversion, memory)
    reading = FrameReading(num_workers, pin_memory)
    return FrameLoader(dataset, source, policy, rank, conversion, reading)


@dataclass(frozen=True)
class FrameReading:
    """How frames are read. The batches do not depend on it.

    Attributes:
        n_threads: Threads that read ahead; 0 reads when a window is needed.
        pin_memory: Whether batches are returned in pinned memory.
    """

    n_threads: int = 1
    pin_memory: bool = False


class FrameLoader(ResumableLoader[FrameBatch]):
    """Iterable over the batches of frames of one rank. Each iteration over it is one epoch.

    `set_epoch` selects an epoch. `state_dict` records how many batches of it were returned, and a
    loader that loads this state continues with exactly the remaining batches; for that it reads the
    windows again that were in memory.

    Attributes:
        dataset: The utterances.
        layers: Layers of the batches.
        epoch: The current epoch, or the next one if none has started.
        window_frames: Frames of a shuffle window.
    """

    def __init__(
        self,
        dataset: FeatureDataset,
        source: FrameSource,
        policy: FramePolicy,
        rank: int,
        conversion: Conversion,
        reading: FrameReading,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self._source, self._frame_policy, self._rank = source, policy, rank
        self._conversion, self._reading = conversion, reading
        places = dataset.store.piece_places()
        self._axis = FrameAxis.of(places, by_disk=bool(policy.shuffle))
        self._share = RankBatches(policy, len(self._axis), rank)
        self._checksum = _checksum(self._axis)
        width = RankOrder(policy, 0, rank, self._share.n_frames).width
        self._pool = WindowPool(source, width, policy.n_windows)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the batches."""
        return self._source.store.numbers_at(self._source.axes)

    @property
    def window_frames(self) -> int:
        """Frames of a shuffle window."""
        return self._frame_policy.window_frames

    def __len__(self) -> int:
        """Number of batches of this rank in every epoch."""
        return self._share.n_batches

    def _policy(self) -> dict[str, Any]:
        return asdict(self._frame_policy) | {"layers": list(self.layers)}

    def _data(self) -> int:
        return self._checksum

    def _remaining(self) -> Iterator[FrameBatch]:
        order = RankOrder(self._frame_policy, self.epoch, self._rank, self._share.n_frames)
        blocks = BlockOrder(self._axis, self._frame_policy, self.epoch)
        number, start = self._n_done, self._share.start
        if number >= len(self):
            return
        first = self._share.bounds(number)[0] // order.width
        threads = self._reading.n_threads
        with WindowReader(self._source, blocks, order, start, self._pool, threads, first) as reader:
            for at in range(first, order.n_windows):
                window = reader.take(at)
                stop = at * order.width + order.window_size(at)
                is_first = True
                while number < len(self) and self._share.bounds(number)[0] < stop:
                    low, high = (x - at * order.width for x in self._share.bounds(number))
                    yield self._batch(window, low, high)
                    if is_first:  # the batches of the window before are dropped now
                        reader.read_ahead()
                    is_first, number = False, number + 1
                del window

    def _batch(self, window: Window, low: int, high: int) -> FrameBatch:
        features = self._conversion.apply(torch.from_numpy(window.features[low:high]))
        labels = torch.from_numpy(window.labels[low:high])
        batch = FrameBatch(
            features, labels[:, 0].contiguous(), labels[:, 1].contiguous(), self.dataset
        )
        pins = self._reading.pin_memory and torch.cuda.is_available()
        return batch.pin_memory() if pins else batch


def _fit(
    policy: FramePolicy,
    source: FrameSource,
    conversion: Conversion,
    memory: int | str,
) -> FramePolicy:
    """Return the policy with the largest windows that fit in memory.

    Raises:
        ConfigError: Not even windows of one batch do.
    """
    values = len(source.axes) * source.store.feature_dim
    fixed = _N_CONVERTED * policy.frames_per_batch * values * conversion.itemsize
    frame = source.frame_bytes + LABEL_BYTES + ORDER_BYTES
    per_batch = policy.n_windows * policy.frames_per_batch * frame
    given = parse_bytes(memory)
    n_batches = (given - fixed) // per_batch
    if n_batches < 1:
        raise ConfigError(
            f"memory is {memory!r}; batches of {policy.frames_per_batch:,} frames of "
            f"{len(source.axes)} layers with shuffle={policy.shuffle!r} take at least "
            f"{fixed + per_batch:,} bytes. Raise memory, or lower frames_per_batch"
        )
    if not policy.shuffle:  # then larger windows only delay the first batch
        n_batches = min(n_batches, max(1, _ORDERED_BYTES * policy.n_windows // per_batch))
    return replace(policy, window_frames=n_batches * policy.frames_per_batch)


def _check(
    dataset: FeatureDataset,
    shuffle: str | bool,
    normalize: str | FrameStatistics | None,
    layers: Sequence[int | str] | None,
) -> None:
    """Check what has a few values only."""
    if shuffle not in (RESERVOIR, UNITS) and shuffle is not False:
        raise ConfigError(f'shuffle is {shuffle!r}; expected "{RESERVOIR}", "{UNITS}" or False')
    kinds = (None, LAYER_NORM, STANDARDIZE)
    if not isinstance(normalize, FrameStatistics) and normalize not in kinds:
        raise ConfigError(
            f'normalize is {normalize!r}; expected "{LAYER_NORM}", "{STANDARDIZE}", the result of '
            "frame_statistics, or None"
        )
    if isinstance(layers, int | str):
        raise ConfigError(f"layers is {layers!r}; expected a list of layers, such as [6]")
    if dataset.max_frames is not None:
        raise ConfigError(
            f"the dataset crops utterances to max_frames={dataset.max_frames}; a loader of frames "
            "takes all of them: make the FeatureDataset without max_frames"
        )


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _of_layers(
    statistics: FrameStatistics, layers: tuple[int, ...], source: FrameSource
) -> FrameStatistics:
    """Return the statistics of the layers of batches.

    Raises:
        ConfigError: They are of other layers, or of another number of features.
    """
    dim = source.store.feature_dim
    missing = [layer for layer in layers if layer not in statistics.layers]
    if missing or statistics.mean.shape[1:] != (dim,):
        raise ConfigError(
            f"normalize has statistics of layers {list(statistics.layers)} of "
            f"{statistics.mean.shape[-1]} features; expected layers {list(layers)} of {dim}"
        )
    return statistics.of_layers(layers)


def _checksum(axis: FrameAxis) -> int:
    """Return a checksum that is equal for datasets with equal batches."""
    checksum = 0
    for array in (axis.utterance, axis.first, axis.slot, axis.ends):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum

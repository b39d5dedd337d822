"""Reading one batch: what a loader does in its own process or in its workers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pipeline.feed.batching import BatchPolicy, BatchSpec, EpochBatches
from pipeline.feed.buffers import Pool, shared
from pipeline.feed.dataset import Batch, FeatureDataset


class ReadBatch(Dataset[Tensor | int]):
    """Reads the features of a batch for each spec; the part of a loader that goes to the workers.

    It gives nothing else: what else belongs to a batch is small and known without reading, and
    passing tensors from process to process takes longer than making them where they are used.
    """

    def __init__(self, dataset: FeatureDataset, buffers: list[Tensor] | None = None) -> None:
        self._dataset = dataset
        self._buffers = buffers
        self._pool: tuple[int, Pool] = (-1, Pool())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": (-1, None)}

    def __getitem__(self, spec: BatchSpec) -> Tensor | int:
        """Features of a batch, or the number of the buffer that they are in."""
        if spec.buffer < 0:
            return self.features(spec)
        assert self._buffers is not None  # one of them was assigned
        shape = self._dataset.batch_shape(spec.lengths)
        self._read(spec, self._buffers[spec.buffer][: math.prod(shape)].view(shape))
        return spec.buffer

    def features(self, spec: BatchSpec) -> Tensor:
        """float16 [batch, n_layers, n_frames, dim]."""
        shape = self._dataset.batch_shape(spec.lengths)
        if get_worker_info() is None:
            features = torch.from_numpy(self._own_pool().take(shape))
        else:  # it goes to another process, and is not seen again here
            features = shared(math.prod(shape)).view(shape)
        self._read(spec, features)
        return features

    def _read(self, spec: BatchSpec, out: Tensor) -> None:
        self._dataset.read_batch(spec.positions, spec.starts, out.numpy())

    def _own_pool(self) -> Pool:
        if self._pool[0] != os.getpid():
            self._pool = (os.getpid(), Pool())
        return self._pool[1]


class FeatureStream(IterableDataset[Batch]):
    """The same batches as an iterable dataset, for loops that want to make the DataLoader.

    Wrap it as `DataLoader(stream, batch_size=None, num_workers=2)`: the workers share the batches.
    The order changes with `set_epoch` alone, which reaches running workers as well.

    Example:
        >>> stream = FeatureStream(dataset, BatchPolicy(max_frames_per_batch=20_000))
        ...                                                                     # doctest: +SKIP
    """

    def __init__(self, dataset: FeatureDataset, policy: BatchPolicy, rank: int = 0) -> None:
        self.dataset = dataset
        self._epochs = epochs_of(dataset, policy)
        self._rank = rank
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """The next `iter` gives this epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._epochs.rank_batches(int(self._epoch), self._rank))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        read = ReadBatch(self.dataset)
        for i, spec in enumerate(self._epochs.specs(int(self._epoch), self._rank)):
            if i % step == first:
                yield batch_of(self.dataset, spec, read.features(spec))


def batch_of(dataset: FeatureDataset, spec: BatchSpec, features: Tensor) -> Batch:
    """A batch, once its features have been read."""
    ids, columns = dataset.describe(spec.positions)
    lengths, starts = torch.from_numpy(spec.lengths), torch.from_numpy(spec.starts)
    return Batch(features, lengths, ids, columns, starts)


def epochs_of(dataset: FeatureDataset, policy: BatchPolicy) -> EpochBatches:
    store = dataset.store
    return EpochBatches(store.frame_counts, store.slots, policy, dataset.max_frames)

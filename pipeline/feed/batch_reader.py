"""Batch reader that reuses the memory of earlier batches.

Reading into new memory takes about twice as long, because the system zeroes every page first. So
the memory of a batch is reused as soon as neither the batch nor a view of it is referenced.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pipeline.feed.ahead.memory import AheadMemory
from pipeline.feed.ahead.receiving import HeldDataset
from pipeline.feed.batching import BatchSpec
from pipeline.feed.dataset import FeatureDataset
from pipeline.store.format.codecs import Stored

_MAX_SPARE = 4


class BatchReader(Dataset[Tensor | int]):
    """Map from batch specs to features. Runs in the process of a loader or in its workers.

    Ids and columns are not read here: they are in memory, and passing them between processes takes
    longer than collecting them where they are used.
    """

    def __init__(
        self,
        dataset: FeatureDataset,
        buffers: list[Tensor] | None = None,
        ahead: AheadMemory | None = None,
    ) -> None:
        """Read batches of a dataset.

        Args:
            dataset: The utterances.
            buffers: Shared memory that the specs refer to by index, [size] each; see
                `SharedBuffers`.
            ahead: Memory with what was fetched ahead, for the specs that say so.
        """
        self._dataset = dataset
        self._buffers = buffers
        self._ahead = ahead
        self._held: HeldDataset | None = None
        self._pool: tuple[int, BufferPool] = (-1, BufferPool(self._dataset.dtype))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": (-1, None), "_held": None}

    def __getitem__(self, spec: BatchSpec) -> Tensor | int:
        """Return the features of a batch, or the index of the shared buffer that holds them."""
        if spec.buffer < 0:
            return self.features(spec)
        assert self._buffers is not None  # the buffer was assigned
        shape = self._dataset.batch_shape(spec.lengths)
        self._read(spec, self._buffers[spec.buffer][: math.prod(shape)].view(shape))
        return spec.buffer

    def features(self, spec: BatchSpec) -> Tensor:
        """Return the features of a batch, [batch, n_layers, n_frames, dim]."""
        shape = self._dataset.batch_shape(spec.lengths)
        if get_worker_info() is None:
            features = torch.from_numpy(self._process_pool().take(shape))
        else:  # sent to another process and not used here again
            features = shared_memory(math.prod(shape), self._dataset.dtype).view(shape)
        self._read(spec, features)
        return features

    def _read(self, spec: BatchSpec, out: Tensor) -> None:
        dataset: FeatureDataset | None = self._dataset
        if spec.held is not None:
            assert self._ahead is not None  # the spec refers to it
            if self._held is None:
                self._held = HeldDataset(self._dataset, self._ahead)
            dataset = self._held.of(spec.held)
        if dataset is not None:
            dataset.read_batch(spec.positions, spec.starts, out.numpy())

    def _process_pool(self) -> BufferPool:
        """Return the pool of this process; a fork must not reuse the pool of its parent."""
        if self._pool[0] != os.getpid():
            self._pool = (os.getpid(), BufferPool(self._dataset.dtype))
        return self._pool[1]


class BufferPool:
    """Reusable memory of one process, for arrays of any shape and one dtype."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._spare: list[Stored] = []

    def take(self, shape: Sequence[int]) -> Stored:
        """Return an uninitialised array; its memory is reused when no reference to it is left."""
        size = math.prod(shape)
        fitting = [i for i, memory in enumerate(self._spare) if memory.size >= size]
        if fitting:
            memory = self._spare.pop(fitting[0])
        else:
            del self._spare[: 1 - _MAX_SPARE]
            memory = np.empty(size + size // 8, self._dtype)  # room for a slightly larger batch
        spare = self._spare

        def release() -> None:
            if len(spare) < _MAX_SPARE:
                spare.append(memory)

        return borrow(memory, shape, release)


class SharedBuffers:
    """Shared memory that workers fill and a loader reads, so that no batch is copied.

    A buffer is free, assigned to a worker, or referenced by a batch.
    """

    def __init__(self, n_buffers: int, size: int, dtype: np.dtype[Any]) -> None:
        """Reserve the buffers; the system provides their pages when they are first used.

        Args:
            n_buffers: Number of buffers.
            size: Values per buffer.
            dtype: Type of the values.
        """
        self.size = size
        self.buffers = [shared_memory(size, dtype) for _ in range(n_buffers)]
        self._free = list(range(n_buffers))
        self._assigned: set[int] = set()

    def assign(self, size: int) -> int:
        """Assign a buffer for `size` values to a worker; return its index, or -1 if none fits."""
        if size > self.size or not self._free:
            return -1
        number = self._free.pop()
        self._assigned.add(number)
        return number

    def receive(self, number: int, shape: Sequence[int]) -> Tensor:
        """Return the batch in a buffer, which is free when no reference to the batch is left."""
        self._assigned.discard(number)
        free = self._free

        def release() -> None:
            free.append(number)

        return torch.from_numpy(borrow(self.buffers[number].numpy(), shape, release))

    def reclaim(self) -> None:
        """Free the buffers of batches that are never received, because an epoch was interrupted."""
        self._free.extend(self._assigned)
        self._assigned.clear()


class _Borrowed:
    """Base object of all arrays over some memory; Python deletes it after the last of them."""

    def __init__(self, memory: Stored) -> None:
        self.__array_interface__ = memory.__array_interface__


def borrow(memory: Stored, shape: Sequence[int], release: Callable[[], object]) -> Stored:
    """Return an array at the start of `memory`.

    Args:
        memory: One-dimensional memory.
        shape: Shape of the array.
        release: Called when no reference is left to the array, its views or tensors that share its
            memory.
    """
    borrowed = _Borrowed(memory)
    weakref.finalize(borrowed, _release, memory, release).atexit = False
    return np.asarray(borrowed)[: math.prod(shape)].reshape(shape)


def shared_memory(size: int, dtype: np.dtype[Any]) -> Tensor:
    """Return memory for `size` values that is passed between processes without a copy."""
    storage = torch.UntypedStorage._new_shared(size * dtype.itemsize)  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.empty(0, dtype)).set_(storage, 0, (size,), (1,))


def _release(memory: Stored, release: Callable[[], object]) -> None:
    release()  # `memory` is an argument so that it outlives the arrays

"""Loaders: epochs of padded batches, shuffled, divided among ranks, resumable within an epoch."""

from __future__ import annotations

import math
import weakref
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, get_worker_info

from pipeline.config.sizes import parse_bytes
from pipeline.feed.ahead.fetching import ReadAhead
from pipeline.feed.batch import Batch, padded_tokens
from pipeline.feed.batch_reader import BatchReader, SharedBuffers
from pipeline.feed.batching import BatchPolicy, BatchSpec, EpochBatches
from pipeline.feed.dataset import FeatureDataset, as_feature_dataset
from pipeline.feed.resuming import ResumableLoader, check_rank

DEFAULT_READ_AHEAD = "2GB"


def make_loader(
    dataset: FeatureDataset | Subset[Any],
    *,
    max_frames_per_batch: int,
    shuffle: bool = True,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    drop_last: bool = False,
    window_units: int | None = None,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    multiprocessing_context: str | None = None,
    read_ahead: int | str = DEFAULT_READ_AHEAD,
) -> FeatureLoader:
    """Make a loader of padded batches of a dataset.

    Utterances of similar length are batched together: about 64 batches are cut from a pool of
    utterances sorted by length, and are then shuffled.

    Args:
        dataset: The utterances. Subsets of them are taken as well, such as `random_split` makes.
        max_frames_per_batch: Limit of the padded frames of a batch: utterances × longest. A longer
            utterance forms a batch of one (`FeatureDataset(max_frames=...)` crops it).
        shuffle: Whether each epoch has a new order, a function of `seed` and the epoch. Otherwise
            batches are cut in the order of the dataset.
        seed: Seed of the order and of the crops, at least 0; equal on all ranks.
        rank: Rank of this process, from 0.
        world_size: Number of ranks. All ranks have the same number of batches, and every utterance
            is in a batch of some rank.
        num_workers: Processes that read ahead; 0 reads a batch when it is requested.
        drop_last: Drop the last batches if the ranks cannot share them evenly. Otherwise up to
            world_size - 1 batches are repeated.
        window_units: Number of storage units per shuffle window (an hour of audio is about three
            units), for disks and file systems that are slow at random reads. Utterances are
            shuffled within a window. Windows are read one after another, so at most this many
            shards per layer are in use at a time; each epoch draws new windows. Two utterances of
            a batch are in the same unit with a probability of about 1 / window_units, instead of
            1 / n_units.
        pin_memory: Return batches in pinned memory, for non-blocking copies to a GPU.
        prefetch_factor: Batches that each worker reads ahead.
        multiprocessing_context: Start method of the workers: fork, spawn or forkserver; None is the
            system's default.
        read_ahead: For a store in a bucket without `cache=`: largest size of the memory in which
            the bytes of coming batches are kept, in bytes or as text such as "2GB"; 0 requests
            each batch by itself. It is shared by the workers. Half of it holds batches of one
            shuffle window, the other half the next ones, so that a window, the dataset's layers of
            `window_units` units, should fit in two fifths of it: then it is read by requests of 4
            MB in place of one for each utterance.

    Returns:
        A loader; iterate over it once per epoch.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> loader = make_loader(dataset, max_frames_per_batch=20_000)        # doctest: +SKIP
        >>> for batch in loader:                                              # doctest: +SKIP
        ...     batch.features, batch.lengths  # [batch, layer, frame, dim], [batch]
    """
    policy = BatchPolicy(max_frames_per_batch, shuffle, seed, window_units, world_size, drop_last)
    n_bytes = parse_bytes(read_ahead, "read_ahead", least=0)
    workers = WorkerPolicy(
        num_workers, prefetch_factor, pin_memory, multiprocessing_context, n_bytes
    )
    dataset = as_feature_dataset(dataset)
    make = dataset.loader_type or FeatureLoader
    return make(dataset, policy, rank, workers)


@dataclass(frozen=True)
class WorkerPolicy:
    """How batches are read ahead. The batches do not depend on it.

    Attributes:
        num_workers: Worker processes; 0 reads in the calling process.
        prefetch_factor: Batches that each worker reads ahead.
        pin_memory: Whether batches are returned in pinned memory.
        start_method: Start method of the workers; None is the system's default.
        read_ahead_bytes: Memory for what is fetched ahead, where reads wait for a server; 0 fetches
            each batch when it is read.
    """

    num_workers: int = 0
    prefetch_factor: int = 2
    pin_memory: bool = False
    start_method: str | None = None
    read_ahead_bytes: int = parse_bytes(DEFAULT_READ_AHEAD)


class FeatureLoader(ResumableLoader[Batch]):
    """Iterable over the batches of one rank. Each iteration over it is one epoch, in a new order.

    `set_epoch` selects an epoch. `state_dict` records how many batches of it were returned, and a
    loader that loads this state continues with exactly the remaining batches.

    Attributes:
        dataset: The utterances.
        epoch: The current epoch, or the next one if none has started.
    """

    def __init__(
        self, dataset: FeatureDataset, policy: BatchPolicy, rank: int, workers: WorkerPolicy
    ) -> None:
        check_rank(rank, policy.world_size)
        super().__init__()
        self.dataset = dataset
        self._rank = rank
        self._epochs = epochs_of(dataset, policy)
        self._workers = workers
        self._reader = BatchReader(dataset)
        self._ahead: ReadAhead | None = None
        self._buffers: SharedBuffers | None = None
        self._worker_loader: DataLoader[Any] | None = None
        self._assigned: deque[BatchSpec] = deque()

    def __len__(self) -> int:
        """Number of batches of this rank in the current epoch, or in the next one."""
        return len(self._epochs.rank_batches(self.epoch, self._rank))

    def assigned_specs(self) -> Iterator[BatchSpec]:
        """Yield the remaining specs of the epoch, each with a shared buffer if one is free.

        Workers return their batches in this order.
        """
        specs = _held(self._specs(), self._windows(), self._ahead)
        return _assign(specs, self._buffers, self._assigned, self.dataset)

    def _policy(self) -> dict[str, Any]:
        return asdict(self._epochs.policy)

    def _data(self) -> int:
        return _fingerprint(self.dataset)

    def _remaining(self) -> Iterator[Batch]:
        pinned = self._workers.pin_memory and torch.cuda.is_available()
        read = self._read_in_workers if self._workers.num_workers else self._read_here
        self._prepare_ahead()
        iteration = self._n_iterations
        try:
            for spec, features in read():
                batch = batch_of(self.dataset, spec, features)
                yield batch.pin_memory() if pinned else batch
        finally:
            if self._ahead is not None and iteration == self._n_iterations:
                self._ahead.stop()

    def _prepare_ahead(self) -> None:
        """Make what fetches ahead, if that pays; leave what an earlier iteration has begun."""
        n_bytes = self._workers.read_ahead_bytes
        if self._ahead is not None:
            self._ahead.stop()
        if self._worker_loader is not None or not (n_bytes and self.dataset.store.reads_wait):
            return  # running workers have the memory that they were started with
        if self._ahead is None or not self._ahead.fits(self.dataset):
            self._ahead = ReadAhead(self.dataset, n_bytes)
            self._reader = BatchReader(self.dataset, ahead=self._ahead.memory)

    def _specs(self) -> Iterator[BatchSpec]:
        return self._epochs.specs(self.epoch, self._rank, self._n_done)

    def _windows(self) -> Iterator[list[BatchSpec]]:
        return self._epochs.windows(self.epoch, self._rank, self._n_done)

    def _read_here(self) -> Iterator[tuple[BatchSpec, Tensor]]:
        for spec in _held(self._specs(), self._windows(), self._ahead):
            features = self._reader.features(spec)
            if self._ahead is not None:
                self._ahead.done()
            yield spec, features

    def _read_in_workers(self) -> Iterator[tuple[BatchSpec, Tensor]]:
        if self._worker_loader is None:
            self._worker_loader = self._start_workers()
        for result in self._worker_loader:
            spec = self._assigned.popleft()
            if self._ahead is not None:
                self._ahead.done()
            if isinstance(result, Tensor):
                yield spec, result
            else:
                assert self._buffers is not None  # the buffer was assigned
                shape = self.dataset.batch_shape(spec.lengths)
                yield spec, self._buffers.receive(result, shape)

    def _start_workers(self) -> DataLoader[Any]:
        workers = self._workers
        if not workers.pin_memory:
            values_per_frame = len(self.dataset.layers) * self.dataset.store.feature_dim
            size = self._epochs.policy.max_frames_per_batch * values_per_frame
            n_buffers = workers.num_workers * workers.prefetch_factor + 2
            self._buffers = SharedBuffers(n_buffers, size, self.dataset.dtype)
            ahead = None if self._ahead is None else self._ahead.memory
            self._reader = BatchReader(self.dataset, self._buffers.buffers, ahead)
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=_SpecSampler(self),
            num_workers=workers.num_workers,
            collate_fn=_identity,
            pin_memory=workers.pin_memory,
            prefetch_factor=workers.prefetch_factor,
            persistent_workers=True,
            multiprocessing_context=workers.start_method,
            generator=torch.Generator(),  # does not change the trainer's random state
        )


class FeatureStream(IterableDataset[Batch]):
    """Iterable dataset of the batches of a `FeatureLoader`, for a trainer with its own DataLoader.

    Use `DataLoader(stream, batch_size=None, num_workers=2)`; the workers divide the batches. The
    order changes only with `set_epoch`, which also sets the epoch of running workers.

    Example:
        >>> stream = FeatureStream(dataset, BatchPolicy(max_frames_per_batch=20_000))
        ...                                                                     # doctest: +SKIP
    """

    def __init__(
        self, dataset: FeatureDataset | Subset[Any], policy: BatchPolicy, rank: int = 0
    ) -> None:
        self.dataset = dataset = as_feature_dataset(dataset)
        dataset.check_whole()
        self._epochs = epochs_of(dataset, policy)
        self._rank = rank
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._epochs.rank_batches(int(self._epoch), self._rank))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = BatchReader(self.dataset)
        for i, spec in enumerate(self._epochs.specs(int(self._epoch), self._rank)):
            if i % step == first:
                yield batch_of(self.dataset, spec, reader.features(spec))


class _SpecSampler:
    """Sampler that gives the specs of a loader to its DataLoader.

    The reference to the loader is weak, so that there is no reference cycle: the workers of a
    deleted loader stop immediately. With a cycle they would stop in a later garbage collection,
    which may happen in a forked worker of another loader.
    """

    def __init__(self, loader: FeatureLoader) -> None:
        self._loader = weakref.ref(loader)

    def __iter__(self) -> Iterator[BatchSpec]:
        loader = self._loader()
        return iter(()) if loader is None else loader.assigned_specs()

    def __len__(self) -> int:
        loader = self._loader()
        return 0 if loader is None else len(loader)


def _assign(
    specs: Iterator[BatchSpec],
    buffers: SharedBuffers | None,
    assigned: deque[BatchSpec],
    dataset: FeatureDataset,
) -> Iterator[BatchSpec]:
    """Yield specs with shared buffers, and note them.

    No method of the loader: an epoch that is left early keeps this generator, which would keep the
    loader in a reference cycle; see `_SpecSampler`.
    """
    assigned.clear()
    if buffers is not None:
        buffers.reclaim()
    for spec in specs:
        if buffers is not None:
            size = math.prod(dataset.batch_shape(spec.lengths))
            spec = replace(spec, buffer=buffers.assign(size))
        assigned.append(spec)
        yield spec


def _held(
    specs: Iterator[BatchSpec],
    windows: Iterator[list[BatchSpec]],
    ahead: ReadAhead | None,
) -> Iterator[BatchSpec]:
    """Yield specs that say what is fetched ahead for them; no method, for the reason of `_assign`.

    It begins with the first spec, when running workers have left the epoch before.
    """
    if ahead is None:
        yield from specs
        return
    ahead.begin(windows)
    for spec in specs:
        yield replace(spec, held=ahead.next())


def _identity(result: Any) -> Any:
    return result


def epochs_of(dataset: FeatureDataset, policy: BatchPolicy) -> EpochBatches:
    store = dataset.store
    return EpochBatches(store.frame_counts, store.slots, policy, dataset.max_frames)


def batch_of(dataset: FeatureDataset, spec: BatchSpec, features: Tensor) -> Batch:
    """Add ids and columns to the features of a batch."""
    ids, columns = dataset.describe(spec.positions)
    lengths, starts = torch.from_numpy(spec.lengths), torch.from_numpy(spec.starts)
    tokens = dataset.read_tokens(spec.positions, spec.starts, spec.lengths)
    padded = None if tokens is None else padded_tokens(tokens)
    return Batch(features, lengths, ids, columns, starts, tokens=padded)


def _fingerprint(dataset: FeatureDataset) -> int:
    """Return a checksum that is equal for datasets with equal batches."""
    checksum = zlib.crc32(dataset.store.frame_counts.tobytes(), dataset.max_frames or 0)
    return zlib.crc32(dataset.store.slots.tobytes(), checksum)

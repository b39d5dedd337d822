"""Epochs of padded batches: shuffled, shared among ranks, resumable in the middle."""

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
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError
from pipeline.feed.batch_reader import ReadBatch, batch_of, epochs_of
from pipeline.feed.batching import BatchPolicy, BatchSpec
from pipeline.feed.buffers import SharedRing
from pipeline.feed.dataset import Batch, FeatureDataset


def make_loader(
    dataset: FeatureDataset,
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
) -> FeatureLoader:
    """Makes padded batches of a dataset, epoch after epoch.

    Utterances of like length are batched together: each batch comes from a pool of about 64
    batches that is sorted by length, and the batches are then shuffled.

    Args:
        dataset: What to read.
        max_frames_per_batch: Bound on utterances × longest of a batch. An utterance that is longer
            by itself is a batch of its own (`FeatureDataset(max_frames=...)` crops it).
        shuffle: Another order in each epoch, a function of `seed` and the epoch alone; otherwise
            the order of the dataset, cut where the budget says.
        seed: The same on all ranks.
        rank: Which rank this is.
        world_size: How many there are. All get the same number of batches, and every utterance is
            in one of them.
        num_workers: Processes that read ahead; 0 reads when a batch is asked for.
        drop_last: Drop the last batches that do not go round the ranks. Otherwise up to
            world_size - 1 batches are repeated, so that they do.
        window_units: Shuffle within windows of this many storage units (an hour of audio is about
            three), for disks and object stores that are slow at random reads: the windows of an
            epoch come one after the other, so that at most this many shards per layer are in use
            at a time. Each epoch draws other windows. Two utterances of a batch lie in the same
            unit with a chance of about 1 / window_units, against 1 / n_units otherwise.
        pin_memory: Put batches into pinned memory, for copies to a GPU that do not block.
        prefetch_factor: Batches that each worker reads ahead.
        multiprocessing_context: How workers start: fork, spawn or forkserver; None is the system's
            way.

    Returns:
        A loader; iterate over it once per epoch.

    Raises:
        ConfigError: A number makes no sense.

    Example:
        >>> loader = make_loader(dataset, max_frames_per_batch=20_000)        # doctest: +SKIP
        >>> for batch in loader:                                              # doctest: +SKIP
        ...     batch.features, batch.lengths  # [batch, layer, frame, dim], [batch]
    """
    policy = BatchPolicy(max_frames_per_batch, shuffle, seed, window_units, world_size, drop_last)
    workers = WorkerPolicy(num_workers, prefetch_factor, pin_memory, multiprocessing_context)
    return FeatureLoader(dataset, policy, rank, workers)


@dataclass(frozen=True)
class WorkerPolicy:
    """How batches are read ahead; it changes no batch.

    Attributes:
        num_workers: Processes; 0 reads in this one.
        prefetch_factor: Batches that each reads ahead.
        pin_memory: Whether batches go into pinned memory.
        start: How processes start.
    """

    num_workers: int = 0
    prefetch_factor: int = 2
    pin_memory: bool = False
    start: str | None = None


class FeatureLoader:
    """The batches of one rank. Each `iter` is an epoch; the next one has another order.

    `set_epoch` picks an epoch; `state_dict` says how many batches of it have been handed out, and a
    loader that loads that state goes on with exactly the others.

    Attributes:
        dataset: What it reads.
        epoch: The epoch that is under way, or that comes next.
    """

    def __init__(
        self, dataset: FeatureDataset, policy: BatchPolicy, rank: int, workers: WorkerPolicy
    ) -> None:
        if not 0 <= rank < policy.world_size:
            raise ConfigError(f"rank is {rank}; expected 0 to {policy.world_size - 1}")
        self.dataset = dataset
        self.epoch = 0
        self._rank = rank
        self._epochs = epochs_of(dataset, policy)
        self._done = 0
        self._under_way = False
        self._workers = workers
        self._read = ReadBatch(dataset)
        self._ring: SharedRing | None = None
        self._ahead: DataLoader[Any] | None = None
        self._assigned: deque[BatchSpec] = deque()

    def __len__(self) -> int:
        """Batches of this rank in the epoch that is under way, or comes next."""
        return len(self._epochs.rank_batches(self.epoch, self._rank))

    def __iter__(self) -> Iterator[Batch]:
        if self._under_way:
            self.set_epoch(self.epoch + 1)
        self._under_way = True
        return self._batches()

    def set_epoch(self, epoch: int) -> None:
        """The next `iter` gives this epoch, from its first batch unless a state was just loaded."""
        if epoch != self.epoch or self._under_way:
            self._done = 0
        self.epoch = epoch
        self._under_way = False

    def state_dict(self) -> dict[str, Any]:
        """Where this loader stands: plain numbers, the same on all ranks that are in step."""
        return {
            "epoch": self.epoch,
            "batches_done": self._done,
            "policy": asdict(self._epochs.policy),
            "data": self._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the loader stood whose state this is.

        Raises:
            ConfigError: It was in the middle of an epoch that would have other batches here.
        """
        here = asdict(self._epochs.policy) | {"data": self._fingerprint()}
        there = state["policy"] | {"data": state["data"]}
        other = [
            f"{k} was {there.get(k)!r}, is {here[k]!r}" for k in here if here[k] != there.get(k)
        ]
        if other and state["batches_done"]:
            raise ConfigError(
                f"cannot go on after {state['batches_done']} batches of epoch {state['epoch']}: "
                f"{'; '.join(other)}. Make the loader as it was, or begin an epoch with set_epoch"
            )
        self.epoch, self._done, self._under_way = state["epoch"], state["batches_done"], False

    def _batches(self) -> Iterator[Batch]:
        pinned = self._workers.pin_memory and torch.cuda.is_available()
        read = self._read_ahead if self._workers.num_workers else self._read_here
        for spec, features in read():
            batch = batch_of(self.dataset, spec, features)
            self._done += 1
            yield batch.pin_memory() if pinned else batch
        self.set_epoch(self.epoch + 1)

    def _specs(self) -> Iterator[BatchSpec]:
        return self._epochs.specs(self.epoch, self._rank, self._done)

    def _read_here(self) -> Iterator[tuple[BatchSpec, Tensor]]:
        for spec in self._specs():
            yield spec, self._read.features(spec)

    def _read_ahead(self) -> Iterator[tuple[BatchSpec, Tensor]]:
        if self._ahead is None:
            self._ahead = self._start_workers()
        for found in self._ahead:
            spec = self._assigned.popleft()
            if isinstance(found, Tensor):
                yield spec, found
            else:
                assert self._ring is not None  # it has lent the buffer
                shape = self.dataset.batch_shape(spec.lengths)
                yield spec, self._ring.receive(found, shape)

    def _start_workers(self) -> DataLoader[Any]:
        workers = self._workers
        if not workers.pin_memory:
            per_frame = len(self.dataset.layers) * self.dataset.store.feature_dim
            size = self._epochs.policy.max_frames_per_batch * per_frame
            self._ring = SharedRing(workers.num_workers * workers.prefetch_factor + 2, size)
            self._read = ReadBatch(self.dataset, self._ring.buffers)
        return DataLoader(
            self._read,
            batch_size=None,
            sampler=_Assigned(self),
            num_workers=workers.num_workers,
            collate_fn=_as_it_is,
            pin_memory=workers.pin_memory,
            prefetch_factor=workers.prefetch_factor,
            persistent_workers=True,
            multiprocessing_context=workers.start,
            generator=torch.Generator(),  # leaves the trainer's random state alone
        )

    def assigned_specs(self) -> Iterator[BatchSpec]:
        """What is left of the epoch, with a buffer for each batch as far as there are free ones.

        Workers hand their batches over in this order.
        """
        self._assigned.clear()
        if self._ring is not None:
            self._ring.reclaim()
        for spec in self._specs():
            if self._ring is not None:
                size = math.prod(self.dataset.batch_shape(spec.lengths))
                spec = replace(spec, buffer=self._ring.assign(size))
            self._assigned.append(spec)
            yield spec

    def _fingerprint(self) -> int:
        return _fingerprint(self.dataset)


class _Assigned:
    """The sampler of a loader's DataLoader.

    It holds the loader weakly: a loader that is let go of stops its workers at once, and not when a
    garbage collection, perhaps in another loader's forked worker, finds the cycle.
    """

    def __init__(self, loader: FeatureLoader) -> None:
        self._loader = weakref.ref(loader)

    def __iter__(self) -> Iterator[BatchSpec]:
        loader = self._loader()
        return iter(()) if loader is None else loader.assigned_specs()

    def __len__(self) -> int:
        loader = self._loader()
        return 0 if loader is None else len(loader)


def _as_it_is(found: Any) -> Any:
    return found


def _fingerprint(dataset: FeatureDataset) -> int:
    """Tells whether two datasets would be cut into the same batches."""
    facts = zlib.crc32(dataset.store.frame_counts.tobytes(), dataset.max_frames or 0)
    return zlib.crc32(dataset.store.slots.tobytes(), facts)

"""The loader of a dataset that grows: the first epoch unit by unit, later ones as of any store.

In epoch 0 the batches of a unit are cut as those of a whole store, and in the order of its units,
so they are shuffled within units only. Everything is known when a unit is committed, and nothing
depends on how long it took:

- The batches of a unit are a function of the seed, the number of the unit and its utterances.
- Rank `r` of `w` takes batch `r` of each round of `w` batches, counted over all units, so all ranks
  have equally many. A round is yielded when all its batches are known. For this all ranks must go
  through the units in one order, which is that of the plan. A single rank takes units in the order
  of their commits, which without Ray is that of the plan, too.
- A state has the units in their order and the number of rounds. So a new process continues with
  exactly the remaining batches, also when the store is complete by then.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError
from pipeline.feed.batch import Batch
from pipeline.feed.batch_reader import BatchReader
from pipeline.feed.batching import BatchPolicy, BatchSpec, EpochBatches
from pipeline.feed.dataset import FeatureDataset
from pipeline.feed.loader import FeatureLoader, WorkerPolicy, batch_of, epochs_of

if TYPE_CHECKING:
    from pipeline.online.dataset import OnlineDataset

_Placed = tuple[FeatureDataset, BatchSpec]
"""A batch, and the utterances of the unit that it is cut from."""


class OnlineLoader(FeatureLoader):
    """A `FeatureLoader` whose epoch 0 yields units as they are committed.

    The batches of epoch 0 are read in the calling process: they were just written, and are read
    from memory in a fraction of the time that encoding them takes.
    """

    dataset: OnlineDataset

    def __init__(
        self, dataset: OnlineDataset, policy: BatchPolicy, rank: int, workers: WorkerPolicy
    ) -> None:
        super().__init__(dataset, policy, rank, workers)
        self._by_units = dataset.is_growing  # whether epoch 0 is in the order of units
        self._units: list[int] = []  # of epoch 0, in order, as far as it got
        self._checksum = 0  # of the lengths of their utterances
        self._loaded: str | None = None  # `data` of a loaded state, until the iteration starts
        self._is_planned = not dataset.is_growing  # whether the epochs are over the whole store

    def __len__(self) -> int:
        """Number of batches of this rank.

        Raises:
            TypeError: It is not known before the end of epoch 0, in which the store grows.
        """
        if self.dataset.is_growing or self._is_by_units:
            raise TypeError(
                "the number of batches is not known before the end of epoch 0, in which utterances "
                "are extracted"
            )
        return super().__len__()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader, JSON-able; in epoch 0 with the units so far."""
        if not self._is_by_units:
            return super().state_dict()
        policy = asdict(self._epochs.policy)
        return {
            "epoch": 0,
            "batches_done": self._n_done,
            "policy": policy,
            "data": self._loaded or self._units_checksum(),
            "units": list(self._units),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a loader with the same settings.

        A state of an epoch over the whole store waits until the store is complete.

        Raises:
            ConfigError: The state is within an epoch, and this loader has other batches. For a
                state of epoch 0, other utterances are noticed in the iteration.
        """
        if "units" not in state:
            if state["epoch"] or state["batches_done"]:
                self._settle()
                self._by_units = False
            super().load_state_dict(state)
            return
        self.check_state(state, asdict(self._epochs.policy))
        self.epoch, self._n_done, self._started = 0, state["batches_done"], False
        self._by_units, self._units = True, list(state["units"])
        self._loaded = state["data"]

    @property
    def _is_by_units(self) -> bool:
        return self.epoch == 0 and self._by_units

    def _units_checksum(self) -> str:
        return f"{len(self._units)} units {self._checksum:08x}"

    def _batches(self) -> Iterator[Batch]:
        if self._is_by_units:
            yield from self._batches_by_units()
        else:
            self._settle()
            yield from super()._batches()

    def _settle(self) -> None:
        """Wait until the store is complete; plan the epochs over all of it."""
        if not self._is_planned:
            self.dataset.wait()
            self._epochs = epochs_of(self.dataset, self._epochs.policy)
            self._is_planned = True

    def _batches_by_units(self) -> Iterator[Batch]:
        """Yield the remaining batches of epoch 0."""
        pinned = self._workers.pin_memory and torch.cuda.is_available()
        reader: tuple[FeatureDataset, BatchReader] | None = None
        try:
            for number, (part, spec) in enumerate(self._rounds()):
                if number < self._n_done:
                    continue
                if reader is None or reader[0] is not part:
                    reader = (part, BatchReader(part))
                batch = batch_of(part, spec, reader[1].features(spec))
                self._n_done += 1
                yield batch.pin_memory() if pinned else batch
            self._settle()
        except BaseException:  # also when the loop over the batches is left
            self.dataset.stop()
            raise
        self.set_epoch(1)

    def _rounds(self) -> Iterator[_Placed]:
        """Yield this rank's batch of each round.

        Raises:
            ConfigError: `drop_last` drops every batch.
        """
        policy, n_rounds = self._epochs.policy, 0
        waiting: list[_Placed] = []
        for part, specs in self._cut_units():
            for spec in specs:
                waiting.append((part, spec))
                if len(waiting) == policy.world_size:
                    n_rounds += 1
                    yield waiting[self._rank]
                    waiting = []
        if waiting and not policy.drop_last:
            yield waiting[self._rank % len(waiting)]
        elif waiting and not n_rounds:
            raise ConfigError(
                f"drop_last drops all {len(waiting)} batches, which are fewer than "
                f"{policy.world_size} ranks; lower max_frames_per_batch"
            )

    def _cut_units(self) -> Iterator[tuple[FeatureDataset, Sequence[BatchSpec]]]:
        """Yield the utterances of each unit, cut into batches.

        Raises:
            ConfigError: The units of a loaded state have other utterances now.
        """
        known, self._units, self._checksum = self._units, [], 0
        expected, self._loaded = self._loaded, None
        policy = replace(self._epochs.policy, window_units=None, world_size=1, drop_last=False)
        n_known, units = len(known), self.dataset.units(known, in_order=self._is_shared)
        for unit in units:
            part = self.dataset.part(unit, self._units)
            counts = part.store.frame_counts
            self._units.append(unit)
            self._checksum = zlib.crc32(counts.tobytes(), self._checksum)
            if len(self._units) == n_known and expected is not None:
                self._check_units(expected)
            cut = EpochBatches(counts, part.store.slots, policy, self.dataset.max_frames)
            yield part, list(cut.specs(unit, 0))

    @property
    def _is_shared(self) -> bool:
        return self._epochs.policy.world_size > 1

    def _check_units(self, expected: str) -> None:
        """Check that the units of a loaded state have the utterances that they had.

        Raises:
            ConfigError: They have others.
        """
        if expected != self._units_checksum() and self._n_done:
            raise ConfigError(
                f"cannot continue after {self._n_done} batches of epoch 0: the first utterances "
                f"were {expected!r}, are {self._units_checksum()!r}. Open the dataset with the "
                "same settings, or start an epoch with set_epoch"
            )

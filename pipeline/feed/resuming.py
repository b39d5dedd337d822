"""Loaders that resume within an epoch: what the loaders of this package have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from pipeline.errors import ConfigError

BatchT = TypeVar("BatchT")


class ResumableLoader(ABC, Generic[BatchT]):
    """Iterable over the batches of one rank. Each iteration over it is one epoch, in a new order.

    `set_epoch` selects an epoch. `state_dict` records how many batches of it were returned, and a
    loader that loads this state continues with exactly the remaining batches.

    There is one iteration at a time, because the state and the workers are those of the loader. A
    new one ends the one before: continuing that raises ConfigError.

    Attributes:
        epoch: The current epoch, or the next one if none has started.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._n_done = 0
        self._started = False
        self._n_iterations = 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches of this rank in the current epoch, or in the next one."""

    @abstractmethod
    def _remaining(self) -> Iterator[BatchT]:
        """Yield the batches of the epoch from batch `_n_done` on."""

    @abstractmethod
    def _policy(self) -> dict[str, Any]:
        """Return the settings that the batches depend on, JSON-able."""

    @abstractmethod
    def _data(self) -> int:
        """Return a checksum that is equal for datasets with equal batches."""

    def __iter__(self) -> Iterator[BatchT]:
        if self._started:
            self.set_epoch(self.epoch + 1)
        self._started = True
        self._n_iterations += 1
        return self._of_iteration(self._n_iterations)

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration.

        It starts at its first batch, unless a state of this epoch was just loaded.
        """
        if epoch != self.epoch or self._started:
            self._n_done = 0
        self.epoch = epoch
        self._started = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader, JSON-able.

        Ranks that have returned equally many batches have equal states.
        """
        return {
            "epoch": self.epoch,
            "batches_done": self._n_done,
            "policy": self._policy(),
            "data": self._data(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a loader with the same batches.

        Args:
            state: Result of `state_dict`.

        Raises:
            ConfigError: The state is within an epoch, and this loader has other batches.
        """
        self.check_state(state, self._policy() | {"data": self._data()})
        self.epoch, self._n_done, self._started = state["epoch"], state["batches_done"], False

    def check_state(self, state: dict[str, Any], current: dict[str, Any]) -> None:
        """Check that a state, if it is within an epoch, is of a loader like this one.

        Args:
            state: Result of `state_dict`.
            current: What this loader has instead.

        Raises:
            ConfigError: They differ.
        """
        saved = state["policy"] | {"data": state["data"]}
        differences = [
            f"{key} was {saved.get(key)!r}, is {value!r}"
            for key, value in current.items()
            if value != saved.get(key)
        ]
        if differences and state["batches_done"]:
            raise ConfigError(
                f"cannot continue after {state['batches_done']} batches of epoch {state['epoch']}: "
                f"{'; '.join(differences)}. Make the loader with the same settings, or start an "
                "epoch with set_epoch"
            )

    def _of_iteration(self, number: int) -> Iterator[BatchT]:
        """Yield the batches of an iteration, as long as it is the newest one.

        Raises:
            ConfigError: Another one has begun.
        """
        batches = self._batches()
        while number == self._n_iterations:
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
        raise ConfigError(
            "another iteration over this loader has begun (a loop within the loop, zip(loader, "
            "loader), next(iter(loader))), which would take batches from this one; make a loader "
            "for each"
        )

    def _batches(self) -> Iterator[BatchT]:
        for batch in self._remaining():
            self._n_done += 1
            yield batch
        self.set_epoch(self.epoch + 1)


def check_rank(rank: int, world_size: int) -> None:
    """Check the rank of a process.

    Raises:
        ConfigError: There is no such rank.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}; expected 0 to {world_size - 1}")

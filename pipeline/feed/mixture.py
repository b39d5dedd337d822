"""Mixtures: batches drawn by weight from several datasets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Subset

from pipeline.config.sizes import parse_bytes
from pipeline.errors import ConfigError
from pipeline.feed.batch import Batch
from pipeline.feed.dataset import FeatureDataset, as_feature_dataset
from pipeline.feed.loader import DEFAULT_READ_AHEAD, FeatureLoader, make_loader
from pipeline.feed.resuming import ResumableLoader

_CHOICES = 2  # distinguishes the random numbers of choices from those of orders and crops
_MAX_REPEATS = 1 << 20  # own epochs of a dataset in one epoch of the mixture


def mix(
    datasets: Sequence[FeatureDataset | Subset[Any]],
    weights: Sequence[float] | None = None,
    *,
    max_frames_per_batch: int,
    batches_per_epoch: int | None = None,
    seed: int = 0,
    **options: Any,
) -> MixedLoader:
    """Make a loader whose batches are drawn from several datasets.

    Each batch is of one dataset, whose number it has in `Batch.dataset`. In an epoch of the mixture
    a dataset is read in a new order, and again in another one when it ends: with a large weight it
    is read several times, with a small one in part.

    Args:
        datasets: With the same layers, and values of one dimension and type; their stores may be of
            different encoders, and have different columns.
        weights: How often each is drawn, in proportion; None draws each in proportion to its
            number of batches.
        max_frames_per_batch: As for `make_loader`.
        batches_per_epoch: Batches of an epoch on each rank; None is as many as the datasets have
            together.
        seed: Seed of the draws, of the orders and of the crops, equal on all ranks.
        **options: As for `make_loader`. `num_workers` are those of each dataset; the memory of
            `read_ahead` is divided among them.

    Raises:
        ConfigError: The datasets do not agree, utterances are still being extracted, a weight is no
            number of at least 0, or a dataset has no batches.

    Example:
        >>> for batch in mix([english, german], [3, 1], max_frames_per_batch=20_000):
        ...     loss = head(batch.features, batch.dataset)         # doctest: +SKIP
    """
    parts = [as_feature_dataset(dataset) for dataset in datasets]
    for part in parts:
        part.check_whole()
    _check_alike(parts)
    read_ahead = parse_bytes(options.get("read_ahead", DEFAULT_READ_AHEAD), "read_ahead", least=0)
    options["read_ahead"] = read_ahead // len(parts)
    loaders = [
        make_loader(part, max_frames_per_batch=max_frames_per_batch, seed=seed, **options)
        for part in parts
    ]
    sizes = [len(loader) for loader in loaders]
    for number, size in enumerate(sizes):
        if not size:
            raise ConfigError(f"dataset {number} of the mixture has no batches")
    chances = _chances(sizes if weights is None else weights, len(parts))
    n_batches = sum(sizes) if batches_per_epoch is None else batches_per_epoch
    if not isinstance(n_batches, int | np.integer) or n_batches < 1:
        raise ConfigError(f"batches_per_epoch is {n_batches!r}; expected a number of at least 1")
    return MixedLoader(loaders, chances, seed, n_batches)


class MixedLoader(ResumableLoader[Batch]):
    """Iterable over the batches of several loaders, of one rank. All ranks draw the same datasets.

    Attributes:
        weights: Chance of each dataset, [n_datasets].
    """

    def __init__(
        self, loaders: Sequence[FeatureLoader], weights: Sequence[float], seed: int, n_batches: int
    ) -> None:
        super().__init__()
        self._loaders, self.weights = list(loaders), list(weights)
        self._seed, self._n_batches = seed, n_batches
        self._select()

    @property
    def datasets(self) -> list[FeatureDataset]:
        """The datasets, by number."""
        return [loader.dataset for loader in self._loaders]

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return self._n_batches

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration; see `ResumableLoader.set_epoch`."""
        begins = epoch != self.epoch or self._started
        super().set_epoch(epoch)
        if begins:
            self._select()

    def choices(self) -> list[int]:
        """Return the number of the dataset of each batch of the current epoch."""
        random = np.random.default_rng([self._seed, self.epoch, _CHOICES])
        drawn = random.choice(len(self.weights), self._n_batches, p=self.weights)
        return [int(number) for number in drawn]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader, JSON-able; equal for all ranks at equal batches."""
        return {
            **super().state_dict(),
            "datasets": [loader.state_dict() for loader in self._loaders],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a mixture with the same batches.

        Args:
            state: Result of `state_dict`.

        Raises:
            ConfigError: The state is of another number of datasets, or it is within an epoch, and
                this mixture has other batches.
        """
        if len(state["datasets"]) != len(self._loaders):
            raise ConfigError(
                f"the state is of a mixture of {len(state['datasets'])} datasets; this one has "
                f"{len(self._loaders)}"
            )
        super().load_state_dict(state)
        for loader, saved in zip(self._loaders, state["datasets"], strict=True):
            loader.load_state_dict(saved)

    def _policy(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "batches_per_epoch": self._n_batches,
            "seed": self._seed,
        }

    def _data(self) -> int:
        return 0  # each dataset's own state tells

    def _select(self) -> None:
        """Begin orders of each dataset that no other epoch of the mixture has."""
        for loader in self._loaders:
            loader.set_epoch(self.epoch * _MAX_REPEATS)

    def _remaining(self) -> Iterator[Batch]:
        reading: dict[int, Iterator[Batch]] = {}
        for number in self.choices()[self._n_done :]:
            batch = next(reading[number], None) if number in reading else None
            while batch is None:  # not yet begun, or at the end of its own epoch
                reading[number] = iter(self._loaders[number])
                batch = next(reading[number], None)
            yield replace(batch, dataset=number)


def _check_alike(datasets: Sequence[FeatureDataset]) -> None:
    """Check that batches of the datasets have the same layers, dimension and type."""
    if not datasets:
        raise ConfigError("mix needs at least one dataset")
    forms = [
        {"layers": list(item.layers), "dim": item.store.feature_dim, "dtype": str(item.dtype)}
        for item in datasets
    ]
    for number, form in enumerate(forms):
        for name, value in form.items():
            if value != forms[0][name]:
                raise ConfigError(
                    f"dataset {number} of the mixture has {name} {value}, dataset 0 "
                    f"{forms[0][name]}; a mixture has one shape of batches"
                )


def _chances(weights: Sequence[float], n_datasets: int) -> list[float]:
    """Return weights that sum to 1."""
    if len(weights) != n_datasets:
        raise ConfigError(f"{len(weights)} weights for {n_datasets} datasets")
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        numbers = [math.nan]
    total = sum(numbers)
    if not (math.isfinite(total) and min(numbers) >= 0 and total):
        raise ConfigError(f"weights are {weights!r}; expected numbers of at least 0, not all 0")
    return [number / total for number in numbers]

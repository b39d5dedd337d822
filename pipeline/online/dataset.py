"""A dataset over a store whose units are still being extracted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import pyarrow.compute as pc

from pipeline.errors import ConfigError, RunError
from pipeline.feed.dataset import FeatureDataset
from pipeline.online.extraction import Extraction, wait_s
from pipeline.online.loader import OnlineLoader
from pipeline.store import index as index_files
from pipeline.store.documents import read_plan
from pipeline.store.format.plan import Plan
from pipeline.store.read.features import FeatureStore


@dataclass(frozen=True)
class View:
    """What a dataset shows of a store; see `FeatureDataset`.

    Attributes:
        where: Condition that utterances fulfil; None shows all.
        max_quarantined: Share of quarantined utterances above which a complete store is refused.
        options: Further arguments of `FeatureDataset`.
    """

    where: str | None = None
    max_quarantined: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, store: FeatureStore, is_complete: bool) -> FeatureStore:
        """Return the utterances of a store that fulfil the condition."""
        if self.where is None:
            return store
        with warnings.catch_warnings():
            if not is_complete:  # a value that no utterance has may come
                warnings.simplefilter("ignore")
            return store.select(self.where)


class OnlineDataset(FeatureDataset):
    """The utterances of a store, of which units may still be extracted; see `open_or_extract`.

    While units are missing, only `make_loader` can use the dataset. When epoch 0 has ended, or
    after `wait`, it is a `FeatureDataset` like any other.
    """

    loader_type = OnlineLoader

    def __init__(self, whole: FeatureStore, view: View, extraction: Extraction | None) -> None:
        """Use `open_or_extract`.

        Args:
            whole: The store, with a committed unit.
            view: What to show of it.
            extraction: What extracts the missing units; None if the store is complete.

        Raises:
            RunError: The store is complete, and too many utterances are quarantined.
            ConfigError: As `FeatureDataset`; or the names of classes are not known yet.
        """
        self._whole, self._view = whole, view
        self._extraction = extraction
        if extraction is None:
            self._check_quarantined()
        else:
            self._check_classes()
        super().__init__(view.of(whole, extraction is None), **view.options)

    @property
    def is_growing(self) -> bool:
        """Whether units are missing, or were when the dataset last looked."""
        return self._extraction is not None

    def check_whole(self) -> None:
        """Check that all utterances are there.

        Raises:
            ConfigError: Units are missing.
        """
        if self._extraction is not None:
            raise ConfigError(
                f"utterances of {self._whole.location} are still being extracted; iterate over "
                "pipeline.make_loader(dataset, ...), or call dataset.wait() before other uses"
            )

    def __len__(self) -> int:
        self.check_whole()
        return super().__len__()

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read several utterances; see `FeatureDataset`."""
        self.check_whole()
        return super().__getitems__(indices)

    def take(self, positions: Sequence[int]) -> Self:
        """Return a dataset of the utterances at `positions`; see `FeatureDataset`."""
        self.check_whole()
        return super().take(positions)

    def __getstate__(self) -> dict[str, Any]:
        self.check_whole()  # the process that extracts belongs to this one
        needed_to_grow = ("_whole", "_pieces")
        return {name: value for name, value in vars(self).items() if name not in needed_to_grow}

    def wait(self) -> None:
        """Wait until the store is complete.

        Raises:
            StrataError: The extraction has failed: the error that `strata extract` ends in.
            RunError: Too many utterances are quarantined.
        """
        extraction = self._extraction
        if extraction is None:
            return
        extraction.start()
        while not extraction.is_done():
            wait_s()
        self._whole.refresh()
        self._check_quarantined()
        self._extraction = None
        super().__init__(self._view.of(self._whole, True), **self._view.options)

    def stop(self) -> None:
        """Stop the extraction; what is committed stays. Iterating or `wait` starts it again."""
        if self._extraction is not None:
            self._extraction.stop()

    def units(self, known: Sequence[int], *, in_order: bool) -> Iterator[int]:
        """Yield each unit once it is committed, until all are.

        Args:
            known: Units to yield first.
            in_order: Whether the others come by number, else as they are committed.

        Raises:
            StrataError: The extraction has failed.
            ConfigError: The store is complete without a unit of `known`.
        """
        yielded: set[int] = set()
        while True:
            is_done = self._is_done()  # before the list is made: it is complete then
            committed = index_files.committed_units(self._whole.backend)
            left = [unit for unit in committed if unit not in yielded]
            if len(yielded) < len(known):
                wanted = known[len(yielded)]
                left = [wanted] if wanted in left else []
                if is_done and not left:
                    raise ConfigError(
                        f"unit {wanted}, which the state of the loader names, is not in "
                        f"{self._whole.location} any more; start an epoch with set_epoch"
                    )
            elif in_order and not is_done and left and left[0] != _first_missing(yielded):
                left = []
            if left:
                yielded.add(left[0])
                yield left[0]
            elif is_done:
                return
            else:
                wait_s()

    def part(self, unit: int, earlier: Sequence[int]) -> FeatureDataset:
        """Return the utterances that a unit completes.

        Args:
            unit: A committed unit.
            earlier: Units whose utterances were returned before, and may have pieces of recordings
                that this unit completes.
        """
        others = self._pieces.sharing(unit).intersection(earlier)
        store = self.store.of_unit(unit, sorted(others))
        return FeatureDataset(store, **self._view.options)

    def _is_done(self) -> bool:
        if self._extraction is None:
            return True
        self._extraction.start()
        return self._extraction.is_done()

    @cached_property
    def _pieces(self) -> _Pieces:
        plan = read_plan(self._whole.backend)
        return _Pieces.of(plan) if plan is not None else _Pieces({})

    def _check_quarantined(self) -> None:
        """Check the share of quarantined utterances, as `strata extract` does.

        Raises:
            RunError: It is more than `run.max_quarantined`.
        """
        lost, limit = self._whole.quarantined, self._view.max_quarantined
        n_all = len(self._whole) + len(lost)
        if len(lost) > limit * n_all:
            first = lost.slice(0, 1).to_pylist()[0]
            raise RunError(
                f"{len(lost) / n_all:.1%} of the utterances of {self._whole.location} are "
                f"quarantined, more than run.max_quarantined={limit:g} ({first['id']!r}: "
                f"{first['reason']}); see `strata inspect {self._whole.location}`, and raise "
                "run.max_quarantined to train on the others"
            )

    def _check_classes(self) -> None:
        """Check that the numbers of classes do not depend on the utterances.

        Raises:
            ConfigError: They do.
        """
        classes = self._view.options.get("classes", ())
        if isinstance(classes, Mapping | str):
            return
        unknown = [name for name in classes if name not in self._whole.class_names]
        if unknown:
            raise ConfigError(
                f"the classes of column {unknown[0]!r} are not known before all utterances are "
                f"extracted; give their names: classes={{{unknown[0]!r}: [...]}}"
            )


def _first_missing(numbers: set[int]) -> int:
    """Return the lowest number from 0 on that is not in a set."""
    number = len(numbers)
    return next(i for i in range(number + 1) if i not in numbers)


class _Pieces(NamedTuple):
    """Units that share recordings, of which each has pieces.

    Attributes:
        neighbours: Such units, by unit.
    """

    neighbours: Mapping[int, set[int]]

    @classmethod
    def of(cls, plan: Plan) -> _Pieces:
        """Find the units that share recordings."""
        rows = plan.table.filter(pc.greater(plan.table["n_pieces"], 1))
        units_of: dict[int, set[int]] = {}
        for row, unit in zip(rows["row"].to_pylist(), rows["unit"].to_pylist(), strict=True):
            units_of.setdefault(row, set()).add(unit)
        neighbours: dict[int, set[int]] = {}
        for units in units_of.values():
            for unit in units:
                neighbours.setdefault(unit, set()).update(units)
        return cls(neighbours)

    def sharing(self, unit: int) -> set[int]:
        """Return the other units with pieces of recordings of a unit."""
        return self.neighbours.get(unit, set()) - {unit}

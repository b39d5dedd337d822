"""Stores that get one unit after another while they are read, without an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipeline
from pipeline.online.dataset import OnlineDataset, View
from pipeline.store.documents import layout_of, read_attributes
from tests.helpers.feature_stores import commit_units, default_columns, make_store, spelled


class ScriptedExtraction:
    """Stands in for `Extraction`: each look at it commits the next unit, or raises.

    Args:
        root: The store.
        steps: Units to commit, None for a look at which nothing is new, or an error.
        lost: Rows that are quarantined.
    """

    def __init__(self, root: Path, steps: list[Any], lost: tuple[int, ...] = ()) -> None:
        self._root, self._steps, self._lost = root, list(steps), lost
        self.is_running = False
        self.n_starts = self.n_stops = 0

    def start(self) -> None:
        self.n_starts += not self.is_running
        self.is_running = True

    def stop(self) -> None:
        self.n_stops += self.is_running
        self.is_running = False

    def is_done(self) -> bool:
        assert self.is_running
        if not self._steps:
            return True
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if step is not None:
            commit(self._root, [step], self._lost)
        return False


def commit(root: Path, units: list[int], lost: tuple[int, ...] = ()) -> None:
    """Commit units of a store that `begin` has made."""
    plan = pipeline.store.documents.read_plan(root)
    layout = layout_of(read_attributes(root))
    columns = default_columns(plan.n_numbers)
    commit_units(root, plan, layout, columns, spelled, lost, units)


def begin(
    root: Path,
    lengths: list[int],
    steps: list[Any],
    *,
    first: tuple[int, ...] = (0,),
    lost: tuple[int, ...] = (),
    pieces: dict[int, int] | None = None,
    view: View | None = None,
) -> tuple[OnlineDataset, ScriptedExtraction]:
    """Make a store with the `first` units, and a dataset of it that grows by `steps`."""
    make_store(root, lengths, units=first, lost=lost, pieces=pieces)
    extraction = ScriptedExtraction(root, steps, lost)
    extraction.start()
    dataset = OnlineDataset(pipeline.open_store(root), view or View(), extraction)
    return dataset, extraction

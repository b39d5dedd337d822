"""Stores that get one unit after another while they are read, without an encoder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pipeline
from pipeline.online.dataset import OnlineDataset, View
from tests.helpers.feature_stores import make_store

_MADE = tempfile.TemporaryDirectory(prefix="strata-growing-")
_HIDDEN = "not-committed-yet"


class ScriptedExtraction:
    """Stands in for `Extraction`: each look at it commits the next unit, or raises.

    Args:
        root: The store, from `begin`.
        steps: Units to commit, None for a look at which nothing is new, or an error.
    """

    def __init__(self, root: Path, steps: Sequence[Any]) -> None:
        self._root, self._steps = root, list(steps)
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
            commit(self._root, [step])
        return False


def commit(root: Path, units: Sequence[int]) -> None:
    """Commit units of a store that `begin` has made."""
    for unit in units:
        name = f"unit-{unit}.parquet"
        (root / _HIDDEN / name).rename(root / "index" / name)


@cache
def _made(lengths: tuple[int, ...], lost: tuple[int, ...], pieces: tuple[tuple[int, int], ...]):
    """A complete store, none of whose units is committed yet."""
    root = Path(tempfile.mkdtemp(dir=_MADE.name)) / "store"
    make_store(root, list(lengths), lost=lost, pieces=dict(pieces))
    (root / "index.parquet").unlink()
    (root / "index").rename(root / _HIDDEN)
    (root / "index").mkdir()
    return root


def begin(
    root: Path,
    lengths: Sequence[int],
    steps: Sequence[Any],
    *,
    first: Sequence[int] = (0,),
    lost: Sequence[int] = (),
    pieces: dict[int, int] | None = None,
    view: View | None = None,
) -> tuple[OnlineDataset, ScriptedExtraction]:
    """Make a store with the `first` units, and a dataset of it that grows by `steps`.

    Rows `lost` are quarantined, and those of `pieces` are cut into so many.
    """
    made = _made(tuple(lengths), tuple(lost), tuple((pieces or {}).items()))
    shutil.copytree(made, root, dirs_exist_ok=True)
    commit(root, first)
    extraction = ScriptedExtraction(root, steps)
    extraction.start()
    dataset = OnlineDataset(pipeline.open_store(root), view or View(), extraction)
    return dataset, extraction

"""Finding and reading of finished sweeps."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, first_few
from pipeline.probing.result_files import RESULT, read_result
from pipeline.probing.results import Sweep

_PRUNED = {"heads", "trained", "figures", "tables", "features.zarr"}
"""Folders that hold no sweeps, and many files."""


@dataclass(frozen=True)
class StoredSweep:
    """A sweep and its folder."""

    sweep: Sweep
    folder: Path


def read_sweeps(places: Sequence[str | Path]) -> list[StoredSweep]:
    """Read the sweeps in folders, each of which is that of a sweep, or contains such folders.

    A sweep that is found twice counts once.

    Raises:
        ConfigError: A folder does not exist or has no sweeps, or a result cannot be read.
    """
    if not places:
        raise ConfigError("no folder is given; expected folders that `strata sweep` has written")
    found: dict[Path, Path] = {}
    for place in map(Path, places):
        for folder in _folders(place):
            found.setdefault(folder.resolve(), folder)
    with _without_collection():
        return [
            StoredSweep(read_result(folder, chosen_only=True), folder) for folder in found.values()
        ]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Stop the garbage collector, which visits millions of predictions again and again.

    A sweep of 3,000 test utterances is read in 0.14 s instead of 0.94 s.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _folders(place: Path) -> list[Path]:
    """Return the folders of sweeps in a folder, by name."""
    if place.name == RESULT and place.is_file():
        place = place.parent
    if not place.is_dir():
        reason = "is a file" if place.exists() else "does not exist"
        raise ConfigError(
            f"{place} {reason}; expected the folder of a sweep, or one that contains such folders"
        )
    found = []
    for root, names, files in os.walk(place):
        names[:] = sorted(name for name in names if name not in _PRUNED)
        if RESULT in files:
            found.append(Path(root))
    if not found:
        inside = first_few(sorted(path.name for path in place.iterdir())) or "nothing"
        raise ConfigError(
            f"{place} has no {RESULT}, nor has a folder inside it (there is {inside}); give "
            "folders that `strata sweep` has written, for example sweeps/STORE/TASK-LABELS"
        )
    return found

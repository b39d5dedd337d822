"""Finding and reading of finished sweeps."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, first_few
from pipeline.probing.output_folder import SETTINGS
from pipeline.probing.result_files import RESULT, read_result
from pipeline.probing.results import Sweep
from pipeline.store.format.layout import GROUP

_PRUNED = {"heads", "trained", "figures", "tables"}
"""Folders inside that of a sweep that hold no sweeps, and many files."""


@dataclass(frozen=True)
class StoredSweep:
    """A sweep and its folder."""

    sweep: Sweep
    folder: Path

    @property
    def store(self) -> str:
        """Absolute path of the store, or those of several; as it was given if that is not known."""
        return str(self.settings.get("store", self.sweep.store))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the folder is claimed for; {} without any.

        Raises:
            ConfigError: They cannot be read.
        """
        path = self.folder / SETTINGS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}); run the same `strata sweep` again in another "
                "folder"
            ) from error
        return found if isinstance(found, dict) else {}


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
    found = list(_walk(place))
    if not found:
        inside = first_few(sorted(path.name for path in place.iterdir())) or "nothing"
        raise ConfigError(
            f"{place} has no {RESULT}, nor has a folder inside it (there is {inside}); give "
            "folders that `strata sweep` has written, for example sweeps/STORE/TASK-LABELS"
        )
    return found


def _walk(place: Path) -> Iterator[Path]:
    """Yield the folders that have a result, by name; links to folders are followed.

    Raises:
        ConfigError: A folder cannot be read.
    """
    seen = set()
    for root, names, files in os.walk(place, onerror=_refuse, followlinks=True):
        resolved = os.path.realpath(root)
        if resolved in seen:  # a link to a folder around it has no end
            names.clear()
            continue
        seen.add(resolved)
        is_sweep = RESULT in files or SETTINGS in files
        left_out = {GROUP} | (_PRUNED if is_sweep else set())
        names[:] = sorted(name for name in names if name not in left_out)
        if RESULT in files:
            yield Path(root)


def _refuse(error: OSError) -> None:
    raise ConfigError(
        f"{error.filename} cannot be read ({error.strerror}); make it readable, or give other "
        "folders"
    ) from error

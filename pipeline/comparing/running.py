"""Runs of a comparison: of finished sweeps in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.comparing.building import compare
from pipeline.comparing.reading import StoredSweep, read_sweeps
from pipeline.comparing.results import Comparison
from pipeline.errors import ConfigError
from pipeline.events import Observer, announced
from pipeline.files import local_folder
from pipeline.probing.output_folder import claim_folder

REPORT = Path("sweeps", "report")
"""Where the report of finished sweeps goes, if no folder is given."""


def compare_folders(
    places: Sequence[str | Path], out: str | Path | None, observer: Observer
) -> tuple[Comparison, Path]:
    """Compare finished sweeps.

    Args:
        places: Folders of sweeps, or folders that contain these.
        out: Folder of the report; None uses `REPORT`.
        observer: Receives notes.

    Returns:
        The comparison, and the folder for its report, in which nothing is written yet but the names
        of the sweeps. It belongs to these sweeps; others get `FOLDER-2`.

    Raises:
        ConfigError: As for `read_sweeps` and `compare`; or the folder is that of a sweep.
        StoreError: The folder cannot be written.
    """
    with announced(observer, "reading the sweeps"):
        stored = read_sweeps(places)
    with announced(observer, "comparing the sweeps"):
        comparison = compare(stored)
    folder = REPORT if out is None else local_folder("out", str(out))
    return comparison, claim_comparison(folder, stored, observer)


def claim_comparison(folder: Path, stored: Sequence[StoredSweep], observer: Observer) -> Path:
    """Claim a folder for the comparison of some sweeps.

    Raises:
        ConfigError: The folder is that of one of the sweeps.
        StoreError: It cannot be written.
    """
    folders = sorted(str(item.folder.resolve()) for item in stored)
    if str(folder.resolve()) in folders:
        raise ConfigError(
            f"out={folder} is the folder of a sweep, whose report would be lost; give another"
        )
    claimed, note = claim_folder(folder, {"sweeps": folders})
    if note:
        observer.note(note)
    return claimed

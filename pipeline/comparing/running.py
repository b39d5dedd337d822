"""Runs of a comparison: of finished sweeps in folders, or of sweeps that are run here.

Each sweep of a comparison has a folder of its own, with its cached heads. So a comparison that was
interrupted continues, and a sweep that was run alone is not run again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.comparing.building import compare
from pipeline.comparing.heads import head_order
from pipeline.comparing.naming import SEPARATOR, percent, unique_names
from pipeline.comparing.reading import StoredSweep, read_sweeps
from pipeline.comparing.report.writing import COMPARISON
from pipeline.comparing.results import Comparison
from pipeline.comparing.stores import (
    Given,
    check_comparable,
    common_utterances,
    name_of_stores,
    open_stores,
)
from pipeline.config import SweepConfig
from pipeline.errors import ConfigError
from pipeline.events import Observer, announced
from pipeline.files import local_folder
from pipeline.probing.output_folder import (
    check_outside,
    claim_folder,
    joined_names,
    label_names,
)
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.run import sweep
from pipeline.store.read.features import FeatureStore

REPORT = Path("sweeps", "report")
"""Where the report of finished sweeps goes, if no folder is given."""
_SUFFIX = "-comparison"


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep of a comparison, before it is run.

    Attributes:
        name: Name for progress.
        store: The features.
        config: Settings of the sweep, with its folder.
    """

    name: str
    store: FeatureStore
    config: SweepConfig


@dataclass(frozen=True)
class Plan:
    """The sweeps of a comparison.

    Attributes:
        sweeps: At least one.
        folder: Folder of the comparison.
    """

    sweeps: tuple[PlannedSweep, ...]
    folder: Path


OpenObserver = Callable[[], AbstractContextManager[Observer]]
"""Makes what shows the progress of one sweep."""


def plan_sweeps(given: Sequence[Given], config: SweepConfig, observer: Observer) -> Plan:
    """Open stores, and list their sweeps: one per encoder, head and share of train.

    Args:
        given: Paths, URIs or open stores.
        config: Settings, with heads and shares of train.
        observer: Receives warnings.

    Raises:
        ConfigError, StoreError, IdentityError: As for `open_stores`, `common_utterances` and
            `check_comparable`.
    """
    stores = open_stores(given)
    if len(stores) == 1 and len(config.variants) == 1:
        return Plan((PlannedSweep("", stores[0], config),), Path())
    if len(stores) > 1:
        stores = common_utterances(stores, observer)
    labels = check_comparable(stores, config).columns
    names = unique_names(range(len(stores)), lambda at: name_of_stores(stores[at]))
    folder = _folder(list(names.values()), config, labels)
    planned = []
    for at, store in enumerate(stores):
        check_outside(folder, store)
        for variant in config.variants:
            if variant.task.reads_frames:
                store.check_frames()
            name = _name(names[at], variant, config)
            out = None if config.out is None else str(folder / _slug(name))
            planned.append(PlannedSweep(name, store, replace(variant, out=out)))
    return Plan(tuple(sorted(planned, key=_place)), folder)


def run_plan(plan: Plan, open_observer: OpenObserver) -> tuple[Comparison, Path]:
    """Run the sweeps of a comparison, and compare them.

    Args:
        plan: Several sweeps.
        open_observer: Called for each sweep, and for their comparison.

    Returns:
        The comparison, and the folder for its report.

    Raises:
        ConfigError, StoreError: As for `sweep`.
    """
    stored = []
    for number, item in enumerate(plan.sweeps, 1):
        with open_observer() as observer:
            observer.note(f"sweep {number} of {len(plan.sweeps)}: {item.name}")
            found, folder = sweep(item.store, item.config, observer)
            page = folder / "report.html"
            if found.trained or not page.exists():
                with announced(observer, "writing the report of the sweep"):
                    write_report(found, folder)
        stored.append(StoredSweep(found, folder))
    with open_observer() as observer, announced(observer, "comparing the sweeps"):
        comparison = compare(stored)
        return comparison, claim_comparison(plan.folder, stored, observer.note)


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
    return comparison, claim_comparison(folder, stored, observer.note)


def claim_comparison(
    folder: Path, stored: Sequence[StoredSweep], note: Callable[[str], None]
) -> Path:
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
    claimed, line = claim_folder(folder, {"sweeps": folders})
    if line:
        is_report = (folder / COMPARISON).exists()
        has = "the report of other sweeps" if is_report else "results of something else"
        note(f"{folder} has {has}, and is left as it is; this report goes to {claimed}")
    return claimed


def _folder(names: Sequence[str], config: SweepConfig, labels: Sequence[str]) -> Path:
    """Return the folder of a comparison: `sweeps/NAME+NAME/TASK-LABELS-comparison`."""
    if config.out is not None:
        return local_folder("out", config.out)
    return Path("sweeps", joined_names(names), f"{config.task.name}-{label_names(labels)}{_SUFFIX}")


def _name(store: str, variant: SweepConfig, config: SweepConfig) -> str:
    """Return the name of a sweep: the store, and what else is compared."""
    parts = [store]
    if config.heads is not None:
        parts.append(variant.task.head)
    if len(config.fractions or ()) > 1:
        parts.append(f"{percent(variant.fraction)} of train")
    return SEPARATOR.join(parts)


def _slug(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r"[^\w.+%-]+", "-", name.replace(" %", "%")).strip("-")


def _place(item: PlannedSweep) -> tuple[float, tuple[int, str]]:
    """Return the order of running: whole train and simple heads first."""
    return -item.config.fraction, head_order(item.config.task.head)

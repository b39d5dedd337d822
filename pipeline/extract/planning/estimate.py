"""Size of a plan, and whether it fits on the disk."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.errors import NoSpaceError
from pipeline.extract.planning.changes import KINDS
from pipeline.extract.planning.dataset import PlannedDataset
from pipeline.extract.planning.scan import Unreadable
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import Layout


@dataclass(frozen=True)
class Estimate:
    """Size of a plan.

    Attributes:
        utterances: Number of utterances.
        unreadable: Number of utterances that cannot be read; they will be quarantined.
        hours: Hours of audio.
        units: Number of units.
        frames: Frames of one layer.
        bytes: Bytes of the features of all units.
        free_bytes: Free bytes on the disk of the store.
        frames_per_unit: Capacity of a unit in frames.
        reasons: Why utterances cannot be read, most frequent first.
        skipped: Files of the dataset that are no utterances.
        new, gone, replaced, relabelled, unchanged: Utterances, compared with those of the store
            (`Changes`); None if nothing is extracted there.
        dropped: Utterances of the dataset that were dropped from the store; the same.
    """

    utterances: int
    unreadable: int
    hours: float
    units: int
    frames: int
    bytes: int
    free_bytes: int
    frames_per_unit: int
    reasons: tuple[Unreadable, ...] = ()
    skipped: tuple[str, ...] = ()
    new: int | None = None
    gone: int | None = None
    replaced: int | None = None
    relabelled: int | None = None
    unchanged: int | None = None
    dropped: int | None = None


def estimate(
    dataset: PlannedDataset, layout: Layout, sample_rate_hz: int, store: Location
) -> Estimate:
    """Estimate the size of a plan.

    Units and bytes are those of the whole store, with utterances that the dataset lacks.

    Args:
        dataset: The dataset and its plan.
        layout: Shapes of the store.
        sample_rate_hz: Sample rate of the encoder.
        store: The store, which need not exist.
    """
    plan, changes = dataset.shown, dataset.changes
    n_units = dataset.plan.n_units
    first = pc.equal(plan.table["piece"], 0)
    unreadable = pc.sum(pc.equal(plan.table["n_samples"].filter(first), 0)).as_py() or 0
    compared = (
        {} if changes is None else {kind: getattr(changes, kind) for kind in (*KINDS, "dropped")}
    )
    return Estimate(
        utterances=plan.n_utterances,
        unreadable=unreadable,
        hours=plan.audio_seconds(sample_rate_hz) / 3600,
        units=n_units,
        frames=plan.n_frames,
        bytes=n_units * layout.slot_bytes,
        free_bytes=open_backend(store).free_bytes(),
        frames_per_unit=plan.frames_per_unit,
        **compared,
    )


def check_space(n_units: int, layout: Layout, store: Location) -> None:
    """Check that `n_units` more units fit on the disk.

    Raises:
        NoSpaceError: They do not fit; the message reports the needed and the free space.
    """
    needed, free = n_units * layout.slot_bytes, open_backend(store).free_bytes()
    if needed > free:
        raise NoSpaceError(
            f"{needed / 1e9:.2f} GB are needed in {store}, {free / 1e9:.2f} GB are free; make "
            "room, choose another store=, or extract fewer layers with extract.layers=[...]"
        )

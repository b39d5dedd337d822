"""Size of a plan, and whether it fits on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipeline.encoders.windows import Windowing
from pipeline.errors import NoSpaceError
from pipeline.extract.planning.changes import KINDS
from pipeline.extract.planning.dataset import PlannedDataset
from pipeline.extract.planning.fixed_windows import FixedWindows, count_windows
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
        window_s: Length that the encoder pads each window to, in seconds; None if it takes clips
            of any length.
        windows: Windows to encode; the same.
        encoded_hours: Hours of audio to encode, padding included; the same.
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
    window_s: float | None = None
    windows: int | None = None
    encoded_hours: float | None = None

    @property
    def fixed_windows(self) -> FixedWindows | None:
        """Windows of an encoder that pads each to one length."""
        if self.windows is None or self.window_s is None:
            return None
        return FixedWindows(self.windows, self.window_s)


def estimate(
    dataset: PlannedDataset,
    layout: Layout,
    windows: Windowing,
    store: Location,
    window_s: float | None = None,
) -> Estimate:
    """Estimate the size of a plan.

    Units and bytes are those of the whole store, with utterances that the dataset lacks.

    Args:
        dataset: The dataset and its plan.
        layout: Shapes of the store.
        windows: Windowing of the encoder.
        store: The store, which need not exist.
        window_s: Length that the encoder pads each window to, in seconds; None if it does not.
    """
    plan, changes = dataset.shown, dataset.changes
    n_units = dataset.plan.n_units
    first = pc.equal(plan.table["piece"], 0)
    unreadable = pc.sum(pc.equal(plan.table["n_samples"].filter(first), 0)).as_py() or 0
    compared = (
        {} if changes is None else {kind: getattr(changes, kind) for kind in (*KINDS, "dropped")}
    )
    padded: dict[str, Any] = {}
    if window_s is not None:
        found = count_windows(plan.table, windows, window_s)
        padded = {
            "window_s": window_s,
            "windows": found.count,
            "encoded_hours": found.encoded_hours,
        }
    return Estimate(
        utterances=plan.n_utterances,
        unreadable=unreadable,
        hours=plan.audio_seconds(windows.geometry.sample_rate_hz) / 3600,
        units=n_units,
        frames=plan.n_frames,
        bytes=n_units * layout.slot_bytes,
        free_bytes=open_backend(store).free_bytes(),
        frames_per_unit=plan.frames_per_unit,
        **compared,
        **padded,
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

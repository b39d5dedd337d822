"""Cost of encoders that pad every clip to a window of fixed length, such as Whisper's 30 s."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoders.windows import Windowing
from pipeline.errors import counted
from pipeline.events import Observer
from pipeline.extract.encoder_setup import EncoderSetup
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.format.plan import Plan

_NOTABLE = 1.5
"""Largest ratio of encoded to planned audio without a note."""


@dataclass(frozen=True)
class FixedWindows:
    """Windows that a plan takes.

    Attributes:
        count: Number of windows.
        window_s: Length that each is padded to, in seconds.
    """

    count: int
    window_s: float

    @property
    def encoded_hours(self) -> float:
        """Hours of audio that are encoded, padding included."""
        return self.count * self.window_s / 3600

    def describe(self, hours: float) -> str | None:
        """Describe the cost of the padding in one line.

        Args:
            hours: Hours of audio.

        Returns:
            None if the padding costs little.
        """
        if self.encoded_hours <= _NOTABLE * hours:
            return None
        return (
            f"each utterance is padded to whole windows of {self.window_s:g} s: "
            f"{counted(self.count, 'window')}, {_short(self.encoded_hours)} h of encoding for "
            f"{_short(hours)} h of audio"
        )


def count_windows(rows: pa.Table, windows: Windowing, window_s: float) -> FixedWindows:
    """Count the windows of rows of a plan.

    Args:
        rows: Rows of a plan: utterances, and pieces of long ones. Unreadable ones count nothing.
        windows: Windowing of long utterances.
        window_s: Length that each window is padded to, in seconds.
    """
    n_samples = rows["n_samples"].to_numpy()
    is_short = n_samples <= windows.max_window_s * windows.geometry.sample_rate_hz
    count = int(np.count_nonzero(is_short & (n_samples > 0)))
    long = rows.select(["n_samples", "piece_start", "n_frames"]).filter(pa.array(~is_short))
    for row in long.to_pylist():
        start, stop = row["piece_start"], row["piece_start"] + row["n_frames"]
        count += sum(start <= one.keep_start < stop for one in windows.plan(row["n_samples"]))
    return FixedWindows(count, window_s)


def note_fixed_windows(
    setup: EncoderSetup, plan: Plan, backend: Backend, observer: Observer
) -> None:
    """Tell the user what the padding costs in the units that are not committed."""
    window_s = setup.description.window_limit_s
    if window_s is None:
        return
    committed = pa.array(sorted(index_files.committed_units(backend)), pa.int32())
    missing = plan.table.filter(pc.invert(pc.is_in(plan.table["unit"], committed)))
    if not len(missing):
        return
    found = count_windows(missing, setup.windows, window_s)
    seconds = plan.restricted_to(missing).audio_seconds(setup.geometry.sample_rate_hz)
    line = found.describe(seconds / 3600)
    if line is not None:
        observer.note(line)


def _short(hours: float) -> str:
    """Format a number with two digits, or all of those before the point."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"

"""The plan of a source: its utterances cut into pieces and assigned to units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.identity import SOXR_KEY
from pipeline.audio.resample import SOXR_RESAMPLER, needs_soxr
from pipeline.encoders.windows import Windowing
from pipeline.errors import first_few
from pipeline.extract.planning.comparison import compare_rows
from pipeline.extract.planning.missing import note_missing, require_some_file
from pipeline.extract.planning.replanning import Unstored, refresh_plan, unchanged_pieces
from pipeline.extract.planning.scan import MIXED, RATE, mixed_channels, scan
from pipeline.sources.base import Source
from pipeline.store.format.plan import Plan, choose_frames_per_unit, make_plan, round_up_to_chunk

_NONE = Unstored()


def plan_source(
    source: Source,
    windowing: Windowing,
    frames_per_unit: int | None,
    stored: Plan | None = None,
    progress: Callable[[int], None] = lambda done: None,
    unstored: Unstored = _NONE,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Plan a source, or extend the stored plan by rows that were added to the source.

    Args:
        source: The dataset.
        windowing: Windows of the encoder, at whose boundaries long recordings are cut.
        frames_per_unit: Capacity of a unit for a new plan; None adapts it to the corpus.
        stored: The stored plan; None for a new one.
        progress: As for `scan`.
        unstored: Source rows of the stored plan whose audio may have changed.
        note: Receives lines for the user about missing files, mixed channels, and recordings that
            cannot be completed.

    Returns:
        The plan; `stored` itself if nothing has changed.

    Raises:
        SourceError: Rows of the stored plan are missing, moved, or have other audio, except for
            those of `unstored`; or no audio file exists.
    """
    facts: dict[str, Any] = {"fingerprint": source.fingerprint}
    if (
        stored is not None
        and stored.source["fingerprint"] == source.fingerprint
        and not unstored.n_retried
    ):
        return stored
    require_some_file(source)
    rows = scan(source, windowing.geometry, progress)
    note_missing(source, rows, note)
    rate_hz = windowing.geometry.sample_rate_hz
    if any(needs_soxr(rate, rate_hz) for rate in pc.unique(rows[RATE]).to_pylist() if rate):
        facts[SOXR_KEY] = SOXR_RESAMPLER
    for line in mixed_channels(rows):
        note(line)
    rows = rows.drop_columns([RATE, MIXED])
    if stored is None:
        if frames_per_unit is None:
            frames_per_unit = choose_frames_per_unit(rows["n_frames"].to_numpy().astype(np.int64))
        capacity = round_up_to_chunk(frames_per_unit)
        return make_plan(cut_into_pieces(rows, capacity, windowing), facts, capacity)
    retried = unstored.retried
    stored = refresh_plan(stored, rows, retried) if retried else stored
    n_known, changed = compare_rows(stored, rows, source, unstored)
    stored = refresh_plan(stored, rows, changed) if changed else stored
    fresh = pa.concat_tables([rows.take(pa.array(retried, pa.int64())), rows.slice(n_known)])
    added = cut_into_pieces(fresh, stored.frames_per_unit, windowing)
    if unstored.pieces is not None:
        pieces, changed_names = unchanged_pieces(unstored.pieces, rows)
        added = pa.concat_tables([pieces.select(added.column_names), added])
        if changed_names:
            note(
                f"not completed: {first_few(changed_names)}: some pieces are stored, and all must "
                "come from the same audio. Restore the file and retry, or choose another store="
            )
    plan = stored.extended(added) if len(added) else stored
    return Plan(plan.table, plan.frames_per_unit, plan.utterances_per_slot, facts)


def cut_into_pieces(rows: pa.Table, frames_per_unit: int, windowing: Windowing) -> pa.Table:
    """Cut recordings that are longer than a unit into pieces, at boundaries of their windows.

    Args:
        rows: Result of `scan`, one row per utterance.
        frames_per_unit: Capacity of a unit in frames.
        windowing: Windows of the encoder.

    Returns:
        The rows, with one row per piece of each cut recording. The pieces of a recording follow
        each other and cover its frames exactly. A recording whose windows are longer than a unit
        is not cut: it cannot be extracted with units of this size.
    """
    long = np.flatnonzero(rows["n_frames"].to_numpy() > frames_per_unit)
    parts, n_handled = [], 0
    for i in long.tolist():
        pieces = _pieces(rows.slice(i, 1).to_pylist()[0], frames_per_unit, windowing)
        before = rows.slice(n_handled, i - n_handled)
        parts += [before, pa.Table.from_pylist(pieces, schema=rows.schema)]
        n_handled = i + 1
    return pa.concat_tables([*parts, rows.slice(n_handled)]).combine_chunks()


def _pieces(row: dict[str, Any], capacity: int, windowing: Windowing) -> list[dict[str, Any]]:
    """Cut one recording into pieces of whole windows, each of at most `capacity` frames."""
    spans: list[tuple[int, int]] = []
    for window in windowing.plan(row["n_samples"]):
        start, stop = window.keep_start, window.keep_stop
        if stop - start > capacity:
            return [row]
        if spans and stop - spans[-1][0] <= capacity:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return [
        row | {"n_frames": stop - start, "piece": i, "n_pieces": len(spans), "piece_start": start}
        for i, (start, stop) in enumerate(spans)
    ]

"""The plan of a source: its utterances cut into pieces and assigned to units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.resample import SOXR_RESAMPLER, needs_soxr
from pipeline.encoders.windows import Windowing
from pipeline.errors import first_few
from pipeline.extract.planning.matching import Match, current_numbers, match_rows
from pipeline.extract.planning.missing import check_missing, require_some_file
from pipeline.extract.planning.replanning import Unstored, refresh_plan, unchanged_pieces
from pipeline.extract.planning.scan import (
    MIXED,
    RATE,
    Probing,
    mixed_channels,
    probe_in_threads,
    scan,
)
from pipeline.extract.stages import malloc
from pipeline.sources.base import Source
from pipeline.store.format.identity import SOXR_KEY
from pipeline.store.format.plan import (
    NUMBERED,
    Plan,
    choose_frames_per_unit,
    make_plan,
    round_up_to_chunk,
)
from pipeline.store.format.tombstones import with_tombstones
from pipeline.store.labels import IntArray, Labels


@dataclass(frozen=True)
class Scanning:
    """How a dataset is scanned, and who is told.

    Attributes:
        progress: Called with the number of headers read so far.
        note: Receives lines for the user about missing files, mixed channels, and recordings that
            cannot be completed.
        probing: Reads the headers.
    """

    progress: Callable[[int], None] = lambda done: None
    note: Callable[[str], None] = lambda text: None
    probing: Probing = probe_in_threads


_SILENT = Scanning()


@dataclass(frozen=True)
class Replan:
    """The plan of a dataset that may have changed.

    Attributes:
        plan: The plan; the stored one itself if nothing has changed.
        numbers: Number of the utterance of each row: int64 [n_rows].
        match: How the rows were matched; None if nothing has changed.
    """

    plan: Plan
    numbers: IntArray
    match: Match | None = None


def plan_source(
    source: Source,
    windowing: Windowing,
    frames_per_unit: int | None,
    scanning: Scanning = _SILENT,
) -> Plan:
    """Plan a source.

    Args:
        source: The dataset.
        windowing: Windows of the encoder, at whose boundaries long recordings are cut.
        frames_per_unit: Capacity of a unit; None adapts it to the corpus.
        scanning: How it is scanned.

    Raises:
        SourceError: No audio file exists.
    """
    rows, facts = _scan(source, windowing, scanning)
    if frames_per_unit is None:
        frames_per_unit = choose_frames_per_unit(rows["n_frames"].to_numpy())
    capacity = round_up_to_chunk(frames_per_unit)
    return make_plan(cut_into_pieces(rows, capacity, windowing), facts, capacity)


def replan_source(
    source: Source,
    windowing: Windowing,
    stored: Plan,
    unstored: Unstored,
    labels: Labels | None = None,
    scanning: Scanning = _SILENT,
) -> Replan:
    """Extend the plan of a store by what is new or replaced in its dataset.

    Units of the stored plan do not change, except that an utterance of which nothing is extracted
    takes the facts of its present audio. Rows of the dataset that were dropped from the store are
    not planned again, unless `unstored.restores` says so.

    Args:
        source: The dataset.
        windowing: Windows of the encoder.
        stored: The stored plan.
        unstored: Its utterances that readers do not show.
        labels: The newest labels of the store.
        scanning: How it is scanned.

    Raises:
        SourceError: The audio of an extracted utterance cannot be read any more, or no audio file
            exists.
    """
    numbered = 0 if labels is None else labels.numbered
    is_planned = stored.source.get(NUMBERED, 0) == numbered  # else a driver was killed in between
    is_same = is_planned and stored.source["fingerprint"] == source.fingerprint
    ids = source.ids()
    if not unstored.restores:
        ids = with_tombstones(ids, stored.table["id"])
    if is_same and not unstored.n_retried:
        numbers = current_numbers(stored, labels, ids)
        if numbers is not None:
            return Replan(stored, numbers)
    rows, facts = _scan(source, windowing, scanning)
    if numbered:
        facts[NUMBERED] = numbered
    named = rows.set_column(rows.column_names.index("id"), rows.schema.field("id"), ids)
    match = match_rows(stored, named, source, unstored, labels)
    row_of = match.rows
    retried = np.array([n for n in unstored.retried if row_of[n] >= 0], np.int64)
    refreshed = np.union1d(retried, match.numbers[match.refreshed])
    plan = refresh_plan(stored, rows, refreshed, row_of) if len(refreshed) else stored
    column = rows.column_names.index("row")
    numbered = rows.set_column(column, rows.schema.field(column), pa.array(match.numbers))
    fresh = numbered.take(pa.array(np.concatenate([row_of[retried], match.new])))
    added = cut_into_pieces(fresh, plan.frames_per_unit, windowing)
    if unstored.pieces is not None:
        pieces, changed_names = unchanged_pieces(unstored.pieces, rows, row_of)
        added = pa.concat_tables([pieces.select(added.column_names), added])
        if changed_names:
            scanning.note(
                f"not completed: {first_few(changed_names)}: some pieces are stored, and all must "
                "come from the same audio. Restore the file and retry, or choose another store="
            )
    plan = plan.extended(added) if len(added) else plan
    plan = Plan(plan.table, plan.frames_per_unit, plan.utterances_per_slot, facts)
    return Replan(plan, match.numbers, match)


def _scan(
    source: Source, windowing: Windowing, scanning: Scanning
) -> tuple[pa.Table, dict[str, Any]]:
    """Scan a source; return its rows for `make_plan`, and the facts that the plan states of it."""
    facts: dict[str, Any] = {"fingerprint": source.fingerprint}
    is_here = scanning.probing is probe_in_threads
    if is_here:  # the nodes of a cluster may have files of their own
        require_some_file(source)
    rows = scan(source, windowing.geometry, scanning.progress, scanning.probing)
    if pc.max(rows["n_bytes"]).as_py() == 0:
        require_some_file(source)
    check_missing(source, rows, scanning.note, is_here)
    for line in mixed_channels(rows):
        scanning.note(line)
    rate_hz = windowing.geometry.sample_rate_hz
    if any(needs_soxr(rate, rate_hz) for rate in pc.unique(rows[RATE]).to_pylist() if rate):
        facts[SOXR_KEY] = SOXR_RESAMPLER
    rows = rows.drop_columns([RATE, MIXED])
    malloc.trim()  # of what the scan allocated, the plan of a million utterances keeps half
    return rows, facts


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

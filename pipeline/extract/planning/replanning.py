"""Utterances that are planned again: deferred ones, and quarantined ones on request.

Both are planned in units that are appended to the plan; committed units stay as they are. The
newest record of an utterance counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import DEFERRED, OK, QUARANTINED
from pipeline.store.labels import IntArray, Labels


@dataclass(frozen=True)
class Unstored:
    """Utterances of the stored plan, by number, as far as readers do not show them.

    Their audio may change.

    Attributes:
        retried: Quarantined utterances without stored pieces, to plan again as they are now.
        pieces: Plan rows of quarantined pieces to plan again, of recordings of which other pieces
            are stored. Their audio must be what it was, because all pieces come from one content.
        hidden: All of which no piece is stored, or one is quarantined.
        pending: Whole utterances of which no unit is committed.
        complete: Of a store with labels, all of which every piece is stored: those that the labels
            lack were shown before.
        restores: Whether utterances that were dropped are planned again.
    """

    retried: Sequence[int] = ()
    pieces: pa.Table | None = None
    hidden: Sequence[int] | IntArray = ()
    pending: Sequence[int] | IntArray = ()
    complete: Sequence[int] | IntArray = ()
    restores: bool = False

    @property
    def n_retried(self) -> int:
        """Utterances to plan again."""
        n_recordings = 0 if self.pieces is None else len(pc.unique(self.pieces["row"]))
        return len(self.retried) + n_recordings


CONTENT = ("n_samples", "n_bytes", "fingerprint")
"""Plan columns that describe the audio of an utterance: if one differs, it is another audio."""


def deferred_rows(store: Location, plan: Plan, geometry: FrameGeometry) -> pa.Table:
    """Return plan rows, with true lengths, for deferred utterances that have no later unit yet.

    Utterances are deferred if their true length did not fit into their unit.

    Args:
        store: The store.
        plan: The plan of the store.
        geometry: Geometry of the encoder.

    Returns:
        Table with the schema of the plan, sorted by source row and piece.
    """
    columns = ["row", "piece", "unit", "status", "n_samples"]
    table = index_files.read_index(store, columns=columns)
    deferred = table.filter(pc.equal(table["status"], DEFERRED)).to_pylist()
    if not deferred:
        return plan.table.slice(0, 0)
    planned = _with_rows(plan.table, [record["row"] for record in deferred]).to_pylist()
    latest = {(row["row"], row["piece"]): row for row in planned}  # the plan is sorted by unit
    added = []
    for record in deferred:
        planned_row = latest[record["row"], record["piece"]]
        if planned_row["unit"] > record["unit"]:
            continue
        if planned_row["n_pieces"] == 1:  # a piece of a cut recording keeps its planned length
            n_samples = record["n_samples"]
            planned_row |= {"n_samples": n_samples, "n_frames": geometry.n_frames(n_samples)}
        added.append(planned_row)
    added.sort(key=lambda planned_row: (planned_row["row"], planned_row["piece"]))
    return pa.Table.from_pylist(added, schema=plan.table.schema)


def find_unstored(
    store: Location, plan: Plan, retry: bool, labels: Labels | None = None
) -> Unstored:
    """Find the utterances whose audio may change without changing features of the store.

    Args:
        store: The store.
        plan: The plan of the store.
        retry: Whether quarantined utterances are planned again.
        labels: The newest labels of the store; utterances that they lack are not retried.
    """
    columns = ["row", "piece", "n_pieces", "unit", "status"]
    index = index_files.read_index(store, columns=columns)
    complete, shown_index = np.empty(0, np.int64), index
    if labels is not None:
        pieces, first = index_files.complete_utterances(index)
        complete, shown_index = index_files.numbers(pieces["row"])[first[:-1]], labels.shown(index)
    n = plan.n_numbers
    rows, units = (plan.table[name].to_numpy() for name in ("row", "unit"))
    stored = _mask(index.filter(pc.equal(index["status"], OK))["row"].to_numpy(), n)
    shown = stored & ~_mask(lost_pieces(index, plan)["row"].to_numpy(), n)
    is_committed = _mask(np.array(index_files.committed_units(store), np.int64), plan.n_units)
    whole = _mask(rows[plan.table["n_pieces"].to_numpy() == 1], n)
    return Unstored(
        retried=rows_to_retry(shown_index, plan) if retry else (),
        pieces=lost_pieces(shown_index, plan) if retry else None,
        hidden=np.flatnonzero(_mask(rows, n) & ~shown),
        pending=np.flatnonzero(whole & ~_mask(rows[is_committed[units]], n)),
        complete=complete,
    )


def rows_to_retry(index: pa.Table, plan: Plan) -> list[int]:
    """Return the source rows of quarantined utterances that can be planned again, ascending.

    These have no later unit and no stored piece. The retry gets a new unit, so recorded failures
    of the old unit do not affect it; they stay, because a revoked unit must be extracted as before.

    Args:
        index: Rows of all committed units: row, unit and status.
        plan: The plan of the store.
    """
    quarantined = _latest_unit_by_row(index.filter(pc.equal(index["status"], QUARANTINED)))
    with_features = set(index.filter(pc.equal(index["status"], OK))["row"].to_pylist())
    planned = _latest_unit_by_row(_with_rows(plan.table, quarantined))
    return sorted(
        source_row
        for source_row, unit in quarantined.items()
        if source_row not in with_features and planned[source_row] <= unit
    )


def lost_pieces(index: pa.Table, plan: Plan) -> pa.Table:
    """Return the quarantined pieces of recordings of which other pieces are stored.

    A recording is cut anew whenever it is planned without stored pieces; the newest cut counts. A
    piece with a later unit is not among them.

    Args:
        index: Rows of all committed units: row, piece, unit and status.
        plan: The plan of the store.

    Returns:
        Their rows of the plan, by source row and piece.
    """
    done = index.filter(pc.equal(index["status"], OK))
    lost = index.filter(pc.equal(index["status"], QUARANTINED))
    if not len(lost):
        return plan.table.slice(0, 0)
    lost = lost.filter(pc.is_in(lost["row"], value_set=pc.unique(done["row"])))
    affected = _with_rows(plan.table, lost["row"].to_pylist()).to_pylist()
    n_pieces = {row["row"]: row["n_pieces"] for row in affected}  # the plan is sorted by unit
    latest = {
        (row["row"], row["piece"]): row
        for row in affected
        if row["n_pieces"] == n_pieces[row["row"]]
    }
    stored = _with_rows(done, n_pieces)
    for place in zip(stored["row"].to_pylist(), stored["piece"].to_pylist(), strict=True):
        latest.pop(place, None)
    is_lost = set(zip(*(lost[name].to_pylist() for name in ("row", "piece", "unit")), strict=True))
    found = [row for place, row in latest.items() if (*place, row["unit"]) in is_lost]
    found.sort(key=lambda row: (row["row"], row["piece"]))
    return pa.Table.from_pylist(found, schema=plan.table.schema)


def unchanged_pieces(
    pieces: pa.Table, rows: pa.Table, rows_of: IntArray
) -> tuple[pa.Table, list[str]]:
    """Select the pieces of recordings whose audio is what it was when they were planned.

    Args:
        pieces: Result of `lost_pieces`.
        rows: Result of `scan`, one row per utterance.
        rows_of: Row of each utterance, by number; -1 if the dataset lacks it.

    Returns:
        Their plan rows; and, for the user, what has changed in each of the other recordings.
    """
    kept, changed = [], {}
    for piece in pieces.to_pylist():
        row = int(rows_of[piece["row"]])
        if row < 0:
            continue
        current = {name: rows[name][row].as_py() for name in CONTENT}
        different = [name for name in CONTENT if current[name] != piece[name]]
        if not different:
            kept.append(piece)
        elif not current["n_bytes"]:
            changed[piece["id"]] = "it cannot be read"
        else:
            name = different[0]
            changed[piece["id"]] = f"its {name} was {piece[name]}, now {current[name]}"
    found = [f"{name!r} ({what})" for name, what in changed.items()]
    return pa.Table.from_pylist(kept, schema=pieces.schema), found


def refresh_plan(stored: Plan, rows: pa.Table, refreshed: IntArray, rows_of: IntArray) -> Plan:
    """Update the columns `CONTENT` of the stored plan.

    Args:
        stored: The stored plan.
        rows: Result of `scan`, one row per utterance.
        refreshed: Numbers of the utterances to update, which are in the dataset.
        rows_of: Row of each utterance, by number.
    """
    numbers = stored.table["row"].to_numpy()
    is_refreshed = np.isin(numbers, refreshed)
    # Row 0 is a placeholder where `if_else` takes the stored value.
    current = rows.take(pa.array(np.where(is_refreshed, rows_of[numbers], 0)))
    table = stored.table
    for name in CONTENT:
        column = table.column_names.index(name)
        values = pc.if_else(
            pa.array(is_refreshed), current[name].combine_chunks(), table[name].combine_chunks()
        )
        table = table.set_column(column, table.schema.field(name), values)
    return Plan(table, stored.frames_per_unit, stored.utterances_per_slot, stored.source)


def _with_rows(table: pa.Table, source_rows: Iterable[int]) -> pa.Table:
    """Return the rows of a table whose column `row` is one of `source_rows`."""
    values = pa.array(sorted(set(source_rows)), pa.int64())
    return table.filter(pc.is_in(table["row"], value_set=values))


def _mask(numbers: IntArray, n: int) -> npt.NDArray[np.bool_]:
    """Return which of the numbers below `n` are given: bool [n]."""
    mask = np.zeros(n, bool)
    mask[numbers[numbers < n]] = True
    return mask


def _latest_unit_by_row(table: pa.Table) -> dict[int, int]:
    """Return the highest unit of each source row, from the columns `row` and `unit`."""
    latest = table.group_by("row").aggregate([("unit", "max")])
    return dict(zip(latest["row"].to_pylist(), latest["unit_max"].to_pylist(), strict=True))

"""Utterances that are planned again: deferred ones, and quarantined ones on request.

Both are planned in units that are appended to the plan; committed units stay as they are. The
newest record of an utterance counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.coordination.worker_failures import forget_failures
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import DEFERRED, OK, QUARANTINED

REFRESHED = ("n_samples", "n_bytes", "fingerprint")
"""Plan columns that may change for an utterance without features."""


def deferred_rows(store: Location, plan: Plan, geometry: FrameGeometry) -> pa.Table:
    """Return plan rows, with true lengths, for deferred utterances that have no later unit yet.

    Utterances are deferred if their true length did not fit into their unit.

    Args:
        store: The store.
        plan: The plan of the store.
        geometry: Geometry of the encoder.
    """
    columns = ["row", "piece", "unit", "status", "n_samples"]
    table = index_files.read_index(store, columns=columns)
    deferred = table.filter(pc.equal(table["status"], DEFERRED)).to_pylist()
    if not deferred:
        return plan.table.slice(0, 0)
    sources = pa.array(sorted({row["row"] for row in deferred}), pa.int64())
    planned = plan.table.filter(pc.is_in(plan.table["row"], value_set=sources)).to_pylist()
    latest = {(row["row"], row["piece"]): row for row in planned}  # the plan is sorted by unit
    rows = []
    for record in deferred:
        row = latest[record["row"], record["piece"]]
        if row["unit"] > record["unit"]:
            continue
        if row["n_pieces"] == 1:
            n_samples = record["n_samples"]
            row = row | {"n_samples": n_samples, "n_frames": geometry.n_frames(n_samples)}
        rows.append(row)
    rows.sort(key=lambda row: (row["row"], row["piece"]))
    return pa.Table.from_pylist(rows, schema=plan.table.schema)


def quarantined_rows(store: Location, plan: Plan) -> list[int]:
    """Return the source rows to retry: quarantined, with no later unit and no stored piece.

    The recorded failures of their units are removed, so that the retry does not start isolated.
    """
    table = index_files.read_index(store, columns=["row", "unit", "status"])
    quarantined = table.filter(pc.equal(table["status"], QUARANTINED))
    if not len(quarantined):
        return []
    with_features = set(table.filter(pc.equal(table["status"], OK))["row"].to_pylist())
    rows, units = plan.table["row"].to_numpy(), plan.table["unit"].to_numpy()
    latest = np.full(int(rows.max(initial=-1)) + 1, -1, np.int64)
    np.maximum.at(latest, rows, units)
    unit_of = dict(zip(*_rows_and_units(quarantined), strict=True))  # later units win
    retried = sorted(
        row for row, unit in unit_of.items() if row not in with_features and latest[row] <= unit
    )
    forget_failures(store, {unit_of[row] for row in retried})
    return retried


def refresh_plan(stored: Plan, rows: pa.Table, retried: Sequence[int]) -> Plan:
    """Update the stored plan with the current headers of the rows to retry.

    Args:
        stored: The stored plan.
        rows: Result of `scan`, one row per utterance.
        retried: Source rows to retry.
    """
    row = stored.table["row"].to_numpy()
    is_retried = np.isin(row, np.array(retried, np.int64)) & (row < len(rows))
    current = rows.take(pa.array(np.where(is_retried, row, 0)))
    table = stored.table
    for name in REFRESHED:
        column = table.column_names.index(name)
        values = pc.if_else(
            pa.array(is_retried), current[name].combine_chunks(), table[name].combine_chunks()
        )
        table = table.set_column(column, table.schema.field(name), values)
    return Plan(table, stored.frames_per_unit, stored.utterances_per_slot, stored.source)


def _rows_and_units(quarantined: pa.Table) -> tuple[list[int], list[int]]:
    ordered = quarantined.sort_by("unit")
    return ordered["row"].to_pylist(), ordered["unit"].to_pylist()

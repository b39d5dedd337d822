"""Utterances that did not fit their unit, as their headers had lied: they are planned once more."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import DEFERRED


def deferred_rows(store: Location, plan: Plan, geometry: FrameGeometry) -> pa.Table:
    """Plan rows for what is deferred and not planned in a later unit yet, with true lengths."""
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
            true = record["n_samples"]
            row = row | {"n_samples": true, "n_frames": geometry.n_frames(true)}
        rows.append(row)
    rows.sort(key=lambda row: (row["row"], row["piece"]))
    return pa.Table.from_pylist(rows, schema=plan.table.schema)

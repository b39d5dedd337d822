"""Another try for quarantined utterances, after their files or the decoder have been mended.

Nothing that is committed is taken back: the utterances are planned once more, in units appended to
the plan, as those are that had to be deferred. Where such a unit commits an utterance as ok, its
old quarantine is history; where it fails again, the newer reason counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.coordination.worker_failures import forget_failures
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import OK, QUARANTINED

RENEWED = ("n_samples", "n_bytes", "fingerprint")
"""What may have changed of an utterance of which nothing is stored."""


def quarantined_rows(store: Location, plan: Plan) -> list[int]:
    """Source rows to try again: quarantined, not planned again yet, and with no piece stored.

    The recorded failures of their units are removed, so that these are not isolated again.
    """
    table = index_files.read_index(store, columns=["row", "unit", "status"])
    lost = table.filter(pc.equal(table["status"], QUARANTINED))
    if not len(lost):
        return []
    stored = set(table.filter(pc.equal(table["status"], OK))["row"].to_pylist())
    rows, units = plan.table["row"].to_numpy(), plan.table["unit"].to_numpy()
    latest = np.full(int(rows.max(initial=-1)) + 1, -1, np.int64)
    np.maximum.at(latest, rows, units)
    found = dict(zip(*_pairs(lost), strict=True))  # later units win
    again = sorted(row for row, unit in found.items() if row not in stored and latest[row] <= unit)
    forget_failures(store, {found[row] for row in again})
    return again


def renew(stored: Plan, rows: pa.Table, again: Sequence[int]) -> Plan:
    """The stored plan, with the facts of the rows that are tried again as they are now.

    Args:
        stored: The plan.
        rows: From `scan`: one row per utterance.
        again: Source rows to try again.
    """
    at = stored.table["row"].to_numpy()
    renewed = np.isin(at, np.array(again, np.int64)) & (at < len(rows))
    now = rows.take(pa.array(np.where(renewed, at, 0)))
    table = stored.table
    for name in RENEWED:
        column = table.column_names.index(name)
        values = pc.if_else(
            pa.array(renewed), now[name].combine_chunks(), table[name].combine_chunks()
        )
        table = table.set_column(column, table.schema.field(name), values)
    return Plan(table, stored.frames_per_unit, stored.utterances_per_slot, stored.source)


def _pairs(lost: pa.Table) -> tuple[list[int], list[int]]:
    ordered = lost.sort_by("unit")
    return ordered["row"].to_pylist(), ordered["unit"].to_pylist()

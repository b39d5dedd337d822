"""Checks at the end of a run: is anything lost, duplicated or left over?"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.store.coordination.ledger import UNKNOWN_UNIT, read_claims
from pipeline.store.coordination.run_log import read_log
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.layout import index_key
from pipeline.store.index import committed_units
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store

NO_OWNER = ("without a claim", "is lost")
"""Words of `verify` for a slot whose owner is unknown."""


def contents(store: Path) -> dict[str, Any]:
    """Return shards, pooled chunks and index rows by unit, relative to their slot."""
    layout = layout_of(read_attributes(store))
    found: dict[str, Any] = {}
    for unit in committed_units(store):
        rows = pq.read_table(store / index_key(unit), partitioning=None).to_pylist()
        slot = rows[0]["slot"]
        for row in rows:
            row.pop("slot")
            if row["frame_start"] is not None:
                row["frame_start"] -= layout.slot_start(slot)
        found[f"unit {unit} rows"] = rows
        for axis, key in enumerate((*layout.shard_keys(slot), layout.pooled_key(slot))):
            found[f"unit {unit} file {axis}"] = (store / key).read_bytes()
    return found


def compare(store: Path, undisturbed: dict[str, Any]) -> list[str]:
    """Return what is lost, duplicated or changed in a store, compared with an undisturbed one.

    The last driver has finished and its workers have ended. It must have left nothing, except slots
    whose owner it cannot know; a repair removes these.
    """
    found = verify_store(store)
    losses = [f"unit {damage.unit}: {damage.problem}" for damage in found.damages]
    losses += [
        f"left behind: {orphan.path}: {orphan.what}"
        for orphan in found.orphans
        if orphan.is_garbage and not any(words in orphan.what for words in NO_OWNER)
    ]
    repair_store(store)
    found = verify_store(store)
    losses += [f"after a repair: {s.path}: {s.what}" for s in found.orphans if s.is_garbage]
    plan = read_plan(store)
    assert plan is not None
    if found.units_committed != plan.n_units:
        losses.append(f"{plan.n_units - found.units_committed} units are not committed")
    now = contents(store)
    rows = [row for name, rows in now.items() if name.endswith("rows") for row in rows]
    seen = Counter(row["row"] for row in rows)
    planned = plan.table["row"].to_pylist()
    losses += [f"row {row} is stored {seen[row]} times" for row in planned if seen[row] != 1]
    names = sorted(undisturbed.keys() | now.keys())
    differing = [name for name in names if undisturbed.get(name) != now.get(name)]
    return losses + [f"{name} differs from the undisturbed store" for name in differing]


def overlaps(store: Path) -> list[str]:
    """Return signs that two drivers ran at the same time: in the log, and in the claims."""
    latest, found = "", []
    began: list[tuple[str, str]] = []
    for event in read_log(store):
        run = event["run_id"]
        if event["event"] == "run_started":
            latest = run
            began.append((event["time"], run))
        elif run != latest and not run.startswith("repair"):
            found.append(f"run {run} continued after run {latest} had started: {event['event']}")
    times = [time for time, _ in began]
    for claim in read_claims(store):
        at = bisect_right(times, claim.time)
        if claim.unit != UNKNOWN_UNIT and (not at or began[at - 1][1] != claim.run_id):
            found.append(f"run {claim.run_id} claimed slot {claim.slot} during another run")
    return found

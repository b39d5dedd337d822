"""What else a store has of its utterances: the plan, the labels, the ledger and the log.

Each function can be called again, whatever an earlier call that was interrupted has done.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DamagedError
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.worker_failures import read_failures
from pipeline.store.documents import read_plan, write_plan
from pipeline.store.format.layout import LOG, failure_key
from pipeline.store.format.plan import Plan
from pipeline.store.format.tombstones import tombstone_of
from pipeline.store.labels import IntArray
from pipeline.store.serialization import json_bytes

_FORGOTTEN = {"n_samples": 0, "n_bytes": 0, "fingerprint": 0}
"""Columns of the plan that describe the audio."""
_TEXTS: dict[str, dict[str, Any]] = {
    "unit_failed": {"error": ""},
    "unit_taken_back": {"problems": []},
}
"""Fields of events of the log that may name an utterance or its file."""


def bury_in_plan(backend: Backend, numbers: IntArray) -> Plan:
    """Replace ids in the plan by tombstones, and forget what it has of their audio.

    How many frames they have stays, because the batches of their units depend on it.

    Returns:
        The plan.

    Raises:
        DamagedError: It is missing or damaged.
    """
    plan = read_plan(backend)
    if plan is None:
        raise DamagedError(f"store {backend} has no plan.parquet; restore it from a copy")
    is_gone = np.isin(plan.table["row"].to_numpy(), numbers)
    if not is_gone.any():
        return plan
    names = zip(plan.table["id"].to_pylist(), is_gone, strict=True)
    ids = pa.array([tombstone_of(n) if gone else n for n, gone in names], pa.string())
    table = plan.table.set_column(0, plan.table.schema.field("id"), ids)
    for name, value in _FORGOTTEN.items():
        i, field = table.schema.get_field_index(name), table.schema.field(name)
        kept = table[name].combine_chunks()
        table = table.set_column(
            i, field, pc.if_else(pa.array(is_gone), pa.scalar(value, field.type), kept)
        )
    buried = replace(plan, table=table)
    if not table.equals(plan.table):
        write_plan(backend, buried)
    return buried


def forget_failures(backend: Backend, plan: Plan, numbers: IntArray) -> None:
    """Remove ids and errors from records of failed attempts at units with dropped utterances."""
    gone = set(numbers.tolist())
    for unit, failures in read_failures(backend).items():
        if unit >= plan.n_units:
            continue
        rows = plan.unit_rows(unit)["row"].to_pylist()
        if gone.isdisjoint(rows):
            continue
        for failure in failures:
            position = failure.position
            is_known = position is not None and position < len(rows)
            if is_known and rows[position] not in gone:
                continue
            cleared = replace(failure, id=None, detail="")
            if cleared != failure:
                backend.put(failure_key(failure.slot), [json_bytes(asdict(cleared))])


def forget_in_log(backend: Backend, units: Collection[int]) -> None:
    """Remove the texts of events of some units from the log, and lines that are damaged."""
    try:
        content = backend.read(LOG)
    except FileNotFoundError:
        return
    lines = [_without_texts(line, units) for line in content.split(b"\n")]
    kept = b"".join(line + b"\n" for line in lines if line)
    if kept != content:
        backend.put(LOG, [kept])


def _without_texts(line: bytes, units: Collection[int]) -> bytes:
    event: Any = None
    with suppress(ValueError, RecursionError):
        event = json.loads(line)
    if not isinstance(event, dict):
        return b""
    texts = _TEXTS.get(str(event.get("event")))
    if texts is None or event.get("unit") not in units:
        return line
    return json.dumps(event | texts).encode()

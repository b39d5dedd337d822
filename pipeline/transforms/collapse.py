"""Collapse: the weighted sum of the layers of a store, as a store of one layer.

The parent is the store that is read. The collapsed store has the same format, and is written unit
by unit with the same claims, lease and commits. So a run can be interrupted and resumed, and can
start before the parent is complete. Every utterance is verified against its checksums when it is
read, so damage is not copied.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DamagedError, NoSpaceError, StoreError
from pipeline.events import Observer, ObserverGroup
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.documents import (
    check_form,
    check_format_shape,
    layout_of,
    read_attributes,
    read_plan,
    resize,
    write_group,
    write_plan,
)
from pipeline.store.format.codecs import checksum
from pipeline.store.format.identity import Identity, check_same
from pipeline.store.format.layout import ATTRIBUTES, COLLAPSED_LAYER, Layout
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import OK, QUARANTINED
from pipeline.store.labels import copy_labels
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.read.shards import ShardReader
from pipeline.store.tensors import decode_into, encode_into, measure
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import commit_unit
from pipeline.transforms.layer_weights import read_weights

Row = dict[str, Any]


@dataclass(frozen=True)
class CollapsedUnit:
    """Report of one unit, with the fields of an extraction's report that the run log needs.

    Attributes:
        unit: Number of the unit.
        slot: Its slot.
        won: False if another attempt had committed it.
        n_ok: Pieces with features.
        n_quarantined: Quarantined pieces.
        n_fp32: Always 0; extraction uses it.
        audio_s: Seconds of audio of the utterances whose first piece is in this unit.
        wall_s: Seconds that the unit took.
        n_bytes: Bytes written.
        seconds: Seconds per stage: sum, write.
    """

    unit: int
    slot: int
    won: bool
    n_ok: int
    n_quarantined: int
    n_fp32: int
    audio_s: float
    wall_s: float
    n_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Collapse:
    """Result of a run.

    Attributes:
        weights: Applied weight of each layer of the parent.
        layers: Layers of the parent.
        units_total: Units of the plan.
        units_committed: Committed units of the collapsed store.
        units_waiting: Units that the parent has not committed yet.
        bytes: Bytes of all committed units.
        wall_seconds: Duration of this run.
    """

    weights: tuple[float, ...]
    layers: tuple[int, ...]
    units_total: int
    units_committed: int
    units_waiting: int
    bytes: int
    wall_seconds: float


def collapse(
    store_path: Location,
    out_path: Location,
    weights: str | Path | Sequence[float] | Tensor,
    softmax: bool = False,
    observer: Observer | None = None,
) -> Collapse:
    """Write the weighted sum over the layers of a store as a store of one layer.

    The sum is that of `FeatureStore.weighted_sum`, encoded by the parent's codec. It depends only
    on the parent's bytes and the weights: an interrupted run that is repeated ends with the same
    bytes as an uninterrupted one.

    Args:
        store_path: The store to read.
        out_path: The store to write, or to resume.
        weights: `average`, one number per layer, or a file of weights (`read_weights`).
        softmax: Apply a softmax to the numbers first.
        observer: Receives the events of the run.

    Returns:
        Progress of the collapsed store.

    Raises:
        ConfigError: The weights do not match the layers of the store.
        IdentityError: The store at `out_path` was made from another parent, or with other weights.
        StoreBusyError: Another driver is running on `out_path`.
        NoSpaceError: The missing units do not fit on the disk.
        StoreError: Another tool has written the arrays at `out_path` in another form.
        DamagedError: The parent is damaged. Committed units are safe.
    """
    start_s = time.perf_counter()
    parent, out = open_backend(store_path), open_backend(out_path)
    if parent.uri == out.uri:
        raise ConfigError(f"a store cannot be collapsed into itself ({out}); give another path")
    attributes = read_attributes(parent)
    numbers = read_weights(weights, len(attributes["layers"]), softmax)
    plan = read_plan(parent)
    if plan is None:
        raise DamagedError(f"store {parent} has no plan.parquet; restore it from a copy")
    run_id = uuid.uuid4().hex[:12]
    with Lease(out, run_id) as lease:
        layout, ledger = _prepare(out, plan, attributes, numbers, parent)
        copy_labels(parent, out)
        committed = set(index_files.committed_units(out))
        ready = [unit for unit in index_files.committed_units(parent) if unit < plan.n_units]
        todo = [unit for unit in ready if unit not in committed]
        _check_space(out, len(todo) * layout.slot_bytes)
        observer = ObserverGroup(RunLogObserver(RunLog(out, run_id)), observer or Observer())
        audio_s = plan.audio_seconds(attributes["sample_rate_hz"])
        observer.planned(plan, len(committed), audio_s)
        if todo:
            check_form(out, layout)
            index_files.drop_cache(out)
            observer.run_started(len(todo))
            collapser = _UnitCollapser(parent, layout_of(attributes), out, layout, numbers)
            for unit in todo:
                n_slots = ledger.n_slots
                slot = ledger.claim(unit, run_id, "collapse", now()).slot
                if slot >= n_slots:
                    resize(out, layout, ledger.n_slots)
                report = collapser.collapse(unit, slot, attributes["sample_rate_hz"])
                observer.unit_committed(report)
                lease.check()
            observer.run_ended([])
        remove_leftovers(out, layout)
        if not index_files.is_compact(out):
            index_files.compact(out)
    n_done = len(index_files.committed_units(out))
    waiting = plan.n_units - len(ready)
    if waiting:
        observer.note(f"{waiting} units of {parent} are not extracted yet; run again when they are")
    return Collapse(
        weights=numbers,
        layers=tuple(attributes["layers"]),
        units_total=plan.n_units,
        units_committed=n_done,
        units_waiting=waiting,
        bytes=n_done * layout.slot_bytes,
        wall_seconds=round(time.perf_counter() - start_s, 3),
    )


def collapsed_identity(
    parent: Identity, layers: Sequence[int], weights: Sequence[float]
) -> Identity:
    """Return the identity of a collapsed store: the parent's, its hash, layers and weights."""
    canonical = json.dumps(parent, sort_keys=True, separators=(",", ":"))
    return {
        **parent,
        "collapse": {
            "parent_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
            "layers": list(layers),
            "weights": list(weights),
        },
    }


def _prepare(
    out: Backend,
    plan: Plan,
    attributes: Mapping[str, Any],
    weights: tuple[float, ...],
    parent: Backend,
) -> tuple[Layout, Ledger]:
    """Create the collapsed store, or check that an existing one is that of this run."""
    layout = replace(
        layout_of(attributes),
        layers=(COLLAPSED_LAYER,),
        frames_per_unit=plan.frames_per_unit,
        utterances_per_slot=plan.utterances_per_slot,
    )
    if not layout.keeps_frames:
        raise StoreError(
            f"store {parent} keeps no frames (extract.keep=[pooled]), so there is nothing to sum; "
            "a weighted sum of its statistics is `torch.einsum('l,uld->ud', w, store.pooled())`"
        )
    identity = collapsed_identity(attributes["identity"], attributes["layers"], weights)
    stored_plan = read_plan(out)
    if out.exists(ATTRIBUTES):
        stored = read_attributes(out)
        check_same(stored["identity"], identity, str(out))
        check_format_shape(stored, layout, out)
    if stored_plan is None or not stored_plan.table.equals(plan.table):
        _check_extends(stored_plan, plan, out)
        write_plan(out, plan)
    ledger = Ledger.open(out, plan.n_units)
    if out.exists(ATTRIBUTES):
        resize(out, layout, ledger.n_slots)
        return layout, ledger
    own = {k: v for k, v in attributes.items() if k != "final_norm"}  # of the parent's last layer
    own["layers"] = list(layout.layers)
    own["identity"] = identity
    own["provenance"] = {
        "created": now(),
        "command": sys.argv[1:],
        "versions": {name: version(name) for name in ("strata-speech", "torch", "numpy")},
        "parent_path": str(parent),
        "parent": attributes["provenance"],
    }
    write_group(out, layout, ledger.n_slots, own)
    return layout, ledger


def _check_extends(stored: Plan | None, plan: Plan, out: Backend) -> None:
    """Check that the parent's plan is the stored one, or extends it."""
    if stored is not None and not stored.table.equals(plan.table.slice(0, len(stored.table))):
        raise StoreError(
            f"store {out} was collapsed from a store with another plan; give another path"
        )


def _check_space(out: Backend, needed: int) -> None:
    free = out.free_bytes()
    if needed > free:
        raise NoSpaceError(
            f"{needed / 1e9:.2f} GB are needed in {out}, {free / 1e9:.2f} GB are free; free "
            "space, or give another path"
        )


class _UnitCollapser:
    """Sums the layers of one unit at a time, in the memory of one unit."""

    def __init__(
        self,
        parent: Backend,
        layout: Layout,
        out: Backend,
        collapsed: Layout,
        weights: Sequence[float],
    ) -> None:
        self._parent = parent
        self._from = layout
        self._out = out
        self._to = collapsed
        self._weights = weights
        self._shards = ShardReader(parent, layout)
        self._buffer = UnitBuffer(collapsed)

    def collapse(self, unit: int, slot: int, rate_hz: int) -> CollapsedUnit:
        """Collapse a unit of the parent and commit it to `slot`.

        Raises:
            DamagedError: The parent's unit is damaged.
        """
        start_s = time.perf_counter()
        index = index_files.read_unit(self._parent, unit)
        rows = index.to_pylist()
        ends = [self._span(row)[1] for row in rows if row["status"] == OK]
        self._buffer.start(max(ends, default=0))
        self._buffer.blank(0, max(ends, default=0))
        done = [self._sum(row, slot) for row in rows]
        summed_s = time.perf_counter()
        outcome = commit_unit(self._out, self._buffer, unit, slot, _as_index(done, index))
        ok = [row for row in done if row["status"] == OK]
        return CollapsedUnit(
            unit=unit,
            slot=slot,
            won=outcome.won,
            n_ok=len(ok),
            n_quarantined=sum(row["status"] == QUARANTINED for row in done),
            n_fp32=0,
            audio_s=sum(row["n_samples"] for row in ok if row["piece"] == 0) / rate_hz,
            wall_s=time.perf_counter() - start_s,
            n_bytes=outcome.n_bytes,
            seconds={"sum": summed_s - start_s, "write": time.perf_counter() - summed_s},
        )

    def _span(self, row: Row) -> tuple[int, int]:
        """Return the first frame of a piece within its slot, and one past the last."""
        start = row["frame_start"] - self._from.slot_start(row["slot"])
        return start, start + row["n_frames"]

    def _sum(self, row: Row, slot: int) -> Row:
        """Sum a piece into the buffer; return its row of the collapsed index."""
        if row["status"] != OK:
            return row | {"slot": slot}
        start, stop = self._span(row)
        total = torch.zeros((stop - start, self._from.dim), dtype=torch.float32)
        values = torch.empty_like(total)
        for axis, weight in enumerate(self._weights):
            stored = self._shards.read(axis, row["slot"], start, stop)
            scales = self._shards.scales(axis, row["slot"], row["position"])
            self._verify(checksum(stored, scales), axis, row)
            if weight != 0.0:
                decode_into(self._from.codec, stored, values, scales)
                total.add_(values.mul_(weight))
        codec, largest = self._to.codec, float(total.abs().max())
        if not codec.fits(-largest, largest):
            reason = f"the weighted sum reaches {largest:.3g}, more than {codec.name} holds"
            quarantined = {"status": QUARANTINED, "reason": reason, "n_frames": 0, "slot": slot}
            return row | quarantined | {"frame_start": None, "crc32c": None}
        own = self._buffer.scales[row["position"], 0]
        own[...] = measure(codec, total)
        encode_into(codec, total, self._buffer.frames[0, start:stop], own)
        checksums = self._buffer.seal(row["position"], start, stop)
        first = self._to.slot_start(slot) + start
        return row | {"slot": slot, "frame_start": first, "crc32c": list(checksums)}

    def _verify(self, found: int, axis: int, row: Row) -> None:
        if found != row["crc32c"][axis]:
            key = self._from.shard_key(axis, row["slot"])
            raise DamagedError(
                f"{self._parent.locate(key)}: utterance {row['id']!r} has a wrong checksum; "
                f"run `strata verify {self._parent} --repair`, then `strata extract`"
            )


def _as_index(rows: Sequence[Row], parent: pa.Table) -> pa.Table:
    """Return the parent's index rows with the changed columns."""
    table = parent
    for name in ("slot", "status", "reason", "frame_start", "n_frames", "crc32c"):
        i = table.schema.get_field_index(name)
        item = table.schema.field(i)
        table = table.set_column(i, item, pa.array([row[name] for row in rows], item.type))
    return table.combine_chunks()

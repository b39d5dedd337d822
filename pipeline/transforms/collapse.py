"""A weighted sum of the layers of a store, as a store of one layer: a twelfth of the bytes.

It is the same format, written unit by unit with the same claims, lease and commits, so it can be
interrupted and run again, verified, and collapsed further while its parent still grows. Every
utterance is checked against its checksums as it is read: damage is not passed on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from pipeline.store.format.codecs import Stored
from pipeline.store.format.identity import Identity, check_same
from pipeline.store.format.layout import ATTRIBUTES, COLLAPSED_LAYER, Layout
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import OK, QUARANTINED
from pipeline.store.maintain.cleanup import sweep
from pipeline.store.read.shards import ShardReader
from pipeline.store.tensors import encode_into
from pipeline.store.write.documents import (
    UnitBuffer,
    check_format_shape,
    commit_unit,
    crc32c,
    layout_of,
    read_attributes,
    read_plan,
    resize,
    write_group,
    write_plan,
)
from pipeline.transforms.layer_weights import read_weights

Row = dict[str, Any]


@dataclass(frozen=True)
class CollapsedUnit:
    """What became of one unit; the run log has it, in the form of an extraction's.

    Attributes:
        unit: The unit.
        slot: Where it lies.
        won: False if another driver had committed it before.
        n_ok: Pieces with features.
        n_quarantined: Pieces without.
        n_fp32: 0: it belongs to extraction.
        audio_s: Seconds of audio in the features.
        wall_s: Seconds that it took.
        n_bytes: Bytes written.
        seconds: Where the time went: sum, write.
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
    """What a collapsed store holds at the end of a run.

    Attributes:
        weights: Of the parent's layers, as they were applied.
        layers: Those layers.
        units_total: Units of the plan.
        units_committed: Units that are done.
        units_waiting: Units that the parent has not committed either; run again when it has.
        bytes: Bytes of the features, all committed units together.
        wall_seconds: Seconds that this run took.
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
    """Writes the weighted sum over the layers of a store as a store of one layer.

    The sum is that of `FeatureStore.weighted_sum`, encoded by the parent's codec. It depends only
    on the parent's bytes and the weights: an interrupted run that is repeated ends with the same
    bytes as an uninterrupted one.

    Args:
        store_path: The store to read.
        out_path: The store to write, or to go on with.
        weights: `average`, one number per layer, or where to find them (`read_weights`).
        softmax: Put the numbers through a softmax first.
        observer: Receives the events of the run.

    Returns:
        What the collapsed store holds now.

    Raises:
        ConfigError: The weights do not fit the store.
        IdentityError: `out_path` holds something else.
        StoreBusyError: Another driver is at work on it.
        NoSpaceError: The rest does not fit on the disk.
        DamagedError: The parent is damaged; what was committed before is safe.
    """
    began = time.perf_counter()
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
        committed = set(index_files.committed_units(out))
        ready = [unit for unit in index_files.committed_units(parent) if unit < plan.n_units]
        todo = [unit for unit in ready if unit not in committed]
        _check_space(out, len(todo) * layout.slot_bytes)
        observer = ObserverGroup(RunLogObserver(RunLog(out, run_id)), observer or Observer())
        audio_s = plan.audio_seconds(attributes["sample_rate_hz"])
        observer.planned(plan, len(committed), audio_s)
        if todo:
            index_files.drop_cache(out)
            observer.run_started(len(todo))
            work = _Collapsing(parent, layout_of(attributes), out, layout, numbers)
            for unit in todo:
                n_slots = ledger.n_slots
                slot = ledger.claim(unit, run_id, "collapse", now()).slot
                if slot >= n_slots:
                    resize(out, layout, ledger.n_slots)
                report = work.unit(unit, slot, attributes["sample_rate_hz"])
                observer.unit_committed(report)
                lease.check()
            observer.run_ended([])
        sweep(out, layout)
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
        wall_seconds=round(time.perf_counter() - began, 3),
    )


def collapsed_identity(
    parent: Identity, layers: Sequence[int], weights: Sequence[float]
) -> Identity:
    """The identity of a collapsed store: its parent's, and what was done to it."""
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
    """Makes the collapsed store, or makes sure that it is the one that this run would make."""
    layout = Layout(
        (COLLAPSED_LAYER,),
        attributes["feature_dim"],
        plan.frames_per_unit,
        plan.utterances_per_slot,
        layout_of(attributes).codec,
    )
    identity = collapsed_identity(attributes["identity"], attributes["layers"], weights)
    known = read_plan(out)
    if out.exists(ATTRIBUTES):
        stored = read_attributes(out)
        check_same(stored["identity"], identity, str(out))
        check_format_shape(stored, layout, out)
    if known is None or not known.table.equals(plan.table):
        _check_extends(known, plan, out)
        write_plan(out, plan)
    ledger = Ledger.open(out, plan.n_units)
    if out.exists(ATTRIBUTES):
        resize(out, layout, ledger.n_slots)
        return layout, ledger
    own = {k: v for k, v in attributes.items() if k != "final_norm"}  # it fits no sum of layers
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


def _check_extends(known: Plan | None, plan: Plan, out: Backend) -> None:
    """The parent's plan may have grown since, but the units there are must be the same."""
    if known is not None and not known.table.equals(plan.table.slice(0, len(known.table))):
        raise StoreError(
            f"store {out} was collapsed from a store with another plan; give another path"
        )


def _check_space(out: Backend, needed: int) -> None:
    free = out.free_bytes()
    if needed > free:
        raise NoSpaceError(
            f"{needed / 1e9:.2f} GB to write to {out}, but only {free / 1e9:.2f} GB are free"
        )


class _Collapsing:
    """Sums one unit after the other, in one unit's memory."""

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

    def unit(self, unit: int, slot: int, rate_hz: int) -> CollapsedUnit:
        """Sums a unit of the parent and commits it to `slot`.

        Raises:
            DamagedError: The parent's unit is damaged.
        """
        began = time.perf_counter()
        index = index_files.read_unit(self._parent, unit)
        rows = index.to_pylist()
        ends = [self._within(row)[1] for row in rows if row["status"] == OK]
        self._buffer.start(max(ends, default=0))
        self._buffer.blank(0, max(ends, default=0))
        done = [self._sum(row, slot) for row in rows]
        summed = time.perf_counter()
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
            wall_s=time.perf_counter() - began,
            n_bytes=outcome.n_bytes,
            seconds={"sum": summed - began, "write": time.perf_counter() - summed},
        )

    def _within(self, row: Row) -> tuple[int, int]:
        """First frame of a piece within its slot, and one past the last."""
        start = row["frame_start"] - self._from.slot_start(row["slot"])
        return start, start + row["n_frames"]

    def _sum(self, row: Row, slot: int) -> Row:
        """Sums a piece into the buffer; its row in the collapsed index."""
        if row["status"] != OK:
            return row | {"slot": slot}
        start, stop = self._within(row)
        total = torch.zeros((stop - start, self._from.dim), dtype=torch.float32)
        for axis, weight in enumerate(self._weights):
            stored = self._shards.read(axis, row["slot"], start, stop)
            self._check(stored, axis, row)
            if weight != 0.0:
                total.add_(torch.from_numpy(stored).float().mul_(weight))
        codec, largest = self._to.codec, float(total.abs().max())
        if not codec.fits(-largest, largest):
            reason = f"the weighted sum reaches {largest:.3g}, more than {codec.name} holds"
            lost = {"status": QUARANTINED, "reason": reason, "n_frames": 0, "slot": slot}
            return row | lost | {"frame_start": None, "crc32c": None}
        encode_into(codec, total, self._buffer.frames[0, start:stop])
        checksums = self._buffer.seal(row["position"], start, stop)
        first = self._to.slot_start(slot) + start
        return row | {"slot": slot, "frame_start": first, "crc32c": list(checksums)}

    def _check(self, stored: Stored, axis: int, row: Row) -> None:
        if crc32c(stored) != row["crc32c"][axis]:
            key = self._from.shard_key(axis, row["slot"])
            raise DamagedError(
                f"{self._parent.locate(key)}: utterance {row['id']!r} has a wrong checksum; "
                f"run `strata verify {self._parent} --repair`, then `strata extract`"
            )


def _as_index(rows: Sequence[Row], parent: pa.Table) -> pa.Table:
    """The parent's index rows, with what the sum has changed."""
    table = parent
    for name in ("slot", "status", "reason", "frame_start", "n_frames", "crc32c"):
        i = table.schema.get_field_index(name)
        item = table.schema.field(i)
        table = table.set_column(i, item, pa.array([row[name] for row in rows], item.type))
    return table.combine_chunks()

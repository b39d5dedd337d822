"""Collapse: the weighted sum of the layers of a store, as a store of one layer.

The parent is the store that is read. The collapsed store has the same format, and is written unit
by unit with the same claims, lease and commits. So a run can be interrupted and resumed, and can
start before the parent is complete. Every utterance is verified against its checksums when it is
read, so damage is not copied.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DamagedError, StoreError
from pipeline.events import Observer
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.documents import (
    check_format_shape,
    layout_of,
    read_attributes,
    read_plan,
    write_plan,
)
from pipeline.store.format.codecs import checksum
from pipeline.store.format.identity import Identity, check_same
from pipeline.store.format.layers import COLLAPSED, COLLAPSED_LAYER, LAYER_NAMES
from pipeline.store.format.layout import (
    ATTRIBUTES,
    DROPPED_LAYERS,
    FORMAT_3,
    LABEL_ATTRIBUTES,
    Layout,
)
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import DROPPED, OK, QUARANTINED
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.labels import copy_labels, read_labels
from pipeline.store.read.shards import ShardReader
from pipeline.store.tensors import decode_into, encode_into, measure
from pipeline.store.write.buffer import ALL_LAYERS, UnitBuffer
from pipeline.transforms.layer_weights import read_weights
from pipeline.transforms.tokens_left import note_tokens_of_layers
from pipeline.transforms.writer import Final, Target, open_ledger, own_provenance, write_units

Row = dict[str, Any]
_OF_PARENT = ("final_norm", DROPPED_LAYERS, LAYER_NAMES, *LABEL_ATTRIBUTES)
_AHEAD_BYTES = 32 << 20  # of all layers that are fetched together
"""Attributes about the layers and labels of the parent; `copy_labels` states the labels."""


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
    layers = tuple(layout_of(attributes).axes)
    numbers = read_weights(weights, len(layers), softmax)
    plan = read_plan(parent)
    if plan is None:
        raise DamagedError(f"store {parent} has no plan.parquet; restore it from a copy")
    read_labels(parent)  # fails if they are damaged, before anything is written
    observer = observer or Observer()
    run_id = uuid.uuid4().hex[:12]
    with Lease(out, run_id) as lease:
        target, ledger = _prepare(out, plan, attributes, numbers, parent)
        layout = target.layout
        copy_labels(parent, out)
        committed = set(index_files.committed_units(out))
        ready = [unit for unit in index_files.committed_units(parent) if unit < plan.n_units]
        todo = [unit for unit in ready if unit not in committed]
        write_units(
            target,
            ledger,
            todo,
            lambda: _Collapser(parent, layout_of(attributes), layout, numbers),
            lease,
            run_id,
            observer,
        )
    n_done = len(index_files.committed_units(out))
    waiting = plan.n_units - len(ready)
    if waiting:
        observer.note(f"{waiting} units of {parent} are not extracted yet; run again when they are")
    note_tokens_of_layers(parent, observer)
    return Collapse(
        weights=numbers,
        layers=layers,
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
) -> tuple[Target, Ledger]:
    """Create the collapsed store, or check that an existing one is that of this run."""
    whole = layout_of(attributes)
    layout = replace(
        whole,
        layers=(COLLAPSED_LAYER,),
        names=(COLLAPSED,),
        dropped_layers=(),
        frames_per_unit=plan.frames_per_unit,
        utterances_per_slot=plan.utterances_per_slot,
    )
    if not layout.keeps_frames:
        raise StoreError(
            f"store {parent} keeps no frames (extract.keep=[pooled]), so there is nothing to sum; "
            "a weighted sum of its statistics is `torch.einsum('l,uld->ud', w, store.pooled())`"
        )
    identity = collapsed_identity(attributes["identity"], tuple(whole.axes), weights)
    stored_plan = read_plan(out)
    if out.exists(ATTRIBUTES):
        stored = read_attributes(out)
        check_same(stored["identity"], identity, str(out))
        check_format_shape(stored, layout, out)
    if stored_plan is None or not stored_plan.table.equals(plan.table):
        _check_extends(stored_plan, plan, out)
        write_plan(out, plan)
    own = {k: v for k, v in attributes.items() if k not in _OF_PARENT}
    has_dropped = are_tombstones(plan.table["id"]).any()
    own["format_version"] = FORMAT_3 if has_dropped else layout.format_version
    own["layers"] = list(layout.layers)
    own["identity"] = identity
    own["provenance"] = own_provenance(parent_path=str(parent), parent=attributes["provenance"])
    target = Target(out, layout, plan, attributes["sample_rate_hz"])
    return target, open_ledger(target, own)


def _check_extends(stored: Plan | None, plan: Plan, out: Backend) -> None:
    """Check that the parent's plan is the stored one, or extends it."""
    if stored is not None and not stored.table.equals(plan.table.slice(0, len(stored.table))):
        raise StoreError(
            f"store {out} was collapsed from a store with another plan, or utterances were dropped "
            "from one of the two; give another path, or drop them from the other one, too"
        )


class _Collapser:
    """Sums the layers of one unit at a time, in the memory of one unit."""

    kind, stage = "collapse", "sum"

    def __init__(
        self, parent: Backend, layout: Layout, collapsed: Layout, weights: Sequence[float]
    ) -> None:
        self._parent = parent
        self._from = layout
        self._to = collapsed
        self._weights = weights
        self._shards = ShardReader(parent, layout)

    def make(self, unit: int, slot: int, buffer: UnitBuffer, final: Final) -> pa.Table:
        """Collapse a unit of the parent.

        Raises:
            DamagedError: The parent's unit is damaged.
        """
        index = index_files.read_unit(self._parent, unit)
        rows = index.to_pylist()
        ends = [self._span(row)[1] for row in rows if row["status"] == OK]
        buffer.start(max(ends, default=0))
        buffer.blank(0, max(ends, default=0))
        done, expected = [], 0
        for number, row in enumerate(rows):
            if number == expected:
                expected = self._expect(rows, number)
            done.append(self._sum(row, slot, buffer))
        final(ALL_LAYERS)
        return _as_index(done, index)

    def _expect(self, rows: Sequence[Row], first: int) -> int:
        """Start fetching all layers of the next pieces; return the number of the one after them."""
        n_bytes, number = 0, first
        while number < len(rows) and n_bytes < _AHEAD_BYTES:
            row = rows[number]
            number += 1
            if row["status"] != OK:
                continue
            start, stop = self._span(row)
            for axis in self._from.kept_axes:
                self._shards.prefetch_coded(axis, row["slot"], start, stop, row["position"])
            n_bytes += (stop - start) * self._from.frame_bytes * len(self._from.kept_axes)
        return number

    def _span(self, row: Row) -> tuple[int, int]:
        """Return the first frame of a piece within its slot, and one past the last."""
        start = row["frame_start"] - self._from.slot_start(row["slot"])
        return start, start + row["n_frames"]

    def _sum(self, row: Row, slot: int, buffer: UnitBuffer) -> Row:
        """Sum a piece into the buffer; return its row of the collapsed index."""
        if row["status"] == DROPPED:
            return row | {"slot": slot, "frame_start": None, "n_frames": 0}
        if row["status"] != OK:
            return row | {"slot": slot}
        start, stop = self._span(row)
        total = torch.zeros((stop - start, self._from.dim), dtype=torch.float32)
        values = torch.empty_like(total)
        for axis, weight in zip(self._from.kept_axes, self._weights, strict=True):
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
        own = buffer.scales[row["position"], 0]
        own[...] = measure(codec, total)
        encode_into(codec, total, buffer.frames[0, start:stop], own)
        checksums = buffer.seal(row["position"], start, stop)
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

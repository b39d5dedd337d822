"""Utterances leave the units that they are in.

A unit that keeps other utterances is written into a new slot, with zeros in place of the frames
that are dropped: these are holes, which take no space where the file system has such. Each other
utterance keeps its bytes, its checksums, its unit and its position. Then one object is replaced,
the index file of the unit, and the old slot is deleted. Objects of a slot are never changed: a
reader that has one open goes on to read it, and one that opens it later finds that it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DamagedError
from pipeline.events import Observer
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import UNKNOWN_UNIT, Ledger, read_claims
from pipeline.store.coordination.run_log import now
from pipeline.store.documents import resize
from pipeline.store.format.layout import INDEX_DIR, Layout, index_key
from pipeline.store.format.records import DROPPED, OK, RESERVED_NAMES
from pipeline.store.format.tombstones import tombstone_of
from pipeline.store.labels import IntArray
from pipeline.store.maintain.cleanup import slots_on_disk
from pipeline.store.read.shards import ShardReader
from pipeline.store.serialization import parquet_bytes
from pipeline.store.tokens.stored import move_tokens
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import SlotWriter, discard_slot

Row = dict[str, Any]
KIND = "drop"
"""Kind of the worker, as the ledger has it."""
_SYNC_THREADS = 4


def units_with(backend: Backend, numbers: IntArray) -> list[int]:
    """Return the units that have utterances to drop, which they have not dropped yet."""
    index = index_files.read_index(backend, columns=["unit", "row", "status"])
    is_due = np.isin(index_files.numbers(index["row"]), numbers)
    due = index.filter(pa.array(is_due))
    due = due.filter(pc.not_equal(due["status"], DROPPED))
    return sorted(pc.unique(due["unit"]).to_pylist())


def drop_from_units(
    backend: Backend,
    layout: Layout,
    n_units: int,
    todo: Sequence[int],
    numbers: IntArray,
    lease: Lease,
    run_id: str,
    observer: Observer,
) -> None:
    """Remove utterances from the committed units of a store.

    Args:
        backend: The store.
        layout: Its shapes.
        n_units: Units of its plan.
        todo: Units that have some of the utterances.
        numbers: Numbers of the utterances.
        lease: Held by the caller.
        run_id: Its run.
        observer: Receives progress, and a warning for a unit that cannot be read.

    Raises:
        NoSpaceError: A unit does not fit on the disk. Units before it are done.
        StoreError: The store cannot be written.
    """
    ledger = Ledger.open(backend, n_units)
    rewriter = _Rewriter(backend, layout, ledger, run_id)
    observer.units_rewritten(0, len(todo))
    for done, unit in enumerate(todo, start=1):
        table = index_files.read_unit(backend, unit)
        goes = np.isin(index_files.numbers(table["row"]), numbers)
        had = pc.equal(table["status"], OK).to_numpy(zero_copy_only=False)
        if (had & goes).any() and (had & ~goes).any():
            try:
                rewriter.move(unit, table, goes)
            except DamagedError as error:
                # The unit is done again by the plan, which leaves the utterances out.
                discard_slot(backend, layout, int(table["slot"][0].as_py()))
                backend.delete(index_key(unit))
                backend.sync(INDEX_DIR)
                observer.note(
                    f"WARNING: unit {unit} is damaged ({error}), so its commit was revoked; the "
                    "command that made the store makes it again, without what was dropped"
                )
        else:
            cleared = _cleared(table, goes, keeps_place=False)
            backend.put(index_key(unit), [parquet_bytes(cleared)])
            if not (had & ~goes).any():
                discard_slot(backend, layout, int(table["slot"][0].as_py()))
        observer.units_rewritten(done, len(todo))
        lease.check()


def remove_unused_slots(backend: Backend, layout: Layout, n_units: int) -> None:
    """Delete the data of slots that no utterance of a committed unit is in.

    Slots of units that are not committed stay: a zombie worker may still commit one.
    """
    index = index_files.read_index(backend, columns=["unit", "slot", "status"])
    committed = set(pc.unique(index["unit"]).to_pylist())
    has_dropped = set(index_files.of_status(index, DROPPED)["unit"].to_pylist())
    used = set(index_files.of_status(index, OK)["slot"].to_pylist())
    pairs = zip(index["unit"].to_pylist(), index["slot"].to_pylist(), strict=True)
    used |= {slot for unit, slot in pairs if unit not in has_dropped}
    owners = {claim.slot: claim.unit for claim in read_claims(backend)}
    for slot in slots_on_disk(backend) - used:
        owner = owners.get(slot, slot if slot < n_units else None)
        if owner is None or (owner != UNKNOWN_UNIT and owner in committed):
            discard_slot(backend, layout, slot)


class _Rewriter:
    """Writes units into new slots without some of their utterances, in the memory of one unit."""

    def __init__(self, backend: Backend, layout: Layout, ledger: Ledger, run_id: str) -> None:
        self._backend, self._layout, self._ledger = backend, layout, ledger
        self._run_id = run_id
        self._shards = ShardReader(backend, layout)
        self._buffer: UnitBuffer | None = None

    def move(self, unit: int, table: pa.Table, goes: npt.NDArray[np.bool_]) -> None:
        """Write a unit into a new slot and commit it there.

        Bytes are copied as they are: the checksums of the index tell about damage as before.

        Args:
            unit: Its number.
            table: Its index rows.
            goes: Which of them are dropped: bool [n_rows].

        Raises:
            DamagedError: Something of the unit cannot be read.
        """
        backend, layout = self._backend, self._layout
        slot = int(table["slot"][0].as_py())
        self._buffer = buffer = self._buffer or UnitBuffer(layout)
        rows = table.to_pylist()
        gone = [row for row, is_dropped in zip(rows, goes, strict=True) if is_dropped]
        ranges = list(_kept_ranges(layout, slot, [*gone, *_dropped(rows)]))
        self._read(slot, buffer, ranges, [row["position"] for row in gone])
        n_slots = self._ledger.n_slots
        new = self._ledger.claim(unit, self._run_id, KIND, now()).slot
        if new >= n_slots:
            resize(backend, layout, self._ledger.n_slots)
        with (
            ThreadPoolExecutor(_SYNC_THREADS) as pool,
            SlotWriter(backend, buffer, unit, new, pool.map) as writer,
        ):
            for start, stop in ranges:
                writer.write(start, stop)
            writer.complete()
            writer.check()
            writer.publish()
        first = layout.slot_start(slot)
        places = ((row["frame_start"], row["n_frames"]) for row in [*gone, *_dropped(rows)])
        dropped = [(start - first, start - first + n) for start, n in places if start is not None]
        move_tokens(backend, slot, new, dropped)
        moved = _moved(_cleared(table, goes, keeps_place=True), layout, slot, new)
        backend.put(index_key(unit), [parquet_bytes(moved)])
        discard_slot(backend, layout, slot)

    def _read(
        self, slot: int, buffer: UnitBuffer, ranges: list[tuple[int, int]], gone: list[int]
    ) -> None:
        """Read the ranges of a slot into the buffer, and its statistics and scales."""
        layout = self._layout
        if layout.keeps_frames:
            for axis in layout.kept_axes:
                for start, stop in ranges:
                    frames = buffer.frames[axis, start:stop]
                    self._shards.read_into(axis, slot, start, [frames])
        if layout.keeps_pooled:
            buffer.pooled[:] = self._shards.pooled(slot)
            buffer.pooled[gone] = np.nan
        if layout.keeps_scales:
            buffer.scales[:] = self._shards.scale_chunk(slot)
            buffer.scales[gone] = np.nan


def _dropped(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == DROPPED]


def _kept_ranges(layout: Layout, slot: int, gone: list[Row]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of frames of a slot that are not those of some utterances."""
    first, at = layout.slot_start(slot), 0
    placed = [row for row in gone if row["frame_start"] is not None and row["n_frames"]]
    for row in sorted(placed, key=lambda row: row["frame_start"]):
        start = row["frame_start"] - first
        if start > at:
            yield at, start
        at = start + row["n_frames"]
    if at < layout.frames_per_unit:
        yield at, layout.frames_per_unit


def _cleared(table: pa.Table, goes: npt.NDArray[np.bool_], keeps_place: bool) -> pa.Table:
    """Return index rows in which nothing of the dropped utterances is left.

    Args:
        table: Rows of a unit.
        goes: Which of them are dropped: bool [n_rows].
        keeps_place: Whether they keep the place of their frames, which are zero.
    """
    mask = pa.array(goes)
    values: dict[str, Any] = {
        "status": DROPPED,
        "reason": None,
        "n_samples": 0,
        "source_rate_hz": None,
        "flags": [],
        "crc32c": None,
    }
    if not keeps_place:
        values |= {"frame_start": None, "n_frames": 0}
    values |= dict.fromkeys(name for name in table.column_names if name not in RESERVED_NAMES)
    for i, field in enumerate(table.schema):
        column = table[field.name].combine_chunks()
        if field.name == "id":
            names = zip(column.to_pylist(), goes, strict=True)
            new = pa.array([tombstone_of(n) if gone else n for n, gone in names], field.type)
        elif field.name in values:
            kept = column.to_pylist()
            value = values[field.name]
            if pa.types.is_nested(field.type):
                pairs = zip(kept, goes, strict=True)
                new = pa.array([value if gone else item for item, gone in pairs], field.type)
            else:
                new = pc.if_else(mask, pa.scalar(value, field.type), column)
        else:
            continue
        table = table.set_column(i, field, new)
    return table.combine_chunks()


def _moved(table: pa.Table, layout: Layout, slot: int, new: int) -> pa.Table:
    """Return index rows of a unit that is in another slot."""
    distance = layout.slot_start(new) - layout.slot_start(slot)
    places = {
        "slot": pa.array([new] * len(table), pa.int32()),
        "frame_start": pc.add(table["frame_start"], pa.scalar(distance, pa.int64())),
    }
    for name, values in places.items():
        i = table.schema.get_field_index(name)
        table = table.set_column(i, table.schema.field(i), values)
    return table.combine_chunks()

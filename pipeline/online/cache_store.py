"""A store without a dataset: utterances are added as programs encode them.

It is a store like any other, with these differences:

- Its plan has the utterances of the committed units, and those of the unit that is being written.
  It is written before each commit. Units that an ended process has planned and not committed are
  left out of it, and their numbers are given to other utterances.
- An utterance's number (`row`) is given once, also if it is never committed: the plan keeps the
  next one. So a zombie process, which could only commit the unit that it has planned, adds no
  second utterance under a number.
- Its only column is `fingerprint`, a number that stands for the samples of the waveform.

Any number of processes add to it. Each takes the lease for the moment in which it commits, and then
looks at what is committed: an id is committed once.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IdentityError, StoreBusyError, StoreError
from pipeline.online.collecting import Encoded, Placed, divide
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import now
from pipeline.store.documents import (
    group_attributes,
    layout_of,
    read_attributes,
    read_plan,
    resize,
    write_plan,
)
from pipeline.store.format.identity import check_same, make_identity
from pipeline.store.format.layout import ATTRIBUTES, CACHED, Layout
from pipeline.store.format.plan import SCHEMA, Plan
from pipeline.store.format.records import OK, Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.creation import check_no_units, create_store
from pipeline.store.write.slot import commit_unit

if TYPE_CHECKING:
    from pipeline.encoders.encoder import SpeechEncoder

FINGERPRINT = "fingerprint"
"""Column of the store with the fingerprint of each waveform."""
LEASE_S = 600.0
"""Seconds that a process waits for others to commit."""
_LOOK_S = 0.1
_NEXT_ROW = "next_row"
_FRAMES_PER_UTTERANCE = 32
"""Fewest frames per utterance of a full unit; bounds the arrays of statistics."""
_SAMPLE_BYTES = 4


def make_layout(encoder: SpeechEncoder, codec: Any, frames_per_unit: int) -> Layout:
    """Return the shapes of the arrays of a new store."""
    per_slot = max(1, frames_per_unit // _FRAMES_PER_UTTERANCE)
    return Layout(
        encoder.layers, encoder.dim, frames_per_unit, per_slot, codec, names=encoder.layer_names
    )


def open_cache(backend: Backend, encoder: SpeechEncoder, layout: Layout) -> Layout:
    """Create a store, or check that it has features of the encoder; return its shapes.

    Args:
        backend: Where it is.
        encoder: The encoder.
        layout: Shapes of its arrays, if it is created.

    Raises:
        IdentityError: It has other features, or was not made by `cached`.
        StoreError: It cannot be written.
    """
    if not backend.exists(ATTRIBUTES):
        with held(backend):
            if not backend.exists(ATTRIBUTES):
                check_no_units(backend)
                write_plan(backend, _empty_plan(layout))
                create_store(backend, layout, 0, _attributes(encoder, layout))
                return layout
    attributes = read_attributes(backend)
    identity = attributes["identity"]
    if identity.get("source", {}).get("kind") != CACHED:
        raise IdentityError(
            f"store {backend} was extracted from a dataset, and `cached` adds nothing to it; read "
            "it with open_store, or give another store"
        )
    stored = layout_of(attributes)
    if stored.dropped_layers:
        raise IdentityError(
            f"layers {list(stored.dropped_layers)} were dropped from store {backend}, so `cached` "
            "cannot return all layers of the encoder from it; load the encoder with layers=[...] "
            "that you need, and give another store"
        )
    wanted = replace(
        layout,
        frames_per_unit=stored.frames_per_unit,
        utterances_per_slot=stored.utterances_per_slot,
    )
    check_same(identity, _identity(encoder, wanted), str(backend))
    return stored


@contextmanager
def held(backend: Backend) -> Iterator[tuple[Lease, str]]:
    """Hold a store for a moment; wait while other processes do.

    Yields:
        The lease, and the id of its run.

    Raises:
        StoreBusyError: Others have held it for `LEASE_S`.
    """
    run_id = uuid.uuid4().hex[:12]
    end_s = time.monotonic() + LEASE_S
    with ExitStack() as stack:
        while True:
            try:
                lease = stack.enter_context(Lease(backend, run_id))
                break
            except StoreBusyError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(_LOOK_S)
        yield lease, run_id


def add(backend: Backend, layout: Layout, utterances: Sequence[Encoded], rate_hz: int) -> list[str]:
    """Commit utterances, except those that the store has by now.

    Args:
        backend: The store.
        layout: Its shapes.
        utterances: With distinct ids.
        rate_hz: Sample rate of the waveforms.

    Returns:
        Ids that the store has with other audio, because another process has committed it.

    Raises:
        StoreError: The store cannot be written.
        StoreBusyError: Other processes hold the store.
    """
    with held(backend) as (lease, run_id):
        if layout_of(read_attributes(backend)) != layout:
            raise StoreError(
                f"store {backend} was changed by another program since it was opened (were layers "
                "dropped?); open it again"
            )
        committed = committed_fingerprints(backend, [item.id for item in utterances])
        new = [item for item in utterances if item.id not in committed]
        for unit in divide(new, layout):
            while not _commit(backend, layout, unit, rate_hz, lease, run_id):
                pass  # a zombie process has committed a unit under the same number
        index_files.refresh_cache(backend)
    return [
        item.id
        for item in utterances
        if committed.get(item.id, item.fingerprint) != item.fingerprint
    ]


def other_audio(name: str, backend: Backend) -> str:
    """Return the message about an id whose waveform is not the one of the store."""
    return (
        f"utterance {name!r} is in store {backend} with other audio: its waveform has changed. "
        "Give it another id, or give another store; audio that is augmented anew every time "
        "cannot be cached"
    )


def committed_fingerprints(backend: Backend, names: Sequence[str]) -> dict[str, int]:
    """Return the fingerprint of each of the given ids of which a store has all pieces."""
    if not index_files.committed_units(backend):
        return {}
    columns = ["unit", "id", "row", "piece", "n_pieces", "status", FINGERPRINT]
    table = index_files.read_index(backend, columns=columns)
    table = table.filter(pc.is_in(table["id"], pa.array(names, pa.string())))
    pieces, first = index_files.complete_utterances(table)
    done = pieces.take(index_files.row_numbers(first[:-1]))
    return dict(zip(done["id"].to_pylist(), done[FINGERPRINT].to_pylist(), strict=True))


def _commit(
    backend: Backend,
    layout: Layout,
    placed: Sequence[Placed],
    rate_hz: int,
    lease: Lease,
    run_id: str,
) -> bool:
    """Plan and commit one unit; return whether this process has committed it."""
    plan, unit = _with_unit(backend, layout, placed)
    lease.check()
    write_plan(backend, plan)
    ledger = Ledger.open(backend, plan.n_units)
    slot = ledger.claim(unit, run_id, CACHED, now()).slot
    resize(backend, layout, ledger.n_slots)
    buffer = UnitBuffer(layout)
    buffer.start(sum(item.piece.n_frames for item in placed))
    records, at = [], 0
    for row, item in zip(_rows_of(plan, unit), placed, strict=True):
        stop = at + item.piece.n_frames
        buffer.frames[:, at:stop] = item.piece.frames
        buffer.scales[row["position"]] = item.piece.scales
        records.append(
            Record(
                id=row["id"],
                row=row["row"],
                position=row["position"],
                status=OK,
                piece=row["piece"],
                n_pieces=row["n_pieces"],
                frame_start=layout.slot_start(slot) + at,
                n_frames=item.piece.n_frames,
                n_samples=item.encoded.n_samples,
                source_rate_hz=rate_hz,
                flags=item.encoded.flags,
                crc32c=buffer.seal(row["position"], at, stop),
            )
        )
        at = stop
    prints = pa.array([item.encoded.fingerprint for item in placed], pa.int64())
    index = records_table(records, unit, slot, pa.table({FINGERPRINT: prints}))
    return commit_unit(backend, buffer, unit, slot, index).won


def _rows_of(plan: Plan, unit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = plan.unit_rows(unit).to_pylist()
    return rows


def _with_unit(backend: Backend, layout: Layout, placed: Sequence[Placed]) -> tuple[Plan, int]:
    """Return the plan with one more unit, under the lowest number that is free, and that number.

    Units that are planned and not committed are left out.
    """
    stored = read_plan(backend) or _empty_plan(layout)
    committed = index_files.committed_units(backend)
    unit = next(number for number in range(len(committed) + 1) if number not in committed)
    kept = stored.table.filter(pc.is_in(stored.table["unit"], pa.array(committed, pa.int32())))
    next_row = int(stored.source[_NEXT_ROW])
    earlier = _rows_of_pieces(kept, placed)
    rows = []
    for position, item in enumerate(placed):
        row = earlier.get(item.encoded.id)
        if row is None:
            row, next_row = next_row, next_row + 1
        rows.append(_plan_row(item, row, unit, position, layout))
    table = pa.concat_tables([kept, pa.Table.from_pylist(rows, schema=SCHEMA)])
    table = table.sort_by([("unit", "ascending"), ("position", "ascending")]).combine_chunks()
    source = stored.source | {_NEXT_ROW: next_row}
    return Plan(table, stored.frames_per_unit, stored.utterances_per_slot, source), unit


def _rows_of_pieces(kept: pa.Table, placed: Sequence[Placed]) -> dict[str, int]:
    """Return the number of the recording whose first piece was just committed; else nothing."""
    if placed[0].number == 0:
        return {}
    name = placed[0].encoded.id
    rows = kept.filter(pc.equal(kept["id"], name))["row"]
    return {name: pc.max(rows).as_py()}  # an ended process may have left pieces, too


def _plan_row(item: Placed, row: int, unit: int, position: int, layout: Layout) -> dict[str, Any]:
    encoded = item.encoded
    return {
        "id": encoded.id,
        "row": row,
        "n_samples": encoded.n_samples,
        "n_frames": item.piece.n_frames,
        "unit": unit,
        "position": position,
        "piece": item.number,
        "n_pieces": len(encoded.pieces),
        "piece_start": item.number * layout.frames_per_unit,
        "n_bytes": encoded.n_samples * _SAMPLE_BYTES,
        "fingerprint": encoded.fingerprint & 0xFFFFFFFF,
    }


def _empty_plan(layout: Layout) -> Plan:
    source = {"fingerprint": CACHED, _NEXT_ROW: 0}
    return Plan(SCHEMA.empty_table(), layout.frames_per_unit, layout.utterances_per_slot, source)


def _identity(encoder: SpeechEncoder, layout: Layout) -> dict[str, Any]:
    columns = [{"name": FINGERPRINT, "type": "int64", "class_names": None}]
    source = {"kind": CACHED, "columns": columns}
    audio = {"waveforms": "as given", "sample_rate_hz": encoder.sample_rate_hz}
    return make_identity(source, audio, encoder.identity, layout)


def _attributes(encoder: SpeechEncoder, layout: Layout) -> dict[str, Any]:
    provenance = {
        "created": now(),
        "command": sys.argv[1:],
        "versions": {name: version(name) for name in ("strata-speech", "torch", "numpy")},
        "weights": encoder.weights_source,
        "device": str(encoder.device),
    }
    return group_attributes(
        layout,
        encoder.geometry,
        encoder.final_norm,
        encoder.n_model_layers,
        _identity(encoder, layout),
        provenance,
    )

"""The writer of stores that are made from other stores, without the encoder.

A transform says which plan and attributes its store has, and makes the values of one unit at a time
(`UnitMaker`). Everything else is the same for all: claims and commits as in an extraction,
progress, the removal of what failed attempts have left, and the compaction of the index.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NoSpaceError
from pipeline.events import Observer, ObserverGroup
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Map
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.documents import check_form, resize
from pipeline.store.format.layout import ATTRIBUTES, Layout
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import OK, QUARANTINED
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.creation import create_store
from pipeline.store.write.slot import SlotWriter

_SYNC_THREADS = 4
"""Files of a unit that are synced at a time."""

Final = Callable[[slice], None]
"""Takes positions on the layer axis whose frames are final, so that they are written meanwhile."""


class UnitMaker(Protocol):
    """Makes the values of one unit at a time, in the memory of one unit.

    Attributes:
        kind: Name of the transform, as the ledger has it.
        stage: What making the values is called in the log.
    """

    kind: str
    stage: str

    def make(self, unit: int, slot: int, buffer: UnitBuffer, final: Final) -> pa.Table:
        """Put the values of a unit into the buffer; return its index rows (`FIELDS`, columns).

        Args:
            unit: Number of the unit.
            slot: Slot that it will be in.
            buffer: Its content is that of another unit. All frames must be set or blanked, also
                those after the last utterance.
            final: Called once for each position on the layer axis, perhaps in several threads; when
                `make` returns, every one must have been passed.
        """


@dataclass(frozen=True)
class Target:
    """A store that a transform writes.

    Attributes:
        backend: Where it is.
        layout: Its shapes.
        plan: Its units; the caller has written it.
        rate_hz: Sample rate of the encoder.
    """

    backend: Backend
    layout: Layout
    plan: Plan
    rate_hz: int


@dataclass(frozen=True)
class WrittenUnit:
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
        seconds: Seconds per stage: making the values, and the rest of the write.
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


def own_provenance(**facts: Any) -> dict[str, Any]:
    """Return the provenance of a store that is made now: command, versions, and more facts."""
    names = ("strata-speech", "torch", "numpy")
    return {
        "created": now(),
        "command": sys.argv[1:],
        "versions": {name: version(name) for name in names},
        **facts,
    }


def open_ledger(target: Target, attributes: Mapping[str, Any]) -> Ledger:
    """Create the documents of the store, or give those it has the length of its slot axis.

    Args:
        target: The store.
        attributes: Attributes of the group, if it is created.
    """
    backend, layout = target.backend, target.layout
    ledger = Ledger.open(backend, target.plan.n_units)
    if backend.exists(ATTRIBUTES):
        resize(backend, layout, ledger.n_slots)
    else:
        create_store(backend, layout, ledger.n_slots, dict(attributes))
    return ledger


def check_space(backend: Backend, needed: int) -> None:
    """Check that bytes fit on the disk of a store.

    Raises:
        NoSpaceError: They do not.
    """
    free = backend.free_bytes()
    if needed > free:
        raise NoSpaceError(
            f"{needed / 1e9:.2f} GB are needed in {backend}, {free / 1e9:.2f} GB are free; free "
            "space, or give another path"
        )


def write_units(
    target: Target,
    ledger: Ledger,
    todo: Sequence[int],
    make_maker: Callable[[], UnitMaker],
    lease: Lease,
    run_id: str,
    observer: Observer,
) -> None:
    """Write and commit units, then tidy up the store.

    Args:
        target: The store.
        ledger: Its claims.
        todo: Units to write.
        make_maker: Called once, if there is a unit to write.
        lease: Held by the caller.
        run_id: Run of the lease.
        observer: Receives the events of the run.

    Raises:
        NoSpaceError: The units do not fit on the disk.
        StoreBusyError: Another driver has taken over the lease.
        StoreError: The store cannot be written, or another tool has written its arrays.
    """
    backend, layout, plan = target.backend, target.layout, target.plan
    check_space(backend, len(todo) * layout.slot_bytes)
    observer = ObserverGroup(RunLogObserver(RunLog(backend, run_id)), observer)
    n_committed = len(index_files.committed_units(backend))
    observer.planned(plan, n_committed, plan.audio_seconds(target.rate_hz))
    if todo:
        check_form(backend, layout)
        index_files.drop_cache(backend)
        observer.run_started(len(todo))
        maker, buffer = make_maker(), UnitBuffer(layout)
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            for unit in todo:
                n_slots = ledger.n_slots
                slot = ledger.claim(unit, run_id, maker.kind, now()).slot
                if slot >= n_slots:
                    resize(backend, layout, ledger.n_slots)
                written = _write_unit(target, maker, buffer, unit, slot, pool.map)
                observer.unit_committed(written)
                lease.check()
        observer.run_ended([])
    remove_leftovers(backend, layout)
    if not index_files.is_compact(backend):
        index_files.compact(backend)


def _write_unit(
    target: Target, maker: UnitMaker, buffer: UnitBuffer, unit: int, slot: int, run: Map
) -> WrittenUnit:
    start_s = time.perf_counter()
    n_frames = target.layout.frames_per_unit
    with SlotWriter(target.backend, buffer, unit, slot, run) as writer:
        index = maker.make(unit, slot, buffer, lambda layers: writer.write(0, n_frames, layers))
        made_s = time.perf_counter()
        writer.complete()
        outcome = writer.commit(index)
    ok = index.filter(pc.equal(index["status"], OK))
    n_samples = pc.sum(ok.filter(pc.equal(ok["piece"], 0))["n_samples"]).as_py() or 0
    end_s = time.perf_counter()
    return WrittenUnit(
        unit=unit,
        slot=slot,
        won=outcome.won,
        n_ok=len(ok),
        n_quarantined=pc.sum(pc.equal(index["status"], QUARANTINED)).as_py() or 0,
        n_fp32=0,
        audio_s=n_samples / target.rate_hz,
        wall_s=end_s - start_s,
        n_bytes=outcome.n_bytes,
        seconds={maker.stage: made_s - start_s, "write": end_s - made_s},
    )

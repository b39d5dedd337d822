"""Small stores without a model: every stored value spells its utterance, layer and frame.

A misplaced frame is thus visible in the numbers. Everything goes through the calls that a worker
makes: plan, ledger, `UnitBuffer`, `commit_unit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.coordination.ledger import Ledger
from pipeline.store.documents import write_group, write_plan
from pipeline.store.format.layout import FORMAT_VERSION, Layout
from pipeline.store.format.plan import SCHEMA, Plan, make_plan
from pipeline.store.format.records import OK, QUARANTINED, Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import CommitOutcome, commit_unit

LAYERS = (1, 6, 12)
DIM = 4
FRAMES_PER_UNIT = 512
NO_REASONS: Mapping[int, str] = {}


@dataclass(frozen=True)
class FakeStore:
    """A store that was written by a test, and its content."""

    root: Path
    plan: Plan
    layout: Layout
    reasons: Mapping[int, str]

    def path(self, key: str) -> Path:
        """Return the path of a file of the store."""
        return self.root / key

    def features(self, row: int) -> np.ndarray:
        """Return the features that reading `row` must return."""
        n_frames = self.plan.table["n_frames"][row].as_py()
        return spell(row, n_frames, self.layout)

    def buffer(self, unit: int) -> tuple[UnitBuffer, list[Record]]:
        """Return a unit as a worker lays it out in slot `unit`, and its records."""
        buffer = UnitBuffer(self.layout)
        rows = self.plan.unit_rows(unit).to_pylist()
        good = [row for row in rows if row["row"] not in self.reasons]
        buffer.start(sum(row["n_frames"] for row in good))
        records, start = [], 0
        for row in rows:
            record = {"id": row["id"], "row": row["row"], "position": row["position"]}
            if row["row"] in self.reasons:
                reason = self.reasons[row["row"]]
                records.append(Record(**record, status=QUARANTINED, reason=reason))
                continue
            stop = start + row["n_frames"]
            buffer.frames[:, start:stop] = spell(row["row"], row["n_frames"], self.layout)
            records.append(
                Record(
                    **record,
                    status=OK,
                    frame_start=start,
                    n_frames=row["n_frames"],
                    n_samples=row["n_samples"],
                    source_rate_hz=8000,
                    crc32c=buffer.seal(row["position"], start, stop),
                )
            )
            start = stop
        return buffer, records

    def commit(self, unit: int, slot: int | None = None) -> CommitOutcome:
        """Commit a unit into a slot, without a claim."""
        slot = unit if slot is None else slot
        buffer, records = self.buffer(unit)
        return commit_unit(self.root, buffer, unit, slot, self.index(unit, slot, records))

    def index(self, unit: int, slot: int, records: Sequence[Record]) -> pa.Table:
        """Return the unit's index table, with a speaker and a digit for each utterance."""
        first = self.layout.slot_start(slot)
        moved = [
            record
            if record.frame_start is None
            else Record(**{**record.__dict__, "frame_start": first + record.frame_start})
            for record in records
        ]
        metadata = pa.table(
            {
                "speaker": [f"s{record.row % 3}" for record in records],
                "digit": [record.row % 10 for record in records],
            }
        )
        return records_table(moved, unit, slot, metadata)

    def claim(self, unit: int) -> int:
        """Claim the next slot for a unit."""
        ledger = Ledger.open(self.root, self.plan.n_units)
        return ledger.claim(unit, "run", "fake", "2025-01-01T00:00:00.000+00:00").slot


def spell(row: int, n_frames: int, layout: Layout) -> np.ndarray:
    """Return float16 [n_layers, n_frames, dim]: (row, layer, frame, row + layer, ...), exact."""
    values = np.empty((layout.n_layers, n_frames, layout.dim), np.float16)
    layers = np.array(layout.layers, np.float16)[:, None]
    frames = np.arange(n_frames, dtype=np.float16)[None]
    for feature in range(layout.dim):
        values[..., feature] = (row, layers, frames, row + layers)[feature % 4]
    return values


def plan_rows(lengths: Sequence[int], first: int = 0) -> pa.Table:
    """Return rows for `make_plan`: utterance `first + i` has `lengths[i]` frames."""
    n = len(lengths)
    rows = range(first, first + n)
    columns: dict[str, Any] = {
        "id": [f"utterance-{row}" for row in rows],
        "row": rows,
        "n_samples": [320 * length + 80 for length in lengths],
        "n_frames": lengths,
        "piece": [0] * n,
        "n_pieces": [1] * n,
        "piece_start": [0] * n,
        "n_bytes": [length + 44 for length in lengths],
        "fingerprint": [row * 7 for row in rows],
    }
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    return pa.table(arrays)


def begin_store(
    root: Path, lengths: Sequence[int], reasons: Mapping[int, str] = NO_REASONS
) -> FakeStore:
    """Write a store with a plan and Zarr documents, but without commits."""
    plan = make_plan(plan_rows(lengths), {"fingerprint": "fake"}, FRAMES_PER_UNIT)
    layout = Layout(LAYERS, DIM, plan.frames_per_unit, plan.utterances_per_slot)
    write_plan(root, plan)
    write_group(root, layout, plan.n_units, attributes(layout))
    return FakeStore(root, plan, layout, reasons)


def make_store(
    root: Path, lengths: Sequence[int], reasons: Mapping[int, str] = NO_REASONS
) -> FakeStore:
    """Write a complete store.

    Args:
        root: Where.
        lengths: Frames of each utterance.
        reasons: Rows to quarantine, with the reason.
    """
    store = begin_store(root, lengths, reasons)
    for unit in range(store.plan.n_units):
        assert store.commit(unit, store.claim(unit)).won
    return store


def attributes(layout: Layout) -> dict[str, Any]:
    """Return group attributes as the driver writes them."""
    columns = [{"name": "speaker", "class_names": None}, {"name": "digit", "class_names": None}]
    return {
        "format_version": FORMAT_VERSION,
        "layers": list(layout.layers),
        "feature_dim": layout.dim,
        "frames_per_unit": layout.frames_per_unit,
        "utterances_per_slot": layout.utterances_per_slot,
        "frame_rate_hz": 50.0,
        "sample_rate_hz": 16000,
        "identity": {"source": {"columns": columns}, "encoder": {"name": "fake"}},
        "provenance": {"created": "2025-01-01T00:00:00.000+00:00"},
    }


MEET = """
import os, time
def meet(folder, round_, me, n):
    files = [folder / f"meet-{round_}-{i}" for i in range(n)]
    mine = folder / f"coming-{round_}-{me}"
    mine.write_text(str(time.monotonic() + 0.002))
    mine.rename(files[me])
    end = time.monotonic() + 30
    while not all(file.exists() for file in files):
        if time.monotonic() > end:
            raise SystemExit("the others did not come")
        time.sleep(0.0005)
    start = max(float(file.read_text()) for file in files)
    while time.monotonic() < start:
        pass
"""
"""Source of a barrier between children: all start the same round within microseconds.

Each waits without using the CPU, but for the last two milliseconds."""

KILL = """
import os, signal, sys
WRITES = {"open", "write", "pwrite", "fsync", "close"}
STEPS = WRITES | {"link", "replace", "rename", "unlink", "mkdir"}
def die_at(n):
    left = n
    def profile(frame, event, function):
        nonlocal left
        if event == "c_call" and function.__name__ in STEPS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)
def killed_at(n, act):
    pid = os.fork()
    if pid == 0:
        die_at(n)
        act()
        sys.setprofile(None)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
"""
"""Source of `killed_at(n, act)`: does `act` in a fork that SIGKILLs itself before its n-th system
call that touches files; says whether it came to that."""

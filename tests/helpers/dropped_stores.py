"""Checks on stores of which something was dropped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from pipeline.store.documents import layout_of, read_attributes, read_plan
from tests.helpers.copied_stores import stored_pieces


def texts_of(root: Path) -> str:
    """Return all text in the files of a store: that of tables decoded, of others as it is."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            found.append(raw.decode("latin-1"))
            if path.suffix == ".parquet":
                table = pq.read_table(path, partitioning=None)
                found.append(repr(table.to_pylist()) + repr(table.schema.metadata))
    return "\n".join(found)


def has_frames(root: Path, pieces: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Return whether the bytes of a layer of some pieces, or of their scales, are in any file."""
    wanted = [layer.tobytes() for values, _ in pieces for layer in values]
    wanted += [layer.tobytes() for _, scales in pieces for layer in scales if layer.size]
    files = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    return any(part in content for part in wanted for content in files)


def has_statistics(root: Path, rows: np.ndarray) -> bool:
    """Return whether statistics, float32 [n, dim], are in any file."""
    files = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    return any(row.tobytes() in content for row in rows for content in files)


def survivors(root: Path) -> dict[str, object]:
    """Return id → what must not change of an utterance: row, places, checksums, columns, bytes."""
    store, rows = pipeline.open_store(root), {}
    layout = layout_of(read_attributes(root))
    raw = stored_pieces(root) if layout.keeps_frames and not layout.dropped_layers else {}
    statistics = {name: store.pooled(statistic=name).numpy() for name in store.statistics}
    for i, name in enumerate(store.ids):
        record = store.record(name)
        slot = record.pop("slot")
        record["frame_start"] -= layout.slot_start(slot)
        pieces = [(values.tobytes(), scales.tobytes()) for values, scales in raw.get(name, [])]
        pooled = [values[i].tobytes() for values in statistics.values()]
        rows[name] = (repr(record), [piece[:2] for piece in store.pieces(name)], pieces, pooled)
    return rows


def zeros_are_holes(path: Path) -> bool:
    """Return whether a file takes less space than it has bytes; not every file system has holes."""
    status = path.stat()
    return status.st_blocks * 512 < status.st_size


def set_log(root: Path, *events: dict[str, object]) -> None:
    """Append events to the log of a store."""
    common = {"time": "2026-01-01T00:00:00.000+00:00", "run_id": "0" * 12, "elapsed_s": 1.0}
    with (root / "log.jsonl").open("a") as file:
        for event in events:
            file.write(json.dumps(common | event) + "\n")


def numbered(root: Path, names: list[str]) -> list[int]:
    """Return the numbers of utterances in the plan."""
    plan = read_plan(root)
    assert plan is not None
    table = plan.first_records
    wanted = table.filter(pa.compute.is_in(table["id"], pa.array(names)))
    return sorted(wanted["row"].to_pylist())

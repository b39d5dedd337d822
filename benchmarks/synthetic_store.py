"""Stores of random features for the benchmarks, written by Strata's own writer in seconds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.store import index as index_files
from pipeline.store.documents import write_group, write_plan
from pipeline.store.format.codecs import DEFAULT_CODEC, Codec
from pipeline.store.format.identity import make_identity
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import SCHEMA, make_plan
from pipeline.store.format.records import OK, Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import commit_unit


def speech_lengths(n_frames: int, seed: int = 0) -> np.ndarray:
    """Return frames of utterances as in read speech (1 to 17 s, mode 14 s), `n_frames` in all."""
    random = np.random.default_rng(seed)
    lengths = (random.triangular(1.0, 14.0, 17.0, n_frames // 200 + 10) * 50).astype(np.int64)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), n_frames)) + 1]


def write_store(
    root: Path,
    lengths: np.ndarray,
    n_layers: int = 12,
    dim: int = 768,
    n_slots_frames: int = 59_904,
    codec: Codec = DEFAULT_CODEC,
) -> None:
    """Write a store of utterances of these lengths, with a column `label` of ten classes."""
    n = len(lengths)
    columns = {
        "id": [f"clip-{i:06d}" for i in range(n)],
        "row": np.arange(n),
        "n_samples": lengths * 320 + 80,
        "n_frames": lengths,
        "piece": np.zeros(n),
        "n_pieces": np.ones(n),
        "piece_start": np.zeros(n),
        "n_bytes": np.ones(n),
        "fingerprint": np.zeros(n),
    }
    names = [name for name in SCHEMA.names if name not in ("unit", "position")]
    rows = pa.table({name: pa.array(columns[name]).cast(SCHEMA.field(name).type) for name in names})
    plan = make_plan(rows, {}, n_slots_frames)
    layout = Layout(
        tuple(range(1, n_layers + 1)), dim, plan.frames_per_unit, plan.utterances_per_slot, codec
    )
    column = {"name": "label", "type": "int64", "class_names": None}
    root.mkdir(parents=True, exist_ok=True)
    write_plan(root, plan)
    write_group(
        root,
        layout,
        plan.n_units,
        {
            "format_version": layout.format_version,
            "layers": list(layout.layers),
            "feature_dim": dim,
            "frames_per_unit": plan.frames_per_unit,
            "utterances_per_slot": plan.utterances_per_slot,
            "frame_rate_hz": 50.0,
            "sample_rate_hz": 16_000,
            "identity": make_identity({"columns": [column]}, {}, {}, layout),
            "provenance": {},
        },
    )
    buffer = UnitBuffer(layout)
    noise = np.random.default_rng(0).standard_normal((8192, dim)).astype(np.float32)
    for unit in range(plan.n_units):
        planned = plan.unit_rows(unit).to_pylist()
        buffer.start(sum(row["n_frames"] for row in planned))
        done, at = [], 0
        for row in planned:
            stop = at + row["n_frames"]
            first = (row["row"] * 97) % 4096
            values = noise[first : first + row["n_frames"]]
            scales = codec.measure(values)
            buffer.scales[row["position"]] = scales
            buffer.frames[:, at:stop] = codec.encode(values, scales)
            crcs = buffer.seal(row["position"], at, stop)
            done.append(
                Record(
                    id=row["id"],
                    row=row["row"],
                    position=row["position"],
                    status=OK,
                    frame_start=layout.slot_start(unit) + at,
                    n_frames=row["n_frames"],
                    n_samples=row["n_samples"],
                    crc32c=crcs,
                )
            )
            at = stop
        labels = pa.table({"label": pa.array([row["row"] % 10 for row in planned])})
        commit_unit(root, buffer, unit, unit, records_table(done, unit, unit, labels))
    index_files.compact(root)


def warm(root: Path) -> int:
    """Read every file once, to fill the page cache; return the bytes."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with Path(folder, name).open("rb", buffering=0) as file:
                while block := file.read(1 << 24):
                    total += len(block)
    return total

"""Small real stores whose values identify their utterance, layer and frame."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import zarr

from pipeline.store import index as index_files
from pipeline.store.documents import write_group, write_plan
from pipeline.store.format.identity import make_identity
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import SCHEMA, Plan, make_plan
from pipeline.store.format.records import OK, QUARANTINED, Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import commit_unit

RATE_HZ = 16_000


def spelled(row, layer, n_frames, dim):
    """Return features that encode (utterance, layer, frame): float16 [n_frames, dim], exact."""
    frame = np.arange(n_frames)[:, None]
    return ((row % 64) * 16 + layer + (frame % 32) / 32 + np.zeros((1, dim))).astype(np.float16)


def noise(row, layer, n_frames, dim):
    """Return random features: float16 [n_frames, dim]."""
    random = np.random.default_rng([row, layer])
    return random.standard_normal((n_frames, dim)).astype(np.float16)


def plan_of(lengths, frames_per_unit, pieces=None, ids=None):
    """Return the plan of utterances; `pieces` maps rows to their number of pieces.

    Their ids are `ids`, or `utt-<row>`.
    """
    rows = []
    for row, n_frames in enumerate(lengths):
        n_pieces = (pieces or {}).get(row, 1)
        cuts = np.linspace(0, n_frames, n_pieces + 1).astype(int)
        name = f"utt-{row:04d}" if ids is None else ids[row]
        whole = {"id": name, "row": row, "n_samples": 400 + 320 * (n_frames - 1)}
        whole |= {"n_pieces": n_pieces, "n_bytes": 1, "fingerprint": row}
        rows += [
            whole | {"piece": i, "piece_start": start, "n_frames": stop - start}
            for i, (start, stop) in enumerate(pairwise(cuts.tolist()))
        ]
    names = [name for name in SCHEMA.names if name not in ("unit", "position")]
    table = pa.Table.from_pylist(rows, schema=pa.schema([SCHEMA.field(name) for name in names]))
    return make_plan(table, {"made": "by hand"}, frames_per_unit)


def default_columns(n):
    """Return metadata of `n` utterances: speaker (text), digit (class), score (number)."""
    return pa.table(
        {
            "speaker": [f"speaker-{i % 3}" for i in range(n)],
            "digit": pa.array([i % 4 for i in range(n)], pa.int64()),
            "score": pa.array([i / 2 for i in range(n)], pa.float64()),
        }
    )


def make_store(
    root,
    lengths,
    layers=(1, 2, 3),
    dim=8,
    frames_per_unit=256,
    features=spelled,
    lost=(),
    pieces=None,
    columns=None,
    attributes=None,
    units=None,
    ids=None,
    encoder=None,
    **form,
):
    """Write a store of utterances of `lengths` frames; return its plan.

    Rows `lost` are quarantined, those of `pieces` are cut into so many, `attributes` are added to
    the group's, and only `units` are committed if they are given. `encoder` has facts of the
    encoder beside its layers. `form` is codec, keep and statistics of the layout.
    """
    root = Path(root)
    columns = default_columns(len(lengths)) if columns is None else columns
    plan = plan_of(lengths, frames_per_unit, pieces, ids)
    layout = Layout(layers, dim, plan.frames_per_unit, plan.utterances_per_slot, **form)
    described = [
        {
            "name": name,
            "type": str(columns[name].type),
            "class_names": ["zero", "one", "two", "three"] if name == "digit" else None,
        }
        for name in columns.column_names
    ]
    encoder = {"layers": list(layers)} | (encoder or {})
    identity = make_identity({"columns": described}, {"mono": "mean"}, encoder, layout)
    group = {
        "format_version": layout.format_version,
        "layers": list(layers),
        "feature_dim": dim,
        "frames_per_unit": plan.frames_per_unit,
        "utterances_per_slot": plan.utterances_per_slot,
        "frame_rate_hz": 50.0,
        "sample_rate_hz": RATE_HZ,
        "identity": identity,
        "provenance": {"created": "by hand"},
    }
    root.mkdir(parents=True, exist_ok=True)
    write_plan(root, plan)
    write_group(root, layout, plan.n_units, group | (attributes or {}))
    commit_units(root, plan, layout, columns, features, lost, units)
    return plan


def commit_units(root, plan: Plan, layout, columns, features=spelled, lost=(), units=None):
    """Commit `units` of a plan (default: all), each into the slot of the same number."""
    buffer = UnitBuffer(layout)
    for unit in range(plan.n_units) if units is None else units:
        planned = plan.unit_rows(unit).to_pylist()
        buffer.start(sum(row["n_frames"] for row in planned if row["row"] not in lost))
        done, at = [], 0
        for row in planned:
            record = Record(
                id=row["id"],
                row=row["row"],
                position=row["position"],
                status=QUARANTINED,
                reason="no sound in it",
                piece=row["piece"],
                n_pieces=row["n_pieces"],
            )
            if row["row"] not in lost:
                stop = at + row["n_frames"]
                for axis, layer in enumerate(layout.layers):
                    first, codec = row["piece_start"], layout.codec
                    values = features(row["row"], layer, first + row["n_frames"], layout.dim)
                    values = np.asarray(values[first:], np.float32)
                    scales = codec.measure(values)
                    buffer.scales[row["position"], axis] = scales
                    buffer.frames[axis, at:stop] = codec.encode(values, scales)
                record = Record(
                    id=row["id"],
                    row=row["row"],
                    position=row["position"],
                    status=OK,
                    piece=row["piece"],
                    n_pieces=row["n_pieces"],
                    frame_start=layout.slot_start(unit) + at,
                    n_frames=row["n_frames"],
                    n_samples=row["n_samples"],
                    source_rate_hz=RATE_HZ,
                    crc32c=buffer.seal(row["position"], at, stop),
                )
                at = stop
            done.append(record)
        metadata = columns.take(pa.array([row["row"] for row in planned]))
        assert commit_unit(root, buffer, unit, unit, records_table(done, unit, unit, metadata)).won
    index_files.compact(root)


def rewrite(root):
    """Write the frames of a store again, compressed, as another tool does."""
    path = Path(root) / "features.zarr/frames"
    array = zarr.open_array(path, mode="r")
    values, attributes = array[:], array.attrs.asdict()
    zarr.create_array(
        path,
        shape=array.shape,
        dtype=array.dtype,
        shards=array.shards,
        chunks=array.chunks,
        compressors=zarr.codecs.ZstdCodec(level=1),
        fill_value=float("nan"),
        dimension_names=("layer", "frame", "feature"),
        attributes=attributes,
        overwrite=True,
    )[:] = values

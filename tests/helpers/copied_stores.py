"""What a copy of a store must hold, computed with NumPy alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import pipeline
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.index import read_index


def stored_pieces(root):
    """Return id → pieces of (stored values, scales), each [n_layers, ...], from the raw files."""
    layout = layout_of(read_attributes(root))
    found = {}
    for row in read_index(root).sort_by([("row", "ascending"), ("piece", "ascending")]).to_pylist():
        if row["status"] != "ok":
            continue
        start = row["frame_start"] - layout.slot_start(row["slot"])
        values = []
        for axis in range(layout.n_layers):
            raw = (Path(root) / layout.shard_key(axis, row["slot"])).read_bytes()
            matrix = np.frombuffer(raw[: layout.shard_data_bytes], layout.codec.dtype)
            values.append(matrix.reshape(-1, layout.dim)[start : start + row["n_frames"]])
        shape = layout.scale_shape(1)[1:]
        scales = np.empty(shape[1:], np.float32)
        if layout.keeps_scales:
            raw = (Path(root) / layout.scale_key(row["slot"])).read_bytes()[:-4]
            scales = np.frombuffer(raw, np.float32).reshape(shape)[row["position"]]
        found.setdefault(row["id"], []).append((np.stack(values), scales))
    return found


def decoded(root):
    """Return id → float32 [n_layers, n_frames, dim], decoded from the raw files."""
    codec = layout_of(read_attributes(root)).codec
    return {
        name: np.concatenate([codec.decode(*piece) for piece in pieces], axis=1)
        for name, pieces in stored_pieces(root).items()
    }


def units_of(root):
    """Return the files of every committed unit, whatever its slot, and its index rows."""
    layout = layout_of(read_attributes(root))
    found = {}
    for path in sorted((Path(root) / "index").glob("unit-*.parquet")):
        table = pq.read_table(path)
        slot = table["slot"][0].as_py()
        begin = layout.slot_start(slot)
        rows = table.drop_columns(["slot"]).to_pylist()
        for row in rows:
            if row["frame_start"] is not None:
                row["frame_start"] -= begin
        objects = [(Path(root) / key).read_bytes() for key in layout.slot_objects(slot)]
        found[path.name] = (repr(rows), objects)
    return found


def everything(root):
    """Return what readers see of a store, to compare two of them."""
    store = pipeline.open_store(root)
    frames = [store.read(name).tolist() for name in store.ids] if store.keeps_frames else None
    return store.ids, store.metadata.to_pylist(), frames, store.pooled().tolist()


def identity_of(root):
    """Return the identity of a store."""
    return read_attributes(root)["identity"]


def set_identity(root, **parts):
    """Replace parts of the identity of a store, as another encoder or source would have made it."""
    path = Path(root) / "features.zarr/zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["identity"] |= parts
    document["attributes"].pop("checksum", None)
    path.write_text(json.dumps(document))

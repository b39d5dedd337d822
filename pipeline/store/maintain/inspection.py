"""Description of a store, and of one utterance."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pyarrow.compute as pc
from torch import Tensor

from pipeline.store import index as index_files
from pipeline.store.documents import layout_of
from pipeline.store.format.codecs import DEFAULT_CODEC, INT8
from pipeline.store.format.layout import DROPPED_LAYERS, KEPT
from pipeline.store.format.records import DROPPED, OK
from pipeline.store.maintain.tokens import count_tokens
from pipeline.store.read.features import FeatureStore


def describe_store(store: FeatureStore) -> dict[str, Any]:
    """Return identity, shapes, columns and quarantined utterances of a store, ready for JSON."""
    attributes = store.attributes
    metadata = store.metadata
    return {
        "utterances": len(store),
        "layers": list(store.layers),
        "layer_names": list(store.layer_names),
        "dropped_layers": list(store.attributes.get(DROPPED_LAYERS, ())),
        "feature_dim": store.feature_dim,
        "frame_rate_hz": store.frame_rate_hz,
        "frames_per_unit": attributes["frames_per_unit"],
        "storage": _storage(store),
        "tokens": [asdict(count) for count in count_tokens(store.backend)],
        "columns": {item.name: str(item.type) for item in metadata.schema},
        "class_names": store.class_names,
        "identity": attributes["identity"],
        "provenance": attributes["provenance"],
        "first_ids": metadata["id"].slice(0, 5).to_pylist(),
        "quarantined": store.quarantined.to_pylist(),
    }


def _storage(store: FeatureStore) -> dict[str, Any]:
    """Return what is kept, in how many bytes, and in how many other forms would take.

    Bytes are those of all committed units. A unit takes them whether it is full or not, but for
    what was dropped from it.
    """
    layout = layout_of(store.attributes)
    n_units, n_freed = _occupied(store)
    others = {
        "int8": replace(layout, codec=INT8),
        "pooled": replace(layout, codec=DEFAULT_CODEC, keep=(KEPT[1],)),
    }
    per_layer = n_units * layout.shard_bytes - n_freed * layout.frame_bytes
    a_second = layout.frame_share_bytes * store.frame_rate_hz
    return {
        "dtype": layout.codec.name,
        "keep": list(layout.keep),
        "statistics": list(store.statistics),
        "bytes": n_units * layout.slot_bytes - n_freed * layout.frame_share_bytes,
        "bytes_per_layer": per_layer if layout.keeps_frames else 0,
        "gb_per_hour": round(a_second * 3600 / 1e9, 3),
        "bytes_as": {
            name: n_units * other.slot_bytes
            for name, other in others.items()
            if layout.keeps_frames and other.slot_bytes < layout.slot_bytes
        },
    }


def _occupied(store: FeatureStore) -> tuple[int, int]:
    """Return the number of units that have data, and of frames that were dropped from them."""
    index = index_files.read_index(store.backend, columns=["unit", "status", "n_frames"])
    dropped = index_files.of_status(index, DROPPED)
    emptied = set(dropped["unit"].to_pylist()) - set(
        index_files.of_status(index, OK)["unit"].to_pylist()
    )
    n_units = len(index_files.committed_units(store.backend)) - len(emptied)
    return n_units, pc.sum(dropped["n_frames"]).as_py() or 0


def _plain(value: Any) -> Any:
    """Return a carried value as JSON can hold it: dates, bytes and the like as text."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return str(value)


def describe_utterance(store: FeatureStore, name: str) -> dict[str, Any]:
    """Return the record, the metadata, and the shape and range of each layer of an utterance.

    In a store without frames they are those of its statistics.

    Raises:
        UtteranceNotFoundError: There is no such utterance, or it is quarantined.
    """
    record = store.record(name)
    del record["crc32c"]
    record = {key: _plain(value) for key, value in record.items()}
    record["n_frames"] = store.n_frames(name)
    if store.keeps_frames:
        return {**record, "layers": _ranges(store, store.read(name))}
    one = store.take([store.position(name)])
    pooled = {
        statistic: _ranges(store, one.pooled(statistic=statistic)[0])
        for statistic in store.statistics
    }
    return {**record, "pooled": pooled}


def _ranges(store: FeatureStore, features: Tensor) -> list[dict[str, Any]]:
    """Return shape and range of each layer."""
    return [
        {
            "layer": layer,
            "name": name,
            "shape": list(values.shape),
            "min": round(float(values.min()), 4),
            "max": round(float(values.max()), 4),
            "mean": round(float(values.mean()), 4),
            "std": round(float(values.std(correction=0)), 4),
        }
        for (layer, name), values in zip(store.named_layers.items(), features.float(), strict=True)
    ]

"""Layout of a store: the key, offset and size of everything in it. Pure arithmetic.

A slot holds one attempt at one unit. On the frame axis slot `n` is `[n*S, (n+1)*S)` with
`S = frames_per_unit`. Its objects are one shard per extracted layer, one chunk of pooled
statistics, and, for codecs that need them, one chunk of scales; a store may keep only some of them.
The Zarr documents are built here, so that shards can be written without a Zarr library and still be
opened by any of them (Zarr v3 core specification, sharding codec ZEP 2).
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from crc32c import crc32c

from pipeline.store.format.codecs import DEFAULT_CODEC, Codec
from pipeline.store.format.layers import name_layers
from pipeline.store.format.pooling import MEAN
from pipeline.store.format.zarr_json import array_document, chunked_document

FORMAT_VERSION = 1
"""Version of a new store with the default codec, arrays and statistics."""
FORMAT_2 = 2
"""Version of a store with generations of labels, another codec, other arrays or statistics, which
readers of version 1 would not see or would misread."""
FORMAT_3 = 3
"""Version of a store of which something was dropped, which version 2 would take for damage."""
READABLE_VERSIONS = (FORMAT_VERSION, FORMAT_2, FORMAT_3)
CHUNK_FRAMES = 256
KEPT = ("frames", "pooled")
"""What a store may keep."""

GROUP = "features.zarr"
FRAMES = f"{GROUP}/frames"
POOLED = f"{GROUP}/pooled"
SCALE = f"{GROUP}/scale"
ATTRIBUTES = f"{GROUP}/zarr.json"
PLAN = "plan.parquet"
INDEX_CACHE = "index.parquet"
INDEX_RANGES = "index_ranges"
"""Folder of the cache of the index where large objects are not replaced."""
FRAME_STATISTICS = "frame_statistics.parquet"
INDEX_DIR = "index"
LEDGER_DIR = "ledger"
LABELS_DIR = "labels"
LEASE = "lease.json"
LEASE_LOCK = "lease.lock"
CACHED = "cached"
"""Kind of the source of a store that `pipeline.cached` fills, and of its claims."""
SHARES = "shares.json"
"""Says that several drivers of one job may extract units of the store, each its share."""
LOG = "log.jsonl"
DROPPING = "dropping.parquet"  # while a drop is made
HUB_FILES = ("README.md", ".gitattributes")
"""Dataset card and attributes of git that a store on the Hugging Face hub has beside it."""
CHECKSUM = "checksum"
"""Attribute with the checksum of the others; stores of earlier versions have none."""
HAS_LABELS = "has_labels"
"""Attribute of a store with generations of labels."""
NEWEST_LABELS = "newest_labels"
"""Attribute with the number of the newest generation; early stores of version 2 lack it."""
LABEL_ATTRIBUTES = (HAS_LABELS, NEWEST_LABELS)
DROPPED_LAYERS = "dropped_layers"
"""Attribute of a store of which layers were dropped: their numbers."""

_FLOAT_BYTES = 4
_DECODING: dict[str, dict[str, Any]] = {
    "bfloat16": {"encoding": "bfloat16: each value is the upper half of the bits of a float32"},
    "int8": {
        "encoding": "int8: value = scale[..., 0, :] + scale[..., 1, :] * q, of array `scale`, at "
        "the slot and position of the utterance; -128 is no value",
    },
}
"""Attributes of arrays whose values other readers must decode, by the name of the codec."""
_SHARD_KEY = re.compile(rf"{re.escape(FRAMES)}/c/(\d+)/(\d+)/0")
_INDEX_ENTRY = struct.Struct("<QQ")
_CRC = struct.Struct("<I")


def index_key(unit: int) -> str:
    """Return the key of the commit of `unit`."""
    return f"{INDEX_DIR}/unit-{unit}.parquet"


def share_lease_key(rank: int) -> str:
    """Return the key of the lease of a rank's share."""
    return f"lease-{rank}.json"


def labels_key(generation: int) -> str:
    """Return the key of a generation of labels."""
    return f"{LABELS_DIR}/generation-{generation}.parquet"


def ledger_key(slot: int) -> str:
    """Return the key of the claim on `slot`."""
    return f"{LEDGER_DIR}/slot-{slot}.json"


# The names `.died.json` and `.trail` are fixed by format 1; they are older than the terms.


def failure_key(slot: int) -> str:
    """Return the key of the record of the failed attempt in `slot`."""
    return f"{LEDGER_DIR}/slot-{slot}.died.json"


def marker_key(slot: int) -> str:
    """Return the key of the marker of an isolated attempt in `slot`."""
    return f"{LEDGER_DIR}/slot-{slot}.trail"


@dataclass(frozen=True)
class Layout:
    """Shapes, sizes and keys of one store.

    Attributes:
        layers: Layer number at each position of the layer axis, e.g. `(1, ..., 12)`.
        dim: Features per frame.
        frames_per_unit: Capacity of a slot in frames; a multiple of 256.
        utterances_per_slot: Capacity of a slot in utterances, in the pooled array.
        codec: Format of the frame values.
        keep: What is kept, of `KEPT`, in that order.
        statistics: Statistics over the frames of an utterance in the pooled array; see
            `STATISTICS`.
        dropped_layers: Layers that keep their place on the axis, without shards and values.
        names: Names of `layers`; empty if they are the standard ones.
    """

    layers: tuple[int, ...]
    dim: int
    frames_per_unit: int
    utterances_per_slot: int
    codec: Codec = field(default=DEFAULT_CODEC, repr=False)
    keep: tuple[str, ...] = field(default=KEPT, repr=False)
    statistics: tuple[str, ...] = field(default=(MEAN,), repr=False)
    dropped_layers: tuple[int, ...] = field(default=(), repr=False)
    names: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.layers or self.dim < 1 or self.utterances_per_slot < 1:
            raise ValueError(f"empty layout: {self}")
        if self.keep not in ((KEPT[0],), (KEPT[1],), KEPT) or not self.statistics:
            raise ValueError(f"a store cannot keep {self.keep} with {self.statistics}")
        if not self.axes or not set(self.dropped_layers) <= set(self.layers):
            raise ValueError(f"layers {self.dropped_layers} of {self.layers} cannot be dropped")
        if self.names and len(set(self.names)) != len(self.layers):
            raise ValueError(f"layers {self.layers} cannot have the names {self.names}")
        if self.frames_per_unit < 1 or self.frames_per_unit % CHUNK_FRAMES:
            raise ValueError(
                f"frames_per_unit is {self.frames_per_unit}; "
                f"it must be a positive multiple of {CHUNK_FRAMES}"
            )

    @property
    def n_layers(self) -> int:
        """Length of the layer axis."""
        return len(self.layers)

    @cached_property
    def axes(self) -> dict[int, int]:
        """Position on the layer axis of each layer that was not dropped, in order."""
        gone = self.dropped_layers
        return {layer: axis for axis, layer in enumerate(self.layers) if layer not in gone}

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Name of each layer of `layers`."""
        return tuple(name_layers(self.layers, self.names).values())

    @cached_property
    def kept_names(self) -> dict[int, str]:
        """Name of each layer that was not dropped, in order."""
        named = name_layers(self.layers, self.names)
        return {layer: named[layer] for layer in self.axes}

    @cached_property
    def named_axes(self) -> dict[int | str, int]:
        """Position on the layer axis of each layer that was not dropped, by number and by name."""
        axes = self.axes
        names: dict[int | str, int] = {name: axes[n] for n, name in self.kept_names.items()}
        return {**names, **dict(axes.items())}

    @cached_property
    def kept_axes(self) -> tuple[int, ...]:
        """Positions on the layer axis of the layers that were not dropped."""
        return tuple(self.axes.values())

    @property
    def dropped_axes(self) -> list[int]:
        """Positions on the layer axis of the layers that were dropped."""
        return [axis for axis in range(self.n_layers) if axis not in self.kept_axes]

    @property
    def format_version(self) -> int:
        """Format version of a store with these arrays, without labels."""
        is_first = self.codec == DEFAULT_CODEC and self.keep == KEPT and self.statistics == (MEAN,)
        return FORMAT_VERSION if is_first else FORMAT_2

    @property
    def keeps_frames(self) -> bool:
        """Whether there is an array of frames."""
        return KEPT[0] in self.keep

    @property
    def keeps_pooled(self) -> bool:
        """Whether there is an array of pooled statistics."""
        return KEPT[1] in self.keep

    @property
    def keeps_scales(self) -> bool:
        """Whether there is an array of scales."""
        return self.keeps_frames and self.codec.n_scales > 0

    @property
    def arrays(self) -> tuple[str, ...]:
        """Keys of the arrays of the store."""
        kept = {
            FRAMES: self.keeps_frames,
            POOLED: self.keeps_pooled,
            SCALE: self.keeps_scales,
        }
        return tuple(array for array, is_kept in kept.items() if is_kept)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame of one layer."""
        return self.dim * self.codec.bytes_per_value

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk, `[1, 256, dim]`."""
        return CHUNK_FRAMES * self.frame_bytes

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of one shard."""
        return self.frames_per_unit // CHUNK_FRAMES

    @property
    def shard_data_bytes(self) -> int:
        """Bytes of the flat `[frames_per_unit, dim]` matrix at the start of a shard."""
        return self.chunks_per_shard * self.chunk_bytes

    @property
    def shard_bytes(self) -> int:
        """Bytes of a whole shard file: the matrix, then its index."""
        return self.shard_data_bytes + len(self.shard_index)

    @property
    def pooled_bytes(self) -> int:
        """Bytes of one pooled chunk: the statistics, then their checksum."""
        return _chunk_bytes(self.pooled_shape(1))

    @property
    def scale_bytes(self) -> int:
        """Bytes of one chunk of scales, with its checksum."""
        return _chunk_bytes(self.scale_shape(1))

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return sum(self.slot_objects(0).values())

    @property
    def frame_share_bytes(self) -> int:
        """Bytes of one frame of all layers; 0 if no frames are kept."""
        return len(self.axes) * self.frame_bytes if self.keeps_frames else 0

    @cached_property
    def shard_index(self) -> bytes:
        """The index at the end of every shard: `(offset, length)` per chunk, then crc32c.

        A shard that ends in exactly these bytes is flat: chunk `i` is at `i * chunk_bytes`, so the
        shard begins with one little-endian matrix.
        """
        entries = b"".join(
            _INDEX_ENTRY.pack(i * self.chunk_bytes, self.chunk_bytes)
            for i in range(self.chunks_per_shard)
        )
        return entries + _CRC.pack(crc32c(entries))

    def slot_start(self, slot: int) -> int:
        """Return the first frame of `slot` on the frame axis."""
        return slot * self.frames_per_unit

    def shard_key(self, layer_axis: int, slot: int) -> str:
        """Return the key of a shard, given a position on the layer axis and a slot."""
        return f"{FRAMES}/c/{layer_axis}/{slot}/0"

    def shard_place(self, key: str) -> tuple[int, int] | None:
        """Return the position on the layer axis and the slot of a shard; None of another object."""
        match = _SHARD_KEY.fullmatch(key)
        return None if match is None else (int(match[1]), int(match[2]))

    def shard_keys(self, slot: int) -> list[str]:
        """Return the keys of the shards of `slot`, one for each of `kept_axes`."""
        return [self.shard_key(axis, slot) for axis in self.kept_axes]

    def pooled_key(self, slot: int) -> str:
        """Return the key of the pooled chunk of `slot`."""
        return _chunk_key(POOLED, slot, self.pooled_shape(1))

    def scale_key(self, slot: int) -> str:
        """Return the key of the chunk of scales of `slot`."""
        return _chunk_key(SCALE, slot, self.scale_shape(1))

    def slot_objects(self, slot: int) -> dict[str, int]:
        """Return the keys of all objects of `slot`, and the size of each in bytes."""
        objects = dict.fromkeys(self.shard_keys(slot), self.shard_bytes)
        objects = objects if self.keeps_frames else {}
        if self.keeps_pooled:
            objects[self.pooled_key(slot)] = self.pooled_bytes
        if self.keeps_scales:
            objects[self.scale_key(slot)] = self.scale_bytes
        return objects

    def first_object(self, array: str, slot: int) -> tuple[str, int]:
        """Return the key and size of the first object of a slot in an array."""
        if array == FRAMES:
            return self.shard_key(self.kept_axes[0], slot), self.shard_bytes
        if array == POOLED:
            return self.pooled_key(slot), self.pooled_bytes
        return self.scale_key(slot), self.scale_bytes

    def frames_shape(self, n_slots: int) -> tuple[int, int, int]:
        """Return the shape of the frames array: [layer, frame, feature]."""
        return (self.n_layers, n_slots * self.frames_per_unit, self.dim)

    def pooled_shape(self, n_slots: int) -> tuple[int, ...]:
        """Return the shape of the pooled array: [slot, position, layer, feature].

        If there are other statistics than the mean, [slot, position, statistic, layer, feature].
        """
        statistic = () if self.statistics == (MEAN,) else (len(self.statistics),)
        return (n_slots, self.utterances_per_slot, *statistic, self.n_layers, self.dim)

    def scale_shape(self, n_slots: int) -> tuple[int, ...]:
        """Return the shape of the array of scales: [slot, position, layer, scale, feature]."""
        n_scales = self.codec.n_scales
        return (n_slots, self.utterances_per_slot, self.n_layers, n_scales, self.dim)

    def document(self, array: str, n_slots: int) -> dict[str, Any]:
        """Return the zarr.json of an array of the store."""
        if array == FRAMES:
            return self.frames_document(n_slots)
        return self.pooled_document(n_slots) if array == POOLED else self.scale_document(n_slots)

    def frames_document(self, n_slots: int) -> dict[str, Any]:
        """Return the zarr.json of the frames array."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [1, CHUNK_FRAMES, self.dim],
            "codecs": [little],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return array_document(
            shape=self.frames_shape(n_slots),
            dtype=self.codec.zarr_type,
            fill="NaN" if math.isnan(self.codec.fill) else self.codec.fill,
            chunk=(1, self.frames_per_unit, self.dim),
            codecs=[{"name": "sharding_indexed", "configuration": sharding}],
            names=["layer", "frame", "feature"],
            attributes=_DECODING.get(self.codec.name, {}),
        )

    def pooled_document(self, n_slots: int) -> dict[str, Any]:
        """Return the zarr.json of the pooled array."""
        shape = self.pooled_shape(n_slots)
        is_named = len(shape) > 4
        return chunked_document(
            shape,
            ["slot", "position", *(["statistic"] if is_named else []), "layer", "feature"],
            {"statistics": list(self.statistics)} if is_named else {},
        )

    def scale_document(self, n_slots: int) -> dict[str, Any]:
        """Return the zarr.json of the array of scales."""
        return chunked_document(
            self.scale_shape(n_slots),
            ["slot", "position", "layer", "scale", "feature"],
            _DECODING[self.codec.name],
        )


def _chunk_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of a chunk of float32 with its checksum."""
    return math.prod(shape) * _FLOAT_BYTES + _CRC.size


def _chunk_key(array: str, slot: int, shape: tuple[int, ...]) -> str:
    return "/".join([array, "c", str(slot), *("0" for _ in shape[1:])])

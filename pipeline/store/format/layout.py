"""Layout of a store: the key, offset and size of everything in it. Pure arithmetic.

A slot holds one attempt at one unit. On the frame axis slot `n` is `[n*S, (n+1)*S)` with
`S = frames_per_unit`. Its objects are one shard per extracted layer, and one pooled chunk. The Zarr
documents are built here, so that shards can be written without a Zarr library and still be opened
by any of them (Zarr v3 core specification, sharding codec ZEP 2).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from crc32c import crc32c

from pipeline.store.format.codecs import DEFAULT_CODEC, Codec

FORMAT_VERSION = 1
"""Version of a new store."""
LABELS_VERSION = 2
"""Version of a store with generations of labels, which readers of version 1 would not see."""
READABLE_VERSIONS = (FORMAT_VERSION, LABELS_VERSION)
CHUNK_FRAMES = 256
POOLED_DTYPE = "float32"

GROUP = "features.zarr"
FRAMES = f"{GROUP}/frames"
POOLED = f"{GROUP}/pooled"
ATTRIBUTES = f"{GROUP}/zarr.json"
PLAN = "plan.parquet"
INDEX_CACHE = "index.parquet"
INDEX_DIR = "index"
LEDGER_DIR = "ledger"
LABELS_DIR = "labels"
LEASE = "lease.json"
LEASE_LOCK = "lease.lock"
LOG = "log.jsonl"
CHECKSUM = "checksum"
"""Attribute with the checksum of the others; stores of earlier versions have none."""
COLLAPSED_LAYER = -1
"""Layer number in a collapsed store: negative, because the layer is not the output of a block."""

_POOLED_BYTES = 4
_INDEX_ENTRY = struct.Struct("<QQ")
_CRC = struct.Struct("<I")


def index_key(unit: int) -> str:
    """Return the key of the commit of `unit`."""
    return f"{INDEX_DIR}/unit-{unit}.parquet"


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
    """

    layers: tuple[int, ...]
    dim: int
    frames_per_unit: int
    utterances_per_slot: int
    codec: Codec = field(default=DEFAULT_CODEC, repr=False)

    def __post_init__(self) -> None:
        if not self.layers or self.dim < 1 or self.utterances_per_slot < 1:
            raise ValueError(f"empty layout: {self}")
        if self.frames_per_unit < 1 or self.frames_per_unit % CHUNK_FRAMES:
            raise ValueError(
                f"frames_per_unit is {self.frames_per_unit}; "
                f"it must be a positive multiple of {CHUNK_FRAMES}"
            )

    @property
    def n_layers(self) -> int:
        """Length of the layer axis."""
        return len(self.layers)

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
    def pooled_data_bytes(self) -> int:
        """Bytes of one pooled chunk without its checksum."""
        return self.utterances_per_slot * self.n_layers * self.dim * _POOLED_BYTES

    @property
    def pooled_bytes(self) -> int:
        """Bytes of one pooled chunk: the means, then their checksum."""
        return self.pooled_data_bytes + _CRC.size

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: a shard per layer and the pooled chunk."""
        return self.n_layers * self.shard_bytes + self.pooled_bytes

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

    def shard_keys(self, slot: int) -> list[str]:
        """Return the keys of all shards of `slot`, in the order of the layer axis."""
        return [self.shard_key(axis, slot) for axis in range(self.n_layers)]

    def pooled_key(self, slot: int) -> str:
        """Return the key of the pooled chunk of `slot`."""
        return f"{POOLED}/c/{slot}/0/0/0"

    def frames_shape(self, n_slots: int) -> tuple[int, int, int]:
        """Return the shape of the frames array: [layer, frame, feature]."""
        return (self.n_layers, n_slots * self.frames_per_unit, self.dim)

    def pooled_shape(self, n_slots: int) -> tuple[int, int, int, int]:
        """Return the shape of the pooled array: [slot, position, layer, feature]."""
        return (n_slots, self.utterances_per_slot, self.n_layers, self.dim)

    def frames_document(self, n_slots: int) -> dict[str, Any]:
        """Return the zarr.json of the frames array."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [1, CHUNK_FRAMES, self.dim],
            "codecs": [little],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return _array_document(
            shape=self.frames_shape(n_slots),
            dtype=self.codec.name,
            chunk=(1, self.frames_per_unit, self.dim),
            codecs=[{"name": "sharding_indexed", "configuration": sharding}],
            names=["layer", "frame", "feature"],
        )

    def pooled_document(self, n_slots: int) -> dict[str, Any]:
        """Return the zarr.json of the pooled array."""
        shape = self.pooled_shape(n_slots)
        return _array_document(
            shape=shape,
            dtype=POOLED_DTYPE,
            chunk=(1, *shape[1:]),
            codecs=[
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            names=["slot", "position", "layer", "feature"],
        )


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the zarr.json of the group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array_document(
    shape: tuple[int, ...],
    dtype: str,
    chunk: tuple[int, ...],
    codecs: list[dict[str, Any]],
    names: list[str],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN",
        "codecs": codecs,
        "attributes": {},
        "dimension_names": names,
        "storage_transformers": [],
    }

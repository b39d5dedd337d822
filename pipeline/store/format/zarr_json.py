"""The zarr.json documents of the group and of its arrays (Zarr v3 core specification)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from crc32c import crc32c

POOLED_DTYPE = "float32"


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the zarr.json of the group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def chunked_document(
    shape: tuple[int, ...], names: list[str], attributes: dict[str, Any]
) -> dict[str, Any]:
    """Return the zarr.json of an array of float32 with one chunk and checksum per slot."""
    return array_document(
        shape=shape,
        dtype=POOLED_DTYPE,
        fill="NaN",
        chunk=(1, *shape[1:]),
        codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        names=names,
        attributes=attributes,
    )


def array_document(
    shape: tuple[int, ...],
    dtype: str,
    fill: str | float,
    chunk: tuple[int, ...],
    codecs: list[dict[str, Any]],
    names: list[str],
    attributes: dict[str, Any],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": names,
        "storage_transformers": [],
    }


def attributes_checksum(attributes: Mapping[str, Any], names: Iterable[str]) -> int:
    """Return crc32c of some attributes as JSON, independent of spaces and order.

    Raises:
        KeyError: One is missing.
    """
    chosen = {name: attributes[name] for name in names}
    return int(crc32c(json.dumps(chosen, sort_keys=True, separators=(",", ":")).encode()))

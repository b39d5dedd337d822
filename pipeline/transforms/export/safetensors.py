"""Tensors of safetensors, a file for each utterance.

The form is that of https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.store.backend.base import Buffer
from pipeline.transforms.export.base import dtype_name, value_bytes
from pipeline.transforms.export.files import FilePerUtterance


class SafetensorsFiles(FilePerUtterance):
    """Writes tensors named `features`; id, layers and columns are in the header, as JSON."""

    name = "safetensors"
    suffix = ".safetensors"

    def holds(self, dtype: torch.dtype) -> bool:
        """Return whether a dtype is one of floating-point numbers of 16 or 32 bits."""
        return dtype.is_floating_point and dtype.itemsize in (2, 4)

    def file_parts(self, name: str, values: Tensor, columns: dict[str, Any]) -> Sequence[Buffer]:
        """Return the header and the values."""
        metadata = {
            "id": name,
            "layers": json.dumps(self.content.layers),
            "columns": json.dumps(columns, ensure_ascii=False),
        }
        return [safetensors_header(values, metadata), value_bytes(values)]


def safetensors_header(values: Tensor, metadata: dict[str, str]) -> bytes:
    """Return what comes before the values of a tensor `features` in a file of safetensors.

    The library copies the values twice, and writes the metadata in a random order.
    """
    bits = 8 * values.dtype.itemsize
    described = {
        "dtype": f"{'BF' if dtype_name(values.dtype).startswith('b') else 'F'}{bits}",
        "shape": list(values.shape),
        "data_offsets": [0, values.nbytes],
    }
    header = json.dumps({"__metadata__": metadata, "features": described}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header

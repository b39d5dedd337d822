"""NumPy arrays, a file for each utterance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.store.backend.base import Buffer
from pipeline.transforms.export.base import value_bytes
from pipeline.transforms.export.files import FilePerUtterance


class NpyFiles(FilePerUtterance):
    """Writes files for `numpy.load`, also with `mmap_mode`."""

    name = "npy"
    suffix = ".npy"

    def file_parts(self, name: str, values: Tensor, columns: dict[str, Any]) -> Sequence[Buffer]:
        """Return the header and the values."""
        return [npy_header(values), value_bytes(values)]


def npy_header(values: Tensor) -> bytes:
    """Return what comes before the values in a file of NumPy."""
    header = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(values.numpy())
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()

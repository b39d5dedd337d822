"""A file for each utterance: the base of such formats, NumPy, and safetensors."""

from __future__ import annotations

import io
import json
import struct
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.store.backend.base import Buffer
from pipeline.transforms.export.base import (
    MAX_FILES_PER_FOLDER,
    Appender,
    Chunk,
    Entry,
    ExportFormat,
    dtype_name,
    value_bytes,
)
from pipeline.transforms.export.names import encoded

_MAX_OPEN = 64
"""Files that are written before they are synced together."""
_THREADS = 8  # that sync; they wait for the disk


class FilePerUtterance(ExportFormat):
    """Writes `<folder>/<id><suffix>`, with at most a thousand files in a folder."""

    suffix: ClassVar[str]
    overhead_bytes = 8192  # a header, and the rest of the last block on the disk
    part_utterances = 2000

    @abstractmethod
    def file_parts(self, name: str, values: Tensor, columns: dict[str, Any]) -> Sequence[Buffer]:
        """Return the content of a file, in parts.

        Args:
            name: The id.
            values: With the axes of `Content.axes`.
            columns: The columns, for JSON.
        """

    def write_part(self, number: int, chunks: Iterable[Chunk]) -> Iterator[Entry]:
        """Write a file for each utterance; sync and publish some dozen together."""
        del number
        with ThreadPoolExecutor(_THREADS) as pool:
            for chunk in chunks:
                names, paths = chunk.ids, []
                for first in range(0, len(names), _MAX_OPEN):
                    with ExitStack() as stack:
                        partials = []
                        for i in range(first, min(first + _MAX_OPEN, len(names))):
                            parts = self.file_parts(names[i], chunk.values[i], chunk.columns[i])
                            folder = f"{(chunk.start + i) // MAX_FILES_PER_FOLDER:05d}"
                            paths.append(f"{folder}/{encoded(names[i])}{self.suffix}")
                            partials.append(self.out.open_partial(paths[-1]))
                            stack.callback(partials[-1].discard)
                            file = Appender(partials[-1])
                            for part in parts:
                                file.write(part)
                        self.out.publish(partials, pool.map)
                yield from chunk.entries(paths)


class NpyFiles(FilePerUtterance):
    """NumPy arrays, for `numpy.load`, also with `mmap_mode`."""

    name = "npy"
    suffix = ".npy"

    def file_parts(self, name: str, values: Tensor, columns: dict[str, Any]) -> Sequence[Buffer]:
        """Return the header and the values."""
        return [npy_header(values), value_bytes(values)]


class SafetensorsFiles(FilePerUtterance):
    """Tensors named `features`; id, layers and columns are in the header, as JSON."""

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


def npy_header(values: Tensor) -> bytes:
    """Return what comes before the values in a file of NumPy."""
    header = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(values.numpy())
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


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

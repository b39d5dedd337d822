"""The contract of an export format.

An export is a sequence of parts. A part is a run of consecutive utterances; it is written at once
and is complete or does not count. The runner plans the parts, reads and verifies the utterances,
and records the complete parts. A format writes the files of a part.

A format must implement at least `write_part`. `tests/transforms/test_export.py` tests every format
against this contract.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.store.backend.base import Backend, Buffer, PartialObject
from pipeline.store.format.codecs import PORTABLE_DTYPES

PORTABLE = tuple(getattr(torch, name) for name in PORTABLE_DTYPES)
"""Dtypes that NumPy, and with it most libraries, can hold."""
MAX_FILES_PER_FOLDER = 1000

Entry = dict[str, Any]
"""A line of the manifest: id, path, n_frames, and the columns."""


@dataclass(frozen=True)
class Content:
    """What is exported of each utterance.

    Attributes:
        layers: Exported layers.
        labels: What files and columns of each of them are called by: `6`, `conv`.
        dim: Length of a vector: features per frame, times the number of statistics.
        statistics: Statistics over frames that are exported, one after the other in a vector; none
            if the frames are.
        dtype: Dtype of the exported values; None if the format has to choose.
        stored: Dtype of the values as the store returns them.
        columns: Names and types of the columns.
        class_names: Class names of the columns that hold class numbers.
        ambiguous: Ids that are others but for upper and lower case, which some file systems do not
            distinguish.
        source: Hashes of the store's identity and of the selected utterances with their columns.
        shard_bytes: About how many bytes a file with many utterances may have.
    """

    layers: tuple[int, ...]
    labels: tuple[str, ...]
    dim: int
    statistics: tuple[str, ...]
    dtype: torch.dtype | None
    stored: torch.dtype
    columns: pa.Schema
    class_names: Mapping[str, Sequence[str]]
    ambiguous: frozenset[str]
    source: str
    shard_bytes: int

    @property
    def is_pooled(self) -> bool:
        """Whether statistics over frames are exported, not the frames."""
        return bool(self.statistics)

    @property
    def is_single(self) -> bool:
        """Whether one layer is exported. Then the values have no axis of layers."""
        return len(self.layers) == 1

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of an utterance's values."""
        names = ("n_layers", "n_frames", "dim")
        return tuple(
            name
            for name in names
            if not (name == "n_layers" and self.is_single)
            and not (name == "n_frames" and self.is_pooled)
        )


@dataclass(frozen=True)
class Chunk:
    """Some consecutive utterances, as they were read.

    Attributes:
        start: Number of the first one in the export.
        n_frames: Frames of each.
        values: Values of each, of the export's dtype, contiguous, with the axes of `Content.axes`.
        metadata: `id` and the columns, a row for each.
        columns: The columns of each as values for JSON, with class names for class numbers.
    """

    start: int
    n_frames: Sequence[int]
    values: Sequence[Tensor]
    metadata: pa.Table
    columns: Sequence[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        """Ids of the utterances."""
        return list(self.metadata["id"].to_pylist())

    def entries(self, paths: Sequence[str]) -> list[Entry]:
        """Return the lines of the manifest, from the path of each utterance."""
        rows = zip(self.ids, paths, self.n_frames, self.columns, strict=True)
        return [
            {"id": name, "path": path, "n_frames": n_frames, "columns": columns}
            for name, path, n_frames, columns in rows
        ]


class ExportFormat(ABC):
    """A kind of file that utterances are exported to.

    The files of a part have names that follow from its number or from the numbers of its
    utterances, so that writing a part again replaces what a killed run has left of it. Ids are
    data: a path has an id only as `names.encoded` returns it.

    Attributes:
        name: Value of the setting `format`.
        overhead_bytes: Upper bound of the bytes on disk of an utterance besides its values.
        part_utterances: Most utterances of a part.
        part_bytes: About the most bytes of a part, if it has several utterances.
    """

    name: ClassVar[str]
    overhead_bytes: ClassVar[int] = 4096
    part_utterances: ClassVar[int] = 10_000

    def __init__(self, content: Content, out: Backend) -> None:
        """Prepare to write.

        Args:
            content: What is exported.
            out: The folder.

        Raises:
            ConfigError: The format cannot hold it.
        """
        if content.dtype is not None and not self.holds(content.dtype):
            known = [dtype_name(dtype) for dtype in PORTABLE if self.holds(dtype)]
            raise ConfigError(
                f"format={self.name} cannot hold dtype={dtype_name(content.dtype)}; it holds "
                f"{', '.join(known)}"
            )
        stored = content.stored if self.holds(content.stored) else torch.float32
        self.content, self.out, self.dtype = content, out, content.dtype or stored
        self.part_bytes = content.shard_bytes

    def holds(self, dtype: torch.dtype) -> bool:
        """Return whether the format can hold values of a dtype; float32 it must."""
        return dtype in PORTABLE

    @abstractmethod
    def write_part(self, number: int, chunks: Iterable[Chunk]) -> Iterator[Entry]:
        """Write the utterances of a part, durably, and yield their lines of the manifest.

        Args:
            number: Number of the part.
            chunks: Its utterances, in order. They must be consumed one at a time, so that memory
                stays bounded.
        """

    def finish(self, n_parts: int, entries: Iterable[Entry]) -> None:
        """Write what is made of all parts, such as lists; called once every part is complete.

        Args:
            n_parts: Number of parts.
            entries: The lines of the manifest, in order.
        """
        del n_parts, entries


class Appender:
    """Writes to a partial object from its begin to its end; also a file for pyarrow."""

    closed = False

    def __init__(self, partial: PartialObject) -> None:
        self._partial = partial
        self._at = 0

    def write(self, data: Buffer) -> int:
        """Write bytes; return their number."""
        view = memoryview(data).cast("B")
        self._partial.write(view, self._at)
        self._at += len(view)
        return len(view)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._at

    def flush(self) -> None:
        """Do nothing: publishing makes the bytes durable."""

    def close(self) -> None:
        """Do nothing: the partial object is published."""


def value_bytes(values: Tensor) -> memoryview:
    """Return contiguous values as little-endian bytes, without a copy."""
    return values.view(torch.uint8).numpy().data.cast("B")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as in settings."""
    return str(dtype).removeprefix("torch.")


def as_json(value: Any) -> Any:
    """Return a value of a column for JSON: bytes in base64, dates as text, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def json_line(document: Any) -> bytes:
    """Return a document as one line of JSON, in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

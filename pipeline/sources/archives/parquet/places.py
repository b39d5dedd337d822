"""Places of embedded audio: which bytes of which file are those of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.sources.archives.parquet.pages import Chunk, Page

_ARRAYS = ("file", "chunk", "start", "length")


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A compressed column chunk.

    Attributes:
        path: File that holds it.
        chunk: What the footer states.
        pages: Its pages of values.
        first_rows: Row, within the chunk, of the first value of each page.
        dictionary: Its dictionary; None if it has none.
    """

    path: str
    chunk: Chunk
    pages: tuple[Page, ...]
    first_rows: tuple[int, ...]
    dictionary: Page | None


@dataclass(frozen=True)
class Places:
    """Where the encoded bytes of each row are.

    Attributes:
        paths: Paths of files.
        chunks: Compressed column chunks.
        file: int32 `[n_rows]`, index of the row's file in `paths`; -1 = the row has no bytes, or
            they are in a compressed chunk.
        chunk: int32 `[n_rows]`, index in `chunks`; -1 = the row has no bytes, or a range.
        start: int64 `[n_rows]`, first byte within the file, or row within the compressed chunk.
        length: int64 `[n_rows]`, number of bytes of a range.
    """

    paths: tuple[str, ...]
    chunks: tuple[PackedChunk, ...]
    file: npt.NDArray[np.int32]
    chunk: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]

    def slice(self, start: int, stop: int) -> Places:
        """Return the rows of a range."""
        return replace(self, **{name: getattr(self, name)[start:stop] for name in _ARRAYS})

    @property
    def has_bytes(self) -> npt.NDArray[np.bool_]:
        """Whether each row has bytes: bool `[n_rows]`."""
        return (self.file >= 0) | (self.chunk >= 0)


def joined(parts: Sequence[Places]) -> Places:
    """Join the rows of several files."""
    paths: list[str] = []
    chunks: list[PackedChunk] = []
    arrays: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _ARRAYS}
    for part in parts:
        arrays["file"].append(np.where(part.file < 0, -1, part.file + len(paths)))
        arrays["chunk"].append(np.where(part.chunk < 0, -1, part.chunk + len(chunks)))
        arrays["start"].append(part.start)
        arrays["length"].append(part.length)
        paths += part.paths
        chunks += part.chunks
    whole = {name: np.concatenate(values) for name, values in arrays.items()}
    return Places(tuple(paths), tuple(chunks), **whole)


def without_bytes(n_rows: int) -> Places:
    """Return the places of rows that have no bytes."""
    none, zero = np.full(n_rows, -1, np.int32), np.zeros(n_rows, np.int64)
    return Places((), (), none, none, zero, zero)

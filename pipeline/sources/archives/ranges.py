"""Ranges of bytes: where the audio of a row is, within a file that holds that of many."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class Ranges:
    """The bytes of a container that the encoded audio of each row takes.

    Attributes:
        container: Kind of the files that hold the audio.
        offset: int64 `[n_rows]`, the first byte within the file.
        length: int64 `[n_rows]`, the number of bytes; null = the row's audio is no range, but a
            whole file or bytes in memory.
    """

    container: Literal["parquet", "tar"]
    offset: pa.Array
    length: pa.Array

    def take(self, rows: pa.Array) -> Ranges:
        """Return those of some rows, by their numbers."""
        return Ranges(self.container, self.offset.take(rows), self.length.take(rows))

    def of(self, row: int) -> dict[str, Any]:
        """Return the arguments of a row for `Segment`."""
        length = self.length[row].as_py()
        if length is None:
            return {}
        offset = self.offset[row].as_py()
        return {"container": self.container, "byte_offset": offset, "byte_length": length}

    @property
    def state(self) -> str:
        """Return a hash of all values, for the fingerprint of the source."""
        digest = hashlib.sha256(self.container.encode())
        for values in (self.offset, self.length):
            digest.update(pc.fill_null(values, -1).to_numpy(zero_copy_only=False).tobytes())
        return digest.hexdigest()

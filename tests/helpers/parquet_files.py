"""Parquet files with embedded audio, and the bytes that a source finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audio.content import open_bytes
from pipeline.sources.base import Source

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def audio(clips: Sequence[bytes | None], names: Sequence[str | None] | None = None) -> pa.Array:
    """Make an audio column; None is a null of the column."""
    names = names or [f"{i}.wav" for i in range(len(clips))]
    rows = zip(clips, names, strict=True)
    values = [None if data is None else {"bytes": data, "path": name} for data, name in rows]
    return pa.array(values, AUDIO)


def write_parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    """Write a file whose pages are neither compressed nor of a dictionary, unless told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"compression": "none", "use_dictionary": False} | options
    pq.write_table(table, path, **options)
    return path


def contents(source: Source) -> list[bytes | None]:
    """Return the encoded bytes of every row; None for one without any, or with no such file."""
    found: list[bytes | None] = []
    for row in range(len(source)):
        segment = source.segment(row)
        if segment.data is None and (segment.path is None or not Path(segment.path).exists()):
            found.append(None)
            continue
        if segment.byte_length == 0:  # which cannot be opened
            found.append(b"")
            continue
        with open_bytes(segment) as file:
            found.append(file.read())
    return found


def containers(source: Source) -> set[str]:
    """Return how the audio of the rows is held: file, parquet or memory."""
    segments = [source.segment(row) for row in range(len(source))]
    return {"memory" if s.data is not None else s.container for s in segments}

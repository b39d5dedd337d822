"""Manifests of NeMo and fairseq.

NeMo: JSON lines with `audio_filepath`, `duration` and perhaps `offset`. Times are rounded as NeMo
does: start and length times the sample rate, without their fractions. fairseq: a first line with
the root folder, then lines with path, tab and number of samples.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.sources.columns import Rows
from pipeline.sources.lists.lines import (
    Columns,
    check_path,
    place,
    read_lines,
    read_objects,
)
from pipeline.sources.location import audio_root
from pipeline.sources.remote.file import RemoteFolder
from pipeline.sources.remote.uri import is_remote
from pipeline.sources.segments import Spans

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_AUDIO = "audio_filepath"
_GUESSED_LINES = 2
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")


def guess_format(path: Path) -> str | None:
    """Return "nemo" or "fairseq" by the first lines of a list; None for any other table.

    Raises:
        SourceError: It is a list of lhotse.
    """
    if path.suffix.lower() == ".parquet":
        return None
    lines = []
    try:
        for _, line in read_lines(path):
            lines.append(line)
            if len(lines) == _GUESSED_LINES:
                break
    except SourceError:
        return None  # the reader of tables has the better words
    if not lines:
        return None
    if lines[0].lstrip().startswith("{"):
        try:
            first = json.loads(lines[0])
        except (ValueError, RecursionError):
            return None
        if first.get("type") == "MonoCut" or {"sources", "sampling_rate"} <= first.keys():
            raise SourceError(f"{path} is a list of lhotse: use dataset=lhotse")
        return "nemo" if isinstance(first.get(_AUDIO), str) and "duration" in first else None
    if len(lines) == _GUESSED_LINES and "\t" not in lines[0]:
        fields = lines[1].split("\t")
        # 8000.0 is refused later, with its line.
        if len(fields) == 2 and _NUMBER.fullmatch(fields[1].strip()):
            return "fairseq"
    return None


def nemo_rows(config: DatasetConfig, path: Path) -> Rows:
    """Read a manifest of NeMo.

    An entry without `offset` is its whole file if the file is as long as `duration`, to 10 ms.

    Raises:
        SourceError: A line is malformed, or its audio is a program; the message names the line.
    """
    columns = Columns()
    for number, entry in read_objects(path):
        where = place(path, number)
        if not isinstance(entry.get(_AUDIO), str):
            raise SourceError(f"{where}: there is no {_AUDIO}")
        entry[_AUDIO] = check_path(entry[_AUDIO], where)
        for name in ("offset", "duration"):
            value = entry.get(name)
            if value is not None and not _is_seconds(value):
                raise SourceError(f"{where}: {name} is {value!r:.40}; expected seconds")
        columns.add(entry)
    if not len(columns):
        raise SourceError(f"{path} has no rows")
    table = columns.table()
    start = _seconds(table, "offset")
    spans = Spans(
        pc.fill_null(start, 0.0), duration=_seconds(table, "duration"), is_rounded=pc.is_null(start)
    )
    return Rows(table, {}, _AUDIO, audio_root(config, path.parent), spans=spans)


def fairseq_rows(config: DatasetConfig, path: Path) -> Rows:
    """Read a manifest of fairseq.

    Raises:
        SourceError: A line is malformed; the message names it.
    """
    root: str | None = None
    columns = Columns()
    for number, line in read_lines(path):
        if root is None:
            root = line.strip()
            continue
        file, tab, n_samples = line.partition("\t")
        where = place(path, number)
        if not tab or not n_samples.strip().isdecimal():
            raise SourceError(
                f"{where} is not a path, a tab and a whole number of samples, as in a manifest of "
                "fairseq"
            )
        columns.add({"path": check_path(file, where)})
    if root is None or not len(columns):
        raise SourceError(f"{path} has no rows")
    folder = RemoteFolder(root.rstrip("/")) if is_remote(root) else path.parent / root
    return Rows(columns.table(), {}, "path", audio_root(config, folder))


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e12


def _seconds(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table), pa.float64())
    return pc.cast(table[name].combine_chunks(), pa.float64())

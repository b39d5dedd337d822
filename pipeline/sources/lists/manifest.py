"""A manifest: a table with the paths of audio files, or a list of NeMo or fairseq."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, first_few
from pipeline.sources import hub
from pipeline.sources.columns import Rows, require_column
from pipeline.sources.lists.delimited import SUFFIXES, infer_types, read_delimited
from pipeline.sources.lists.lines import from_files
from pipeline.sources.lists.manifests import fairseq_rows, guess_format, nemo_rows
from pipeline.sources.location import audio_root, existing_path
from pipeline.sources.splits import ALL, COLUMN, chosen
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

FORMATS = ("table", "nemo", "fairseq")


def open_manifest(config: DatasetConfig) -> TabularSource:
    """Open the list at `dataset.path`: `dataset.format`, or what its first lines look like.

    Relative audio paths start from `dataset.root`, or from the list's directory; those of fairseq
    from the folder in its first line.

    Raises:
        SourceError: The list is missing or cannot be read, or see `TabularSource`.
    """
    path = existing_path(config, directory=False)
    if config.format not in (None, *FORMATS):
        raise SourceError(f"dataset.format={config.format} is none of {', '.join(FORMATS)}")
    kind = config.format or guess_format(path) or "table"
    if kind == "table":
        root = audio_root(config, path.parent)
        if path.suffix.lower() in SUFFIXES:
            rows = _delimited_rows(config, path, root)
        else:
            rows = hub.rows_of(hub.read_table(path), config, root)
    else:
        rows = (nemo_rows if kind == "nemo" else fairseq_rows)(config, path)
        if config.format is None:
            note = f"the list was read as one of {kind}; dataset.format=table reads it as a table"
            rows = replace(rows, notes=(note, *rows.notes))
    return TabularSource(config, _of_splits(config, from_files(rows, [path])))


def _delimited_rows(config: DatasetConfig, path: Path, root: str) -> Rows:
    """Read a csv or tsv. Ids and paths are text."""
    table = read_delimited(path)
    require_column(config.audio_column, table.column_names, "dataset.audio_column")
    table = infer_types(table, {config.audio_column, config.id_column, *(config.types or ())})
    return Rows(table, {}, config.audio_column, root)


def _of_splits(config: DatasetConfig, rows: Rows) -> Rows:
    """Return the rows whose column `split` has a value that `dataset.split` names.

    Raises:
        SourceError: There is no such column, or it does not have one of the values.
    """
    if config.split is None:
        return rows
    require_column(COLUMN, rows.table.column_names, f"dataset.split={config.split}")
    values = rows.table[COLUMN].cast(pa.string())
    names = sorted(filter(None, pc.unique(values).to_pylist()))
    splits = chosen(config.split, names)
    if splits is None:
        raise SourceError(
            f"dataset.split={config.split} is not in the column split: {first_few(names)}"
        )
    if config.split == ALL:
        return rows
    return rows.take(pc.indices_nonzero(pc.is_in(values, pa.array(splits, pa.string()))))

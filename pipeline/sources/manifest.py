"""A manifest: a table with the paths of audio files, or a list of NeMo or fairseq."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceError
from pipeline.sources import hub
from pipeline.sources.lists.manifests import fairseq_rows, guess_format, nemo_rows
from pipeline.sources.location import existing_path
from pipeline.sources.table_cache import table_state
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
        root = Path(config.root).expanduser().absolute() if config.root else path.parent
        rows = hub.rows_of(hub.read_table(path), config, str(root))
    else:
        rows = (nemo_rows if kind == "nemo" else fairseq_rows)(config, path)
        if config.format is None:
            note = f"the list was read as one of {kind}; dataset.format=table reads it as a table"
            rows = replace(rows, notes=(note, *rows.notes))
    return TabularSource(config, replace(rows, state=table_state(path), tables=(str(path),)))

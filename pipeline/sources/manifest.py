"""A manifest: a csv, tsv, json, jsonl or parquet table with the paths of audio files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.sources import hub
from pipeline.sources.location import existing_path
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


def open_manifest(config: DatasetConfig) -> TabularSource:
    """Open the table at `dataset.path`; relative audio paths start from its directory.

    Raises:
        SourceError: The table is missing or cannot be read, or see `TabularSource`.
    """
    path = existing_path(config, directory=False)
    rows = hub.rows_of(hub.read_table(path), config, str(path.parent))
    return TabularSource(config, replace(rows, state=hub.table_state(path), tables=(str(path),)))

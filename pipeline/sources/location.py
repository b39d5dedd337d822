"""Path or name of the configured dataset, checked and described."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceError

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


def existing_path(config: DatasetConfig, *, directory: bool) -> Path:
    """Return `dataset.path` as an absolute path.

    Args:
        config: Configuration of the dataset.
        directory: Whether the path must be a directory; otherwise it must be a file.

    Raises:
        SourceError: The path is not set, does not exist, or is of the other kind.
    """
    if not config.path:
        raise SourceError(f"dataset={config.kind} needs dataset.path")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise SourceError(f"{describe_location(config)} does not exist")
    if path.is_dir() != directory:
        need = "a directory" if directory else "a csv, tsv, json, jsonl or parquet file"
        raise SourceError(f"{describe_location(config)}: dataset={config.kind} needs {need}")
    return path.absolute()


def describe_location(config: DatasetConfig) -> str:
    """Return the setting that names the dataset, with its value, for messages."""
    return f"dataset.name={config.name}" if config.kind == "hub" else f"dataset.path={config.path}"

"""Path or name of the configured dataset, checked and described."""

from __future__ import annotations

import itertools
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceError
from pipeline.files import require_regular
from pipeline.sources.remote.file import RemoteFolder
from pipeline.sources.remote.listing import has_files, is_file
from pipeline.sources.remote.reading import resolved
from pipeline.sources.remote.tables import original
from pipeline.sources.remote.uri import folder_of, is_remote

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


_CHECK_S = 1.0
_checked_until: dict[str, float] = {}
_checking = threading.Lock()


def existing_path(config: DatasetConfig, *, directory: bool) -> Path:
    """Return `dataset.path` as an absolute path.

    Args:
        config: Configuration of the dataset.
        directory: Whether the path must be a directory; otherwise it must be a file.

    Raises:
        SourceError: The path is not set, does not exist, or is of another kind.
    """
    if not config.path:
        raise SourceError(f"dataset={config.kind} needs dataset.path")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise SourceError(f"{describe_location(config)} does not exist")
    if path.is_dir() != directory:
        table = "a csv, tsv, json, jsonl or parquet file"
        file = "a jsonl or jsonl.gz file" if config.kind == "lhotse" else table
        need = "a directory" if directory else file
        if config.kind == "manifest":
            need += (
                "; for a folder with a table for each split, set dataset.split=train+test or all"
            )
        raise SourceError(f"{describe_location(config)}: dataset={config.kind} needs {need}")
    if not directory:
        require_regular(path)
    return path.absolute()


def audio_root(config: DatasetConfig, folder: Path | RemoteFolder) -> str:
    """Return the folder that relative audio paths of a list start from.

    Args:
        config: Configuration of the dataset; its `root` comes first.
        folder: Folder to start from without that setting.
    """
    if config.root and is_remote(config.root):
        return resolved(config.root.rstrip("/"))
    return original(str(Path(config.root).expanduser().absolute() if config.root else folder))


def describe_location(config: DatasetConfig) -> str:
    """Return the setting that names the dataset, with its value, for messages."""
    return f"dataset.name={config.name}" if config.kind == "hub" else f"dataset.path={config.path}"


def check_reachable(config: DatasetConfig, file: str | None) -> None:
    """Check that a dataset has not gone away, after one of its files could not be read.

    Nothing can be concluded about the files of a dataset whose folder was unmounted or moved.

    Args:
        config: Configuration of the dataset.
        file: Path of the file; None if the audio is in the dataset's own files.

    Raises:
        SourceError: `dataset.path` is missing; or it, or a folder that once held the file's folder,
            is empty, as a mount point is while nothing is mounted.
    """
    if is_remote(file) or is_remote(config.path):
        for uri in filter(is_remote, (config.path, config.root, file and _top_of(file))):
            _check_remote(config, str(uri))
        return
    root = _fixed_part(Path(config.path).expanduser()) if config.path else None
    folders = [] if root is None or root.is_file() else [root]
    if file is not None and "://" not in file and not Path(file).exists():
        parents = Path(file).absolute().parents
        nearest = next(parent for parent in parents if parent.is_dir())
        folders += [nearest] if nearest != parents[0] else []
    away = next((f for f in folders if not f.is_dir() or not any(f.iterdir())), None)
    if away is not None:
        raise SourceError(
            f"{away} is gone or empty (is it still mounted?), so no file of "
            f"{describe_location(config)} is quarantined: bring it back and run the same command "
            "again"
        )


def is_missing(file: str) -> bool:
    """Return whether a file does not exist, local or remote.

    Raises:
        SourceError: A server does not answer, or refuses it.
    """
    if is_remote(file):
        return not is_file(file)
    try:
        return not Path(file).exists()
    except (OSError, ValueError):
        return False


def _top_of(file: str) -> str:
    """Return the URI of the first folder in a bucket; of the bucket, if a file is in none."""
    return "/".join(file.split("/")[:4]) if file.count("/") > 3 else folder_of(file)


def _check_remote(config: DatasetConfig, uri: str) -> None:
    """Check that something is left of a remote place; at most once a second.

    Raises:
        SourceError: There is nothing.
    """
    with _checking:
        if time.monotonic() < _checked_until.get(uri, 0.0):
            return
        fixed = re.split(r"[*?\[{]", uri.rstrip("/"), maxsplit=1)[0]
        if fixed != uri.rstrip("/"):
            fixed = folder_of(fixed)
        if not (has_files(fixed) or is_file(fixed)):
            raise SourceError(
                f"{fixed} is gone or empty, so no file of {describe_location(config)} is "
                "quarantined: bring it back and run the same command again"
            )
        _checked_until[uri] = time.monotonic() + _CHECK_S


def _fixed_part(path: Path) -> Path:
    """Return a path, or the folder before the first wildcard of one that is a pattern."""
    if path.exists():
        return path
    parts = list(itertools.takewhile(lambda part: not set("*?[{") & set(part), path.parts))
    return Path(*parts)

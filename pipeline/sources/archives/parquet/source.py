"""A dataset of Parquet files: which files, and the splits that their names state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import SourceError, first_few
from pipeline.files import require_regular
from pipeline.sources.archives.parquet.pages import UnknownFormError
from pipeline.sources.archives.parquet.rows import File, ParquetSource, Part, read_parts
from pipeline.sources.archives.shards import find_shards
from pipeline.sources.location import describe_location
from pipeline.sources.remote.file import RemoteFolder
from pipeline.sources.splits import ALL, NAMES, chosen
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-[0-9a-f]+)?")
_NUMBER = re.compile(r"[-_.]?\d+$")


def open_parquet(config: DatasetConfig) -> TabularSource:
    """Open the Parquet files of `dataset.path`: a file, a folder, or a pattern such as `*.parquet`.

    Raises:
        SourceError: There is none, or one is damaged or has a form that is not read; the split does
            not exist; or see `TabularSource`.
    """
    root, names = _find_files(config)
    parts = choose_splits(config, root, names)
    try:
        rows, places = read_parts(config, parts, root)
    except UnknownFormError as error:
        raise SourceError(
            f"{error}; write it again with Arrow, with compression=None and use_dictionary=False"
        ) from error
    return ParquetSource(config, rows, places)


def _find_files(config: DatasetConfig) -> tuple[Path | RemoteFolder, list[str]]:
    """List the files of `dataset.path`.

    Returns:
        Their nearest common folder, and paths relative to it, sorted.

    Raises:
        SourceError: There are none, or one is not a regular file.
    """
    if not config.path:
        raise SourceError("dataset=parquet needs dataset.path: a file, a folder or a pattern")
    shards = find_shards(config.path, ".parquet")
    if not shards.names:
        raise SourceError(f"{describe_location(config)} holds no .parquet file")
    if isinstance(shards.root, Path):
        for name in shards.names:
            require_regular(shards.root / name)
    return shards.root, shards.names


def split_of(name: str) -> str | None:
    """Return the split that a file's path states, as on the hub; None if it states none.

    `train-00000-of-00005.parquet` is of the split train, as are `train.parquet`, `train-0.parquet`
    and any file in a folder `train`; usual names may have capitals.
    """
    path = PurePosixPath(name)
    shard = _SHARD.fullmatch(path.stem)
    if shard:
        return shard[1]
    parts = (_NUMBER.sub("", path.stem), *reversed(path.parts[:-1]))
    return next((part for part in parts if part.lower() in NAMES), None)


def choose_splits(
    config: DatasetConfig, root: Path | RemoteFolder, names: Sequence[str]
) -> list[Part]:
    """Return the files of each split that the configuration names, or of the only one.

    Raises:
        SourceError: A split does not exist, or there are several and none is named.
    """
    files: dict[str | None, list[File]] = {}
    for name in names:
        files.setdefault(split_of(name), []).append(root / name)
    unnamed = files.pop(None, [])
    if unnamed and files:
        raise SourceError(
            f"{describe_location(config)}: {first_few([str(file) for file in unnamed])} name no "
            f"split, but others do ({', '.join(map(str, files))}): leave one kind out, with a "
            "pattern as dataset.path"
        )
    if unnamed:
        if config.split not in (None, ALL):
            raise SourceError(
                f"dataset.split={config.split}: the files of {describe_location(config)} name no "
                "split; leave dataset.split out"
            )
        return [Part("", tuple(unnamed))]
    splits = split_names(config, sorted(filter(None, files)))
    return [Part(split, tuple(files[split])) for split in splits]


def split_names(config: DatasetConfig, names: Sequence[str]) -> list[str]:
    """Return the splits that the configuration names, or the only one.

    Raises:
        SourceError: One does not exist, or there are several and none is named.
    """
    if config.split is None and len(names) > 1:
        raise SourceError(
            f"{describe_location(config)} has {len(names)} splits: choose with "
            f"dataset.split={'|'.join([ALL, *names])}, or several as in {'+'.join(names[:2])}"
        )
    splits = list(names) if config.split is None else chosen(config.split, names)
    if splits is None:
        raise SourceError(
            f"dataset.split={config.split} is not in {describe_location(config)}: "
            f"{', '.join(names)}"
        )
    return splits

"""A dataset of the Hugging Face hub: its Parquet files, read in place from the cache of the hub.

`datasets` says which files are of which split, and the types of the columns; it makes no copy of
their rows. Of a repository without Parquet files it loads the rows, as for any other dataset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import huggingface_hub  # which datasets depends on
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError, one_line
from pipeline.sources import hub
from pipeline.sources.archives.parquet.embedded import named
from pipeline.sources.archives.parquet.pages import UnknownFormError
from pipeline.sources.archives.parquet.rows import (
    File,
    ParquetSource,
    Part,
    Typed,
    opened_for_arrow,
    read_parts,
)
from pipeline.sources.archives.parquet.source import split_names
from pipeline.sources.location import describe_location
from pipeline.sources.remote.file import RemoteFile
from pipeline.sources.repository.errors import explained
from pipeline.sources.repository.files import Repository, find_repository
from pipeline.sources.splits import is_several

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig
    from pipeline.sources.tabular import TabularSource

_HUB_FILE = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")
_SHARD = re.compile(r"(.*-)\d+-of-(\d+)(.*)")
_N_DOWNLOADS = 8


@hub.quiet()
def open_hub(config: DatasetConfig) -> TabularSource:
    """Open the dataset that the hub, its cache or a local folder has under `dataset.name`.

    Raises:
        SourceError: It is neither in the cache nor on the hub, cannot be loaded, or lacks files or
            the split; see also `TabularSource`.
    """
    hub.check_name_and_split(config)
    repository = find_repository(config)
    if not repository.urls:
        return _loaded(config, repository.notes)
    try:
        typed = _typed(config, repository)
        rows, places = read_parts(config, _parts(config, repository), None, typed)
    except (UnknownFormError, _CastError) as error:
        if not repository.is_converted:
            return _loaded(config, repository.notes)
        if config.revision is not None:
            raise SourceError(
                f"{error}; leave out dataset.revision={config.revision} to load the repository"
            ) from error
        note = f"the Parquet files that the hub made of {config.name} are not used: {error}"
        return _loaded(config, (note,))
    notes = (*repository.notes, *rows.notes)
    if any(_HUB_FILE.fullmatch(url) for url in next(iter(repository.urls.values()))):
        # They name the commit; times of files differ by node.
        rows = replace(rows, state=json.dumps(repository.urls))
    return ParquetSource(config, replace(rows, notes=notes), places)


def _loaded(config: DatasetConfig, notes: tuple[str, ...]) -> TabularSource:
    """Open the dataset as `load_dataset` loads it, which copies it.

    Raises:
        SourceError: As for `open_hub`, or the dataset was to be streamed.
    """
    if config.stream:
        raise SourceError(
            f"dataset.stream=true reads Parquet files only, and "
            f"{describe_location(config)} has none: leave it out to load the dataset"
            + "".join(f" ({note})" for note in notes)
        )
    with explained(str(config.name), config.revision, f"a file of {describe_location(config)}"):
        source = hub.open_hub(config)
    source.notes = (*notes, *source.notes)
    return source


class _CastError(Exception):
    """Columns that do not have the types of the dataset."""


def _parts(config: DatasetConfig, repository: Repository) -> list[Part]:
    """Return the rows of the splits that the configuration names, or of a slice of one.

    Files that are not in the cache of the hub are downloaded into it.

    Raises:
        SourceError: A split does not exist or lacks files, or a file cannot be downloaded.
    """
    names, urls = sorted(repository.urls), repository.urls
    is_slice = config.split not in (None, *names) and not is_several(config.split)
    if not is_slice:
        parts = [Part(split, _fetch(config, urls[split])) for split in split_names(config, names)]
        for part in parts:
            _check_complete(config, repository, part)
        return parts
    return _sliced(config, repository)


def _sliced(config: DatasetConfig, repository: Repository) -> list[Part]:
    """Return the rows of slices of one split, such as `train[:100]`."""
    name, urls = str(config.split).partition("[")[0], repository.urls
    if name not in urls:
        split_names(replace(config, split=name), sorted(urls))
    whole = Part(name, _fetch(config, urls[name]))
    n_rows = _check_complete(config, repository, whole)
    try:
        slices = datasets.ReadInstruction.from_spec(config.split).to_absolute({name: n_rows})
    except (ValueError, AssertionError) as error:
        raise SourceError(f"dataset.split={config.split}: {one_line(error)}") from error
    bounds = [(one.from_ or 0, n_rows if one.to is None else one.to) for one in slices]
    return [replace(whole, start=start, stop=stop) for start, stop in bounds]


def _fetch(config: DatasetConfig, urls: Sequence[str]) -> tuple[File, ...]:
    """Return files; those of the hub are downloaded unless they are in its cache, or streamed."""
    what = f"a file of {describe_location(config)} is not in the local cache and"

    def fetch(url: str) -> File:
        found = _HUB_FILE.fullmatch(url)
        if found is None:
            return Path(url)
        if config.stream:
            return RemoteFile(url)
        repo_id, revision, name = found.groups()
        return Path(
            huggingface_hub.hf_hub_download(repo_id, name, repo_type="dataset", revision=revision)
        )

    with (
        explained(str(config.name), config.revision, what),
        ThreadPoolExecutor(_N_DOWNLOADS) as pool,
    ):
        return tuple(pool.map(fetch, urls))


def _check_complete(config: DatasetConfig, repository: Repository, part: Part) -> int:
    """Check the number of files and of rows of a split; return the latter.

    Raises:
        SourceError: Files are missing, as in the cache after a part of a download, or there are
            other rows than the dataset's card states.
    """
    shards = [found for file in part.files if (found := _SHARD.fullmatch(file.name))]
    groups = {(found[1], found[2], found[3]) for found in shards}
    n_expected = sum(int(n) for _, n, _ in groups)
    if len(shards) < n_expected:
        raise SourceError(
            f"{describe_location(config)} has {len(shards)} of the {n_expected} files of the split "
            f"{part.split}; fetch the others, with a connection to the hub"
        )
    n_rows = 0
    for file in part.files:
        with named(str(file)), opened_for_arrow(file) as content:
            n_rows += pq.read_metadata(content).num_rows
    n_stated = repository.n_rows.get(part.split, n_rows)
    if n_stated != n_rows:
        raise SourceError(
            f"the split {part.split} of {describe_location(config)} has {n_rows:,} rows, but its "
            f"card (README.md) states {n_stated:,}: files are missing, or the card is "
            "out of date"
        )
    return n_rows


def _typed(config: DatasetConfig, repository: Repository) -> Typed:
    """Return what gives a table the types that `load_dataset` gives it."""
    if repository.features is not None:
        features = datasets.Features.from_dict(repository.features)
    else:  # those of the first file of all splits
        (first,) = _fetch(config, next(iter(repository.urls.values()))[:1])
        with named(str(first)), opened_for_arrow(first) as content:
            schema = pq.read_schema(content)
        try:
            features = datasets.Features.from_arrow_schema(schema)
        except hub.LOAD_ERRORS as error:
            raise _CastError from error
    class_names = hub.class_names_of(features)

    def typed(table: pa.Table) -> tuple[pa.Table, dict[str, tuple[str, ...]]]:
        try:
            table = datasets.table.table_cast(table, features.arrow_schema)
        except hub.LOAD_ERRORS as error:
            raise _CastError from error
        return table.replace_schema_metadata(None), class_names

    return typed

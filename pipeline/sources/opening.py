"""The kinds of source, and the function that opens one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.sources.archives.parquet.source import open_parquet
from pipeline.sources.archives.webdataset import open_webdataset
from pipeline.sources.base import Source
from pipeline.sources.channels import CountChannels, check_channel, with_channel, without_column
from pipeline.sources.folder import open_folder
from pipeline.sources.lists.kaldi import open_kaldi
from pipeline.sources.lists.lhotse import open_lhotse
from pipeline.sources.lists.manifest import open_manifest
from pipeline.sources.remote.extents import extents
from pipeline.sources.remote.reading import resolved
from pipeline.sources.remote.tables import copy_tables, original
from pipeline.sources.remote.uri import is_remote
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


def _open_disk(config: DatasetConfig) -> TabularSource:
    from pipeline.sources.hub import open_disk

    return open_disk(config)


def _open_hub(config: DatasetConfig) -> TabularSource:
    from pipeline.sources.repository.source import open_hub

    return open_hub(config)


_OPENERS: dict[str, Callable[[DatasetConfig], TabularSource]] = {
    "audiofolder": open_folder,
    "manifest": open_manifest,
    "kaldi": open_kaldi,
    "lhotse": open_lhotse,
    "parquet": open_parquet,
    "webdataset": open_webdataset,
    "disk": _open_disk,
    "hub": _open_hub,
}


def open_source(config: DatasetConfig, count_channels: CountChannels | None = None) -> Source:
    """Open the dataset that a configuration describes.

    Any number of processes may open the same dataset at once: `datasets` locks its cache, and
    every process but the first finds the table there.

    Args:
        config: Its `kind` is audiofolder (every audio file under `path`, or the rows of its
            metadata.csv, .jsonl or .parquet), manifest (a table of paths, or a list of NeMo or
            fairseq), kaldi (a data directory), lhotse (cuts), webdataset (samples in tar files),
            parquet (files with embedded audio), disk (written by `save_to_disk`) or hub (found by
            `load_dataset` under `name`).
        count_channels: Reads the number of channels of a file. With `channel="each"`, and only
            then, it is called for every file.

    Raises:
        SourceError: The dataset does not exist, cannot be read or has no rows; a column or split
            that the configuration names does not exist; an id is empty or not unique; the
            channel is stated twice.

    Example:
        >>> source = open_source(DatasetConfig(kind="audiofolder", path="clips"))
        >>> source.segment(0).id
        'anna/0001.flac'
    """
    if config.kind not in _OPENERS:
        raise SourceError(f"dataset.kind={config.kind} is none of {', '.join(_OPENERS)}")
    check_channel(config)
    extents.forget()
    try:
        source = _open(without_column(config))
    except SourceError as error:
        if (text := original(str(error))) == str(error):
            raise
        raise type(error)(text) from error
    pa.default_memory_pool().release_unused()  # for a million files, 80 MB that Arrow would keep
    return with_channel(source, config, count_channels)


def _open(config: DatasetConfig) -> Source:
    """Open a dataset, whose tables are copied if they are remote."""
    if is_remote(config.path):
        config = replace(config, path=resolved(str(config.path).rstrip("/")))
    copied = copy_tables(config)
    source = _OPENERS[config.kind](copied)
    if copied is not config:
        source.config = config
        source.notes = tuple(map(original, source.notes))
    return source

"""The view of a source that `dataset.channel` states: one channel of each file, or each of them.

With `each`, an utterance becomes one for each channel of its file. Its id has the channel after a
`#`, also in a file of one channel, so that an id does not depend on other channels.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import AudioError, SourceError, counted
from pipeline.sources.base import Column, Segment, Source

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

EACH, MEAN = "each", "mean"
COLUMN = "channel"
"""Column with the channel of each utterance, for `each`."""
CountChannels = Callable[[Segment], int]
"""Returns the number of channels that the header of a segment's file states."""
_N_THREADS = 32  # they wait for the file system, which may be remote
_BLOCK_ROWS = 128


def check_channel(config: DatasetConfig) -> None:
    """Check `dataset.channel` before the dataset is opened.

    Raises:
        SourceError: It is no channel, or `dataset.channel_column` is given, too.
    """
    channel = config.channel
    if channel is None:
        return
    if channel not in (EACH, MEAN) and not (channel.isascii() and channel.isdecimal()):
        raise SourceError(
            f"dataset.channel={channel} is no channel: give its number from 0, each, or mean"
        )
    if config.channel_column is not None:
        raise SourceError(
            f"dataset.channel={channel} and dataset.channel_column={config.channel_column} both "
            "state the channel: leave one out"
        )


def without_column(config: DatasetConfig) -> DatasetConfig:
    """Return the configuration of the dataset itself, which has no column `channel` yet."""
    if config.channel != EACH or config.columns is None:
        return config
    return replace(config, columns=tuple(name for name in config.columns if name != COLUMN))


def with_channel(
    source: Source, config: DatasetConfig, count_channels: CountChannels | None
) -> Source:
    """Return the view of a source that `dataset.channel` states.

    Args:
        source: The dataset, with the mean of all channels.
        config: Its configuration.
        count_channels: Reads the number of channels of a file, for `each`.

    Returns:
        The source itself if the setting is null or `mean`.

    Raises:
        SourceError: The list states channels of its own; or see `ChannelView`.
    """
    channel = config.channel
    if channel is None:
        return source
    _check_unstated(source.segment(0), source)
    if channel == MEAN:
        return source
    if channel != EACH:
        every = np.arange(len(source))
        return ChannelView(source, config, every, np.full(len(source), int(channel)))
    if count_channels is None:
        raise SourceError("dataset.channel=each needs the headers of the files, not only the list")
    counts = _counts(source, count_channels)
    rows = np.repeat(np.arange(len(source)), counts)
    first = np.cumsum(counts) - counts  # utterance with channel 0 of each row
    return ChannelView(source, config, rows, np.arange(len(rows)) - first[rows])


class ChannelView:
    """Implementation of `Source`: one channel of each utterance of another source.

    Args:
        source: The other source.
        config: Configuration of the view.
        rows: Row of each utterance in `source`: int64 `[n_utterances]`, ascending.
        channels: Its channel: int64 `[n_utterances]`.

    Raises:
        SourceError: With `each`, the other source has a column `channel`.
    """

    def __init__(
        self,
        source: Source,
        config: DatasetConfig,
        rows: npt.NDArray[np.int64],
        channels: npt.NDArray[np.int64],
    ) -> None:
        self._source, self._rows, self._channels = source, rows, channels
        self.config, self.origin = config, source.origin
        self.skipped, self.skipped_columns = source.skipped, source.skipped_columns
        self.columns, self.notes = source.columns, source.notes
        self.is_shared = source.is_shared
        self.identity: dict[str, Any] = {**source.identity, "channel": config.channel}
        self._ids = source.ids()
        self._has_column = False
        if config.channel == EACH:
            self._tell_apart()

    def _tell_apart(self) -> None:
        """Add the channel to the ids, and as a column; say how many files have several."""
        source, rows, channels = self._source, self._rows, self._channels
        suffixes = pa.array(channels).cast(pa.string())
        self._ids = pc.binary_join_element_wise(self._ids.take(pa.array(rows)), suffixes, "#")
        self._has_column = self.config.columns is None or COLUMN in self.config.columns
        if self._has_column:
            self._add_column()
        n_several = len(np.unique(rows[channels > 0]))
        note = (
            f"dataset.channel=each: {n_several:,} of {counted(len(source), 'row')} have several "
            f"channels, so there are {counted(len(rows), 'utterance')}"
        )
        self.notes = (*source.notes, note)

    def _add_column(self) -> None:
        if COLUMN in (column.name for column in self.columns):
            raise SourceError(
                f"dataset.channel=each adds a column {COLUMN}, which {self.origin} has: name other "
                "columns in dataset.columns, or rename it"
            )
        column = Column(COLUMN, "int64")
        self.columns = (*self.columns, column)
        described = {"name": COLUMN, "type": column.type, "class_names": None}
        self.identity["columns"] = [*self._source.identity["columns"], described]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the other source's fingerprint and of the channels."""
        facts = json.dumps([self._source.fingerprint, self.config.channel])
        digest = hashlib.sha256(facts.encode())
        digest.update(self._rows.astype("<i8").tobytes() + self._channels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> pa.StringArray:
        """Return the ids of all rows, in order."""
        return self._ids

    def segment(self, row: int) -> Segment:
        """Return the channel of one row's audio."""
        segment = self._source.segment(int(self._rows[row]))
        _check_unstated(segment, self._source)
        return replace(segment, id=self._ids[row].as_py(), channel=int(self._channels[row]))

    def metadata(self, rows: Sequence[int]) -> pa.Table:
        """Return the carried columns of `rows`, in that order."""
        chosen = np.asarray(rows, np.int64)
        table = self._source.metadata(self._rows[chosen].tolist())
        if not self._has_column:
            return table
        channels = pa.array(self._channels[chosen], pa.int64())
        if not table.column_names:
            return pa.table({COLUMN: channels})
        return table.append_column(COLUMN, channels)


def _check_unstated(segment: Segment, source: Source) -> None:
    """Raise SourceError if a list states the channel of a segment."""
    if segment.channel is not None:
        raise SourceError(
            f"dataset.channel={source.config.channel}: {source.origin} states channels of its own "
            f"({segment.channel} of {segment.id!r:.80}); leave it out"
        )


def _counts(source: Source, count_channels: CountChannels) -> npt.NDArray[np.int64]:
    """Read the number of channels of each row's file, once for each file; 1 if it is unreadable."""
    known: dict[tuple[object, ...], int] = {}

    def count(row: int) -> int:
        segment = source.segment(row)
        _check_unstated(segment, source)
        key = (segment.path, segment.byte_offset, segment.byte_length)
        found = known.get(key)
        if found is None:
            try:
                found = max(1, count_channels(segment))
            except AudioError:  # the scan gets the same error, and the utterance is quarantined
                found = 1
            if segment.data is None:
                known[key] = found
        return found

    def count_block(start: int) -> list[int]:
        return [count(row) for row in range(start, min(start + _BLOCK_ROWS, len(source)))]

    with ThreadPoolExecutor(_N_THREADS) as pool:
        blocks = list(pool.map(count_block, range(0, len(source), _BLOCK_ROWS)))
    return np.array([n for block in blocks for n in block], np.int64)

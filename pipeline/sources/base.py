"""The contract of a source: records of utterances, a fingerprint, and columns to carry.

A new kind of source implements `Source`, gets a line in `opening.py`, and a line in
`tests/sources/test_conformance.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


@dataclass(frozen=True, slots=True)
class Segment:
    """The undecoded audio of one utterance: encoded bytes, and a range of their samples.

    The defaults mean a whole file.

    Attributes:
        id: Id of the utterance.
        path: Absolute path of the local file that holds the bytes; None if there is none.
        data: The encoded bytes, if the source holds them in memory. They take precedence over
            `path`, and the byte range does not apply to them.
        container: Kind of the file at `path`: the audio itself, or a file that embeds it.
        byte_offset: First encoded byte within the file.
        byte_length: Number of encoded bytes; -1 = up to the end of the file.
        start_sample: First sample, at the native rate.
        stop_sample: Sample after the last one, at the native rate; -1 = the end.
        channel: Channel to take, from 0; None = mean over all channels.
        declared_rate_hz: Native rate that the source states; None if it states none.
        declared_samples: Samples per channel that the source states for all encoded bytes; None
            if it states none.
    """

    id: str
    path: str | None = None
    data: bytes | None = None
    container: Literal["file", "parquet", "tar"] = "file"
    byte_offset: int = 0
    byte_length: int = -1
    start_sample: int = 0
    stop_sample: int = -1
    channel: int | None = None
    declared_rate_hz: int | None = None
    declared_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A dataset column that is carried into the store.

    Attributes:
        name: Name in the dataset.
        type: Arrow type, as a string.
        class_names: Names of a ClassLabel's integers; None for any other column.
    """

    name: str
    type: str
    class_names: tuple[str, ...] | None = None


class Source(Protocol):
    """A dataset of utterances in a fixed order, opened by `opening.open_source`.

    An implementation must

    - give the same ids, segments, metadata and fingerprint each time that the same configuration
      is opened, in any process: workers receive the configuration, never the source;
    - open no audio file in `__init__`, `ids`, `segment` and `metadata`;
    - allow calls from several threads at once.
    """

    @property
    def config(self) -> DatasetConfig:
        """Configuration that the source was opened with; picklable."""

    @property
    def origin(self) -> str:
        """What the rows come from, for messages: files of a table, or the dataset's setting."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of `metadata`, in order. None has a name that the store's index reserves."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files of the dataset that are not utterances, relative to it."""

    @property
    def skipped_columns(self) -> tuple[str, ...]:
        """Columns that are not carried although the configuration does not exclude them."""

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able facts that define the content; part of the store's identity. No paths."""

    @property
    def fingerprint(self) -> str:
        """Hash of the rows, the settings, and the size and modification time of every file.

        It must change when a row, a setting or a file changes. It should not change when the
        dataset is moved.
        """

    def __len__(self) -> int:
        """Return the number of utterances; at least 1."""

    def ids(self) -> pa.StringArray:
        """Return the ids of all rows, in order. They are unique and not empty."""

    def segment(self, row: int) -> Segment:
        """Return the audio of one row. Its `id` equals `ids()[row]`."""

    def metadata(self, rows: Sequence[int]) -> pa.Table:
        """Return the carried columns.

        Args:
            rows: Rows in any order, with repetitions; may be empty.

        Returns:
            Table with one row for each of `rows`, in that order, and the columns and types that
            `columns` states.
        """

"""The contract of a source: records of utterances, a fingerprint, and columns to carry.

A new kind of source implements `Source`, gets a line in `opening.py`, and a line in
`tests/sources/test_conformance.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


OVERSHOOT_S = 0.5
"""A segment given in seconds may end this much beyond its recording, as in Kaldi; it is clipped."""


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """The part of a recording that a list states in seconds; times `rate_hz` are samples.

    Attributes:
        start_s: Start of the part.
        stop_s: End of the part; None = the end of the recording, unless `duration_s` is given.
        duration_s: Length of the part, instead of `stop_s`. It is rounded by itself.
        rounding: "down", as Kaldi and NeMo do it, or "nearest", halves up, as lhotse does it.
        snap_s: An end that differs from the end of the recording by no more than this is the
            recording's: durations of whole recordings are often rounded.
    """

    start_s: float
    stop_s: float | None = None
    duration_s: float | None = None
    rounding: Literal["down", "nearest"] = "down"
    snap_s: float = 0.0

    @property
    def has_end(self) -> bool:
        """Whether it states an end."""
        return self.stop_s is not None or self.duration_s is not None

    def samples(self, rate_hz: int, n_samples: int) -> tuple[int, int]:
        """Return the first sample, and the one after the last; the latter may exceed the end.

        Args:
            rate_hz: Sample rate of the recording.
            n_samples: Its samples per channel.
        """
        start = self._round(self.start_s * rate_hz)
        if self.duration_s is not None:
            stop = start + self._round(self.duration_s * rate_hz)
        else:
            stop = n_samples if self.stop_s is None else self._round(self.stop_s * rate_hz)
        return start, n_samples if abs(stop - n_samples) <= self.snap_s * rate_hz else stop

    def _round(self, position: float) -> int:
        if self.rounding == "down":
            return int(position)
        return math.floor(round(position, 8) + 0.5)  # 2.01 s are 32160 samples at 16 kHz

    def __str__(self) -> str:
        if self.duration_s is not None:
            return f"of {self.duration_s:g} s from {self.start_s:g} s"
        stop = "the end" if self.stop_s is None else f"{self.stop_s:g} s"
        return f"from {self.start_s:g} s to {stop}"


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
        span: The samples, given in seconds instead; None if they are given as above.
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
    span: TimeSpan | None = None
    channel: int | None = None
    declared_rate_hz: int | None = None
    declared_samples: int | None = None

    @property
    def has_end(self) -> bool:
        """Whether it states an end, so that the end of the file does not matter."""
        return self.stop_sample != -1 if self.span is None else self.span.has_end


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
    - open no audio file in `__init__`, `ids`, `segment` and `metadata` (the headers are read for
      `dataset.channel=each` alone, in `channels.py`);
    - allow calls from several threads at once.

    Workers read only the segments of their units, which the driver sends. They open the source
    themselves only if it is not `is_shared`.
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
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how the dataset was read, a sentence each."""

    @property
    def is_shared(self) -> bool:
        """Whether segments name files that every machine of a run has at the same place.

        They do not if they hold encoded bytes in memory, or name files of a cache.
        """

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

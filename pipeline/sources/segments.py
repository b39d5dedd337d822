"""Parts of recordings: the rows of a table that name a start, and an end or a length."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, counted
from pipeline.sources.base import TimeSpan
from pipeline.sources.columns import first_failure, is_text, one_array, require_column
from pipeline.sources.lists.ids import has_duplicates, path_ids

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig
    from pipeline.sources.columns import Rows

SETTINGS = ("start_column", "stop_column", "duration_column", "channel_column")
_STARTS = frozenset(("start", "begin", "onset", "offset", "from", "xmin"))
_OTHERS = frozenset(("end", "stop", "duration", "finish", "length", "to", "xmax", "channel"))
"""Words of the names of columns that look like parts of recordings."""
_AFFIXES = frozenset(
    (
        *("time", "s", "sec", "secs", "second", "seconds", "ms", "msec", "sample", "samples"),
        *("frame", "frames", "segment", "seg", "clip", "utterance", "utt", "audio"),
    )
)
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_ARRAYS = ("start", "stop", "duration", "channel", "is_rounded")
MAX_SECONDS = 1e12
"""Times are less than this: 30,000 years."""
ROUNDED_S = 0.01
"""Durations of whole recordings are often rounded to this."""


@dataclass(frozen=True, slots=True)
class Spans:
    """The part of its recording that each row takes.

    Attributes:
        start: float64 or int64 `[n_rows]`, in seconds or samples.
        stop: The same for the end; null = the end of the recording. None if there is `duration`,
            or if each row goes to the end.
        duration: Length of each part, instead of `stop`; None if there is `stop`.
        channel: int64 `[n_rows]`; null, or None for all: the mean over channels.
        unit: Unit of the three.
        rounding: As for `TimeSpan`.
        is_rounded: bool `[n_rows]`: whether a `duration` may be that of the whole recording,
            rounded. None for no row.
    """

    start: pa.Array
    stop: pa.Array | None = None
    duration: pa.Array | None = None
    channel: pa.Array | None = None
    unit: Literal["seconds", "samples"] = "seconds"
    rounding: Literal["down", "nearest"] = "down"
    is_rounded: pa.Array | None = None

    def take(self, rows: pa.Array) -> Spans:
        """Return those of some rows, by their numbers."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return replace(self, **{k: v.take(rows) for k, v in arrays.items() if v is not None})

    def of(self, row: int) -> dict[str, Any]:
        """Return the arguments of a row for `Segment`."""
        start, stop, duration, channel = (
            None if values is None else values[row].as_py()
            for values in (self.start, self.stop, self.duration, self.channel)
        )
        if self.unit == "samples":
            stop = start + duration if duration is not None else stop
            # -1 means the end; a stated end before the start is one of no samples.
            stop = -1 if stop is None else stop if stop > start else start
            return {"start_sample": start, "stop_sample": stop, "channel": channel}
        snaps = self.is_rounded is not None and self.is_rounded[row].as_py()
        span = TimeSpan(start or 0.0, stop, duration, self.rounding, ROUNDED_S if snaps else 0.0)
        return {"span": span, "channel": channel}

    @property
    def identity(self) -> dict[str, str]:
        """Return how times become samples, for the identity of the source."""
        return {"unit": self.unit, "rounding": self.rounding}

    @property
    def state(self) -> str:
        """Return a hash of all values, for the fingerprint of the source."""
        digest = hashlib.sha256(json.dumps(self.identity).encode())
        for name in _ARRAYS:
            values: pa.Array | None = getattr(self, name)
            digest.update(f"{name} {values is not None}".encode())
            if values is not None:
                digest.update(values.to_numpy(zero_copy_only=False).astype(np.float64).tobytes())
        return digest.hexdigest()

    def labels(self) -> pa.Array:
        """Return the text `start-stop` or `start-stop/channel` of each row, for ids."""
        stop = self.stop if self.duration is None else pc.add(self.start, self.duration)
        form = "{:.3f}" if self.unit == "seconds" else "{}"
        none = [None] * len(self.start)
        parts = (none if p is None else p.to_pylist() for p in (self.start, stop, self.channel))
        columns = zip(*parts, strict=True)
        return pa.array(
            [
                f"{form.format(first)}-{'end' if last is None else form.format(last)}"
                + ("" if number is None else f"/{number}")
                for first, last, number in columns
            ],
            pa.string(),
        )


def joined_spans(parts: Sequence[Spans]) -> Spans:
    """Join the parts of the rows of several lists, which are of one form."""
    names = [name for name in _ARRAYS if getattr(parts[0], name) is not None]
    arrays = {name: pa.concat_arrays([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **arrays)


def with_spans(config: DatasetConfig, rows: Rows, paths: pa.ChunkedArray, is_file: bool) -> Rows:
    """Add the parts that the configuration's columns state, and a column with the recording.

    A note says if files repeat and none is cut, because then utterances have the same features;
    or if no file repeats, but columns look like parts of recordings.

    Args:
        config: Configuration of the dataset.
        rows: The rows.
        paths: Their audio paths.
        is_file: Whether each row is a file. The names of embedded audio may repeat by chance, so
            the note needs columns of times, too.

    Raises:
        SourceError: As for `spans_of`.
    """
    if rows.spans is None:
        rows = replace(rows, spans=spans_of(config, rows))
    elif any(getattr(config, setting) for setting in SETTINGS):
        raise SourceError(
            f"{', '.join(f'dataset.{s}' for s in SETTINGS if getattr(config, s))}: this list has "
            "times of its own; leave it out"
        )
    if rows.spans is None:
        notes = () if rows.ranges is not None else _note_whole(config, rows, paths, is_file)
        return replace(rows, notes=(*rows.notes, *notes))
    if "recording" not in rows.table.column_names:
        recording = path_ids(paths, rows.root)
        rows = replace(rows, table=rows.table.append_column("recording", recording))
    return rows


def _note_whole(
    config: DatasetConfig, rows: Rows, paths: pa.ChunkedArray, is_file: bool
) -> tuple[str, ...]:
    """Return a note if utterances that are whole files look like parts of files."""
    starts, others = suspects(rows.table)
    unused = ", ".join((*starts, *others))
    looks = "looks" if len(starts) + len(others) == 1 else "look"
    remedy = "set dataset.start_column with dataset.stop_column or dataset.duration_column"
    # Files without another id have their paths as ids, which may not repeat.
    has_ids = config.id_column or rows.id_column or rows.splits is not None
    named = paths.drop_null()
    if (has_ids if is_file else unused) and has_duplicates(named):
        n_files = pc.count_distinct(named).as_py()
        look = f"{unused} {looks} like parts of recordings. " if unused else ""
        return (
            f"{look}{counted(len(named), 'utterance')} are of {counted(n_files, 'file')}, and "
            f"every utterance is its whole file: to cut, {remedy}",
        )
    if len(starts) + len(others) < 2 or not any(_has_nonzero(rows.table[name]) for name in starts):
        return ()
    return (
        f"{unused} look like parts of recordings, but every utterance is its whole file: to cut, "
        f"{remedy}",
    )


def spans_of(config: DatasetConfig, rows: Rows) -> Spans | None:
    """Take the parts of recordings from the columns that the configuration names.

    A part without a length, or beyond its recording, is an error of that utterance alone.

    Returns:
        The parts; None if it names no such column.

    Raises:
        SourceError: A column does not exist or holds no numbers, or both an end and a length are
            named.
    """
    names = {setting: getattr(config, setting) for setting in SETTINGS}
    if not any(names.values()):
        return None
    if names["stop_column"] and names["duration_column"]:
        raise SourceError("give dataset.stop_column or dataset.duration_column, not both")
    if config.time_unit not in ("seconds", "samples"):
        raise SourceError(f"dataset.time_unit={config.time_unit} is neither seconds nor samples")
    is_seconds = config.time_unit == "seconds"
    kind = pa.float64() if is_seconds else pa.int64()
    start, stop, duration = (
        None if names[setting] is None else numbers(rows, names[setting], setting, kind)
        for setting in ("start_column", "stop_column", "duration_column")
    )
    channel = None
    if names["channel_column"] is not None:
        channel = numbers(rows, names["channel_column"], "channel_column", pa.int64())
    if start is None:
        start = pa.nulls(len(rows.table), kind)
    start = pc.fill_null(start, 0)
    return Spans(start, stop, duration, channel, "seconds" if is_seconds else "samples", "nearest")


def numbers(rows: Rows, name: str, setting: str, kind: pa.DataType) -> pa.Array:
    """Return a column as numbers; text is read as numbers, and empty text is null.

    Raises:
        SourceError: There is no such column, or a value is no such number: seconds are finite and
            less than `MAX_SECONDS`. The message names the row.
    """
    require_column(name, rows.table.column_names, f"dataset.{setting}")
    column = one_array(rows.table.column(name))
    if is_text(column.type):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    try:
        values = pc.cast(column, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        row = first_failure(column, kind)
        what = "numbers" if pa.types.is_floating(kind) else "whole numbers"
        raise SourceError(
            f"dataset.{setting}={name} is not of {what}: {rows.where(row)} has "
            f"{column[row].as_py()!r:.40}"
        ) from error
    if pa.types.is_floating(kind):
        row = pc.index(pc.less(pc.abs(values), MAX_SECONDS), False).as_py()  # NaN is not less
        if row >= 0:
            raise SourceError(
                f"dataset.{setting}={name}: {rows.where(row)} has {values[row].as_py()}; expected "
                "seconds"
            )
    return values


def columns_of(config: DatasetConfig) -> set[str | None]:
    """Return the columns of times and channels that the configuration names."""
    return {getattr(config, setting) for setting in SETTINGS}


def suspects(table: pa.Table) -> tuple[list[str], list[str]]:
    """Return the columns of numbers that look like parts of recordings: starts, and others."""
    found: tuple[list[str], list[str]] = ([], [])
    for field in table.schema:
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            tokens = [token.lower() for token in _TOKEN.findall(field.name)]
            words = [token for token in tokens if token not in _AFFIXES]
            for names, known in zip(found, (_STARTS, _OTHERS), strict=True):
                if len(words) == 1 and words[0] in known:
                    names.append(field.name)
    return found


def _has_nonzero(column: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.not_equal(column, 0)).as_py())

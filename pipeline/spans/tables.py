"""Tables of spans: csv, tsv, jsonl and parquet, with the column names that people use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.spans_schema import SpansConfig
from pipeline.errors import ConfigError, SourceError, did_you_mean
from pipeline.spans.table import SpanBuilder
from pipeline.spans.text import number, read_lines, read_records

_IDS = (
    *("id", "utt", "utt_id", "uttid", "utterance", "utterance_id", "segment_id", "clip", "clip_id"),
    *("audio_id", "file_id", "recording", "recording_id", "rec_id", "file", "file_name"),
    *("filename", "path", "audio", "audio_filepath", "wav", "key"),
)
_STARTS = (
    *("start", "begin", "onset", "xmin", "tmin", "min_time", "start_time", "begin_time", "from"),
    *("starttime", "begintime", "t0", "start_sec", "start_seconds"),
)
_STOPS = (
    *("end", "stop", "xmax", "tmax", "max_time", "end_time", "stop_time", "to", "endtime"),
    *("stoptime", "t1", "end_sec", "end_seconds", "stop_sec", "stop_seconds"),
)
_DURATIONS = ("duration", "dur", "length", "duration_sec", "duration_seconds")
_LABELS = (
    *("label", "text", "word", "phone", "phoneme", "token", "symbol", "speaker", "speaker_id"),
    *("class", "tag", "transcription", "transcript", "name", "event"),
)
_SUFFIXES = {"s": ("_s",), "ms": ("_ms",), "samples": ("_sample", "_samples")}
"""What column names end with that state the unit of their times."""
_PER_SECOND = {"s": 1.0, "ms": 1000.0}
_NUMBER = re.compile(r"\s*[-+]?\.?[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?\s*")
_N_ROWS = 1 << 16


@dataclass(frozen=True)
class _Columns:
    """Columns of a table of spans; `scale` is the number of its units of time in a second."""

    id: str
    start: str
    stop: str | None
    duration: str | None
    label: str | None
    scale: float


def add_csv(builder: SpanBuilder, path: Path, config: SpansConfig, delimiter: str) -> None:
    """Add the rows of a csv or tsv; between commas, quotation marks quote.

    Raises:
        SourceError: A row has other fields than the header, or a column is missing or ambiguous,
            or a value is missing, no number or may have swallowed rows. The message names the line.
    """
    records = read_records(path, delimiter, delimiter == ",", config.encoding)
    line, header = next(records, (0, []))
    if not header:
        raise SourceError(f"{path} is empty")
    names = [name.strip() for name in header]
    columns = _find(names, config, f"{path}, line {line}")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise SourceError(f"{path}, line {line} has several columns {repeated[0]!r}")

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for at, record in records:
            if len(record) != len(names):
                word = "more" if len(record) > len(names) else "fewer"
                hint = (
                    "; put values that contain a comma in quotation marks" if word == "more" else ""
                )
                raise SourceError(
                    f"{path}, line {at} has {word} fields than the header: {len(record)}, not "
                    f"{len(names)}{hint}"
                )
            broken = next((value for value in record if _has_rows(value, delimiter)), None)
            if broken is not None:
                raise SourceError(
                    f"{path}, line {at}: the value {broken!r:.40} has a line break, so that it may "
                    "have swallowed rows; is a quotation mark open? Write a mark of the text as "
                    'two ("") within quotation marks, or save the table as tsv, where it is text'
                )
            yield at, dict(zip(names, record, strict=True))

    builder.open(str(path))
    _add(builder, rows(), columns, config, f"{path}, line")


def _has_rows(value: str, delimiter: str) -> bool:
    """Return whether a value may have swallowed rows: it has several lines, and a time in one."""
    return "\n" in value and any(
        _NUMBER.fullmatch(field) for line in value.split("\n") for field in line.split(delimiter)
    )


def add_jsonl(builder: SpanBuilder, path: Path, config: SpansConfig) -> None:
    """Add the objects of a file with one JSON object a line; all have the fields of the first.

    Raises:
        SourceError: As for `add_csv`, or a line is no JSON object.
    """
    builder.open(str(path))
    objects = _objects(path, config.encoding)
    first = next(objects, None)
    if first is None:
        raise SourceError(f"{path} is empty")
    columns = _find(list(first[1]), config, f"{path}, line {first[0]}")
    _add(builder, _chained(first, objects), columns, config, f"{path}, line")


def add_parquet(builder: SpanBuilder, path: Path, config: SpansConfig) -> None:
    """Add the rows of a Parquet file.

    Raises:
        SourceError: As for `add_csv`, with the number of the row; or it is no Parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            columns = _find(file.schema_arrow.names, config, str(path))
            wanted = [columns.id, columns.start, columns.stop, columns.duration, columns.label]
            chosen = [name for name in dict.fromkeys(wanted) if name is not None]
            builder.open(str(path), "row")
            first = 1
            for batch in file.iter_batches(_N_ROWS, columns=chosen):
                rows = enumerate(batch.to_pylist(), start=first)
                _add(builder, rows, columns, config, f"{path}, row")
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise SourceError(f"{path} cannot be read: {text[:200]}") from error


def _add(
    builder: SpanBuilder,
    rows: Iterable[tuple[int, dict[str, Any]]],
    columns: _Columns,
    config: SpansConfig,
    place: str,
) -> None:
    """Add rows, each with its number."""
    end = columns.stop if columns.duration is None else columns.duration
    assert end is not None
    for line, row in rows:
        where = f"{place} {line}"
        start = _time(row, columns.start, where)
        stop = _time(row, end, where)
        if columns.duration is not None:
            if stop < 0:
                raise SourceError(f"{where}: {end} is {stop:g}; expected at least 0")
            stop += start
        label = config.label if columns.label is None else _text(row, columns.label, where, True)
        assert label is not None
        utterance = _text(row, columns.id, where)
        builder.add(utterance, start / columns.scale, stop / columns.scale, label, line)


def _time(row: dict[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    if isinstance(value, str):
        return number(value.strip(), name, where)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise SourceError(f"{where}: {name} is {value!r:.40}; expected a number")
    return float(value)  # type: ignore[arg-type]


def _text(row: dict[str, Any], name: str, where: str, may_be_empty: bool = False) -> str:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if may_be_empty and value is None and name in row:
        value = ""
    if not isinstance(value, str) or not (value or may_be_empty):
        raise SourceError(f"{where}: {name} is {value!r:.40}; expected text")
    return value


def _find(names: Sequence[str], config: SpansConfig, where: str) -> _Columns:
    """Find the columns of spans.

    Raises:
        SourceError: One is missing, or several may be meant; the message names them.
        ConfigError: The unit is not stated as it must be.
    """
    starts, stops = list(_STARTS), list(_STOPS)
    lowered = {name.lower() for name in names}
    if lowered & {"onset", "onset_s", "onset_ms"}:
        stops.append("offset")  # of events: onset and offset
    else:
        starts.append("offset")  # of NeMo: offset and duration
    utterance = _column(names, config.id_column, "id", _IDS, where)
    start = _column(names, config.start_column, "start", _timed(starts), where)
    wants_stop = config.duration_column is None
    wants_duration = config.stop_column is None
    stop = duration = None
    if wants_stop:
        needed = config.stop_column is not None
        stop = _column(names, config.stop_column, "stop", _timed(stops), where, needed)
    if wants_duration and stop is None:
        needed = config.duration_column is not None
        durations = _timed(_DURATIONS)
        duration = _column(names, config.duration_column, "duration", durations, where, needed)
    elif not wants_stop and not wants_duration:
        raise ConfigError("give stop_column or duration_column, not both")
    if stop is None and duration is None:
        raise _missing(names, "stop", where, " or duration_column=NAME")
    label = _column(names, config.label_column, "label", _LABELS, where, config.label is None)
    if config.label is not None:
        if config.label_column is not None:
            raise ConfigError("give label or label_column, not both")
        label = None
    assert utterance is not None
    assert start is not None
    end = duration if stop is None else stop
    assert end is not None
    return _Columns(utterance, start, stop, duration, label, _scale([start, end], config, where))


def _column(
    names: Sequence[str],
    given: str | None,
    role: str,
    usual: Iterable[str],
    where: str,
    is_needed: bool = True,
) -> str | None:
    """Return the column of a role: the one that is given, or the only one of a usual name."""
    if given is not None:
        if given not in names:
            raise SourceError(f"{where} has no column {given!r}{did_you_mean(given, names)}")
        return given
    known = set(usual)
    found = [name for name in names if name.lower().replace(" ", "_") in known]
    if len(found) > 1:
        exact = [name for name in found if name.lower() == role]
        if len(exact) == 1:
            return exact[0]
        raise SourceError(
            f"{where} has the columns {', '.join(found)}, any of which may be the {role}; give "
            f"{role}_column=NAME"
        )
    if not found and is_needed:
        raise _missing(names, role, where)
    return found[0] if found else None


def _missing(names: Sequence[str], role: str, where: str, other: str = "") -> SourceError:
    label = " or label=TEXT for all spans" if role == "label" else ""
    return SourceError(
        f"{where} has no column of a usual name for the {role}; its columns are "
        f"{', '.join(names)}: give {role}_column=NAME{other}{label}"
    )


def _timed(names: Iterable[str]) -> list[str]:
    ends = [end for some in _SUFFIXES.values() for end in some]
    return [f"{name}{end}" for name in names for end in ("", *ends)]


def _scale(names: Sequence[str], config: SpansConfig, where: str) -> float:
    """Return the units of time in a second: as configured, or as the columns' names state.

    Raises:
        SourceError: The names state several units.
        ConfigError: The rate of samples is not given.
    """
    units = {
        unit for name in names for unit, ends in _SUFFIXES.items() if name.lower().endswith(ends)
    }
    if config.unit is None and len(units) > 1:
        raise SourceError(
            f"{where}: the names {' and '.join(names)} state different units; give unit=s, "
            "unit=ms or unit=samples"
        )
    unit = config.unit or (units.pop() if units else "s")
    if unit != "samples":
        return _PER_SECOND[unit]
    if config.sample_rate_hz is None:
        raise ConfigError(
            f"{where}: {' and '.join(names)} are in samples; give sample_rate_hz=RATE, at which "
            "they are counted"
        )
    return config.sample_rate_hz


def _objects(path: Path, encoding: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in read_lines(path, encoding):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}, line {line} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise SourceError(f"{path}, line {line} is not a JSON object, but {text:.40}")
        yield line, found


def _chained(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others

"""Cuts, or recordings and supervisions, of lhotse in JSON lines; read without lhotse.

Times are rounded as lhotse does: start and length times the sample rate, halves up. Columns are
those of the supervisions: text, speaker, language, gender, and plain values of `custom`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.sources.columns import Rows
from pipeline.sources.lists.lines import Columns, check_path, from_files, place, read_objects
from pipeline.sources.lists.places import Form, Places
from pipeline.sources.location import audio_root, existing_path
from pipeline.sources.segments import Spans
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_SUPERVISION = ("text", "speaker", "language", "gender")
_SUFFIXES = (".jsonl", ".jsonl.gz")


def open_lhotse(config: DatasetConfig) -> TabularSource:
    """Open a list of cuts, or of supervisions with recordings.jsonl[.gz] beside it.

    A list of recordings alone has one utterance for each. Relative audio paths start from
    `dataset.root`, or from the directory of the list.

    Raises:
        SourceError: A line is malformed, or a cut is mixed, padded, transformed, of several
            channels, or of audio that is not a file; the message names the line. See also
            `TabularSource`.
    """
    path = existing_path(config, directory=False)
    used = [path]
    kind = _kind(path)
    columns = Columns()
    parse: Callable[[str, dict[str, Any]], dict[str, Any]]
    parse = _of_recording if kind == "recordings" else _of_cut
    if kind == "supervisions":
        beside = _recordings_beside(path)
        used.append(beside)
        parse = partial(_of_supervision, recordings=_recordings(beside), beside=beside)
    for number, found in read_objects(path):
        where = place(path, number)
        try:
            columns.add(parse(where, found))
        except (AttributeError, KeyError, TypeError) as error:  # another type than lhotse writes
            raise SourceError(f"{where} is not in the form of lhotse: {error}") from error
    table = columns.table()
    start, duration = (
        pc.cast(table[n].combine_chunks(), pa.float64()) for n in ("start", "duration")
    )
    channel = pc.cast(table["channel"].combine_chunks(), pa.int64())
    spans = Spans(start, duration=duration, channel=channel, rounding="nearest")
    root = audio_root(config, path.parent)
    places = Places(((path, len(table), Form()),))
    listed = Rows(table, {}, "path", root, spans=spans, id_column="id", places=places)
    return TabularSource(config, from_files(listed, used))


def _kind(path: Path) -> str:
    """Tell cuts, supervisions and recordings apart by the first line."""
    for number, found in read_objects(path):
        if found.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut"):
            return "cuts"
        if "recording_id" in found:
            return "supervisions"
        if "sources" in found:
            return "recordings"
        raise SourceError(
            f"{place(path, number)} is no cut, supervision or recording of lhotse; for another "
            "list of paths use dataset=manifest"
        )
    raise SourceError(f"{path} has no rows")


def _recordings_beside(path: Path) -> Path:
    name = path.name.replace("supervisions", "recordings")
    stem = name.removesuffix(".gz").removesuffix(".jsonl")
    candidates = [path.with_name(stem + suffix) for suffix in _SUFFIXES]
    for candidate in candidates:
        if candidate != path and candidate.is_file():
            return candidate
    raise SourceError(
        f"{path} holds supervisions, and their recordings are not beside it: neither "
        f"{' nor '.join(c.name for c in candidates)} exists"
    )


def _recordings(path: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Read a list of recordings: line number and recording of each id."""
    recordings: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, recording in read_objects(path):
        where = place(path, number)
        name = _text(where, recording, "id")
        if name in recordings:
            raise SourceError(f"{where}: recording {name} is listed twice")
        recordings[name] = (number, recording)
    return recordings


def _of_cut(where: str, cut: dict[str, Any]) -> dict[str, Any]:
    kind = cut.get("type")
    if kind != "MonoCut":
        raise SourceError(
            f"{where}: a {kind} is not read; write MonoCuts (cuts.trim_to_supervisions)"
        )
    recording = _field(where, cut, "recording", dict)
    row = _audio(where, recording, cut.get("channel", 0), _number(where, cut, "start"))
    row |= {"duration": _number(where, cut, "duration"), "id": _text(where, cut, "id")}
    supervisions = cut.get("supervisions") or []
    for name in _SUPERVISION:
        values = [s[name] for s in supervisions if s.get(name) is not None]
        if values:
            same = len(set(map(str, values))) == 1
            row[name] = (
                " ".join(map(str, values)) if name == "text" else values[0] if same else None
            )
    return row | _custom([*supervisions[:1], cut], row)


def _of_supervision(
    where: str,
    supervision: dict[str, Any],
    recordings: dict[str, tuple[int, dict[str, Any]]],
    beside: Path,
) -> dict[str, Any]:
    name = _text(where, supervision, "recording_id")
    if name not in recordings:
        raise SourceError(f"{where}: recording {name} is not in {beside.name}")
    line, recording = recordings[name]
    start = _number(where, supervision, "start")
    row = _audio(place(beside, line), recording, supervision.get("channel", 0), start)
    row |= {
        "duration": _number(where, supervision, "duration"),
        "id": _text(where, supervision, "id"),
    }
    row |= {n: supervision[n] for n in _SUPERVISION if supervision.get(n) is not None}
    return row | _custom([supervision], row)


def _of_recording(where: str, recording: dict[str, Any]) -> dict[str, Any]:
    channels = _channels(recording)
    channel = channels[0] if len(channels) == 1 else None
    row = _audio(where, recording, channel, 0.0)
    return row | {
        "duration": _number(where, recording, "duration"),
        "id": _text(where, recording, "id"),
    }


def _audio(where: str, recording: dict[str, Any], channel: Any, start: float) -> dict[str, Any]:
    """Find the file that holds a channel of a recording, and the channel's number in it."""
    if recording.get("transforms"):
        raise SourceError(f"{where}: the recording has transforms, which are not applied: save it")
    sources = _field(where, recording, "sources", list)
    if isinstance(channel, list):
        if len(channel) != 1:
            raise SourceError(f"{where}: a cut of {len(channel)} channels is not read")
        channel = channel[0]
    for source in sources:
        listed = source.get("channels") or [0]
        if channel is not None and channel not in listed:
            continue
        if source.get("type") != "file":
            raise SourceError(
                f"{where}: the audio is a {source.get('type')}, which is neither run nor fetched; "
                "save it to files"
            )
        path = check_path(_text(where, source, "source"), where)
        return {
            "path": path,
            "recording": recording.get("id"),
            "start": start,
            "channel": None if channel is None else listed.index(channel),
        }
    raise SourceError(f"{where}: no source of the recording holds channel {channel}")


def _channels(recording: dict[str, Any]) -> list[int]:
    found = (c for source in recording.get("sources") or [] for c in source.get("channels") or [0])
    return sorted(set(found))


def _custom(holders: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for holder in holders:
        for name, value in (holder.get("custom") or {}).items():
            if isinstance(value, str | int | float | bool) and name not in row:
                found.setdefault(name, value)
    return found


def _number(where: str, found: dict[str, Any], name: str) -> float:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise SourceError(f"{where}: {name} is {value!r:.40}; expected seconds")
    return float(value)


def _text(where: str, found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str | int) or value == "":
        raise SourceError(f"{where}: {name} is {value!r:.40}; expected text")
    return str(value)


def _field(where: str, found: dict[str, Any], name: str, kind: type) -> Any:
    value = found.get(name)
    if not isinstance(value, kind):
        raise SourceError(f"{where}: there is no {name}")
    return value

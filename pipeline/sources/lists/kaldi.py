"""A data directory of Kaldi or ESPnet: wav.scp, and perhaps segments, text, utt2spk and others.

Times are rounded as Kaldi does: a start or end times the sample rate, without its fraction; an end
of -1 is that of the recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, counted
from pipeline.sources.columns import Rows
from pipeline.sources.lists.lines import Columns, check_path, from_files, place, read_lines
from pipeline.sources.lists.places import Form, Places
from pipeline.sources.location import audio_root, existing_path
from pipeline.sources.segments import Spans
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_NAMES = {"text": "text", "utt2spk": "speaker", "utt2lang": "language", "utt2gender": "gender"}
"""Columns of the files about utterances; any other utt2NAME is the column NAME."""
_TIME = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_CHANNEL = re.compile(r"[0-9]{1,9}")
_NOT_CARRIED = frozenset(("utt2", "utt2dur", "utt2num_frames", "utt2max_frames"))
_CHANNELS = {"A": 0, "B": 1, "1": 0, "2": 1}  # of reco2file_and_channel


def open_kaldi(config: DatasetConfig) -> TabularSource:
    """Open the data directory at `dataset.path`.

    Relative audio paths start from `dataset.root`, or from the data directory.

    Raises:
        SourceError: A file is missing or malformed (the message names its line), an entry is a
            program or an archive, or a segment is of an unknown recording; see also
            `TabularSource`.
    """
    folder = existing_path(config, directory=True)
    recordings, channels = _recordings(folder)
    utterances = Columns()
    if (folder / "segments").exists():
        for row in _segments(folder / "segments", recordings, channels):
            utterances.add(row)
    else:
        for name, path in recordings.items():
            utterances.add({"utterance": name, "path": path, "channel": channels.get(name)})
    if not len(utterances):
        raise SourceError(f"{folder} lists no utterances")
    table = utterances.table()
    spans = None
    if "start" in table.column_names:
        stop = table["stop"].combine_chunks()
        stop = pc.if_else(pc.equal(stop, -1.0), pa.scalar(None, pa.float64()), stop)
        start, channel = (table[name].combine_chunks() for name in ("start", "channel"))
        spans = Spans(start, stop, channel=pc.cast(channel, pa.int64()))
    elif channels:
        channel = pc.cast(table["channel"].combine_chunks(), pa.int64())
        spans = Spans(pa.repeat(0.0, len(table)), channel=channel)
    if not channels and table["channel"].null_count == len(table):
        table = table.drop_columns(["channel"])
    files = _files_about_utterances(folder)
    table, columns, notes = _with_columns(table, folder, files)
    known = ("wav.scp", "segments", "reco2file_and_channel", "spk2gender", *files)
    used = [folder / name for name in known if (folder / name).exists()]
    root = audio_root(config, folder)
    rows = Rows(table, {}, "path", root, spans=spans, id_column="utterance", notes=notes)
    listed = folder / ("segments" if (folder / "segments").exists() else "wav.scp")
    rows = replace(rows, places=Places(((listed, len(table), Form()),), columns=columns))
    return TabularSource(config, from_files(rows, used))


def _recordings(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Read wav.scp, and the channels of recordings that are channels of one file.

    `reco2file_and_channel` also lists the channel that a file of one channel was taken from, so it
    counts only where several recordings have the same file.
    """
    if not (folder / "wav.scp").is_file():
        raise SourceError(f"{folder} has no wav.scp, so it is no data directory of Kaldi")
    recordings: dict[str, str] = {}
    for number, name, path in _pairs(folder / "wav.scp"):
        where = place(folder / "wav.scp", number)
        if name in recordings:
            raise SourceError(f"{where}: recording {name} is listed twice")
        recordings[name] = check_path(path, where)
    channels: dict[str, int] = {}
    listed = folder / "reco2file_and_channel"
    if listed.exists():
        for number, name, rest in _pairs(listed):
            channel = _CHANNELS.get(rest.split()[-1] if rest else "")
            if channel is None:
                raise SourceError(f"{place(listed, number)}: the channel is none of A, B, 1, 2")
            channels[name] = channel
        if len(set(recordings.values())) == len(recordings):
            channels = {}
    return recordings, channels


def _segments(
    path: Path, recordings: dict[str, str], channels: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Read the lines `utterance recording start end [channel]` of segments."""
    for number, line in read_lines(path):
        fields = line.split()
        where = place(path, number)
        if len(fields) not in (4, 5):
            raise SourceError(
                f"{where} has {len(fields)} fields; expected utterance, recording, start, end and "
                "perhaps a channel"
            )
        utterance, recording = fields[:2]
        if recording not in recordings:
            raise SourceError(f"{where}: recording {recording} is not in wav.scp")
        if not all(_TIME.fullmatch(field) and abs(float(field)) < 1e12 for field in fields[2:4]):
            raise SourceError(f"{where}: {fields[2]} and {fields[3]} are no times in seconds")
        if len(fields) == 5 and not _CHANNEL.fullmatch(fields[4]):
            raise SourceError(f"{where}: the channel is {fields[4]}; expected a number from 0")
        start, stop = float(fields[2]), float(fields[3])
        channel = int(fields[4]) if len(fields) == 5 else channels.get(recording)
        yield {
            "utterance": utterance,
            "path": recordings[recording],
            "recording": recording,
            "start": start,
            "stop": stop,
            "channel": channel,
        }


def _files_about_utterances(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [
        name
        for name in names
        if (name == "text" or name.startswith("utt2")) and name not in _NOT_CARRIED
    ]


def _with_columns(
    table: pa.Table, folder: Path, files: list[str]
) -> tuple[pa.Table, dict[str, Path], tuple[str, ...]]:
    """Append a column for each file about utterances, and say which of its lines are of none.

    Returns:
        The table, the file of each column, and the notes.
    """
    ids, notes = table["utterance"], []
    columns: dict[str, Path] = {}
    for file in files:
        values: dict[str, str] = {}
        for number, utterance, value in _pairs(folder / file):
            if utterance in values:
                raise SourceError(
                    f"{place(folder / file, number)}: utterance {utterance} is listed twice"
                )
            values[utterance] = value
        column = pa.array([values.get(i) for i in ids.to_pylist()], pa.string())
        n_used = len(column) - column.null_count
        if n_used < len(values):
            notes.append(f"{file}: {counted(len(values) - n_used, 'line')} without an utterance")
        if n_used < len(column):
            notes.append(f"{file}: {counted(len(column) - n_used, 'utterance')} without a line")
        name = _NAMES.get(file, file.removeprefix("utt2"))
        while name in table.column_names:
            name += "_"
        table = table.append_column(name, column)
        columns[name] = folder / file
    if (folder / "spk2gender").is_file() and "speaker" in table.column_names:
        genders = {name: value for _, name, value in _pairs(folder / "spk2gender")}
        speakers = table["speaker"].to_pylist()
        if "gender" not in table.column_names:
            column = pa.array([genders.get(name) for name in speakers], pa.string())
            table = table.append_column("gender", column)
    return table, columns, tuple(notes)


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield number, first word and rest of each line."""
    for number, line in read_lines(path):
        name, _, rest = line.strip().partition(" ")
        if "\t" in name:
            name, _, rest = line.strip().partition("\t")
        yield number, name, rest.strip()

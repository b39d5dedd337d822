"""Refusals that are about one row of a list name its file, line and column."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.lists.places import Form, Places
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import write

ROWS = [
    {"path": "a.wav", "utt": "x", "from": "0", "side": "0", "score": "1"},
    {"path": "b.wav", "utt": "y", "from": "1.5", "side": "1", "score": "2"},
    {"path": "c.wav", "utt": "z", "from": "2", "side": "", "score": "3"},
]
PARTS = {"start_column": "from", "channel_column": "side"}


def csv(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    """A csv with a blank line and a break in quotes before its last row, in line 6."""
    lines = [",".join(row.values()) for row in rows]
    note = ["note", "-", '"two\nlines"', "-"]
    table = [",".join(rows[0]), *lines]
    text = [f"{line},{extra}" for line, extra in zip(table, note, strict=True)]
    file = path / "list.csv"
    file.write_text("\n".join([*text[:3], "", text[3]]))
    return DatasetConfig("manifest", str(file), audio_column="path")


def tsv(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    (path / "list.tsv").write_text("\ufeff" + "\r\n".join("\t".join(line) for line in table))
    return DatasetConfig("manifest", str(path / "list.tsv"), audio_column="path")


def jsonl(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    (path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetConfig("manifest", str(path / "list.jsonl"), audio_column="path")


def document(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    (path / "list.json").write_text(json.dumps(rows, indent=1))
    return DatasetConfig("manifest", str(path / "list.json"), audio_column="path")


def parquet(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    pq.write_table(pa.Table.from_pylist(rows), path / "list.parquet")
    return DatasetConfig("manifest", str(path / "list.parquet"), audio_column="path")


def metadata(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    for name in "abc":
        write(path / "sub" / f"{name}.wav")
    lines = [",".join(row.values()) for row in rows]
    (path / "sub" / "metadata.csv").write_text(
        "\n".join([",".join(rows[0]).replace("path", "file_name"), *lines])
    )
    return DatasetConfig("audiofolder", str(path))


def splits(path: Path, rows: list[dict[str, str]]) -> DatasetConfig:
    """A table for each split; the last row is the first one of the second table."""
    for name, part in (("train", rows[:2]), ("test", rows[2:])):
        tsv(path, part)
        (path / "list.tsv").rename(path / f"{name}.tsv")
    return DatasetConfig("manifest", str(path), audio_column="path", split="train+test")


TABLES: dict[str, tuple[Callable[[Path, list[dict[str, str]]], DatasetConfig], str]] = {
    "csv": (csv, "list.csv, line 6"),
    "tsv": (tsv, "list.tsv, line 4"),
    "jsonl": (jsonl, "list.jsonl, line 3"),
    "json": (document, "list.json, row 3"),
    "parquet": (parquet, "list.parquet, row 3"),
    "metadata": (metadata, "sub/metadata.csv, line 4"),
    "splits": (splits, "test.tsv, line 2"),
}
FAULTS: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "no path": ({"path": ""}, {}, "path"),
    "no id": ({"utt": ""}, {"id_column": "utt"}, "utt"),
    "id twice": ({"utt": "x"}, {"id_column": "utt"}, "utt"),
    "no time": ({"from": "soon"}, PARTS, "dataset.start_column=from"),
    "endless": ({"from": "inf"}, PARTS, "dataset.start_column=from"),
    "no channel": ({"side": "left"}, PARTS, "dataset.channel_column=side"),
    "half a channel": ({"side": "0.5"}, PARTS, "dataset.channel_column=side"),
    "no score": ({"score": "good"}, {"types": {"score": "float"}}, "column score is not float"),
    "no truth": ({"score": "maybe"}, {"types": {"score": "bool"}}, "column score is not bool"),
    "a URL": ({"path": "https://a.b/c.wav"}, {}, "is a URL, which is not fetched"),
    "a program": ({"path": "sph2pipe c.sph |"}, {}, "is a program, which is never run"),
    "a pipe": ({"path": "pipe:sph2pipe c.sph"}, {}, "is a program, which is never run"),
    "an archive": ({"path": "raw.ark:34"}, {}, "is a place in an archive of Kaldi"),
}


def refused(config: DatasetConfig) -> str:
    with pytest.raises(SourceError) as error:
        open_source(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", TABLES)
def test_a_fault_in_one_row_is_named_by_its_line(tmp_path: Path, kind: str, fault: str) -> None:
    """In every kind of table: file, line and column, and the value that is wrong."""
    make, line = TABLES[kind]
    change, settings, column = FAULTS[fault]
    rows = [row | ({"score": "true"} if fault == "no truth" else {}) for row in ROWS]
    open_source(replace(make(tmp_path, rows), **settings))
    if kind == "splits" and fault == "id twice":
        return  # ids of several splits get the name of the split
    if kind == "metadata" and column.startswith("is a"):
        column = "file_name" if fault == "a URL" else "files that do not exist"
    broken = refused(replace(make(tmp_path, [*rows[:2], rows[2] | change]), **settings))
    assert f"{tmp_path}/{line}" in broken
    assert (column if column != "path" or kind != "metadata" else "file_name") in broken
    assert next(iter(change.values())) in broken
    if fault == "id twice":
        assert re.search(r"(line [12]|row 1) and /", broken)


def test_lists_of_toolkits_name_the_line_of_an_id(tmp_path: Path) -> None:
    """Also of a compressed list, and after a limit or a choice of rows."""
    entries = [{"audio_filepath": f"{i}.wav", "duration": 1.0, "utt": "x"} for i in (0, 1)]
    nemo = tmp_path / "nemo.json"
    nemo.write_text("\n\n".join(json.dumps(entry) for entry in entries))
    config = DatasetConfig("manifest", str(nemo), id_column="utt")
    assert "nemo.json, line 1 and" in refused(config)
    assert "nemo.json, line 3;" in refused(config)
    (tmp_path / "train.tsv").write_text("/data\na.wav\t1\na.wav\t2\n")
    assert "train.tsv, line 2 and" in refused(
        DatasetConfig("manifest", str(tmp_path / "train.tsv"), audio_column="path")
    )
    (tmp_path / "wav.scp").write_text("r a.wav\n")
    (tmp_path / "segments").write_text("u r 0 1\nv r 1 2\nu r 2 3\n")
    assert f"{tmp_path}/segments, line 1 and {tmp_path}/segments, line 3" in refused(
        DatasetConfig("kaldi", str(tmp_path))
    )
    cut = {"id": "c", "start": 0, "duration": 0.1, "channel": 0, "type": "MonoCut"}
    cut["recording"] = {"id": "r", "sources": [{"type": "file", "source": "a.wav"}]}
    lines = (json.dumps(cut) + "\n").encode() * 2
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(lines))
    assert "cuts.jsonl.gz, line 2;" in refused(
        DatasetConfig("lhotse", str(tmp_path / "cuts.jsonl.gz"))
    )


def test_a_value_of_kaldi_is_named_by_the_file_that_has_it(tmp_path: Path) -> None:
    """Not by `segments`; also if lines are in another order, and some are of no utterance."""
    (tmp_path / "wav.scp").write_text("r a.wav\n")
    (tmp_path / "segments").write_text("u r 0 1\nv r 1 2\nw r 2 3\n")
    (tmp_path / "utt2dialect").write_text("x 1\nw 7\n\nv\tfar away\nu 3\n")
    config = DatasetConfig("kaldi", str(tmp_path), types={"dialect": "int"})
    assert f"{tmp_path}/utt2dialect, line 4 has 'far away'" in refused(config)
    config = replace(config, types={"recording": "int"})
    assert f"{tmp_path}/segments, line 1 has 'r'" in refused(config)


def test_a_chosen_split_keeps_its_lines(tmp_path: Path) -> None:
    """Rows that are left out still count as lines."""
    (tmp_path / "t.csv").write_text("path,split,utt\na,train,x\nb,test,y\nc,train,z\nd,test,y\n")
    config = DatasetConfig(
        "manifest", str(tmp_path / "t.csv"), None, None, "x", audio_column="path"
    )
    config = replace(config, config=None, split="test", id_column="utt")
    assert f"{tmp_path}/t.csv, line 3 and {tmp_path}/t.csv, line 5" in refused(config)


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    """Of json lines, and of a table that is not UTF-8."""
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n{"path": "b"\n')
    config = DatasetConfig("manifest", str(tmp_path / "t.jsonl"), audio_column="path")
    assert f"{tmp_path}/t.jsonl, line 2 is not JSON: " in refused(config)
    (tmp_path / "t.csv").write_text('path,text\na,x\nb,"y\nc,z\n')
    config = DatasetConfig("manifest", str(tmp_path / "t.csv"), audio_column="path")
    assert f"{tmp_path}/t.csv, line 3 cannot be read: unexpected end of data" in refused(config)
    (tmp_path / "t.csv").write_text('path,text\na,5" disk\nb,"y\nz"\n')
    assert len(open_source(config)) == 2


def test_ids_with_spaces_are_kept_and_noted(tmp_path: Path) -> None:
    """Two that differ in a space are two."""
    (tmp_path / "t.csv").write_text("path,utt\na.wav,u \nb.wav,u\n")
    config = DatasetConfig("manifest", str(tmp_path / "t.csv"), id_column="utt")
    source = open_source(replace(config, audio_column="path"))
    assert source.ids().to_pylist() == ["u ", "u"]
    (note,) = source.notes
    assert note == "1 id with a space at an end, first 'u ': ids are as the dataset has them"


def test_a_place_beyond_the_rows_is_an_error(tmp_path: Path) -> None:
    """Places count the rows that they were made for."""
    places = Places(((tmp_path / "a", 2, Form("rows")), (tmp_path / "b", 1, Form("rows"))))
    assert places.of(2) == f"{tmp_path}/b, row 1"
    assert places.take(pa.array([2, 0])).take(pa.array([1])).of(0) == f"{tmp_path}/a, row 1"
    with pytest.raises(IndexError):
        places.of(3)

"""Tables of text: what stays text, what becomes a number, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DatasetConfig, load_config
from pipeline.errors import ConfigError, SourceError
from pipeline.sources.base import Source
from pipeline.sources.lists.delimited import form_of, infer_types, read_delimited
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write


def read(path: Path, text: str | bytes) -> dict[str, list[Any]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return infer_types(read_delimited(path, form_of(path)), ()).to_pydict()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0007", "0107"], ["0007", "0107"]),
        (["0012", "", "0103"], ["0012", None, "0103"]),
        (["1e1", "2e2"], ["1e1", "2e2"]),
        (["12", "", "7"], [12, None, 7]),
        (["0", "-5"], [0, -5]),
        (["+1", "2"], ["+1", "2"]),
        (["1.5", "2"], [1.5, 2.0]),
        (["0.12345678901234568", "-0.5"], [0.12345678901234568, -0.5]),
        (["01.5", "2.5"], ["01.5", "2.5"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["999999999999999999", "1"], [999999999999999999, 1]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["True", "false"], [True, False]),
        (["yes", "no"], ["yes", "no"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["NA", "null"], ["NA", "null"]),
        (["inf", "1"], ["inf", "1"]),
        ([" 1", "2"], [" 1", "2"]),
        (["2024-01-02", "2024-01-03"], ["2024-01-02", "2024-01-03"]),
        (["", ""], [None, None]),
        (["1.1", "1.10", "2"], ["1.1", "1.10", "2"]),
        (["1", "1.0", ""], ["1", "1.0", None]),
        (["1.50", "2.00", "0.30"], [1.5, 2.0, 0.3]),
        (["10", "100", "1.5"], [10.0, 100.0, 1.5]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_column_is_of_numbers_if_they_lose_nothing(
    tmp_path: Path, suffix: str, values: list[str], expected: list[Any]
) -> None:
    separator = "\t" if suffix == ".tsv" else ","
    lines = [separator.join(("x", value)) for value in ("value", *values)]
    found = read(tmp_path / f"t{suffix}", "\n".join(lines))["value"]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_tables_as_people_have_them(tmp_path: Path) -> None:
    """A byte order mark, CRLF, blank lines, quotes, breaks in quotes, an index without a name."""
    path = tmp_path / "t.csv"
    assert read(path, '\ufeffa,b\r\n1,"x, ""y""\nz"\r\n\r\n2,\r\n') == {
        "a": [1, 2],
        "b": ['x, "y"\nz', None],
    }
    assert read(path, ",b\n0,x\n1,y\n") == {"Unnamed: 0": [0, 1], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a,b\n1,2\n1,2,3\n",
            "line 3 has more fields than the header: 3, not 2; put values that contain a",
        ),
        ("a,b\n1\n", "line 2 has fewer fields than the header: 1, not 2"),
        ('a,b\n\n"x\ny",2\n\n1\n', "line 6 has fewer fields than the header: 1, not 2"),
        (
            'a,b\n"open,2\n3,4\n',
            "line 2 has fewer fields than the header: 1, not 2; is a quotation mark open?",
        ),
        ("a,a\n1,2\n", "several columns of one name: a"),
        ("a,b\n", "has no rows"),
        ("", "is empty (0 bytes)"),
        (b"a,b\n1,2\n\xff,1\n", "line 3 is not UTF-8: invalid start byte; save it as UTF-8"),
    ],
)
def test_a_table_that_is_not_regular_is_refused(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(SourceError) as error:
        read(tmp_path / "t.csv", text)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "t.csv"))
    assert "\n" not in str(error.value)


def test_ids_and_paths_are_text_and_types_can_be_stated(tmp_path: Path) -> None:
    """In folders and manifests; an id column of digits keeps them."""
    for name in ("7", "8"):
        write(tmp_path / f"{name}.wav", speechlike(800))
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,utt,speaker,score\n7.wav,70,1,1e-3\n8.wav,80,2,2\n")

    def rows(kind: str, path: Path, **more: Any) -> list[dict[str, Any]]:
        source = open_source(DatasetConfig(kind, str(path), id_column="utt", **more))
        assert source.ids().to_pylist() == ["70", "80"]
        return source.metadata(range(2)).to_pylist()

    types = {"speaker": "text", "score": "float"}
    for kind, path, more in (
        ("audiofolder", tmp_path, {}),
        ("manifest", table, {"audio_column": "file_name"}),
    ):
        assert rows(kind, path, **more)[0]["utt"] == "70"
        assert [row["score"] for row in rows(kind, path, **more)] == ["1e-3", "2"]
        stated = rows(kind, path, types=types, **more)
        assert [(row["speaker"], row["score"]) for row in stated] == [("1", 0.001), ("2", 2.0)]
        for wrong, words in (
            ({"score": "int"}, "column score is not int"),
            ({"score": "number"}, "types are text, int, float, bool"),
            ({"scor": "int"}, "there is no column scor; did you mean score"),
        ):
            with pytest.raises(SourceError, match=words):
                rows(kind, path, types=wrong, **more)


def test_types_are_settings() -> None:
    config = load_config(["dataset.path=x", "dataset.types={speaker: text, score: float}"])
    assert config.dataset.types == {"speaker": "text", "score": "float"}
    with pytest.raises(ConfigError, match="expected names with words, such as"):
        load_config(["dataset.path=x", "dataset.types=[speaker]"])


def opened(path: Path, text: str, **more: Any) -> Source:
    """Open a manifest of `a.wav` to `f.wav`, which are beside it."""
    for name in "abcdef":
        write(path.parent / f"{name}.wav", speechlike(800))
    path.write_text(text)
    return open_source(DatasetConfig("manifest", str(path), audio_column="path", **more))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (["a.wav,x", 'b.wav,"open', "c.wav,y", "d.wav,z", 'e.wav,close"', "f.wav,x"], (4, 3)),
        (['a.wav,"open', 'b.wav,close"', "c.wav,x"], (3, 2)),
        (['a.wav,"a text', 'of two lines"', "", 'b.wav,"open', 'c.wav,close"'], (6, 5)),
    ],
)
def test_a_mark_that_another_row_closes_is_refused(
    tmp_path: Path, lines: list[str], first: tuple[int, int], end: str
) -> None:
    """It would take the rows between as the text of one; the message names the first of these."""
    table = tmp_path / "t.csv"
    with pytest.raises(SourceError) as error:
        opened(table, end.join(["path,text", *lines, ""]))
    line, begun = first
    assert (
        f"{table}, line {line} looks like a row, but is within quotation marks of line {begun}"
        in str(error.value)
    )
    metadata = tmp_path / "metadata.csv"
    metadata.write_text(table.read_text().replace("path", "file_name"))
    with pytest.raises(SourceError, match=f"metadata.csv, line {line} looks like a row"):
        open_source(DatasetConfig("audiofolder", str(tmp_path)))


def test_texts_of_several_lines_are_no_rows(tmp_path: Path) -> None:
    """Also with as many commas as the table has; a path without a suffix gives a note."""
    table = tmp_path / "t.csv"
    source = opened(table, 'path,text\na.wav,"roses, red\nviolets, blue\n\nyou"\nb.wav,x\n')
    assert source.ids().to_pylist() == ["a.wav", "b.wav"]
    assert source.metadata([0])["text"].to_pylist() == ["roses, red\nviolets, blue\n\nyou"]
    assert source.notes == ()
    [note] = opened(
        table, 'name,text\na,"open\nb,x\nc,close"\nd,x\n', audio_path="{name}.wav"
    ).notes
    assert f"{table}, line 3 may be a row, but is within quotation marks of line 2" in note
    assert "(2 such lines)" in note


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("header", "lines", "first"),
    [
        ("text,path", ['"roses', 'violets",a.wav', "x,b.wav"], None),
        ("text,path,note", ['"roses', 'violets",a.wav,"x', 'y"', "x,b.wav,"], None),
        ("text,path", ['"open,a.wav', 'close",b.wav'], (3, 2)),
        ("text,path", ["x,a.wav", '"open,b.wav', "y,c.wav", 'close",d.wav'], (4, 3)),
    ],
)
def test_the_path_may_follow_a_text_of_several_lines(
    tmp_path: Path, header: str, lines: list[str], first: tuple[int, int] | None, end: str
) -> None:
    """The last line of a row, which has its path, is not taken for a row within it."""
    table = tmp_path / "t.csv"
    text = end.join([header, *lines, ""])
    if first is None:
        source = opened(table, text)
        assert source.ids().to_pylist() == ["a.wav", "b.wav"]
        assert source.metadata([0])["text"].to_pylist() == [f"roses{end}violets"]
        assert source.notes == ()
    else:
        words = (
            f"line {first[0]} looks like a row, but is within quotation marks of line {first[1]}"
        )
        with pytest.raises(SourceError, match=words):
            opened(table, text)


def test_a_table_beside_a_tsv_is_checked_for_open_marks(tmp_path: Path) -> None:
    """Only those of the two that have quotation marks are."""
    (tmp_path / "dev.tsv").write_text("path\ttext\nf.wav\tx\n")
    (tmp_path / "train.csv").write_text('path,text\na.wav,"open\nb.wav,close"\n')
    config = DatasetConfig("manifest", str(tmp_path), audio_column="path", split="all")
    with pytest.raises(SourceError, match=r"train\.csv, line 3 looks like a row"):
        open_source(config)


def test_marks_quote_between_semicolons_as_spreadsheets_write_them(tmp_path: Path) -> None:
    """Between tabs and bars they are text: a header with them is refused, with the reason."""
    table = tmp_path / "t.csv"
    text = '"path";"text"\r\n"a.wav";"x; ""y"""\r\n"b.wav";"z"\r\n'
    source = opened(table, text, delimiter=";")
    assert source.metadata(range(2))["text"].to_pylist() == ['x; "y"', "z"]
    for delimiter in ("\\t", "|"):
        with pytest.raises(SourceError, match="header is in quotation marks, which are text"):
            opened(
                table,
                text.replace("x; ", "x").replace(";", "\t" if "t" in delimiter else "|"),
                delimiter=delimiter,
            )


def test_values_that_keep_the_marks_of_a_csv_writer_are_noted(tmp_path: Path) -> None:
    """Such as pandas, with tabs; other marks of speech corpora are text."""
    table = tmp_path / "t.tsv"
    lines = ["path\ttext", 'a.wav\t"Yes," he said.', 'b.wav\t"Yes."', 'c.wav\t""', ""]
    assert opened(table, "\n".join(lines)).notes == ()
    lines[-1] = 'd.wav\t"""Yes,"" he said."'
    source = opened(table, "\n".join(lines))
    assert source.metadata([3])["text"].to_pylist() == ['"""Yes,"" he said."']
    [note] = source.notes
    assert note.startswith(
        f"1 value of column text in quotation marks that double those within, "
        f"first in {table}, line 5: except"
    )
    with pytest.raises(
        SourceError, match=r"line 2 has more fields .*between commas and semicolons"
    ):
        opened(table, 'path\ttext\na.wav\t"x\ty"\n')


REPEATED = "utterances are of 1 file, and every utterance is its whole file: to cut, set"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("u,path,x,y\n1,a.wav,0,1\n2,a.wav,1,2\n", f"2 {REPEATED}"),
        ("u,path,from,to\n1,a.wav,de,fr\n2,a.wav,en,fr\n", f"2 {REPEATED}"),
        (
            "u,path,startTime,endTime\n1,a.wav,0,1\n2,a.wav,1,2\n",
            f"startTime, endTime look like parts of recordings. 2 {REPEATED}",
        ),
        (
            "u,path,start (s),end (s)\n1,a.wav,0.5,1\n2,b.wav,1,2\n",
            "start (s), end (s) look like parts of recordings, but every utterance is",
        ),
        ("u,path,clip_start,clip_duration\n1,a.wav,2,1\n", "clip_start, clip_duration look like"),
        ("u,path,offset,duration\n1,a.wav,0,1\n2,b.wav,0,2\n", None),
        ("u,path,duration\n1,a.wav,1.5\n2,b.wav,2\n", None),
        ("u,path,start_year,end_year\n1,a.wav,1990,1999\n", None),
    ],
)
def test_whole_files_that_look_like_parts_are_noted(
    tmp_path: Path, text: str, words: str | None
) -> None:
    """All utterances of a file have the same features, whatever its columns are called."""
    notes = opened(tmp_path / "t.csv", text, id_column="u").notes
    assert len(notes) == (words is not None)
    assert words is None or notes[0].startswith(words)


@pytest.mark.parametrize("form", ["lines", "array", "metadata"])
def test_texts_of_json_are_as_they_are_written(tmp_path: Path, form: str) -> None:
    """Arrow makes times of dates; a column of numbers and texts could not be carried, nor an id."""
    rows: list[dict[str, Any]] = [
        {"day": "2020-01-02", "at": ["2020-01-02"], "id": 7, "n": 1},
        {"day": "2020-01-02T00:00:00Z", "at": [], "id": "0007", "n": None},
        {"day": None, "at": ["x"], "id": 7.5, "n": 2},
    ]
    column = "file_name" if form == "metadata" else "path"
    for name, row in zip("abc", rows, strict=True):
        write(tmp_path / f"{name}.wav", speechlike(800))
        row[column] = f"{name}.wav"
    lines = "\n".join(json.dumps(row) for row in rows)
    path = tmp_path / ("t.json" if form == "array" else "metadata.jsonl")
    path.write_text(json.dumps(rows) if form == "array" else lines)
    config = DatasetConfig("manifest", str(path), audio_column="path", id_column="id")
    if form == "metadata":
        config = DatasetConfig("audiofolder", str(tmp_path), id_column="id")
    source = open_source(config)
    assert source.ids().to_pylist() == ["7", "0007", "7.5"]
    assert source.metadata(range(3)).to_pydict() == {
        "day": [row["day"] for row in rows],
        "at": [row["at"] for row in rows],
        "n": [1, None, 2],
    }


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        '{\n "path": "a.wav",\n "day": "2020-01-02"\n}',
        '{\n "path": "a.wav",\n "day": "2020-01-02"\n}\n{"path": "b.wav",\n "day": "2020-01-03"}\n',
        '{"path": "a.wav", "day": "2020-01-02"} {"path": "b.wav", "day": "2020-01-03"}\n',
    ],
)
def test_objects_of_json_may_be_on_any_lines(tmp_path: Path, text: str, suffix: str) -> None:
    """One over several lines, or several in a line."""
    source = opened(tmp_path / f"t{suffix}", text)
    assert source.metadata([0])["day"].to_pylist() == ["2020-01-02"]
    assert len(source) == text.count("path")


@pytest.mark.parametrize("name", ["metadata.tsv", "Metadata.CSV", "metadata.json"])
def test_metadata_of_another_name_is_noted(tmp_path: Path, name: str) -> None:
    """Its labels would be missing with nothing but a count of skipped files."""
    write(tmp_path / "a.wav", speechlike(800))
    (tmp_path / name).write_text("file_name\tword\na.wav\tx\n")
    [note] = open_source(DatasetConfig("audiofolder", str(tmp_path))).notes
    assert note.startswith(f"{name} is not read: columns are those of metadata.csv")
    (tmp_path / "metadata.csv").write_text("file_name;word\na.wav;x\n")
    with pytest.raises(SourceError) as error:
        open_source(DatasetConfig("audiofolder", str(tmp_path)))
    words = f"dataset.path={tmp_path}/metadata.csv 'dataset.delimiter=;' dataset.audio_column="
    assert words in str(error.value)


def test_a_blank_line_that_json_cannot_have_is_named(tmp_path: Path) -> None:
    """`datasets` cannot read it if a column has values of several types."""
    path = tmp_path / "t.jsonl"
    with pytest.raises(SourceError, match=r"t\.jsonl, line 2 is blank; remove it"):
        opened(path, '{"path": "a.wav", "n": 1}\n\n{"path": "b.wav", "n": "x"}\n')


def test_times_and_channels_are_numbers_with_any_zeros(tmp_path: Path) -> None:
    """In other columns 0.0 and 0.00 are two texts."""
    source = opened(
        tmp_path / "t.csv",
        "path,begin,side,version\na.wav,0.0,0,0.0\nb.wav,0.00,0.0,0.00\n",
        start_column="begin",
        channel_column="side",
    )
    columns = source.metadata(range(2)).to_pydict()
    assert columns["begin"] == [0.0, 0.0]
    assert columns["version"] == ["0.0", "0.00"]
    assert [source.segment(row).channel for row in range(2)] == [0, 0]


def test_spaces_around_a_name_in_the_header_are_shown(tmp_path: Path) -> None:
    """Otherwise the message proposes what it refuses."""
    for header, more in (("path , word", {}), ("path, word", {"columns": ("word",)})):
        name = "path" if not more else "word"
        words = f"no column {name}; it is written '{'path ' if not more else ' word'}', with spaces"
        with pytest.raises(SourceError, match=words):
            opened(tmp_path / "t.csv", f"{header}\na.wav,x\n", **more)

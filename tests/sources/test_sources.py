"""What each kind of source reads: rows, ids, columns, and one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.errors import AudioError, SourceError
from pipeline.sources.base import Column, Source
from pipeline.sources.opening import open_source
from pipeline.sources.torchcodec_stand_in import importable_torchcodec
from tests.helpers.audio_files import write


def open_kind(kind: str, path: Path | None = None, **settings) -> Source:
    return open_source(DatasetConfig(kind, str(path) if path else None, **settings))


def error_text(kind: str, path: Path | None = None, **settings) -> str:
    with pytest.raises(SourceError) as caught:
        open_kind(kind, path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def clips(tmp_path) -> Path:
    """Make three files with metadata: two folders, two files with one stem."""
    root = tmp_path / "clips"
    for name in ("wav/a.wav", "flac/a.flac", "wav/b.wav"):
        write(root / name)
    (root / "metadata.csv").write_text(
        "file_name,speaker,score,word\n"
        "wav/b.wav,anna,0.5,yes\nflac/a.flac,bert,1.5,NA\n./wav//a.wav,anna,,null\n"
    )
    return root


def saved(path: Path, **columns) -> Path:
    """Save a dataset with encoded audio, a ClassLabel, lists, and the given columns."""
    sound = write(path.parent / "sound.flac").read_bytes()
    features = datasets.Features(
        audio=datasets.Audio(),
        label=datasets.ClassLabel(names=["no", "yes"]),
        tags=datasets.List(datasets.Value("string")),
    )
    rows = {
        "audio": [{"bytes": sound, "path": f"{n}.flac"} for n in "abc"],
        "label": [1, 0, 1],
        "tags": [["x"], [], ["y", "z"]],
    }
    for name, values in columns.items():
        if name != "audio":
            features[name] = datasets.Value("string")
        rows[name] = values
    table = pa.Table.from_pydict(rows, schema=features.arrow_schema)
    datasets.Dataset(table).save_to_disk(path)
    return path


# --- audio folders ----------------------------------------------------------------------------


def test_a_folder_with_metadata(clips):
    """Rows, order and types come from the metadata; ids are the paths, so stems may repeat."""
    source = open_kind("audiofolder", clips)
    assert len(source) == 3
    assert source.ids().to_pylist() == ["wav/b.wav", "flac/a.flac", "wav/a.wav"]
    assert source.columns == (
        Column("speaker", "string"),
        Column("score", "double"),
        Column("word", "string"),
    )
    assert source.segment(2).path == str(clips / "wav/a.wav")
    assert source.segment(2).id == "wav/a.wav"
    assert len(decode(source.segment(1), 16_000).waveform) == 1600


def test_words_that_look_like_missing_values_stay_words(clips):
    """A transcript of NA or null is text; only an empty field is missing."""
    table = open_kind("audiofolder", clips).metadata([0, 1, 2])
    assert table["word"].to_pylist() == ["yes", "NA", "null"]
    assert table["score"].to_pylist() == [0.5, 1.5, None]


def test_metadata_comes_in_the_order_asked_for(clips):
    """Rows in any order, repeated or none, with the types that the columns state."""
    source = open_kind("audiofolder", clips, columns=("speaker", "score"))
    assert source.metadata([2, 0]).to_pydict() == {"speaker": ["anna"] * 2, "score": [None, 0.5]}
    assert source.metadata([1, 1])["speaker"].to_pylist() == ["bert", "bert"]
    assert source.metadata(range(1, 3))["speaker"].to_pylist() == ["bert", "anna"]
    for rows in ([], [2, 0]):
        types = [(field.name, str(field.type)) for field in source.metadata(rows).schema]
        assert types == [(column.name, column.type) for column in source.columns]
    bare = open_kind("audiofolder", clips, columns=())
    assert bare.columns == ()
    assert bare.metadata([0, 1]).column_names == []


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_other_forms_of_metadata(clips, name):
    """Metadata in jsonl and in parquet give the same rows as in csv."""
    table = open_kind("audiofolder", clips).metadata(range(3))
    table = table.append_column("file_name", open_kind("audiofolder", clips).ids())
    (clips / "metadata.csv").unlink()
    if name.endswith("parquet"):
        pq.write_table(table, clips / name)
    else:
        rows = [json.dumps(row) for row in table.to_pylist()]
        (clips / name).write_text("\n".join(rows))
    source = open_kind("audiofolder", clips)
    assert source.ids().to_pylist() == ["wav/b.wav", "flac/a.flac", "wav/a.wav"]
    assert source.metadata([2, 1])["word"].to_pylist() == ["null", "NA"]


def test_rows_are_those_of_the_audiofolder_loader(clips):
    """For a folder whose every file the loader of `datasets` reads, rows and columns are equal."""
    with importable_torchcodec():
        theirs = datasets.load_dataset("audiofolder", data_dir=str(clips), split="train")
    theirs = theirs.cast_column("audio", datasets.Audio(decode=False))
    ours = open_kind("audiofolder", clips)
    assert [row["path"] for row in theirs["audio"]] == [ours.segment(i).path for i in range(3)]
    assert theirs.column_names == ["audio", *(column.name for column in ours.columns)]
    assert theirs["speaker"][:] == ours.metadata(range(3))["speaker"].to_pylist()


def test_a_folder_without_metadata_has_every_audio_file(tmp_path):
    """Every audio file is a row, decodable or not; other files are listed as skipped."""
    for name in ("a.WAV", "sub/b.flac"):
        write(tmp_path / name)
    for name in ("c.aac", "d.m4a", "e.mp4", "f.webm", "LICENSE.TXT", "p.empty", ".hidden.wav"):
        (tmp_path / name).write_bytes(b"")
    source = open_kind("audiofolder", tmp_path)
    assert source.ids().to_pylist() == ["a.WAV", "c.aac", "d.m4a", "e.mp4", "f.webm", "sub/b.flac"]
    assert source.skipped == ("LICENSE.TXT", "p.empty")
    assert source.columns == ()


def test_a_file_called_dev_does_not_exclude_others(tmp_path):
    """File names that contain the name of a split do not exclude the other files."""
    for name in ("dev-1.wav", "a.wav", "test/b.wav"):
        write(tmp_path / name)
    assert open_kind("audiofolder", tmp_path).ids().to_pylist() == [
        "a.wav",
        "dev-1.wav",
        "test/b.wav",
    ]


def test_labels_are_inferred_from_directories_as_the_loader_does(tmp_path):
    """Two or more directories of equal depth become a ClassLabel."""
    for name in ("yes/1.wav", "no/1.wav", "yes/2.wav"):
        write(tmp_path / name)
    source = open_kind("audiofolder", tmp_path)
    assert source.columns == (Column("label", "int64", ("no", "yes")),)
    assert source.metadata(range(3))["label"].to_pylist() == [0, 1, 1]
    with importable_torchcodec():
        theirs = datasets.load_dataset("audiofolder", data_dir=str(tmp_path), split="train")
    assert tuple(theirs.features["label"].names) == ("no", "yes")
    assert theirs["label"][:] == [0, 1, 1]
    write(tmp_path / "deeper/still/1.wav")
    assert open_kind("audiofolder", tmp_path).columns == ()


def test_a_split_is_a_directory_at_the_top(tmp_path):
    """A split has the files of its directory and their rows of the metadata."""
    for name in ("train/a.wav", "test/b.wav", "test/deep/c.wav"):
        write(tmp_path / name)
    assert open_kind("audiofolder", tmp_path, split="test").ids().to_pylist() == [
        "test/b.wav",
        "test/deep/c.wav",
    ]
    (tmp_path / "metadata.csv").write_text("file_name,n\ntrain/a.wav,1\ntest/b.wav,2\n")
    source = open_kind("audiofolder", tmp_path, split="test")
    assert source.ids().to_pylist() == ["test/b.wav"]
    assert source.metadata([0])["n"].to_pylist() == [2]
    assert source.skipped == ("test/deep/c.wav",)
    assert len(open_kind("audiofolder", tmp_path)) == 2
    message = error_text("audiofolder", tmp_path, split="dev")
    assert "dataset.split=dev" in message
    assert "test, train" in message


def test_train_is_all_of_a_folder_without_splits(clips):
    """If no directory has the name of a split, train is all files, as in `datasets`."""
    assert len(open_kind("audiofolder", clips, split="train")) == 3


def test_metadata_in_each_directory(tmp_path):
    """Several metadata files are concatenated; ids are relative to the folder."""
    for name in ("x/1.wav", "y/1.wav"):
        write(tmp_path / name)
        (tmp_path / name).with_name("metadata.csv").write_text(f"file_name,n\n1.wav,{ord(name[0])}")
    source = open_kind("audiofolder", tmp_path)
    assert source.ids().to_pylist() == ["x/1.wav", "y/1.wav"]
    assert source.metadata([0, 1])["n"].to_pylist() == [120, 121]
    (tmp_path / "y/metadata.csv").write_text("file_name,n\n1.wav,many")
    assert "differ in their columns" in error_text("audiofolder", tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("gone.wav,1\nwav/a.wav,2\n", "gone.wav"),
        ("../clips/wav/a.wav,1\n", "points outside of the folder"),
        ("/etc/passwd,1\n", "points outside of the folder"),
        ("file:///etc/passwd,1\n", "points outside of the folder"),
        (",1\n", "file_name"),
        ("wav/a.wav,1\n./wav/a.wav,2\n", "not unique: 1 id occurs more than once (wav/a.wav)"),
        ("wav/a.wav,1\nwav/a.wav,2\n", "If rows are parts of files, set dataset.start_column"),
        ("wav/a.wav,1,surplus\n", "metadata.csv, line 2 has more fields than the header: 3, not 2"),
        ("", "metadata.csv"),
    ],
)
def test_invalid_metadata(clips, rows, words):
    """Each error in the metadata is reported in one line that names the file or the value."""
    (clips / "metadata.csv").write_text("file_name,n\n" + rows)
    assert words in error_text("audiofolder", clips)


def test_metadata_without_file_names(clips):
    """The message names the missing column and the nearest one."""
    (clips / "metadata.csv").write_text("filename,n\nwav/a.wav,1\n")
    message = error_text("audiofolder", clips)
    assert "no column file_name" in message
    assert "did you mean filename" in message


def test_a_type_is_inferred_from_all_rows(tmp_path):
    """A column that is numeric for 15,000 rows and text afterwards is text in all rows."""
    rows = [f"{i}.wav,{i if i < 15_000 else f's{i}'}" for i in range(20_000)]
    (tmp_path / "m.csv").write_text("audio,speaker\n" + "\n".join(rows))
    source = open_kind("manifest", tmp_path / "m.csv")
    assert source.columns == (Column("speaker", "string"),)
    assert source.metadata([0, 19_999])["speaker"].to_pylist() == ["0", "s19999"]


def test_special_characters_in_names(tmp_path):
    """Brackets, spaces, stars and umlauts in paths are not patterns."""
    root = tmp_path / "a [1] *"
    write(root / "ü b [x]*.wav")
    (root / "metadata.csv").write_text("file_name,n\nü b [x]*.wav,1\n")
    source = open_kind("audiofolder", root)
    assert source.ids().to_pylist() == ["ü b [x]*.wav"]
    assert len(decode(source.segment(0), 16_000).waveform) == 1600


def test_a_name_that_is_not_text_is_refused(tmp_path):
    """A file name that is not UTF-8 cannot be an id; it is shown escaped."""
    write(tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"\xff.wav"))
    assert "not UTF-8" in error_text("audiofolder", tmp_path)


def test_a_link_to_its_parent_is_not_followed(tmp_path):
    """A link to a directory that contains it is not followed; other links are."""
    write(tmp_path / "root/a.wav")
    write(tmp_path / "elsewhere/b.wav")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    assert open_kind("audiofolder", tmp_path / "root").ids().to_pylist() == ["a.wav", "link/b.wav"]


def test_links_that_lead_nowhere_are_reported_by_name(tmp_path):
    """A link to itself or to nothing stops no other file; `plan` quarantines it."""
    write(tmp_path / "a.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "nowhere.wav").symlink_to("gone.wav")
    (tmp_path / "loop").symlink_to("loop")
    source = open_kind("audiofolder", tmp_path)
    assert source.ids().to_pylist() == ["a.wav", "loop.wav", "nowhere.wav"]
    with pytest.raises(AudioError, match="symbolic links"):
        decode(source.segment(1), 16_000)


# --- manifests --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["audiofolder", "manifest"])
def test_a_table_that_was_replaced_is_read_again(clips, kind):
    """Although its path, size and modification time are those of the table before."""
    table = clips / "metadata.csv"
    path = clips if kind == "audiofolder" else table
    settings = {} if kind == "audiofolder" else {"audio_column": "file_name"}
    before = table.stat()
    speakers = []
    for name in ("anna", "cora"):
        table.write_text(table.read_text().replace("anna", name))
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
        source = open_kind(kind, path, **settings)
        speakers.append(source.metadata([0])["speaker"].to_pylist())
    assert speakers == [["anna"], ["cora"]]


def test_quotes_in_a_tab_separated_list_are_text(clips):
    """Speech corpora do not quote there: a quotation mark that never closes swallows no row."""
    words = ["plain", '"an opening quote', "plain again", 'closing at last"', '""']
    rows = "".join(f"{i}\twav/a.wav\t{word}\n" for i, word in enumerate(words))
    (clips / "train.tsv").write_text("key\tpath\tsentence\n" + rows)
    source = open_kind("manifest", clips / "train.tsv", audio_column="path", id_column="key")
    assert source.metadata(list(range(5)))["sentence"].to_pylist() == words


def test_a_line_break_within_a_tab_separated_field_is_refused(clips):
    """A carriage return would end the row."""
    (clips / "train.tsv").write_bytes(b"path\tsentence\nwav/a.wav\tone\rtwo\nwav/b.wav\tthree\n")
    message = error_text("manifest", clips / "train.tsv", audio_column="path")
    assert "line 3 has fewer fields than the header: 1, not 2" in message
    (clips / "train.tsv").write_bytes(b"path\nwav/a.wav\rwav/c.wav\nwav/b.wav\n")
    message = error_text("manifest", clips / "train.tsv", audio_column="path")
    assert "has 3 lines, but was read as 4 rows" in message


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_manifests(tmp_path, suffix):
    """Every format of table; relative paths start from the table's folder."""
    inside, outside = write(tmp_path / "m/x/a.wav"), write(tmp_path / "far/b.wav")
    rows = [{"path": "x/a.wav", "n": 1}, {"path": str(outside), "n": 2}]
    path = tmp_path / f"m/list{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        separator = "\t" if suffix == ".tsv" else ","
        lines = [["path", "n"], *([row["path"], str(row["n"])] for row in rows)]
        path.write_text("\n".join(separator.join(line) for line in lines))
    source = open_kind("manifest", path, audio_column="path")
    assert [source.segment(i).path for i in range(2)] == [str(inside), str(outside)]
    assert source.ids().to_pylist() == ["x/a.wav", "b.wav"]
    assert source.metadata([0, 1]).to_pydict() == {"n": [1, 2]}


def test_a_relative_manifest_is_found_from_anywhere(tmp_path, monkeypatch):
    """Paths are made absolute when the manifest is opened."""
    write(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text("audio\na.wav\n")
    monkeypatch.chdir(tmp_path)
    source = open_kind("manifest", Path("m.csv"))
    monkeypatch.chdir("/")
    assert len(decode(source.segment(0), 16_000).waveform) == 1600


TABLES = ("csv", "tsv", "json", "jsonl", "parquet")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        *((f"m.{kind}", "", f"m.{kind} has no rows: it is empty") for kind in TABLES),
        ("m.csv", "audio,n\n", "m.csv has no rows"),
        ("m.json", "{broken", "cannot be read"),
        ("m.txt", "audio\n", "is none of .csv"),
        ("m.csv", "path,n\na.wav,1\n", "no column audio"),
        ("m.jsonl", '{"audio": 1}\n{"audio": 2}\n', "is int64, neither audio nor paths"),
        ("m.csv", "audio,n\na.wav,1\n,2\n", "empty in 1 of 2 rows"),
        ("m.csv", "audio,n\na.wav,1\na.wav,2\n", "dataset.id_column must name"),
    ],
)
def test_invalid_manifests(tmp_path, name, content, words):
    """Each error is reported in one line that names the file, the column or the setting."""
    (tmp_path / name).write_text(content)
    assert words in error_text("manifest", tmp_path / name)


@pytest.mark.parametrize("column", ["audio", "text"])
def test_text_that_is_not_utf_8_is_refused_by_column(tmp_path, column):
    """Arrow's reader of json accepts it, and reading the labels would fail later."""
    write(tmp_path / "a.wav")
    row = b'{"audio": "a.wav", "text": "x"}\n'
    named = b'"%s": "' % column.encode()
    (tmp_path / "m.jsonl").write_bytes(row.replace(named, named + b"\xff"))
    words = error_text("manifest", tmp_path / "m.jsonl")
    assert f"column {column} of {tmp_path}/m.jsonl" in words
    assert "UTF-8" in words
    metadata = (tmp_path / "m.jsonl").rename(tmp_path / "metadata.jsonl")
    metadata.write_bytes(metadata.read_bytes().replace(b'"audio"', b'"file_name"'))
    words = error_text("audiofolder", tmp_path)
    name = "file_name" if column == "audio" else column
    assert f"column {name} of {metadata}" in words
    assert "UTF-8" in words


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "\ufeff\n null\n",
        'null\n{"audio": "a.wav"}\n',
        '{"audio": "a.wav"}\nnull\n',
        '{"audio": "a.wav"}\r\n null \r\n{"audio": "b.wav"}',
        '[null, {"audio": "a.wav"}]',
        '[{"audio": "a.wav"}, null]',
    ],
)
@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_null_in_the_place_of_a_row_is_refused(tmp_path, name, content):
    """Arrow's reader would end the process."""
    (tmp_path / name).write_text(content)
    assert "null in the place of a row" in error_text("manifest", tmp_path / name)


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
@pytest.mark.parametrize("separator", ["", "\n"])
@pytest.mark.parametrize(("start", "stop"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_a_json_that_is_nested_deeply_is_refused(tmp_path, name, separator, start, stop):
    """The readers in C would end the process; brackets within text are no nesting."""
    write(tmp_path / "a.wav")
    row = '{"audio": "a.wav", "text": "%s"}\n'
    nested = separator.join([*[start] * 20_000, "1", *[stop] * 20_000])
    (tmp_path / name).write_text(nested)
    assert "nested too deeply" in error_text("manifest", tmp_path / name)
    (tmp_path / name).write_text(row % "x" + '{"audio": ' + nested.replace("\n", " ") + "}\n")
    assert "nested too deeply" in error_text("manifest", tmp_path / name)
    (tmp_path / name).write_text(row % ("[" * 9_000))
    assert len(open_kind("manifest", tmp_path / name)) == 1


def test_null_as_a_value_is_no_row(tmp_path):
    """It is an empty label, also in text that looks like a record."""
    write(tmp_path / "a.wav")
    row = {"audio": "a.wav", "text": "} null", "n": None}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "m.json").write_text(json.dumps([row], indent=0))
    for name in ("m.jsonl", "m.json"):
        labels = open_kind("manifest", tmp_path / name).metadata([0])
        assert labels["text"].to_pylist() == ["} null"]


def test_an_error_about_names_with_line_breaks_is_one_line(tmp_path):
    """The names are quoted as in Python."""
    write(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text('file_name\na.wav\n"b\n.wav"\n')
    assert r"'b\n.wav'" in error_text("audiofolder", tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name\na.wav\n" + "b" * 5000)
    assert len(error_text("audiofolder", tmp_path)) < 400


def test_a_null_character_in_a_path_is_that_row_s_fault(tmp_path):
    """The others are read."""
    write(tmp_path / "a.wav")
    (tmp_path / "m.tsv").write_text("audio\tn\na\0.wav\t1\na.wav\t2\n")
    source = open_kind("manifest", tmp_path / "m.tsv")
    assert len(source.fingerprint) == 32
    with pytest.raises(AudioError, match="null"):
        decode(source.segment(0), 16_000)
    assert len(decode(source.segment(1), 16_000).waveform) == 1600


# --- saved datasets and the hub ---------------------------------------------------------------


def test_a_saved_dataset_with_bytes(tmp_path):
    """Bytes are not decoded, file names are ids, and column types are kept."""
    source = open_kind("disk", saved(tmp_path / "saved"))
    assert source.ids().to_pylist() == ["a.flac", "b.flac", "c.flac"]
    assert source.segment(0).path is None
    assert len(decode(source.segment(0), 16_000).waveform) == 1600
    assert source.columns == (
        Column("label", "int64", ("no", "yes")),
        Column("tags", "list<item: string>"),
    )
    assert source.metadata([2, 1]).to_pydict() == {"label": [1, 0], "tags": [["y", "z"], []]}


@pytest.mark.parametrize("names", [["x.wav"] * 3, [None] * 3, ["x.wav", None, "y.wav"]])
def test_bytes_without_distinct_names_are_known_by_row(tmp_path, names):
    """Row numbers are the ids if names are missing or repeated; the identity records it."""
    sound = write(tmp_path / "sound.flac").read_bytes()
    audio = [{"bytes": sound, "path": name} for name in names]
    source = open_kind("disk", saved(tmp_path / "saved", audio=audio))
    assert source.ids().to_pylist() == ["0", "1", "2"]
    assert source.identity["ids"] == "row"


def test_a_row_without_audio_fails_only_when_decoded(tmp_path):
    """A null in the audio column is an error of one utterance, not of the dataset."""
    sound = write(tmp_path / "sound.flac").read_bytes()
    audio = [{"bytes": sound, "path": "a.flac"}, None, {"bytes": sound, "path": "c.flac"}]
    source = open_kind("disk", saved(tmp_path / "saved", audio=audio))
    assert (source.segment(1).path, source.segment(1).data) == (None, None)
    assert source.segment(2).data == sound


def test_splits_of_a_saved_dataset(tmp_path):
    """Several splits require `split`; an unknown split is answered with all names."""
    one = datasets.load_from_disk(saved(tmp_path / "one"))
    datasets.DatasetDict(only=one).save_to_disk(tmp_path / "single")
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(tmp_path / "both")
    assert len(open_kind("disk", tmp_path / "single")) == 3
    assert len(open_kind("disk", tmp_path / "both", split="test")) == 1
    assert "dataset.split=all|test|train" in error_text("disk", tmp_path / "both")
    assert "test, train" in error_text("disk", tmp_path / "both", split="dev")
    assert "without splits" in error_text("disk", tmp_path / "one", split="dev")


def test_a_dataset_by_name(tmp_path):
    """A dataset that `load_dataset` finds by name, with splits and slices of them."""
    dataset = datasets.load_from_disk(saved(tmp_path / "one"))
    for split, rows in (("train", 3), ("test", 1)):
        path = tmp_path / f"hub/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.select(range(rows)).to_parquet(path)
    name = str(tmp_path / "hub")
    assert len(open_kind("hub", name=name, split="train")) == 3
    sliced = open_kind("hub", name=name, split="train[:2]")
    assert sliced.ids().to_pylist() == ["a.flac", "b.flac"]
    assert sliced.columns[0] == Column("label", "int64", ("no", "yes"))
    parts = open_kind("hub", name=name, split="train[:1]+train[2:]")
    assert parts.ids().to_pylist() == ["a.flac", "c.flac"]
    assert "slices of several splits" in error_text("hub", name=name, split="train[:2]+test[:1]")
    assert "dataset.split=all|test|train" in error_text("hub", name=name)
    assert "dataset.split=dev is not in" in error_text("hub", name=name, split="dev")
    assert "test, train" in error_text("hub", name=name, split="dev[:1]")
    assert "Available: ['default']" in error_text("hub", name=name, config="small")


def test_a_folder_by_name_needs_no_torchcodec(clips, monkeypatch):
    """`datasets` builds the audio column of a folder where torchcodec cannot be imported."""
    hidden = ("torchcodec", "torchcodec.decoders", "torchcodec.encoders")
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    by_name = open_kind("hub", name=str(clips), split="train", audio_column="audio")
    by_path = open_kind("audiofolder", clips)
    assert by_name.columns == by_path.columns
    for row in range(3):
        assert by_name.segment(row).path == by_path.segment(row).path
    assert all(sys.modules[name] is None for name in hidden)


def test_a_name_that_is_neither_cached_nor_on_the_hub(monkeypatch):
    """The message names the dataset, the cache and the hub."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = error_text("hub", name="nobody/nothing")
    assert "nobody/nothing" in message
    assert "cache" in message
    assert "dataset.name" in error_text("hub")


# --- columns and ids --------------------------------------------------------------------------


def test_reserved_columns(tmp_path):
    """Reserved columns are an error if they are named, and otherwise skipped."""
    path = saved(tmp_path / "saved", status=["x", "y", "z"], id=["u", "v", "w"])
    source = open_kind("disk", path)
    assert source.skipped_columns == ("status", "id")
    assert [column.name for column in source.columns] == ["label", "tags"]
    assert "store's own index" in error_text("disk", path, columns=("label", "status"))
    by_id = open_kind("disk", path, id_column="id")
    assert by_id.ids().to_pylist() == ["u", "v", "w"]
    assert by_id.skipped_columns == ("status",)


def test_columns_that_are_not_plain(tmp_path):
    """Nested and binary columns are an error if they are named, and otherwise skipped."""
    write(tmp_path / "a.wav")
    table = pa.table(
        {"audio": ["a.wav"], "when": [{"y": 1}], "raw": [b"x"], "grid": [[[1, 2]]], "ok": [True]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    source = open_kind("manifest", tmp_path / "m.parquet")
    assert [column.name for column in source.columns] == ["grid", "ok"]
    assert source.skipped_columns == ("when", "raw")
    assert "struct<y: int64>" in error_text("manifest", tmp_path / "m.parquet", columns=("when",))


def test_misspelt_columns(clips):
    """An unknown name is answered with the nearest one and with all columns."""
    for setting in ("columns", "id_column"):
        value = ("speker",) if setting == "columns" else "speker"
        message = error_text("audiofolder", clips, **{setting: value})
        assert f"dataset.{setting}" in message
        assert "did you mean speaker?" in message
        assert "score, word" in message


def test_the_message_names_the_column_with_audio(tmp_path):
    """The message names the column that holds the audio."""
    message = error_text("disk", saved(tmp_path / "saved"), audio_column="speech")
    assert "no column speech" in message
    assert "its audio is in audio" in message


def test_ids_from_a_column(clips):
    """Text and integers are valid ids; repeated and empty values are errors."""
    assert open_kind("audiofolder", clips, id_column="word").ids().to_pylist() == [
        "yes",
        "NA",
        "null",
    ]
    repeated = error_text("audiofolder", clips, id_column="speaker")
    assert "dataset.id_column=speaker is not unique" in repeated
    assert "(anna)" in repeated
    assert "the file's path is the id" in repeated
    assert "parts of files" not in repeated
    assert "empty in 1 of 3 rows" in error_text("audiofolder", clips, id_column="score")
    (clips / "metadata.csv").write_text("file_name,n,t\nwav/a.wav,7,x\nwav/b.wav,8,\n")
    assert open_kind("audiofolder", clips, id_column="n").ids().to_pylist() == ["7", "8"]
    assert "empty in 1 of 2 rows" in error_text("audiofolder", clips, id_column="t")


def test_only_the_first_rows(clips):
    """`limit` takes the first rows, and only their ids must be unique."""
    assert open_kind("audiofolder", clips, limit=2).ids().to_pylist() == [
        "wav/b.wav",
        "flac/a.flac",
    ]
    assert len(open_kind("audiofolder", clips, limit=2, id_column="speaker")) == 2
    assert len(open_kind("audiofolder", clips, limit=99)) == 3


# --- errors, identity, fingerprint -------------------------------------------------


def test_paths_that_cannot_be_opened(tmp_path):
    """Each error is reported in one line with the setting and the path."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").touch()
    for kind in ("audiofolder", "disk", "manifest"):
        assert f"{tmp_path / 'none'} does not exist" in error_text(kind, tmp_path / "none")
        assert "needs dataset.path" in error_text(kind)
    assert "no audio file" in error_text("audiofolder", tmp_path / "empty")
    assert "needs a directory" in error_text("audiofolder", tmp_path / "file.csv")
    assert "needs a csv" in error_text("manifest", tmp_path / "empty")
    assert "set dataset.split=train+test" in error_text("manifest", tmp_path / "empty")
    assert "use dataset=audiofolder" in error_text("disk", tmp_path / "empty")
    kinds = "audiofolder, manifest, kaldi, lhotse, parquet, webdataset, disk, hub"
    assert kinds in error_text("folder", tmp_path)


def test_a_table_that_is_a_pipe_is_refused_at_once(tmp_path):
    """Nothing waits for a writer, whether the pipe is a manifest or the metadata of a folder."""
    write(tmp_path / "clips/a.wav")
    os.mkfifo(tmp_path / "clips/metadata.csv")
    assert "not a regular file" in error_text("audiofolder", tmp_path / "clips")
    assert "not a regular file" in error_text("manifest", tmp_path / "clips/metadata.csv")


def test_a_directory_named_like_an_audio_file_is_reported(tmp_path):
    """One without audio is listed, so that it is quarantined by name; others are searched."""
    write(tmp_path / "holds.wav/a.wav")
    (tmp_path / "empty.wav").mkdir()
    assert open_kind("audiofolder", tmp_path).ids().to_pylist() == ["empty.wav", "holds.wav/a.wav"]


def test_the_identity_holds_no_paths(clips, tmp_path):
    """The identity of moved content is equal; that of other columns is not."""
    first = open_kind("audiofolder", clips)
    clips.rename(tmp_path / "moved")
    moved = open_kind("audiofolder", tmp_path / "moved")
    assert json.loads(json.dumps(first.identity)) == moved.identity
    assert str(tmp_path) not in json.dumps(first.identity)
    narrower = open_kind("audiofolder", tmp_path / "moved", columns=("speaker",))
    assert narrower.identity != moved.identity


def test_the_fingerprint_follows_the_files(clips):
    """The fingerprint changes with any file, row or setting, and only then."""

    def fingerprint(**settings) -> str:
        return open_kind("audiofolder", clips, **settings).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    seen = {before, fingerprint(columns=()), fingerprint(limit=2)}
    os.utime(clips / "wav/a.wav", ns=(1, 1))
    seen.add(fingerprint())
    (clips / "metadata.csv").write_text("file_name,speaker\nwav/a.wav,carl\n")
    seen.add(fingerprint())
    assert len(seen) == 5


def test_the_fingerprint_follows_a_saved_dataset(tmp_path):
    """Saving a dataset again under the same path changes the fingerprint."""
    first = open_kind("disk", saved(tmp_path / "saved")).fingerprint
    assert open_kind("disk", tmp_path / "saved").fingerprint == first
    for file in (tmp_path / "saved").glob("*.arrow"):
        os.utime(file, ns=(1, 1))
    assert open_kind("disk", tmp_path / "saved").fingerprint != first


@pytest.mark.slow
def test_processes_open_the_same_source_at_once(clips):
    """Two processes with one empty cache agree on rows, ids and fingerprint.

    `test_conformance.py` compares with a process that shares nothing with this one.
    """
    config = DatasetConfig("audiofolder", str(clips))
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        seen = set(pool.map(_facts, [config] * 2))
    assert seen == {_facts(config)}


def _facts(config: DatasetConfig) -> tuple[str, tuple[str, ...], str]:
    source = open_source(config)
    return source.fingerprint, tuple(source.ids().to_pylist()), json.dumps(source.identity)


@pytest.mark.slow
def test_opening_prints_nothing(clips):
    """Neither success nor failure prints, and the caller's settings are restored."""
    level, was_off = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    (clips / "broken.csv").write_text('a,b\n"1,2\n3')
    code = (
        "import sys; from pipeline.config import DatasetConfig\n"
        "from pipeline.errors import SourceError\n"
        "from pipeline.sources.opening import open_source\n"
        "open_source(DatasetConfig('audiofolder', sys.argv[1]))\n"
        "try: open_source(DatasetConfig('manifest', sys.argv[1] + '/broken.csv'))\n"
        "except SourceError: pass\n"
        "else: raise SystemExit('not refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(clips)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    open_kind("audiofolder", clips)
    assert datasets.logging.get_verbosity() == level
    assert datasets.are_progress_bars_disabled() == was_off

"""Settings of tables and folders: separators, headers, made paths, splits, directories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig, load_config
from pipeline.errors import SourceError
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import write


def manifest(path: Path, text: str = "", **settings: Any) -> DatasetConfig:
    if text:
        path.write_text(text)
    return DatasetConfig("manifest", str(path), **{"audio_column": "path"} | settings)


def rows(config: DatasetConfig) -> list[dict[str, Any]]:
    source = open_source(config)
    return source.metadata(range(len(source))).to_pylist()


def paths(config: DatasetConfig) -> list[str | None]:
    source = open_source(config)
    return [source.segment(row).path for row in range(len(source))]


def refused(config: DatasetConfig) -> str:
    with pytest.raises(SourceError) as error:
        open_source(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("delimiter", ["|", ":", " ", "\t", "\\t"])
def test_a_table_with_another_separator(tmp_path: Path, delimiter: str) -> None:
    """Whatever its suffix; commas and quotation marks are text, numbers are numbers."""
    separator = delimiter.replace("\\t", "\t")
    text = "\n".join(separator.join(line) for line in (("path", "x", "n"), ("a.wav", '"b,c', "07")))
    config = manifest(tmp_path / "list.txt", text, delimiter=delimiter)
    assert rows(config) == [{"x": '"b,c', "n": "07"}]
    assert rows(replace(config, header=("path", "x", "n"))) == [
        {"x": "x", "n": "n"},
        {"x": '"b,c', "n": "07"},
    ]


def test_a_separator_is_one_character(tmp_path: Path) -> None:
    """That is no quotation mark and no end of a line."""
    for delimiter in ("||", "", '"', "\n", "é"):
        config = manifest(tmp_path / "t.csv", "path\na.wav\n", delimiter=delimiter)
        assert ", not one character such as | or" in refused(config)


def test_a_table_without_a_header(tmp_path: Path) -> None:
    """The names are the setting's, one for each field; the first line is a row."""
    config = manifest(tmp_path / "t.csv", "a.wav,1\nb.wav,2\n", header=("path", "n"))
    assert rows(config) == [{"n": 1}, {"n": 2}]
    words = refused(replace(config, header=("path",)))
    assert "t.csv, line 1 has more fields than the dataset.header: 2, not 1" in words
    assert "several columns of one name: path" in refused(replace(config, header=("path", "path")))
    broken = manifest(tmp_path / "t.csv", "a.wav,1\nb.wav,x\n", header=("path", "n"))
    assert f"{tmp_path}/t.csv, line 2 has 'x'" in refused(replace(broken, types={"n": "int"}))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_path_is_made_of_columns(tmp_path: Path, suffix: str) -> None:
    """Text as it is written, before columns become numbers; it is not carried itself."""
    table = pa.table({"id": ["007", "008"], "speaker": ["1", "2"], "audio_path": ["x", "y"]})
    file = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, file)
    else:
        lines = zip(*table.to_pydict().values(), strict=True)
        separator = "," if suffix == ".csv" else "\t"
        text = [separator.join(line) for line in (table.column_names, *lines)]
        file.write_text("\n".join(text))
    config = manifest(file, audio_path="clips/{speaker}/{{{id}}}.wav", id_column="id")
    assert paths(config) == [f"{tmp_path}/clips/1/{{007}}.wav", f"{tmp_path}/clips/2/{{008}}.wav"]
    assert open_source(config).ids().to_pylist() == ["007", "008"]
    assert [row["audio_path"] for row in rows(config)] == ["x", "y"]
    assert [*rows(config)[0]] == ["speaker", "audio_path"]
    for template, words in (
        ("clips/a.wav", "names no column"),
        ("{id!r}.wav", "in plain braces"),
        ("{id:>5}.wav", "in plain braces"),
        ("{}.wav", "names no column"),
        ("{id.wav", "dataset.audio_path={id.wav: "),
        ("{speeker}.wav", "there is no column speeker; did you mean speaker?"),
    ):
        assert words in refused(replace(config, audio_path=template))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "file,n\na.wav,1\n",
            "no column path; set dataset.audio_column to the column with the paths",
        ),
        ("Path,n\na.wav,1\n", "no column path; did you mean Path?"),
        ("id;path\n1;a.wav\n", "no column path; is the delimiter ';'? Set 'dataset.delimiter=;'"),
        ("id\tpath\n1\ta.wav\n", "is the delimiter '\\t'? Set 'dataset.delimiter=\\t'"),
    ],
)
def test_a_missing_column_of_paths_names_the_setting(tmp_path: Path, text: str, words: str) -> None:
    """The similar column, the delimiter of the header, or the setting itself."""
    assert words in refused(manifest(tmp_path / "t.csv", text))


def test_paths_of_digits_are_text(tmp_path: Path) -> None:
    """Files without a suffix may have numbers as names."""
    config = manifest(tmp_path / "t.csv", "path,n\n7,1\n8,2\n")
    assert paths(config) == [f"{tmp_path}/7", f"{tmp_path}/8"]


def test_an_empty_part_of_a_path_is_an_error(tmp_path: Path) -> None:
    """Named by its line, not a file called .wav."""
    config = manifest(tmp_path / "t.csv", "id,x\na,1\n,2\n", audio_path="{id}.wav")
    assert f"{tmp_path}/t.csv, line 3: every row needs a path" in refused(config)


def test_a_table_for_each_split(tmp_path: Path) -> None:
    """Joined in the order of the setting; types are those of all rows; ids get the split."""
    (tmp_path / "train.tsv").write_text("path\tn\na.wav\t1\nb.wav\t2\n")
    (tmp_path / "test.csv").write_text("path,n\na.wav,x\n")
    (tmp_path / "dev.tsv").write_text("path\tm\nc.wav\t1\n")
    both = manifest(tmp_path, split="test+train")
    source = open_source(both)
    assert source.ids().to_pylist() == ["test/a.wav", "train/a.wav", "train/b.wav"]
    assert rows(both) == [
        {"n": "x", "split": "test"},
        {"n": "1", "split": "train"},
        {"n": "2", "split": "train"},
    ]
    assert source.identity["split"] == "test+train"
    one = manifest(tmp_path, split="train")
    assert open_source(one).ids().to_pylist() == ["a.wav", "b.wav"]
    assert rows(one)[0] == {"n": 1, "split": "train"}
    before = open_source(one).fingerprint
    (tmp_path / "train.tsv").write_text("path\tn\na.wav\t1\nb.wav\t3\n")
    assert open_source(one).fingerprint != before
    assert "has no such list; there are dev, test, train" in refused(
        manifest(tmp_path, split="val")
    )
    for setting in ("train+dev", "all"):
        assert "have other columns: path, " in refused(manifest(tmp_path, split=setting))
    (tmp_path / "train.csv").write_text("path,n\n")
    assert "several lists of one split: train.csv, train.tsv" in refused(one)


@pytest.fixture
def tree(tmp_path: Path) -> DatasetConfig:
    """Files of two speakers, by two microphones, and one that lies less deep."""
    for name in ("s1/x/1_a.wav", "s1/x/1_b.wav", "s2/y/2_a.wav", "s2/3_a.wav"):
        write(tmp_path / name)
    return DatasetConfig("audiofolder", str(tmp_path))


def test_files_are_chosen_by_a_pattern(tree: DatasetConfig) -> None:
    """By the name, or with a slash by the path; the others are reported as skipped."""
    source = open_source(replace(tree, files="*_a.wav"))
    assert source.ids().to_pylist() == ["s1/x/1_a.wav", "s2/3_a.wav", "s2/y/2_a.wav"]
    assert source.skipped == ("s1/x/1_b.wav",)
    deep = open_source(replace(tree, files="*/*/*_[ab].wav"))
    assert deep.ids().to_pylist() == ["s1/x/1_a.wav", "s1/x/1_b.wav", "s2/y/2_a.wav"]
    assert "matches dataset.files=*.mp3 (4 other files)" in refused(replace(tree, files="*.mp3"))


def test_directories_are_columns(tree: DatasetConfig) -> None:
    """From the top, as text, instead of a label; `_` leaves one out."""
    assert rows(replace(tree, levels=("speaker",))) == [
        {"speaker": s} for s in ["s1", "s1", "s2", "s2"]
    ]
    deep = replace(tree, files="*/*/*.wav", levels=("_", "room"))
    assert rows(deep) == [{"room": "x"}, {"room": "x"}, {"room": "y"}]
    assert "label" in rows(replace(deep, levels=None))[0]
    words = refused(replace(tree, levels=("speaker", "room")))
    assert "2 directory names, but s2/3_a.wav lies in 1 directories" in words


def test_patterns_and_directories_with_metadata(tree: DatasetConfig) -> None:
    """Rows of files that do not match are left out; a column of the table is not replaced."""
    folder = Path(str(tree.path))
    (folder / "metadata.csv").write_text("file_name,n\ns1/x/1_a.wav,1\ns1/x/1_b.wav,2\n")
    assert rows(replace(tree, files="*_b.wav", levels=("speaker",))) == [{"n": 2, "speaker": "s1"}]
    assert "there is a column n; name another" in refused(replace(tree, levels=("n",)))


def test_the_settings_are_taken_literally() -> None:
    """On the command line, whatever characters they have."""
    config = load_config(
        [
            *("dataset=manifest", "dataset.delimiter=|", "dataset.header=[id,text]"),
            "dataset.audio_path=wavs/{id}.wav",
        ]
    ).dataset
    assert (config.delimiter, config.header) == ("|", ("id", "text"))
    assert config.audio_path == "wavs/{id}.wav"
    folder = load_config(["dataset.files=*_mic1.flac", "dataset.levels=[speaker,_]"]).dataset
    assert (folder.files, folder.levels) == ("*_mic1.flac", ("speaker", "_"))
    assert load_config(["dataset=manifest", "dataset.delimiter= "]).dataset.delimiter == " "

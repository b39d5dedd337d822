"""Audio paths as lists have them: other separators, Unicode forms, URLs, the home folder."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.lists import paths as finding
from pipeline.sources.lists.paths import expanded, find_files, match_names
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import write

NAME = "éte ü/clip.wav"


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def table(suffix: str) -> Callable[[Path, Sequence[str]], DatasetConfig]:
    def make(folder: Path, paths: Sequence[str]) -> DatasetConfig:
        file = folder / f"list{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"path": paths}), file)
        elif suffix == ".jsonl":
            file.write_text("".join(json.dumps({"path": path}) + "\n" for path in paths))
        else:
            file.write_text("\n".join(["path", *paths]))
        return DatasetConfig("manifest", str(file), audio_column="path")

    return make


def nemo(folder: Path, paths: Sequence[str]) -> DatasetConfig:
    lines = (json.dumps({"audio_filepath": path, "duration": 0.1}) for path in paths)
    (folder / "list.json").write_text("\n".join(lines))
    return DatasetConfig("manifest", str(folder / "list.json"))


def fairseq(folder: Path, paths: Sequence[str]) -> DatasetConfig:
    (folder / "train.tsv").write_text("\n".join([".", *(f"{path}\t1600" for path in paths)]))
    return DatasetConfig("manifest", str(folder / "train.tsv"))


def kaldi(folder: Path, paths: Sequence[str]) -> DatasetConfig:
    lines = (f"utt{i} {path}" for i, path in enumerate(paths))
    (folder / "wav.scp").write_text("\n".join(lines))
    return DatasetConfig("kaldi", str(folder))


def lhotse(folder: Path, paths: Sequence[str]) -> DatasetConfig:
    cuts = (
        {"id": f"c{i}", "start": 0, "duration": 0.1, "channel": 0, "type": "MonoCut"}
        | {"recording": {"id": f"r{i}", "sources": [{"type": "file", "source": path}]}}
        for i, path in enumerate(paths)
    )
    (folder / "cuts.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    return DatasetConfig("lhotse", str(folder / "cuts.jsonl"))


def metadata(folder: Path, paths: Sequence[str]) -> DatasetConfig:
    (folder / "metadata.csv").write_text("\n".join(["file_name", *paths]))
    return DatasetConfig("audiofolder", str(folder))


LISTS = {
    "csv": table(".csv"),
    "tsv": table(".tsv"),
    "jsonl": table(".jsonl"),
    "parquet": table(".parquet"),
    "nemo": nemo,
    "fairseq": fairseq,
    "kaldi": kaldi,
    "lhotse": lhotse,
    "metadata": metadata,
}
WAYS: dict[str, tuple[Callable[[str], str], Callable[[str], str], str]] = {
    "composed": (composed, decomposed, "1 audio path found in another normal form"),
    "decomposed": (decomposed, composed, "1 audio path found in another normal form"),
    "windows": (
        lambda name: name.replace("/", "\\"),
        str,
        "backslashes in 1 audio path",
    ),
    "as written": (str, str, ""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LISTS)
def test_a_file_is_found_as_it_is_written(tmp_path: Path, kind: str, way: str) -> None:
    """From every list; a note says what was done, and the id is as the list has it."""
    in_list, on_disk, words = WAYS[way]
    clip = write(tmp_path / on_disk(NAME))
    listed = in_list(NAME)
    source = open_source(LISTS[kind](tmp_path, [listed]))
    assert source.segment(0).path == str(clip)
    assert sum(words in note for note in source.notes if words) == bool(words)
    if kind in ("csv", "tsv", "jsonl", "parquet", "fairseq", "metadata"):
        assert source.ids().to_pylist() == [listed]


@pytest.mark.parametrize("kind", [kind for kind in LISTS if kind != "metadata"])
def test_the_home_folder_and_urls_are_paths(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` and percent signs are decoded, in the URL only."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ["home/a.wav", "home/b c%é.wav", "home/d%20.wav"]
    clips = [str(write(tmp_path / name)) for name in names]
    written = ["~/a.wav", f"file://{quote(clips[1])}", clips[2]]
    source = open_source(LISTS[kind](tmp_path, written))
    assert [source.segment(row).path for row in range(3)] == clips


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b%20c.wav", "/a/b c.wav"),
        ("file://localhost/a/b.wav", "/a/b.wav"),
        ("FILE:/a.wav", "/a.wav"),
        ("file://a/b.wav", "a/b.wav"),
        ("file_1%20.wav", "file_1%20.wav"),
        ("~no-such-user~/a.wav", "~no-such-user~/a.wav"),
    ],
)
def test_forms_of_urls(url: str, path: str) -> None:
    assert expanded(url) == path


def test_only_doubtful_paths_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain path costs no look at the disk, and a folder is listed once for all its names."""
    looked: list[str] = []
    listed: list[str] = []
    monkeypatch.setattr(finding, "_exists", lambda p: looked.append(p) or os.path.lexists(p))
    real = os.listdir
    monkeypatch.setattr(finding.os, "listdir", lambda p: listed.append(p) or real(p))
    clips = [str(write(tmp_path / decomposed(f"é{i}.wav"))) for i in range(5)]
    plain = [f"{tmp_path}/{i}.wav" for i in range(5)]
    paths = pa.chunked_array([[*plain, *map(composed, clips), *map(composed, clips)]])
    found, notes = find_files(paths, str(tmp_path))
    assert found.to_pylist() == [*plain, *clips, *clips]
    assert not set(plain) & set(looked)
    assert listed == [str(tmp_path)]
    assert "5 audio paths" in notes[0]


def test_a_path_that_nothing_matches_stays(tmp_path: Path) -> None:
    """So that the message has what the list has."""
    write(tmp_path / "a.wav")
    names = [f"{tmp_path}/no\\a.wav", f"{tmp_path}/é.wav", "é.wav", f"{tmp_path}/x/é.wav"]
    paths = pa.chunked_array([names])
    assert find_files(paths, None) == (paths, ())
    listed = pa.chunked_array([["no\\a.wav", "é.wav"]])
    assert match_names(listed, ["a.wav"]).to_pylist() == ["no/a.wav", "é.wav"]


def test_spaces_at_an_end_are_left_out(tmp_path: Path) -> None:
    """Unless the file has them."""
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav ".strip()).rename(tmp_path / "b.wav ")
    config = table(".csv")(tmp_path, ["a.wav ", "b.wav ", " a.wav"])
    source = open_source(config)
    paths = [source.segment(row).path for row in range(3)]
    assert paths == [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav ", f"{tmp_path}/a.wav"]
    assert source.ids().to_pylist() == ["a.wav ", "b.wav ", " a.wav"]
    assert sum("spaces at an end were left out" in note for note in source.notes) == 1


def test_a_split_is_found_in_a_path_of_windows(tmp_path: Path) -> None:
    """In the metadata of a folder."""
    for name in ("train/a.wav", "test/b.wav"):
        write(tmp_path / name)
    source = open_source(metadata(tmp_path, ["train\\a.wav", "test\\b.wav"]))
    assert source.metadata([0, 1]).to_pydict() == {"split": ["train", "test"]}
    with pytest.raises(SourceError, match=r"names 1 files that do not exist: test/c.wav"):
        open_source(metadata(tmp_path, ["train\\a.wav", "test\\c.wav"]))

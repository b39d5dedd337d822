"""Tarred manifests of NeMo, against plain manifests of the same files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write
from tests.helpers.tars import write_tar

ENTRIES: list[dict[str, Any]] = [
    {"audio_filepath": "a.wav", "duration": 1.5, "offset": 0.25, "text": "one", "shard_id": 0},
    {"audio_filepath": "a.wav", "duration": 0.5, "offset": 1.0, "text": "two", "shard_id": 0},
    {"audio_filepath": "b.flac", "duration": 2.0, "text": "three", "shard_id": 1},
    {"audio_filepath": "c.wav", "duration": 2.0, "text": "four", "shard_id": 10},
]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips of two seconds, in the tars audio_0, audio_1 and audio_10."""
    folder = tmp_path / "clips"
    for i, (name, shard) in enumerate((("a.wav", 0), ("b.flac", 1), ("c.wav", 10))):
        file = write(folder / name, speechlike(32_000, seed=i))
        members = {"other.txt": b"x" * 700, f"./sub/{name}": file.read_bytes()}
        write_tar(tmp_path / f"tars/audio_{shard}.tar", members)
    return folder


def manifest(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def tarred(tmp_path: Path, entries: list[dict[str, Any]], **settings: Any) -> DatasetConfig:
    path = manifest(tmp_path / "tarred.json", entries)
    tars = str(tmp_path / "tars/audio_*.tar")
    return replace(DatasetConfig("manifest", str(path), tars=tars), **settings)


def refused(config: DatasetConfig) -> str:
    with pytest.raises(SourceError) as error:
        open_source(config)
    return str(error.value)


@pytest.mark.parametrize("has_shards", [True, False])
def test_entries_are_those_of_the_files(tmp_path: Path, clips: Path, has_shards: bool) -> None:
    """Ids, columns and samples, with the shard stated or looked for; nothing is unpacked."""
    entries = [{k: v for k, v in e.items() if has_shards or k != "shard_id"} for e in ENTRIES]
    found = open_source(tarred(tmp_path, entries))
    path = manifest(clips / "plain.json", entries)
    expected = open_source(DatasetConfig("manifest", str(path), format="nemo"))
    assert found.ids() == expected.ids()
    assert found.metadata(range(4)).equals(expected.metadata(range(4)))
    assert found.is_shared
    for row, shard in enumerate((0, 0, 1, 10)):
        segment = found.segment(row)
        assert segment.path == str(tmp_path / f"tars/audio_{shard}.tar")
        assert segment.container == "tar"
        wanted = decode(expected.segment(row), 16_000).waveform
        assert decode(segment, 16_000).waveform.equal(wanted)


def test_patterns_of_nemo(tmp_path: Path, clips: Path) -> None:
    """`_OP_` and `_CL_` stand for braces, in both settings; several manifests are joined."""
    for i, part in enumerate((ENTRIES[:2], ENTRIES[2:3])):
        manifest(tmp_path / f"manifest_{i}.json", part)
    config = DatasetConfig(
        "manifest",
        str(tmp_path / "manifest__OP_0..1_CL_.json"),
        tars=str(tmp_path / "tars/audio__OP_0..1_CL_.tar"),
    )
    assert open_source(config).metadata(range(3))["text"].to_pylist() == ["one", "two", "three"]
    whole = open_source(replace(config, path=str(tmp_path / "manifest_*.json")))
    assert whole.ids() == open_source(config).ids()


def test_numbered_entries_of_one_member(tmp_path: Path, clips: Path) -> None:
    """NeMo appends `-sub1` to the name of an entry whose member others have, too."""
    entries = [ENTRIES[0], ENTRIES[1] | {"audio_filepath": "a-sub1.wav"}]
    source = open_source(tarred(tmp_path, entries))
    assert source.ids().to_pylist() == ["a.wav:0.250-1.750", "a-sub1.wav:1.000-1.500"]
    assert source.segment(0).byte_offset == source.segment(1).byte_offset


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"audio_filepath": "z.wav"}, {}, "tarred.json, line 3: z.wav is no member of audio_1.tar"),
        ({"shard_id": 7}, {}, "tarred.json, line 3: shard_id is 7, but no tar file"),
        ({"audio_filepath": "x |"}, {}, "tarred.json, line 3: the audio 'x |' is a program"),
        ({}, {"tars": "no/such_{0..1}.tar"}, "2 of 2 files do not exist"),
        ({}, {"path": None}, "needs dataset.path"),
        ({}, {"format": "table"}, "is of manifests of NeMo"),
        ({"audio_filepath": "other.txt", "shard_id": None}, {}, "other.txt is in 3 tar files"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    tmp_path: Path, clips: Path, change: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    """By the line of the manifest."""
    config = tarred(tmp_path, [*ENTRIES[:2], ENTRIES[2] | change, ENTRIES[3]], **settings)
    assert words in refused(config)


def test_tars_whose_numbers_are_not_unique_are_refused(tmp_path: Path, clips: Path) -> None:
    """The shard of an entry could be either."""
    (tmp_path / "tars/audio_1.tar").rename(tmp_path / "tars/audio_x0.tar")
    assert "3 tar files have only 2 different numbers" in refused(tarred(tmp_path, ENTRIES))


def test_a_replaced_tar_changes_the_fingerprint(tmp_path: Path, clips: Path) -> None:
    config = tarred(tmp_path, ENTRIES)
    before = open_source(config).fingerprint
    assert open_source(config).fingerprint == before
    content = (clips / "b.flac").read_bytes()
    write_tar(tmp_path / "tars/audio_1.tar", {"b.flac": content, "more": b"x"})
    assert open_source(config).fingerprint != before

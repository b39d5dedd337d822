"""Shards of WebDataset: samples and labels, their bytes, and what is refused with which words."""

from __future__ import annotations

import io
import json
import math
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audio.backends import torchcodec
from pipeline.audio.decode import decode
from pipeline.audio.probe import probe
from pipeline.config import DatasetConfig
from pipeline.errors import AudioError, SourceError
from pipeline.sources.archives import shards
from pipeline.sources.archives.shards import expand_braces
from pipeline.sources.archives.tar import TarReader
from pipeline.sources.base import Segment
from pipeline.sources.location import check_reachable
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import mp3_without_length, speechlike, write
from tests.helpers.tars import write_tar

RATE_HZ = 16_000
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.fixture
def wav(tmp_path: Path) -> bytes:
    """A clip of 0.1 s."""
    return write(tmp_path / "clips/clip.wav").read_bytes()


def opened(path: object, **settings: Any) -> DatasetConfig:
    return DatasetConfig("webdataset", str(path), **settings)


def rows(config: DatasetConfig) -> dict[str, dict[str, Any]]:
    """Columns of each id."""
    source = open_source(config)
    table = source.metadata(range(len(source))).to_pylist()
    return dict(zip(source.ids().to_pylist(), table, strict=True))


def refused(config: DatasetConfig) -> str:
    with pytest.raises(SourceError) as error:
        open_source(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_consecutive_members_with_one_key(
    tmp_path: Path, wav: bytes, form: int
) -> None:
    """The key ends at the first dot of the base name and has the directory; case is ignored."""
    long = f"{'deep/' * 30}{'x' * 120}"  # does not fit into a header
    members = {
        "./a.TXT": "\ufeffone\n",
        "a.FLAC.WAV": wav,
        "b.c/d.wav": wav,
        "b.c/d.cls": " 7\n",
        f"{long}.wav": wav,
        "é.wav": wav,
        "é.json": '{"speaker": "anna", "words": [1, 2], "age": 30, "none": null}',
    }
    if form == tarfile.USTAR_FORMAT:
        members = {name.replace("é", "e").replace(long, "long"): m for name, m in members.items()}
    config = opened(write_tar(tmp_path / "x.tar", members, form))
    empty = {"txt": None, "cls": None, "speaker": None, "age": None}
    name, letter = ("long", "e") if form == tarfile.USTAR_FORMAT else (long, "é")
    assert rows(config) == {
        "a": empty | {"txt": "one"},
        "b.c/d": empty | {"cls": 7},
        name: empty,
        letter: empty | {"speaker": "anna", "age": 30},
    }
    source = open_source(config)
    for row in range(4):
        segment = source.segment(row)
        assert (tmp_path / "x.tar").read_bytes()[segment.byte_offset :][: len(wav)] == wav
        assert segment.byte_length == len(wav)
    assert source.notes == ("json: nested values are not carried: words (1)",)


def test_types_follow_all_shards(tmp_path: Path, wav: bytes) -> None:
    """Whole and other numbers are float; numbers and words are text as they were written."""
    objects = [
        '{"n": 1, "x": 1, "mixed": 1.50, "b": true, "id2": "007", "big": 9007199254740993}',
        '{"n": -2, "x": 2.5, "mixed": "two", "b": false, "odd": true, "nan": NaN}',
        '{"x": 1e3, "mixed": 20e0, "odd": 3, "huge": 18446744073709551616, "big": 1}',
    ]
    for i, text in enumerate(objects):
        members = {f"{i}.wav": wav, f"{i}.json": text, f"{i}.cls": ["1", "02", "x"][i]}
        write_tar(tmp_path / f"{i}.tar", members)
    source = open_source(opened(tmp_path))
    assert {c.name: c.type for c in source.columns} == {
        "n": "int64",
        "x": "double",
        "mixed": "string",
        "b": "bool",
        "id2": "string",
        "big": "int64",
        "cls": "string",
        "odd": "string",
        "nan": "double",
        "huge": "string",
    }
    found = source.metadata(range(3)).to_pydict()
    assert found["n"] == [1, -2, None]
    assert found["x"] == [1.0, 2.5, 1000.0]
    assert found["mixed"] == ["1.50", "two", "20e0"]
    assert found["b"] == [True, False, None]
    assert found["big"] == [9007199254740993, None, 1]
    assert found["odd"] == [None, "true", "3"]
    assert found["cls"] == ["1", "02", "x"]
    assert math.isnan(found["nan"][1])
    for number, expected in enumerate(("int64", "string", "string")):
        alone = open_source(opened(tmp_path / f"{number}.tar")).columns
        assert {c.name: c.type for c in alone}["cls"] == expected


def test_json_that_is_no_object_or_repeats_a_label(tmp_path: Path, wav: bytes) -> None:
    """A list is left out, and said; of two members with one column the first counts."""
    members = {"a.wav": wav, "a.txt": "one", "a.json": '{"txt": "other", "n": 1}'}
    members |= {"b.wav": wav, "b.json": "[1]", "b.txt": "two"}
    source = open_source(opened(write_tar(tmp_path / "x.tar", members)))
    assert source.metadata(range(2)).to_pydict() == {"txt": ["one", "two"], "n": [1, None]}
    nested, second = source.notes
    assert nested == "json: nested values are not carried: (no object) (1)"
    assert second.endswith("of which the first is taken: txt (1)")


def test_values_of_one_column_in_two_members_are_noted_if_they_differ(
    tmp_path: Path, wav: bytes
) -> None:
    """Of a text and of JSON; the first member of the sample is taken."""
    members: dict[str, str | bytes] = {}
    for key, text in (("a", "one"), ("b", "two"), ("c", "two")):
        members |= {f"{key}.wav": wav, f"{key}.json": '{"txt": "two"}', f"{key}.txt": text}
    config = opened(write_tar(tmp_path / "x.tar", members))
    assert [row["txt"] for row in rows(config).values()] == ["two", "two", "two"]
    words = "two members of a sample have a column, with different values, of which the first is"
    assert open_source(config).notes == (f"{words} taken: txt (1)",)


def test_settings_of_tables_apply(tmp_path: Path, wav: bytes) -> None:
    """Columns, types, ids and a limit, as for other sources."""
    members = {}
    for i in range(3):
        members |= {f"{i}.wav": wav, f"{i}.json": json.dumps({"utt": f"u{i}", "n": i})}
    config = opened(write_tar(tmp_path / "x.tar", members))
    chosen = replace(config, id_column="utt", columns=("n",), types={"n": "text"}, limit=2)
    assert rows(chosen) == {"u0": {"n": "0"}, "u1": {"n": "1"}}
    assert rows(replace(config, columns=("__key__",)))["2"] == {"__key__": "2"}


def test_keys_that_repeat_across_shards(tmp_path: Path, wav: bytes) -> None:
    """Ids begin with the shard's name, also of rows within a limit that would be unique."""
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0.wav": wav, f"{name}1.wav": wav})
    source = open_source(opened(tmp_path / "*.tar"))
    assert source.ids().to_pylist() == ["a/0", "a/a1", "b/0", "b/b1"]
    assert source.notes == ("keys repeat across shards, so ids begin with the name of the shard",)
    assert open_source(opened(tmp_path / "*.tar", limit=1)).ids().to_pylist() == ["a/0"]
    members = {"0.wav": wav, "0.cls": "7"}
    write_tar(tmp_path / "other/a.tar", members)
    write_tar(tmp_path / "other/b.tar", members | {"0.cls": "8"})
    named = open_source(opened(tmp_path / "other", id_column="cls"))
    assert (named.ids().to_pylist(), named.notes) == (["7", "8"], ())


def test_shards_are_those_that_the_setting_names(
    tmp_path: Path, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder, a list of braces and wildcards; sorted by name; relative and with `~`."""
    for name in ("x-000", "x-001", "x-010", "y/z-1"):
        write_tar(tmp_path / f"{name}.tar", {f"{Path(name).name}.wav": wav})
    (tmp_path / "README").write_text("about")
    assert open_source(opened(tmp_path)).skipped == ("README", "clips/clip.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    three = ["x-000", "x-001", "x-010"]
    for setting, expected in {
        str(tmp_path): [*three, "z-1"],
        "x-001.tar": ["x-001"],
        "x-*.tar": three,
        "~/x-0{10,0{1..0}}.tar": three,
        "**/*-??1.tar": ["x-001"],
        "{y/z-1,x-00[0-1]}.tar": ["x-000", "x-001", "z-1"],
    }.items():
        assert open_source(opened(setting)).ids().to_pylist() == expected, setting
    (tmp_path / "[x]").mkdir()
    (tmp_path / "y/z-1.tar").rename(tmp_path / "[x]/z-1.tar")
    assert open_source(opened(tmp_path / "[x]/*.tar")).ids().to_pylist() == ["z-1"]
    assert "1 of 3 files do not exist: x-002.tar" in refused(opened("x-{000..002}.tar"))
    assert "matches no file" in refused(opened("z*.tar"))
    assert "holds no .tar file; it holds clip.wav" in refused(opened("clips"))
    assert "a program, which is never run" in refused(opened("pipe:curl -s x-000.tar"))
    assert "a URL, which is not fetched" in refused(opened("https://host/x-{0..9}.tar"))


@pytest.mark.parametrize(
    "pattern",
    ["{000..012}", "x{a,b{1..3},}y", "{3..-1}", "{01..7..3}", "{a}{}", "{a..b}", "-{9..11}"],
)
def test_braces_are_those_of_a_shell(pattern: str) -> None:
    """As bash expands them, except for ranges of letters, which stay."""
    bash = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True
    )
    expected = ["{a..b}"] if ".." in pattern and "a" in pattern[:2] else bash.stdout.splitlines()
    assert sorted(expand_braces(pattern)) == sorted(expected)


def test_too_many_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are listed in memory."""
    with pytest.raises(SourceError, match="more than a million files"):
        expand_braces("{0..999999999999}")
    monkeypatch.setattr(shards, "_MAX_SHARDS", 1000)  # a million take a second
    assert len(expand_braces("{0..9}{0..99}")) == 1000
    with pytest.raises(SourceError, match="more than a million files"):
        expand_braces("{0..99}{0..99}")


@pytest.mark.parametrize("form", ["folders", "names"])
def test_splits(tmp_path: Path, wav: bytes, form: str) -> None:
    """Directories at the top, or the words that names begin with; a column keeps them."""
    between = "/" if form == "folders" else "-"
    for split in ("train", "dev", "test"):
        write_tar(tmp_path / f"{split}{between}0.tar", {"0.wav": wav, f"{split}.wav": wav})
    everything = rows(opened(tmp_path, split="all"))
    assert everything == rows(opened(tmp_path))
    assert {name: row["split"] for name, row in everything.items()} == {
        f"{split}/{key}": split for split in ("train", "dev", "test") for key in ("0", split)
    }
    assert rows(opened(tmp_path, split="dev")) == {"0": {}, "dev": {}}
    alone = "dev" if form == "folders" else "dev-*"
    assert list(rows(opened(tmp_path / alone))) == ["0", "dev"]
    assert len(rows(opened(tmp_path, split="train+test"))) == 4
    message = refused(opened(tmp_path, split="eval"))
    assert message.endswith("there are dev, test, train")


def test_directories_that_are_no_splits(tmp_path: Path, wav: bytes) -> None:
    """They are splits only if they are named; shards named test-... in one of them are not."""
    for name in ("en/a-0", "de/b-0", "de/test-1"):
        write_tar(tmp_path / f"{name}.tar", {f"{name[-3:]}.wav": wav})
    assert rows(opened(tmp_path, split="all")) == rows(opened(tmp_path))
    assert list(rows(opened(tmp_path))) == ["b-0", "t-1", "a-0"]
    assert list(rows(opened(tmp_path, split="en"))) == ["a-0"]
    assert "there are de, en" in refused(opened(tmp_path, split="fr"))
    only = opened(tmp_path / "en", split="train")
    assert "there are no splits" in refused(only)
    for name in ("en/train-0", "de/train-0"):
        write_tar(tmp_path / f"x/{name}.tar", {f"{name[:2]}.wav": wav})
    assert rows(opened(tmp_path / "x")) == {"de": {"split": "train"}, "en": {"split": "train"}}
    assert list(rows(opened(tmp_path / "x", split="en"))) == ["en"]
    write_tar(tmp_path / "y/tester-0.tar", {"0.wav": wav})
    assert rows(opened(tmp_path / "y")) == {"0": {}}


def test_several_audio_members(tmp_path: Path, wav: bytes) -> None:
    """One must be chosen; samples without it are left out, and a line says so."""
    path = write_tar(
        tmp_path / "x.tar",
        {"a.near.wav": wav, "a.far.wav": wav[:100], "a.txt": "x", "b.wav": wav, "b.jpg": b"1"},
    )
    message = refused(opened(path))
    assert "the sample a has several audio members" in message
    assert "dataset.audio_column=near.wav|far.wav" in message
    source = open_source(opened(path, audio_column="near.wav"))
    assert source.ids().to_pylist() == ["a"]
    assert source.segment(0).byte_length == len(wav)
    assert source.notes == (
        "left out: 1 sample without .near.wav (x/b)",
        "members that are neither audio nor labels: 1 .far.wav, 1 .wav, 1 .jpg",
    )
    message = refused(opened(path, audio_column="flac"))
    assert "none of 2 samples has a member .flac; other members: " in message
    assert ".near.wav" in message


def test_what_is_left_out_is_said(tmp_path: Path, wav: bytes) -> None:
    """Samples without audio, links, other members, and shards without samples."""
    path = write_tar(tmp_path / "x.tar", {"__meta__": "1", "a.wav": wav, "b.json": '{"k": 1}'})
    with tarfile.open(path, "a") as file:
        for name, kind in (("c.wav", tarfile.SYMTYPE), ("folder.wav", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.wav"
            file.addfile(info)
        for name in ("README", "._a.wav", "a2.npy"):
            file.addfile(tarfile.TarInfo(name))
        old = tarfile.TarInfo("old.wav/")  # a directory, as version 7 has it
        old.type = tarfile.AREGTYPE
        file.addfile(old)
    write_tar(tmp_path / "y.tar", {})
    (tmp_path / "z.tar").write_bytes(b"")
    source = open_source(opened(tmp_path))
    assert source.ids().to_pylist() == ["a"]
    assert source.metadata([0]).to_pylist() == [{"k": None}]
    assert source.notes == (
        f"{tmp_path}/z.tar: it has no end mark, so later members may be missing",
        "2 of 3 shards hold no audio: y, z",
        "left out: 2 samples without audio (x/b, x/a2)",
        "not followed: 1 link (x/c.wav)",
        "members that are neither audio nor labels: 2 without extension, 1 .npy",
    )
    assert "has no rows: none of 0 samples has an audio member" in refused(
        opened(tmp_path / "y.tar")
    )


def test_members_of_a_sample_that_are_not_consecutive(tmp_path: Path, wav: bytes) -> None:
    """A tar that is not sorted would split samples; both members are named, and the remedy."""
    path = write_tar(tmp_path / "x.tar", {"a.wav": wav, "b.wav": wav, "a.txt": "x"})
    message = refused(opened(path))
    assert f"{path}: the members of the sample a are not consecutive" in message
    assert "between a.wav and a.txt" in message
    assert "tar --sort=name" in message
    with tarfile.open(write_tar(path, {"a.wav": wav}), "a") as file:
        file.addfile(tarfile.TarInfo("a.wav"))
    assert "holds a.wav twice" in refused(opened(path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"caf\xe9", "x.tar: a.txt is not UTF-8 (unexpected end of data at byte 3)"),
        ("a.json", b"{'k': 1}", "x.tar: a.json is not JSON: Expecting property name"),
        ("a.json", b"[" * 100_000, "x.tar: a.json is not JSON"),
        ("a.json", b'{"k": "\\ud800"}', "x.tar: a.json is not JSON"),
    ],
)
def test_labels_that_cannot_be_read(
    tmp_path: Path, wav: bytes, name: str, content: bytes, words: str
) -> None:
    assert words in refused(opened(write_tar(tmp_path / "x.tar", {"a.wav": wav, name: content})))


def test_a_large_label_is_not_read(tmp_path: Path, wav: bytes) -> None:
    """It is data rather than a label; a line says so."""
    large = {"a.json": json.dumps({"alignment": "x" * (1 << 20)})}
    source = open_source(opened(write_tar(tmp_path / "x.tar", {"a.wav": wav} | large)))
    assert source.columns == ()
    expected = "members that are neither audio nor labels: 1 .json of more than 1 MiB"
    assert source.notes == (expected,)


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.zst", "tar.xz", "TAR.BZ2"])
def test_compressed_shards_are_refused(tmp_path: Path, suffix: str) -> None:
    """By name, in a folder and by itself."""
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"packed")
    for setting in (tmp_path, path, tmp_path / "*"):
        assert f"x.{suffix}: parts of a compressed tar cannot be read" in refused(opened(setting))


def test_what_is_no_tar_is_refused(tmp_path: Path, wav: bytes) -> None:
    """Whatever its name is."""
    path = tmp_path / "x.tar"
    path.write_bytes(wav)
    assert "x.tar is not a tar file" in refused(opened(path))
    with tarfile.open(path, "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.wav"))
    assert "x.tar is compressed by gzip" in refused(opened(path))
    assert "clips is a folder: name its files" in refused(opened(tmp_path / "cl*"))


def test_a_damaged_shard_is_refused(tmp_path: Path, wav: bytes) -> None:
    """A header that is cut off, or that is none, is named by its place."""
    path = write_tar(tmp_path / "x.tar", {"a.wav": wav, "b.wav": wav})
    whole = path.read_bytes()
    second = 512 + -(-len(wav) // 512) * 512
    path.write_bytes(whole[: second + 100])
    assert f"x.tar is cut off: it ends at byte {second + 100}" in refused(opened(path))
    path.write_bytes(whole[: second + 1] + b"?" + whole[second + 2 :])
    assert f"x.tar is damaged: the header at byte {second} cannot be read" in refused(opened(path))
    write_tar(path, {"a.wav": wav}, tarfile.PAX_FORMAT)
    path.write_bytes(path.read_bytes()[:520])
    assert "x.tar is damaged: the header at byte 0 cannot be read" in refused(opened(path))
    path.write_bytes(whole[:100])
    assert "x.tar is cut off: it ends at byte 100, within a header" in refused(opened(path))


def test_a_shard_that_is_cut_within_a_clip(tmp_path: Path, wav: bytes) -> None:
    """The clip is listed, and its decoding says why it cannot be read."""
    path = write_tar(tmp_path / "x.tar", {"a.wav": wav, "b.wav": wav})
    path.write_bytes(path.read_bytes()[: 512 + 3584 + 512 + 1000])
    source = open_source(opened(path))
    assert source.ids().to_pylist() == ["a", "b"]
    assert source.notes == (f"{path}: it is cut off within b.wav",)
    with pytest.raises(AudioError, match="do not lie within the file"):
        decode(source.segment(1), RATE_HZ)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: 512 + 3584], "it has no end mark, so later members may be missing"),
        (lambda data: data + data, "other bytes follow its end, as if two tars were joined"),
        (lambda data: data[: 4096 + 512 + 3], "it is cut off within a.txt"),
    ],
)
def test_a_doubtful_end_is_said(tmp_path: Path, wav: bytes, change: Any, words: str) -> None:
    """Samples behind it would be lost without a word; those before it are read."""
    path = write_tar(tmp_path / "x.tar", {"a.wav": wav, "a.txt": "x" * 100})
    path.write_bytes(change(path.read_bytes()))
    source = open_source(opened(path))
    assert words in source.notes[0]
    assert source.metadata([0]).to_pydict() in ({}, {"txt": ["x" * 100]})
    assert len(decode(source.segment(0), RATE_HZ).waveform) == 1600


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    """Their bytes are not in one piece; as GNU and as PAX state it."""
    hollow = tmp_path / "a.wav"
    with hollow.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        command = ["tar", "--sparse", f"--format={form}", "-C", str(tmp_path), "-cf", str(path)]
        subprocess.run([*command, "a.wav"], check=True)
        assert "a.wav is stored as a sparse file" in refused(opened(path))


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_forms_of_the_tar_program(tmp_path: Path, wav: bytes, form: str) -> None:
    """Members are those that Python's own module finds, in every form."""
    names = [f"d{'x' * n}/{n}.wav" for n in (0, 60, 70)]
    names += [] if form == "v7" else [f"d{'y' * 90}/{'y' * 90}.wav"]
    names += [] if form in ("v7", "ustar") else [f"{'e' * 200}/é.wav", f"{'f' * 255}/x.wav"]
    for name in names:
        write(tmp_path / "in" / name)
    path = tmp_path / "x.tar"
    command = ["tar", "--sort=name", f"--format={form}", "-C", str(tmp_path / "in"), "-cf"]
    subprocess.run([*command, str(path), "."], check=True)
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file.getmembers() if m.isreg()]
    with TarReader(path) as reader:
        found = [(m.name, m.start, m.n_bytes) for m in reader.members() if m.kind == "file"]
    assert found == expected
    assert reader.has_end
    assert open_source(opened(path)).ids().to_pylist() == sorted(n[:-4] for n in names)


def test_a_header_of_an_incremental_backup(tmp_path: Path, wav: bytes) -> None:
    """GNU tar has times in the place of a prefix of the name."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.wav").write_bytes(wav)
    path = tmp_path / "x.tar"
    command = ["tar", "--format=gnu", "--incremental", "-C", str(tmp_path / "in"), "-cf", str(path)]
    subprocess.run([*command, "a.wav"], check=True)
    assert path.read_bytes()[345:356].isdigit()
    assert open_source(opened(path)).ids().to_pylist() == ["a"]


def test_members_are_read_in_any_order(tmp_path: Path) -> None:
    """The reader keeps the bytes that it has read last."""
    contents = {f"{i}.txt": str(i) * 5000 for i in range(3)}
    with TarReader(write_tar(tmp_path / "x.tar", contents)) as reader:
        members = list(reader.members())
        for i in (2, 0, 1):
            assert reader.read(members[i]) == contents[f"{i}.txt"].encode()


def test_clips_behind_more_than_4_gib(tmp_path: Path, wav: bytes) -> None:
    """Offsets and sizes are of 64 bits; a size of 8 GiB is not octal."""
    path = tmp_path / "x.tar"
    big = tarfile.TarInfo("a.bin")
    with path.open("wb") as file:
        for n_bytes in (5 << 30, 9 << 30):
            big.size = n_bytes
            file.write(big.tobuf(tarfile.GNU_FORMAT))
            file.seek(n_bytes, io.SEEK_CUR)
            big.name = "b.bin"
        info = tarfile.TarInfo("c.wav")
        info.size = len(wav)
        file.write(info.tobuf() + wav + bytes(-len(wav) % 512 + 1024))
    source = open_source(opened(path))
    assert source.segment(0).byte_offset == (14 << 30) + 3 * 512
    assert len(decode(source.segment(0), RATE_HZ).waveform) == 1600


def encoded_files(folder: Path) -> dict[str, bytes]:
    """One clip in every format that can be written here."""
    sound = speechlike(RATE_HZ, 2)
    names = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64", "rf64")
    found = {name: write(folder / f"clip.{name}", sound).read_bytes() for name in names}
    if torchcodec.versions()["ffmpeg"]:  # which reads what soundfile would cut short
        pause = np.concatenate([speechlike(40_000), np.zeros(80_000, np.float32)])
        found["x.mp3"] = mp3_without_length(pause)
    return found


def test_every_format_is_read_in_place(tmp_path: Path) -> None:
    """Header, fingerprint and samples are those of the file."""
    encoded = encoded_files(tmp_path / "in")
    members = {f"{i}.{name}": data for i, (name, data) in enumerate(encoded.items())}
    source = open_source(opened(write_tar(tmp_path / "x.tar", members)))
    for row, (name, data) in enumerate(encoded.items()):
        (tmp_path / "alone").write_bytes(data)
        segment, alone = source.segment(row), Segment("alone", str(tmp_path / "alone"))
        assert probe(segment, RATE_HZ) == probe(alone, RATE_HZ), name
        ours, expected = decode(segment, RATE_HZ), decode(alone, RATE_HZ)
        assert np.array_equal(ours.waveform, expected.waveform), name
        assert replace(ours, waveform=expected.waveform) == expected, name


def test_the_fingerprint_follows_the_shards(tmp_path: Path, wav: bytes) -> None:
    """One that holds no audio counts, too: it may get some."""
    write_tar(tmp_path / "a.tar", {"a.wav": wav})
    write_tar(tmp_path / "b.tar", {})
    before = open_source(opened(tmp_path)).fingerprint
    write_tar(tmp_path / "b.tar", {"b.npy": b"1"})
    assert open_source(opened(tmp_path)).fingerprint != before


def test_a_pattern_whose_folder_is_gone(tmp_path: Path, wav: bytes) -> None:
    """It is noticed, and a pattern whose folder is there is no reason to stop."""
    path = write_tar(tmp_path / "shards/a.tar", {"a.wav": wav})
    config = opened(tmp_path / "shards/{a,b}*.tar")
    check_reachable(config, str(path))
    path.unlink()
    with pytest.raises(SourceError, match="shards is gone or empty"):
        check_reachable(config, str(path))

"""Lists of Kaldi, lhotse, NeMo and fairseq: what is read, what is refused, and with which words."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.errors import AudioError, SourceError
from pipeline.sources.base import Segment, TimeSpan
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write

RATE_HZ = 16_000


@pytest.fixture
def call(tmp_path: Path) -> Path:
    """A recording of 10 s with two channels."""
    return write(tmp_path / "call.wav", speechlike(10 * RATE_HZ, 2))


def refused(config: DatasetConfig) -> str:
    with pytest.raises(SourceError) as error:
        open_source(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def data_dir(folder: Path, **files: str) -> DatasetConfig:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(text)
    return DatasetConfig("kaldi", str(folder))


def json_lines(path: Path, *entries: Any) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def rows(config: DatasetConfig) -> list[dict[str, Any]]:
    source = open_source(config)
    return source.metadata(range(len(source))).to_pylist()


def samples(config: DatasetConfig) -> dict[str, list[float]]:
    source = open_source(config)
    found = {}
    for row, name in enumerate(source.ids().to_pylist()):
        found[name] = decode(source.segment(row), RATE_HZ).waveform.tolist()
    return found


def test_a_data_directory_of_kaldi(tmp_path: Path, call: Path) -> None:
    """Segments with Kaldi's rounding; files about utterances and speakers become columns."""
    config = data_dir(
        tmp_path / "data",
        wav_scp=f"rec {call}\n\nother  ../call.wav \n",
        segments="u1 rec 2.01 3.5\nu2 rec 3 -1\nu3 other 0 1 1\n",
        text="u1 hello  world\nu2\nu4 nobody\n",
        utt2spk="u1 anna\nu2\tbert\nu3 anna\n",
        utt2accent="u3 0012\n",
        utt2dur="u1 1.49\n",
        spk2gender="anna f\n",
        spk2utt="anna u1 u3\n",
    )
    source = open_source(config)
    assert source.ids().to_pylist() == ["u1", "u2", "u3"]
    assert [source.segment(row) for row in range(3)] == [
        Segment("u1", str(call), span=TimeSpan(2.01, 3.5)),
        Segment("u2", str(call), span=TimeSpan(3.0, None)),
        Segment("u3", f"{tmp_path}/data/../call.wav", span=TimeSpan(0.0, 1.0), channel=1),
    ]
    assert len(decode(source.segment(0), RATE_HZ).waveform) == 56_000 - 32_159
    found = open_source(config).metadata(range(3)).to_pydict()
    assert found == {
        "recording": ["rec", "rec", "other"],
        "start": [2.01, 3.0, 0.0],
        "stop": [3.5, -1.0, 1.0],
        "channel": [None, None, 1],
        "text": ["hello  world", "", None],
        "accent": [None, None, "0012"],
        "speaker": ["anna", "bert", "anna"],
        "gender": ["f", None, "f"],
    }
    assert source.notes == (
        "text: 1 line without an utterance",
        "text: 1 utterance without a line",
        "utt2accent: 2 utterances without a line",
    )


def test_channels_of_kaldi_recordings(tmp_path: Path, call: Path) -> None:
    """`reco2file_and_channel` counts where recordings share a file; else files are whole."""
    listed = "a x A\nb x B\n"
    shared = data_dir(
        tmp_path / "one", wav_scp=f"a {call}\nb {call}\n", reco2file_and_channel=listed
    )
    whole = decode(Segment("", str(call), channel=1), RATE_HZ).waveform.tolist()
    assert samples(shared)["b"] == whole
    mono = write(tmp_path / "mono.wav", speechlike(1000))
    apart = data_dir(
        tmp_path / "two", wav_scp=f"a {call}\nb {mono}\n", reco2file_and_channel=listed
    )
    assert open_source(apart).segment(1) == Segment("b", str(mono))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"segments": "u rec 0 1\n"}, "has no wav.scp"),
        ({"wav_scp": "rec sph2pipe -f wav a.sph |\n"}, "wav.scp, line 1: the audio 'sph2pipe"),
        ({"wav_scp": "a a.wav\nrec raw.ark:34\n"}, "line 2: the audio 'raw.ark:34' is a place in"),
        ({"wav_scp": "rec\n"}, "line 1: the audio '' is empty"),
        ({"wav_scp": "rec https://a/b.wav\n"}, "is a URL, which is not fetched"),
        ({"wav_scp": "a a.wav\na b.wav\n"}, "line 2: recording a is listed twice"),
        ({"wav_scp": "a a.wav\n", "segments": "u b 0 1\n"}, "recording b is not in wav.scp"),
        ({"wav_scp": "a a.wav\n", "segments": "u a 0\n"}, "line 1 has 3 fields"),
        ({"wav_scp": "a a.wav\n", "segments": "\nu a 0 x\n"}, "line 2: 0 and x are no times"),
        ({"wav_scp": "a a.wav\n", "segments": "u a 0 1_0\n"}, "are no times in seconds"),
        ({"wav_scp": "a a.wav\n", "segments": "u a 0 1e999\n"}, "are no times in seconds"),
        ({"wav_scp": "a a.wav\n", "segments": "u a 0 1 A\n"}, "line 1: the channel is A; expected"),
        ({"wav_scp": "a a.wav\n", "segments": "u a 0 nan\n"}, "are no times in seconds"),
        ({"wav_scp": "a a.wav\n", "segments": ""}, "lists no utterances"),
        ({"wav_scp": "a a.wav\n", "text": "a x\na y\n"}, "text, line 2: utterance a is listed"),
        ({"wav_scp": "a a.wav\nb a.wav\n", "reco2file_and_channel": "a x C\n"}, "none of A, B"),
        (
            {"wav_scp": "a a.wav\n", "segments": "u a 0 1\nu a 2 3\n"},
            "dataset.id_column=utterance is not unique",
        ),
    ],
)
def test_what_is_wrong_in_a_data_directory_is_named(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    assert words in refused(data_dir(tmp_path / "data", **files))


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    config = data_dir(tmp_path / "data", wav_scp="a a.wav\nb b.wav\n")
    (tmp_path / "data" / "text").write_bytes(b"\xef\xbb\xbfa \xc3\xa9t\xc3\xa9\r\nb \xe9t\xe9\n")
    assert "text, line 2 is not UTF-8" in refused(config)
    (tmp_path / "data" / "text").write_bytes(b"\xef\xbb\xbfa \xc3\xa9t\xc3\xa9\r\n")
    assert [row["text"] for row in rows(config)] == ["été", None]


def test_a_manifest_of_nemo(tmp_path: Path, call: Path) -> None:
    """Start and length are rounded down; a duration without an offset may be a rounded whole."""
    path = json_lines(
        tmp_path / "train.json",
        {"audio_filepath": "call.wav", "offset": 2.01, "duration": 1.5, "text": "a", "tag": 1},
        {"audio_filepath": "call.wav", "duration": 9.996, "text": "b", "tag": "x"},
        {"audio_filepath": str(call), "duration": 4, "text": "c", "tags": {"nested": 1}},
    )
    config = DatasetConfig("manifest", str(path), audio_column="path")
    found = samples(config)
    assert [(name, len(values)) for name, values in found.items()] == [
        ("call.wav:2.010-3.510", 24_000),
        ("call.wav:0.000-9.996", 160_000),
        ("call.wav:0.000-4.000", 64_000),
    ]
    source = open_source(config)
    assert source.segment(0).span == TimeSpan(2.01, duration_s=1.5)
    assert source.skipped_columns == ("tags",)
    assert "dataset.format=table" in source.notes[0]
    assert source.metadata(range(3)).to_pydict() == {
        "offset": [2.01, None, None],
        "duration": [1.5, 9.996, 4.0],
        "text": ["a", "b", "c"],
        "tag": ["1", "x", None],
        "recording": ["call.wav"] * 3,
    }
    assert open_source(replace(config, format="nemo")).notes == ()
    by_table = replace(config, format="table", audio_column="audio_filepath", id_column="text")
    [note] = open_source(by_table).notes
    assert note.startswith("offset, duration look like parts of recordings")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"audio_filepath": "sox a.wav -t wav - |", "duration": 1}, "is a program"),
        ({"audio_filepath": "pipe:cat a.wav", "duration": 1}, "is a program"),
        ({"audio_filepath": "a.wav", "duration": "long"}, "duration is 'long'; expected seconds"),
        ({"audio_filepath": "a.wav", "duration": 1, "offset": True}, "offset is True"),
        ({"audio": "a.wav", "duration": 1}, "there is no audio_filepath"),
        (["a.wav"], "is not a JSON object"),
    ],
)
def test_what_is_wrong_in_a_manifest_of_nemo_is_named(
    tmp_path: Path, entry: Any, words: str
) -> None:
    good = {"audio_filepath": "a.wav", "duration": 1}
    path = json_lines(tmp_path / "train.json", good, entry)
    message = refused(DatasetConfig("manifest", str(path)))
    assert message.startswith(f"{path}, line 2")
    assert words in message


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"audio_filepath": "a.wav", "duration": 1}\n{"audio_filepath": "b.wav",\n')
    assert f"{path}, line 2 is not JSON" in refused(DatasetConfig("manifest", str(path)))


def test_a_manifest_of_fairseq(tmp_path: Path, call: Path) -> None:
    """The first line is the root, also relative to the list; `dataset.root` takes its place."""
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "train.tsv"
    path.write_text("..\ncall.wav\t160000\n")
    config = DatasetConfig("manifest", str(path), audio_column="path")
    assert len(samples(config)["call.wav"]) == 160_000
    path.write_text("/nowhere\ncall.wav\t160000\n")
    assert len(samples(replace(config, root=str(tmp_path)))["call.wav"]) == 160_000
    path.write_text("..\ncall.wav\t160000\ncall.wav 5\n")
    assert "line 3 is not a path, a tab and a whole number" in refused(config)
    path.write_text("..\ncall.wav\t160000.0\n")
    assert "line 2 is not a path, a tab and a whole number" in refused(config)


def cut(call: Path, **more: Any) -> dict[str, Any]:
    source = {"type": "file", "channels": [0, 1], "source": str(call)}
    recording = {"id": "rec", "sources": [source], "sampling_rate": RATE_HZ, "num_samples": 160_000}
    return {"id": "u1", "start": 2.01, "duration": 1.5, "channel": 1, "type": "MonoCut"} | {
        "recording": recording,
        "supervisions": [
            {"id": "s1", "text": "hello", "speaker": "anna", "custom": {"snr": 3.5, "x": [1]}},
            {"id": "s2", "text": "there", "speaker": "bert", "language": "en"},
        ],
        **more,
    }


def test_cuts_of_lhotse(tmp_path: Path, call: Path) -> None:
    """Times are rounded to the nearest sample; several supervisions are one text."""
    path = json_lines(tmp_path / "cuts.jsonl.gz", cut(call))
    config = DatasetConfig("lhotse", str(path))
    span = TimeSpan(2.01, duration_s=1.5, rounding="nearest")
    assert open_source(config).segment(0) == Segment("u1", str(call), span=span, channel=1)
    expected = decode(
        Segment("", str(call), start_sample=32_160, stop_sample=56_160, channel=1), RATE_HZ
    )
    assert samples(config)["u1"] == expected.waveform.tolist()
    [row] = rows(config)
    assert row == {
        "recording": "rec",
        "start": 2.01,
        "channel": 1,
        "duration": 1.5,
        "text": "hello there",
        "language": "en",
        "snr": 3.5,
    }


def test_supervisions_and_recordings_of_lhotse(tmp_path: Path, call: Path) -> None:
    """Supervisions find their recordings beside them; recordings alone are whole files."""
    recordings = json_lines(
        tmp_path / "x_recordings.jsonl", cut(call)["recording"] | {"duration": 10.0}
    )
    supervision = {"id": "s", "recording_id": "rec", "start": 1, "duration": 2, "channel": 0}
    path = json_lines(tmp_path / "x_supervisions.jsonl.gz", supervision | {"text": "hi"})
    config = DatasetConfig("lhotse", str(path))
    first = Segment("", str(call), start_sample=16_000, stop_sample=48_000, channel=0)
    assert samples(config) == {"s": decode(first, RATE_HZ).waveform.tolist()}
    assert rows(config)[0]["text"] == "hi"
    whole = decode(Segment("", str(call)), RATE_HZ).waveform.tolist()
    assert samples(replace(config, path=str(recordings))) == {"rec": whole}
    recordings.unlink()
    assert "their recordings are not beside it" in refused(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "MixedCut"}, "a MixedCut is not read"),
        ({"channel": [0, 1]}, "a cut of 2 channels is not read"),
        ({"channel": 2}, "no source of the recording holds channel 2"),
        ({"duration": None}, "duration is None; expected seconds"),
        ({"id": ""}, "id is ''; expected text"),
        ({"recording": None}, "there is no recording"),
        ({"recording": {"sources": ["a.wav"]}}, "is not in the form of lhotse"),
        ({"recording": {"sources": [{"channels": 5}]}}, "is not in the form of lhotse"),
        ({"supervisions": 1}, "is not in the form of lhotse"),
        ({"custom": ["a"]}, "is not in the form of lhotse"),
    ],
)
def test_what_is_wrong_in_a_cut_is_named(
    tmp_path: Path, call: Path, change: dict[str, Any], words: str
) -> None:
    path = json_lines(tmp_path / "cuts.jsonl", cut(call), cut(call, **change))
    message = refused(DatasetConfig("lhotse", str(path)))
    assert message.startswith(f"{path}, line 2")
    assert words in message


def test_a_list_of_recordings_names_each_once(tmp_path: Path, call: Path) -> None:
    recording = cut(call)["recording"]
    beside = json_lines(tmp_path / "recordings.jsonl", recording, recording)
    supervision = {"id": "u", "recording_id": recording["id"], "start": 0, "duration": 1}
    path = json_lines(tmp_path / "supervisions.jsonl", supervision)
    message = refused(DatasetConfig("lhotse", str(path)))
    assert message == f"{beside}, line 2: recording {recording['id']} is listed twice"
    json_lines(beside, {**recording, "id": None})
    assert refused(DatasetConfig("lhotse", str(path))).startswith(f"{beside}, line 1: id is None")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transforms": [{"name": "Speed"}]}, "has transforms"),
        ({"sources": [{"type": "command", "source": "touch x"}]}, "is a command, which is neither"),
        ({"sources": [{"type": "url", "source": "http://a/b"}]}, "is a url, which is neither"),
        ({"sources": [{"type": "file", "source": "touch x |"}]}, "is a program"),
    ],
)
def test_audio_that_is_not_a_file_is_refused(
    tmp_path: Path, call: Path, change: dict[str, Any], words: str
) -> None:
    entry = cut(call, channel=0)
    entry["recording"] |= change
    path = json_lines(tmp_path / "cuts.jsonl", entry)
    assert words in refused(DatasetConfig("lhotse", str(path)))


def test_a_list_of_another_toolkit_is_named(tmp_path: Path, call: Path) -> None:
    """The remedy is the source that reads it."""
    path = json_lines(tmp_path / "cuts.jsonl", cut(call))
    assert "use dataset=lhotse" in refused(DatasetConfig("manifest", str(path)))
    folder = tmp_path / "data"
    data_dir(folder, wav_scp="a ../call.wav\n")
    assert "use dataset=kaldi" in refused(DatasetConfig("audiofolder", str(folder)))
    other = json_lines(tmp_path / "other.jsonl", {"path": "call.wav"})
    assert "use dataset=manifest" in refused(DatasetConfig("lhotse", str(other)))


def test_parts_of_files_by_the_columns_of_a_table(tmp_path: Path, call: Path) -> None:
    """In seconds and in samples, with ends, lengths and channels, given as numbers or text."""
    path = tmp_path / "list.csv"
    path.write_text("path,from,to,n,ch\ncall.wav,1.0,2.5,24000,1\ncall.wav,8.00003125,,1e305,\n")
    config = DatasetConfig("manifest", str(path), audio_column="path", start_column="from")
    by_end = replace(config, stop_column="to", channel_column="ch")
    source = open_source(by_end)
    assert source.ids().to_pylist() == ["call.wav:1.000-2.500/1", "call.wav:8.000-end"]
    assert [len(values) for values in samples(by_end).values()] == [24_000, 159_999 - 128_000]
    assert source.identity["segments"] == {"unit": "seconds", "rounding": "nearest"}
    for wrong, words in (
        ({"stop_column": "to", "duration_column": "n"}, "not both"),
        ({"stop_column": "path"}, "dataset.stop_column=path is not of numbers: "),
        ({"stop_column": "end"}, "dataset.stop_column: there is no column end"),
        ({"time_unit": "frames"}, "neither seconds nor samples"),
        ({"stop_column": "n"}, "line 3 has 1e+305; expected seconds"),
    ):
        assert words in refused(replace(config, **wrong))
    path.write_text(
        "path,from,n\ncall.wav,0,24000\ncall.wav,8,5\ncall.wav,9,-5\ncall.wav,9,-10\ncall.wav,0,-1\n"
    )
    in_samples = replace(config, duration_column="n", time_unit="samples")
    source = open_source(in_samples)
    assert [len(decode(source.segment(row), RATE_HZ).waveform) for row in (0, 1)] == [24_000, 5]
    for row in (2, 3, 4):  # the end is never -1, which would mean that of the file
        with pytest.raises(AudioError, match="holds no samples"):
            decode(source.segment(row), RATE_HZ)
    kaldi = data_dir(tmp_path / "data", wav_scp="a ../call.wav\n", segments="u a 0 1\n")
    assert "times of its own" in refused(replace(kaldi, start_column="from"))

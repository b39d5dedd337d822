"""`dataset.channel`: one channel of every file, or an utterance for each."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import pipeline
from pipeline.audio.decode import decode
from pipeline.audio.probe import count_channels, probe
from pipeline.config import DatasetConfig, load_config
from pipeline.errors import AudioError, SourceError
from pipeline.extract import run
from pipeline.sources.base import Segment, Source
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write
from tests.helpers.extraction import configured, extract
from tests.helpers.observers import Notes

CHANNELS = {"a.wav": 1, "b.flac": 2, "c.wav": 3}


@pytest.fixture
def corpus(tmp_path: Path) -> DatasetConfig:
    """Files with one, two and three channels, and one that cannot be read, with a column."""
    folder = tmp_path / "clips"
    for i, (name, n) in enumerate(CHANNELS.items()):
        write(folder / name, speechlike(1600 + i, n, seed=i))
    (folder / "d.wav").write_bytes(b"no audio")
    lines = [f"{name},{name[0].upper()}" for name in (*CHANNELS, "d.wav")]
    (folder / "metadata.csv").write_text("\n".join(["file_name,speaker", *lines]))
    return DatasetConfig("audiofolder", str(folder))


def opened(config: DatasetConfig, **settings: object) -> Source:
    return open_source(replace(config, **settings), count_channels)


def sound(segment: Segment) -> np.ndarray:
    return decode(segment, 16_000).waveform.numpy()


def native(segment: Segment, n_channels: int, seed: int) -> np.ndarray:
    """What `corpus` wrote into the file of a segment: `[n_samples, n_channels]`."""
    made = speechlike(1600 + seed, n_channels, seed=seed)
    return made if made.ndim == 2 else made[:, None]


def test_each_channel_is_an_utterance(corpus: DatasetConfig) -> None:
    """With the number after the id and as a column; a file that cannot be read stays one."""
    source = opened(corpus, channel="each")
    assert source.ids().to_pylist() == [
        *("a.wav#0", "b.flac#0", "b.flac#1", "c.wav#0", "c.wav#1", "c.wav#2", "d.wav#0")
    ]
    table = source.metadata(range(7)).to_pydict()
    assert table == {"speaker": [*"ABBCCCD"], "channel": [0, 0, 1, 0, 1, 2, 0]}
    places = [(i, k) for i, n in enumerate(CHANNELS.values()) for k in range(n)]
    for row, (i, k) in enumerate(places):
        segment = source.segment(row)
        assert segment.id == source.ids()[row].as_py()
        expected = native(segment, list(CHANNELS.values())[i], i)[:, k]
        np.testing.assert_allclose(sound(segment), expected, atol=1e-4)
    assert source.notes == (
        "dataset.channel=each: 2 of 4 rows have several channels, so there are 7 utterances",
    )


def test_each_header_is_read_once(corpus: DatasetConfig, tmp_path: Path) -> None:
    """Segments of one file share it; without `each`, none is read."""
    lines = [f"{name},{start},{start + 0.02}" for name in CHANNELS for start in (0.0, 0.01, 0.03)]
    (tmp_path / "clips" / "parts.csv").write_text("\n".join(["path,from,to", *lines]))
    parts = DatasetConfig(
        *("manifest", str(tmp_path / "clips" / "parts.csv")),
        audio_column="path",
        start_column="from",
        stop_column="to",
    )
    read: list[str | None] = []

    def count(segment: Segment) -> int:
        read.append(segment.path)
        return count_channels(segment)

    assert len(open_source(replace(parts, channel="each"), count)) == 3 * (1 + 2 + 3)
    assert len(read) == len(set(read)) == 3
    ids = open_source(replace(parts, channel="1"), count).ids().to_pylist()
    assert ids == open_source(parts, count).ids().to_pylist()
    assert len(read) == 3


def test_one_channel_of_every_file(corpus: DatasetConfig) -> None:
    """Ids and columns are as without it; a file without the channel is an error that counts."""
    source, plain = opened(corpus, channel="1"), opened(corpus)
    assert source.ids() == plain.ids()
    assert source.columns == plain.columns
    np.testing.assert_allclose(
        sound(source.segment(1)), native(source.segment(1), 2, 1)[:, 1], atol=1e-4
    )
    with pytest.raises(AudioError, match=r"channel 1 .* does not exist: the file has 1 channel$"):
        probe(source.segment(0), 16_000)


def test_the_identity_has_the_channel_if_it_is_set(corpus: DatasetConfig) -> None:
    """A store of today stays the same one without the setting, and with `mean`."""
    plain = opened(corpus)
    assert "channel" not in plain.identity
    assert opened(corpus, channel="mean").identity == plain.identity
    assert opened(corpus, channel="mean").fingerprint == plain.fingerprint
    views = [opened(corpus, channel=channel) for channel in ("0", "1", "each")]
    assert [view.identity["channel"] for view in views] == ["0", "1", "each"]
    assert len({view.fingerprint for view in (plain, *views)}) == 4


def test_named_columns_are_the_only_ones(corpus: DatasetConfig) -> None:
    """The column of the channel may be among them."""
    for names in (("speaker",), ("speaker", "channel"), ()):
        source = opened(corpus, channel="each", columns=names)
        assert tuple(column.name for column in source.columns) == names
        assert source.metadata([2]).column_names == [*names]
    only = opened(corpus, channel="each", columns=("channel",))
    assert only.metadata([2, 0]).to_pydict() == {"channel": [1, 0]}


def tar(folder: Path) -> DatasetConfig:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name in CHANNELS:
            archive.add(folder / "clips" / name, name)
    return DatasetConfig("webdataset", str(folder / "x.tar"))


def parquet(folder: Path) -> DatasetConfig:
    clips = [{"bytes": (folder / "clips" / n).read_bytes(), "path": n} for n in CHANNELS]
    pq.write_table(
        pa.table({"audio": clips}), folder / "x.parquet", compression="none", use_dictionary=False
    )
    return DatasetConfig("parquet", str(folder / "x.parquet"))


@pytest.mark.parametrize("make", [tar, parquet])
def test_files_in_archives_have_channels(
    make: Callable[[Path], DatasetConfig], corpus: DatasetConfig, tmp_path: Path
) -> None:
    """Their headers are read within the archive."""
    source = opened(make(tmp_path), channel="each")
    places = [(i, k) for i, n in enumerate(CHANNELS.values()) for k in range(n)]
    assert source.metadata(range(6)).to_pydict()["channel"] == [k for _, k in places]
    for row, (i, k) in enumerate(places):
        expected = native(source.segment(row), list(CHANNELS.values())[i], i)[:, k]
        np.testing.assert_allclose(sound(source.segment(row)), expected, atol=1e-4)


def kaldi(folder: Path) -> DatasetConfig:
    (folder / "wav.scp").write_text(f"x {folder}/clips/b.flac\ny {folder}/clips/b.flac\n")
    (folder / "reco2file_and_channel").write_text("x b A\ny b B\n")
    return DatasetConfig("kaldi", str(folder))


def lhotse(folder: Path) -> DatasetConfig:
    recording = {"id": "r", "sources": [{"type": "file", "source": f"{folder}/clips/b.flac"}]}
    cut = {"id": "c", "start": 0, "duration": 0.1, "channel": 0, "type": "MonoCut"}
    (folder / "cuts.jsonl").write_text(json.dumps(cut | {"recording": recording}))
    return DatasetConfig("lhotse", str(folder / "cuts.jsonl"))


@pytest.mark.parametrize("make", [kaldi, lhotse])
@pytest.mark.parametrize("channel", ["0", "each", "mean"])
def test_a_list_with_channels_of_its_own_is_refused(
    make: Callable[[Path], DatasetConfig], channel: str, corpus: DatasetConfig, tmp_path: Path
) -> None:
    """The setting would contradict it; the message names the list and an utterance."""
    with pytest.raises(SourceError, match=f"dataset.channel={channel}: {tmp_path}.*of its own"):
        opened(make(tmp_path), channel=channel)


def test_a_channel_is_a_number_or_a_word(corpus: DatasetConfig) -> None:
    """Other values, and two settings that both state it, are refused."""
    for channel in ("left", "-1", "1.5", "²", ""):
        with pytest.raises(SourceError, match="from 0, each, or mean"):
            opened(corpus, channel=channel)
    with pytest.raises(SourceError, match="channel_column=speaker both state"):
        opened(corpus, channel="0", channel_column="speaker")
    (Path(str(corpus.path)) / "metadata.csv").write_text("file_name,channel\na.wav,x\n")
    with pytest.raises(SourceError, match="adds a column channel, which"):
        opened(corpus, channel="each")
    with pytest.raises(SourceError, match="needs the headers"):
        open_source(replace(corpus, channel="each", columns=()))


def test_the_command_line_takes_numbers_and_words() -> None:
    """A number is text, as any name."""
    for written in ("1", "each", "mean"):
        assert load_config([f"dataset.channel={written}"]).dataset.channel == written
    assert load_config([]).dataset.channel is None


def test_the_plan_says_what_is_done_with_several_channels(
    corpus: DatasetConfig, tmp_path: Path
) -> None:
    """By the number of channels; nothing is said once the channel is chosen."""
    folder = Path(str(corpus.path))
    notes = Notes()
    run.plan(configured(folder, tmp_path / "s", "store=null"), notes)
    for n in (2, 3):
        assert (
            f"1 of 4 utterances have {n} channels: their mean is taken; dataset.channel=N|each "
            "chooses" in notes.lines
        )
    chosen = Notes()
    run.plan(configured(folder, tmp_path / "s", "store=null", "dataset.channel=0"), chosen)
    assert not [line for line in chosen.lines if "channel" in line]


def test_a_store_of_each_channel(corpus: DatasetConfig, tmp_path: Path) -> None:
    """Each has the features of a file with this channel alone; a second run adds nothing."""
    folder = Path(str(corpus.path))
    for i, (name, n) in enumerate(CHANNELS.items()):
        sound, rate_hz = soundfile.read(folder / name, dtype="int16", always_2d=True)
        for k in range(n):
            soundfile.write(tmp_path / f"{i}{k}.wav", sound[:, k], rate_hz)
    settings = ("engine=inline", "engine.threads=1")
    each = (*settings, "dataset.channel=each")
    first = extract(folder, tmp_path / "each", *each)
    assert (first.utterances_ok, first.utterances_quarantined) == (6, 1)
    again = extract(folder, tmp_path / "each", *each)
    assert again.units_committed == first.units_committed
    found = pipeline.open_store(tmp_path / "each")
    for i, (name, n) in enumerate(CHANNELS.items()):
        for k in range(n):
            cut = tmp_path / f"cut{i}{k}"
            cut.mkdir()
            (tmp_path / f"{i}{k}.wav").rename(cut / "x.wav")
            extract(cut, tmp_path / f"store{i}{k}", *settings)
            alone = pipeline.open_store(tmp_path / f"store{i}{k}").read("x.wav")
            assert torch.equal(found.read(f"{name}#{k}"), alone)
    assert found.metadata["channel"].to_pylist() == [0, 0, 1, 0, 1, 2]

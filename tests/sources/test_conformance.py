"""The contract of `pipeline.sources.base.Source`, for every kind of source.

A new kind needs one line in `KINDS`: a function that writes the clips into a folder in the form
of that kind, and returns the configuration that opens them.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from pipeline.audio.decode import decode
from pipeline.audio.probe import count_channels
from pipeline.config import DatasetConfig
from pipeline.errors import AudioError, SourceError
from pipeline.sources.base import Segment, Source
from pipeline.sources.opening import open_source as open_with
from pipeline.store.format.records import RESERVED_NAMES
from tests.helpers.audio_files import speechlike, write
from tests.helpers.parquet_files import write_parquet
from tests.helpers.tars import write_tar

N_SAMPLES = {"b.wav": 1600, "a.wav": 3200, "c.wav": 800}  # of each clip, in the order of the rows
SPEAKERS = ["anna", "bert", None]


def open_source(config: DatasetConfig) -> Source:
    """Open a dataset as the driver does."""
    return open_with(config, count_channels)


def folder(root: Path) -> DatasetConfig:
    write_clips(root / "left")
    write_clips(root / "right")
    (root / "notes.txt").write_text("no audio")
    return DatasetConfig("audiofolder", str(root))


def folder_with_metadata(root: Path) -> DatasetConfig:
    write_clips(root)
    (root / "metadata.csv").write_text(table("file_name"))
    return DatasetConfig("audiofolder", str(root))


def manifest(root: Path) -> DatasetConfig:
    write_clips(root / "clips")
    (root / "list.csv").write_text(table("path").replace("\n", "\nclips/"))
    return DatasetConfig("manifest", str(root / "list.csv"), audio_column="path")


def saved(root: Path) -> DatasetConfig:
    dataset(root).save_to_disk(root / "saved")
    return DatasetConfig("disk", str(root / "saved"))


def hub(root: Path) -> DatasetConfig:
    (root / "data").mkdir()
    dataset(root).to_parquet(root / "data/train-00000-of-00001.parquet")
    return DatasetConfig("hub", name=str(root), split="train")


def parquet(root: Path) -> DatasetConfig:
    (root / "data").mkdir()
    dataset(root).to_parquet(root / "data/clips.parquet")
    return DatasetConfig("parquet", str(root / "data"))


def parquet_with_compression(root: Path) -> DatasetConfig:
    write_parquet(root / "clips.parquet", dataset(root).data.table, compression="zstd")
    return DatasetConfig("parquet", str(root / "*.parquet"))


def nemo(root: Path) -> DatasetConfig:
    write_clips(root)
    entries = [
        {"audio_filepath": name, "offset": 0.0, "duration": n / 16_000} | row
        for (name, n), row in zip(N_SAMPLES.items(), plain_rows(), strict=True)
    ]
    (root / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return DatasetConfig("manifest", str(root / "list.jsonl"))


def nemo_with_tars(root: Path) -> DatasetConfig:
    config = nemo(root)
    for i, name in enumerate(N_SAMPLES):
        write_tar(root / f"audio_{i}.tar", {name: (root / name).read_bytes()})
        (root / name).unlink()
    return replace(config, tars=str(root / "audio_{0..2}.tar"))


def fairseq(root: Path) -> DatasetConfig:
    write_clips(root / "clips")
    lines = [f"{name}\t{n}" for name, n in N_SAMPLES.items()]
    (root / "train.tsv").write_text("\n".join([str(root / "clips"), *lines]))
    return DatasetConfig("manifest", str(root / "train.tsv"))


def kaldi(root: Path) -> DatasetConfig:
    write_clips(root / "clips")
    (root / "wav.scp").write_text("".join(f"{name} clips/{name}\n" for name in N_SAMPLES))
    ends = [(name, n / 16_000) for name, n in N_SAMPLES.items()]
    (root / "segments").write_text("".join(f"{name} {name} 0.0 {end}\n" for name, end in ends))
    for name, row in zip(N_SAMPLES, plain_rows(), strict=True):
        for file, value in (("utt2spk", row["speaker"]), ("utt2number", row["number"])):
            with (root / file).open("a") as out:
                out.write(f"{name} {value}\n" if value is not None else "")
    return DatasetConfig("kaldi", str(root))


def lhotse(root: Path) -> DatasetConfig:
    write_clips(root)
    with (root / "cuts.jsonl").open("w") as file:
        for (name, n), row in zip(N_SAMPLES.items(), plain_rows(), strict=True):
            source = {"type": "file", "channels": [0], "source": name}
            recording = {"id": name, "sources": [source], "sampling_rate": 16_000}
            supervision = {
                "id": name,
                "speaker": row["speaker"],
                "custom": {"number": row["number"]},
            }
            cut = {"id": name, "start": 0, "duration": n / 16_000, "channel": 0, "type": "MonoCut"}
            cut |= {"recording": recording, "supervisions": [supervision]}
            file.write(json.dumps(cut) + "\n")
    return DatasetConfig("lhotse", str(root / "cuts.jsonl"))


def segments_of_a_table(root: Path) -> DatasetConfig:
    """A table with the samples of each part; the files are longer."""
    for i, (name, n) in enumerate(N_SAMPLES.items()):
        write(root / name, speechlike(n + 500, seed=i))
    lines = [f"{name},100,{n}" for name, n in N_SAMPLES.items()]
    (root / "list.csv").write_text("\n".join(["path,from,samples", *lines]))
    return DatasetConfig(
        "manifest",
        str(root / "list.csv"),
        audio_column="path",
        id_column="path",
        start_column="from",
        duration_column="samples",
        time_unit="samples",
    )


def one_channel(root: Path) -> DatasetConfig:
    """One channel of every file."""
    return replace(manifest(root), channel="0")


def each_channel(root: Path) -> DatasetConfig:
    """An utterance for each channel of a file."""
    return replace(segments_of_a_table(root), channel="each")


def webdataset(root: Path) -> DatasetConfig:
    """Two shards."""
    write_clips(root / "clips")
    samples: list[dict[str, bytes | str]] = []
    for name, row in zip(N_SAMPLES, plain_rows(), strict=True):
        audio = (root / "clips" / name).read_bytes()
        samples.append({name: audio, f"{Path(name).stem}.json": json.dumps(row | {"status": "x"})})
        (root / "clips" / name).unlink()
    write_tar(root / "x-0.tar", samples[0] | samples[1])
    write_tar(root / "x-1.tar", samples[2])
    return DatasetConfig("webdataset", str(root / "x-{0..1}.tar"))


KINDS: dict[str, Callable[[Path], DatasetConfig]] = {
    "audiofolder": folder,
    "audiofolder with metadata": folder_with_metadata,
    "manifest": manifest,
    "disk": saved,
    "hub": hub,
    "parquet": parquet,
    "parquet with compression": parquet_with_compression,
    "nemo": nemo,
    "nemo with tars": nemo_with_tars,
    "fairseq": fairseq,
    "kaldi": kaldi,
    "lhotse": lhotse,
    "segments of a table": segments_of_a_table,
    "one channel": one_channel,
    "each channel": each_channel,
    "webdataset": webdataset,
}
DATA_FILES = (
    *("*.wav", "*.csv", "*.arrow", "*.parquet", "*.jsonl", "*.tsv", "wav.scp", "utt2*", "*.tar"),
)


def plain_rows() -> list[dict[str, object]]:
    return [{"speaker": speaker, "number": i} for i, speaker in enumerate(SPEAKERS)]


def write_clips(root: Path) -> None:
    for i, (name, n_samples) in enumerate(N_SAMPLES.items()):
        write(root / name, speechlike(n_samples, seed=i))


def table(audio_column: str) -> str:
    rows = zip(N_SAMPLES, SPEAKERS, range(len(N_SAMPLES)), strict=True)
    lines = [f"{name},{speaker or ''},{i},x" for name, speaker, i in rows]
    return "\n".join([f"{audio_column},speaker,number,status", *lines])


def dataset(root: Path) -> datasets.Dataset:
    write_clips(root / "clips")
    rows = {
        "audio": [
            {"bytes": (root / "clips" / name).read_bytes(), "path": name} for name in N_SAMPLES
        ],
        "speaker": SPEAKERS,
        "number": list(range(len(N_SAMPLES))),
        "status": ["x"] * len(N_SAMPLES),
    }
    for file in (root / "clips").iterdir():
        file.unlink()
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> DatasetConfig:
    """A dataset of the kind, in a folder of its own."""
    root = tmp_path / "root"
    root.mkdir()
    return KINDS[request.param](root)


@pytest.fixture
def source(config: DatasetConfig) -> Source:
    return open_source(config)


@pytest.fixture(scope="module")
def other_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        yield pool


def facts(config: DatasetConfig) -> tuple[object, ...]:
    """All that must be the same each time that a dataset is opened."""
    source = open_source(config)
    rows = range(len(source))
    return (
        source.ids().to_pylist(),
        [source.segment(row) for row in rows],
        source.metadata(rows).to_pydict(),
        (source.columns, source.skipped, source.skipped_columns, source.notes),
        source.identity,
        source.fingerprint,
    )


def test_ids_are_unique_text(source: Source) -> None:
    """One for each row, none empty."""
    ids = source.ids()
    assert ids.type == pa.string()
    assert len(ids) == len(source) == len(set(ids.to_pylist())) >= 3
    assert all(ids.to_pylist())


def test_a_segment_is_the_rows_audio(source: Source) -> None:
    """It has the row's id, is a whole file, a range of one, or its bytes, and decodes."""
    for row, name in enumerate(source.ids().to_pylist()):
        segment = source.segment(row)
        assert segment.id == name
        assert (segment.path is None) != (segment.data is None)
        assert segment.path is None or Path(segment.path).is_absolute()
        plain = Segment(name, segment.path, segment.data)
        times = {"span": segment.span, "channel": segment.channel}
        samples = {"start_sample": segment.start_sample, "stop_sample": segment.stop_sample}
        place = {"byte_offset": segment.byte_offset, "byte_length": segment.byte_length}
        assert (segment.container == "file") == (place == {"byte_offset": 0, "byte_length": -1})
        place["container"] = segment.container
        assert replace(plain, **times, **samples, **place) == segment
        clip = re.split("[/:#.]", name)[1 if "/" in name else 0]
        assert len(decode(segment, 16_000).waveform) == N_SAMPLES[f"{clip}.wav"]
        assert pickle.loads(pickle.dumps(segment)) == segment


def test_metadata_has_the_columns_types_and_rows_asked_for(source: Source) -> None:
    """Rows in any order, repeated, and none at all."""
    everything = source.metadata(range(len(source)))
    assert everything.column_names == [column.name for column in source.columns]
    assert not RESERVED_NAMES & set(everything.column_names)
    for rows in ([2, 0], [1, 1], [], [1, 2], [0]):
        part = source.metadata(rows)
        assert part.to_pydict() == everything.take(pa.array(rows, pa.int64())).to_pydict()
        assert len(part) == len(rows) or not source.columns
        types = [(field.name, str(field.type)) for field in part.schema]
        assert types == [(column.name, column.type) for column in source.columns]
    if "speaker" in everything.column_names:
        assert everything["speaker"].to_pylist() == SPEAKERS
        assert source.skipped_columns in ((), ("status",))


def test_opening_again_gives_the_same_source(
    config: DatasetConfig, other_process: ProcessPoolExecutor
) -> None:
    """In this process and in another one, which is sent the configuration only."""
    first = facts(config)
    assert facts(pickle.loads(pickle.dumps(config))) == first
    assert other_process.submit(facts, config).result() == first
    assert open_source(config).config == config


def test_no_audio_file_is_opened(config: DatasetConfig, source: Source, tmp_path: Path) -> None:
    """Ids, segments and metadata do not need the files; decoding does."""
    before = facts(config)[:3]
    for file in (*tmp_path.rglob("*.wav"), *tmp_path.rglob("*.tar")):
        file.unlink()
    rows = range(len(source))
    segments = [source.segment(row) for row in rows]
    found = source.ids().to_pylist(), segments, source.metadata(rows).to_pydict()
    assert found == before
    for segment in segments:
        if segment.container == "file" and segment.data is None:
            with pytest.raises(AudioError, match="No such file"):
                decode(segment, 16_000)


def test_threads_may_share_a_source(source: Source) -> None:
    """Concurrent calls return what single ones do."""
    rows = [*range(len(source))] * 20
    with ThreadPoolExecutor(4) as pool:
        segments = list(pool.map(source.segment, rows))
        tables = list(pool.map(lambda row: source.metadata([row]), rows))
    assert segments == [source.segment(row) for row in rows]
    assert tables == [source.metadata([row]) for row in rows]


def test_the_identity_is_json_without_paths(source: Source, tmp_path: Path) -> None:
    """It goes into the store's attributes; a hub dataset's name is what the user wrote."""
    assert json.loads(json.dumps(source.identity)) == source.identity
    identity = {**source.identity, "name": None}
    assert str(tmp_path) not in json.dumps(identity)


def test_the_fingerprint_follows_every_file(
    config: DatasetConfig, source: Source, tmp_path: Path
) -> None:
    """Another modification time of any data file is another fingerprint; the identity stays."""
    seen = {source.fingerprint}
    files = sorted(file for pattern in DATA_FILES for file in tmp_path.rglob(pattern))
    assert files
    for n_changed, file in enumerate(files, start=1):
        os.utime(file, ns=(n_changed, n_changed))
        changed = open_source(config)
        seen.add(changed.fingerprint)
        assert len(seen) == n_changed + 1
        assert changed.identity == source.identity


def test_the_fingerprint_follows_the_settings(config: DatasetConfig, source: Source) -> None:
    """Fewer rows or other columns are another fingerprint."""
    shorter = open_source(replace(config, limit=2))
    assert shorter.ids().to_pylist() == source.ids().to_pylist()[:2]
    assert shorter.fingerprint != source.fingerprint
    if source.columns:
        bare = open_source(replace(config, columns=()))
        assert bare.columns == ()
        assert bare.fingerprint != source.fingerprint
        assert bare.identity != source.identity


@pytest.mark.parametrize("make", [folder, saved, webdataset])
def test_the_fingerprint_does_not_follow_the_path(
    make: Callable[[Path], DatasetConfig], tmp_path: Path
) -> None:
    """A moved dataset is the same one, except for tables, which `datasets` knows by path."""
    (tmp_path / "here").mkdir()
    config = make(tmp_path / "here")
    before = facts(config)[-2:]
    (tmp_path / "here").rename(tmp_path / "there")
    assert config.path is not None
    moved = open_source(replace(config, path=config.path.replace("/here", "/there")))
    assert (moved.identity, moved.fingerprint) == before


@pytest.mark.parametrize("setting", ["columns", "id_column"])
def test_a_missing_column_is_refused(config: DatasetConfig, setting: str) -> None:
    """In one line that names the setting and the column."""
    value = ("nothing",) if setting == "columns" else "nothing"
    with pytest.raises(SourceError, match=f"dataset.{setting}: there is no column nothing") as e:
        open_source(replace(config, **{setting: value}))
    assert "\n" not in str(e.value)

"""Parquet files with embedded audio, read in place: layouts, splits, columns, and damage."""

from __future__ import annotations

import itertools
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.audio.probe import probe
from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.archives.parquet import embedded, finding
from pipeline.sources.archives.parquet.pages import UNCOMPRESSED, Chunk, read_pages
from pipeline.sources.archives.parquet.values import Values, locate
from pipeline.sources.base import Column
from pipeline.sources.opening import open_source
from pipeline.sources.tabular import TabularSource
from tests.helpers.audio_files import speechlike, write
from tests.helpers.parquet_files import AUDIO, audio, containers, contents, write_parquet

CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


def random_clips(n: int, largest: int = 5000, seed: int = 0) -> list[bytes]:
    """Bytes of many sizes; every third one repeats."""
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(1, largest)) if i % 3 else b"same" * 100 for i in range(n)]


def opened(path: Path, **settings: Any) -> TabularSource:
    source = open_source(DatasetConfig("parquet", str(path), **settings))
    assert isinstance(source, TabularSource)
    return source


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as error:
        opened(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- layouts ----------------------------------------------------------------------------------


def test_what_datasets_writes_is_read_in_place(tmp_path: Path) -> None:
    """Every clip is a range of the file, and `datasets` makes no copy of the rows."""
    clips = random_clips(250, 40_000)
    features = {"audio": datasets.Audio(decode=False), "word": datasets.ClassLabel(names=["a"])}
    rows = {
        "audio": [{"bytes": clip, "path": f"{i}.wav"} for i, clip in enumerate(clips)],
        "word": [0] * len(clips),
    }
    path = tmp_path / "train.parquet"
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    dataset.to_parquet(path, batch_size=100)
    assert pq.read_metadata(path).num_row_groups == 3
    source = opened(path)
    assert contents(source) == clips
    assert containers(source) == {"parquet"}
    assert source.notes == ()
    assert source.columns == (Column("word", "int64", ("a",)),)
    assert not [*Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_layout_gives_the_same_bytes(tmp_path: Path, codec: str, version: str) -> None:
    """Pages of both versions, compressed or with a dictionary, with nulls, in row groups.

    What is not compressed is read in place.
    """
    clips: list[bytes | None] = [*random_clips(300)]
    clips[3:200:7] = [None] * len(clips[3:200:7])
    table = pa.table({"audio": audio(clips), "n": range(300)})
    for dictionary, rows, page in itertools.product((False, True), (300, 77), (1000, 1 << 20)):
        path = write_parquet(
            tmp_path / "a.parquet",
            table,
            compression=codec,
            use_dictionary=dictionary,
            data_page_version=version,
            row_group_size=rows,
            data_page_size=page,
            write_batch_size=8,
        )
        source = opened(path, id_column="n")
        assert contents(source) == clips
        assert containers(source) == {"file", "parquet" if codec == "none" else "memory"}
        assert bool(source.notes) == (not source.is_shared) == (codec != "none")


def test_a_note_says_how_many_files_are_compressed(tmp_path: Path) -> None:
    table = pa.table({"audio": audio(random_clips(3))})
    write_parquet(tmp_path / "a.parquet", table)
    write_parquet(tmp_path / "b.parquet", table, compression="zstd")
    (note,) = opened(tmp_path).notes
    assert "1 of 2 Parquet files is compressed" in note
    assert "compression=None and use_dictionary=False" in note


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_null_is_not_an_empty_clip(tmp_path: Path, codec: str) -> None:
    """Neither a null struct nor null bytes in one; nor are columns without nulls different."""
    rows = [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "/b.wav"}, None]
    rows += [{"bytes": b"", "path": "d"}, {"bytes": b"y", "path": None}]
    table = pa.table({"audio": pa.array(rows, AUDIO)})
    for rows_per_group in (1, 5):
        path = write_parquet(
            tmp_path / "a.parquet", table, compression=codec, row_group_size=rows_per_group
        )
        source = opened(path)
        assert source.ids().to_pylist() == ["0", "1", "2", "3", "4"]
        assert source.segment(1).path == "/b.wav"
        assert [source.segment(row).path for row in (2,)] == [None]
        both = [source.segment(3), source.segment(4)]
        assert [s.data if s.data is not None else s.byte_length for s in both] == (
            [0, 1] if codec == "none" else [b"", b"y"]
        )
    required = pa.schema([pa.field("audio", pa.struct([*AUDIO]), nullable=False)])
    whole = pa.table({"audio": audio([b"x", b"yz"])}, schema=required)
    assert contents(opened(write_parquet(path, whole, compression=codec))) == [b"x", b"yz"]


def test_other_audio_columns(tmp_path: Path) -> None:
    """Plain bytes, and structs and texts of paths, which start from the folder of their file."""
    clip = write(tmp_path / "deep/clip.wav").read_bytes()
    path = write_parquet(tmp_path / "deep/a.parquet", pa.table({"audio": [clip, b"other"]}))
    source = opened(path)
    assert contents(source) == [clip, b"other"]
    assert (containers(source), source.ids().to_pylist()) == ({"parquet"}, ["0", "1"])
    structs = pa.array([{"path": "clip.wav"}])
    nulls = pa.array([{"bytes": None, "path": "clip.wav"}], AUDIO)
    for column in (structs, nulls, pa.array(["clip.wav"])):
        write_parquet(path, pa.table({"audio": column}))
        for place in (path, tmp_path, tmp_path / "**/*.parquet"):
            source = opened(place)
            assert source.segment(0).path == str(tmp_path / "deep/clip.wav")
            assert source.ids()[0].as_py() == ("deep/" if place == tmp_path else "") + "clip.wav"
        assert opened(path, root="/data").segment(0).path == "/data/clip.wav"


def test_offsets_beyond_four_gigabytes(tmp_path: Path) -> None:
    """In a sparse file."""
    clips = random_clips(50)
    path = write_parquet(tmp_path / "a.parquet", pa.table({"audio": audio([*clips])}))
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(0)
        file.seek(5 << 30)
        file.write(content)
    column = pq.read_metadata(pa.BufferReader(content)).row_group(0).column(0)
    sizes = column.total_compressed_size, column.total_uncompressed_size, column.num_values
    chunk = Chunk((5 << 30) + column.data_page_offset, *sizes, UNCOMPRESSED, 2)
    with embedded.opened(str(path)) as read:
        (page,) = read_pages(read, chunk)
        start, length = locate(read, page.start, chunk, page)
        assert [
            read(*place) for place in zip(start.tolist(), length.tolist(), strict=True)
        ] == clips
        assert start[0] > 5 << 30


def test_planning_reads_a_small_part_of_the_bytes(tmp_path: Path) -> None:
    """Opening and the probes of all headers read some kilobytes of each clip."""
    rows = []
    for i in range(40):
        sound = write(tmp_path / "clip.wav", speechlike(100_000, seed=i))
        rows.append(sound.read_bytes())
    path = write_parquet(tmp_path / "a.parquet", pa.table({"audio": audio(rows)}))
    before = read_bytes()
    source = opened(path)
    for row in range(len(source)):
        assert probe(source.segment(row), 16_000).n_samples == 100_000
    assert read_bytes() - before < 0.25 * path.stat().st_size


def read_bytes() -> int:
    """Bytes that this process has read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def compressed(folder: Path, clips: list[bytes], **sizes: int) -> Path:
    """Write a file with compressed pages."""
    table = pa.table({"audio": audio([*clips])})
    return write_parquet(folder / "a.parquet", table, compression="zstd", **sizes)


def test_threads_do_not_decompress_pages_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads that go through parts of a file, as in a scan, read most pages once."""
    clips = random_clips(3200)
    path = compressed(tmp_path, clips, data_page_size=100_000, write_batch_size=32)
    monkeypatch.setattr(embedded, "CACHE_BYTES", 1_000_000)
    source = opened(path)
    calls = []
    read_page = embedded._read_page
    monkeypatch.setattr(embedded, "_read_page", lambda *a: calls.append(a[1]) or read_page(*a))

    def scan(start: int) -> bool:
        return all(source.segment(row).data == clips[row] for row in range(start, start + 100))

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(scan, range(0, 3200, 100)))
    assert len(calls) < 2 * len(set(calls))
    assert len(set(calls)) > 20


def test_compressed_pages_are_kept_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in any order are right although few pages are kept."""
    clips = random_clips(200)
    path = compressed(tmp_path, clips, data_page_size=2000, write_batch_size=8)
    monkeypatch.setattr(embedded, "CACHE_BYTES", 60_000)
    source = opened(path)
    for row in random.Random(0).choices(range(200), k=600):
        assert source.segment(row).data == clips[row]
    kept = source._audio._pages  # type: ignore[attr-defined]
    assert kept._n_kept_bytes <= 60_000
    assert kept._n_kept_bytes == sum(len(page.data) for page in kept._kept.values())


# --- files and splits -------------------------------------------------------------------------


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Of a folder, or those that match a pattern; other files of a folder are ignored."""
    clips = random_clips(6)
    for i in (2, 0, 1):
        pair = audio([*clips[2 * i : 2 * i + 2]], [f"{2 * i}", f"{2 * i + 1}"])
        write_parquet(tmp_path / f"part{i}.parquet", pa.table({"audio": pair}))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.parquet").write_text("nothing")
    assert contents(opened(tmp_path)) == clips
    assert opened(tmp_path).ids().to_pylist() == list("012345")
    assert contents(opened(tmp_path / "part[12].parquet")) == clips[2:]
    assert contents(opened(tmp_path / "*.parquet", limit=3)) == clips[:3]
    assert contents(opened(tmp_path / "part{1..2}.parquet")) == clips[2:]
    assert "matches no file" in refused(tmp_path / "x*.parquet")
    assert "1 of 1 files do not exist" in refused(tmp_path / "x.parquet")
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet file" in refused(tmp_path / "empty")
    with pytest.raises(SourceError, match=r"needs dataset\.path"):
        open_source(DatasetConfig("parquet"))


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"),
        ("train/0000", "train/0001", "test/0000"),
        ("default/train/0", "default/train/1", "default/test/0"),
        ("train_0", "train_1", "test"),
        ("train-00000-of-00002-0123456789abcdef", "train-00001-of-00002-f0", "test-0-of-1"),
    ],
)
def test_splits_are_those_of_the_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    """As on the hub. Ids that repeat get the split before them."""
    clips = random_clips(3)
    for name, clip in zip(names, clips, strict=True):
        table = pa.table({"audio": audio([clip], ["a.wav" if "test" in name else name[-40:]])})
        write_parquet(tmp_path / f"{name}.parquet", table)
    assert contents(opened(tmp_path, split="train")) == clips[:2]
    assert "split" not in [column.name for column in opened(tmp_path, split="test").columns]
    everything = opened(tmp_path, split="all")
    assert everything.metadata(range(3))["split"].to_pylist() == ["test", "train", "train"]
    assert contents(everything) == [clips[2], *clips[:2]]
    assert contents(opened(tmp_path, split="train+test")) == clips
    assert "dataset.split=all|test|train" in refused(tmp_path)
    assert "dataset.split=dev is not in" in refused(tmp_path, split="dev")


def test_ids_that_repeat_in_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", pa.table({"audio": audio([b"x"], ["a.wav"])}))
    assert opened(tmp_path, split="all").ids().to_pylist() == ["test/a.wav", "train/a.wav"]


def test_names_without_a_split(tmp_path: Path) -> None:
    """They are one dataset; together with names of splits they are refused."""
    table = pa.table({"audio": audio([b"x"])})
    write_parquet(tmp_path / "part-a.parquet", table)
    assert len(opened(tmp_path, split="all")) == 1
    assert "name no split" in refused(tmp_path, split="train")
    write_parquet(tmp_path / "train.parquet", table)
    assert "part-a.parquet name no split, but others do (train)" in refused(tmp_path)


# --- columns ----------------------------------------------------------------------------------


def test_other_columns_are_carried(tmp_path: Path) -> None:
    """Except for nested and binary ones, which are not even read."""
    big = os.urandom(3_000_000)
    table = pa.table(
        {
            "image": [{"bytes": big, "path": "x"}] * 2,
            "n": pa.array([1, 2], pa.int16()),
            "raw": [big, big],
            "audio": audio([b"x", b"y"]),
            "tags": [["a"], []],
            "text": pa.array(["one", None], pa.large_string()),
        }
    )
    path = write_parquet(tmp_path / "a.parquet", table)
    before = read_bytes()
    source = opened(path)
    assert read_bytes() - before < 1_000_000
    kinds = [("n", "int16"), ("tags", "list<item: string>"), ("text", "string")]
    assert [(column.name, column.type) for column in source.columns] == kinds
    assert source.skipped_columns == ("image", "raw")
    assert source.metadata([1, 0]).to_pydict() == {
        "n": [2, 1],
        "tags": [[], ["a"]],
        "text": [None, "one"],
    }
    assert contents(opened(path, audio_column="raw")) == [big, big]
    assert "its audio is in image, audio" in refused(path, audio_column="sound")
    assert opened(path, columns=("n",), id_column="n").ids().to_pylist() == ["1", "2"]


def test_parts_of_embedded_recordings(tmp_path: Path) -> None:
    """Columns of times cut them, and the range of bytes stays."""
    sound = write(tmp_path / "a.wav", speechlike(16_000)).read_bytes()
    table = pa.table(
        {"audio": audio([sound, sound], ["a.wav", "a.wav"]), "from": [0.0, 0.5], "to": [0.5, 0.75]}
    )
    source = opened(
        write_parquet(tmp_path / "a.parquet", table), start_column="from", stop_column="to"
    )
    assert source.ids().to_pylist() == ["a.wav:0.000-0.500", "a.wav:0.500-0.750"]
    assert source.metadata([1])["recording"].to_pylist() == ["a.wav"]
    segment = source.segment(1)
    assert (segment.container, segment.byte_length) == ("parquet", len(sound))
    assert probe(segment, 16_000).n_samples == 4000


def test_files_that_differ_are_refused(tmp_path: Path) -> None:
    """In columns, types or class names; a column of nulls has the type of the others."""
    first = write_parquet(
        tmp_path / "a.parquet", pa.table({"audio": audio([b"x"], ["1"]), "n": [1]})
    )
    other = tmp_path / "b.parquet"
    for columns in ({"n": ["1"]}, {}, {"n": [1], "m": [2]}):
        write_parquet(other, pa.table({"audio": audio([b"y"], ["2"]), **columns}))
        assert f"{other} and {first} differ in column" in refused(tmp_path)
    write_parquet(other, pa.table({"audio": audio([b"y"], ["2"]), "n": pa.nulls(1)}))
    assert opened(tmp_path).metadata([0, 1])["n"].to_pylist() == [1, None]
    for path, names in ((first, ["p"]), (other, ["q"])):
        feature = {"info": {"features": {"n": {"names": names, "_type": "ClassLabel"}}}}
        table = pq.read_table(path).cast(
            pa.schema([pa.field("audio", AUDIO), pa.field("n", pa.int64())])
        )
        write_parquet(path, table.replace_schema_metadata({"huggingface": json.dumps(feature)}))
    assert "differ in column n" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"info": null}', '{"info": {"features": {"n": {"_type": "ClassLabel"}}}}'],
)
def test_schema_metadata_of_another_form_is_ignored(tmp_path: Path, content: str) -> None:
    table = pa.table({"audio": audio([b"x"]), "n": [1]})
    path = write_parquet(
        tmp_path / "a.parquet", table.replace_schema_metadata({"huggingface": content})
    )
    assert opened(path).columns == (Column("n", "int64"),)


# --- what is refused --------------------------------------------------------------------------


def test_forms_that_are_not_read(tmp_path: Path) -> None:
    """The message names the file, the column and the remedy."""
    path = tmp_path / "a.parquet"
    table = pa.table({"audio": audio([b"x", b"y"])})
    write_parquet(path, table, column_encoding={"audio.bytes": "DELTA_LENGTH_BYTE_ARRAY"})
    message = refused(path)
    assert (
        f"{path}: audio.bytes is not read in place: its values have the encoding DELTA" in message
    )
    assert "compression=None" in message
    write_parquet(path, pa.table({"audio": [[b"x"], [b"y"]]}))
    assert "neither audio nor paths" in refused(path)
    write_parquet(path, pa.table({"audio": [{"bytes": [1, 2]}]}))
    assert "audio.bytes is list<element: int64>, not binary" in refused(path)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    """Truncated, empty, not Parquet, or with a page that does not fit."""
    good = write_parquet(tmp_path / "a.parquet", pa.table({"audio": audio(random_clips(20))}))
    content = good.read_bytes()
    path = tmp_path / "b.parquet"
    first = opened(good).segment(0).byte_offset
    wrong_length = content[: first - 4] + b"\xff\xff\xff\x7f" + content[first:]
    for damaged in (content[:-100], b"", b"no parquet" * 10, wrong_length):
        path.write_bytes(damaged)
        message = refused(path)
        assert str(path) in message
        assert "damaged" in message
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused(path)


def test_a_damaged_compressed_page_is_an_error_of_its_file(tmp_path: Path) -> None:
    """It is found when the page is read."""
    clips = random_clips(100)
    path = compressed(tmp_path, clips, data_page_size=2000, write_batch_size=8)
    source = opened(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    assert source.segment(0).data == clips[0]
    with pytest.raises(SourceError, match=r"a\.parquet is damaged"):
        contents(source)


# --- the fingerprint --------------------------------------------------------------------------


def test_the_fingerprint_follows_files_but_not_their_folder(tmp_path: Path) -> None:
    table = pa.table({"audio": audio([b"x"], ["1.wav"])})
    path = write_parquet(tmp_path / "here/a.parquet", table)
    before = opened(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = opened(tmp_path / "there")
    assert (moved.fingerprint, moved.identity) == (before.fingerprint, before.identity)
    os.utime(tmp_path / "there/a.parquet", ns=(1, 1))
    assert opened(tmp_path / "there").fingerprint != before.fingerprint
    assert not path.exists()


def test_places_that_arrow_does_not_confirm_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer with a form of pages that is misread here."""
    path = write_parquet(tmp_path / "a.parquet", pa.table({"audio": audio([b"one", b"two"])}))
    ranges = finding._ranges
    monkeypatch.setattr(
        finding, "_ranges", lambda name, found: ranges(name, Values(found.start - 1, found.length))
    )
    assert "is not what Arrow reads" in refused(path)

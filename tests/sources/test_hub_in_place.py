"""Parquet files of the hub: the same dataset as that of `load_dataset`, without its copy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pytest

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources import hub
from pipeline.sources.opening import open_source
from pipeline.sources.tabular import TabularSource
from tests.helpers.audio_files import speechlike, write
from tests.helpers.parquet_files import audio, containers, contents, write_parquet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FEATURES = {
    "audio": datasets.Audio(sampling_rate=16_000),
    "word": datasets.ClassLabel(names=["no", "yes"]),
    "text": datasets.Value("large_string"),
    "utt": datasets.Value("string"),
    "level": datasets.Value("float32"),
    "tags": datasets.List(datasets.Value("string")),
    "image": datasets.Image(decode=False),
}


def sound(seed: int) -> bytes:
    """Bytes of a clip of 0.1 s."""
    path = write(Path(os.environ["PYTEST_CLIPS"]) / f"{seed}.flac", speechlike(1600, seed=seed))
    return path.read_bytes()


@pytest.fixture(autouse=True)
def clips(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_CLIPS", str(tmp_path_factory.mktemp("clips")))


def dataset(n: int, first: int = 0, **columns: Any) -> datasets.Dataset:
    """Rows with all kinds of column."""
    rows = range(first, first + n)
    values = {
        "audio": [{"bytes": sound(i), "path": f"{i}.flac"} for i in rows],
        "word": [i % 2 for i in rows],
        "text": [f"text {i}" if i % 3 else None for i in rows],
        "utt": [f"utt-{i}" for i in rows],
        "level": [2 * i for i in rows],
        "tags": [["a"] * (i % 3) for i in rows],
        "image": [{"bytes": b"image", "path": "x.png"} for _ in rows],
    }
    values |= columns
    features = {name: FEATURES[name] for name in values}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def repository(root: Path, **sizes: int) -> str:
    """Write a split of each size, in two files if it has several rows; return the name."""
    first = 0
    for split, n in sizes.items():
        whole = dataset(n, first)
        first += n
        n_files = 2 if n > 1 else 1
        for i in range(n_files):
            path = root / f"data/{split}-{i:05}-of-{n_files:05}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            whole.shard(n_files, i, contiguous=True).to_parquet(path)
    return str(root)


def card(root: Path, **content: Any) -> None:
    """Write a dataset card (README.md) with these settings, as JSON, which is YAML."""
    (root / "README.md").write_text(f"---\n{json.dumps(content)}\n---\n")


def both(name: str, **settings: Any) -> tuple[TabularSource, TabularSource]:
    """Open a dataset in place, and as `load_dataset` does, which copies it."""
    config, before = DatasetConfig("hub", name=name, **settings), copies()
    found = open_source(config)
    assert isinstance(found, TabularSource)
    assert copies() == before
    with hub.quiet():
        return found, hub.open_hub(config)


def copies() -> set[Path]:
    """Return the tables that `datasets` has written."""
    return set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


def assert_same(found: TabularSource, expected: TabularSource) -> None:
    """Compare all that a store depends on."""
    assert found.ids().to_pylist() == expected.ids().to_pylist()
    assert found.identity == expected.identity
    assert (found.columns, found.skipped_columns) == (expected.columns, expected.skipped_columns)
    rows = range(len(expected))
    assert found.metadata(rows).equals(expected.metadata(rows))
    assert contents(found) == contents(expected)
    for row in rows:
        one, other = found.segment(row), expected.segment(row)
        assert replace(one, path=None, data=None, container="file", byte_offset=0) == replace(
            other, path=None, data=None, byte_length=one.byte_length
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"split": "train"},
        {"split": "all"},
        {"split": "validation+train", "id_column": "utt"},
        {"split": "train[:3]"},
        {"split": "train[1:2]+train[-2:]"},
        {"split": "train[25%:75%]"},
        {"split": "train", "limit": 2},
        {"split": "train", "columns": ("word",)},
        {"split": "all", "start_column": "level", "time_unit": "samples"},
    ],
    ids=str,
)
def test_a_dataset_is_the_one_of_load_dataset(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Ids, columns, types, rows, identity and audio are the same, so that stores go on."""
    name = repository(tmp_path / "repo", train=5, validation=1)
    found, expected = both(name, **settings)
    assert_same(found, expected)
    assert containers(found) == {"parquet"}
    for row in range(len(found)):
        one, other = (decode(s.segment(row), 16_000).waveform for s in (found, expected))
        assert one.equal(other)


def without_metadata(root: Path) -> None:
    table = pa.table({"audio": audio([sound(0), sound(1)], ["x", "x"]), "n": [1, 2]})
    write_parquet(root / "train.parquet", table)


def other_types_in_the_card(root: Path) -> None:
    without_metadata(root)
    names = {"class_label": {"names": {"0": "zero", "1": "one", "2": "two"}}}
    features = [{"name": "audio", "dtype": "audio"}, {"name": "n", "dtype": names}]
    card(root, dataset_info={"features": features})


def other_types_by_file(root: Path) -> None:
    table = pa.table({"n": pa.array([1], pa.int32()), "audio": audio([sound(0)], ["a"])})
    write_parquet(root / "train-0-of-2.parquet", table)
    table = pa.table({"audio": audio([sound(1)], ["b"]), "n": pa.array([2], pa.int64())})
    write_parquet(root / "train-1-of-2.parquet", table)


def nulls_and_compression(root: Path) -> None:
    table = pa.table({"audio": audio([sound(0), None, sound(1)]), "n": [1, None, 3]})
    write_parquet(root / "train.parquet", table, compression="snappy", use_dictionary=True)


def converted(root: Path) -> None:
    (root / "default/train").mkdir(parents=True)
    dataset(2).to_parquet(root / "default/train/0000.parquet")


def texts_of_paths(root: Path) -> None:
    table = pa.table({"audio": ["/data/a.wav", "/data/b.wav"], "n": [1, 2]})
    write_parquet(root / "train.parquet", table)


def another_encoding(root: Path) -> None:
    table = pa.table({"audio": audio([sound(0), sound(1)])})
    write_parquet(
        root / "train.parquet", table, column_encoding={"audio.bytes": "DELTA_LENGTH_BYTE_ARRAY"}
    )


@pytest.mark.parametrize(
    "write_repository",
    [
        without_metadata,
        other_types_in_the_card,
        other_types_by_file,
        nulls_and_compression,
        converted,
        texts_of_paths,
        another_encoding,
    ],
)
def test_repositories_of_other_forms(
    tmp_path: Path, write_repository: Callable[[Path], None]
) -> None:
    """The types are those that the card states, or the first file."""
    (tmp_path / "repo").mkdir()
    write_repository(tmp_path / "repo")
    config = DatasetConfig("hub", name=str(tmp_path / "repo"), split="train")
    found = open_source(config)
    assert isinstance(found, TabularSource)
    with hub.quiet():
        expected = hub.open_hub(config)
    if write_repository is texts_of_paths:
        assert [found.segment(row).path for row in range(2)] == ["/data/a.wav", "/data/b.wav"]
        assert found.ids() == expected.ids()
        return
    assert_same(found, expected)


def test_configurations_have_their_own_files(tmp_path: Path) -> None:
    """As the card states them."""
    repository(tmp_path / "repo", train=2, validation=3)
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"data/{name}-*"}]}
        for name in ("train", "validation")
    ]
    card(tmp_path / "repo", configs=configs)
    for name in ("train", "validation"):
        assert_same(*both(str(tmp_path / "repo"), config=name, split="train"))
    with pytest.raises(SourceError, match="train"):
        open_source(DatasetConfig("hub", name=str(tmp_path / "repo"), split="train"))


def test_a_repository_without_parquet_is_loaded(tmp_path: Path) -> None:
    """By `load_dataset`, as before."""
    write(tmp_path / "repo/a.wav")
    write(tmp_path / "repo/b.wav")
    source = open_source(DatasetConfig("hub", name=str(tmp_path / "repo"), split="train"))
    assert [source.segment(row).path for row in range(2)] == [
        str(tmp_path / "repo/a.wav"),
        str(tmp_path / "repo/b.wav"),
    ]


def test_missing_files_are_noticed(tmp_path: Path) -> None:
    """By the numbers in their names, or by the rows that the card states."""
    name = repository(tmp_path / "repo", train=4)
    splits = [{"name": "train", "num_examples": 4}]
    card(tmp_path / "repo", dataset_info={"splits": splits})
    assert len(open_source(DatasetConfig("hub", name=name, split="train"))) == 4
    file = tmp_path / "repo/data/train-00001-of-00002.parquet"
    file.rename(tmp_path / "other.parquet")
    with pytest.raises(SourceError, match="has 1 of the 2 files of the split train"):
        open_source(DatasetConfig("hub", name=name, split="train"))
    (tmp_path / "repo/data/train-00000-of-00002.parquet").rename(tmp_path / "repo/train.parquet")
    with pytest.raises(SourceError, match=r"has 2 rows, but its card \(README.md\) states 4"):
        open_source(DatasetConfig("hub", name=name, split="train"))


# --- the cache of the hub ---------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the dataset `someone/clips` was downloaded; there is no network."""
    home = tmp_path / "hub"
    repo = home / "datasets--someone--clips"
    repository(repo / "snapshots" / COMMIT, train=4, test=1)
    (repo / "blobs").mkdir()
    for i, file in enumerate(sorted((repo / "snapshots").rglob("*.parquet"))):
        file.rename(repo / f"blobs/{i}")
        file.symlink_to(repo / f"blobs/{i}")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return repo


def test_a_dataset_in_the_cache_needs_no_network(hub_cache: Path) -> None:
    """Its files are read where they are; workers on other machines open their own cache."""
    source = open_source(DatasetConfig("hub", name="someone/clips", split="train"))
    assert source.ids().to_pylist() == ["0.flac", "1.flac", "2.flac", "3.flac"]
    assert contents(source) == [sound(i) for i in range(4)]
    assert str(source.segment(0).path).startswith(str(hub_cache / "snapshots" / COMMIT))
    assert source.identity["name"] == "someone/clips"
    assert not source.is_shared
    assert not copies()
    with pytest.raises(SourceError, match="someone/clips has 2 splits"):
        open_source(DatasetConfig("hub", name="someone/clips"))


def test_a_partial_download_is_not_taken_for_the_dataset(hub_cache: Path) -> None:
    next((hub_cache / "snapshots").rglob("train-00001*")).unlink()
    with pytest.raises(SourceError, match="has 1 of the 2 files of the split train"):
        open_source(DatasetConfig("hub", name="someone/clips", split="train"))


def test_files_of_the_hub_are_taken_from_its_cache(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a connection, `datasets` states the files of a commit; only those needed are fetched."""
    base = f"hf://datasets/someone/clips@{COMMIT}/data"
    files = {
        "train": [f"{base}/train-0000{i}-of-00002.parquet" for i in range(2)],
        "test": [f"{base}/test-00000-of-00001.parquet"],
    }
    builder = SimpleNamespace(
        name="parquet",
        config=SimpleNamespace(data_files=files, columns=None, filters=None),
        info=SimpleNamespace(features=dataset(1).features, splits=None),
    )
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **kwargs: builder)
    next((hub_cache / "snapshots").rglob("test-*")).unlink()
    config = DatasetConfig("hub", name="someone/clips", split="train")
    source = open_source(config)
    assert contents(source) == [sound(i) for i in range(4)]
    for file in (hub_cache / "blobs").iterdir():
        os.utime(file, ns=(1, 1))  # it was downloaded at another time, on another machine
    assert open_source(config).fingerprint == source.fingerprint
    with pytest.raises(SourceError, match="is not in the local cache and could not be fetched"):
        open_source(replace(config, split="test"))

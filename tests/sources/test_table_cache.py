"""Tables in the cache of `datasets`: no stale one is taken, and old ones are removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources import table_cache
from pipeline.sources.opening import open_source
from pipeline.sources.table_cache import cache_folder, content_digest
from tests.helpers.audio_files import write

MIB = 1 << 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from 5 MiB on are hashed in part."""
    monkeypatch.setattr(table_cache, "MAX_HASHED_BYTES", 5 * MIB)


def table(path: Path, label: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"path": "a.wav", "speaker": "{label}"}}\n')
    return path


def folders() -> list[Path]:
    return sorted((Path(datasets.config.HF_DATASETS_CACHE) / "strata").iterdir())


def unused(path: Path) -> None:
    """Set the last use of all folders to two hours ago."""
    old_s = time.time() - 2 * table_cache.IN_USE_S
    for folder in path.iterdir():
        os.utime(folder, (old_s, old_s))


def test_a_replaced_table_is_read_again_and_its_old_copy_removed(tmp_path: Path) -> None:
    """Also if size and time are the same; a folder that may be in use stays."""
    file = table(tmp_path / "list.jsonl", "anna")
    write(tmp_path / "a.wav")
    config = DatasetConfig("manifest", str(file), audio_column="path")
    time_ns = file.stat().st_mtime_ns

    def speakers() -> list[str]:
        return open_source(config).metadata([0])["speaker"].to_pylist()

    assert speakers() == ["anna"]
    table(file, "bert")
    os.utime(file, ns=(time_ns, time_ns))
    assert speakers() == ["bert"]
    assert len(folders()) == 2
    unused(folders()[0].parent)
    table(file, "carl")
    os.utime(file, ns=(time_ns, time_ns))
    assert speakers() == ["carl"]
    assert len(folders()) == 1


def test_a_local_hub_dataset_is_read_again(tmp_path: Path) -> None:
    """A replaced file of the same size and time is another dataset."""
    home = tmp_path / "hub"
    home.mkdir()
    config = DatasetConfig("hub", name=str(home), split="train", audio_column="path")
    seen = []
    for label in ("anna", "bert"):
        pq.write_table(pa.table({"path": ["a.wav"], "speaker": [label]}), home / "train.parquet")
        os.utime(home / "train.parquet", ns=(10**18, 10**18))
        seen += open_source(config).metadata([0])["speaker"].to_pylist()
    assert seen == ["anna", "bert"]


@pytest.mark.parametrize("at", [0, 3 * MIB + 17, 6 * MIB - 9])
@pytest.mark.usefixtures("small")
def test_a_large_table_that_is_changed_in_place_has_another_folder(tmp_path: Path, at: int) -> None:
    """Any byte, with the size and the time kept: the change time of the file tells."""
    file = tmp_path / "large.parquet"
    file.write_bytes(os.urandom(6 * MIB))
    before, time_ns = cache_folder(tmp_path / "cache", file), file.stat().st_mtime_ns
    assert cache_folder(tmp_path / "cache", file) == before
    time.sleep(0.02)  # more than the resolution of a change time
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"other")
    os.utime(file, ns=(time_ns, time_ns))
    assert cache_folder(tmp_path / "cache", file) != before


@pytest.mark.usefixtures("small")
def test_the_digest_of_a_large_table_covers_its_ends(tmp_path: Path) -> None:
    """It stays when the file is moved, and changes with either end."""
    file = tmp_path / "large.parquet"
    file.write_bytes(content := b"a" + os.urandom(6 * MIB - 2) + b"z")
    time_ns = file.stat().st_mtime_ns
    before = content_digest(file)
    moved = file.rename(tmp_path / "moved.parquet")
    assert content_digest(moved) == before
    digests = {before}
    for changed in (b"x" + content[1:], content[:-1] + b"x"):
        moved.write_bytes(changed)
        os.utime(moved, ns=(time_ns, time_ns))
        digests.add(content_digest(moved))
    assert len(digests) == 3


@pytest.mark.usefixtures("small")
def test_a_large_table_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a small one is."""

    def whole(*arguments: object) -> None:
        raise AssertionError("the whole file is hashed")

    monkeypatch.setattr(table_cache.hashlib, "file_digest", whole)
    (tmp_path / "large").write_bytes(bytes(6 * MIB))
    content_digest(tmp_path / "large")
    (tmp_path / "small").write_bytes(bytes(4 * MIB))
    with pytest.raises(AssertionError, match="whole file"):
        content_digest(tmp_path / "small")


def test_a_small_table_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system keeps no change times, and inodes are used again, too."""
    monkeypatch.setattr(table_cache, "_stamp", lambda path: "")
    names = [cache_folder(tmp_path / "cache", table(tmp_path / "a.csv", x)).name for x in "aab"]
    assert names[0] == names[1] != names[2]


def test_the_number_of_cached_tables_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used ones are removed, and nothing that has another name."""
    monkeypatch.setattr(table_cache, "MAX_TABLES", 3)
    cache = tmp_path / "cache"
    for i in range(6):
        cache_folder(cache, table(tmp_path / f"{i}.csv", "x"))
    assert len(list(cache.iterdir())) == 6  # they may be in use
    (cache / "of another program").mkdir()
    unused(cache)
    kept = cache_folder(cache, tmp_path / "2.csv")
    newest = cache_folder(cache, table(tmp_path / "7.csv", "x"))
    names = {folder.name for folder in cache.iterdir()}
    assert {kept.name, newest.name, "of another program"} <= names
    assert len(names) == 4


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that gives EIO")
def test_a_table_that_cannot_be_read_is_named() -> None:
    """The error of a read names no file itself."""
    with pytest.raises(SourceError, match="/proc/self/mem cannot be read: Input/output error"):
        content_digest(Path("/proc/self/mem"))

"""Large tables are kept in a mapped file, and are the same as on the heap."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.lists import delimited, mapped
from pipeline.sources.lists.delimited import form_of, read_delimited
from pipeline.sources.opening import open_source

N_ROWS = 300


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of temporary files; every table is large."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for module in (mapped, delimited):
        monkeypatch.setattr(module, "HEAP_BYTES", 0)
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", 1024)
    return folder


def write_list(path: Path, recording: str = "rec-{}.flac") -> DatasetConfig:
    lines = ["utt,path,start,stop,text"]
    for i in range(N_ROWS):
        text = '"two\nlines"' if i % 7 == 0 else f"text {i}" if i % 3 else ""
        lines.append(
            f"u{i},{recording.format(i % 4 if '-' in recording else i)},{i}.5,{i + 1},{text}"
        )
    path.write_text("\n".join(lines) + "\n")
    return DatasetConfig(
        "manifest",
        path=str(path),
        audio_column="path",
        id_column="utt",
        start_column="start",
        stop_column="stop",
    )


@pytest.mark.parametrize("recording", ["rec-{}.flac", "{}.flac"])
def test_a_mapped_dataset_is_the_same(
    tmp_path: Path, request: pytest.FixtureRequest, recording: str
) -> None:
    """Ids, segments, columns and fingerprint do not depend on where the table is kept."""
    config = write_list(tmp_path / "list.csv", recording)
    expected = open_source(config)
    folder = request.getfixturevalue("scratch")
    before = pa.total_allocated_bytes()
    found = open_source(config)
    assert pa.total_allocated_bytes() - before < expected.metadata(range(N_ROWS)).nbytes
    assert list(folder.iterdir()) == []
    assert found.ids().equals(expected.ids())
    assert found.fingerprint == expected.fingerprint
    for rows in (range(N_ROWS), [7, 3, 3], []):
        assert found.metadata(rows).equals(expected.metadata(rows))
        assert [found.segment(r) for r in rows] == [expected.segment(r) for r in rows]


def test_recordings_that_repeat_are_kept_once(tmp_path: Path) -> None:
    """A path takes the 4 bytes of a number for each of its segments, after the first."""
    source = open_source(write_list(tmp_path / "list.csv"))
    paths = source._paths  # type: ignore[attr-defined]
    assert pa.types.is_dictionary(paths.type)
    assert paths.to_pylist() == [str(tmp_path / f"rec-{i % 4}.flac") for i in range(N_ROWS)]


def test_a_row_may_be_longer_than_a_block(tmp_path: Path, scratch: Path) -> None:
    """It is read in larger blocks then."""
    path = tmp_path / "list.csv"
    path.write_text("id,text\n" + "a,x\n" * 1000 + f"a,{'x' * 100_000}\nb,y\n")
    table = read_delimited(path, form_of(path))
    assert [len(text) for text in table["text"].to_pylist()[-2:]] == [100_000, 1]


@pytest.fixture
def _small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
def test_a_full_folder_of_temporary_files_is_named(scratch: Path) -> None:
    """The message has the folder and the reason, and says how to choose another."""
    table = pa.table({"text": ["x" * 1000] * 100})
    with pytest.raises(SourceError, match=rf"{scratch}: .*too large.* TMPDIR"):
        mapped.mapped_if_large(table)
    assert list(scratch.iterdir()) == []


def test_a_missing_folder_of_temporary_files_is_named(scratch: Path) -> None:
    """So is one that does not exist."""
    scratch.rmdir()
    with pytest.raises(SourceError, match=rf"{scratch}: .*TMPDIR"):
        mapped.mapped_if_large(pa.table({"text": ["x"]}))

"""Datasets whose audio files do not exist, all or some."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.errors import SourceError
from pipeline.extract import run
from pipeline.extract.planning.missing import check_missing, require_some_file
from pipeline.extract.planning.planner import Scanning, plan_source
from pipeline.extract.planning.scan import Facts, probe_segments, scan
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.format.geometry import FrameGeometry
from tests.helpers.audio_files import write
from tests.helpers.extraction import configured
from tests.helpers.parquet_files import write_parquet


def listed(folder: Path, names: list[str], **settings: str) -> Source:
    """A table of paths."""
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_text("\n".join(["path", *names]))
    path = str(folder / "list.csv")
    return open_source(DatasetConfig("manifest", path, audio_column="path", **settings))


def test_a_dataset_without_any_file_is_refused(tmp_path: Path) -> None:
    """With the first path and the setting, by `plan` and by `extract`, before anything is made."""
    folder = tmp_path / "list"
    source = listed(folder, [f"{i}.wav" for i in range(5000)])
    with pytest.raises(SourceError, match=rf"5,000 utterances.*{folder}/0.wav; .*dataset\.root=D"):
        require_some_file(source)
    settings = ("dataset=manifest", f"dataset.path={folder / 'list.csv'}")
    for verb in (run.plan, run.extract):
        with pytest.raises(SourceError, match=r"no audio file of .*list\.csv exists"):
            verb(configured(tmp_path, tmp_path / "store", *settings, "engine=inline"))


@pytest.mark.parametrize("row", [0, 1, 4096, 4999])
def test_one_file_is_enough(tmp_path: Path, row: int) -> None:
    """Wherever it is in the list."""
    write(tmp_path / f"{row}.wav")
    require_some_file(listed(tmp_path, [f"{i}.wav" for i in range(5000)]))


def test_the_folder_of_the_files_is_proposed(tmp_path: Path) -> None:
    """If the first file is in a folder beside: a table of names, with its audio in clips/."""
    clip = write(tmp_path / "clips" / "sub" / "a.wav")
    source = listed(tmp_path, ["sub/a.wav"])
    with pytest.raises(SourceError, match=f"set dataset.root={tmp_path / 'clips'}$"):
        require_some_file(source)
    found = listed(tmp_path, ["sub/a.wav"], root=str(tmp_path / "clips"))
    assert found.segment(0).path == str(clip)
    require_some_file(found)


def test_a_folder_above_and_the_working_directory_are_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of other tools often start from where their scripts run."""
    write(tmp_path / "corpus/clips/a.wav")
    lists = tmp_path / "corpus/lists"
    with pytest.raises(SourceError, match=f"set dataset.root={tmp_path / 'corpus'}$"):
        require_some_file(listed(lists, ["clips/a.wav"]))
    monkeypatch.chdir(tmp_path)
    apart = tmp_path / "other"
    with pytest.raises(SourceError, match=f"set dataset.root={tmp_path}$"):
        require_some_file(listed(apart, ["corpus/clips/a.wav"]))
    require_some_file(listed(apart, ["corpus/clips/a.wav"], root=str(tmp_path)))


def test_names_without_the_suffix_of_the_files_have_a_remedy(tmp_path: Path) -> None:
    """It works as it is printed; a name with another suffix is named."""
    write(tmp_path / "a.b.wav")
    words = r"a\.b\.wav is there: set 'dataset\.audio_path=\{path}\.wav'$"
    with pytest.raises(SourceError, match=words):
        require_some_file(listed(tmp_path, ["a.b"]))
    require_some_file(listed(tmp_path, ["a.b"], audio_path="{path}.wav"))
    with pytest.raises(SourceError, match=r"a\.b\.wav is there: write this name into the list"):
        require_some_file(listed(tmp_path, ["a.b.flac"]))


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(SourceError, match=f"dataset.root={gone} is no folder"):
        require_some_file(listed(tmp_path, ["a.wav"], root=gone))


@pytest.mark.parametrize("column", ["text", "struct"])
def test_parquet_files_of_paths_propose_it_too(tmp_path: Path, column: str) -> None:
    """As text, and as `datasets` writes paths, also if no row has a type of bytes."""
    names = ["a.wav", "b.wav"]
    structs = [{"bytes": None, "path": name} for name in names]
    table = pa.table({"audio": names if column == "text" else structs})
    write_parquet(tmp_path / "list/train.parquet", table)
    source = open_source(DatasetConfig("parquet", str(tmp_path / "list")))
    with pytest.raises(SourceError, match=r"set dataset\.root=DIR"):
        require_some_file(source)
    write(tmp_path / "list/clips/a.wav")
    with pytest.raises(SourceError, match=f"set dataset.root={tmp_path / 'list/clips'}$"):
        require_some_file(source)


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    """The first three, and the setting that retries; a file that is no audio is not missing."""
    write(tmp_path / "a.wav")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    source = listed(tmp_path, ["1.wav", "a.wav", "2.wav", "bad.wav", "3.wav", "4.wav"])
    lines: list[str] = []
    check_missing(source, scan(source, GEOMETRY), lines.append)
    (line,) = lines
    assert "of 4 of 6 utterances do not exist" in line
    assert f"first {tmp_path}/1.wav, {tmp_path}/2.wav, {tmp_path}/3.wav. " in line
    assert "retry_quarantined=true" in line
    whole = listed(tmp_path, ["a.wav", "bad.wav"])
    check_missing(whole, scan(whole, GEOMETRY), lines.append)
    assert len(lines) == 1


def test_a_path_below_a_file_is_missing_and_a_loop_of_links_is_not(tmp_path: Path) -> None:
    """Only what surely does not exist is called missing; other errors are the scan's to explain."""
    (tmp_path / "clips").write_text("no folder")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with pytest.raises(SourceError, match="no audio file of"):
        require_some_file(listed(tmp_path, ["clips/a.wav"]))
    require_some_file(source := listed(tmp_path, ["loop.wav", "clips/a.wav"]))
    lines: list[str] = []
    check_missing(source, scan(source, GEOMETRY), lines.append)
    assert "of 1 of 2 utterances do not exist" in lines[0]


def test_nodes_of_a_cluster_may_have_the_files(tmp_path: Path) -> None:
    """The driver need not see them; if no node reads one, it says what it looked for."""
    source = listed(tmp_path, ["1.wav", "2.wav"])
    windowing = Windowing(GEOMETRY, 40.0, 5.0)
    for n_samples in (16_000, 0):
        found = np.full((6, 2), n_samples)
        scanning = Scanning(probing=lambda source, geometry, facts=found: iter([facts]))
        if n_samples:
            assert plan_source(source, windowing, None, scanning).n_utterances == 2
        else:
            with pytest.raises(SourceError, match="no audio file of"):
                plan_source(source, windowing, None, scanning)


@pytest.mark.parametrize(("n_lost", "words"), [(0, ""), (10, "files of 10 of 30 utt"), (11, None)])
def test_files_that_vanish_after_a_folder_was_listed(
    tmp_path: Path, n_lost: int, words: str | None
) -> None:
    """A few are named and left out. If there are many, the folder is being emptied: a refusal."""
    for number in range(30):
        write(tmp_path / "clips" / f"{number:02}.wav")
    source = open_source(DatasetConfig("audiofolder", str(tmp_path / "clips")))
    for number in range(n_lost):
        (tmp_path / "clips" / f"{number:02}.wav").unlink()
    notes: list[str] = []
    planning = partial(
        plan_source, source, Windowing(GEOMETRY, 40.0, 5.0), None, Scanning(note=notes.append)
    )
    if words is None:
        expected = r"clips: 11 of 30 files have vanished since .*00\.wav.*Bring them back.*again"
        with pytest.raises(SourceError, match=expected):
            planning()
        return
    planning()
    assert len(notes) == bool(words)
    assert words in "".join(notes)


def test_a_folder_that_is_empty_by_the_end_of_the_scan_is_gone(tmp_path: Path) -> None:
    """Also if some of its files were read before."""
    for number in range(3):
        write(tmp_path / "clips" / f"{number}.wav")
    source = open_source(DatasetConfig("audiofolder", str(tmp_path / "clips")))

    def empty_after_one(source: Source, geometry: FrameGeometry) -> Iterator[Facts]:
        yield probe_segments([source.segment(0)], geometry)
        shutil.rmtree(tmp_path / "clips")
        yield probe_segments([source.segment(1), source.segment(2)], geometry)

    rows = scan(source, GEOMETRY, probing=empty_after_one)
    with pytest.raises(SourceError, match=r"clips is gone or empty .*still mounted"):
        check_missing(source, rows, print)

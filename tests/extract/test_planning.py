"""Planning: exact lengths, pieces, growth of the dataset, and the estimate."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline.config import DatasetConfig, load_config
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.errors import StoreBusyError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.planning.dataset import PlannedDataset
from pipeline.extract.planning.estimate import estimate
from pipeline.extract.planning.planner import plan_source, replan_source
from pipeline.extract.planning.replanning import Unstored
from pipeline.extract.planning.scan import SCAN_CHUNK, explain_unreadable, scan
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.format.identity import SOXR_KEY
from pipeline.store.format.layout import LEASE, PLAN, Layout
from pipeline.store.format.plan import Plan
from tests.helpers.audio_files import speechlike, write
from tests.helpers.corpus import mixed_lengths, write_folder

WINDOWING = Windowing(GEOMETRY, max_window_s=4.0, context_s=0.5)


def source(folder: Path) -> Source:
    return open_source(DatasetConfig("audiofolder", path=str(folder)))


def test_scan_counts_samples_from_headers(tmp_path: Path) -> None:
    """Every row has its exact length; an unreadable one has 0 samples and keeps its place."""
    lengths = mixed_lengths(12)
    folder = write_folder(tmp_path / "clips", lengths)
    (folder / "clip-004.wav").write_bytes(b"")
    rows = scan(source(folder), GEOMETRY)
    expected = [round(length * 16_000) for length in lengths]
    expected[4] = 0
    assert rows["n_samples"].to_pylist() == expected
    assert rows["n_frames"].to_pylist() == [GEOMETRY.n_frames(n) if n else 0 for n in expected]
    assert rows["row"].to_pylist() == list(range(12))


def test_scan_keeps_the_order_of_many_files(tmp_path: Path) -> None:
    """Threads read chunks of rows; each row gets its own values."""
    n = 2 * SCAN_CHUNK + 5
    for i in range(n):
        write(tmp_path / f"{i:04d}.wav", speechlike(400 + 3 * i))
    (tmp_path / f"{SCAN_CHUNK:04d}.wav").write_bytes(b"no sound")
    seen: list[int] = []
    rows = scan(source(tmp_path), GEOMETRY, seen.append)
    expected = [0 if i == SCAN_CHUNK else 400 + 3 * i for i in range(n)]
    assert rows["n_samples"].to_pylist() == expected
    assert rows["n_bytes"].to_pylist() == [44 + 2 * n if n else 0 for n in expected]
    assert rows["id"].to_pylist() == [f"{i:04d}.wav" for i in range(n)]
    assert len(set(rows["fingerprint"].to_pylist())) == n
    assert seen == [0, SCAN_CHUNK, 2 * SCAN_CHUNK, n]


def planned(opened: Source, plan: Plan) -> PlannedDataset:
    return PlannedDataset(opened, plan, np.arange(len(opened)))


def replanned(folder: Path, stored: Plan) -> Plan:
    """Plan a folder again, of which nothing is extracted."""
    return replan_source(source(folder), WINDOWING, stored, Unstored()).plan


def plain_folder(folder: Path, n: int) -> Path:
    """Write clips of one second, without metadata."""
    for i in range(n):
        write(folder / f"clip-{i:03d}.wav", speechlike(16_000))
    return folder


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    """Equal reasons are counted together, the most frequent first, and the rest is planned."""
    folder = plain_folder(tmp_path / "clips", 12)
    for i in (1, 2, 3):
        write(folder / f"clip-{i:03d}.wav", speechlike(100), 1)
    (folder / "clip-005.wav").unlink()
    os.mkfifo(folder / "clip-005.wav")
    (folder / "empty.wav").mkdir()
    opened = source(folder)
    dataset = planned(opened, plan_source(opened, WINDOWING, None))
    groups = explain_unreadable(dataset.unreadable(), 16_000)
    assert [(group.count, group.ids) for group in groups] == [
        (3, ("clip-001.wav", "clip-002.wav", "clip-003.wav")),
        (1, ("clip-005.wav",)),
        (1, ("empty.wav",)),
    ]
    for group, words in zip(groups, ("rate is 1 Hz", "named pipe", "directory"), strict=True):
        assert words in group.reason


def test_the_plan_names_the_resampler_of_unusual_rates(tmp_path: Path) -> None:
    """Only a plan with such a file does, and an appended one too; it then stays as it is."""
    folder = plain_folder(tmp_path / "clips", 3)
    first = plan_source(source(folder), WINDOWING, None)
    assert list(first.source) == ["fingerprint"]
    write(folder / "x.wav", speechlike(24_414), 24_414)
    grown = replanned(folder, first)
    assert SOXR_KEY in grown.source
    assert grown.table["n_samples"].to_pylist()[-1] == 16_000
    assert replanned(folder, grown) is grown


def test_a_file_that_became_readable_does_not_stop_an_appended_dataset(tmp_path: Path) -> None:
    """It stays as planned, until it is retried, and the appended file is planned."""
    folder = plain_folder(tmp_path / "clips", 3)
    readable = (folder / "clip-001.wav").read_bytes()
    (folder / "clip-001.wav").write_bytes(b"no sound")
    first = plan_source(source(folder), WINDOWING, None)
    (folder / "clip-001.wav").write_bytes(readable)
    write(folder / "x.wav", speechlike(16_000))
    grown = replanned(folder, first)
    assert grown.table["n_samples"].to_pylist() == [16_000, 0, 16_000, 16_000]


def test_a_long_recording_becomes_pieces_at_window_boundaries(tmp_path: Path) -> None:
    """Pieces cover its frames exactly; each fits a unit and starts at a window."""
    folder = write_folder(tmp_path / "clips", [1.0, 23.4, 0.5])
    found = plan_source(source(folder), WINDOWING, 512)
    pieces = found.table.filter(pc.equal(found.table["row"], 1)).to_pylist()
    cuts = {w.keep_start for w in WINDOWING.plan(round(23.4 * 16_000))}
    at = 0
    for i, piece in enumerate(pieces):
        assert (piece["piece"], piece["n_pieces"], piece["piece_start"]) == (i, len(pieces), at)
        assert piece["piece_start"] in cuts
        assert 0 < piece["n_frames"] <= 512
        at += piece["n_frames"]
    assert at == GEOMETRY.n_frames(round(23.4 * 16_000))
    assert len(pieces) == 3
    assert found.n_utterances == 3


def test_a_recording_whose_windows_exceed_a_unit_stays_whole(tmp_path: Path) -> None:
    """With units smaller than a window it is not cut, and will be quarantined."""
    folder = write_folder(tmp_path / "clips", [8.0])
    found = plan_source(source(folder), Windowing(GEOMETRY, 40.0, 5.0), 256)
    assert found.table["n_pieces"].to_pylist() == [1]


def test_the_same_source_gives_the_same_plan(tmp_path: Path) -> None:
    """Planning twice gives equal tables, and an unchanged stored plan is returned itself."""
    folder = write_folder(tmp_path / "clips", mixed_lengths(9))
    first = plan_source(source(folder), WINDOWING, None)
    again = plan_source(source(folder), WINDOWING, None)
    assert first.table.equals(again.table)
    assert replanned(folder, first) is first


def test_added_rows_are_cut_into_pieces_too(tmp_path: Path) -> None:
    """Growth keeps the planned rows, and cuts a long recording at the end like any other."""
    folder = write_folder(tmp_path / "clips", mixed_lengths(5))
    first = plan_source(source(folder), WINDOWING, 512)
    write_folder(folder, [*mixed_lengths(5), 20.0])
    grown = replanned(folder, first)
    assert grown.table.slice(0, len(first.table)).equals(first.table)
    assert grown.table["n_pieces"].to_pylist()[-1] > 1
    assert grown.unit_rows(first.n_units)["row"].to_pylist()[0] == 5


def test_workers_get_segments_where_all_machines_have_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they get rows of the dataset, which they open themselves; None is what it lacks."""
    opened = source(plain_folder(tmp_path / "clips", 3))
    plan = plan_source(opened, WINDOWING, None)
    moved = PlannedDataset(opened, plan, np.array([2, 0, 3]))
    assert moved.places([3, 1, 2]) == [opened.segment(2), None, opened.segment(0)]
    monkeypatch.setattr(type(opened), "is_shared", False)
    assert moved.places([3, 1, 2]) == [2, None, 0]


def test_a_driver_that_lost_its_lease_while_scanning_writes_no_plan(tmp_path: Path) -> None:
    """It was suspended and another driver took over, whose plan must not be overwritten."""
    folder, store = write_folder(tmp_path / "clips", [1.0]), tmp_path / "store"

    class TakenOver(Observer):
        def headers_scanned(self, done: int, total: int) -> None:
            lease = store / LEASE
            lease.write_text(lease.read_text().replace('"host": "', '"host": "not '))

    config = load_config([f"dataset.path={folder}", "model=tiny", f"store={store}"])
    with pytest.raises(StoreBusyError, match="has taken over the lease"):
        run.plan(config, TakenOver())
    assert not (store / PLAN).exists()


@pytest.mark.parametrize("frames_per_unit", [None, 256])
def test_estimate_is_what_the_store_will_take(tmp_path: Path, frames_per_unit: int | None) -> None:
    """Bytes are units × the bytes of a slot, and hours come from the samples."""
    folder = write_folder(tmp_path / "clips", [1.0] * 10)
    found = plan_source(source(folder), WINDOWING, frames_per_unit)
    layout = Layout((1, 6, 12), 768, found.frames_per_unit, found.utterances_per_slot)
    cost = estimate(planned(source(folder), found), layout, WINDOWING, tmp_path)
    assert cost.bytes == found.n_units * layout.slot_bytes
    assert cost.hours == pytest.approx(10 / 3600)
    assert cost.frames == 490
    assert cost.free_bytes > 0

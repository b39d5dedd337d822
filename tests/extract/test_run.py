"""Whole extractions of real audio with a tiny encoder, inline and on Ray."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorstore
import torch
import zarr

import pipeline
from pipeline.errors import (
    ConfigError,
    IdentityError,
    NoSpaceError,
    RunError,
    StoreError,
)
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.planning import obtain
from pipeline.extract.stages.encode import EncodeStage
from pipeline.extract.stages.receive import PendingBatch
from pipeline.extract.worker import STAGES, UnitReport
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.coordination.run_history import read_history
from pipeline.store.maintain.verify import verify_store
from pipeline.store.write.buffer import UnitBuffer
from tests.helpers.corpus import mixed_lengths, voice, write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract, overrides
from tests.helpers.feature_stores import rewrite
from tests.helpers.forked import forked_strata
from tests.helpers.observers import Notes

N_CLIPS = 40
ON_RAY = ("engine=ray", "engine.workers=1", "engine.threads=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(N_CLIPS))


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of the folder; tests must not change it."""
    store = tmp_path_factory.mktemp("finished") / "s"
    extract(folder, store, *INLINE)
    return store


def test_every_utterance_equals_its_own_encoding(folder: Path, tmp_path: Path) -> None:
    """Stored features equal those of the clip encoded without a batch, within float16.

    Ray gives the same bytes: see `test_worker_count_and_order_do_not_matter`.
    """
    status = extract(folder, tmp_path / "s", *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert status.units_committed == status.units_total > 4
    assert set(STAGES) == status.seconds.keys()
    store = pipeline.open_store(tmp_path / "s")
    encoder = pipeline.load_encoder("tiny", weights="random")
    for name in store.ids:
        samples, _ = soundfile.read(folder / name, dtype="float32")
        [expected] = encoder([torch.from_numpy(samples)])
        stored = store.read(name).float()
        assert stored.shape == expected.shape
        assert (stored - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert verify_store(tmp_path / "s").ok


def test_other_readers_give_the_same_numbers(finished: Path) -> None:
    """zarr-python, tensorstore and a memory map of a shard agree with `store.read`."""
    store = pipeline.open_store(finished)
    path = finished / "features.zarr" / "frames"
    by_zarr = zarr.open_array(path, mode="r")
    by_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    ).result()
    capacity = store.attributes["frames_per_unit"]
    for name in store.ids:
        record = store.record(name)
        start, stop = record["frame_start"], record["frame_start"] + record["n_frames"]
        ours = store.read(name).numpy()
        np.testing.assert_array_equal(by_zarr[:, start:stop], ours)
        np.testing.assert_array_equal(by_tensorstore[:, start:stop].read().result(), ours)
        slot = record["slot"]
        for axis in range(len(store.layers)):
            shard = np.memmap(
                path / "c" / str(axis) / str(slot) / "0",
                "<f2",
                "r",
                shape=(capacity, store.feature_dim),
            )
            within = start - slot * capacity
            np.testing.assert_array_equal(shard[within : within + stop - start], ours[axis])


def test_metadata_keeps_order_and_types(folder: Path, tmp_path: Path) -> None:
    """Carried columns come back in the order of the dataset, integers as integers."""
    extract(folder, tmp_path / "s", *INLINE, "dataset.columns=[word,speaker]")
    metadata = pipeline.open_store(tmp_path / "s").metadata
    assert metadata["id"].to_pylist() == [f"clip-{i:03d}.wav" for i in range(N_CLIPS)]
    assert metadata["word"].to_pylist() == [i % 4 for i in range(N_CLIPS)]
    assert metadata["speaker"].to_pylist() == [f"s{i % 3}" for i in range(N_CLIPS)]


def test_a_device_without_memory_is_reported_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of every unit are halved; the run says so once, and loses nothing."""
    receive, sizes = EncodeStage._receive, []

    def out_of_memory(self: EncodeStage, batch: list, buffer: UnitBuffer) -> PendingBatch:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return receive(self, batch, buffer)

    monkeypatch.setattr(EncodeStage, "_receive", out_of_memory)
    notes = Notes()
    status = run.extract(configured(folder, tmp_path / "s", *INLINE), notes)
    assert status.units_total > 2
    assert sum(size > 3 for size in sizes) >= status.units_total
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    [said] = [line for line in notes.lines if "out of memory" in line]
    assert "encoded in halves, and nothing is lost" in said
    assert "lower extract.max_batch_s" in said


def written(path: Path) -> dict[Path, int]:
    """Modification times of all files except the lease."""
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith("lease")]
    return {p: p.stat().st_mtime_ns for p in files}


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers may have another working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").touch()
    config = configured(Path("clips"), Path("s"), "model.weights=weights.pt")
    config = run._with_absolute_paths(config)
    places = [config.dataset.path, config.store, config.model.weights]
    assert places == [str(tmp_path / name) for name in ("clips", "s", "weights.pt")]
    for weights in ("pretrained", "random", "missing.pt"):
        config = configured(Path("clips"), Path("s"), f"model.weights={weights}")
        assert run._with_absolute_paths(config).model.weights == weights


def test_a_second_run_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """On a finished store a run writes no file and starts no worker."""
    extract(folder, tmp_path / "s", *INLINE)
    before = written(tmp_path / "s")
    status = extract(folder, tmp_path / "s", *INLINE)
    assert written(tmp_path / "s") == before
    assert status.utterances_ok == N_CLIPS


def test_worker_count_and_order_do_not_matter(
    folder: Path, finished: Path, tmp_path: Path, ray_session: None
) -> None:
    """Two workers and the inline executor write the same bytes with equal threads.

    One worker, too: see `test_a_dead_worker_is_replaced`.
    """
    store = tmp_path / "s"
    status = extract(folder, store, "engine=ray", "engine.workers=2", "engine.threads=1")
    assert contents(store) == contents(finished)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert set(STAGES) == status.seconds.keys()
    assert verify_store(store).ok


@pytest.mark.slow
def test_sigkill_of_the_driver_loses_nothing(tmp_path: Path, ray_session: str) -> None:
    """Runs inline and on Ray that are killed, and a resume, end as an undisturbed run.

    Every byte is equal, and the log has the time and the audio of each run. There are so many units
    that some are left for the resume: a worker commits the units that it has when its driver ends.
    """
    folder = write_folder(tmp_path / "clips", mixed_lengths(2 * N_CLIPS))
    finished, disturbed = tmp_path / "finished", tmp_path / "disturbed"
    extract(folder, finished, *INLINE)
    on_ray = (*ON_RAY, f"engine.address={ray_session}")
    for n_runs, (engine, n_wanted) in enumerate(((INLINE, 1), (on_ray, 4)), start=1):
        command = ["extract", *overrides(folder, disturbed, *engine)]
        process = forked_strata(*command)
        deadline = time.monotonic() + 60
        while (
            len(list(disturbed.glob("index/unit-*.parquet"))) < n_wanted
            or len(read_history(disturbed).runs) < n_runs
        ):
            assert process.poll() is None, "finished before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    status = extract(folder, disturbed, *INLINE)
    assert contents(disturbed) == contents(finished)
    assert verify_store(disturbed).ok
    assert not list(disturbed.rglob("*.partial"))
    runs = list(read_history(disturbed).runs.values())
    assert len(runs) == 3
    assert sum(run.wall_s for run in runs) == pytest.approx(status.wall_seconds, abs=1e-2)
    assert status.last_run_audio_seconds == pytest.approx(runs[-1].totals.audio_s, abs=1e-3)
    assert status.realtime_factor == pytest.approx(runs[-1].totals.audio_s / runs[-1].wall_s)


def test_the_log_has_the_audio_that_the_index_has(tmp_path: Path) -> None:
    """To the sample, in short clips and in a recording of several units."""
    seconds = [0.031, 0.0149, 0.5, 1.23456, 30.0]
    folder = write_folder(tmp_path / "clips", seconds)
    status = extract(
        folder, tmp_path / "s", *INLINE, "extract.max_window_s=6", "extract.context_s=1"
    )
    assert max(pipeline.open_store(tmp_path / "s").frame_counts) > 512
    n_samples = sum(round(length * 16_000) for length in seconds)
    assert status.audio_seconds == pytest.approx(n_samples / 16_000, abs=1e-3)
    assert status.last_run_audio_seconds == status.audio_seconds


def test_a_dead_worker_is_replaced(
    folder: Path, finished: Path, tmp_path: Path, ray_session: None
) -> None:
    """A worker that is killed costs an attempt at its unit and nothing else."""

    class Killer(Observer):
        killed = 0

        def unit_committed(self, report: UnitReport) -> None:
            if not self.killed:
                self.killed = int(report.worker.rpartition(":")[2])
                assert self.killed != os.getpid()
                os.kill(self.killed, signal.SIGKILL)

    watching = Killer()
    config = configured(folder, tmp_path / "s", *ON_RAY)
    status = run.extract(config, watching)
    assert watching.killed
    assert status.utterances_ok == N_CLIPS
    assert contents(tmp_path / "s") == contents(finished)
    assert max(claim.attempt for claim in read_claims(tmp_path / "s")) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model=wavlm_base_plus", "encoder.model"),
        ("extract.layers=[1,6]", "encoder.layers"),
        ("extract.precision=bf16", "encoder.precision"),
    ],
)
def test_another_identity_is_refused(folder: Path, finished: Path, change: str, named: str) -> None:
    """Another model, layer set or precision is an error of both verbs; it names the difference."""
    before = contents(finished)
    config = configured(folder, finished, *INLINE, "model.weights=random", change)
    for verb in (run.plan, run.extract):
        with pytest.raises(IdentityError, match=named):
            verb(config)
    assert contents(finished) == before


def test_unreadable_files_are_quarantined_by_name(folder: Path, tmp_path: Path) -> None:
    """Only the broken files are lost, and the reason is stored."""
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    (mixed / "clip-001.wav").write_bytes(b"")
    (mixed / "clip-002.wav").write_bytes(b"RIFF this is no wav")
    soundfile.write(mixed / "clip-003.wav", np.full(8000, np.nan, np.float32), 16_000, "FLOAT")
    status = extract(mixed, tmp_path / "s", *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 3, 3)
    lost = {row["id"]: row["reason"] for row in status_rows(tmp_path / "s")}
    assert sorted(lost) == [f"clip-00{i}.wav" for i in (1, 2, 3)]
    assert "empty" in lost["clip-001.wav"]
    assert "not finite" in lost["clip-003.wav"]
    with pytest.raises(KeyError, match=r"quarantined: .*empty"):
        pipeline.open_store(tmp_path / "s").read("clip-001.wav")


def status_rows(path: Path) -> list[dict[str, str]]:
    return pipeline.open_store(path).quarantined.to_pylist()


def test_short_clips_are_padded_and_flagged(tmp_path: Path) -> None:
    """A clip below the receptive field has one frame, and the index says why."""
    folder = tmp_path / "short"
    folder.mkdir()
    soundfile.write(folder / "tiny.wav", voice(0.01, 1), 16_000)
    soundfile.write(folder / "whole.wav", voice(0.025, 1), 16_000)
    extract(folder, tmp_path / "s", *INLINE)
    store = pipeline.open_store(tmp_path / "s")
    assert (store.n_frames("tiny.wav"), store.record("tiny.wav")["flags"]) == (1, ["padded"])
    assert (store.n_frames("whole.wav"), store.record("whole.wav")["flags"]) == (1, [])


def test_a_wrong_header_defers_utterances_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips longer than planned move to an appended unit; nothing is lost, shifted or doubled."""
    folder = write_folder(tmp_path / "clips", [2.0] * 12)
    original = obtain.plan_source

    def halved(*arguments: object, **named: object) -> object:
        found = original(*arguments, **named)
        rows = found.table.drop_columns(["unit", "position"])
        column = rows.column_names.index("n_frames")
        shortened = rows.set_column(column, "n_frames", [[49] * len(rows)])
        from pipeline.store.format.plan import make_plan

        return make_plan(
            shortened.cast(found.table.drop_columns(["unit", "position"]).schema), found.source, 512
        )

    monkeypatch.setattr(obtain, "plan_source", halved)
    status = extract(folder, tmp_path / "s", *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (12, 0)
    store = pipeline.open_store(tmp_path / "s")
    assert store.ids == [f"clip-{i:03d}.wav" for i in range(12)]
    assert [store.n_frames(i) for i in range(12)] == [99] * 12
    assert verify_store(tmp_path / "s").ok
    monkeypatch.undo()
    extract(folder, tmp_path / "t", *INLINE)
    for name in store.ids:
        torch.testing.assert_close(
            store.read(name), pipeline.open_store(tmp_path / "t").read(name), rtol=2e-3, atol=2e-3
        )


def test_new_rows_extend_the_plan(folder: Path, tmp_path: Path) -> None:
    """Clips added at the end are extracted into new units; committed units do not change."""
    growing = tmp_path / "growing"
    write_folder(growing, mixed_lengths(10))
    extract(growing, tmp_path / "s", *INLINE)
    before = contents(tmp_path / "s")
    write_folder(growing, mixed_lengths(14))
    status = extract(growing, tmp_path / "s", *INLINE)
    assert status.utterances_ok == 14
    after = contents(tmp_path / "s")
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)


def test_a_corpus_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without space on the disk nothing is extracted; the message says how much is missing."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NoSpaceError, match=r"GB are needed in .*, 0\.00 GB are free"):
        extract(folder, tmp_path / "s", *INLINE)
    assert not (tmp_path / "s" / "index").exists() or not list((tmp_path / "s/index").iterdir())


def test_another_unit_size_is_refused_once_the_store_exists(folder: Path, tmp_path: Path) -> None:
    """`plan.frames_per_unit` may change until the store is created; then it is fixed."""
    run.plan(configured(folder, tmp_path / "s"))
    run.plan(configured(folder, tmp_path / "s", "plan.frames_per_unit=1024"))
    extract(folder, tmp_path / "s", *INLINE, "plan.frames_per_unit=1024")
    with pytest.raises(ConfigError, match="was created with 1024"):
        extract(folder, tmp_path / "s", *INLINE, "plan.frames_per_unit=512")


def test_a_unit_that_always_fails_does_not_stop_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `run.max_attempts` the unit is named in the error; all others are committed."""
    from pipeline.extract.worker import Worker

    original = Worker.begin

    def failing(self: Worker, task: object) -> object:
        if task.unit == 2:  # type: ignore[attr-defined]
            raise RuntimeError("the GPU fell off")
        return original(self, task)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "begin", failing)
    with pytest.raises(RunError, match=r"unit 2: .*the GPU fell off"):
        extract(folder, tmp_path / "s", *INLINE)
    monkeypatch.undo()
    assert not (tmp_path / "s" / "index" / "unit-2.parquet").exists()
    assert extract(folder, tmp_path / "s", *INLINE).utterances_ok == N_CLIPS


def test_plan_writes_nothing_but_the_plan(folder: Path, tmp_path: Path) -> None:
    """`plan` without a store writes nothing, with one just plan.parquet."""
    found = run.plan(replace(configured(folder, tmp_path / "s"), store=None))
    assert not (tmp_path / "s").exists()
    assert found.utterances == N_CLIPS
    assert found.frames == run.plan(configured(folder, tmp_path / "s")).frames
    assert [p.name for p in written(tmp_path / "s")] == ["plan.parquet"]


def test_a_store_that_another_tool_has_rewritten_is_left_as_it_is(tmp_path: Path) -> None:
    """A run with nothing to do keeps it readable; a run that would add units is refused."""
    folder = write_folder(tmp_path / "clips", mixed_lengths(14))
    store = tmp_path / "s"
    extract(folder, store, *INLINE)
    expected = pipeline.open_store(store)[:]
    rewrite(store)
    for _ in range(2):
        found = pipeline.open_store(store, verify=True)[:]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert verify_store(store).ok
        extract(folder, store, *INLINE)
    (store / "index.parquet").unlink()
    (store / "index/unit-1.parquet").unlink()
    with pytest.raises(StoreError, match=r"frames in another form.*Extract into another store="):
        extract(folder, store, *INLINE)
    assert verify_store(store).ok

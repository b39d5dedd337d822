"""The worker, with an encoder whose values spell utterance, layer and frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from crc32c import crc32c
from torch import Tensor

from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.wav2vec2.moments import MomentAccumulator
from pipeline.encoders.windows import Windowing
from pipeline.errors import EncoderError, SourceError, StoreError, WeightsError
from pipeline.extract.messages import DeviceLostError
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.stages import encode as encode_stage
from pipeline.extract.stages import malloc
from pipeline.extract.stages import write as write_stage
from pipeline.extract.stages.decode import MOST_VANISHED, Utterance
from pipeline.extract.stages.encode import OnFinal, count_fitting_frames
from pipeline.extract.stages.receive import DeviceReceiver
from pipeline.extract.stages.timing import StoppedError
from pipeline.extract.worker import STAGES, Job, UnitReport, UnitTask, Worker
from pipeline.sources.opening import open_source
from pipeline.store.documents import write_group, write_plan
from pipeline.store.format.layout import KEPT, Layout
from pipeline.store.format.plan import Plan
from pipeline.store.maintain.status import read_status
from pipeline.store.read.opening import open_store
from pipeline.store.read.shards import ShardReader
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import SlotWriter
from tests.helpers.fake_encoders import read_spelled, spelled

LAYERS = (1, 2, 3)
WINDOWING = Windowing(GEOMETRY, max_window_s=4.0, context_s=0.5)


class SpellingEncoder:
    """Features [tag, layer, frame], both read from the samples: see `fake_encoders.spelled`.

    Attributes:
        broken: Tags that give infinity in the reduced precision.
        hopeless: Tags that give infinity always, in layer 2.
        batches: Tags of each batch, in the order in which they were encoded.
    """

    layers = LAYERS
    geometry = GEOMETRY
    windows = WINDOWING
    device = torch.device("cpu")

    def __init__(self, broken: Sequence[int] = (), hopeless: Sequence[int] = ()) -> None:
        self.broken, self.hopeless = set(broken), set(hopeless)
        self.batches: list[list[int]] = []

    def encode_batch(
        self,
        waveforms: Sequence[Tensor],
        *,
        stats: Sequence[object] | None = None,
        precision: str | None = None,
    ) -> Iterator[Tensor]:
        clips = [self._spell(waveform, precision) for waveform in waveforms]
        self.batches.append([int(clip[0, 0, 0]) for clip in clips])
        yield from torch.cat(clips, dim=1)

    def statistics_accumulator(self) -> MomentAccumulator:
        return MomentAccumulator()

    def utterance_stats(self, utterance: object) -> None:
        return None

    def _spell(self, waveform: Tensor, precision: str | None) -> Tensor:
        n_frames = GEOMETRY.n_frames(len(waveform))
        tag, frame = read_spelled(waveform[:: GEOMETRY.hop_samples][:n_frames])
        features = torch.empty(len(LAYERS), n_frames, 3)
        features[:, :, 0] = tag
        features[:, :, 1] = torch.tensor(LAYERS)[:, None]
        features[:, :, 2] = frame
        if int(tag[0]) in self.hopeless or (int(tag[0]) in self.broken and precision != "fp32"):
            features[1, 0, 0] = torch.inf
        return features


class Bench:
    """A planned folder of constant clips and a worker for it."""

    def __init__(
        self,
        tmp_path: Path,
        seconds: Sequence[float],
        frames_per_unit: int,
        encoder: SpellingEncoder,
    ) -> None:
        folder = tmp_path / "clips"
        folder.mkdir()
        for i, length in enumerate(seconds):
            samples = spelled(i + 1, round(length * 16_000), GEOMETRY)
            soundfile.write(folder / f"{i:02d}.wav", samples, 16_000, "FLOAT")
        self.root = tmp_path / "store"
        dataset = DatasetConfig("audiofolder", path=str(folder))
        self.source = open_source(dataset)
        self.plan: Plan = plan_source(self.source, WINDOWING, frames_per_unit)
        self.layout = Layout(LAYERS, 3, self.plan.frames_per_unit, self.plan.utterances_per_slot)
        write_group(self.root, self.layout, self.plan.n_units, {"format_version": 1})
        self.job = Job(self.root, self.layout, dataset, lambda: encoder, 400, 1)
        self.worker = Worker(self.job, encoder, self.source)

    def extract(self, unit: int) -> UnitReport:
        return self.worker.extract(UnitTask(unit, unit, 1, self.plan.unit_rows(unit)))

    def rows(self, unit: int) -> list[dict]:
        path = self.root / "index" / f"unit-{unit}.parquet"
        return pq.read_table(path, partitioning=None).to_pylist()

    def frames(self, unit: int) -> np.ndarray:
        """Stored [layer, frame, feature] of a slot."""
        shards = ShardReader(self.root, self.layout)
        capacity = self.layout.frames_per_unit
        return np.stack([shards.read(a, unit, 0, capacity) for a in range(len(LAYERS))])


@pytest.fixture(params=["host", "device"])
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are received as on a CPU, and as on a GPU.

    There a batch is pending while the next one is encoded, and statistics come with the features.
    """
    if request.param == "device":
        cpu = torch.device("cpu")
        monkeypatch.setattr(
            encode_stage, "open_receiver", lambda _, *settings: DeviceReceiver(cpu, *settings)
        )


@pytest.mark.usefixtures("receiver")
def test_every_frame_lies_where_the_index_says(tmp_path: Path) -> None:
    """Each utterance has its own layers and frames at its place, whatever the batches."""
    seconds = [1.0, 0.2, 2.5, 0.01, 1.7, 0.9, 3.9]
    bench = Bench(tmp_path, seconds, 768, SpellingEncoder())
    assert bench.extract(0).n_ok == 7
    frames = bench.frames(0)
    used = 0
    for i, row in enumerate(bench.rows(0)):
        start, stop = row["frame_start"], row["frame_start"] + row["n_frames"]
        assert (start, row["n_frames"]) == (used, GEOMETRY.n_frames(round(seconds[i] * 16_000)))
        for axis, layer in enumerate(LAYERS):
            assert (frames[axis, start:stop, 0] == i + 1).all()
            assert (frames[axis, start:stop, 1] == layer).all()
            assert (frames[axis, start:stop, 2] == np.arange(stop - start)).all()
        used = stop
    assert np.isnan(frames[:, used:]).all()


def test_batches_hold_consecutive_clips(tmp_path: Path) -> None:
    """In the order of the dataset, within the limit of frames; nothing is padded."""
    encoder = SpellingEncoder()
    bench = Bench(tmp_path, [0.5, 3.0, 0.5, 3.0, 0.5, 3.0, 0.5], 1024, encoder)
    bench.extract(0)
    assert encoder.batches == [[1, 2, 3, 4, 5], [6, 7]]


@pytest.mark.usefixtures("receiver")
def test_pieces_of_a_long_recording_hold_its_frames_in_order(tmp_path: Path) -> None:
    """A recording longer than a unit is cut at window boundaries; no frame is lost or doubled."""
    encoder = SpellingEncoder()
    bench = Bench(tmp_path, [1.0, 30.0, 2.0], 512, encoder)
    for unit in range(bench.plan.n_units):
        assert bench.extract(unit).n_quarantined == 0
    pieces = [
        (unit, row)
        for unit in range(bench.plan.n_units)
        for row in bench.rows(unit)
        if row["row"] == 1
    ]
    assert len(pieces) > 2
    assert [row["piece"] for _, row in pieces] == list(range(len(pieces)))
    assert {row["n_pieces"] for _, row in pieces} == {len(pieces)}
    assert {row["n_samples"] for _, row in pieces} == {480_000}
    joined = np.concatenate(
        [
            bench.frames(unit)[:, start : start + row["n_frames"]]
            for unit, row in pieces
            for start in [row["frame_start"] - unit * bench.layout.frames_per_unit]
        ],
        axis=1,
    )
    assert joined.shape[1] == GEOMETRY.n_frames(480_000)
    assert (joined[:, :, 0] == 2).all()
    assert (joined[:, :, 2] == np.arange(joined.shape[1])).all()
    assert pieces[0][1]["flags"] == ["windowed"]


def test_a_recording_counts_once_all_its_pieces_are_there(tmp_path: Path) -> None:
    """Neither reader nor status counts a recording while one of its pieces is missing."""
    bench = Bench(tmp_path, [30.0], 512, SpellingEncoder())
    facts = {"layers": list(LAYERS), "feature_dim": 3, "sample_rate_hz": 16_000}
    sizes = {
        "frames_per_unit": bench.layout.frames_per_unit,
        "utterances_per_slot": bench.layout.utterances_per_slot,
    }
    attributes = {"format_version": 1, "frame_rate_hz": 50.0, **facts, **sizes}
    write_group(bench.root, bench.layout, bench.plan.n_units, attributes)
    write_plan(bench.root, bench.plan)
    assert bench.plan.n_units > 2
    for unit in range(bench.plan.n_units - 1):
        bench.extract(unit)
    assert read_status(bench.root).utterances_ok == len(open_store(bench.root)) == 0
    assert read_status(bench.root).audio_seconds == 0
    bench.extract(bench.plan.n_units - 1)
    assert read_status(bench.root).utterances_ok == len(open_store(bench.root)) == 1
    assert read_status(bench.root).audio_seconds == 30.0


@pytest.mark.usefixtures("receiver")
def test_what_overflows_is_encoded_again_in_fp32_and_flagged(tmp_path: Path) -> None:
    """A batch with a value beyond float16 is encoded again; its utterances are kept and flagged."""
    bench = Bench(tmp_path, [1.0, 1.0], 512, SpellingEncoder(broken=[2]))
    report = bench.extract(0)
    assert (report.n_ok, report.n_fp32) == (2, 2)
    assert [row["flags"] for row in bench.rows(0)] == [["fp32"], ["fp32"]]
    assert np.isfinite(bench.frames(0)[:, :98]).all()


@pytest.mark.usefixtures("receiver")
@pytest.mark.parametrize("seconds", [[1.0, 1.0, 1.0], [1.0, 9.0, 1.0]], ids=["short", "windowed"])
def test_what_stays_out_of_range_is_quarantined_with_its_layer(
    tmp_path: Path, seconds: list[float]
) -> None:
    """Only that utterance is lost; its frames are blank, the other utterances are complete."""
    bench = Bench(tmp_path, seconds, 768, SpellingEncoder(hopeless=[2]))
    report = bench.extract(0)
    assert (report.n_ok, report.n_quarantined) == (2, 1)
    rows = bench.rows(0)
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok"]
    assert "layer 2" in rows[1]["reason"]
    assert rows[1]["frame_start"] is None
    frames = bench.frames(0)
    hole = frames[:, 49 : rows[2]["frame_start"]]
    assert hole.shape[1] == GEOMETRY.n_frames(round(seconds[1] * 16_000))
    assert np.isnan(hole).all()
    assert (frames[:, rows[2]["frame_start"] : rows[2]["frame_start"] + 49, 0] == 3).all()


@pytest.mark.usefixtures("receiver")
def test_nothing_of_the_unit_before_stays_in_the_buffer(tmp_path: Path) -> None:
    """A short unit after a full one is blank beyond its frames."""
    bench = Bench(tmp_path, [2.5, 2.5, 0.5], 256, SpellingEncoder())
    assert bench.plan.n_units >= 2
    last = bench.plan.n_units - 1
    for unit in range(bench.plan.n_units):
        bench.extract(unit)
    used = sum(row["n_frames"] for row in bench.rows(last))
    assert np.isnan(bench.frames(last)[:, used:]).all()


def test_another_dataset_than_planned_is_refused(tmp_path: Path) -> None:
    """A worker whose dataset has other ids raises an error instead of writing."""
    bench = Bench(tmp_path, [0.5, 0.5], 256, SpellingEncoder())
    rows = bench.plan.unit_rows(0)
    renamed = rows.set_column(0, rows.schema.field("id"), pa.array(["a.wav", "b.wav"]))
    with pytest.raises(SourceError, match="its ids differ"):
        bench.worker.extract(UnitTask(0, 0, 1, renamed))


@pytest.mark.parametrize("n_buffers", [1, 2])
def test_a_unit_is_written_while_the_next_one_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_buffers: int
) -> None:
    """With one buffer the next unit waits until it is written; with two it does not."""
    slow = SlotWriter.write

    def write(self: SlotWriter, *part: Any) -> None:
        time.sleep(0.02)
        slow(self, *part)

    monkeypatch.setattr(SlotWriter, "write", write)
    monkeypatch.setattr(write_stage, "n_buffers", lambda device: n_buffers)
    monkeypatch.setattr(write_stage, "PART_BYTES", 1000)  # several parts per utterance
    bench = Bench(tmp_path, [1.0, 2.0, 1.5, 2.5, 0.5, 3.0], 256, SpellingEncoder())
    assert bench.plan.n_units > 2
    tasks = [UnitTask(u, u, 1, bench.plan.unit_rows(u)) for u in range(bench.plan.n_units)]
    for task in tasks:
        bench.worker.prefetch(task)
    buffers: list[UnitBuffer] = []
    encode = bench.worker._encode_stage.encode

    def encode_into(utterances: list[Utterance], buffer: UnitBuffer, on_final: OnFinal) -> None:
        buffers.append(buffer)
        encode(utterances, buffer, on_final)

    bench.worker._encode_stage.encode = encode_into  # type: ignore[method-assign]
    reports = [future.result() for future in [bench.worker.begin(task) for task in tasks]]
    assert sum(report.n_ok for report in reports) == 6
    assert len({id(buffer) for buffer in buffers}) == n_buffers
    for unit in range(bench.plan.n_units):
        frames = bench.frames(unit)
        for row in bench.rows(unit):
            start = row["frame_start"] - unit * bench.layout.frames_per_unit
            stop = start + row["n_frames"]
            assert (frames[:, start:stop, 0] == row["row"] + 1).all()
            assert (frames[:, start:stop, 2] == np.arange(row["n_frames"])).all()
            crcs = [crc32c(np.ascontiguousarray(layer[start:stop])) for layer in frames]
            assert crcs == row["crc32c"]


@pytest.mark.parametrize("n_buffers", [1, 2])
def test_the_device_waits_for_the_disk_only_without_a_free_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_buffers: int
) -> None:
    """While a unit cannot be written, as many units are encoded as there are buffers."""
    resumed = threading.Event()
    write = SlotWriter.write

    def waits(self: SlotWriter, *part: Any) -> None:
        assert resumed.wait(30)
        write(self, *part)

    monkeypatch.setattr(SlotWriter, "write", waits)
    monkeypatch.setattr(write_stage, "n_buffers", lambda device: n_buffers)
    encoder = SpellingEncoder()
    bench = Bench(tmp_path, [3.5] * 4, 256, encoder)
    tasks = [UnitTask(u, u, 1, bench.plan.unit_rows(u)) for u in range(4)]
    with ThreadPoolExecutor(1) as thread:
        begun = thread.submit(lambda: [bench.worker.begin(task) for task in tasks])
        end_s = time.monotonic() + 30
        while len(encoder.batches) < n_buffers and time.monotonic() < end_s:
            time.sleep(0.01)
        time.sleep(0.2)  # no other unit is encoded
        n_encoded = len(encoder.batches)
        resumed.set()
        assert sum(report.result().n_ok for report in begun.result()) == 4
    assert n_encoded == n_buffers


def test_an_interrupted_worker_drops_the_unit_that_it_encodes(tmp_path: Path) -> None:
    """After the current batch; what was encoded before is committed, nothing half-written stays."""
    encoder = SpellingEncoder()
    bench = Bench(tmp_path, [1.0, 2.5, 1.0, 1.0, 1.0], 256, encoder)
    first, second = (UnitTask(u, u, 1, bench.plan.unit_rows(u)) for u in range(2))
    report = bench.worker.begin(first)
    original, n_before = encoder.encode_batch, len(encoder.batches)

    def interrupted(waveforms: Sequence[Tensor], **settings: Any):
        bench.worker.interrupt()
        return original(waveforms, **settings)

    encoder.encode_batch = interrupted  # type: ignore[method-assign]
    bench.worker._encode_stage._max_batch_frames = 60  # one clip to a batch
    with pytest.raises(StoppedError):
        bench.worker.begin(second)
    bench.worker.close()
    assert len(encoder.batches) == n_before + 1
    assert report.result().won
    assert [path.name for path in (bench.root / "index").iterdir()] == ["unit-0.parquet"]
    assert not list(bench.root.rglob("*.partial"))


def test_statistics_of_the_device_are_kept(tmp_path: Path) -> None:
    """Those that the encode stage passes on are stored; they are not computed again."""
    bench = Bench(tmp_path, [1.0, 1.5], 256, SpellingEncoder())
    encode = bench.worker._encode_stage.encode

    def with_means(utterances: list[Utterance], buffer: UnitBuffer, on_final: OnFinal) -> None:
        encode(
            utterances,
            buffer,
            lambda item, _: on_final(item, np.full((1, len(LAYERS), 3), item.n_frames, "f4")),
        )

    bench.worker._encode_stage.encode = with_means  # type: ignore[method-assign]
    bench.extract(0)
    pooled = ShardReader(bench.root, bench.layout).pooled(0)
    assert [pooled[i, 0].tolist() for i in range(2)] == [[[n] * 3] * len(LAYERS) for n in (49, 74)]


@pytest.mark.usefixtures("receiver")
def test_a_unit_may_keep_its_statistics_only(tmp_path: Path) -> None:
    """No shard; the statistics and their number of bytes are those of a whole unit."""
    pooled = []
    for keep in (KEPT, ("pooled",)):
        root = tmp_path / "-".join(keep)
        root.mkdir()
        bench = Bench(root, [1.0, 9.0, 1.5], 768, SpellingEncoder())
        layout = replace(bench.layout, keep=keep)
        worker = Worker(replace(bench.job, layout=layout), SpellingEncoder(), bench.source)
        report = worker.extract(UnitTask(0, 0, 1, bench.plan.unit_rows(0)))
        assert report.n_ok == 3
        pooled.append((bench.root / bench.layout.pooled_key(0)).read_bytes())
    assert pooled[0] == pooled[1]
    assert report.n_bytes == bench.layout.pooled_bytes
    assert not list(bench.root.glob("features.zarr/frames/c/*"))
    assert all(len(row["crc32c"]) == len(LAYERS) for row in bench.rows(0))


def test_a_failed_write_fails_its_own_unit(tmp_path: Path) -> None:
    """The error is raised for the unit that was not written; the worker does the next one."""
    bench = Bench(tmp_path, [3.5, 3.5], 256, SpellingEncoder())
    blocked = bench.root / bench.layout.shard_key(1, 0)
    blocked.parent.parent.mkdir(parents=True)
    blocked.parent.write_text("in the way")
    with pytest.raises(StoreError, match=r"unit 0 .* is not committed: .*frames/c/1/0"):
        bench.extract(0)
    assert not list(bench.root.rglob("*.partial"))
    assert bench.extract(1).n_ok == 1


@pytest.mark.usefixtures("receiver")
def test_a_unit_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    """Its partial files are removed, and the buffer can be reused."""
    encoder = SpellingEncoder()
    bench = Bench(tmp_path, [2.5, 1.0, 1.5, 0.5], 256, encoder)
    original = encoder.encode_batch
    calls = []

    def fails(waveforms: Sequence[Tensor], **settings):
        calls.append(len(waveforms))
        if len(calls) == 2:
            raise RuntimeError("the GPU fell off")
        return original(waveforms, **settings)

    encoder.encode_batch = fails  # type: ignore[method-assign]
    bench.worker._encode_stage._max_batch_frames = 60  # one clip to a batch
    with pytest.raises(RuntimeError, match="fell off"):
        bench.extract(0)
    assert not list(bench.root.rglob("*.partial"))
    assert not list((bench.root / "index").iterdir())
    assert bench.extract(0).won


def test_a_worker_without_memory_for_a_unit_fails_every_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for a buffer that does not exist; with memory it goes on."""
    bench = Bench(tmp_path, [1.0], 256, SpellingEncoder())

    def fails(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        raise MemoryError

    stage = bench.worker._write_stage
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as thread:
        patch.setattr(stage, "_allocate", fails)
        calls = [thread.submit(bench.extract, 0) for _ in range(3)]
        _, waiting = wait(calls, 10)
        if waiting:
            stage._free.put(UnitBuffer(bench.layout))  # so that the thread ends
        assert not waiting
        assert {type(call.exception()) for call in calls} == {MemoryError}
    assert bench.extract(0).won


def test_freed_memory_is_returned_every_few_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where malloc would keep fragmented memory: before batches 1, 9, 17 and 25."""
    trimmed = []
    encoder = SpellingEncoder()
    bench = Bench(tmp_path, [1.0] * 28, 1024, encoder)
    monkeypatch.setattr(malloc, "trim", lambda: trimmed.append(len(encoder.batches)))
    bench.worker._encode_stage._max_batch_frames = 60  # one clip to a batch
    assert bench.extract(0).n_ok == 20
    assert bench.extract(1).n_ok == 8
    assert trimmed == [0, 8, 16, 24]


def test_a_worker_refuses_other_weights_than_the_store_was_set_up_for(tmp_path: Path) -> None:
    """They were replaced between the driver's start and the worker's, or the nodes differ."""
    encoder = SpellingEncoder()
    encoder.identity = {"weights": {"sha256": "new"}, "precision": "fp32"}
    bench = Bench(tmp_path, [1.0], 256, encoder)
    same = replace(bench.job, encoder_identity=dict(encoder.identity))
    Worker(same, encoder, bench.source).close()
    other = {"weights": {"sha256": "old"}, "precision": "fp32"}
    with pytest.raises(WeightsError, match=r"weights.sha256 is old there, new here.*replaced"):
        Worker(replace(bench.job, encoder_identity=other), encoder, bench.source)


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_a_dataset_that_went_away_is_no_reason_to_quarantine(
    tmp_path: Path, is_mount_point: bool
) -> None:
    """The unit stays open; a single file that is missing is quarantined."""
    bench = Bench(tmp_path, [1.0, 1.0], 256, SpellingEncoder())
    folder = tmp_path / "clips"
    folder.rename(tmp_path / "away")
    if is_mount_point:
        folder.mkdir()
    with pytest.raises(SourceError, match=r"clips is gone or empty .*still mounted.*run the same"):
        bench.extract(0)
    assert not list((bench.root / "index").iterdir())
    if is_mount_point:
        folder.rmdir()
    (tmp_path / "away").rename(folder)
    (folder / "00.wav").unlink()
    report = bench.extract(0)
    assert (report.n_ok, report.n_quarantined) == (1, 1)


@pytest.mark.parametrize("n_lost", [MOST_VANISHED - 1, MOST_VANISHED])
def test_many_files_in_a_row_that_vanish_are_the_dataset_s_loss(
    tmp_path: Path, n_lost: int
) -> None:
    """They were read for the plan; fewer of them are quarantined one by one."""
    bench = Bench(tmp_path, [0.1] * (MOST_VANISHED + 4), 512, SpellingEncoder())
    for path in sorted((tmp_path / "clips").iterdir())[:n_lost]:
        path.unlink()
    if n_lost < MOST_VANISHED:
        assert bench.extract(0).n_quarantined == n_lost
        return
    with pytest.raises(SourceError, match=rf"{n_lost} files in a row of .*clips have vanished"):
        bench.extract(0)
    assert not list((bench.root / "index").iterdir())


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),  # of page-locked memory
]


class SmallMemory(SpellingEncoder):
    """An encoder whose device holds only so many frames at once."""

    def __init__(self, max_frames: int, error: RuntimeError = OUT_OF_MEMORY[0]) -> None:
        super().__init__()
        self.max_frames, self.error = max_frames, error

    def encode_batch(self, waveforms: Sequence[Tensor], **settings: object) -> Iterator[Tensor]:
        layers = list(super().encode_batch(waveforms, **settings))
        yield layers[0]
        if len(layers[0]) > self.max_frames:  # as late as possible
            raise self.error
        yield from layers[1:]


@pytest.mark.usefixtures("receiver")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_the_device_is_halved(
    tmp_path: Path, error: RuntimeError
) -> None:
    """Until it fits; no clip is lost, and the report counts the batches."""
    seconds = [1.0, 0.5, 1.0, 0.5, 1.0]
    bench = Bench(tmp_path, seconds, 256, SmallMemory(80, error))
    report = bench.extract(0)
    assert (report.n_ok, report.n_halved) == (5, 2)
    (tmp_path / "plenty").mkdir()
    plenty = Bench(tmp_path / "plenty", seconds, 256, SpellingEncoder())
    assert plenty.extract(0).n_halved == 0
    np.testing.assert_array_equal(bench.frames(0), plenty.frames(0))


@pytest.mark.usefixtures("receiver")
def test_a_batch_that_does_not_fit_in_fp32_is_halved(tmp_path: Path) -> None:
    """It fits in the reduced precision, but one of its values does not."""

    class SmallInFp32(SpellingEncoder):
        def encode_batch(self, waveforms: Sequence[Tensor], **settings) -> Iterator[Tensor]:
            layers = list(super().encode_batch(waveforms, **settings))
            if settings.get("precision") == "fp32" and len(layers[0]) > 80:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield from layers

    seconds = [1.0, 0.5, 1.0, 0.5, 1.0]
    bench = Bench(tmp_path, seconds, 256, SmallInFp32(broken=[4]))
    report = bench.extract(0)
    assert (report.n_ok, report.n_fp32, report.n_halved) == (5, 5, 2)
    (tmp_path / "plenty").mkdir()
    plenty = Bench(tmp_path / "plenty", seconds, 256, SpellingEncoder())
    plenty.extract(0)
    np.testing.assert_array_equal(bench.frames(0), plenty.frames(0))


def test_another_error_of_the_device_is_not_taken_for_it(tmp_path: Path) -> None:
    """The batch is not tried again in halves."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    bench = Bench(tmp_path, [1.0, 0.5, 1.0], 256, SmallMemory(80, error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench.extract(0)


def test_a_clip_that_does_not_fit_the_device_is_an_error(tmp_path: Path) -> None:
    """It names the device, the length of the clip and the remedy."""
    bench = Bench(tmp_path, [0.5, 1.0], 256, SmallMemory(40))
    with pytest.raises(EncoderError, match=r"cpu is out of memory with one clip of 1.0 s.*max_win"):
        bench.extract(0)


def test_the_batch_is_bounded_by_the_free_memory() -> None:
    """More memory holds more frames; one frame is always tried."""
    small, large = (count_fitting_frames(n * 10**9, 12, 768) for n in (4, 80))
    assert 10_000 < small < 64_000 < large
    assert count_fitting_frames(10**9, 12, 768) == 1
    assert count_fitting_frames(4 * 10**9, 24, 1024) < small


def test_time_is_reported_by_stage(tmp_path: Path) -> None:
    """In a fixed order; front end and transformer separately if the encoder reports them."""

    class Clocked(SpellingEncoder):
        def encode_batch(self, waveforms, **settings):
            with self.clock("front_end"):
                time.sleep(0.01)
            with self.clock("transformer"):
                time.sleep(0.03)
            return super().encode_batch(waveforms, **settings)

    bench = Bench(tmp_path, [1.0, 1.0], 256, Clocked())
    seconds = bench.extract(0).seconds
    assert tuple(seconds) == STAGES
    assert STAGES[:5] == ("decode", "wait", "front_end", "transformer", "copy")
    assert 0.01 <= seconds["front_end"] < seconds["transformer"]
    assert seconds["transformer"] >= 0.03
    assert min(seconds.values()) > 0


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_gpu_that_computes_nothing_more_is_told_from_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """After such an error every later call of CUDA fails, so that a wait for the device does."""

    def fail(*args: object, **options: object) -> Iterator[Tensor]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def synchronize(device: torch.device) -> None:
        if is_lost:
            fail()

    bench = Bench(tmp_path, [1.0], 256, SpellingEncoder())
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(bench.worker._encode_stage, "encode", fail)
    bench.worker._device = torch.device("cuda:0")
    kind = DeviceLostError if is_lost else RuntimeError
    with pytest.raises(kind, match="unspecified launch failure"):
        bench.extract(0)


def test_the_thread_of_a_worker_computes_on_the_gpu_of_its_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be another one than the first, with which every thread begins."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**10, 10**10))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    encoder = SpellingEncoder()
    encoder.device = torch.device("cuda:1")
    Bench(tmp_path, [1.0], 256, encoder).worker.close()
    assert chosen == [torch.device("cuda:1")]

"""Pieces of long recordings: their samples, how often they are decoded, and errors."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.__config__ import parallel_info

from pipeline.audio.decode import decode_blocks
from pipeline.audio.types import Decoded
from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.wav2vec2.moments import MomentAccumulator
from pipeline.encoders.windows import Windowing
from pipeline.errors import AudioError
from pipeline.extract.messages import UnitTask
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.stages import recording
from pipeline.extract.stages.decode import Decoder
from pipeline.extract.stages.recording import MAX_HELD_BYTES, Piece, RecordingReader
from pipeline.extract.stages.timing import StoppedError
from pipeline.sources.opening import open_source
from pipeline.store.format import records
from tests.helpers.audio_files import flac_with_length, speechlike, write

RATE_HZ = 16_000
LENGTH_S = 47
KINDS = [("flac", 16_000, 1), ("wav", 44_100, 2), ("ogg", 16_000, 1), ("mp3", 24_000, 1)]


class PieceEncoder:
    """What decoding needs of an encoder."""

    geometry = GEOMETRY
    windows = Windowing(GEOMETRY, max_window_s=4.0, context_s=0.5)
    device = torch.device("cpu")

    def statistics_accumulator(self) -> MomentAccumulator:
        return MomentAccumulator()

    def utterance_stats(self, utterance: object) -> object:
        return utterance


class Recordings:
    """A planned folder of recordings, and a reader of their pieces.

    Attributes:
        n_decoded: Number of times that the decoding of a recording was started.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = open_source(DatasetConfig("audiofolder", path=str(folder)))
        self.plan = plan_source(self.source, PieceEncoder.windows, 512)
        self.rows = self.plan.table.to_pylist()
        self.n_decoded = 0
        self._whole: dict[int, torch.Tensor] = {}

        def counted(*args: Any) -> Iterator[Decoded]:
            self.n_decoded += 1
            return decode_blocks(*args)

        monkeypatch.setattr(recording, "decode_blocks", counted)

    def reader(self, max_held_bytes: int = MAX_HELD_BYTES) -> RecordingReader:
        return RecordingReader(PieceEncoder(), max_held_bytes)

    def read(self, reader: RecordingReader, row: dict[str, Any]) -> Piece:
        return reader.read(self.source.segment(row["row"]), row)

    def whole(self, row: int) -> torch.Tensor:
        """Decode a whole recording block by block, once."""
        if row not in self._whole:
            blocks = decode_blocks(self.source.segment(row), RATE_HZ)
            self._whole[row] = torch.cat([block.waveform for block in blocks])
        return self._whole[row]

    def error(self, reader: RecordingReader, row: dict[str, Any]) -> str:
        with pytest.raises(AudioError) as caught:
            self.read(reader, row)
        return str(caught.value)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """One flac of 47 s, cut into pieces of at most 10 s."""
    write(tmp_path / "clips" / "a.flac", speechlike(LENGTH_S * RATE_HZ))
    return Recordings(tmp_path / "clips", monkeypatch)


def expected(recordings: Recordings, row: dict[str, Any]) -> tuple[int, torch.Tensor]:
    """Cut a piece from the whole decoded recording: its first sample and its samples."""
    last = row["piece_start"] + row["n_frames"]
    windows = [
        window
        for window in PieceEncoder.windows.plan(row["n_samples"])
        if row["piece_start"] <= window.keep_start < last
    ]
    low = windows[0].sample_start
    return low, recordings.whole(row["row"])[low : windows[-1].sample_stop]


ORDERS = ["forward", "backward", "every second", "twice"]
PAIRWISE = [
    pytest.param(*kind, order, held, id=f"{kind[0]}-{kind[1]}-{order}-{held=}")
    for i, kind in enumerate(KINDS)
    for j, order in enumerate(ORDERS)
    for held in [(i + j) % 2 == 0]
]
"""Every kind in every order, and every kind and every order with held samples and without."""


@pytest.mark.parametrize(("kind", "rate_hz", "n_channels", "order", "held"), PAIRWISE)
def test_pieces_are_cuts_of_the_recording(
    tmp_path, monkeypatch, kind, rate_hz, n_channels, order, held
):
    """Bit for bit, in any order, whether the samples are held or read again."""
    sound = speechlike(LENGTH_S * rate_hz + 123, n_channels)
    write(tmp_path / "clips" / f"a.{kind}", sound, rate_hz)
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    rows = recordings.rows
    assert len(rows) >= 5
    ordered = {
        "forward": rows,
        "backward": rows[::-1],
        "every second": rows[::2] + rows[1::2],
        "twice": [row for row in rows for _ in range(2)],
    }[order]
    reader = recordings.reader(MAX_HELD_BYTES if held else 0)
    for row in ordered:
        piece = recordings.read(reader, row)
        low, samples = expected(recordings, row)
        assert piece.sample_start == piece.windows[0].sample_start == low
        assert torch.equal(piece.waveform, samples)
        assert piece.source_rate_hz == rate_hz


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_a_recording_is_decoded_at_most_twice(one, held):
    """Once if its samples fit, else once for the statistics and once for all further pieces."""
    reader = one.reader(MAX_HELD_BYTES if held else 0)
    for row in one.rows:
        one.read(reader, row)
    assert one.n_decoded == (1 if held else 2)


def test_an_mp3_is_decoded_once(tmp_path, monkeypatch):
    """It is decoded whole, so it is held even beyond the bound."""
    write(tmp_path / "clips" / "a.mp3", speechlike(LENGTH_S * RATE_HZ))
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    reader = recordings.reader(0)
    for row in recordings.rows:
        recordings.read(reader, row)
    assert recordings.n_decoded == 1


def test_an_earlier_piece_starts_the_second_pass_again(one):
    """A worker that repeats a unit gets the same samples, for one more decoding."""
    reader = one.reader(0)
    for row in one.rows[:3]:
        one.read(reader, row)
    assert one.n_decoded == 2
    assert torch.equal(one.read(reader, one.rows[1]).waveform, expected(one, one.rows[1])[1])
    assert one.n_decoded == 3


def test_statistics_are_those_of_the_whole_recording(one):
    """Every piece has them, and they equal the moments of all samples."""
    accumulator = MomentAccumulator()
    for block in decode_blocks(one.source.segment(0), RATE_HZ):
        accumulator.update(block.waveform)
    moments = accumulator.finish()
    for held in (0, MAX_HELD_BYTES):
        reader = one.reader(held)
        for row in one.rows:
            found = one.read(reader, row).statistics
            assert found.n_samples == LENGTH_S * RATE_HZ
            assert (found.sample_sum, found.square_sum) == (moments.sample_sum, moments.square_sum)
            assert torch.equal(found.window_products, moments.window_products)


def test_a_piece_can_be_changed_without_changing_another(one):
    """The waveform is a copy."""
    reader = one.reader()
    one.read(reader, one.rows[1]).waveform.zero_()
    assert torch.equal(one.read(reader, one.rows[1]).waveform, expected(one, one.rows[1])[1])


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_pieces_are_read_by_several_threads(one, held):
    """All pieces are right. A recording that is held is decoded once, in any order of threads."""
    reader = one.reader(MAX_HELD_BYTES if held else 0)
    with ThreadPoolExecutor(4) as pool:
        pieces = list(pool.map(lambda row: one.read(reader, row), one.rows))
    n_decoded = one.n_decoded
    for row, piece in zip(one.rows, pieces, strict=True):
        assert torch.equal(piece.waveform, expected(one, row)[1])
    assert n_decoded == 1 or not held


def test_samples_of_all_recordings_share_the_bound(tmp_path, monkeypatch):
    """The second recording is not held while the first one is; after that it may be."""
    for name in ("a", "b", "c"):
        write(tmp_path / "clips" / f"{name}.flac", speechlike(LENGTH_S * RATE_HZ, seed=ord(name)))
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    of = [[row for row in recordings.rows if row["row"] == n] for n in range(3)]
    reader = recordings.reader(LENGTH_S * RATE_HZ * 4 * 3 // 2)
    recordings.read(reader, of[0][0])
    for row in of[1]:
        recordings.read(reader, row)
    assert recordings.n_decoded == 1 + 2
    reader.keep([1])
    for row in of[2]:
        recordings.read(reader, row)
    assert recordings.n_decoded == 1 + 2 + 1
    assert torch.equal(
        recordings.read(reader, of[0][1]).waveform, expected(recordings, of[0][1])[1]
    )


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_a_file_that_changes_between_pieces_is_an_error(one, held):
    """Every later piece fails, also if the size and both ends are as before."""
    reader = one.reader(MAX_HELD_BYTES if held else 0)
    one.read(reader, one.rows[0])
    path = Path(one.source.segment(0).path)
    encoded = bytearray(path.read_bytes())
    encoded[len(encoded) // 2] ^= 1
    path.write_bytes(encoded)
    os.utime(path, ns=(0, 0))
    for row in one.rows[1:]:
        assert "has changed while the pieces" in one.error(reader, row)


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_a_file_that_has_changed_since_planning_is_an_error(one, held):
    """A worker that holds nothing of it yet must not add another content to earlier pieces."""
    path = Path(one.source.segment(0).path)
    write(path, speechlike(LENGTH_S * RATE_HZ, seed=9))
    reader = one.reader(MAX_HELD_BYTES if held else 0)
    for row in one.rows:
        assert "has changed since it was planned" in one.error(reader, row)
    assert one.n_decoded == 0


def test_a_file_that_vanishes_is_an_error(one):
    """Also if its samples are held."""
    reader = one.reader()
    one.read(reader, one.rows[0])
    Path(one.source.segment(0).path).unlink()
    assert "No such file" in one.error(reader, one.rows[1])


def damage(folder: Path) -> None:
    """Overwrite the middle of a flac."""
    path = folder / "a.flac"
    encoded = path.read_bytes()
    middle = len(encoded) // 2
    path.write_bytes(encoded[:middle] + bytes(300) + encoded[middle + 300 :])


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_damage_fails_every_piece_and_is_decoded_once(tmp_path, monkeypatch, held):
    """The reason names the sample where decoding stopped."""
    write(tmp_path / "clips" / "a.flac", speechlike(LENGTH_S * RATE_HZ))
    damage(tmp_path / "clips")
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    reader = recordings.reader(MAX_HELD_BYTES if held else 0)
    words = {recordings.error(reader, row) for row in recordings.rows}
    assert len(words) == 1
    assert "decoding stopped after sample" in words.pop()
    assert recordings.n_decoded == 1


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_another_length_than_planned_is_an_error_of_every_piece(one, held):
    """The message has both lengths: of the header and of the samples."""
    n_samples = LENGTH_S * RATE_HZ
    reader = one.reader(MAX_HELD_BYTES if held else 0)
    for planned in (n_samples - 1, n_samples + 20_000):
        for row in one.rows:
            words = one.error(reader, row | {"n_samples": planned})
            assert f"the header says {planned} samples" in words
            assert f"decoding gave {n_samples};" in words


def test_an_absurd_length_takes_no_memory(tmp_path, monkeypatch):
    """A flac that states half a year at 16 kHz is an error after the samples that exist."""
    path = write(tmp_path / "clips" / "a.flac", speechlike(LENGTH_S * RATE_HZ))
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    path.write_bytes(flac_with_length(path.read_bytes(), 2**36 - 1))
    n_bytes, checksum = recording.fingerprint(recordings.source.segment(0))
    row = recordings.rows[0] | {
        "n_samples": 2**33, "n_bytes": n_bytes, "fingerprint": checksum
    }  # fmt: skip
    monkeypatch.setattr(PieceEncoder.windows.__class__, "plan", first_windows)
    words = recordings.error(recordings.reader(), row)
    assert f"decoding stopped after sample {LENGTH_S * RATE_HZ} of 68719476735" in words


PLAN = Windowing.plan


def first_windows(windowing: Windowing, n_samples: int) -> Any:
    """Plan the first windows only: those of half a year take seconds."""
    return PLAN(windowing, min(n_samples, 100 * RATE_HZ))


@pytest.mark.parametrize("held", [True, False], ids=["held", "cursor"])
def test_an_unexpected_error_does_not_stick(one, held, monkeypatch):
    """After an error that is not about the audio, the piece can be read."""
    reader = one.reader(MAX_HELD_BYTES if held else 0)
    counted = recording.decode_blocks

    def fails(*args: Any) -> Iterator[Decoded]:
        yield next(counted(*args))
        raise MemoryError

    for row in one.rows[:2]:
        if held and row["piece"] > 0:
            break
        monkeypatch.setattr(recording, "decode_blocks", fails)
        with pytest.raises(MemoryError):
            one.read(reader, row)
        monkeypatch.setattr(recording, "decode_blocks", counted)
        assert torch.equal(one.read(reader, row).waveform, expected(one, row)[1])


def test_closing_ends_a_decoding_in_progress(one, monkeypatch):
    """A worker that stops does not wait for hours of audio, and quarantines no piece of it."""
    worker = decoder(one, n_threads=1)
    reached, closed = threading.Event(), threading.Event()

    def slow(*args: Any) -> Iterator[Decoded]:
        for block in decode_blocks(*args):
            yield block
            reached.set()
            assert closed.wait(10)

    monkeypatch.setattr(recording, "decode_blocks", slow)
    task = UnitTask(0, 0, 1, one.plan.unit_rows(0))
    assert len(task.rows) == 1
    worker.begin(task)
    assert reached.wait(10)
    worker.close()
    closed.set()
    with pytest.raises(StoppedError):
        worker.take(task)


def test_dropped_recordings_leave_no_open_file(one):
    """Neither a second pass in the middle nor an error keeps the file open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = one.reader(0)
    for row in one.rows[:3]:
        one.read(reader, row)
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    reader.keep([])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for row in one.rows:
        one.read(reader, row)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def decoder(recordings: Recordings, decode=None, n_threads: int = 2) -> Decoder:
    return Decoder(
        recordings.source.config, recordings.source.segment, decode, PieceEncoder(), n_threads
    )


def test_units_of_one_recording_decode_it_once(one):
    """A worker that begins the next unit before it takes one, as all executors do."""
    worker = decoder(one)
    tasks = [UnitTask(u, u, 1, one.plan.unit_rows(u)) for u in range(one.plan.n_units)]
    assert len(tasks) >= 5
    items = []
    for task, following in zip(tasks, [*tasks[1:], None], strict=True):
        if following is not None:
            worker.begin(following)
        items += worker.take(task)
    worker.close()
    assert one.n_decoded == 1
    assert [item.record.status for item in items] == [records.OK] * len(tasks)
    assert all(item.record.source_rate_hz == RATE_HZ for item in items)


def test_units_without_a_piece_drop_the_recording(tmp_path, monkeypatch):
    """The samples are freed when a unit begins that has no piece of it."""
    write(tmp_path / "clips" / "a.flac", speechlike(LENGTH_S * RATE_HZ))
    for i in range(3):
        write(tmp_path / "clips" / f"b{i}.flac", np.tile(speechlike(8000), 15))
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    worker = decoder(recordings, lambda *args: next(iter(decode_blocks(*args))))
    tasks = [
        UnitTask(u, u, 1, recordings.plan.unit_rows(u)) for u in range(recordings.plan.n_units)
    ]
    worker.take(tasks[0])
    assert list(worker._recordings._recordings) == [0]
    worker.take(tasks[-1])
    assert not worker._recordings._recordings
    worker.close()


def test_decoding_threads_start_no_threads_of_torch(tmp_path, monkeypatch):
    """Each computes alone, sums and products; the caller's number of threads stays."""
    write(tmp_path / "clips" / "a.flac", speechlike(RATE_HZ))
    recordings = Recordings(tmp_path / "clips", monkeypatch)
    found: list[int] = []
    products: list[str] = []

    def counting(segment, rate_hz):
        torch.ones(10**6).sum()
        found.append(torch.get_num_threads())
        products.extend(re.findall(r"mkl_get_max_threads\(\) : (\d+)", parallel_info()))
        return next(iter(decode_blocks(segment, rate_hz)))

    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        worker = decoder(recordings, counting)
        worker.take(UnitTask(0, 0, 1, recordings.plan.unit_rows(0)))
        worker.close()
        assert found == [1]
        assert products in ([], ["1"])  # [] without MKL
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(n_threads)

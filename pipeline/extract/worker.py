"""One unit: decode, encode, place, commit. Knows no Ray.

A worker holds one unit's features in memory and returns only a small report. What it writes is a
function of the plan and the audio alone: the same unit gives the same bytes in any worker with the
same number of threads.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import DatasetConfig
from pipeline.encoder.statistics import MomentAccumulator, Moments
from pipeline.encoder.windows import (
    FRAME_RATE_HZ,
    RECEPTIVE_FIELD_SAMPLES,
    Window,
    n_frames,
)
from pipeline.errors import AudioError, SourceError
from pipeline.extract.audio import Decoded, EncodedAudio, decode, decode_blocks, probe
from pipeline.extract.source import Source, open_source
from pipeline.extract.transfer import Arrival, Transfer
from pipeline.store import records
from pipeline.store.deaths import Probation, Trail
from pipeline.store.layout import Layout
from pipeline.store.plan import make_batches
from pipeline.store.records import Record, records_table
from pipeline.store.writer import UnitBuffer, commit_unit

FLOAT16_MAX = 65504.0


class Encoder(Protocol):
    """What a worker needs of an encoder; `pipeline.encoder.encoder.SpeechEncoder` is one."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that it returns."""

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms that it takes."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def encode_batch(
        self, waveforms: Sequence[Tensor], *, precision: str | None = None
    ) -> tuple[Tensor, list[int]]:
        """Waveforms [n_samples] → features [n_layers, batch, max_frames, dim], and n_frames."""

    def plan_windows(self, n_samples: int) -> tuple[Window, ...]:
        """Windows of an utterance; one for an utterance that is encoded at once."""

    def utterance_stats(self, utterance: Tensor | Moments) -> Any:
        """What a window must know of its whole utterance."""

    def encode_windows(
        self,
        waveform: Tensor,
        windows: Sequence[Window],
        stats: Any,
        *,
        sample_start: int = 0,
        precision: str | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """First frame that a window keeps, and its features [n_layers, n_kept, dim]."""


@dataclass(frozen=True)
class Job:
    """All that a worker must know to do any unit of a run; small, and it pickles.

    Attributes:
        root: The store.
        layout: Its shapes.
        dataset: Where the audio comes from.
        load_encoder: Makes the encoder, in the worker's process.
        max_batch_frames: Bound on the padded frames of a batch.
        threads: CPU threads of a worker.
        decode: Makes a waveform of encoded audio; tests give one that fails as real ones do.
    """

    root: Path
    layout: Layout
    dataset: DatasetConfig
    load_encoder: Callable[[], Encoder]
    max_batch_frames: int
    threads: int
    decode: Callable[[EncodedAudio, int], Decoded] = decode


@dataclass(frozen=True)
class UnitTask:
    """One attempt at one unit.

    Attributes:
        unit: Its number.
        slot: Where to write.
        attempt: 1 for the first one.
        rows: Its rows of the plan.
        probation: Given to a unit that took workers with it: try its utterances alone first.
    """

    unit: int
    slot: int
    attempt: int
    rows: pa.Table
    probation: Probation | None = None


@dataclass(frozen=True)
class UnitReport:
    """What became of an attempt.

    Attributes:
        unit: The unit.
        slot: Where it lies.
        won: False if another attempt had committed it before.
        n_ok: Utterances with features.
        n_quarantined: Utterances without, for a reason.
        n_deferred: Utterances left for a later unit.
        n_fp32: Utterances that had to be encoded again in fp32.
        audio_s: Seconds of audio in the features.
        wall_s: Seconds that it took.
        n_bytes: Bytes written.
        worker: Host and process of the worker, as `host:pid`.
        seconds: Where the time went: decode, encode, copy, write.
    """

    unit: int
    slot: int
    won: bool
    n_ok: int
    n_quarantined: int
    n_deferred: int
    n_fp32: int
    audio_s: float
    wall_s: float
    n_bytes: int
    worker: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Utterance:
    """An utterance, or a piece of one, on its way through a unit."""

    record: Record
    waveform: Tensor | None = None  # [n_samples], from `sample_start` of the utterance on
    sample_start: int = 0
    windows: tuple[Window, ...] = ()  # more than one, or a piece: encoded window by window
    moments: Moments | None = None  # of the whole utterance, for a piece
    start: int = 0  # within the slot
    n_frames: int = 0
    flags: tuple[str, ...] = ()

    @property
    def is_long(self) -> bool:
        """Whether it is encoded window by window."""
        return len(self.windows) > 1 or self.record.n_pieces > 1


class Worker:
    """Does one unit after the other, with one encoder, one source and one buffer."""

    def __init__(
        self, job: Job, encoder: Encoder | None = None, source: Source | None = None
    ) -> None:
        """Opens what is not given."""
        torch.set_num_threads(job.threads)
        self._job = job
        self._encoder = encoder if encoder is not None else job.load_encoder()
        self._source = source if source is not None else open_source(job.dataset)
        self._buffer = UnitBuffer(job.layout)
        self._transfer = Transfer(self._encoder.device)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def extract(self, task: UnitTask) -> UnitReport:
        """Extracts a unit and commits it.

        Raises:
            SourceError: The dataset is not the one that was planned.
            NoSpaceError: The disk is full.
            StoreError: The store cannot be written.
        """
        began = time.perf_counter()
        self._seconds.clear()
        rows = task.rows["row"].to_pylist()
        self._check_source(rows, task.rows["id"].to_pylist())
        if task.probation is not None:
            self._try_each(task, task.probation)
        guilty = task.probation.guilty if task.probation else {}
        with self._clock("decode"), ThreadPoolExecutor(self._job.threads) as pool:
            utterances = list(
                pool.map(
                    lambda row: self._decode(row, guilty.get(row["position"])),
                    task.rows.to_pylist(),
                )
            )
        used = self._place(utterances)
        self._buffer.start(used)
        self._encode([item for item in utterances if item.waveform is not None])
        done = [self._finish(item, task.slot) for item in utterances]
        index = records_table(done, task.unit, task.slot, self._source.metadata(rows))
        with self._clock("write"):
            outcome = commit_unit(self._job.root, self._buffer, task.unit, task.slot, index)
        return self._report(task, done, outcome.won, outcome.n_bytes, began)

    def _check_source(self, rows: list[int], planned: list[str]) -> None:
        ids = self._source.ids()
        if max(rows) >= len(ids) or ids.take(pa.array(rows)).to_pylist() != planned:
            raise SourceError(
                "the dataset that this worker sees is not the one that was planned: its ids "
                "differ; make sure that every node sees the same data"
            )

    def _try_each(self, task: UnitTask, probation: Probation) -> None:
        """Decodes and encodes each utterance alone, for nothing but to see who survives it."""
        with Trail(self._job.root, task.slot) as trail:
            for row in task.rows.to_pylist():
                position = row["position"]
                if position < probation.start or position in probation.guilty:
                    continue
                trail.at(position, row["id"])
                item = self._decode(row)
                self._place([item])
                if item.waveform is not None:
                    self._encode([item])

    def _decode(self, row: dict[str, Any], guilty: str | None = None) -> _Utterance:
        record = Record(
            id=row["id"],
            row=row["row"],
            position=row["position"],
            status=records.OK,
            piece=row["piece"],
            n_pieces=row["n_pieces"],
        )
        if guilty is not None:
            return _Utterance(_quarantined(record, guilty))
        try:
            if record.n_pieces > 1:
                return self._decode_piece(record, row)
            return self._decode_whole(record)
        except AudioError as error:
            return _Utterance(_quarantined(record, str(error)))

    def _decode_whole(self, record: Record) -> _Utterance:
        decoded = self._job.decode(self._source.audio(record.row), self._encoder.sample_rate_hz)
        n_samples = len(decoded.waveform)
        windows = self._encoder.plan_windows(n_samples)
        flags = [records.FLAG_PADDED] if n_samples < RECEPTIVE_FIELD_SAMPLES else []
        flags += [records.FLAG_WINDOWED] if len(windows) > 1 else []
        return _Utterance(
            replace(record, n_samples=n_samples, source_rate_hz=decoded.source_rate_hz),
            decoded.waveform,
            windows=windows,
            n_frames=n_frames(n_samples),
            flags=tuple(flags),
        )

    def _decode_piece(self, record: Record, row: dict[str, Any]) -> _Utterance:
        """Keeps one piece's samples of a recording that streams by, and the moments of all."""
        audio, rate_hz = self._source.audio(record.row), self._encoder.sample_rate_hz
        first, last = row["piece_start"], row["piece_start"] + row["n_frames"]
        windows = tuple(
            window
            for window in self._encoder.plan_windows(row["n_samples"])
            if first <= window.keep_start < last
        )
        low, high = windows[0].sample_start, windows[-1].sample_stop
        moments = MomentAccumulator()
        kept: list[Tensor] = []
        n_samples = 0
        for block in decode_blocks(audio, rate_hz):
            moments.update(block)
            own = block[max(0, low - n_samples) : max(0, high - n_samples)]
            if len(own):
                kept.append(own.clone())
            n_samples += len(block)
        if n_samples != row["n_samples"]:
            raise AudioError(
                f"the header says {row['n_samples']} samples at {rate_hz} Hz, decoding gave "
                f"{n_samples}; a recording longer than a unit must say its length: rewrite the file"
            )
        return _Utterance(
            replace(
                record, n_samples=n_samples, source_rate_hz=probe(audio, rate_hz).source_rate_hz
            ),
            torch.cat(kept),
            sample_start=low,
            windows=windows,
            moments=moments.finish(),
            n_frames=row["n_frames"],
            flags=(records.FLAG_WINDOWED,),
        )

    def _place(self, utterances: list[_Utterance]) -> int:
        """Gives every decoded utterance its frames, in order; returns how many are taken.

        A header that lied can make a unit larger than planned: what does not fit is deferred.
        """
        capacity = self._job.layout.frames_per_unit
        used = 0
        for item in utterances:
            if item.waveform is None:
                continue
            if item.n_frames > capacity:
                reason = (
                    f"{item.n_frames} frames, longer than a unit of {capacity}, which is too small "
                    "to be cut at windows: give plan.frames_per_unit at least a window's frames"
                )
                item.record, item.waveform = _quarantined(item.record, reason), None
            elif used + item.n_frames > capacity:
                reason = "longer than its header said: moved to a later unit"
                item.record = replace(item.record, status=records.DEFERRED, reason=reason)
                item.waveform = None
            else:
                item.start = used
                used += item.n_frames
        return used

    def _encode(self, utterances: list[_Utterance]) -> None:
        short = [item for item in utterances if not item.is_long]
        lengths = np.array([item.n_frames for item in short], np.int64)
        waiting: deque[tuple[list[_Utterance], Arrival]] = deque()
        for batch in make_batches(lengths, self._job.max_batch_frames):
            members = [short[int(i)] for i in batch]
            with self._clock("encode"):
                waiting.append((members, self._transfer.begin(self._encode_batch(members))))
            if len(waiting) > self._transfer.depth:
                self._receive(*waiting.popleft())
        while waiting:
            self._receive(*waiting.popleft())
        for item in utterances:
            if item.is_long:
                self._encode_long(item)
                item.waveform = None

    def _encode_long(self, item: _Utterance) -> None:
        """Encodes window by window; a window depends on no other, so pieces join exactly."""
        waveform = item.waveform
        assert waveform is not None  # only decoded utterances are encoded
        with self._clock("encode"):
            stats = self._encoder.utterance_stats(item.moments or waveform)
        first = item.windows[0].keep_start
        for window in item.windows:
            with self._clock("encode"):
                features = self._encode_window(waveform, window, stats, item)
            with self._clock("copy"):
                self._store(item, item.start + window.keep_start - first, features)

    def _encode_window(
        self, waveform: Tensor, window: Window, stats: Any, item: _Utterance
    ) -> Tensor:
        start = item.sample_start
        for precision in (None, "fp32"):
            [(_, features)] = self._encoder.encode_windows(
                waveform, [window], stats, sample_start=start, precision=precision
            )
            if _fits(features):
                break
            if precision is None and records.FLAG_FP32 not in item.flags:
                item.flags = (*item.flags, records.FLAG_FP32)
        return features

    def _encode_batch(self, members: list[_Utterance], precision: str | None = None) -> Tensor:
        waveforms = [item.waveform for item in members if item.waveform is not None]
        features, lengths = self._encoder.encode_batch(waveforms, precision=precision)
        planned = [item.n_frames for item in members]
        if list(lengths) != planned:
            raise AssertionError(f"the encoder returned {lengths} frames, expected {planned}")
        return features

    def _receive(self, members: list[_Utterance], arrival: Arrival) -> None:
        """Puts a batch into the unit; encoded in fp32 if the reduced precision does not hold it."""
        with self._clock("encode"):
            features = arrival()
            if not _fits(features):
                features = self._encode_batch(members, precision="fp32")
                for item in members:
                    item.flags = (*item.flags, records.FLAG_FP32)
        with self._clock("copy"):
            for i, item in enumerate(members):
                self._store(item, item.start, features[:, i, : item.n_frames])
                item.waveform = None

    def _store(self, item: _Utterance, start: int, features: Tensor) -> None:
        """Copies features [n_layers, n_frames, dim] into the unit as float16."""
        if item.record.status != records.OK:
            return
        half = features.to(torch.float16).cpu() if features.is_cuda else features
        if _fits(half):
            stop = start + features.shape[1]
            torch.from_numpy(self._buffer.frames)[:, start:stop].copy_(half)
            return
        item.record = _quarantined(item.record, _misfit(features, self._encoder.layers))
        self._buffer.blank(item.start, item.start + item.n_frames)

    def _finish(self, item: _Utterance, slot: int) -> Record:
        if item.record.status != records.OK:
            return item.record
        stop = item.start + item.n_frames
        with self._clock("copy"):
            checksums = self._buffer.seal(item.record.position, item.start, stop)
        return replace(
            item.record,
            frame_start=self._job.layout.slot_start(slot) + item.start,
            n_frames=item.n_frames,
            flags=item.flags,
            crc32c=checksums,
        )

    def _report(
        self, task: UnitTask, done: list[Record], won: bool, n_bytes: int, began: float
    ) -> UnitReport:
        statuses = Counter(record.status for record in done)
        frames = sum(record.n_frames for record in done if record.status == records.OK)
        return UnitReport(
            unit=task.unit,
            slot=task.slot,
            won=won,
            n_ok=statuses[records.OK],
            n_quarantined=statuses[records.QUARANTINED],
            n_deferred=statuses[records.DEFERRED],
            n_fp32=sum(records.FLAG_FP32 in record.flags for record in done),
            audio_s=frames / FRAME_RATE_HZ,
            wall_s=time.perf_counter() - began,
            n_bytes=n_bytes,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            seconds=dict(self._seconds),
        )

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - began


def _quarantined(record: Record, reason: str) -> Record:
    return replace(record, status=records.QUARANTINED, reason=reason)


def _fits(features: Tensor) -> bool:
    """Whether all values are finite and within float16; one pass, NaN propagates."""
    low, high = torch.aminmax(features)
    return bool(low >= -FLOAT16_MAX) and bool(high <= FLOAT16_MAX)


def _misfit(features: Tensor, layers: tuple[int, ...]) -> str:
    for layer, values in zip(layers, features, strict=True):
        if not bool(torch.isfinite(values).all()):
            return f"layer {layer} is not finite, even in fp32"
        largest = float(values.abs().max())
        if largest > FLOAT16_MAX:
            return f"layer {layer} reaches {largest:.3g}, more than float16 holds"
    raise AssertionError("every layer fits")

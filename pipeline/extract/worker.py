"""A worker: decode, encode, write and commit one unit after another, in any executor.

A worker holds one unit's features in memory and returns only small reports. While it encodes a
unit, other threads decode the next unit, write final features, and commit the previous unit. The
stored bytes depend only on the plan and the audio: a unit gives the same bytes in any
worker with the same number of threads.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch

from pipeline.encoders.base import Encoder
from pipeline.errors import SourceError
from pipeline.extract.messages import Job, UnitReport, UnitTask
from pipeline.extract.stages.decode import Decoder, Utterance
from pipeline.extract.stages.encode import EncodeStage, Means
from pipeline.extract.stages.timing import Stopwatch
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.coordination.worker_failures import Isolation, UtteranceMarker
from pipeline.store.format import records
from pipeline.store.format.records import Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import CommitOutcome, SlotWriter

__all__ = ["Job", "UnitReport", "UnitTask", "Worker"]

STAGES = ("decode", "wait", "front_end", "transformer", "copy", "write")
"""Stages of a unit, in the order in which its report names them."""


@dataclass
class _Unit:
    """State of one unit from its start to its commit.

    Attributes:
        task: The attempt.
        writer: Writes the buffer to the attempt's slot.
        start_s: `time.perf_counter()` when the worker began to extract the unit.
        utterances: Its decoded utterances, in order.
        checksums: Checksums of each utterance that is being written, by position.
        remaining_writes: Writes of the frames after the last utterance, and the completion of all.
        seconds: Seconds per stage of `STAGES`.
        write_s: Seconds of writing; only the writing thread changes it.
        n_halved: Batches that were halved because the device was out of memory.
    """

    task: UnitTask
    writer: SlotWriter
    start_s: float
    utterances: list[Utterance] = field(default_factory=list)
    checksums: dict[int, Future[tuple[int, ...]]] = field(default_factory=dict)
    remaining_writes: list[Future[None]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    write_s: float = 0.0
    n_halved: int = 0


class Worker:
    """Extracts one unit after another, with one encoder, one source and one buffer.

    Create it in the thread that encodes: PyTorch keeps a thread pool per calling thread.
    """

    def __init__(
        self, job: Job, encoder: Encoder | None = None, source: Source | None = None
    ) -> None:
        """Start a worker.

        Args:
            job: What to extract, and how.
            encoder: A loaded encoder; None loads it.
            source: The opened dataset; None opens it.
        """
        torch.set_num_threads(job.threads)
        self._job = job
        encoder = encoder if encoder is not None else job.load_encoder()
        self._frame_rate_hz = encoder.geometry.frame_rate_hz
        self._source = source if source is not None else open_source(job.dataset)
        self._decoder = Decoder(self._source, job.decode, encoder, _decode_threads(job, encoder))
        self._watch = Stopwatch(encoder.device)
        self._buffer = UnitBuffer(job.layout)
        self._encode_stage = EncodeStage(encoder, job.layout, job.max_batch_frames, self._watch)
        self._writing = ThreadPoolExecutor(1, "write")
        self._buffer_free: Future[None] | None = None  # completes when the buffer is free

    def prefetch(self, task: UnitTask) -> None:
        """Start decoding a unit before `extract` or `begin` is called for it; thread-safe.

        An isolated unit is not prefetched: its utterances are first tried one at a time.
        """
        if task.isolation is None:
            self._decoder.begin(task)

    def extract(self, task: UnitTask) -> UnitReport:
        """Extract a unit and commit it.

        Raises:
            SourceError: The dataset is not the one that was planned.
            NoSpaceError: The disk is full.
            StoreError: The store cannot be written.
        """
        return self.begin(task).result()

    def begin(self, task: UnitTask) -> Future[UnitReport]:
        """Encode a unit; the writing thread completes its writes and commits it.

        Returns:
            Future report, done once the unit is committed; it raises what `extract` raises.
        """
        unit = _Unit(
            task,
            SlotWriter(self._job.backend, self._buffer, task.unit, task.slot),
            time.perf_counter(),
        )
        rows = task.rows["row"].to_pylist()
        self._check_source(rows, task.rows["id"].to_pylist())
        self._watch.take()  # drop the times of a unit that failed
        with self._watch.host("wait"):
            self._wait_for_buffer()
        if task.isolation is not None:
            self._try_each(task, task.isolation)
        with self._watch.host("wait"):
            unit.utterances = self._decoder.take(task)
        try:
            self._encode(unit)
        except BaseException:
            self._writing.submit(unit.writer.discard).result()
            raise
        unit.seconds = self._watch.take()
        return self._writing.submit(self._commit, unit, self._source.metadata(rows))

    def close(self) -> None:
        """Stop the threads; a unit that is being decoded is dropped."""
        self._decoder.close()
        self._writing.shutdown()

    def _encode(self, unit: _Unit) -> None:
        """Encode a unit; submit each utterance for writing as soon as its features are final."""

        def on_final(item: Utterance, means: Means | None) -> None:
            unit.writer.check()
            written = self._writing.submit(self._write, unit, item, means)
            unit.checksums[item.record.position] = written

        used = self._encode_stage.place(unit.utterances)
        self._buffer.start(used)
        unit.n_halved = self._encode_stage.encode(unit.utterances, self._buffer, on_final)
        end = self._job.layout.frames_per_unit
        unit.remaining_writes.append(self._writing.submit(unit.writer.write, used, end))
        self._buffer_free = self._writing.submit(unit.writer.complete)
        unit.remaining_writes.append(self._buffer_free)

    def _wait_for_buffer(self) -> None:
        if self._buffer_free is not None:
            wait([self._buffer_free])  # its exception is reported with its own unit
            self._buffer_free = None

    def _check_source(self, rows: list[int], planned: list[str]) -> None:
        ids = self._source.ids()
        if max(rows) >= len(ids) or ids.take(pa.array(rows)).to_pylist() != planned:
            raise SourceError(
                "this worker's dataset is not the planned one: its ids differ; make sure that "
                "every node reads the same data"
            )

    def _try_each(self, task: UnitTask, isolation: Isolation) -> None:
        """Decode and encode each utterance separately, to find the culprit."""
        with UtteranceMarker(self._job.backend, task.slot) as marker:
            for row in task.rows.to_pylist():
                position = row["position"]
                if position < isolation.start or position in isolation.culprits:
                    continue
                marker.set(position, row["id"])
                item = self._decoder.decode(row)
                self._encode_stage.place([item])
                self._encode_stage.encode([item], self._buffer, lambda item, means: None)

    def _write(self, unit: _Unit, item: Utterance, means: Means | None) -> tuple[int, ...]:
        """Write an utterance's frames, blank or not; return its checksums, if it has any."""
        start_s = time.perf_counter()
        start, stop = item.start, item.start + item.n_frames
        checksums: tuple[int, ...] = ()
        if item.is_ok:
            checksums = self._buffer.seal(item.record.position, start, stop, means)
        unit.writer.write(start, stop)
        unit.write_s += time.perf_counter() - start_s
        return checksums

    def _commit(self, unit: _Unit, metadata: pa.Table) -> UnitReport:
        """Complete a unit's writes and commit it; runs in the writing thread."""
        start_s = time.perf_counter()
        task = unit.task
        with unit.writer:
            for written in unit.remaining_writes:
                written.result()
            finished = [self._finish(item, unit) for item in unit.utterances]
            outcome = unit.writer.commit(records_table(finished, task.unit, task.slot, metadata))
        unit.seconds["write"] = unit.write_s + time.perf_counter() - start_s
        unit.seconds["decode"] = sum(item.decode_s for item in unit.utterances)
        return _report(unit, finished, outcome, self._frame_rate_hz)

    def _finish(self, item: Utterance, unit: _Unit) -> Record:
        """Return an utterance's index record, with its place in the store and its checksums."""
        position = item.record.position
        checksums = unit.checksums[position].result() if position in unit.checksums else ()
        if not item.is_ok:
            return item.record
        return replace(
            item.record,
            frame_start=self._job.layout.slot_start(unit.task.slot) + item.start,
            n_frames=item.n_frames,
            flags=item.flags,
            crc32c=checksums,
        )


def _decode_threads(job: Job, encoder: Encoder) -> int:
    """Return the number of decoding threads: half on a CPU, which also encodes; all with a GPU."""
    return job.threads if encoder.device.type == "cuda" else max(1, job.threads // 2)


def _report(
    unit: _Unit, finished: list[Record], outcome: CommitOutcome, frame_rate_hz: float
) -> UnitReport:
    statuses = Counter(record.status for record in finished)
    frames = sum(record.n_frames for record in finished if record.status == records.OK)
    return UnitReport(
        unit=unit.task.unit,
        slot=unit.task.slot,
        won=outcome.won,
        n_ok=statuses[records.OK],
        n_quarantined=statuses[records.QUARANTINED],
        n_deferred=statuses[records.DEFERRED],
        n_fp32=sum(records.FLAG_FP32 in record.flags for record in finished),
        audio_s=frames / frame_rate_hz,
        wall_s=time.perf_counter() - unit.start_s,
        n_bytes=outcome.n_bytes,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        n_halved=unit.n_halved,
        seconds={stage: unit.seconds[stage] for stage in STAGES if stage in unit.seconds},
    )

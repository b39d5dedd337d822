"""One unit after the other: decode, encode, write, commit. Knows no Ray.

A worker holds one unit's features in memory and returns only small reports. While a unit is
encoded the next one is decoded, what is final of its own features is written, and the unit before
it is brought to the disk and committed. What is written is a function of the plan and the audio
alone: the same unit gives the same bytes in any worker with the same number of threads.
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
from pipeline.extract.stages.encode import Filler
from pipeline.extract.stages.timing import Stopwatch
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.coordination.worker_failures import Probation, Trail
from pipeline.store.format import records
from pipeline.store.format.records import Record, records_table
from pipeline.store.write.slot import CommitOutcome, SlotWriter, UnitBuffer

__all__ = ["Job", "UnitReport", "UnitTask", "Worker"]

STAGES = ("decode", "wait", "front_end", "transformer", "copy", "write")


@dataclass
class _Unit:
    """A unit on its way through the worker."""

    task: UnitTask
    writer: SlotWriter
    began_s: float
    utterances: list[Utterance] = field(default_factory=list)
    sealed: dict[int, Future[tuple[int, ...]]] = field(default_factory=dict)  # by position
    rest: list[Future[None]] = field(default_factory=list)  # what is written beside utterances
    seconds: dict[str, float] = field(default_factory=dict)
    write_s: float = 0.0  # touched by the writing thread only


class Worker:
    """Does one unit after the other, with one encoder, one source and one buffer.

    It must be made in the thread that encodes: PyTorch keeps a pool of threads for each caller.
    """

    def __init__(
        self, job: Job, encoder: Encoder | None = None, source: Source | None = None
    ) -> None:
        """Opens what is not given."""
        torch.set_num_threads(job.threads)
        self._job = job
        encoder = encoder if encoder is not None else job.load_encoder()
        self._frame_rate_hz = encoder.geometry.frame_rate_hz
        self._source = source if source is not None else open_source(job.dataset)
        self._decoder = Decoder(self._source, job.decode, encoder, _decode_threads(job, encoder))
        self._watch = Stopwatch(encoder.device)
        self._buffer = UnitBuffer(job.layout)
        self._filler = Filler(encoder, self._buffer, job.max_batch_frames, self._watch)
        self._writing = ThreadPoolExecutor(1, "write")
        self._in_use: Future[None] | None = None  # until the unit before needs no buffer any more

    def prefetch(self, task: UnitTask) -> None:
        """Begins to decode a unit that `extract` or `begin` will be asked for; from any thread.

        A unit on probation is left alone: its utterances are to be tried one by one.
        """
        if task.probation is None:
            self._decoder.begin(task)

    def extract(self, task: UnitTask) -> UnitReport:
        """Extracts a unit and commits it.

        Raises:
            SourceError: The dataset is not the one that was planned.
            NoSpaceError: The disk is full.
            StoreError: The store cannot be written.
        """
        return self.begin(task).result()

    def begin(self, task: UnitTask) -> Future[UnitReport]:
        """Encodes a unit, and leaves the rest of its writing and its commit to a thread.

        Returns:
            The report, once the unit is committed; raises what `extract` does.
        """
        unit = _Unit(
            task,
            SlotWriter(self._job.backend, self._buffer, task.unit, task.slot),
            time.perf_counter(),
        )
        rows = task.rows["row"].to_pylist()
        self._check_source(rows, task.rows["id"].to_pylist())
        self._watch.take()  # nothing of a unit that failed is held against this one
        with self._watch.host("wait"):
            self._wait_for_buffer()
        if task.probation is not None:
            self._try_each(task, task.probation)
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
        """Ends the threads; a unit that is being decoded is dropped."""
        self._decoder.close()
        self._writing.shutdown()

    def _encode(self, unit: _Unit) -> None:
        """Encodes a unit; each utterance is handed on to be written as soon as it is final."""

        def settled(item: Utterance) -> None:
            unit.writer.check()
            unit.sealed[item.record.position] = self._writing.submit(self._write, unit, item)

        used = self._filler.place(unit.utterances)
        self._buffer.start(used)
        self._filler.fill(unit.utterances, settled)
        end = self._job.layout.frames_per_unit
        unit.rest.append(self._writing.submit(unit.writer.write, used, end))
        self._in_use = self._writing.submit(unit.writer.complete)
        unit.rest.append(self._in_use)

    def _wait_for_buffer(self) -> None:
        if self._in_use is not None:
            wait([self._in_use])  # how it ended is its own unit's business
            self._in_use = None

    def _check_source(self, rows: list[int], planned: list[str]) -> None:
        ids = self._source.ids()
        if max(rows) >= len(ids) or ids.take(pa.array(rows)).to_pylist() != planned:
            raise SourceError(
                "the dataset that this worker sees is not the one that was planned: its ids "
                "differ; make sure that every node sees the same data"
            )

    def _try_each(self, task: UnitTask, probation: Probation) -> None:
        """Decodes and encodes each utterance alone, for nothing but to see who survives it."""
        with Trail(self._job.backend, task.slot) as trail:
            for row in task.rows.to_pylist():
                position = row["position"]
                if position < probation.start or position in probation.guilty:
                    continue
                trail.at(position, row["id"])
                item = self._decoder.decode(row)
                self._filler.place([item])
                self._filler.fill([item], lambda item: None)

    def _write(self, unit: _Unit, item: Utterance) -> tuple[int, ...]:
        """Writes an utterance's frames, blank ones too; returns its checksums if it has any."""
        began = time.perf_counter()
        start, stop = item.start, item.start + item.n_frames
        checksums: tuple[int, ...] = ()
        if item.is_ok:
            checksums = self._buffer.seal(item.record.position, start, stop)
        unit.writer.write(start, stop)
        unit.write_s += time.perf_counter() - began
        return checksums

    def _commit(self, unit: _Unit, metadata: pa.Table) -> UnitReport:
        began = time.perf_counter()
        task = unit.task
        with unit.writer:
            for written in unit.rest:
                written.result()
            done = [self._finish(item, unit) for item in unit.utterances]
            outcome = unit.writer.commit(records_table(done, task.unit, task.slot, metadata))
        unit.seconds["write"] = unit.write_s + time.perf_counter() - began
        unit.seconds["decode"] = sum(item.decode_s for item in unit.utterances)
        return _report(unit, done, outcome, self._frame_rate_hz)

    def _finish(self, item: Utterance, unit: _Unit) -> Record:
        position = item.record.position
        checksums = unit.sealed[position].result() if position in unit.sealed else ()
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
    """Decoding is a small part of the work; only where a GPU encodes are the CPUs free for it."""
    return job.threads if encoder.device.type == "cuda" else max(1, job.threads // 2)


def _report(
    unit: _Unit, done: list[Record], outcome: CommitOutcome, frame_rate_hz: float
) -> UnitReport:
    statuses = Counter(record.status for record in done)
    frames = sum(record.n_frames for record in done if record.status == records.OK)
    return UnitReport(
        unit=unit.task.unit,
        slot=unit.task.slot,
        won=outcome.won,
        n_ok=statuses[records.OK],
        n_quarantined=statuses[records.QUARANTINED],
        n_deferred=statuses[records.DEFERRED],
        n_fp32=sum(records.FLAG_FP32 in record.flags for record in done),
        audio_s=frames / frame_rate_hz,
        wall_s=time.perf_counter() - unit.began_s,
        n_bytes=outcome.n_bytes,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        seconds={stage: unit.seconds[stage] for stage in STAGES if stage in unit.seconds},
    )

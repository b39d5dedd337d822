"""A worker: decode, encode, write and commit one unit after another, in any executor.

A worker holds the features of one unit in memory, or of two with a GPU, and returns only small
reports. While it encodes a unit, other threads decode the next unit, write final features, and
commit the previous unit. The
stored bytes depend only on the plan and the audio: a unit gives the same bytes in any
worker with the same number of threads.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch

from pipeline.audio.decode import decode
from pipeline.audio.probe import count_channels
from pipeline.encoders.base import Encoder
from pipeline.errors import SourceError, WeightsError
from pipeline.extract.messages import DeviceLostError, Job, UnitReport, UnitTask
from pipeline.extract.stages.decode import Decoder, Utterance
from pipeline.extract.stages.encode import EncodeStage
from pipeline.extract.stages.timing import Stopwatch
from pipeline.extract.stages.write import UnitWrite, WriteStage
from pipeline.sources.base import Segment, Source
from pipeline.store.coordination.visibility import await_claim
from pipeline.store.coordination.worker_failures import Isolation, UtteranceMarker
from pipeline.store.format import records
from pipeline.store.format.identity import compare
from pipeline.store.format.records import Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import CommitOutcome

__all__ = ["Job", "UnitReport", "UnitTask", "Worker"]

STAGES = ("decode", "wait", "front_end", "transformer", "copy", "seal", "write", "commit")
"""Stages of a unit, in the order in which its report names them."""


@dataclass
class _Unit:
    """State of one unit from its start to its commit.

    Attributes:
        task: The attempt.
        write: Writes its features to the attempt's slot.
        start_s: `time.perf_counter()` when the worker began to extract the unit.
        utterances: Its decoded utterances, in order.
        seconds: Seconds per stage of `STAGES`.
        n_halved: Batches that were halved because the device was out of memory.
    """

    task: UnitTask
    write: UnitWrite
    start_s: float
    utterances: list[Utterance] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    n_halved: int = 0


class Worker:
    """Extracts one unit after another, with one encoder and one source.

    Create it in the thread that encodes: PyTorch keeps a thread pool per calling thread.
    """

    def __init__(
        self, job: Job, encoder: Encoder | None = None, source: Source | None = None
    ) -> None:
        """Start a worker.

        Args:
            job: What to extract, and how.
            encoder: A loaded encoder; None loads it.
            source: The opened dataset; None opens it if the job needs it.

        Raises:
            WeightsError: The loaded encoder is not that of the store.
        """
        torch.set_num_threads(job.threads)
        self._job = job
        encoder = encoder if encoder is not None else job.load_encoder()
        _check_identity(encoder, job)
        self._device = encoder.device
        if self._device.type == "cuda" and self._device.index is not None:
            torch.cuda.set_device(self._device)  # each thread has a current device, at first cuda:0
        self._geometry = encoder.geometry
        if source is None and job.opens_source:
            from pipeline.sources.opening import open_source  # imports datasets: most of a second

            source = open_source(job.dataset, count_channels)
        self._source = source
        n_decode_threads = _decode_threads(job, encoder)
        decode_ = job.decode or decode
        self._decoder = Decoder(job.dataset, self._segment, decode_, encoder, n_decode_threads)
        self._watch = Stopwatch(encoder.device)
        self._encode_stage = EncodeStage(encoder, job.layout, job.max_batch_frames, self._watch)
        self._write_stage = WriteStage(job, encoder.device)
        self._threads = {"decode": n_decode_threads, "write": self._write_stage.n_threads}

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
            StoreError: The store cannot be written, or the claim on the slot cannot be seen here.
            DeviceLostError: The GPU has failed.
        """
        return self.begin(task).result()

    def begin(self, task: UnitTask) -> Future[UnitReport]:
        """Encode a unit; other threads complete its writes and commit it.

        Returns:
            Future report, done once the unit is committed; it raises what `extract` raises.
        """
        start_s = time.perf_counter()
        self._check_source(task)
        self._watch.take()  # drop the times of a unit that failed
        with self._watch.host("wait"):
            if task.claim is not None:
                await_claim(self._job.backend, task.claim)
            unit = _Unit(task, self._write_stage.begin(task), start_s)
        try:
            self._encode(unit)
            metadata = self._metadata(task)
            return self._write_stage.commit(lambda: self._commit(unit, metadata))
        except BaseException as error:
            is_lost = self._is_device_lost()
            unit.write.abort()
            if is_lost:
                raise DeviceLostError(f"{self._device} has failed: {error}") from error
            raise

    def interrupt(self) -> None:
        """Make `begin` raise after the current batch; called from any thread."""
        self._watch.stop()
        self._decoder.close()

    def close(self) -> None:
        """Commit the units that are encoded, and stop the threads."""
        self._decoder.close()
        self._write_stage.close()

    def _encode(self, unit: _Unit) -> None:
        """Encode a unit; submit each utterance for writing as soon as its features are final."""
        task, write = unit.task, unit.write
        if task.isolation is not None:
            self._try_each(task, task.isolation, write.buffer)
        with self._watch.host("wait"):
            unit.utterances = self._decoder.take(task)
        used = self._encode_stage.place(unit.utterances)
        write.buffer.start(used)
        unit.n_halved = self._encode_stage.encode(unit.utterances, write.buffer, write.add)
        write.finish(used)
        unit.seconds = self._watch.take()

    def _is_device_lost(self) -> bool:
        """Wait until a GPU no longer copies into the buffer of a unit that failed.

        Returns:
            Whether the GPU computes nothing more in this process: after some errors, such as an
            illegal memory access or one that ECC finds, every later call of CUDA fails.
        """
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize(self._device)
            except RuntimeError:
                return True
        return False

    def _segment(self, row: int) -> Segment:
        """Return the audio of a row of this worker's source."""
        return self._opened_source.segment(row)

    @property
    def _opened_source(self) -> Source:
        if self._source is None:
            raise ValueError("the job opens no source, but a task has a row of it as a place")
        return self._source

    def _metadata(self, task: UnitTask) -> pa.Table:
        if task.labels is not None:
            return task.labels
        return self._opened_source.metadata(task.rows["row"].to_pylist())

    def _check_source(self, task: UnitTask) -> None:
        """Check that the places that are rows of the source have the planned ids there."""
        pairs = zip(task.all_places(), task.rows["id"].to_pylist(), strict=True)
        planned = {place: name for place, name in pairs if isinstance(place, int)}
        if not planned:
            return
        ids = self._opened_source.ids()
        if max(planned) >= len(ids) or any(ids[i].as_py() != name for i, name in planned.items()):
            raise SourceError(
                "this worker's dataset is not the planned one: its ids differ; make sure that "
                "every node reads the same data"
            )

    def _try_each(self, task: UnitTask, isolation: Isolation, buffer: UnitBuffer) -> None:
        """Decode and encode each utterance separately, to find the culprit."""
        with UtteranceMarker(self._job.backend, task.slot) as marker:
            for row, place in zip(task.rows.to_pylist(), task.all_places(), strict=True):
                position = row["position"]
                if position < isolation.start or position in isolation.culprits:
                    continue
                marker.set(position, row["id"])
                item = self._decoder.decode(row, place)
                self._encode_stage.place([item])
                self._encode_stage.encode([item], buffer, lambda item, statistics: None)

    def _commit(self, unit: _Unit, metadata: pa.Table) -> UnitReport:
        """Wait for a unit's writes and commit it; runs in the committing thread."""
        task, write = unit.task, unit.write
        try:
            write.wait()
            finished = [self._finish(item, unit) for item in unit.utterances]
            outcome = write.commit(records_table(finished, task.unit, task.slot, metadata))
        except BaseException:
            write.abort()
            raise
        decode_s = sum(item.decode_s for item in unit.utterances)
        unit.seconds |= {"decode": decode_s, **write.seconds}
        return self._report(unit, finished, outcome)

    def _finish(self, item: Utterance, unit: _Unit) -> Record:
        """Return an utterance's index record, with its place in the store and its checksums."""
        if not item.is_ok:
            return item.record
        return replace(
            item.record,
            frame_start=self._job.layout.slot_start(unit.task.slot) + item.start,
            n_frames=item.n_frames,
            flags=item.flags,
            crc32c=unit.write.checksums(item),
        )

    def _audio_s(self, record: Record) -> float:
        """Return the seconds of audio of a record; those of all pieces sum to the recording's."""
        share = record.n_frames / self._geometry.n_frames(record.n_samples)
        return share * record.n_samples / self._geometry.sample_rate_hz

    def _report(self, unit: _Unit, finished: list[Record], outcome: CommitOutcome) -> UnitReport:
        statuses = Counter(record.status for record in finished)
        done = [record for record in finished if record.status == records.OK]
        return UnitReport(
            unit=unit.task.unit,
            slot=unit.task.slot,
            won=outcome.won,
            n_ok=statuses[records.OK],
            n_quarantined=statuses[records.QUARANTINED],
            n_deferred=statuses[records.DEFERRED],
            n_fp32=sum(records.FLAG_FP32 in record.flags for record in finished),
            audio_s=sum(map(self._audio_s, done)),
            wall_s=time.perf_counter() - unit.start_s,
            n_bytes=outcome.n_bytes,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            n_halved=unit.n_halved,
            seconds={stage: unit.seconds[stage] for stage in STAGES if stage in unit.seconds},
            threads=self._threads,
        )


def _check_identity(encoder: Encoder, job: Job) -> None:
    """Check that the weights are still those that the driver read."""
    if job.encoder_identity is None:
        return
    differences = compare(job.encoder_identity, encoder.identity)
    if differences:
        raise WeightsError(
            f"this worker's encoder is not that of the store: {'; '.join(differences)}. Were the "
            "weights replaced during the run, or do nodes hold different files? Restore them, and "
            "run the same command again"
        )


def _decode_threads(job: Job, encoder: Encoder) -> int:
    """Return the number of decoding threads: half on a CPU, which also encodes; all with a GPU."""
    return job.threads if encoder.device.type == "cuda" else max(1, job.threads // 2)

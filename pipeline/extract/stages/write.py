"""The write stage: from features in a unit's buffer to its commit, in threads of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, TypeVar

import pyarrow as pa
import torch

from pipeline.extract.messages import Job, UnitTask
from pipeline.extract.stages.decode import Utterance
from pipeline.extract.stages.encode import Statistics
from pipeline.extract.stages.page_locked import allocator
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import CommitOutcome, SlotWriter

PART_BYTES = 4 * 10**6
"""Features that a writing thread takes at a time, about; more would leave other threads idle."""
SYNC_THREADS = 4
"""Files of a unit that are synced at a time. These threads only wait."""

T = TypeVar("T")


def n_buffers(device: torch.device) -> int:
    """Return the number of units whose features a worker has in memory at a time.

    On a CPU one: encoding a unit takes ten times as long as writing it or longer, each utterance is
    written as soon as it is encoded, and memory limits the number of workers. On a GPU a unit may
    take less time to encode than to write: with two buffers the device fills one while the other
    is written, and neither waits for the other unless it is slower.
    """
    return 2 if device.type == "cuda" else 1


def write_threads(device: torch.device, threads: int) -> int:
    """Return the number of threads that compute checksums and statistics, and write.

    A thread passes about 1.5 GB/s. On a GPU up to 8 threads, as the host has little else to do; on
    a CPU one or two, because the encoder needs the cores.

    Args:
        device: Device of the encoder.
        threads: CPU threads of the worker.
    """
    return min(8, max(2, threads // 2)) if device.type == "cuda" else min(2, threads)


class WriteStage:
    """Writes and commits units. One unit's features are written while others are encoded.

    Args:
        job: The store, and its layout.
        device: Device of the encoder.

    Attributes:
        n_threads: Threads that compute checksums and statistics, and write.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job = job
        self._allocate = allocator(device)
        self._n_unallocated = n_buffers(device)
        self._free: SimpleQueue[UnitBuffer] = SimpleQueue()
        self.n_threads = write_threads(device, job.threads)
        self._writing = ThreadPoolExecutor(self.n_threads, "write")
        self._syncing = ThreadPoolExecutor(SYNC_THREADS, "sync")
        self._committing = ThreadPoolExecutor(1, "commit")

    def begin(self, task: UnitTask) -> UnitWrite:
        """Wait for a free buffer and begin to write a unit. End with `commit` or `abort`."""
        if self._free.empty() and self._n_unallocated:
            buffer = UnitBuffer(self._job.layout, self._allocate)
            self._n_unallocated -= 1  # not if there is no memory: `get` would wait for ever
        else:
            buffer = self._free.get()
        writer = SlotWriter(self._job.backend, buffer, task.unit, task.slot, self._sync)
        return UnitWrite(buffer, writer, self._writing, self._free)

    def commit(self, function: Callable[[], T]) -> Future[T]:
        """Call a function that commits a unit; units are committed one after the other."""
        return self._committing.submit(function)

    def close(self) -> None:
        """Commit the units that are encoded, and stop the threads."""
        for threads in (self._committing, self._writing, self._syncing):
            threads.shutdown()

    def _sync(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Call a function with each item in parallel; return or raise when all calls have ended."""
        calls = [self._syncing.submit(function, item) for item in items]
        wait(calls)
        return [call.result() for call in calls]


class UnitWrite:
    """The writing of one unit: `add` each placed utterance, `finish`, then `commit`.

    Args:
        buffer: The unit's buffer.
        writer: Writes the buffer to the attempt's slot.
        threads: Writes parts of the unit.
        free: Receives the buffer once it may be reused.

    Attributes:
        buffer: The unit's features, until `finish`.
    """

    def __init__(
        self,
        buffer: UnitBuffer,
        writer: SlotWriter,
        threads: ThreadPoolExecutor,
        free: SimpleQueue[UnitBuffer],
    ) -> None:
        self.buffer, self._writer = buffer, writer
        self._threads, self._free = threads, free
        self._layout = buffer.layout
        self._waiting: list[tuple[Utterance, Statistics | None]] = []
        self._waiting_frames = 0
        self._parts: list[Future[None]] = []
        self._completed: Future[None] | None = None
        self._checksums: dict[int, list[int]] = {}  # by position, per layer
        self._part_s: list[tuple[float, float]] = []  # checksums and statistics, writing
        self._commit_s = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of all writing threads, and of the commit, by stage."""
        seal_s, write_s = (sum(spent) for spent in zip(*self._part_s, strict=True))
        return {"seal": seal_s, "write": write_s, "commit": self._commit_s}

    def add(self, item: Utterance, statistics: Statistics | None) -> None:
        """Write a placed utterance, whose frames in the buffer are final.

        Args:
            item: The utterance; its frames are blank if it was quarantined.
            statistics: Those of its frames, float32 `[n_statistics, n_layers, dim]`; None computes
                them.

        Raises:
            StoreError: A part of the unit could not be written.
        """
        self._writer.check()
        self._checksums[item.record.position] = [0] * self._layout.n_layers
        self._waiting.append((item, statistics))
        self._waiting_frames += item.n_frames
        if self._bytes(self._waiting_frames) >= PART_BYTES:
            self._submit_waiting()

    def finish(self, used: int) -> None:
        """Write the rest: the frames from `used`, the indices of the shards, the chunks."""
        self._submit_waiting()
        end = self._layout.frames_per_unit
        for layers in self._split(end - used):
            self._parts.append(self._threads.submit(self._write_blank, used, end, layers))
        # Threads take the parts in order: none of those before this one is still in the queue.
        self._completed = self._threads.submit(self._complete)

    def checksums(self, item: Utterance) -> tuple[int, ...]:
        """Return crc32c of each layer of an utterance, after `wait`; see `UnitBuffer.checksums`."""
        return tuple(self._checksums[item.record.position])

    def wait(self) -> None:
        """Wait until all is written; raise the first error."""
        assert self._completed is not None  # `finish` was called
        wait([*self._parts, self._completed])
        for part in (*self._parts, self._completed):
            part.result()

    def commit(self, index: pa.Table) -> CommitOutcome:
        """Commit the unit, after `wait`; see `SlotWriter.commit`."""
        start_s = time.perf_counter()
        try:
            return self._writer.commit(index)
        finally:
            self._commit_s = time.perf_counter() - start_s

    def abort(self) -> None:
        """Remove what was written, once no thread writes any more. Does nothing after a commit."""
        wait(self._parts)
        if self._completed is None:
            self._completed = Future()
            self._free.put(self.buffer)
        else:
            wait([self._completed])
        self._writer.discard()

    def _submit_waiting(self) -> None:
        items, self._waiting = self._waiting, []
        for layers in self._split(self._waiting_frames):
            self._parts.append(self._threads.submit(self._write, items, layers))
        self._waiting_frames = 0

    def _write(self, items: list[tuple[Utterance, Statistics | None]], layers: range) -> None:
        """Write some layers of utterances: statistics, checksum and write of one layer at a time.

        So the bytes of a layer are read while they are in the CPU's cache.
        """
        seal_s = write_s = 0.0
        last_s = time.perf_counter()
        for axis in layers:
            layer = slice(axis, axis + 1)
            for item, statistics in items:
                start, stop, position = item.start, item.start + item.n_frames, item.record.position
                if item.is_ok:
                    if self._layout.keeps_pooled:
                        self.buffer.pool(position, start, stop, statistics, layer)
                    [crc] = self.buffer.checksums(position, start, stop, layer)
                    self._checksums[position][axis] = crc
                sealed_s = time.perf_counter()
                self._writer.write(start, stop, layer)
                seal_s, write_s = seal_s + sealed_s - last_s, write_s - sealed_s
                last_s = time.perf_counter()
                write_s += last_s
        self._part_s.append((seal_s, write_s))

    def _write_blank(self, start: int, stop: int, layers: range) -> None:
        start_s = time.perf_counter()
        self._writer.write(start, stop, slice(layers.start, layers.stop))
        self._part_s.append((0.0, time.perf_counter() - start_s))

    def _complete(self) -> None:
        """Complete the shards once all parts are written, and free the buffer."""
        try:
            wait(self._parts)
            start_s = time.perf_counter()
            self._writer.complete()
            self._part_s.append((0.0, time.perf_counter() - start_s))
        finally:
            self._free.put(self.buffer)

    def _bytes(self, n_frames: int) -> int:
        return n_frames * self._layout.n_layers * self._layout.frame_bytes

    def _split(self, n_frames: int) -> list[range]:
        """Split the layers of frames into parts of about `PART_BYTES`; none for no frames."""
        n_layers = self._layout.n_layers
        n_parts = min(n_layers, -(-self._bytes(n_frames) // PART_BYTES))
        ends = [n_layers * i // n_parts for i in range(n_parts + 1)] if n_parts else []
        return [range(a, b) for a, b in pairwise(ends)]

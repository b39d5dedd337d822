"""Decoding of a unit's utterances, in threads that run while the encoder computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.content import file_stamp
from pipeline.audio.shared import SharedFiles
from pipeline.audio.types import Decoded
from pipeline.config import DatasetConfig
from pipeline.encoders.base import Encoder
from pipeline.encoders.windows import Window
from pipeline.errors import AudioError, SourceError, counted
from pipeline.extract.messages import Place, UnitTask
from pipeline.extract.stages.recording import RecordingReader, check_unchanged
from pipeline.sources.base import Segment
from pipeline.sources.location import check_reachable, describe_location, is_missing
from pipeline.sources.remote.uri import is_remote
from pipeline.store.format import records
from pipeline.store.format.records import Record
from pipeline.store.format.tombstones import is_tombstone

REMOTE_THREADS = 16
"""Utterances that are decoded at once if they are in a bucket: each waits for its requests."""
MOST_VANISHED = 20
"""Files in a row that are missing although they were read for the plan: with so many the dataset is
being removed or unmounted."""
_GONE = "the dataset did not have it any more when its unit was extracted"


@dataclass
class Utterance:
    """An utterance, or a piece of one, while its unit is processed.

    Attributes:
        record: Its index record.
        waveform: float32 `[n_samples]` at the encoder's rate; None if it is quarantined, deferred
            or already encoded.
        sample_start: Position of `waveform[0]` in the utterance, in samples.
        windows: Windows of the waveform.
        statistics: If it is long, the result of `Encoder.utterance_stats` for the whole
            utterance; else None.
        start: First frame within the slot.
        n_frames: Number of frames.
        flags: Flags of the record.
        decode_s: Seconds that decoding took.
    """

    record: Record
    waveform: Tensor | None = None
    sample_start: int = 0
    windows: tuple[Window, ...] = ()
    statistics: Any = None
    start: int = 0
    n_frames: int = 0
    flags: tuple[str, ...] = ()
    decode_s: float = 0.0

    @property
    def is_long(self) -> bool:
        """Whether it is encoded window by window: a piece, or more than one window."""
        return len(self.windows) > 1 or self.record.n_pieces > 1

    @property
    def is_ok(self) -> bool:
        """Whether it has not been quarantined."""
        return self.record.status == records.OK

    def quarantine(self, reason: str) -> None:
        """Exclude it from the store's features; the index records the reason."""
        self.record = replace(self.record, status=records.QUARANTINED, reason=reason)

    def drop(self) -> None:
        """Leave it out, because it was dropped from the store before."""
        self.record = replace(self.record, status=records.DROPPED)


class Decoder:
    """Decoder of whole units: the next unit is decoded while the current one is encoded.

    Args:
        dataset: The dataset.
        segment: Returns the audio of a row of the source, for places that are rows.
        decode: Function that decodes a segment at a sample rate.
        encoder: Encoder that determines the sample rate and the windows.
        n_threads: Number of utterances decoded in parallel.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        segment: Callable[[int], Segment],
        decode: Callable[[Segment, int], Decoded],
        encoder: Encoder,
        n_threads: int,
    ) -> None:
        self._dataset, self._segment, self._encoder = dataset, segment, encoder
        self._recordings = RecordingReader(encoder)
        self._files = SharedFiles(decode, n_threads + 1)  # one recording ends, the next one begins
        self._pool = decoding_pool(n_threads)
        self._remote_pool: ThreadPoolExecutor | None = None  # started when it is needed
        self._starting = threading.Lock()
        self._futures: dict[int, list[Future[Utterance]]] = {}
        self._n_vanished = 0  # since a file was there, about: threads count together
        self._cut_rows: dict[int, set[int]] = {}  # source rows of the pieces of each begun slot

    def begin(self, task: UnitTask) -> None:
        """Start to decode a unit, unless it has been started. Errors are raised by `take`."""
        if task.slot in self._futures:
            return
        culprits = task.isolation.culprits if task.isolation else {}
        rows, places = task.rows.to_pylist(), task.all_places()
        pool = self._pool_for_remote() if any(map(_is_remote, places)) else self._pool
        self._cut_rows[task.slot] = {row["row"] for row in rows if row["n_pieces"] > 1}
        self._recordings.keep(set().union(*list(self._cut_rows.values())))
        self._futures[task.slot] = [
            pool.submit(self.decode, row, place, culprits.get(row["position"]))
            for row, place in zip(rows, places, strict=True)
        ]

    def take(self, task: UnitTask) -> list[Utterance]:
        """Wait until a unit is decoded; return its utterances in order."""
        self.begin(task)
        futures = self._futures.pop(task.slot)
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            del self._cut_rows[task.slot]

    def decode(
        self, row: dict[str, Any], place: Place, quarantine_reason: str | None = None
    ) -> Utterance:
        """Decode one utterance, or quarantine it.

        Args:
            row: Its row of the plan.
            place: Where its audio is; it is quarantined if the dataset does not have it, unless it
                was dropped from the store.
            quarantine_reason: Reason to quarantine it without decoding; None to decode it.

        Returns:
            The utterance, quarantined if it is unreadable, and dropped if it was before.

        Raises:
            SourceError: It is unreadable because the whole dataset is gone.
        """
        record = Record(
            id=row["id"],
            row=row["row"],
            position=row["position"],
            status=records.OK,
            piece=row["piece"],
            n_pieces=row["n_pieces"],
        )
        item = Utterance(record)
        if is_tombstone(record.id):
            item.drop()
            return item
        if quarantine_reason is not None or place is None:
            item.quarantine(quarantine_reason or _GONE)
            return item
        start_s = time.perf_counter()
        segment = place if isinstance(place, Segment) else self._segment(place)
        try:
            read = self._piece if record.n_pieces > 1 else self._whole
            item = read(record, row, segment)
        except AudioError as error:
            check_reachable(self._dataset, segment.path)
            self._check_vanished(row, segment)
            item.quarantine(str(error))
        else:
            self._n_vanished = 0
        item.decode_s = time.perf_counter() - start_s
        return item

    def _check_vanished(self, row: dict[str, Any], segment: Segment) -> None:
        """Raise a SourceError if too many planned files in a row are missing."""
        if not row["n_bytes"] or segment.path is None or not is_missing(segment.path):
            self._n_vanished = 0
            return
        self._n_vanished += 1
        if self._n_vanished >= MOST_VANISHED:
            raise SourceError(
                f"{counted(self._n_vanished, 'file')} in a row of "
                f"{describe_location(self._dataset)} have vanished since they were planned, last "
                f"{segment.path}, so none of them is quarantined: bring them back and run the "
                "same command again"
            )

    def close(self) -> None:
        """Cancel the decodings that have not started, and drop the recordings."""
        self._recordings.close()
        for pool in (self._pool, self._remote_pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._files.close()

    def _pool_for_remote(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._remote_pool is None:
                self._files.keep(REMOTE_THREADS + 1)
                self._remote_pool = decoding_pool(REMOTE_THREADS)
            return self._remote_pool

    def _whole(self, record: Record, row: dict[str, Any], segment: Segment) -> Utterance:
        encoder, geometry = self._encoder, self._encoder.geometry
        stamp = file_stamp(segment)
        decoded = self._files.decode(segment, geometry.sample_rate_hz)
        check_unchanged(segment, row, stamp)  # afterwards: a file replaced since is noticed, too
        n_samples = len(decoded.waveform)
        windows = encoder.windows.plan(n_samples)
        flags = [records.FLAG_PADDED] if n_samples < geometry.n_samples(1) else []
        flags += [records.FLAG_WINDOWED] if len(windows) > 1 else []
        flags += decoded.flags
        return Utterance(
            replace(record, n_samples=n_samples, source_rate_hz=decoded.source_rate_hz),
            decoded.waveform,
            windows=windows,
            statistics=encoder.utterance_stats(decoded.waveform) if len(windows) > 1 else None,
            n_frames=geometry.n_frames(n_samples),
            flags=tuple(flags),
        )

    def _piece(self, record: Record, row: dict[str, Any], segment: Segment) -> Utterance:
        piece = self._recordings.read(segment, row)
        return Utterance(
            replace(record, n_samples=row["n_samples"], source_rate_hz=piece.source_rate_hz),
            piece.waveform,
            sample_start=piece.sample_start,
            windows=piece.windows,
            statistics=self._encoder.utterance_stats(piece.statistics),
            n_frames=row["n_frames"],
            flags=(records.FLAG_WINDOWED, *piece.flags),
        )


def _is_remote(place: Place) -> bool:
    return isinstance(place, Segment) and place.data is None and is_remote(place.path)


def decoding_pool(n_threads: int) -> ThreadPoolExecutor:
    """Start threads in each of which torch computes in that thread alone.

    Otherwise torch starts `torch.get_num_threads()` threads for each of them. The number is a
    property of a thread, but setting it also changes the default for threads to come, so it is set
    back once all have started.
    """
    default = torch.get_num_threads()
    all_started = threading.Barrier(n_threads)

    def limit() -> None:
        torch.get_num_threads()  # sets the default, which would otherwise replace the limit later
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(n_threads, "decode")
    for started in [pool.submit(limit) for _ in range(n_threads)]:
        started.result()
    torch.set_num_threads(default)
    return pool

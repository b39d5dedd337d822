"""Decoding of a unit's utterances, in threads that run while the encoder computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.decode import decode_blocks
from pipeline.audio.probe import probe
from pipeline.audio.types import Decoded
from pipeline.encoders.base import Encoder
from pipeline.encoders.windows import Window
from pipeline.errors import AudioError
from pipeline.extract.messages import UnitTask
from pipeline.sources.base import Segment, Source
from pipeline.store.format import records
from pipeline.store.format.records import Record


@dataclass
class Utterance:
    """An utterance, or a piece of one, while its unit is processed.

    Attributes:
        record: Its index record.
        waveform: float32 `[n_samples]` at the encoder's rate; None if it is quarantined, deferred
            or already encoded.
        sample_start: Position of `waveform[0]` in the utterance, in samples.
        windows: Windows of the waveform.
        statistics: For a piece, the result of `StatisticsAccumulator.finish` for the whole
            recording; else None.
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


class Decoder:
    """Decoder of whole units: the next unit is decoded while the current one is encoded.

    Args:
        source: The dataset.
        decode: Function that decodes a segment at a sample rate.
        encoder: Encoder that determines the sample rate and the windows.
        n_threads: Number of utterances decoded in parallel.
    """

    def __init__(
        self,
        source: Source,
        decode: Callable[[Segment, int], Decoded],
        encoder: Encoder,
        n_threads: int,
    ) -> None:
        self._source, self._decode, self._encoder = source, decode, encoder
        self._pool = ThreadPoolExecutor(n_threads, "decode")
        self._futures: dict[int, list[Future[Utterance]]] = {}

    def begin(self, task: UnitTask) -> None:
        """Start to decode a unit, unless it has been started. Errors are raised by `take`."""
        if task.slot in self._futures:
            return
        culprits = task.isolation.culprits if task.isolation else {}
        self._futures[task.slot] = [
            self._pool.submit(self.decode, row, culprits.get(row["position"]))
            for row in task.rows.to_pylist()
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

    def decode(self, row: dict[str, Any], quarantine_reason: str | None = None) -> Utterance:
        """Decode one utterance, or quarantine it.

        Args:
            row: Its row of the plan.
            quarantine_reason: Reason to quarantine it without decoding; None to decode it.

        Returns:
            The utterance, quarantined if it is unreadable.
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
        if quarantine_reason is not None:
            item.quarantine(quarantine_reason)
            return item
        start_s = time.perf_counter()
        try:
            item = self._piece(record, row) if record.n_pieces > 1 else self._whole(record)
        except AudioError as error:
            item.quarantine(str(error))
        item.decode_s = time.perf_counter() - start_s
        return item

    def close(self) -> None:
        """Cancel the decodings that have not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _whole(self, record: Record) -> Utterance:
        geometry = self._encoder.geometry
        decoded = self._decode(self._source.segment(record.row), geometry.sample_rate_hz)
        n_samples = len(decoded.waveform)
        windows = self._encoder.windows.plan(n_samples)
        flags = [records.FLAG_PADDED] if n_samples < geometry.n_samples(1) else []
        flags += [records.FLAG_WINDOWED] if len(windows) > 1 else []
        return Utterance(
            replace(record, n_samples=n_samples, source_rate_hz=decoded.source_rate_hz),
            decoded.waveform,
            windows=windows,
            n_frames=geometry.n_frames(n_samples),
            flags=tuple(flags),
        )

    def _piece(self, record: Record, row: dict[str, Any]) -> Utterance:
        """Decode a recording block by block; keep the piece's samples and the statistics of all."""
        segment, rate_hz = self._source.segment(record.row), self._encoder.geometry.sample_rate_hz
        first, last = row["piece_start"], row["piece_start"] + row["n_frames"]
        windows = tuple(
            window
            for window in self._encoder.windows.plan(row["n_samples"])
            if first <= window.keep_start < last
        )
        low, high = windows[0].sample_start, windows[-1].sample_stop
        statistics = self._encoder.statistics_accumulator()
        kept: list[Tensor] = []
        n_samples = 0
        for block in decode_blocks(segment, rate_hz):
            statistics.update(block)
            overlap = block[max(0, low - n_samples) : max(0, high - n_samples)]
            if len(overlap):
                kept.append(overlap.clone())
            n_samples += len(block)
        if n_samples != row["n_samples"]:
            raise AudioError(
                f"the header says {row['n_samples']} samples at {rate_hz} Hz, decoding gave "
                f"{n_samples}; a recording longer than a unit must say its length: rewrite the file"
            )
        return Utterance(
            replace(
                record, n_samples=n_samples, source_rate_hz=probe(segment, rate_hz).source_rate_hz
            ),
            torch.cat(kept),
            sample_start=low,
            windows=windows,
            statistics=statistics.finish(),
            n_frames=row["n_frames"],
            flags=(records.FLAG_WINDOWED,),
        )

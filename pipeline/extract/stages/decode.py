"""The audio of a unit: its utterances, decoded on threads beside the encoder."""

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
    """An utterance, or a piece of one, on its way through a unit."""

    record: Record
    waveform: Tensor | None = None  # [n_samples], from `sample_start` of the utterance on
    sample_start: int = 0
    windows: tuple[Window, ...] = ()  # more than one, or a piece: encoded window by window
    statistics: Any = None  # sums of the whole utterance, for a piece
    start: int = 0  # within the slot
    n_frames: int = 0
    flags: tuple[str, ...] = ()
    decode_s: float = 0.0

    @property
    def is_long(self) -> bool:
        """Whether it is encoded window by window."""
        return len(self.windows) > 1 or self.record.n_pieces > 1

    @property
    def is_ok(self) -> bool:
        """Whether nothing speaks against it so far."""
        return self.record.status == records.OK

    def quarantine(self, reason: str) -> None:
        """Gives it up."""
        self.record = replace(self.record, status=records.QUARANTINED, reason=reason)


class Decoder:
    """Decodes units, each as a whole; the next one while the one before is encoded.

    Args:
        source: Where the audio is.
        decode: Makes a waveform of encoded audio.
        encoder: Whose rate and windows are asked for.
        n_threads: Utterances that are decoded at once.
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
        self._begun: dict[int, list[Future[Utterance]]] = {}

    def begin(self, task: UnitTask) -> None:
        """Begins to decode a unit, unless it is begun; what goes wrong is raised by `take`."""
        if task.slot in self._begun:
            return
        guilty = task.probation.guilty if task.probation else {}
        self._begun[task.slot] = [
            self._pool.submit(self.decode, row, guilty.get(row["position"]))
            for row in task.rows.to_pylist()
        ]

    def take(self, task: UnitTask) -> list[Utterance]:
        """The utterances of a unit, in order, as soon as all are decoded."""
        self.begin(task)
        futures = self._begun.pop(task.slot)
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def decode(self, row: dict[str, Any], guilty: str | None = None) -> Utterance:
        """One utterance; an unreadable one, or one that is `guilty`, comes back quarantined."""
        record = Record(
            id=row["id"],
            row=row["row"],
            position=row["position"],
            status=records.OK,
            piece=row["piece"],
            n_pieces=row["n_pieces"],
        )
        item = Utterance(record)
        if guilty is not None:
            item.quarantine(guilty)
            return item
        began = time.perf_counter()
        try:
            item = self._piece(record, row) if record.n_pieces > 1 else self._whole(record)
        except AudioError as error:
            item.quarantine(str(error))
        item.decode_s = time.perf_counter() - began
        return item

    def close(self) -> None:
        """Begins nothing further."""
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
        """Keeps one piece's samples of a recording that streams by, and the statistics of all."""
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
            own = block[max(0, low - n_samples) : max(0, high - n_samples)]
            if len(own):
                kept.append(own.clone())
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

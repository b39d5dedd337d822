"""Reading of the pieces of long recordings, without decoding the recording for every piece.

A piece needs the statistics of the whole recording and its own samples. The first pass over a
recording computes the statistics, and keeps all samples if they fit in `MAX_HELD_BYTES`; then the
recording is decoded once. Otherwise a second pass reads forward from piece to piece. A piece before
the position of that pass starts it again.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.content import file_stamp
from pipeline.audio.decode import decode_blocks
from pipeline.audio.probe import fingerprint
from pipeline.audio.types import Decoded
from pipeline.encoders.base import Encoder
from pipeline.encoders.windows import Window
from pipeline.errors import AudioError
from pipeline.extract.stages.timing import StoppedError
from pipeline.sources.base import Segment
from pipeline.sources.remote.uri import is_remote

MAX_HELD_BYTES = 1 << 28
"""Samples that a worker holds of all its recordings: 256 MiB, 70 minutes at 16 kHz. An mp3, or a
file that only FFmpeg reads, is decoded whole and held whatever its size."""

_SAMPLE_BYTES = 4
_CHANGED_SINCE_PLANNED = (
    "the audio has changed since it was planned: its size, or its first or last 4 KiB; restore the "
    "file, or plan it again with retry_quarantined=true"
)

_CHANGED_WHILE_DECODED = (
    "the audio has changed since it was planned: its file was replaced or written while it was "
    "decoded; plan it again with retry_quarantined=true"
)


def check_unchanged(segment: Segment, row: dict[str, Any], stamp: tuple[int, ...] | None) -> None:
    """Compare the encoded audio with what was planned, if it could be read then.

    Args:
        segment: The audio, which has been decoded.
        row: Its row of the plan.
        stamp: `file_stamp(segment)` from before it was decoded: a file that was another one then
            may be the planned one again.

    Raises:
        AudioError: Its size, or its first or last 4 KiB, have changed; its file was replaced or
            written while it was decoded; or it is missing.
    """
    if file_stamp(segment) != stamp:
        raise AudioError(_CHANGED_WHILE_DECODED)
    if row["n_bytes"] and fingerprint(segment) != (row["n_bytes"], row["fingerprint"]):
        raise AudioError(_CHANGED_SINCE_PLANNED)


@dataclass(frozen=True)
class Piece:
    """The decoded samples of a piece.

    Attributes:
        waveform: float32 `[n_samples]` at the encoder's rate; nothing else refers to it.
        sample_start: Position of `waveform[0]` in the recording, in samples.
        windows: Windows of the piece.
        statistics: Result of `StatisticsAccumulator.finish` for the whole recording; shared by
            its pieces, which do not change it.
        source_rate_hz: Native sample rate in Hz.
        flags: Flags of the recording's audio.
    """

    waveform: Tensor
    sample_start: int
    windows: tuple[Window, ...]
    statistics: Any
    source_rate_hz: int
    flags: tuple[str, ...]


class RecordingReader:
    """Reader of the pieces of recordings; thread-safe.

    Pieces of one recording are read one at a time, those of different recordings in parallel.

    Args:
        encoder: Encoder that determines the sample rate, the windows and the statistics.
        max_held_bytes: Bound on the samples held of all recordings.
    """

    def __init__(self, encoder: Encoder, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._encoder = encoder
        self._max_held_bytes = max_held_bytes
        self._lock = threading.Lock()
        self._recordings: dict[int, _Recording] = {}
        self._closed = threading.Event()

    def read(self, segment: Segment, row: dict[str, Any]) -> Piece:
        """Read a piece.

        Args:
            segment: The whole recording.
            row: The piece's row of the plan.

        Raises:
            AudioError: The recording cannot be decoded, has another length than planned, or has
                changed since it was planned or while its pieces were read.
            StoppedError: The reader was closed.
        """
        last = row["piece_start"] + row["n_frames"]
        windows, next_low = [], row["n_samples"]
        for window in self._encoder.windows.plan(row["n_samples"]):
            if window.keep_start >= last:
                next_low = window.sample_start
                break
            if window.keep_start >= row["piece_start"]:
                windows.append(window)
        low, high = windows[0].sample_start, windows[-1].sample_stop
        recording = self._recording(segment, row)
        waveform = recording.read(segment, low, min(high, row["n_samples"]), next_low)
        return Piece(
            waveform,
            low,
            tuple(windows),
            recording.statistics,
            recording.source_rate_hz,
            recording.flags,
        )

    def keep(self, rows: Collection[int]) -> None:
        """Drop all recordings except those of the given source rows."""
        with self._lock:
            for row in self._recordings.keys() - set(rows):
                del self._recordings[row]

    def close(self) -> None:
        """Drop all recordings; a read in progress raises StoppedError."""
        self._closed.set()
        self.keep(())

    def _recording(self, segment: Segment, row: dict[str, Any]) -> _Recording:
        """Return the recording of a planned row, a new one unless it is known."""
        planned = (row["n_samples"], row["n_bytes"], row["fingerprint"])
        with self._lock:
            known = self._recordings.get(row["row"])
            if known is not None and known.planned == planned:
                return known
            others = sum(r.held_bytes for n, r in self._recordings.items() if n != row["row"])
            n_bytes = row["n_samples"] * _SAMPLE_BYTES
            is_held = others + n_bytes <= self._max_held_bytes
            new = _Recording(planned, self._encoder, n_bytes if is_held else 0, self._closed)
            self._recordings[row["row"]] = new
            return new


class _Recording:
    """A recording whose pieces are being read.

    Attributes:
        planned: Samples, bytes and fingerprint of the plan.
        held_bytes: Bytes of samples that the first pass keeps; 0: only those of one piece.
        statistics: See `Piece`; set by the first successful `read`, as are the following.
        source_rate_hz: Native sample rate in Hz.
        flags: Flags of the recording's audio.
    """

    def __init__(
        self,
        planned: tuple[int, int, int],
        encoder: Encoder,
        held_bytes: int,
        closed: threading.Event,
    ) -> None:
        self.planned, self.held_bytes = planned, held_bytes
        self.statistics: Any = None
        self.source_rate_hz = 0
        self.flags: tuple[str, ...] = ()
        self._encoder, self._closed = encoder, closed
        self._lock = threading.Lock()
        self._file_state: tuple[int, int] | None = None
        self._is_decoded = False
        self._error: str | None = None  # of the recording, so of every piece
        self._samples: Tensor | None = None  # all of them
        self._cursor: _Cursor | None = None

    def read(self, segment: Segment, low: int, high: int, next_low: int) -> Tensor:
        """Return a copy of the samples from `low` to `high`.

        Args:
            segment: The recording.
            low: First sample.
            high: Sample after the last one, at most the planned number of samples.
            next_low: First sample of the next piece.
        """
        with self._lock:
            if self._error is not None:
                raise AudioError(self._error)
            try:
                self._check_state(segment)  # first: what is compared then is also what is decoded
                if fingerprint(segment) != self.planned[1:]:
                    raise AudioError(_CHANGED_SINCE_PLANNED)
                samples = self._read(segment, low, high, next_low)
                self._check_state(segment)
            except AudioError as error:
                self._error, self._samples, self._cursor = str(error), None, None
                raise
            except BaseException:
                self._cursor = None
                raise
            return samples

    def _read(self, segment: Segment, low: int, high: int, next_low: int) -> Tensor:
        if not self._is_decoded:
            return self._first_pass(segment, low, high)
        if self._samples is not None:
            return self._samples[low:high].clone()
        if self._cursor is None or low < self._cursor.start:
            self._cursor = _Cursor(self._blocks(segment))
        samples = self._cursor.read(low, high, next_low)
        if len(samples) < high - low:
            raise AudioError("the recording ended earlier when it was decoded again")
        if next_low >= self.planned[0]:
            self._cursor = None  # that was the last piece
        return samples

    def _first_pass(self, segment: Segment, low: int, high: int) -> Tensor:
        """Decode the whole recording: the statistics, and the samples of one piece or all."""
        n_planned = self.planned[0]
        first, stop = (0, n_planned) if self.held_bytes else (low, high)
        kept = torch.empty(stop - first)  # float32; a wrong length takes no memory before its end
        accumulator = self._encoder.statistics_accumulator()
        n_samples = 0
        for decoded in self._blocks(segment):
            block = decoded.waveform
            accumulator.update(block)
            if len(block) == n_planned:  # decoded whole, so it is in memory already
                first, kept = 0, block
            else:
                part = block[max(0, first - n_samples) : max(0, stop - n_samples)]
                at = max(0, n_samples - first)
                kept[at : at + len(part)] = part
            n_samples += len(block)
            self.source_rate_hz, self.flags = decoded.source_rate_hz, decoded.flags
        if n_samples != n_planned:
            raise AudioError(
                f"the header says {n_planned} samples at "
                f"{self._encoder.geometry.sample_rate_hz} Hz, decoding gave {n_samples}; a "
                "recording longer than a unit must say its length: rewrite the file"
            )
        self.statistics = accumulator.finish()
        self._is_decoded = True
        if len(kept) < n_planned:
            return kept
        self._samples, self.held_bytes = kept, n_planned * _SAMPLE_BYTES
        return kept[low:high].clone()

    def _blocks(self, segment: Segment) -> Iterator[Decoded]:
        return _blocks_until(self._closed, segment, self._encoder.geometry.sample_rate_hz)

    def _check_state(self, segment: Segment) -> None:
        """Compare the size and the modification time of the file with those at the first call."""
        if segment.data is not None or segment.path is None or is_remote(segment.path):
            return
        try:
            status = Path(segment.path).stat()
        except OSError as error:
            raise AudioError(f"the file cannot be opened: {error.strerror}") from error
        state = (status.st_size, status.st_mtime_ns)
        if self._file_state not in (None, state):
            raise AudioError("the file has changed while the pieces of the recording were read")
        self._file_state = state


def _blocks_until(
    closed: threading.Event, segment: Segment, sample_rate_hz: int
) -> Iterator[Decoded]:
    """Decode a recording until the worker is closed. Refers to no recording, which refers to it."""
    for block in decode_blocks(segment, sample_rate_hz):
        if closed.is_set():
            raise StoppedError("the worker is closing")
        yield block


class _Cursor:
    """Forward pass over the blocks of a recording, from which pieces are taken in order.

    Args:
        blocks: All blocks of the recording.

    Attributes:
        start: First sample that can still be read.
    """

    def __init__(self, blocks: Iterator[Decoded]) -> None:
        self.start = 0
        self._blocks = blocks
        self._kept = torch.empty(0)  # the samples from `start` to `_stop`
        self._stop = 0

    def read(self, low: int, high: int, next_low: int) -> Tensor:
        """Return the samples from `low` to `high`, and keep those from `next_low` on.

        Args:
            low: First sample, at least `start`.
            high: Sample after the last one.
            next_low: First sample of the next piece, at least `low`.
        """
        parts = [self._kept[low - self.start :]]
        while self._stop < high:
            decoded = next(self._blocks, None)
            if decoded is None:
                break
            block = decoded.waveform
            parts.append(block[max(0, low - self._stop) :])
            self._stop += len(block)
        samples = torch.cat(parts)
        self._kept = samples[max(0, next_low - low) :].clone()
        self.start = self._stop - len(self._kept)
        return samples[: high - low]

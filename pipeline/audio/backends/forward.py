"""Reading of many segments of a file that has no exact seek, in one forward pass of libsndfile."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.audio.backends.mpg123_messages import captured, tell_of_damage
from pipeline.audio.backends.soundfile import (
    INCOMPLETE,
    SMALL_BLOCK,
    UNKNOWN_SAMPLES,
    decode_error,
    is_opus,
    mono_of,
    read_block,
)
from pipeline.audio.content import (
    beyond_end,
    check_channel,
    is_clipped,
    reaches_end,
    sample_range,
)
from pipeline.audio.levels import Levels
from pipeline.audio.types import NativeAudio
from pipeline.errors import AudioError
from pipeline.store.format.records import FLAG_DAMAGED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.audio.streams import OggGap
    from pipeline.sources.base import Segment

_HELD_S = 60
"""Seconds before the current segment that are held, for segments that overlap or are unsorted."""


class ForwardReader:
    """Reader of the segments of a file that has no exact seek, in one forward pass.

    Args:
        file: Result of `soundfile.open_file`, not read from yet.
        gap: Where an ogg is damaged; None if it is not.
        is_damaged: Whether the decoder told of damage when it opened the file.
    """

    def __init__(self, file: Any, gap: OggGap | None = None, is_damaged: bool = False) -> None:
        self._file, self._gap = file, gap
        self._damage: tuple[int, int] | None = (0, 0) if is_damaged else None
        """First sample, and sample after the last one, of the first block with damage."""
        self._held: deque[NDArray[np.float32]] = deque()  # the last blocks
        self._held_start = self._position = 0
        self._has_ended = False
        self._error: AudioError | None = None

    def can_read(self, segment: Segment) -> bool:
        """Return whether the segment does not begin before the samples that are held."""
        return self._start(segment) >= self._held_start

    def read(self, segment: Segment) -> NativeAudio | None:
        """Read a segment with the result of `decode`; its flags are those of the samples.

        Returns:
            The samples; None if only `decode` shows whether the segment ends before a damage, or
            what is wrong with the end of the file, which the segment reaches.

        Raises:
            AudioError: As for `decode`.
        """
        file = self._file
        check_channel(segment, file.channels)
        start, stop = sample_range(segment, file.frames, file.samplerate)
        while self._position < stop and self._read_block():
            self._drop(start - _HELD_S * file.samplerate)
        if self._position < stop and self._error is not None:
            if not self._has_ended and stop < self._position + SMALL_BLOCK:
                return None
            raise self._error
        if self._position <= start or (
            self._position < stop and not is_clipped(segment, self._position, file.samplerate)
        ):
            raise beyond_end(segment, self._position, file.samplerate)
        if reaches_end(segment, min(file.frames, self._position), file.samplerate):
            return None
        if self._gap is not None:
            self._gap.check(stop, file.frames, file.samplerate, is_opus(file))
        samples = self._cut(start, min(stop, self._position))
        mono, levels = mono_of(samples, segment.channel), Levels()
        levels.add(samples, mono)
        flags = levels.flags(is_mean=file.channels > 1 and segment.channel is None)
        if self._damage is not None and self._damage[0] < stop:
            if stop < self._damage[1]:
                return None
            flags += (FLAG_DAMAGED,)
        return NativeAudio(mono, file.samplerate, file.channels, flags)

    def _start(self, segment: Segment) -> int:
        if segment.span is None:
            return segment.start_sample
        return segment.span.samples(self._file.samplerate, 0)[0]

    def _read_block(self) -> bool:
        """Read a block; return whether there may be another one."""
        n_asked = min(SMALL_BLOCK, self._file.frames - self._position)
        if self._has_ended or self._error is not None or not n_asked:
            return False
        try:
            with captured() as messages:
                read = read_block(self._file, self._position, n_asked)
        except AudioError as error:
            self._error = error
            return False
        self._held.append(read)
        if self._damage is None and tell_of_damage(messages):
            self._damage = self._position, self._position + len(read)
        self._position += len(read)
        self._has_ended = len(read) < n_asked
        if self._has_ended and self._file.format != "MP3" and self._file.frames < UNKNOWN_SAMPLES:
            self._error = decode_error(self._position, self._file.frames, INCOMPLETE)
        return True

    def _drop(self, first_kept: int) -> None:
        """Drop the blocks that end before a sample."""
        while self._held and self._held_start + len(self._held[0]) <= first_kept:
            self._held_start += len(self._held.popleft())

    def _cut(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples that are held: `[stop - start, n_channels]`."""
        parts, block_start = [], self._held_start
        for block in self._held:
            part = block[max(0, start - block_start) : max(0, stop - block_start)]
            parts += [part] if len(part) else []
            block_start += len(block)
        return np.concatenate(parts)

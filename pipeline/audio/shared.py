"""Many segments of one file, decoded in one pass.

libsndfile seeks exactly in flac, wav and the like; a segment of these is decoded on its own. An
mp3, vorbis or opus file gives the same samples only if it is decoded from its start, so for
thousands of segments it is decoded forward once, and each segment is cut from that.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack

from pipeline.audio.backends import soundfile
from pipeline.audio.backends.forward import ForwardReader
from pipeline.audio.backends.mpg123_messages import captured, tell_of_damage
from pipeline.audio.content import EncodedFile, file_stamp, open_bytes, with_descriptor
from pipeline.audio.decode import finish
from pipeline.audio.remote import RemoteRange
from pipeline.audio.streams import ogg_gap
from pipeline.audio.types import Decoded, NativeAudio, UnsupportedError
from pipeline.sources.base import Segment


class SharedFile:
    """Decoder of the segments of one file; thread-safe.

    Segments that are decoded forward come from one pass if each begins less than a minute before
    the end of those that were decoded so far; otherwise the file is decoded from its start again,
    also if it has been replaced or written since it was opened.

    Args:
        decode: Decodes a segment on its own, as `pipeline.audio.decode.decode` does.
    """

    def __init__(self, decode: Callable[[Segment, int], Decoded]) -> None:
        self._decode = decode
        self._lock = threading.Lock()
        self._files = ExitStack()
        self._reader: ForwardReader | None = None
        self._encoded: EncodedFile | None = None
        self._stamp: tuple[int, ...] | None = None  # of the file that is open
        self._is_forward: bool | None = None  # unknown before the first segment

    def decode(self, segment: Segment, sample_rate_hz: int) -> Decoded:
        """Return what `pipeline.audio.decode.decode` returns, and raise what it raises."""
        if segment.has_end and self._is_forward is not False:
            native = self._read(segment)
            if native is not None:
                return finish(native, sample_rate_hz)
        return self._decode(segment, sample_rate_hz)

    def close(self) -> None:
        """Close the file, unless it is being read; a later segment opens it again."""
        if self._lock.acquire(blocking=False):  # a decoder may hang
            try:
                self._close()
            finally:
                self._lock.release()

    def _read(self, segment: Segment) -> NativeAudio | None:
        """Read the segment by the forward pass; None if it is to be decoded on its own."""
        with self._lock:
            if self._is_forward is False:
                return None
            stamp = file_stamp(segment)
            is_same = stamp is not None and stamp == self._stamp
            try:
                if self._reader is None or not is_same or not self._reader.can_read(segment):
                    self._close()
                    self._stamp = stamp
                    self._reader = self._open(segment)
                self._is_forward = self._reader is not None
                return None if self._reader is None else self._reader.read(segment)
            finally:
                if isinstance(self._encoded, RemoteRange) and self._encoded.has_failed:
                    self._close()  # which raises why: the decoder saw the end of the file

    def _open(self, segment: Segment) -> ForwardReader | None:
        encoded = self._encoded = open_bytes(segment)
        self._files.callback(encoded.close)
        handle = self._files.enter_context(with_descriptor(encoded))
        gap = ogg_gap(handle)
        handle.seek(0)
        try:
            with captured() as messages:
                file = self._files.enter_context(soundfile.open_file(handle))
        except UnsupportedError:
            return None
        if soundfile.seeks_exactly(file):
            return None
        return ForwardReader(file, gap, tell_of_damage(messages))

    def _close(self) -> None:
        self._reader = self._encoded = None
        self._files.close()


class SharedFiles:
    """The files whose segments were decoded last; thread-safe.

    Args:
        decode: As for `SharedFile`.
        n_files: Number of files that are kept open.
    """

    def __init__(self, decode: Callable[[Segment, int], Decoded], n_files: int) -> None:
        self._decode, self._n_files = decode, n_files
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, int], SharedFile] = OrderedDict()

    def decode(self, segment: Segment, sample_rate_hz: int) -> Decoded:
        """Decode a segment: part of a file in the pass over that file, a whole file on its own."""
        if segment.path is None or not segment.has_end:
            return self._decode(segment, sample_rate_hz)
        return self._file(segment.path, segment.byte_offset).decode(segment, sample_rate_hz)

    def keep(self, n_files: int) -> None:
        """Keep so many files open, if these are more than before."""
        self._n_files = max(self._n_files, n_files)

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._drop_oldest()

    def _file(self, path: str, first_byte: int) -> SharedFile:
        key = path, first_byte
        with self._lock:
            file = self._files.setdefault(key, SharedFile(self._decode))
            self._files.move_to_end(key)
            is_full = len(self._files) > self._n_files
        if is_full:
            self._drop_oldest()
        return file

    def _drop_oldest(self) -> None:
        with self._lock:
            file = self._files.popitem(last=False)[1] if self._files else None
        if file is not None:
            file.close()

"""The content of a segment: its encoded bytes as a file, its samples and channel in that file."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.audio.byte_range import ByteRange, one_file_only
from pipeline.audio.remote import RemoteRange, open_remote
from pipeline.errors import AudioError, counted
from pipeline.sources.base import OVERSHOOT_S
from pipeline.sources.remote.uri import is_remote

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from pipeline.sources.base import Segment


_MAX_COPIED_BYTES = 1 << 26
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


EncodedFile = io.FileIO | io.BytesIO | ByteRange


def open_bytes(segment: Segment) -> EncodedFile:
    """Open exactly the encoded bytes of a segment.

    Args:
        segment: The segment.

    Returns:
        An unbuffered binary file, positioned at byte 0. Its later position is the end of the bytes
        that the decoder has read.

    Raises:
        AudioError: The bytes do not exist, there are none, or the path is not a regular file.
    """
    handle = _open(segment)
    if handle.seek(0, os.SEEK_END) == 0:
        handle.close()
        raise AudioError("the file is empty (0 bytes)")
    handle.seek(0)
    return handle


def file_stamp(segment: Segment) -> tuple[int, ...] | None:
    """Return what changes if the file of a segment is replaced or written.

    Returns:
        None if there is no file, or it cannot be found.
    """
    if segment.data is not None or segment.path is None:
        return None
    if is_remote(segment.path):
        return ()  # all of its reads are of one commit, or of one ETag
    try:
        status = os.stat(segment.path)  # noqa: PTH116 - no Path for each segment
    except (OSError, ValueError):  # opening it gives the reason
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def with_descriptor(encoded: EncodedFile) -> Iterator[EncodedFile]:
    """Provide encoded bytes as a file with a descriptor, which C code reads without Python.

    libsndfile would otherwise call back into Python, and wait for its lock, for every 8 KiB. Bytes
    and byte ranges of up to 64 MiB are copied to an anonymous file in memory. Of a remote file from
    which a part is wanted, only that part is read.

    Args:
        encoded: Result of `open_bytes`, positioned at byte 0.

    Yields:
        An unbuffered file with these bytes, positioned at byte 0; `encoded` itself if it has a
        descriptor, is larger, or the system has no anonymous files.
    """
    is_sought = isinstance(encoded, RemoteRange) and encoded.is_sought
    if is_sought or isinstance(encoded, io.FileIO) or not hasattr(os, "memfd_create"):
        yield encoded
        return
    n_bytes = encoded.seek(0, os.SEEK_END)
    encoded.seek(0)
    if n_bytes > _MAX_COPIED_BYTES:
        yield encoded
        return
    with io.FileIO(os.memfd_create("audio"), "r+") as copy:
        if isinstance(encoded, ByteRange):
            encoded.copy_to(copy.fileno())
        else:
            copy.write(encoded.getbuffer())
        copy.seek(0)
        yield copy


def sample_range(segment: Segment, n_file_samples: int, rate_hz: int) -> tuple[int, int]:
    """Return the first sample of a segment and the sample after its last one, at the native rate.

    Args:
        segment: The segment. An end in seconds is clipped to the end of the file, if it is less
            than `OVERSHOOT_S` beyond it.
        n_file_samples: Samples per channel of the file.
        rate_hz: Sample rate of the file.

    Raises:
        AudioError: The range is empty or does not lie within the file.
    """
    if segment.span is None:
        start, stop = segment.start_sample, segment.stop_sample
        if start == 0 and stop == -1:
            return 0, n_file_samples
    else:
        start, stop = segment.span.samples(rate_hz, n_file_samples)
        if n_file_samples < stop and is_clipped(segment, n_file_samples, rate_hz):
            stop = n_file_samples
    if start >= n_file_samples or stop > n_file_samples:
        raise beyond_end(segment, n_file_samples, rate_hz)
    if stop == -1 and segment.span is None:
        stop = n_file_samples
    if not 0 <= start < stop:
        raise AudioError(f"the segment {_described(segment)} holds no samples")
    return start, stop


def is_clipped(segment: Segment, n_file_samples: int, rate_hz: int) -> bool:
    """Return whether a segment in seconds goes on after the end of the file, by a little."""
    if segment.span is None:
        return False
    start, stop = segment.span.samples(rate_hz, n_file_samples)
    return start < n_file_samples < stop < n_file_samples + OVERSHOOT_S * rate_hz


def reaches_end(segment: Segment, n_file_samples: int, rate_hz: int) -> bool:
    """Return whether a segment states no end, or one after the end of the file."""
    if not segment.has_end:
        return True
    if segment.span is None:
        return segment.stop_sample > n_file_samples
    return segment.span.samples(rate_hz, n_file_samples)[1] > n_file_samples


def beyond_end(segment: Segment, n_file_samples: int, rate_hz: int) -> AudioError:
    """Return the error of a segment that does not end within its file."""
    return AudioError(
        f"the segment {_described(segment)} lies beyond the end of the file, which has "
        + (
            f"{n_file_samples} samples"
            if segment.span is None
            else f"{n_file_samples / rate_hz:.3f} s"
        )
    )


def _described(segment: Segment) -> str:
    if segment.span is not None:
        return str(segment.span)
    stop = "the end" if segment.stop_sample == -1 else segment.stop_sample
    return f"from sample {segment.start_sample} to {stop}"


def check_channel(segment: Segment, n_channels: int) -> None:
    """Raise AudioError if the file does not have the segment's channel."""
    if segment.channel is not None and not 0 <= segment.channel < n_channels:
        raise AudioError(
            f"channel {segment.channel} (counted from 0) does not exist: the file has "
            f"{counted(n_channels, 'channel')}"
        )


class _RegularFile(io.FileIO):
    """File whose read errors (a bad sector, a server that is gone) concern only one utterance."""

    def read(self, size: int | None = -1) -> bytes:
        with one_file_only():
            return super().read(-1 if size is None else size)

    def readall(self) -> bytes:
        with one_file_only():
            return super().readall()

    def readinto(self, buffer: WriteableBuffer) -> int:
        with one_file_only():
            return super().readinto(buffer)


def _open_regular(path: str) -> io.FileIO:
    """Open a regular file; refuse anything else at once, without waiting for a writer of a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        reason = "it is a socket" if error.errno == errno.ENXIO else error.strerror
        raise AudioError(f"the file cannot be opened: {reason}") from error
    except ValueError as error:  # a null character in the path
        raise AudioError(f"the file cannot be opened: {error}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise AudioError(f"it is not a regular file, but {kind}")
    return _RegularFile(descriptor)


def _open(segment: Segment) -> EncodedFile:
    if segment.data is not None:
        return io.BytesIO(segment.data)
    if segment.path is None:
        raise AudioError("the dataset has neither a path nor bytes for this audio")
    if is_remote(segment.path):
        return open_remote(segment, segment.path)
    file = _open_regular(segment.path)
    start, n_bytes = segment.byte_offset, segment.byte_length
    if start == 0 and n_bytes == -1:
        return file
    n_file_bytes = file.seek(0, os.SEEK_END)
    if n_bytes == -1:
        n_bytes = n_file_bytes - start
    if start < 0 or n_bytes < 0 or start + n_bytes > n_file_bytes:
        file.close()
        raise AudioError(
            f"the bytes [{start}, {start + n_bytes}) do not lie within the file, which has "
            f"{n_file_bytes} bytes"
        )
    return ByteRange(file, start, n_bytes)

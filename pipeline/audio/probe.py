"""Length, rate and fingerprint of a segment, from its header."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from crc32c import crc32c

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.byte_range import ByteRange
from pipeline.audio.containers import check_size
from pipeline.audio.content import (
    EncodedFile,
    check_channel,
    open_bytes,
    sample_range,
)
from pipeline.audio.headers import HEADER_BYTES, read_header
from pipeline.audio.resample import check_resampling, resampled_length
from pipeline.audio.types import Header, Probe, UnsupportedError
from pipeline.errors import AudioError

if TYPE_CHECKING:
    from pipeline.sources.base import Segment

_END_BYTES = HEADER_BYTES  # of each end of the encoded bytes that the fingerprint covers
_WHOLE = (0, -1, None)  # samples and channel of a whole file
_COUNT_LIMIT_S = 30.0  # about 20 hours of flac
_MAX_SAMPLES_PER_BYTE = 128  # speech in opus at 3 kbit/s; of one channel
_MAX_FLAC_SAMPLES_PER_BYTE = 32  # more than this is digital silence, which is counted quickly


class FileFacts(NamedTuple):
    """Facts about encoded bytes, which all their segments share.

    Attributes:
        header: What the header states, or was counted.
        n_bytes: Number of bytes.
        checksum: crc32c of both ends and of the number of bytes.
    """

    header: Header
    n_bytes: int
    checksum: int


def probe(segment: Segment, sample_rate_hz: int) -> Probe:
    """Read the header of a segment and both ends of its encoded bytes.

    A file that does not state its length, or states one that its bytes can hardly hold, is decoded
    to count its samples.

    Args:
        segment: The segment.
        sample_rate_hz: Sample rate that `decode` will be called with.

    Raises:
        AudioError: The audio is missing, empty, or holds no samples; it holds far more than its
            header states; the segment does not lie within it; no decoder can open it; or its
            length is not credible and cannot be counted within 30 s.
    """
    return probe_part(segment, read_facts(segment), sample_rate_hz)


def read_facts(segment: Segment) -> FileFacts:
    """Read what `probe_part` needs of a segment's file; equal for all segments that have an end.

    Raises:
        AudioError: As for `probe`, of the file.
    """
    with open_bytes(segment) as handle:
        head, n_bytes, checksum = _ends(handle)
        header = read_header(head, n_bytes) or _decoder_header(segment, handle)
        if not _is_credible(header, head, n_bytes):
            header = _counted(header, handle)
    return FileFacts(header, n_bytes, checksum)


def count_channels(segment: Segment) -> int:
    """Return the number of channels of a segment's file.

    Raises:
        AudioError: As for `probe`, of the file.
    """
    return read_facts(segment).header.n_channels


def probe_part(segment: Segment, facts: FileFacts, sample_rate_hz: int) -> Probe:
    """Probe a segment of a file whose facts are known.

    Raises:
        AudioError: As for `probe`, of the segment.
    """
    rate_hz, n_channels, n_file_samples = facts.header
    check_channel(segment, n_channels)
    start, stop = sample_range(segment, n_file_samples, rate_hz)
    check_resampling(stop - start, rate_hz, sample_rate_hz)
    n_samples = resampled_length(stop - start, rate_hz, sample_rate_hz)
    checksum = _checksum(segment, facts.checksum)
    return Probe(n_samples, rate_hz, n_channels, facts.n_bytes, checksum)


def fingerprint(segment: Segment) -> tuple[int, int]:
    """Return `n_bytes` and `fingerprint` of `Probe`, without reading the header.

    Raises:
        AudioError: The audio is missing or empty.
    """
    with open_bytes(segment) as handle:
        _, n_bytes, checksum = _ends(handle)
    return n_bytes, _checksum(segment, checksum)


def _checksum(segment: Segment, checksum: int) -> int:
    """Return the checksum of a segment: that of its file, unless it is a part of it."""
    span = segment.span
    part: tuple[object, ...] = (segment.start_sample, segment.stop_sample, segment.channel)
    if span is None and part == _WHOLE:
        return checksum
    if span is not None:
        part = (*part, span.start_s, span.stop_s, span.duration_s, span.rounding, span.snap_s)
    return int(crc32c(repr(part).encode(), checksum))


def _decoder_header(segment: Segment, handle: EncodedFile) -> Header:
    """Read a header with the first library that can open the file."""
    checked = check_size(handle, not segment.has_end)
    try:
        return soundfile.probe(checked.file)
    except UnsupportedError as error:
        return torchcodec.probe(segment, handle, error)


def _is_credible(header: Header, head: bytes, n_bytes: int) -> bool:
    """Return whether a file of this size may well hold the samples that its header states."""
    is_flac = head[:4] == b"fLaC"
    limit = _MAX_FLAC_SAMPLES_PER_BYTE if is_flac else _MAX_SAMPLES_PER_BYTE
    return header.n_samples <= n_bytes * limit


def _counted(header: Header, handle: EncodedFile) -> Header:
    try:
        return soundfile.count(handle, _COUNT_LIMIT_S)
    except UnsupportedError as error:
        raise AudioError(
            f"the header states {header.n_samples} samples, too many for the size of the file"
        ) from error


def _ends(handle: EncodedFile) -> tuple[bytes, int, int]:
    """Return the first bytes, the number of bytes, and the crc32c of both ends and that number."""
    if isinstance(handle, ByteRange):  # which is much faster
        head, n_bytes, tail = handle.ends(_END_BYTES)
    else:
        head = handle.read(_END_BYTES)
        n_bytes = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, n_bytes - _END_BYTES))
        tail = handle.read(_END_BYTES)
        handle.seek(0)
    return head, n_bytes, int(crc32c(head + tail + n_bytes.to_bytes(8, "little")))

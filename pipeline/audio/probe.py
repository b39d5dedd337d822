"""Length, rate and fingerprint of a segment, from its header."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crc32c import crc32c

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.containers import check_size
from pipeline.audio.content import EncodedFile, check_channel, open_bytes, sample_range
from pipeline.audio.headers import HEADER_BYTES, read_header
from pipeline.audio.resample import check_resampling, resampled_length
from pipeline.audio.types import Header, Probe, UnsupportedError
from pipeline.errors import AudioError

if TYPE_CHECKING:
    from pipeline.sources.base import Segment

_END_BYTES = HEADER_BYTES  # of each end of the encoded bytes that the fingerprint covers
_COUNT_LIMIT_S = 30.0  # about 20 hours of flac
_MAX_SAMPLES_PER_BYTE = 128  # speech in opus at 3 kbit/s; of one channel
_MAX_FLAC_SAMPLES_PER_BYTE = 32  # more than this is digital silence, which is counted quickly


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
    with open_bytes(segment) as handle:
        head, n_bytes, checksum = _fingerprint(handle)
        header = read_header(head, n_bytes) or _decoder_header(segment, handle)
        if not _is_credible(header, head, n_bytes):
            header = _counted(header, handle)
    rate_hz, n_channels, n_file_samples = header
    check_channel(segment, n_channels)
    start, stop = sample_range(segment, n_file_samples)
    check_resampling(stop - start, rate_hz, sample_rate_hz)
    n_samples = resampled_length(stop - start, rate_hz, sample_rate_hz)
    return Probe(n_samples, rate_hz, n_channels, n_bytes, checksum)


def fingerprint(segment: Segment) -> tuple[int, int]:
    """Return `n_bytes` and `fingerprint` of `Probe`, without reading the header.

    Raises:
        AudioError: The audio is missing or empty.
    """
    with open_bytes(segment) as handle:
        return _fingerprint(handle)[1:]


def _decoder_header(segment: Segment, handle: EncodedFile) -> Header:
    """Read a header with the first library that can open the file."""
    checked = check_size(handle, segment.stop_sample == -1)
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


def _fingerprint(handle: EncodedFile) -> tuple[bytes, int, int]:
    """Return the first bytes, the number of bytes, and the crc32c of both ends and that number."""
    head = handle.read(_END_BYTES)
    n_bytes = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, n_bytes - _END_BYTES))
    tail = handle.read(_END_BYTES)
    handle.seek(0)
    return head, n_bytes, int(crc32c(head + tail + n_bytes.to_bytes(8, "little")))

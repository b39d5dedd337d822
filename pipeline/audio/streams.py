"""The ends of compressed streams: flac, ogg and mp3 that were cut, or joined end to end.

These formats have no size in their header. libsndfile stops without an error at the end of the
first of several streams, and at the end of an ogg or mp3 that was cut.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.audio.containers import after_id3, trailing
from pipeline.audio.content import EncodedFile
from pipeline.errors import AudioError
from pipeline.store.format.records import FLAG_LENGTH_UNVERIFIED, FLAG_TRUNCATED

_FLAC_START = re.compile(rb"fLaC[\x00\x80]\0\0\x22")
_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9]")
_READ_AHEAD_BYTES = 1 << 15  # more than libsndfile reads beyond the last frame
_OGG_HEADER_BYTES, _OGG_FIRST_PAGE, _OGG_LAST_PAGE = 27, 2, 4
_OGG_MAX_PAGE_BYTES = 27 + 255 + 255 * 255
_BLOCK_BYTES = 1 << 20
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MPEG_KBIT_S = {  # Layer III, by the version: 1, or 2 and 2.5
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_HZ = (44_100, 48_000, 32_000)  # version 1; halved for 2, quartered for 2.5


class _FlacFrame(NamedTuple):
    start: int  # sample
    stop: int
    kind: bytes  # equal in all frames of a stream
    head: bytes


class _OggPage(NamedTuple):
    end: int  # byte after it
    kind: int  # bits
    stream: int
    number: int
    position: int  # of its last sample, in the unit of its codec; -1: no packet ends in it


class OggGap(NamedTuple):
    """Where the samples of an ogg stop to be in their places: libogg skips pages without a word.

    Attributes:
        n_behind: Samples of the stream that should follow the last page before the gap, at 48 kHz
            for opus, else at the native rate.
        reason: What is wrong there.
    """

    n_behind: int
    reason: str

    def check(self, stop: int, n_file_samples: int, rate_hz: int, is_opus: bool) -> None:
        """Check that a segment ends before the gap.

        Args:
            stop: Sample after its last one.
            n_file_samples: Samples of the file by the number of its last page.
            rate_hz: Sample rate of the file.
            is_opus: Whether it is of opus.

        Raises:
            AudioError: It does not.
        """
        n_behind = -(-self.n_behind * rate_hz // 48_000) if is_opus else self.n_behind
        if stop > n_file_samples - n_behind:
            raise AudioError(self.reason)


class _MpegFrame(NamedTuple):
    n_bytes: int
    n_samples: int


def flac_end(handle: EncodedFile, n_stated: int) -> tuple[str, ...]:
    """Look behind the last sample of a flac that was just decoded.

    libsndfile has read ahead, so that frames before its position may be behind the stated end.

    Args:
        handle: The file, positioned where libsndfile has stopped to read.
        n_stated: Samples that the header states.

    Raises:
        AudioError: Another flac is joined to it, or frames or many other bytes follow.
    """
    position = handle.tell()
    start = after_id3(handle)
    first = max(start + 4, position - _READ_AHEAD_BYTES)
    read = _read(handle, first, position - first)
    if _FLAC_START.search(read):
        raise AudioError("two flac streams are joined end to end; split the file")
    n_block = int.from_bytes(_read(handle, start + 8, 2), "big")
    heads = (read[found.start() : found.start() + 16] for found in _FLAC_FRAME.finditer(read))
    frames = [frame for frame in (_flac_frame(head, n_block) for head in heads) if frame]
    # Other bytes can look like a frame, but hardly like the successor of a frame.
    ends = {(frame.stop, frame.kind) for frame in frames}
    for frame in frames:
        follows = (frame.start, frame.kind) in ends or (frame.start == 0 and n_stated < n_block)
        if frame.stop > n_stated and follows and _has_crc8(frame.head):
            raise AudioError(f"the header states {n_stated} samples, and more follow")
    return trailing(_before_tags(handle) - position)


def ogg_end(handle: EncodedFile) -> tuple[str, ...]:
    """Look at the pages of an ogg: libogg skips those that are damaged, and goes on.

    Raises:
        AudioError: Several streams are joined end to end, a page is damaged or missing, or bytes
            follow the last page.
    """
    order = _OggOrder()
    end, is_last = 0, False
    for page in _ogg_pages(handle):
        wrong = order.add(page)
        if wrong:
            raise AudioError(wrong)
        end, is_last = page.end, bool(page.kind & _OGG_LAST_PAGE)
    return trailing(_before_tags(handle) - end) if is_last else (FLAG_TRUNCATED,)


def ogg_gap(handle: EncodedFile) -> OggGap | None:
    """Find the first page of an ogg that is damaged or missing, or that begins another stream.

    Returns:
        The gap; None if there is none, or the file is no ogg.
    """
    if _read(handle, 0, 4) != b"OggS":
        return None
    order, reason, stream, before, last = _OggOrder(), "", -1, 0, 0
    for page in _ogg_pages(handle):
        stream = page.stream if stream < 0 else stream
        reason = reason or order.add(page)
        if page.stream == stream and page.position >= 0:
            last = page.position
            before = before if reason else last
    return OggGap(last - before, reason) if reason else None


class _OggOrder:
    """The numbers of the pages of an ogg."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # of the last page of each stream
        self._is_begun = False

    def add(self, page: _OggPage) -> str:
        """Return what is wrong before the next page; an empty text if nothing is."""
        is_first = bool(page.kind & _OGG_FIRST_PAGE)
        if is_first and self._is_begun:
            return "several ogg streams are joined end to end; split the file"
        self._is_begun |= not is_first  # streams that are played at once begin together
        before = self._numbers.get(page.stream, -1)
        self._numbers[page.stream] = page.number
        if is_first or before == page.number - 1:
            return ""
        return (
            f"an ogg page before byte {page.end} is damaged or missing: expected page "
            f"{before + 1}, found {page.number}"
        )


def mp3_end(handle: EncodedFile, n_read: int, n_stated: int) -> tuple[str, ...]:
    """Compare an mp3 with its Xing header; without one, look whether its last frame is whole.

    Args:
        handle: The file.
        n_read: Samples that were decoded.
        n_stated: Samples that libsndfile has taken from the header, or estimated.

    Raises:
        AudioError: More frames follow than a Xing header states: libsndfile does not read them.
    """
    at = after_id3(handle)
    head = _read(handle, at, 64)
    frame = _mpeg_frame(head, 0)
    if frame is None:
        return (FLAG_LENGTH_UNVERIFIED,)
    xing = max(head.find(b"Xing"), head.find(b"Info"))
    n_bytes = _before_tags(handle) - at
    if 0 <= xing < 56 and head[xing + 7] & 1:
        has_size = head[xing + 7] & 2
        n_stated_bytes = int.from_bytes(head[xing + 12 : xing + 16], "big") if has_size else 0
        # Decoders differ in the samples that they leave out at the ends, by up to a frame.
        n_least = n_read if n_bytes < n_stated_bytes else n_read + frame.n_samples
        if n_least < n_stated:
            return (FLAG_TRUNCATED,)
        n_frames = int.from_bytes(head[xing + 8 : xing + 12], "big")
        if n_bytes > n_stated_bytes + frame.n_bytes:
            _check_frames(_read(handle, at, n_bytes), n_frames)
        return ()
    encoded = _read(handle, at, n_bytes)
    at = 0
    while frame is not None:
        at += frame.n_bytes
        frame = _mpeg_frame(encoded, at)
    return () if at == len(encoded) else (FLAG_TRUNCATED,)


def _check_frames(encoded: bytes, n_stated: int) -> None:
    """Compare the frames of an mp3 with the number in its Xing header, which is a frame itself."""
    n_frames, at, is_in_step = -1, 0, True
    while 0 <= at < len(encoded):
        frame = _mpeg_frame(encoded, at)
        end = at + (frame.n_bytes if frame else 0)
        # Other bytes can look like a frame, but hardly like two in a row.
        if frame and (is_in_step or end == len(encoded) or _mpeg_frame(encoded, end)):
            n_frames, at, is_in_step = n_frames + 1, end, True
        else:
            at, is_in_step = encoded.find(b"\xff", at + 1), False
    if n_frames > n_stated + 1:
        raise AudioError(
            f"the header states {n_stated} frames, and the file holds {n_frames}: another "
            "recording may be joined to it; split or rewrite the file"
        )


def _flac_frame(head: bytes, n_block: int) -> _FlacFrame | None:
    """Read the header of a flac frame, without its CRC-8; None if it is none.

    Args:
        head: 16 bytes that begin with the header.
        n_block: Samples of a block, if all blocks but the last are equal.
    """
    if len(head) < 16 or head[2] >> 4 == 0 or head[4] == 0xFF or head[4] >> 6 == 0b10:
        return None
    n_number = max(1, 8 - (head[4] ^ 0xFF).bit_length())
    number = head[4] & (0xFF >> n_number) if n_number > 1 else head[4]
    for byte in head[5 : 4 + n_number]:
        number = number << 6 | byte & 0x3F
    size, at = head[2] >> 4, 4 + n_number
    n_size = {6: 1, 7: 2}.get(size, 0)
    if n_size:
        n_samples = int.from_bytes(head[at : at + n_size], "big") + 1
    else:
        n_samples = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
    end = at + n_size + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    start = number if head[1] & 1 else number * n_block
    kind = bytes((head[1], head[2] & 15, head[3] & 15))
    return _FlacFrame(start, start + n_samples, kind, head[: end + 1])


def _has_crc8(head: bytes) -> bool:
    """Return whether the last byte is the CRC-8 of the others."""
    crc = 0
    for byte in head:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc == 0


def _ogg_pages(handle: EncodedFile) -> Iterator[_OggPage]:
    """Find the pages whose checksum is right."""
    handle.seek(0)
    buffer, start, at, is_end = b"", 0, 0, False
    while not is_end or at >= 0:
        if len(buffer) - at < _OGG_MAX_PAGE_BYTES and not is_end:
            block = handle.read(_BLOCK_BYTES) or b""
            buffer, start, at, is_end = buffer[at:] + block, start + at, 0, not block
            continue
        at = buffer.find(b"OggS", at)
        if at < 0:
            at = -1 if is_end else len(buffer) - 3  # where a mark may begin
        elif is_end or len(buffer) - at >= _OGG_MAX_PAGE_BYTES:
            page = _ogg_page(buffer, at, start)
            if page is not None:
                yield page
            at = at + 1 if page is None else page.end - start


def _ogg_page(buffer: bytes, at: int, start: int) -> _OggPage | None:
    """Read an ogg page; None if it is damaged or not there."""
    if len(buffer) < at + _OGG_HEADER_BYTES:
        return None
    kind, position, stream, number, checksum, n_sizes = struct.unpack_from("<5xBqIIIB", buffer, at)
    sizes = at + _OGG_HEADER_BYTES
    end = sizes + n_sizes + sum(buffer[sizes : sizes + n_sizes])
    page = buffer[at : at + 22] + bytes(4) + buffer[at + 26 : end]
    # Ogg's CRC-32 is that of zlib with the bits in the other order, and without its inversions.
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    is_whole = end <= len(buffer) and int(f"{crc:032b}"[::-1], 2) == checksum
    return _OggPage(start + end, kind, stream, number, position) if is_whole else None


def _before_tags(handle: EncodedFile) -> int:
    """Return the first byte of the ID3v1 and APE tags at the end of a file, or its size."""
    end = handle.seek(0, io.SEEK_END)
    if end >= 128 and _read(handle, end - 128, 3) == b"TAG":
        end -= 128
    footer = _read(handle, end - 32, 32) if end >= 32 else b""
    if footer.startswith(b"APETAGEX"):
        n_bytes, _, flags = struct.unpack("<12xIII8x", footer)
        end = max(0, end - n_bytes - (32 if flags >> 31 else 0))
    return end


def _read(handle: EncodedFile, offset: int, n_bytes: int) -> bytes:
    """Read a range, as far as the file goes."""
    handle.seek(offset)
    parts = []
    while n_bytes > 0 and (part := handle.read(n_bytes)):
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _mpeg_frame(encoded: bytes, at: int) -> _MpegFrame | None:
    """Read the header of a frame of Layer III; None if there is none, or its size is free."""
    head = encoded[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version = {3: 1, 2: 2, 0: 4}.get(head[1] >> 3 & 3)  # 4: version 2.5
    rate, bits = head[2] >> 2 & 3, head[2] >> 4
    if version is None or rate == 3 or bits in (0, 15):
        return None
    kbit_s = _MPEG_KBIT_S[min(version, 2)][bits - 1]
    n_samples = 1152 if version == 1 else 576
    n_bytes = n_samples // 8 * kbit_s * 1000 // (_MPEG_HZ[rate] // version) + (head[2] >> 1 & 1)
    return _MpegFrame(n_bytes, n_samples)

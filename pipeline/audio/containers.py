"""Comparison of the stated with the actual size of files with one block of samples: wav, aiff, ….

libsndfile reads the samples that the header states and the file holds, and does not say when the
two differ. Here they are compared, by the sizes of the chunks alone. A wav that was longer than its
32-bit size field allows, or that was written to a pipe, gets a header with its true size.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.audio.byte_range import ByteRange
from pipeline.audio.content import EncodedFile
from pipeline.audio.headers import HEADER_BYTES, read_header
from pipeline.errors import AudioError
from pipeline.store.format.records import (
    FLAG_LENGTH_UNVERIFIED,
    FLAG_LONGER_THAN_HEADER,
    FLAG_TRUNCATED,
)

MAX_TRAILING_BYTES = 4096
"""More bytes than this after the stated end may be another recording."""
_MAX_CHUNKS = 10_000
_MAX_HEAD_BYTES = 1 << 24  # of chunks before the samples
_WRAP = 1 << 32
_STREAMED_SIZES = frozenset((0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000))  # SoX, arecord
_MIN_STREAMED_SIZE = 0xFFFFFF00  # FFmpeg: 0xFFFFFFFF; others subtract the header's size
_W64_GUID_END = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_RIFF_GUID = bytes.fromhex("726966662e91cf11a5d628db04c10000")


class Stated(NamedTuple):
    """What the header of a container states about the block of samples.

    Attributes:
        start: First byte of the block.
        n_bytes: Size of the block; None if the header states none.
        ends_well: Whether nothing but well-formed chunks follows the block.
    """

    start: int
    n_bytes: int | None
    ends_well: bool


class Checked(NamedTuple):
    """An encoded file whose header and size have been compared.

    Attributes:
        file: The file, with a corrected header if libsndfile would not read all of it otherwise;
            at byte 0.
        flags: Flags of the comparison.
    """

    file: EncodedFile
    flags: tuple[str, ...]


def check_size(encoded: EncodedFile, is_whole: bool) -> Checked:
    """Compare the stated with the actual size of a container.

    Args:
        encoded: The file, of any format.
        is_whole: Whether the end of the file matters: a segment with an end gets no flags.

    Returns:
        The file and its flags; without flags if the format is not one of these containers.

    Raises:
        AudioError: Much follows the end that the header states, such as another recording; or the
            format is not read at all.
    """
    n_file_bytes = encoded.seek(0, io.SEEK_END)
    head = _read(encoded, 0, HEADER_BYTES)
    if head.startswith(b"ID3") and (tagged := _without_id3(encoded, n_file_bytes)) is not None:
        return check_size(tagged, is_whole)
    if any(is_it(head) for is_it in _REFUSED):
        raise AudioError("MIDI sample dumps and IFF 8SVX are not read; save it in another format")
    is_wav = head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE"
    if not (is_whole or is_wav) or (is_wav and read_header(head, n_file_bytes)):
        encoded.seek(0)
        return Checked(encoded, ())
    try:
        if is_wav:
            checked = _check_wav(encoded, head, n_file_bytes, is_whole)
            return checked if is_whole else checked._replace(flags=())
        read = next((read for is_it, read in _READERS if is_it(head)), None)
        stated = read(encoded, n_file_bytes) if read else None
        flags = () if stated is None else _flags(stated, n_file_bytes)
    except (struct.error, ValueError):
        flags = ()  # the header is damaged, which libsndfile reports
    encoded.seek(0)
    return Checked(encoded, flags)


def _without_id3(encoded: EncodedFile, n_file_bytes: int) -> EncodedFile | None:
    """Return what follows an ID3 tag, unless it is a mp3 or flac, which may have one."""
    start = after_id3(encoded)
    mark = _read(encoded, start, 4)
    encoded.seek(0)
    if start >= n_file_bytes or mark == b"fLaC" or (mark[:1] == b"\xff" and mark[1:2] >= b"\xe0"):
        return None
    return _behind(b"", encoded, start, n_file_bytes - start)


def after_id3(encoded: EncodedFile) -> int:
    """Return the first byte after the ID3 tags at the start of a file."""
    at = 0
    while len(head := _read(encoded, at, 10)) == 10 and head.startswith(b"ID3"):
        a, b, c, d = head[6:]
        at += 10 + (a << 21 | b << 14 | c << 7 | d)
    return at


def trailing(n_bytes: int) -> tuple[str, ...]:
    """Return the flag for bytes after the stated end.

    Raises:
        AudioError: They may be another recording.
    """
    if n_bytes > MAX_TRAILING_BYTES:
        raise AudioError(
            f"{n_bytes} bytes follow the end that the header states: another recording may be "
            "joined to it, or the header was never completed; split or rewrite the file"
        )
    return (FLAG_LONGER_THAN_HEADER,) if n_bytes > 0 else ()


def _flags(stated: Stated, n_file_bytes: int) -> tuple[str, ...]:
    if stated.n_bytes is None:
        return (FLAG_LENGTH_UNVERIFIED,)
    end = stated.start + stated.n_bytes
    if end > n_file_bytes:
        return (FLAG_TRUNCATED,)
    return () if stated.ends_well else trailing(n_file_bytes - end)


def _check_wav(encoded: EncodedFile, head: bytes, n_file_bytes: int, is_whole: bool) -> Checked:
    """Compare the sizes of a wav; correct its header where they are not known or wrapped around."""
    order = ">" if head[:4] == b"RIFX" else "<"
    start = n_stated = ds64 = -1
    block_bytes = 1
    for name, offset, size in _chunks(encoded, 12, n_file_bytes, f"{order}4sI"):
        if name == b"fmt ":
            [block_bytes] = struct.unpack(f"{order}12xH", _read(encoded, offset, 14))
        elif name == b"ds64":
            ds64 = offset
        elif name == b"data":
            start, n_stated = offset, size
            break
    encoded.seek(0)
    if start < 0:
        return Checked(encoded, ())
    n_there = n_file_bytes - start
    is_streamed = n_stated in _STREAMED_SIZES or n_stated >= _MIN_STREAMED_SIZE
    if ds64 >= 0 and n_stated == _WRAP - 1:
        [n_stated] = struct.unpack("<8xQ", _read(encoded, ds64, 16))
        is_streamed = n_stated == 0 or n_stated >= 1 << 63
    elif n_there >= _WRAP and not is_streamed:
        n_stated += (n_there - n_stated) // _WRAP * _WRAP
        if _ends_well(encoded, start + n_stated, n_file_bytes, order):
            return _with_size(encoded, start, n_stated, block_bytes, FLAG_LONGER_THAN_HEADER)
        raise AudioError(
            "the file is larger than a wav can state, and what its header states does not fit; "
            "rewrite the file"
        )
    ends_well = n_stated <= n_there and _ends_well(encoded, start + n_stated, n_file_bytes, order)
    if is_streamed and n_stated > n_there > 0:  # libsndfile reads all of it
        encoded.seek(0)
        return Checked(encoded, (FLAG_LENGTH_UNVERIFIED,))
    if is_streamed and not ends_well and n_there:
        n_whole = n_there - n_there % max(1, block_bytes)
        return _with_size(encoded, start, n_whole, block_bytes, FLAG_LENGTH_UNVERIFIED)
    encoded.seek(0)
    stated = Stated(start, n_stated, ends_well)
    return Checked(encoded, _flags(stated, n_file_bytes) if is_whole else ())


def _with_size(
    encoded: EncodedFile, start: int, n_bytes: int, block_bytes: int, flag: str
) -> Checked:
    """Replace the header of a wav by one with the true size: RF64 beyond 4 GiB."""
    if start > _MAX_HEAD_BYTES:
        raise AudioError("the header of the wav does not state its size; rewrite the file")
    head = bytearray(_read(encoded, 0, start))
    if head[:4] == b"RIFX":
        raise AudioError("the header of a big-endian wav does not state its size; rewrite the file")
    if head[:4] == b"RIFF" and start + n_bytes < _WRAP:
        struct.pack_into("<I", head, 4, start + n_bytes - 8)
        struct.pack_into("<I", head, start - 4, n_bytes)
    else:
        form = next(
            _read(encoded, offset, size)
            for name, offset, size in _chunks(encoded, 12, start, "<4sI")
            if name == b"fmt "
        )
        sizes = (len(form) + len(form) % 2 + 60 + n_bytes, n_bytes, n_bytes // max(1, block_bytes))
        head = bytearray(b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<IQQQI", 28, *sizes, 0))
        head += b"fmt " + struct.pack("<I", len(form)) + form + bytes(len(form) % 2)
        head += b"data\xff\xff\xff\xff"
    return Checked(_behind(bytes(head), encoded, start, n_bytes), (flag,))


def _behind(head: bytes, encoded: EncodedFile, start: int, n_bytes: int) -> EncodedFile:
    """Return a header followed by a range of a file."""
    if isinstance(encoded, io.BytesIO):
        return io.BytesIO(head + encoded.getvalue()[start : start + n_bytes])
    if isinstance(encoded, ByteRange):
        return encoded.part(start, n_bytes, head)
    return ByteRange(encoded, start, n_bytes, head)


def _chunks(
    encoded: EncodedFile, offset: int, end: int, header: str
) -> Iterator[tuple[bytes, int, int]]:
    """Walk chunks: name, first byte of the content, size of the content.

    Args:
        encoded: The file.
        offset: First byte of the first chunk.
        end: Where the last chunk should end.
        header: Format of name and size.
    """
    n_header = struct.calcsize(header)
    for _ in range(_MAX_CHUNKS):
        if offset + n_header > end:
            return
        name, size = struct.unpack(header, _read(encoded, offset, n_header))
        yield name, offset + n_header, size
        if size < 0:
            return
        offset += n_header + size + size % 2


def _ends_well(encoded: EncodedFile, offset: int, end: int, order: str) -> bool:
    """Return whether nothing, or chunks with plain names, fill the bytes up to the end."""
    return any(_chunks_fill(encoded, first, end, order) for first in {offset, offset + offset % 2})


def _chunks_fill(encoded: EncodedFile, offset: int, end: int, order: str) -> bool:
    for name, content, size in _chunks(encoded, offset, end, f"{order}4sI"):
        is_plain = name.isascii() and name.decode("ascii", "replace").isprintable()
        if not is_plain or name in (b"RIFF", b"RIFX", b"FORM", b"RF64"):
            return False
        offset = content + size + size % 2
    return offset in (end, end + 1)


def _aiff(encoded: EncodedFile, n_file_bytes: int) -> Stated | None:
    """Find the chunk SSND; its first 8 bytes are no samples."""
    for name, offset, size in _chunks(encoded, 12, n_file_bytes, ">4sI"):
        if name == b"SSND":
            ends_well = _ends_well(encoded, offset + size, n_file_bytes, ">")
            return Stated(offset, size, ends_well)
    return None


def _au(encoded: EncodedFile, n_file_bytes: int) -> Stated:
    head = _read(encoded, 0, 12)
    start, size = struct.unpack("<4xII" if head[:4] == b"dns." else ">4xII", head)
    return Stated(start, None if size == _WRAP - 1 else size, ends_well=False)


def _caf(encoded: EncodedFile, n_file_bytes: int) -> Stated | None:
    """Find the chunk `data`; chunks of caf have no padding."""
    offset, stated = 8, None
    for _ in range(_MAX_CHUNKS):
        if offset + 12 > n_file_bytes:
            break
        name, size = struct.unpack(">4sq", _read(encoded, offset, 12))
        if stated is not None and not (name.isascii() and name != b"caff"):
            return stated
        if name == b"data":
            stated = Stated(offset + 12, None if size < 0 else size, ends_well=False)
        if size < 0:
            break
        offset += 12 + size
    return stated._replace(ends_well=offset == n_file_bytes) if stated else None


def _w64(encoded: EncodedFile, n_file_bytes: int) -> Stated | None:
    """Find the chunk `data`; sizes include the header of 24 bytes, chunks start at multiples of 8.

    Raises:
        AudioError: It does not end with the file or with chunks: libsndfile would read on.
    """
    offset, stated = 40, None
    for _ in range(_MAX_CHUNKS):
        if offset + 24 > n_file_bytes:
            break
        name, size = struct.unpack("<16sQ", _read(encoded, offset, 24))
        if stated is not None and name[4:] != _W64_GUID_END:
            break
        if name[:4] == b"data" and stated is None:
            stated = Stated(offset + 24, size - 24, ends_well=True)
        if size < 24:
            break
        offset += size + -size % 8
    if stated is None or stated.n_bytes is None:
        return None
    if offset < n_file_bytes or stated.n_bytes <= 0:
        raise AudioError(
            f"the header states {max(0, stated.n_bytes)} bytes of samples, and the file holds "
            f"{n_file_bytes - stated.start}: another recording may be joined to it, or the header "
            "was never completed; split or rewrite the file"
        )
    return stated


def _nist(encoded: EncodedFile, n_file_bytes: int) -> Stated:
    """Read the fields of a NIST SPHERE header: lines of name, type and value."""
    start = int(_read(encoded, 8, 8))
    lines = _read(encoded, 0, min(start, 1 << 16)).decode("latin-1").split("\n")
    fields = {words[0]: words[2] for words in map(str.split, lines) if len(words) == 3}
    names = ("sample_count", "channel_count", "sample_n_bytes")
    if not all(name in fields for name in names):
        return Stated(start, None, ends_well=False)
    n_samples, n_channels, n_sample_bytes = (int(fields[name]) for name in names)
    return Stated(start, n_samples * n_channels * n_sample_bytes, ends_well=False)


def _read(encoded: EncodedFile, offset: int, n_bytes: int) -> bytes:
    encoded.seek(offset)
    return encoded.read(n_bytes) or b""


_REFUSED: tuple[Callable[[bytes], bool], ...] = (
    lambda head: head[:2] == b"\xf0\x7e" and head[3:4] == b"\x01",  # sds
    lambda head: head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV"),
)
"""Formats of which libsndfile reads damaged files as other samples, with messages on the standard
output (sds), or never returns (8SVX)."""
_READERS: tuple[
    tuple[Callable[[bytes], bool], Callable[[EncodedFile, int], Stated | None]], ...
] = (
    (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), _aiff),
    (lambda head: head[:4] in (b".snd", b"dns."), _au),
    (lambda head: head[:4] == b"caff", _caf),
    (lambda head: head[:16] == _RIFF_GUID, _w64),
    (lambda head: head[:7] == b"NIST_1A", _nist),
)

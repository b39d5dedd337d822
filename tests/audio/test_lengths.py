"""Header, file size and samples that disagree: flagged or refused, never short in silence."""

from __future__ import annotations

import io
import itertools
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio.decode import decode, decode_blocks
from pipeline.audio.probe import probe
from pipeline.audio.shared import SharedFile
from pipeline.audio.types import Decoded
from pipeline.errors import AudioError
from pipeline.sources.base import Segment, TimeSpan
from tests.helpers.audio_files import flac_with_length, mp3_without_length, speechlike

RATE_HZ = 16_000
N = 48_000
TRUNCATED, LONGER, UNVERIFIED = ("truncated",), ("longer_than_header",), ("length_unverified",)
COMPARED = [
    "WAV",
    "WAVEX",
    "RF64",
    "W64",
    "AIFF",
    "AU",
    "NIST",
    "CAF",
    "FLAC",
    "OGG",
    "OPUS",
    "MP3",
]
NOT_COMPARED = ["AVR", "IRCAM", "MAT4", "MAT5", "PAF", "PVF", "VOC"]


def encoded(kind: str, sound: np.ndarray | None = None) -> bytes:
    """Encode three seconds in the default encoding of a format."""
    buffer = io.BytesIO()
    kind, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
    sound = speechlike(N) if sound is None else sound
    soundfile.write(buffer, sound, RATE_HZ, format=kind, subtype=subtype)
    return buffer.getvalue()


def clip(source: bytes | Path) -> Segment:
    return (
        Segment("clip", data=source) if isinstance(source, bytes) else Segment("clip", str(source))
    )


def outcome(source: bytes | Path) -> tuple[int, tuple[str, ...]] | str:
    """Return samples and flags, or the error; check that decoding in blocks gives the same."""
    try:
        decoded = decode(clip(source), RATE_HZ)
    except AudioError as error:
        with pytest.raises(AudioError):
            list(decode_blocks(clip(source), RATE_HZ))
        return str(error)
    blocks = list(decode_blocks(clip(source), RATE_HZ))
    assert torch.equal(torch.cat([block.waveform for block in blocks]), decoded.waveform)
    assert blocks[-1].flags == decoded.flags
    return len(decoded.waveform), decoded.flags


def wav(n_stated: int, n_there: int, riff: int | None = None, rest: bytes = b"") -> bytes:
    """Make a 16-bit wav that states `n_stated` bytes of samples and holds `n_there`."""
    samples = (speechlike(n_there // 2) * 32767).astype("<i2").tobytes()
    return wav_head(n_stated, riff) + samples + rest


def wav_head(n_stated: int, riff: int | None = None) -> bytes:
    riff = (36 + n_stated) % 2**32 if riff is None else riff
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", riff, b"WAVE")
        + form
        + struct.pack("<4sI", b"data", n_stated % 2**32)
    )


def rf64_head(n_stated: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, n_stated + 72, n_stated, n_stated // 2, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + form + b"data\xff\xff\xff\xff"


@pytest.mark.parametrize("kind", COMPARED)
def test_a_whole_file_has_no_flag(kind: str) -> None:
    """Every sample is there and nothing is said, with tags behind the compressed streams, too."""
    whole = encoded(kind)
    variants = [whole, whole + b"TAG" + bytes(125)] if kind in ("FLAC", "OGG", "MP3") else [whole]
    for variant in variants:
        assert outcome(variant) == (N, ())


@pytest.mark.parametrize("kind", COMPARED)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_is_flagged_or_refused(kind: str, share: float) -> None:
    """What is left of it is never taken for the whole."""
    whole = encoded(kind)
    found = outcome(whole[: int(len(whole) * share)])
    if isinstance(found, str):
        assert kind in ("CAF", "FLAC") or share < 0.5
    else:
        assert found[0] < N
        assert found[1] == TRUNCATED


@pytest.mark.parametrize("kind", COMPARED)
def test_files_that_are_joined_are_refused(kind: str) -> None:
    """The second one would be lost."""
    whole = encoded(kind)
    assert isinstance(outcome(whole + whole), str)
    assert isinstance(outcome(whole + encoded(kind, speechlike(2 * N, seed=1))), str)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF", "OGG", "OPUS"])
def test_a_few_bytes_too_many_are_flagged(kind: str) -> None:
    """The stated samples are decoded, and the flag says that there is more."""
    assert outcome(encoded(kind) + bytes(range(1, 200)) * 4) == (N, LONGER)


@pytest.mark.parametrize("kind", [*COMPARED[:8], "OGG"])
def test_many_bytes_too_many_are_refused(kind: str) -> None:
    """They may be audio that the header does not cover."""
    assert isinstance(outcome(encoded(kind) + b"\x01\x80" * 5000), str)


@pytest.mark.parametrize("kind", ["OGG", "OPUS"])
def test_an_ogg_page_that_is_damaged_or_gone_is_noticed(kind: str) -> None:
    """The library goes on at the next page, as if the sound of this one had never been there."""
    n = {"OGG": 8 * N, "OPUS": 3 * N}[kind]  # pages of Opus are a second long
    whole = encoded(kind, speechlike(n))
    starts = [found.start() for found in re.finditer(b"OggS", whole)]
    assert len(starts) > 7
    pages = list(itertools.pairwise([*starts[2:], len(whole)]))
    for start, stop in {*pages[:2], pages[len(pages) // 2], *pages[-2:]}:
        middle = (start + stop) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        for damaged in (
            flipped,
            whole[:middle] + whole[middle + 1 :],
            whole[:start] + whole[stop:],
        ):
            found = outcome(damaged)
            if stop == len(whole):
                assert found[1] == TRUNCATED
            else:
                assert isinstance(found, str)
    assert outcome(whole[: starts[3]] + bytes(500) + whole[starts[3] :]) == (n, ())


@pytest.mark.parametrize("kind", ["SDS", "SVX"])
def test_formats_that_libsndfile_cannot_be_trusted_with_are_refused(kind: str) -> None:
    """A damaged sds has other samples; of a damaged svx the library never comes back."""
    for encoded_bytes in (encoded(kind), encoded(kind)[:31_143]):
        assert "sample dumps and IFF 8SVX" in outcome(encoded_bytes)
        with pytest.raises(AudioError, match="sample dumps and IFF 8SVX"):
            probe(clip(encoded_bytes), RATE_HZ)


@pytest.mark.parametrize("kind", NOT_COMPARED)
@pytest.mark.parametrize("share", [0.5, 1, 2])
def test_formats_that_are_not_compared_say_so(kind: str, share: float) -> None:
    """Whatever is read of them carries the flag."""
    whole = encoded(kind)
    found = outcome((whole + whole)[: int(len(whole) * share)])
    assert isinstance(found, str) or found[1] == UNVERIFIED


@pytest.mark.parametrize("n_stated", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 2**32 - 1])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(n_stated: int) -> None:
    """Its header states no size, and the flag says that it may have been longer."""
    raw = wav(n_stated, 2 * N, riff=0 if n_stated == 0 else 2**32 - 1)
    assert outcome(raw) == (N, UNVERIFIED)
    assert probe(clip(raw), RATE_HZ).n_samples == N
    assert outcome(wav(0, 0)) == "the file holds no samples"
    for size in (0, 2**64 - 200):
        raw = rf64_head(0)[:28] + struct.pack("<Q", size) + rf64_head(0)[36:] + raw[44:]
        assert outcome(raw)[1] == UNVERIFIED


def test_chunks_behind_the_samples_are_no_audio() -> None:
    """A list of names behind the samples is neither read nor flagged; a second wav is refused."""
    chunk = b"LIST" + struct.pack("<I", 10_000) + bytes(10_000)
    assert outcome(wav(2 * N, 2 * N, rest=chunk)) == (N, ())
    assert outcome(wav(0, 0, rest=chunk)) == "the file holds no samples"
    assert "joined" in outcome(wav(2 * N, 2 * N, rest=wav(2 * N, 2 * N)))


@pytest.mark.parametrize(
    "head", [wav_head, lambda n: wav_head(0, 0), lambda n: wav_head(2**32 - 1), rf64_head]
)
def test_a_wav_beyond_4_gib_is_read_to_its_end(tmp_path: Path, head) -> None:
    """Its size wraps around, is unknown, or is that of RF64; `probe` and a segment see the end."""
    n_bytes = 2**32 + 30 * 2 * RATE_HZ
    path = tmp_path / "day.wav"
    last = (speechlike(RATE_HZ) * 32767).astype("<i2")
    with path.open("wb") as file:  # sparse
        file.write(head(n_bytes))
        file.seek(n_bytes - last.nbytes, io.SEEK_CUR)
        file.write(last.tobytes())
    n_samples = n_bytes // 2
    assert probe(clip(path), RATE_HZ).n_samples == n_samples
    segment = Segment("clip", str(path), start_sample=n_samples - RATE_HZ)
    decoded = decode(segment, RATE_HZ)
    assert np.array_equal(decoded.waveform.numpy(), last.astype(np.float32) / 2**15)
    assert len(decoded.flags) == (0 if head is rf64_head else 1)
    with path.open("ab") as file:
        file.write(bytes(5000))
    if head in (wav_head, rf64_head):
        with pytest.raises(AudioError, match="rewrite the file"):
            probe(clip(path), RATE_HZ)


def test_a_wrapped_size_within_other_files(tmp_path: Path) -> None:
    """A header without a size is corrected for bytes and for a byte range of a file, too."""
    raw = wav(0, 2 * N)
    (tmp_path / "shard.tar").write_bytes(bytes(777) + raw + bytes(99))
    embedded = Segment(
        "clip", str(tmp_path / "shard.tar"), byte_offset=777, byte_length=len(raw), container="tar"
    )
    decoded = decode(embedded, RATE_HZ)
    assert decoded.flags == UNVERIFIED
    assert torch.equal(decoded.waveform, decode(clip(wav(2 * N, 2 * N)), RATE_HZ).waveform)


def test_a_flac_with_another_length() -> None:
    """A length that is not stated is counted and flagged; one that is too small is refused."""
    whole = encoded("FLAC")
    assert outcome(flac_with_length(whole, 0)) == (N, UNVERIFIED)
    for n_stated in (1, N // 2, N - 2 * 4096, N - 1):
        assert isinstance(outcome(flac_with_length(whole, n_stated)), str)


def test_frames_behind_those_of_the_header_of_an_mp3_are_noticed() -> None:
    """A second recording without a header of its own would be lost; other bytes would not."""
    whole = encoded("MP3", speechlike(6_000))
    first = whole.find(whole[:2], max(whole.find(b"Xing"), whole.find(b"Info")))
    for start in (first, first + 40, first + 288, first + 300):
        assert isinstance(outcome(whole + whole[start:]), str)
    assert "another recording" in outcome(whole + whole[first + 40 :])
    tag = b"TAG" + bytes(125)
    for rest in (b"", tag, bytes(5_000), np.random.default_rng(0).bytes(40_000)):
        assert outcome(whole + rest)[0] == 6_000


def test_an_mp3_that_lacks_a_part_of_its_last_frame_is_flagged() -> None:
    """Of the samples less than a frame is missing, which alone may be a decoder's way."""
    whole = encoded("MP3", speechlike(6_000))
    assert outcome(whole) == (6_000, ())
    for n_missing in (1, 20):
        n_samples, flags = outcome(whole[:-n_missing])
        assert (n_samples < 6_000, flags) == (True, TRUNCATED)
    assert outcome(whole + b"TAG" + bytes(125)) == (6_000, ())


def test_an_mp3_without_a_length() -> None:
    """Its last frame shows whether it was cut."""
    whole = mp3_without_length(speechlike(N), mode="CONSTANT")
    assert outcome(whole)[1] == ()
    assert outcome(whole[: len(whole) // 2 + 20])[1] == TRUNCATED


@pytest.mark.parametrize("kind", ["OGG", "OPUS"])
def test_segments_behind_a_lost_ogg_page_are_refused(tmp_path: Path, kind: str) -> None:
    """Their samples would be others; those before it are the same as in the whole file."""
    whole = encoded(kind, speechlike(6 * N))
    expected = decode(clip(whole), RATE_HZ).waveform
    starts = [found.start() for found in re.finditer(b"OggS", whole)]
    page = starts[len(starts) // 2]
    flipped = whole[: page + 400] + bytes([whole[page + 400] ^ 4]) + whole[page + 401 :]
    lost = whole[:page] + whole[starts[len(starts) // 2 + 1] :]
    for n, damaged in enumerate((flipped, lost + whole)):
        path = tmp_path / f"{n}.ogg"
        path.write_bytes(damaged)
        together = SharedFile(decode)
        found = []
        for start in range(0, 6 * N, N // 4):
            part = {"start_sample": start, "stop_sample": start + N // 4}
            texts = set()
            for read, segment in (
                (decode, Segment("clip", data=damaged, **part)),
                (together.decode, Segment("clip", str(path), **part)),
                (joined, Segment("clip", str(path), **part)),
            ):
                try:
                    waveform = read(segment, RATE_HZ).waveform
                except AudioError as error:
                    texts.add(str(error))
                else:
                    assert torch.equal(waveform, expected[start : start + N // 4])
                    texts.add("")
            assert len(texts) == 1
            found.append(texts.pop())
        n_read = found.count("")
        assert n_read > len(found) // 4
        assert all(found[n_read:])
        assert "is damaged or missing: expected page" in found[n_read]


def joined(segment: Segment, rate_hz: int) -> Decoded:
    blocks = list(decode_blocks(segment, rate_hz))
    return replace(blocks[-1], waveform=torch.cat([block.waveform for block in blocks]))


def test_segments_behind_damage_of_an_mp3_are_flagged(tmp_path: Path) -> None:
    """As the whole file is, by a pass over all segments and alone; those before are not."""
    whole = encoded("MP3", speechlike(8 * N))
    at = len(whole) // 2
    path = tmp_path / "a.mp3"
    path.write_bytes(whole[:at] + whole[at + 2001 :])
    assert "damaged" in decode(clip(path), RATE_HZ).flags
    together = SharedFile(decode)
    for read in (decode, together.decode):
        flags = [
            read(Segment("clip", str(path), start_sample=n * N, stop_sample=n * N + 9000), RATE_HZ)
            for n in range(7)
        ]
        assert [found.flags for found in flags] == [(), (), (), (), *[("damaged",)] * 3]


@pytest.mark.parametrize("kind", ["WAV", "W64", "AIFF", "AU", "OGG", "OPUS", "MP3"])
def test_a_segment_that_is_clipped_where_a_file_was_cut_is_flagged(
    tmp_path: Path, kind: str
) -> None:
    """It reaches the end of the file, which is not the one that the header states."""
    whole = encoded(kind, speechlike(2 * N))
    for name, stored, flags in (
        ("whole", whole, ()),
        ("cut", whole[: len(whole) * 3 // 4 + 7], TRUNCATED),
    ):
        path = tmp_path / name
        path.write_bytes(stored)
        n_there = len(decode(clip(path), RATE_HZ).waveform)
        end_s = n_there / RATE_HZ
        span = TimeSpan(end_s - 1, end_s + 0.3, rounding="nearest")
        segment = Segment("clip", str(path), span=span)
        for read in (decode, SharedFile(decode).decode, joined):
            decoded = read(segment, RATE_HZ)
            assert len(decoded.waveform) == RATE_HZ
            assert decoded.flags == flags, read
        inside = replace(segment, span=TimeSpan(1, 2))
        assert decode(inside, RATE_HZ).flags == ()


def test_a_segment_with_an_end_has_no_flag() -> None:
    """The rest of its file does not matter."""
    whole = encoded("OGG")
    for source in (whole[: len(whole) * 3 // 4], wav(2 * N, N), wav(0, N)):
        segment = Segment("clip", data=source, start_sample=10, stop_sample=500)
        assert decode(segment, RATE_HZ).flags == ()
        assert len(decode(segment, RATE_HZ).waveform) == 490


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OPUS", "MP3"])
def test_silence_and_channels_that_cancel_are_flagged(kind: str) -> None:
    """Channels of opposite sign give a mean without sound; each of them has sound."""
    sound = speechlike(N)
    opposite = encoded(kind, np.stack([sound, -sound], axis=1))
    assert decode(clip(opposite), RATE_HZ).flags == ("cancelled",)
    assert decode(Segment("clip", data=opposite, channel=1), RATE_HZ).flags == ()
    assert list(decode_blocks(clip(opposite), RATE_HZ))[-1].flags == ("cancelled",)
    noise = np.random.default_rng(0).standard_normal((N, 8 if kind != "MP3" else 2)) * 0.1
    assert decode(clip(encoded(kind, noise.astype(np.float32))), RATE_HZ).flags == ()
    for n_channels in (1, 2):
        zeros = np.zeros((N, n_channels), np.float32)
        is_lossless = kind in ("WAV", "FLAC")
        assert decode(clip(encoded(kind, zeros)), RATE_HZ).flags == ("silent",) or not is_lossless


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "OGG", "FLAC", "MP3"])
@pytest.mark.parametrize("is_file", [False, True])
def test_a_tag_before_the_header_hides_nothing(tmp_path: Path, kind: str, is_file: bool) -> None:
    """The size is compared as without the tag, and refused formats stay refused."""
    tag = b"ID3\x04\0\0\0\0\0\x20" + bytes(32)

    def tagged(whole: bytes) -> bytes | Path:
        path = tmp_path / "tagged"
        path.write_bytes(tag + whole)
        return path if is_file else tag + whole

    whole = encoded(kind)
    assert outcome(tagged(whole)) == (N, ())
    assert probe(clip(tagged(whole)), RATE_HZ).n_samples == N
    half = outcome(tagged(whole[: len(whole) // 2]))
    assert half[1] == TRUNCATED if kind != "FLAC" else isinstance(half, str)
    assert "8SVX" in outcome(tagged(encoded("SVX")[:31_143]))

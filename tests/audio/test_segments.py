"""Decoding of segments: a stretch of samples, a channel, a byte range of a larger file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from pipeline.audio import content
from pipeline.audio.backends import soundfile as backend
from pipeline.audio.byte_range import ByteRange
from pipeline.audio.content import open_bytes, with_descriptor
from pipeline.audio.decode import decode, decode_blocks
from pipeline.audio.probe import probe
from pipeline.errors import AudioError
from pipeline.sources.base import OVERSHOOT_S, Segment, TimeSpan
from tests.helpers.audio_files import flac_with_length, speechlike, write

RATE_HZ = 16_000
FORMATS = ["wav", "flac", "ogg", "opus", "mp3"]
OFFSET = 4099  # of an embedded clip: neither a page nor a block


def embedded(path: Path, folder: Path) -> Segment:
    """Embed the file in a larger one, between other bytes."""
    encoded, container = path.read_bytes(), folder / "container.bin"
    container.write_bytes(os.urandom(OFFSET) + encoded + os.urandom(5000))
    return Segment("clip", str(container), byte_offset=OFFSET, byte_length=len(encoded))


def encodings(path: Path, folder: Path) -> list[Segment]:
    """Return the encoded audio as a file, in memory, and embedded in a larger file."""
    return [
        Segment("clip", str(path)),
        Segment("clip", data=path.read_bytes()),
        embedded(path, folder),
    ]


class Forward(soundfile.SoundFile):
    """A file without the seeks of soundfile, which change the last bits of an mp3."""

    def seekable(self) -> bool:
        return False


def native(path: Path) -> np.ndarray:
    """Decode the whole file forward at its native rate: float32 [n_samples, n_channels]."""
    with Forward(path) as file:
        return file.read(file.frames, dtype="float32", always_2d=True)


def resampled(mono: np.ndarray, rate_hz: int) -> torch.Tensor:
    """Resample with torchaudio."""
    waveform = torch.from_numpy(mono.copy())
    return torchaudio.functional.resample(waveform, rate_hz, RATE_HZ)


def error_text(segment: Segment, read=decode) -> str:
    with pytest.raises(AudioError) as caught:
        read(segment, RATE_HZ)
    assert str(segment.path) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rate_hz", "n_channels"), [(16000, 1), (24000, 2)])
def test_a_segment_equals_the_slice_of_the_whole(tmp_path, name, rate_hz, n_channels):
    """Its waveform is resample(whole[start:stop]) bit for bit, wherever the bytes are.

    Both for the mean and for one channel; `probe` returns its length.
    """
    path = write(tmp_path / f"a.{name}", speechlike(rate_hz + 17, n_channels), rate_hz)
    whole = native(path)
    n = len(whole)
    ranges = [(0, 1), (0, 9000), (8191, 8193), (8192, -1), (12_345, 15_001), (n - 1, n)]
    for encoded in encodings(path, tmp_path):
        for start, stop in ranges:
            cut = whole[start : None if stop == -1 else stop]
            for channel in (None, *range(n_channels)):
                mono = cut.mean(axis=1) if channel is None else cut[:, channel]
                segment = replace(encoded, start_sample=start, stop_sample=stop, channel=channel)
                decoded = decode(segment, RATE_HZ)
                assert torch.equal(decoded.waveform, resampled(mono, rate_hz))
                assert (decoded.source_rate_hz, decoded.n_channels) == (rate_hz, n_channels)
                header = probe(segment, RATE_HZ)
                assert header.n_samples == len(decoded.waveform)
                assert header.n_bytes == path.stat().st_size


def test_the_last_page_of_a_vorbis_file(tmp_path):
    """In the last page libvorbisfile seeks to wrong samples; decoding forward avoids it."""
    path = write(tmp_path / "a.ogg", speechlike(48_017))
    whole = native(path)[:, 0]
    for start in (45_697, 46_000, 48_016):
        segment = Segment("clip", str(path), start_sample=start, stop_sample=start + 1)
        assert decode(segment, RATE_HZ).waveform.item() == whole[start]


@pytest.mark.parametrize("name", [*FORMATS, "aiff"])
def test_an_embedded_file_equals_the_file(tmp_path, name):
    """A clip within a larger file has the waveform, header and fingerprint of its own file.

    A clip at the end of the larger file needs no length.
    """
    path = write(tmp_path / f"a.{name}", speechlike(30_000, 2), 48_000)
    own, inside = Segment("clip", str(path)), embedded(path, tmp_path)
    assert torch.equal(decode(inside, RATE_HZ).waveform, decode(own, RATE_HZ).waveform)
    assert probe(inside, RATE_HZ) == probe(own, RATE_HZ)
    (tmp_path / "container.bin").write_bytes(bytes(OFFSET) + path.read_bytes())
    last = replace(inside, byte_length=-1)
    assert torch.equal(decode(last, RATE_HZ).waveform, decode(own, RATE_HZ).waveform)
    assert probe(last, RATE_HZ) == probe(own, RATE_HZ)


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_a_segment_equals_a_file_of_the_same_samples(tmp_path, name):
    """The same samples in a separate lossless file have the same waveform."""
    path = write(tmp_path / f"a.{name}", speechlike(44_100, 2), 44_100)
    stored, _ = soundfile.read(path, dtype="int16")
    soundfile.write(tmp_path / f"cut.{name}", stored[9000:20_000], 44_100)
    cut = decode(Segment("cut", str(tmp_path / f"cut.{name}")), RATE_HZ)
    segment = Segment("clip", str(path), start_sample=9000, stop_sample=20_000)
    assert torch.equal(decode(segment, RATE_HZ).waveform, cut.waveform)


@pytest.mark.parametrize("name", [*FORMATS, "aiff"])
@pytest.mark.parametrize("read", [probe, decode, lambda *args: list(decode_blocks(*args))])
def test_a_range_that_is_not_within_the_file_is_refused(tmp_path, name, read):
    """A start or stop beyond the end, an empty or reversed range, and a missing channel."""
    path = write(tmp_path / f"a.{name}", speechlike(20_000, 2))
    n = len(native(path))
    for encoded in encodings(path, tmp_path):
        for start, stop in ((0, n + 1), (n - 5, 2 * n), (n, -1), (n + 7, -1)):
            words = error_text(replace(encoded, start_sample=start, stop_sample=stop), read)
            assert "beyond the end of the file" in words
            assert f"has {n} samples" in words
            assert str(n + 1 if stop == n + 1 else start) in words
        for start, stop in ((5, 5), (9, 4), (-3, 4), (-3, -1), (0, -2)):
            segment = replace(encoded, start_sample=start, stop_sample=stop)
            assert "holds no samples" in error_text(segment, read)
        for channel in (2, -1):
            words = error_text(replace(encoded, channel=channel), read)
            assert f"channel {channel} (counted from 0) does not exist" in words
            assert "has 2" in words


def test_a_flac_that_does_not_state_its_length(tmp_path):
    """A range within the file is exact; one that ends beyond it is an error."""
    path = write(tmp_path / "a.flac", speechlike(20_000))
    whole = native(path)[:, 0]
    encoded = Segment("clip", data=flac_with_length(path.read_bytes(), 0))
    for start, stop in ((0, 9), (11_000, 20_000), (19_999, -1)):
        segment = replace(encoded, start_sample=start, stop_sample=stop)
        expected = whole[start : None if stop == -1 else stop]
        assert np.array_equal(decode(segment, RATE_HZ).waveform.numpy(), expected)
        assert probe(segment, RATE_HZ).n_samples == len(expected)
    for start, stop in ((0, 20_001), (20_000, -1), (30_000, 30_005)):
        segment = replace(encoded, start_sample=start, stop_sample=stop)
        for read in (probe, decode, lambda *args: list(decode_blocks(*args))):
            assert "has 20000 samples" in error_text(segment, read)


@pytest.mark.parametrize("name", ["flac", "ogg", "mp3"])
def test_damage_behind_a_segment_does_not_matter(tmp_path, name):
    """A segment that ends before the damage is decoded; one that reaches it fails."""
    encoded = write(tmp_path / f"a.{name}", speechlike(48_000)).read_bytes()
    at = len(encoded) * 3 // 4
    damaged = Segment("clip", data=encoded[:at] + bytes(300) + encoded[at + 300 :])
    first = decode(replace(damaged, stop_sample=16_000), RATE_HZ).waveform
    assert np.array_equal(first.numpy(), native(tmp_path / f"a.{name}")[:16_000, 0])
    if name != "mp3":
        assert "decoding stopped after sample" in error_text(replace(damaged, start_sample=20_000))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_a_segment_are_its_waveform(tmp_path, name):
    """The concatenated blocks equal the waveform of `decode`, to rounding."""
    path = write(tmp_path / f"a.{name}", speechlike(27 * 8000, 2), 8000)
    for encoded in encodings(path, tmp_path):
        segment = replace(encoded, start_sample=9001, stop_sample=200_000, channel=1)
        blocks = [block.waveform for block in decode_blocks(segment, RATE_HZ)]
        assert len(blocks) > 2 or name == "mp3"
        joined, whole = torch.cat(blocks), decode(segment, RATE_HZ).waveform
        assert joined.shape == whole.shape
        assert torch.allclose(joined, whole, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_size_of_reads_changes_nothing(tmp_path, monkeypatch, name, n_channels):
    """A file that takes several calls of libsndfile equals one that takes a single call."""
    path = write(tmp_path / f"a.{name}", speechlike(48_017, n_channels), 24_000)
    segments = [
        replace(encoded, start_sample=start, stop_sample=stop)
        for encoded in encodings(path, tmp_path)
        for start, stop in ((0, -1), (13_001, -1), (9000, 45_000))
    ]
    once = [decode(segment, RATE_HZ).waveform for segment in segments]
    monkeypatch.setattr(backend, "_LARGE_BLOCK", 10_000)
    monkeypatch.setattr(backend, "_MAX_RESERVED_SAMPLES", 20_000)
    for segment, waveform in zip(segments, once, strict=True):
        assert torch.equal(decode(segment, RATE_HZ).waveform, waveform)


@pytest.mark.parametrize("n_channels", [2, 3, 7, 8, 20])
def test_mono_is_the_mean_of_numpy(tmp_path, n_channels):
    """Bit for bit, for any number of channels, also where the order of additions matters."""
    sound = speechlike(5000, n_channels) * np.logspace(-3, 3, n_channels, dtype=np.float32)
    path = write(tmp_path / "a.wav", sound.astype(np.float32), subtype="FLOAT")
    assert np.array_equal(
        decode(Segment("clip", str(path)), RATE_HZ).waveform.numpy(), native(path).mean(axis=1)
    )


@pytest.mark.parametrize("name", ["flac", "ogg", "opus"])
def test_damage_is_named_the_same_by_reads_of_any_size(tmp_path, monkeypatch, name):
    """The error has the sample at which small reads stop, also after whole blocks were read."""
    encoded = write(tmp_path / f"a.{name}", speechlike(96_000)).read_bytes()
    texts = []
    for block in (backend.SMALL_BLOCK, 1 << 15, 1 << 20):
        monkeypatch.setattr(backend, "_LARGE_BLOCK", block)
        for at in (len(encoded) // 3, len(encoded) // 2):
            damaged = Segment("clip", data=encoded[:at] + bytes(300) + encoded[at + 300 :])
            texts.append(error_text(damaged))
            assert error_text(damaged, lambda *args: list(decode_blocks(*args))) == texts[-1]
    assert texts[:2] == texts[2:4] == texts[4:]
    first, second = (int(text.split()[4]) for text in texts[:2])
    assert 0 < first <= second < 96_000


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_that_are_not_copied_are_read_where_they_are(tmp_path, monkeypatch, name):
    """Large byte ranges and bytes in memory are decoded without a copy, to the same samples."""
    path = write(tmp_path / f"a.{name}", speechlike(20_000))
    whole, *others = encodings(path, tmp_path)
    expected = decode(whole, RATE_HZ).waveform
    for limit in (path.stat().st_size, path.stat().st_size - 1):
        monkeypatch.setattr(content, "_MAX_COPIED_BYTES", limit)
        for segment in others:
            with open_bytes(segment) as encoded, with_descriptor(encoded) as file:
                assert (file is encoded) == (limit < path.stat().st_size)
                assert file.read() == path.read_bytes()
            assert torch.equal(decode(segment, RATE_HZ).waveform, expected)


def test_a_byte_range_that_shrinks_while_it_is_copied_is_refused(tmp_path):
    """The error says so, instead of a decoder's error about half a file."""
    path = write(tmp_path / "a.wav", speechlike(20_000))
    segment = Segment("clip", str(path), byte_offset=44, byte_length=20_000)
    with open_bytes(segment) as encoded:
        os.truncate(path, 5000)
        with pytest.raises(AudioError, match="shorter while it was read"), with_descriptor(encoded):
            pass


@pytest.mark.parametrize("read", [probe, decode])
def test_a_byte_range_that_is_not_within_the_file_is_refused(tmp_path, read):
    """The message names the file's size; a range of no bytes is an empty file."""
    path = write(tmp_path / "a.wav", speechlike(1000))
    size = path.stat().st_size
    for offset, length in ((0, size + 1), (100, size), (size + 1, -1), (-1, 5), (0, -2)):
        words = error_text(Segment("a", str(path), byte_offset=offset, byte_length=length), read)
        assert "do not lie within the file" in words
        assert f"{size} bytes" in words
    for offset, length in ((0, 0), (size, -1), (7, 0)):
        words = error_text(Segment("a", str(path), byte_offset=offset, byte_length=length), read)
        assert "empty (0 bytes)" in words
    assert "No such file" in error_text(Segment("a", str(tmp_path / "none"), byte_offset=5), read)


def test_the_fingerprint_covers_the_bytes(tmp_path):
    """It changes with the bytes of the range, and not with the bytes around it."""
    path = write(tmp_path / "a.flac", speechlike(20_000))
    inside = embedded(path, tmp_path)
    container = tmp_path / "container.bin"
    before = probe(inside, RATE_HZ).fingerprint
    whole = bytearray(container.read_bytes())
    whole[OFFSET - 1] ^= 1
    whole[OFFSET + inside.byte_length] ^= 1
    container.write_bytes(whole)
    assert probe(inside, RATE_HZ).fingerprint == before
    whole[OFFSET + inside.byte_length - 1] ^= 1
    container.write_bytes(whole)
    assert probe(inside, RATE_HZ).fingerprint != before


def test_a_byte_range_reads_as_a_file(tmp_path):
    """Reads end with the range, seeks are relative to it, and closing it closes the file."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    with open_bytes(Segment("a", str(path), byte_offset=10, byte_length=20)) as handle:
        assert isinstance(handle, ByteRange)
        assert handle.read() == bytes(range(10, 30))
        assert (handle.tell(), handle.read(5)) == (20, b"")
        assert handle.seek(-3, os.SEEK_END) == 17
        assert handle.read(99) == bytes([27, 28, 29])
        assert handle.seek(5) == 5
        assert handle.seek(2, os.SEEK_CUR) == 7
        assert handle.read(2) == bytes([17, 18])
        assert handle.seek(50) == 50
        assert handle.read(2) == b""
        with pytest.raises(ValueError, match="seek to byte -1"):
            handle.seek(-1)
        file = handle._file
    assert file.closed
    assert handle.closed


def test_no_file_stays_open(tmp_path):
    """Neither success nor an error leaks a file descriptor."""
    path = write(tmp_path / "a.flac", speechlike(20_000))
    inside = embedded(path, tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for segment in (
        inside,
        replace(inside, stop_sample=500),
        replace(inside, stop_sample=10**6),
        replace(inside, byte_length=10**6),
        replace(inside, byte_offset=OFFSET + 1),
    ):
        for read in (probe, decode, lambda *args: list(decode_blocks(*args))):
            try:
                read(segment, RATE_HZ)
            except AudioError:
                continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("span", "rate_hz", "expected"),
    [
        (TimeSpan(2.01, 3.0), RATE_HZ, (32_159, 48_000)),  # 2.01 * 16000 is 32159.999…
        (TimeSpan(2.01, 3.0, rounding="nearest"), RATE_HZ, (32_160, 48_000)),
        (TimeSpan(0.00003125, 1.0, rounding="nearest"), RATE_HZ, (1, 16_000)),  # half a sample
        (TimeSpan(1.25, duration_s=0.5), 44_100, (55_125, 77_175)),
        (TimeSpan(0.00006, duration_s=0.00006), 44_100, (2, 4)),  # rounded one by one
        (TimeSpan(2.5), 8000, (20_000, 99_000)),
        (TimeSpan(0.0, 12.37, snap_s=0.01), 8000, (0, 99_000)),
        (TimeSpan(0.0, 12.36, snap_s=0.01), 8000, (0, 98_880)),
        (TimeSpan(0.0, 13.0), 8000, (0, 104_000)),
    ],
)
def test_seconds_become_samples_by_the_stated_rounding(span, rate_hz, expected):
    assert span.samples(rate_hz, 99_000) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_segment_in_seconds_is_that_in_samples(tmp_path, name):
    """An end that is a little beyond the file is its end; one that is far beyond is an error."""
    path = write(tmp_path / f"a.{name}", speechlike(48_000), 24_000)
    whole = Segment("clip", str(path))
    n = len(native(path))
    for span, start, stop in (
        (TimeSpan(0.5, 1.2), 12_000, 28_800),
        (TimeSpan(0.5, duration_s=0.7), 12_000, 28_800),
        (TimeSpan(1.0), 24_000, -1),
        (TimeSpan(1.0, n / 24_000 + OVERSHOOT_S - 0.001), 24_000, n),
    ):
        seconds = replace(whole, span=span)
        samples = replace(whole, start_sample=start, stop_sample=stop)
        for read in (probe, lambda *args: next(decode_blocks(*args)), decode):
            found, expected = read(seconds, RATE_HZ), read(samples, RATE_HZ)
            if read is probe:  # the fingerprint is that of what the list states
                assert replace(found, fingerprint=0) == replace(expected, fingerprint=0)
            else:
                assert torch.equal(found.waveform, expected.waveform)
                assert found.flags == expected.flags
    for span in (TimeSpan(1.0, n / 24_000 + OVERSHOOT_S), TimeSpan(n / 24_000, n / 24_000 + 0.1)):
        for read in (probe, decode):
            words = error_text(replace(whole, span=span), read)
            assert f"{span} lies beyond the end of the file, which has {n / 24_000:.3f} s" in words
    assert "holds no samples" in error_text(replace(whole, span=TimeSpan(1.0, 1.0)), decode)


def test_a_file_that_cannot_be_read_concerns_only_itself(tmp_path: Path) -> None:
    """A bad sector, or a server that is gone: an AudioError, which quarantines the utterance."""
    path = tmp_path / "clip.wav"
    path.write_bytes(b"RIFF" * 100)
    handle = open_bytes(Segment(id="clip", path=str(path)))
    os.close(handle.fileno())
    for read in (handle.read, handle.readall, lambda: handle.readinto(bytearray(4))):
        with pytest.raises(AudioError, match="the file cannot be read: Bad file descriptor"):
            read()
    with pytest.raises(OSError, match="Bad file descriptor"):
        handle.close()

"""Decoding of whole files: waveforms, headers and errors."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import socket
import struct

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from pipeline.audio import decode as decode_module
from pipeline.audio import probe as probe_module
from pipeline.audio.decode import decode, decode_blocks
from pipeline.audio.identity import audio_identity, audio_provenance
from pipeline.audio.probe import probe
from pipeline.audio.resample import resampled_length
from pipeline.errors import AudioError
from pipeline.sources.base import Segment
from pipeline.store.format.identity import SOXR_KEY
from tests.helpers.audio_files import flac_with_length, mp3_without_length, speechlike, write

FFMPEG = audio_provenance()["ffmpeg"]


RATE_HZ = 16_000


def clip(source) -> Segment:
    if isinstance(source, bytes):
        return Segment("clip", data=source)
    return Segment("clip", str(source))


def error_text(source) -> str:
    with pytest.raises(AudioError) as caught:
        decode(clip(source), RATE_HZ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [
        ("a.wav", "PCM_U8", 2**-7),
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-23),
        ("a.wav", "FLOAT", 1e-9),
        ("a.wav", "DOUBLE", 1e-9),
        ("a.wav", "ULAW", 2**-5),
        ("a.flac", "PCM_16", 2**-15),
        ("a.aiff", "PCM_24", 2**-23),
        ("a.au", "PCM_16", 2**-15),
    ],
)
def test_sample_formats_decode_to_the_samples_written(tmp_path, name, subtype, step):
    """Every sample format returns the written values, within its step, as float32 mono."""
    sound = speechlike(3001)
    decoded = decode(clip(write(tmp_path / name, sound, subtype=subtype)), RATE_HZ)
    assert decoded.waveform.dtype == torch.float32
    assert decoded.waveform.shape == (3001,)
    assert np.abs(decoded.waveform.numpy() - sound).max() <= step


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff"])
@pytest.mark.parametrize(("rate_hz", "n_channels"), [(16000, 1), (8000, 1), (48000, 2)])
def test_the_header_states_the_decoded_length(tmp_path, name, rate_hz, n_channels):
    """`probe` and `decode` agree for every container, rate and number of channels."""
    path = write(tmp_path / name, speechlike(rate_hz // 4 + 7, n_channels), rate_hz)
    header, decoded = probe(clip(path), RATE_HZ), decode(clip(path), RATE_HZ)
    assert header.n_samples == len(decoded.waveform) > 0
    assert header.source_rate_hz == decoded.source_rate_hz == rate_hz
    assert header.n_channels == decoded.n_channels == n_channels
    assert header.n_bytes == path.stat().st_size


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3"])
def test_bytes_equal_the_file(tmp_path, name):
    """The same encoded audio gives the same waveform and header from memory and from disk."""
    path = write(tmp_path / name, speechlike(5000, 2), 24000)
    assert torch.equal(
        decode(clip(path), RATE_HZ).waveform, decode(clip(path.read_bytes()), RATE_HZ).waveform
    )
    assert probe(clip(path), RATE_HZ) == probe(clip(path.read_bytes()), RATE_HZ)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000])
def test_resampling_equals_torchaudio_bit_for_bit(tmp_path, rate_hz):
    """A clip equals torchaudio.functional.resample of it, whatever was decoded before."""
    for n_samples in (1, 83, rate_hz // 100, rate_hz // 3 + 1):
        path = write(tmp_path / "a.wav", speechlike(n_samples), rate_hz, "FLOAT")
        plain = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        expected = torchaudio.functional.resample(plain, rate_hz, 16000)
        assert torch.equal(decode(clip(path), RATE_HZ).waveform, expected)
        assert probe(clip(path), RATE_HZ).n_samples == len(expected)
        assert len(expected) == math.ceil(16000 * n_samples / rate_hz)


@pytest.mark.parametrize("n_source", [1, 441, 2**24 + 1, 46_305_001, 123_456_789])
@pytest.mark.parametrize(
    ("source_hz", "target_hz"), [(44100, 16000), (8000, 16000), (48000, 16000)]
)
def test_resampled_length_follows_the_resampler(n_source, source_hz, target_hz):
    """The predicted length equals the resampler's, also beyond the integers of float32."""
    divisor = math.gcd(source_hz, target_hz)
    up, down = target_hz // divisor, source_hz // divisor
    n_windows = n_source // down + 1  # of the strided convolution, each with `up` samples
    kept = torch.empty(1, device="meta").expand(n_windows * up)[
        : torch.ceil(torch.as_tensor(up * n_source / down)).long()
    ]
    assert resampled_length(n_source, source_hz, target_hz) == len(kept)


def test_channels_are_averaged(tmp_path):
    """Mono is the mean over channels, also across the blocks of a long file."""
    sound = speechlike(50_000, 3)
    decoded = decode(clip(write(tmp_path / "a.wav", sound, subtype="FLOAT")), RATE_HZ)
    assert decoded.n_channels == 3
    assert torch.allclose(decoded.waveform, torch.from_numpy(sound).mean(dim=1), atol=1e-7)


def test_float_samples_beyond_one_are_kept(tmp_path):
    """A loud float file is neither clipped nor scaled."""
    sound = speechlike(1000) * 8
    assert np.array_equal(
        decode(clip(write(tmp_path / "a.wav", sound, subtype="FLOAT")), RATE_HZ).waveform.numpy(),
        sound,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate_hz", [16000, 8000])
def test_non_finite_samples_are_refused(tmp_path, bad, rate_hz):
    """One NaN or infinity anywhere is an error, with or without resampling."""
    sound = speechlike(2000)
    sound[1234] = bad
    path = write(tmp_path / "a.wav", sound, rate_hz, "FLOAT")
    assert "not finite" in error_text(path)


def test_a_double_too_large_for_float32_is_refused(tmp_path):
    """Overflow in the conversion to float32 is an error."""
    sound = speechlike(100).astype(np.float64)
    sound[50] = 1e300
    assert "not finite" in error_text(write(tmp_path / "a.wav", sound, subtype="DOUBLE"))


@pytest.mark.parametrize("read", [probe, decode])
def test_missing_audio_is_an_error_with_its_reason(tmp_path, read):
    """Missing and empty files, files without samples, and rows without audio."""
    empty = tmp_path / "empty.wav"
    empty.touch()
    sampleless = write(tmp_path / "zero.wav", np.zeros(0, np.float32))
    cases = {
        clip(tmp_path / "none.wav"): "No such file",
        clip(tmp_path): "not a regular file, but a directory",
        clip("a\0b"): "cannot be opened",
        clip(empty): "empty (0 bytes)",
        clip(b""): "empty (0 bytes)",
        clip(sampleless): "holds no samples",
        Segment("clip"): "neither a path nor bytes",
    }
    for encoded, words in cases.items():
        with pytest.raises(AudioError, match=words.replace("(", r"\(").replace(")", r"\)")) as e:
            read(encoded, RATE_HZ)
        assert str(tmp_path) not in str(e.value)


@pytest.mark.skipif(FFMPEG, reason="FFmpeg is installed")
@pytest.mark.parametrize(
    "content", [b"RIFF\x10\0\0\0WAVEfmt ", b"\xff\xf1\x50\x80" * 100, b"text" * 99]
)
def test_without_ffmpeg_the_reason_gives_the_advice(content):
    """The message holds soundfile's reason and the advice to install FFmpeg."""
    assert "soundfile cannot read it" in error_text(content)
    assert "FFmpeg" in error_text(content)


@pytest.mark.skipif(not FFMPEG, reason="FFmpeg is not installed")
def test_with_ffmpeg_torchcodec_reads_what_soundfile_cannot(tmp_path):
    """An mp3 of variable bit rate without a length, which soundfile cuts short, is complete."""
    sound = np.concatenate([speechlike(40_000), np.zeros(80_000, np.float32)])
    assert len(decode(clip(mp3_without_length(sound)), RATE_HZ).waveform) >= len(sound)


def test_a_wav_that_states_too_many_samples(tmp_path):
    """A data size beyond the end of the file, or unknown, is limited to the file by both."""
    encoded = bytearray(write(tmp_path / "a.wav", speechlike(4000)).read_bytes())
    size_at = encoded.index(b"data") + 4
    for claimed in (10**6, 0xFFFFFFFF):
        encoded[size_at : size_at + 4] = struct.pack("<I", claimed)
        assert probe(clip(bytes(encoded)), RATE_HZ).n_samples == 4000
        assert len(decode(clip(bytes(encoded)), RATE_HZ).waveform) == 4000
    assert len(decode(clip(bytes(encoded[:-1001])), RATE_HZ).waveform) == 3499


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.opus"])
def test_damage_in_the_middle_is_refused(tmp_path, name):
    """Bytes lost or overwritten inside a file are an error that names the sample."""
    encoded = write(tmp_path / name, speechlike(48_000)).read_bytes()
    middle = len(encoded) // 2
    for damaged in (
        encoded[:middle] + bytes(300) + encoded[middle + 300 :],
        encoded[:middle] + encoded[middle + 300 :],
    ):
        assert probe(clip(damaged), RATE_HZ).n_samples == 48_000
        words = error_text(damaged).split()
        assert words[:4] == ["decoding", "stopped", "after", "sample"]
        assert 0 < int(words[4]) < int(words[6].rstrip(":")) == 48_000


def test_a_truncated_flac_is_refused(tmp_path):
    """A flac that ends before the length that its header states is an error."""
    encoded = write(tmp_path / "a.flac", speechlike(48_000)).read_bytes()
    assert "of 48000" in error_text(encoded[: len(encoded) * 9 // 10])


def test_a_flac_with_a_tag_behind_it_is_whole(tmp_path):
    """Other bytes behind the last frame are not damage."""
    sound = speechlike(10_001)
    encoded = write(tmp_path / "a.flac", sound, subtype="PCM_24").read_bytes()
    decoded = decode(clip(encoded + b"TAG" + bytes(range(125))), RATE_HZ)
    assert np.abs(decoded.waveform.numpy() - sound).max() <= 2**-23


def test_a_flac_that_states_no_length(tmp_path):
    """`probe` counts the samples."""
    path = write(tmp_path / "a.flac", speechlike(20_000))
    encoded = flac_with_length(path.read_bytes(), 0)
    assert probe(clip(encoded), RATE_HZ).n_samples == 20_000
    assert len(decode(clip(encoded), RATE_HZ).waveform) == 20_000


def test_an_absurd_length_takes_no_memory(tmp_path):
    """A header that states a year of audio is an error after the samples that exist."""
    encoded = bytearray(write(tmp_path / "a.flac", speechlike(20_000)).read_bytes())
    fields = int.from_bytes(encoded[18:26], "big") >> 36 << 36
    encoded[18:26] = (fields | (2**36 - 1)).to_bytes(8, "big")
    assert "decoding stopped after sample 20000 of 68719476735" in error_text(bytes(encoded))


def test_a_truncated_mp3_is_decoded(tmp_path):
    """An mp3 that ends early is decoded as far as it goes: mp3 lengths are estimates."""
    encoded = write(tmp_path / "a.mp3", speechlike(48_000)).read_bytes()
    cut = encoded[: len(encoded) // 2]
    assert probe(clip(cut), RATE_HZ).n_samples == 48_000
    assert 15_000 < len(decode(clip(cut), RATE_HZ).waveform) < 33_000


@pytest.mark.skipif(FFMPEG, reason="FFmpeg is installed")
@pytest.mark.parametrize("tag", [b"", b"TAG" + bytes(125)])
def test_an_mp3_longer_than_libsndfile_estimates_is_refused(tag):
    """Without a Xing header, quiet speech after a loud start is an error, not lost."""
    sound = np.concatenate([speechlike(16_000), np.zeros(48_000, np.float32)])
    assert "holds more" in error_text(mp3_without_length(sound) + tag)


def test_a_constant_rate_mp3_without_a_length_is_read(tmp_path):
    """At a constant bit rate the estimated length is right."""
    sound = speechlike(32_000)
    decoded = decode(clip(mp3_without_length(sound, mode="CONSTANT")), RATE_HZ)
    assert 32_000 <= len(decoded.waveform) <= 32_000 + 3 * 1152


@pytest.mark.parametrize("read", [probe, decode])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path, read):
    """A named pipe without a writer, a socket and a device are errors that say what they are."""
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.wav"))
        for name, word in (("pipe", "named pipe"), ("device", "device"), ("socket", "socket")):
            with pytest.raises(AudioError, match=word):
                read(clip(tmp_path / f"{name}.wav"), RATE_HZ)


@pytest.mark.parametrize("n_stated", [20_001, 10**6, 10**9, 2**36 - 1])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_414])
def test_a_length_that_the_bytes_cannot_hold_is_not_believed(tmp_path, n_stated, rate_hz):
    """A flac of 2 s that states more is an error when it is decoded, and, if far more, before."""
    path = write(tmp_path / "a.flac", speechlike(20_000), rate_hz)
    encoded = flac_with_length(path.read_bytes(), n_stated)
    if n_stated > 32 * len(encoded):
        with pytest.raises(AudioError, match="decoding stopped after sample 20000"):
            probe(clip(encoded), RATE_HZ)
    with pytest.raises(AudioError, match="decoding stopped after sample 20000"):
        decode(clip(encoded), RATE_HZ)


def test_digital_silence_has_its_length(tmp_path):
    """A flac that holds hundreds of samples in a byte is counted, and believed."""
    path = write(tmp_path / "a.flac", np.zeros(2_000_000, np.float32))
    assert path.stat().st_size < 2_000_000 / 200
    assert probe(clip(path), RATE_HZ).n_samples == 2_000_000


def test_counting_has_a_time_limit(tmp_path, monkeypatch):
    """A file whose samples cannot be counted in time is an error that names both."""
    path = write(tmp_path / "a.flac", np.zeros(2_000_000, np.float32))
    monkeypatch.setattr(probe_module, "_COUNT_LIMIT_S", 0)
    with pytest.raises(AudioError, match=r"states 2000000 samples.* more than 0 s"):
        probe(clip(path), RATE_HZ)


def test_a_small_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    """A flac of digital silence that is decoded at once may hold 128 samples a byte."""
    path = write(tmp_path / "a.flac", np.zeros(4_000_000, np.float32))
    monkeypatch.setattr(decode_module, "_MIN_SAMPLES_BOUND", 1 << 20)
    assert "too many for its size" in error_text(path)
    blocks = decode_blocks(clip(path), RATE_HZ)  # which are held one at a time
    assert sum(len(block.waveform) for block in blocks) == 4_000_000


@pytest.mark.parametrize("rate_hz", [1, 99, 10_000_001, 2**31 - 1])
def test_a_rate_that_is_not_one_of_audio_is_refused(tmp_path, rate_hz):
    """A file at 1 Hz would be 16,000 times as long as its samples."""
    path = write(tmp_path / "a.wav", speechlike(1000), rate_hz)
    for read in (probe, decode, lambda *args: list(decode_blocks(*args))):
        with pytest.raises(AudioError, match=f"sample rate is {rate_hz} Hz"):
            read(clip(path), RATE_HZ)


def test_the_fingerprint_covers_both_ends_and_the_size():
    """A change of the last bytes or of the size changes the fingerprint; it fits in uint32."""
    buffer = io.BytesIO()
    soundfile.write(buffer, speechlike(20_000), 16000, format="WAV")
    encoded = buffer.getvalue()
    last = bytes([encoded[-1] ^ 1])
    variants = {encoded, encoded[:-1] + last, encoded[:30_000] + encoded[-5000:], encoded + b"\0"}
    prints = {probe(clip(variant), RATE_HZ).fingerprint for variant in variants}
    assert len(prints) == 4
    assert all(0 <= value < 2**32 for value in prints)
    assert probe(clip(encoded), RATE_HZ).fingerprint in prints


def test_results_do_not_depend_on_threads(tmp_path):
    """The waveform is the same with one thread as with two."""
    path = write(tmp_path / "a.wav", speechlike(200_000), 44100)
    n_threads = torch.get_num_threads()
    try:
        waveforms = []
        for n in (1, 2):
            torch.set_num_threads(n)
            waveforms.append(decode(clip(path), RATE_HZ).waveform)
    finally:
        torch.set_num_threads(n_threads)
    assert torch.equal(*waveforms)


def test_identity_and_provenance_are_json():
    """Both are stored as attributes; only the provenance holds versions."""
    for uses_soxr in (False, True):
        identity = audio_identity(uses_soxr)
        assert json.loads(json.dumps(identity)) == identity
        assert soundfile.__version__ not in json.dumps(identity)
        assert (SOXR_KEY in identity) == uses_soxr
    assert json.loads(json.dumps(audio_provenance())) == audio_provenance()


def test_what_crosses_processes_pickles(tmp_path):
    """Segments and headers pickle."""
    encoded = clip(write(tmp_path / "a.wav"))
    assert pickle.loads(pickle.dumps(encoded)) == encoded
    assert pickle.loads(pickle.dumps(probe(encoded, RATE_HZ))) == probe(encoded, RATE_HZ)

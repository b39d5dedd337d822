"""Headers read without a decoder."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest
import soundfile

from pipeline.audio import probe as probe_module
from pipeline.audio.backends import soundfile as soundfile_backend
from pipeline.audio.headers import read_header
from pipeline.audio.probe import probe
from pipeline.sources.base import Segment
from tests.helpers.audio_files import speechlike

HEAD = 4096
PLAIN = [("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")] + [
    ("FLAC", s) for s in ("PCM_S8", "PCM_16", "PCM_24")
]


def encoded(
    kind: str, subtype: str, n: int = 1000, channels: int = 1, rate_hz: int = 16000
) -> bytes:
    """Make a sound file in memory."""
    buffer = io.BytesIO()
    sound = speechlike(n, channels)
    soundfile.write(buffer, sound, rate_hz, format=kind, subtype=subtype)
    return buffer.getvalue()


def with_list(wav: bytes, text: bytes = b"Lavf58.76.100\0") -> bytes:
    """Add a LIST chunk before the samples, as FFmpeg does."""
    info = b"INFOISFT" + struct.pack("<I", len(text)) + text
    grown = wav[:36] + b"LIST" + struct.pack("<I", len(info)) + info + wav[36:]
    return grown[:4] + struct.pack("<I", len(grown) - 8) + grown[8:]


def with_padding(flac: bytes, n: int = 8192) -> bytes:
    """Add padding for tags, as the reference encoder does."""
    return flac[:42] + b"\x01" + n.to_bytes(3, "big") + bytes(n) + flac[42:]


def header_of(raw: bytes) -> tuple[int, int, int] | None:
    return read_header(raw[:HEAD], len(raw))


def libsndfile_header(raw: bytes) -> tuple[int, int, int] | None:
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            return file.samplerate, file.channels, file.frames
    except soundfile.LibsndfileError:
        return None


@pytest.mark.parametrize(("kind", "subtype"), PLAIN)
@pytest.mark.parametrize(("channels", "rate_hz"), [(1, 16_000), (2, 44_100), (8, 8_000)])
def test_plain_headers_are_read(kind: str, subtype: str, channels: int, rate_hz: int) -> None:
    """Every sample width, with and without the chunks that common encoders add."""
    add_chunk = with_list if kind == "WAV" else with_padding
    for n in (1, 2, 999, 5000):
        raw = encoded(kind, subtype, n, channels, rate_hz)
        for variant in (raw, add_chunk(raw)):
            assert header_of(variant) == (rate_hz, channels, n) == libsndfile_header(variant)


@pytest.mark.parametrize("kind", ["OGG", "MP3", "AIFF", "AU", "W64", "WAVEX", "FLOAT", "ULAW"])
def test_other_files_are_left_to_the_decoder(kind: str) -> None:
    """Other formats, and wavs whose samples are not plain integers, return None."""
    raw = (
        encoded("WAV", kind)
        if kind in ("FLOAT", "ULAW")
        else encoded(kind, soundfile.default_subtype(kind))
    )
    assert libsndfile_header(raw) is not None
    assert header_of(raw) is None


def test_a_damaged_header_never_gives_another_result_than_libsndfile() -> None:
    """Bytes changed, lost and added near the start: the result is None or equals libsndfile's."""
    rng = random.Random(0)
    plain = [
        encoded(kind, subtype, 700, channels) for kind, subtype in PLAIN for channels in (1, 2)
    ]
    plain += [with_list(raw) for raw in plain if raw[:4] == b"RIFF"]
    agreed = 0
    for _ in range(6000):
        raw = bytearray(rng.choice(plain))
        at = rng.randrange(min(len(raw), 110))
        damage = rng.randrange(6)
        if damage == 0:
            raw[at] = rng.choice([0, 1, 255, rng.randrange(256)])
        elif damage == 1:
            raw[at] ^= 1 << rng.randrange(8)
        elif damage == 2:
            del raw[rng.randrange(len(raw)) :]
        elif damage == 3:
            raw[at:at] = rng.randbytes(rng.randint(1, 8))
        elif damage == 4:
            del raw[at : at + rng.randint(1, 8)]
        else:
            raw += rng.randbytes(rng.randint(1, 20))
        if raw[:4] == b"RIFF" and len(raw) > 8 and rng.random() < 0.5:
            raw[4:8] = struct.pack("<I", len(raw) - 8)
        found = header_of(bytes(raw))
        if found is not None:
            assert found == libsndfile_header(bytes(raw)), (damage, at, bytes(raw[:110]))
            agreed += 1
    assert agreed > 1000


@pytest.mark.parametrize("raw", [with_list(encoded("WAV", "PCM_16")), encoded("FLAC", "PCM_16")])
def test_a_size_beyond_the_file_is_refused_at_once(raw: bytes) -> None:
    """A chunk that states gigabytes returns None without a walk through it."""
    at = raw.index(b"LIST") + 4 if raw[:4] == b"RIFF" else 43
    assert header_of(raw[:at] + b"\xff\xff\xff" + raw[at + 3 :]) is None


def test_probe_opens_no_decoder_for_plain_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`probe` needs only the header of plain files, and libsndfile gives the same result."""
    paths = []
    for kind in ("WAV", "FLAC"):
        paths.append(tmp_path / f"a.{kind.lower()}")
        paths[-1].write_bytes(encoded(kind, "PCM_16", 5000, 2, 44_100))
    slow = [probe(Segment("clip", str(path)), 16_000) for path in paths]
    with monkeypatch.context() as patch:
        patch.setattr(probe_module, "read_header", lambda head, n_bytes: None)
        assert [probe(Segment("clip", str(path)), 16_000) for path in paths] == slow
    monkeypatch.delattr(soundfile_backend, "probe")
    assert [probe(Segment("clip", str(path)), 16_000) for path in paths] == slow

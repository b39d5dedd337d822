"""Headers that are read without a decoder."""

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
    """A sound file in memory."""
    buffer = io.BytesIO()
    sound = speechlike(n, channels)
    soundfile.write(buffer, sound, rate_hz, format=kind, subtype=subtype)
    return buffer.getvalue()


def with_list(wav: bytes, text: bytes = b"Lavf58.76.100\0") -> bytes:
    """The file as FFmpeg writes it: its own name stands before the samples."""
    info = b"INFOISFT" + struct.pack("<I", len(text)) + text
    grown = wav[:36] + b"LIST" + struct.pack("<I", len(info)) + info + wav[36:]
    return grown[:4] + struct.pack("<I", len(grown) - 8) + grown[8:]


def with_padding(flac: bytes, n: int = 8192) -> bytes:
    """The file as the reference encoder writes it: with room for tags."""
    return flac[:42] + b"\x01" + n.to_bytes(3, "big") + bytes(n) + flac[42:]


def stated(raw: bytes) -> tuple[int, int, int] | None:
    return read_header(raw[:HEAD], len(raw))


def by_libsndfile(raw: bytes) -> tuple[int, int, int] | None:
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            return file.samplerate, file.channels, file.frames
    except soundfile.LibsndfileError:
        return None


@pytest.mark.parametrize(("kind", "subtype"), PLAIN)
@pytest.mark.parametrize(("channels", "rate_hz"), [(1, 16_000), (2, 44_100), (8, 8_000)])
def test_plain_headers_are_read(kind: str, subtype: str, channels: int, rate_hz: int) -> None:
    """Every width of sample, with and without what common encoders put in between."""
    more = with_list if kind == "WAV" else with_padding
    for n in (1, 2, 999, 5000):
        raw = encoded(kind, subtype, n, channels, rate_hz)
        for variant in (raw, more(raw)):
            assert stated(variant) == (rate_hz, channels, n) == by_libsndfile(variant)


@pytest.mark.parametrize("kind", ["OGG", "MP3", "AIFF", "AU", "W64", "WAVEX", "FLOAT", "ULAW"])
def test_other_files_are_left_to_the_decoder(kind: str) -> None:
    """Other formats, and wavs that hold anything but plain integers."""
    raw = (
        encoded("WAV", kind)
        if kind in ("FLOAT", "ULAW")
        else encoded(kind, soundfile.default_subtype(kind))
    )
    assert by_libsndfile(raw) is not None
    assert stated(raw) is None


def test_no_damage_makes_a_header_say_another_number() -> None:
    """Bytes changed, lost, added and doubled near the start: never but what libsndfile says too."""
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
        found = stated(bytes(raw))
        if found is not None:
            assert found == by_libsndfile(bytes(raw)), (damage, at, bytes(raw[:110]))
            agreed += 1
    assert agreed > 1000


@pytest.mark.parametrize("raw", [with_list(encoded("WAV", "PCM_16")), encoded("FLAC", "PCM_16")])
def test_a_size_beyond_the_file_ends_at_once(raw: bytes) -> None:
    """A chunk that claims gigabytes is left to the decoder, and is not walked through."""
    at = raw.index(b"LIST") + 4 if raw[:4] == b"RIFF" else 43
    assert stated(raw[:at] + b"\xff\xff\xff" + raw[at + 3 :]) is None


def test_a_plan_opens_no_decoder_for_plain_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is all that `probe` needs of them; without it libsndfile would say the same."""
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

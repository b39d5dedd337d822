"""Sound files of every format, and mutations of their bytes. Seeded, so made again at will."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE_HZ = 16_000
N_CLIPS = 4
FORMATS: dict[str, tuple[str, str, str, int]] = {
    # name: extension, format and subtype of libsndfile, channels
    "wav": ("wav", "WAV", "PCM_16", 1),
    "wav stereo": ("wav", "WAV", "PCM_16", 2),
    "wav 24": ("wav", "WAV", "PCM_24", 1),
    "wav 8": ("wav", "WAV", "PCM_U8", 1),
    "wav float": ("wav", "WAV", "FLOAT", 1),
    "wav double": ("wav", "WAV", "DOUBLE", 1),
    "wav ulaw": ("wav", "WAV", "ULAW", 1),
    "wav ima": ("wav", "WAV", "IMA_ADPCM", 1),
    "wav ms": ("wav", "WAV", "MS_ADPCM", 1),
    "wav gsm": ("wav", "WAV", "GSM610", 1),
    "wav extensible": ("wav", "WAVEX", "PCM_16", 2),
    "rf64": ("rf64", "RF64", "PCM_16", 1),
    "w64": ("w64", "W64", "PCM_16", 1),
    "aiff": ("aiff", "AIFF", "PCM_16", 1),
    "aifc": ("aifc", "AIFF", "FLOAT", 1),
    "aifc ima": ("aiff", "AIFF", "IMA_ADPCM", 1),
    "au": ("au", "AU", "PCM_16", 1),
    "au ulaw": ("snd", "AU", "ULAW", 1),
    "caf": ("caf", "CAF", "PCM_16", 1),
    "caf alac": ("caf", "CAF", "ALAC_16", 1),
    "flac": ("flac", "FLAC", "PCM_16", 1),
    "flac stereo": ("flac", "FLAC", "PCM_24", 2),
    "vorbis": ("ogg", "OGG", "VORBIS", 1),
    "vorbis stereo": ("oga", "OGG", "VORBIS", 2),
    "opus": ("opus", "OGG", "OPUS", 1),
    "mp3": ("mp3", "MP3", "MPEG_LAYER_III", 1),
    "mp3 stereo": ("mp3", "MP3", "MPEG_LAYER_III", 2),
    "nist": ("sph", "NIST", "PCM_16", 1),
    "voc": ("voc", "VOC", "PCM_16", 1),
    "ircam": ("ircam", "IRCAM", "PCM_16", 1),
    "pvf": ("pvf", "PVF", "PCM_16", 1),
    "paf": ("paf", "PAF", "PCM_16", 1),
    "mat4": ("mat4", "MAT4", "PCM_16", 1),
    "mat5": ("mat5", "MAT5", "PCM_16", 1),
    "htk": ("htk", "HTK", "PCM_16", 1),
    "sds": ("sds", "SDS", "PCM_16", 1),
    "avr": ("avr", "AVR", "PCM_16", 1),
    "svx": ("svx", "SVX", "PCM_16", 1),
    "mp3 without length": ("mp3", "MP3", "MPEG_LAYER_III", 1),
    "wav streamed": ("wav", "WAV", "PCM_16", 1),
    "flac without length": ("flac", "FLAC", "PCM_16", 1),
}
LOSSY = ("mp3", "vorbis", "opus", "ima", "ms", "gsm")
"""Formats whose decoders start and end in other places, by up to a block."""
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@dataclass(frozen=True)
class Clip:
    """A sound file before its mutation.

    Attributes:
        encoded: Its bytes.
        n_samples: Samples per channel.
        n_channels: Channels.
        rate_hz: Sample rate.
    """

    encoded: bytes
    n_samples: int
    n_channels: int
    rate_hz: int


@dataclass(frozen=True)
class Case:
    """A mutated sound file.

    Attributes:
        number: Its number in the campaign.
        format: Key of `FORMATS`.
        mutation: Key of `MUTATIONS`.
        extension: Extension of its name.
        encoded: Its bytes.
        clip: What it was made from.
    """

    number: int
    format: str
    mutation: str
    extension: str
    encoded: bytes
    clip: Clip

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.number:06d}.{self.extension}"


def speech(seed: int) -> NDArray[np.float32]:
    """Make a voiced sound with a gliding pitch, pauses and breath noise: 0.4 to 1.6 s."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6_400, 25_600))
    t = np.arange(n) / RATE_HZ
    pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 4) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 8))
    syllables = 0.5 * (1 + np.sin(2 * np.pi * rng.uniform(2, 5) * t))
    return (0.15 * harmonics * syllables + 0.01 * rng.standard_normal(n)).astype(np.float32)


@cache
def real_clips(folder: Path) -> tuple[Path, ...]:
    """Return the sound files of a folder that libsndfile reads."""
    kinds = ("*.wav", "*.flac", "*.ogg", "*.mp3")
    return tuple(sorted(file for kind in kinds for file in folder.rglob(kind)))


@cache
def make_clip(format_name: str, seed: int, source: Path | None) -> Clip:
    """Make one of the clips of a format.

    Args:
        format_name: Key of `FORMATS`.
        seed: Chooses the clip.
        source: Folder of speech to use; None for synthetic speech.
    """
    if source is None:
        sound = speech(seed)
    else:
        files = real_clips(source)
        file = files[seed % len(files)]
        read, rate_hz = soundfile.read(file, dtype="float32", always_2d=True, frames=200_000)
        step = max(1, round(rate_hz / RATE_HZ))
        sound = np.ascontiguousarray(read[:: step or 1, 0][:25_600])
    _, container, subtype, n_channels = FORMATS[format_name]
    if n_channels == 2:
        sound = np.stack([sound, 0.5 * sound[::-1]], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, RATE_HZ, format=container, subtype=subtype)
    encoded = buffer.getvalue()
    if format_name == "mp3 without length":
        at = max(encoded.find(b"Xing"), encoded.find(b"Info"))
        encoded = encoded[encoded.find(encoded[:2], at) :]
    elif format_name == "wav streamed":
        encoded = encoded[:4] + b"\xff" * 4 + encoded[8:40] + b"\xff" * 4 + encoded[44:]
    elif format_name == "flac without length":
        fields = int.from_bytes(encoded[18:26], "big") >> 36 << 36
        encoded = encoded[:18] + fields.to_bytes(8, "big") + encoded[26:]
    return Clip(encoded, len(sound), n_channels, RATE_HZ)


def make_case(seed: int, number: int, source: Path | None = None) -> Case:
    """Make one file of the campaign; the same arguments give the same bytes."""
    rng = random.Random(f"{seed} {number}")
    format_name = list(FORMATS)[number % len(FORMATS)]
    mutation = rng.choice(list(MUTATIONS))
    clip = make_clip(format_name, rng.randrange(N_CLIPS), source)
    encoded = MUTATIONS[mutation](clip.encoded, rng)
    extension = FORMATS[format_name][0]
    if mutation == "other extension":
        extension = rng.choice([kind[0] for kind in FORMATS.values()])
    return Case(number, format_name, mutation, extension, encoded, clip)


def _at(data: bytes, rng: random.Random) -> int:
    """Choose a byte: often near the start, where headers are, or near the end."""
    kind = rng.random()
    if kind < 0.35:
        return rng.randrange(min(len(data), 128))
    if kind < 0.45:
        return max(0, len(data) - 1 - rng.randrange(min(len(data), 256)))
    return rng.randrange(len(data))


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[_at(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_number(data: bytes, rng: random.Random) -> bytes:
    """Set a number of the header, which has any size and order, to an unusual value."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(0, min(len(data) - size, 96), 2)
    value = rng.choice((*NUMBERS, rng.getrandbits(8 * size), rng.randrange(100_000)))
    number = (value & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
    return data[:at] + number + data[at + size :]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at, n = _at(data, rng), rng.choice((1, 4, 16, 100, 512, 4096))
    filling = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))
    return data[:at] + filling[: len(data) - at] + data[at + n :]


def _cut_out(data: bytes, rng: random.Random) -> bytes:
    at, n = _at(data, rng), rng.choice((1, 2, 3, 16, 417, 1000, 4096))
    return data[:at] + data[at + n :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at, n = _at(data, rng), rng.choice((1, 2, 3, 16, 417, 1000, 4096))
    return data[:at] + rng.choice((bytes(n), rng.randbytes(n))) + data[at:]


def _repeat_block(data: bytes, rng: random.Random) -> bytes:
    at, n = _at(data, rng), rng.choice((4, 100, 1000, 4096))
    return data[: at + n] + data[at:]


def _swap_blocks(data: bytes, rng: random.Random) -> bytes:
    n = rng.choice((16, 512, 4096))
    a, b = sorted(_at(data, rng) // n * n for _ in range(2))
    if a == b:
        return data
    return data[:a] + data[b : b + n] + data[a + n : b] + data[a : a + n] + data[b + n :]


def _drop_page(data: bytes, rng: random.Random) -> bytes:
    """Drop what lies between two marks of a stream: a page, a frame, a chunk."""
    marks = [m.start() for m in re.finditer(rb"OggS|\xff[\xf8\xf9\xfb\xf3]|data|fmt |SSND", data)]
    if len(marks) < 2:
        return _cut_out(data, rng)
    i = rng.randrange(len(marks) - 1)
    return data[: marks[i]] + data[marks[i + 1] :]


def _insert_chunk(data: bytes, rng: random.Random) -> bytes:
    """Insert a chunk as taggers write it, with a size that may be odd or wrong."""
    n = rng.choice((0, 1, 7, 40, 4000))
    size = rng.choice((n, n, n, n + 1, NUMBERS[rng.randrange(len(NUMBERS))]))
    chunk = rng.choice((b"LIST", b"id3 ", b"bext", b"junk")) + size.to_bytes(4, "little")
    at = rng.choice((12, 36, len(data)))
    return data[:at] + chunk + bytes(n + n % 2) + data[at:]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip bits": _flip_bits,
    "set number": _set_number,
    "overwrite": _overwrite,
    "truncate": lambda data, rng: data[: rng.randrange(len(data))],
    "truncate at the end": lambda data, rng: data[: -rng.randrange(1, min(len(data), 2000))],
    "truncate header": lambda data, rng: data[: rng.randrange(min(len(data), 128))],
    "cut out": _cut_out,
    "insert": _insert,
    "repeat block": _repeat_block,
    "swap blocks": _swap_blocks,
    "drop page": _drop_page,
    "insert chunk": _insert_chunk,
    "zero the end": lambda data, rng: (lambda at: data[:at] + bytes(len(data) - at))(
        rng.randrange(len(data))
    ),
    "append bytes": lambda data, rng: data + rng.randbytes(rng.choice((1, 3, 128, 5000, 40_000))),
    "append zeros": lambda data, rng: data + bytes(rng.choice((1, 2, 512, 4096, 1 << 20))),
    "append tag": lambda data, rng: data + b"TAG" + bytes(125),
    "append itself": lambda data, rng: data + data,
    "prepend tag": lambda data, rng: b"ID3\x04\0\0\0\0\0" + bytes([(n := rng.randrange(128))])
    + bytes(n) + data,
    "prepend bytes": lambda data, rng: rng.choice((b"\xef\xbb\xbf", b"\0", b"\r\n")) + data,
    "other extension": lambda data, rng: data,
    "unchanged": lambda data, rng: data,
}  # fmt: skip

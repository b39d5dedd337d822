#!/usr/bin/env python3
"""Make a labelled corpus of spoken words without a network.

    python examples/demo/corpus.py OUT_DIR

Fourteen words by nine voices in five languages, synthesised by espeak-ng (package
espeakng-loader) and saved as a Hugging Face dataset: audio (PCM16 wav bytes, 22.05 kHz), id, word,
voice, language and split. Every voice says every word once for train, dev and test, each at another
speed and pitch.

The synthesiser keeps state from one clip to the next, so the clips are made in a fixed order in a
process of its own: the same espeak-ng gives the same bytes anywhere. The directory appears whole or
not at all, and an existing one is left unchanged.
"""

from __future__ import annotations

import ctypes
import io
import shutil
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WORDS = {
    "en-us": "zero one two three four five six seven eight nine yes no left right",
    "en-gb": "zero one two three four five six seven eight nine yes no left right",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun ja nein links rechts",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf oui non gauche droite",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve sí no izquierda derecha",
}
"""The same words in each language's spelling; the label is the English word."""

VOICES = {
    "en-us": ("en-us+m3", "en-us+f2"),
    "en-gb": ("en-gb-x-rp+m1",),
    "de": ("de+m7", "de+f4"),
    "fr": ("fr+m2", "fr+f5"),
    "es": ("es+m4", "es+f1"),
}
TAKES = {"train": (120, 50), "dev": (105, 42), "test": (140, 58)}
"""Speed in words per minute and pitch (0..100) of each split's reading."""

PAUSE_S = 0.1
"""Silence before and after each word."""

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, in the calling thread
_CHARS_UTF8 = 1
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Clip:
    """One spoken word."""

    word: str
    text: str
    language: str
    voice: str
    split: str

    @property
    def id(self) -> str:
        """Unique name of the clip."""
        return f"{self.voice}-{self.word}-{self.split}"


def clips() -> Iterator[Clip]:
    """Yield every clip of the corpus, in the order in which they are made."""
    labels = WORDS["en-us"].split()
    for language, words in WORDS.items():
        for voice in VOICES[language]:
            for split in TAKES:
                for word, text in zip(labels, words.split(), strict=True):
                    yield Clip(word, text, language, voice, split)


@dataclass
class Synthesiser:
    """The espeak-ng library of the package espeakng-loader. Only one per process."""

    rate_hz: int = field(init=False)

    def __post_init__(self) -> None:
        import espeakng_loader

        self._samples = bytearray()
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self.rate_hz <= 0:
            raise RuntimeError(f"espeak-ng finds no data in {data.decode()}")
        self._library.espeak_ng_SetRandSeed(0)  # else breathy voices depend on the time
        self._callback = _CALLBACK(self._collect)  # kept alive: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, n_samples, _events) -> int:
        if samples and n_samples > 0:
            self._samples += ctypes.string_at(samples, 2 * n_samples)
        return 0

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> bytes:
        """Synthesise speech; return little-endian int16 mono samples."""
        self._samples.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode() + b"\0"
        size = ctypes.c_size_t(len(encoded))
        failed = self._library.espeak_Synth(encoded, size, 0, 0, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        if failed or not self._samples:
            raise RuntimeError(f"espeak-ng could not say {text!r} with {voice}")
        return bytes(self._samples)


def wav(samples: bytes, rate_hz: int) -> bytes:
    """Return int16 mono samples as a wav file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples)
    return buffer.getvalue()


def make_corpus(out: Path) -> tuple[int, float]:
    """Synthesise the corpus and save it to `out`; return its number of clips and seconds."""
    from datasets import Audio, ClassLabel, Dataset, Features, Value, disable_progress_bars

    from pipeline.sources.torchcodec_stand_in import importable_torchcodec

    disable_progress_bars()
    synthesiser, seconds, rows = Synthesiser(), 0.0, []
    pause = bytes(2 * round(PAUSE_S * synthesiser.rate_hz))
    for clip in clips():
        samples = pause + synthesiser.say(clip.text, clip.voice, *TAKES[clip.split]) + pause
        seconds += len(samples) / 2 / synthesiser.rate_hz
        rows.append(
            {
                "audio": {"bytes": wav(samples, synthesiser.rate_hz), "path": f"{clip.id}.wav"},
                "id": clip.id,
                "word": clip.word,
                "voice": clip.voice,
                "language": clip.language,
                "split": clip.split,
            }
        )
    names = {key: sorted({row[key] for row in rows}) for key in ("voice", "language")}
    features = Features(
        audio=Audio(decode=False),
        id=Value("string"),
        word=ClassLabel(names=WORDS["en-us"].split()),
        voice=ClassLabel(names=names["voice"]),
        language=ClassLabel(names=names["language"]),
        split=Value("string"),
    )
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with importable_torchcodec():
            dataset = Dataset.from_list(rows, features=features)
        dataset.save_to_disk(temporary / "corpus")
        (temporary / "corpus").rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(rows), seconds


def main() -> int:
    """Run the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: corpus.py OUT_DIR", file=sys.stderr)
        return 2
    out = Path(sys.argv[1]).absolute()
    if (out / "dataset_info.json").exists():
        print(f"{out} is already there")
        return 0
    if out.exists() and any(out.iterdir()):
        print(f"{out} holds something else; choose another directory", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    n_clips, seconds = make_corpus(out)
    took = time.perf_counter() - started
    print(f"{out}: {n_clips} clips, {seconds / 60:.1f} minutes of speech, made in {took:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

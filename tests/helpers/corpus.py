"""Small speech-like corpora, written as real files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def voice(seconds: float, seed: int, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Make a voiced sound with a gliding pitch and some breath noise: float32 [n_samples]."""
    return _voice(seconds, seed, rate_hz).copy()


@lru_cache(maxsize=256)
def _voice(seconds: float, seed: int, rate_hz: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = round(seconds * rate_hz)
    t = np.arange(n) / rate_hz
    pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 4) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 8))
    syllables = 0.5 * (1 + np.sin(2 * np.pi * rng.uniform(2, 5) * t))
    return (0.1 * harmonics * syllables + 0.01 * rng.standard_normal(n)).astype(np.float32)


def write_folder(
    folder: Path, seconds: list[float], *, metadata: bool = True, first: int = 0
) -> Path:
    """Write wav files clip-000.wav, ... with a word and a speaker each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,word,speaker"]
    for i, length in enumerate(seconds, start=first):
        soundfile.write(folder / f"clip-{i:03d}.wav", voice(length, i), RATE_HZ)
        lines.append(f"clip-{i:03d}.wav,{i % 4},s{i % 3}")
    if metadata:
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def mixed_lengths(n: int, seed: int = 0, longest_s: float = 3.0) -> list[float]:
    """Draw `n` lengths between 0.03 s and `longest_s`."""
    rng = np.random.default_rng(seed)
    return [round(float(s), 3) for s in rng.uniform(0.03, longest_s, n)]

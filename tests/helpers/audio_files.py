"""Sound files for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile


def speechlike(n_samples: int, n_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Make a tone in noise, within ±0.5: float32 [n_samples] or [n_samples, n_channels]."""
    noise = np.random.default_rng(seed).standard_normal((n_samples, n_channels))
    tone = np.sin(np.arange(n_samples) * 0.05)[:, None]
    sound = np.clip(0.3 * tone + 0.05 * noise, -0.5, 0.5).astype(np.float32)
    return sound[:, 0] if n_channels == 1 else sound


def write(
    path: Path, sound: np.ndarray | None = None, rate_hz: int = 16000, subtype: str | None = None
) -> Path:
    """Write a file in the format of its extension (`.opus` is opus in ogg)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].upper()
    kind, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, subtype)
    soundfile.write(
        path, speechlike(1600) if sound is None else sound, rate_hz, format=kind, subtype=subtype
    )
    return path


def mp3_without_length(sound: np.ndarray, rate_hz: int = 16000, mode: str = "VARIABLE") -> bytes:
    """Make an mp3 without its first frame, the Xing header that counts the others."""
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate_hz, format="MP3", bitrate_mode=mode, compression_level=0.5)
    encoded = buffer.getvalue()
    header = max(encoded.find(b"Xing"), encoded.find(b"Info"))
    return encoded[encoded.find(encoded[:2], header) :]


def flac_with_length(encoded: bytes, n_samples: int) -> bytes:
    """Change the length that a flac's header states; 0 states none."""
    fields = int.from_bytes(encoded[18:26], "big") >> 36 << 36
    return encoded[:18] + (fields | n_samples).to_bytes(8, "big") + encoded[26:]

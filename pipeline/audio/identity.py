"""The audio part of a store's identity and provenance."""

from __future__ import annotations

from typing import Any

import torchaudio

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.resample import RESAMPLER

AUDIO_IDENTITY: dict[str, Any] = {
    "decoders": ["soundfile", "torchcodec"],
    "mono": "mean over channels in float32",
    "resampler": {"name": "torchaudio.functional.resample", "dtype": "float32", **RESAMPLER},
}
"""What determines the samples of a waveform; part of a store's identity."""


def audio_provenance() -> dict[str, Any]:
    """Return the versions of the libraries that make the waveforms.

    They may change which files are readable, not what a layer is.

    Returns:
        JSON-able: soundfile, libsndfile, torchaudio, torchcodec (None if not installed) and
        ffmpeg, which is true if torchcodec found FFmpeg's libraries.
    """
    return {
        **soundfile.versions(),
        "torchaudio": torchaudio.__version__,
        **torchcodec.versions(),
    }

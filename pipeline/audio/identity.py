"""The audio part of a store's identity and provenance."""

from __future__ import annotations

from typing import Any

import soxr
import torchaudio

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.resample import RESAMPLER, SOXR_RESAMPLER
from pipeline.store.format.identity import SOXR_KEY

AUDIO_IDENTITY: dict[str, Any] = {
    "decoders": ["soundfile", "torchcodec"],
    "mono": "mean over channels in float32",
    "resampler": {"name": "torchaudio.functional.resample", "dtype": "float32", **RESAMPLER},
}
"""What determines the samples of a waveform; part of a store's identity."""


def audio_identity(uses_soxr: bool) -> dict[str, Any]:
    """Return what determines the samples of the waveforms of a store.

    Args:
        uses_soxr: Whether a file of the store is resampled by soxr.
    """
    return AUDIO_IDENTITY | ({SOXR_KEY: SOXR_RESAMPLER} if uses_soxr else {})


def audio_provenance() -> dict[str, Any]:
    """Return the versions of the libraries that make the waveforms.

    They may change which files are readable, not what a layer is.

    Returns:
        JSON-able: soundfile, libsndfile, torchaudio, soxr, torchcodec (None if not installed) and
        ffmpeg, which is true if torchcodec found FFmpeg's libraries.
    """
    return {
        **soundfile.versions(),
        "torchaudio": torchaudio.__version__,
        "soxr": soxr.__version__,
        **torchcodec.versions(),
    }

"""Decoding of a segment to one float32 waveform at the target rate.

soundfile reads wav, flac, ogg (vorbis, opus), mp3, aiff and the like without any system package.
torchcodec decodes the other files if FFmpeg's libraries are installed. The texts of an AudioError
contain no paths, because the index of the store records them.

A header can be wrong about the length. The header, the size of the file and the decoded samples are
compared, unless the segment ends before the file:

- wav, aiff, au, caf, w64, nist, ogg, mp3: the file ends early. The samples that exist are decoded,
  with the flag `truncated`.
- flac: there are fewer samples than stated, and later ones may have moved. `decode` raises
  AudioError with the sample at which it stopped. So it does for an ogg with a damaged or missing
  page, and for an mp3 with more frames than its header states.
- A wav of more than 4 GiB, whose 32-bit size has wrapped around, is read to its end, with the flag
  `longer_than_header`; one that was written to a pipe, with `length_unverified`.
- Other files that go on after the stated end, such as two that were joined: up to 4 KiB are
  flagged `longer_than_header`, for more `decode` raises AudioError.
- mp3 of which the decoder leaves out or mutes damaged frames: flagged `damaged`.
- mp3 without a Xing header: the length is an estimate. Where libsndfile would stop before the end,
  `decode` uses FFmpeg or raises.
- Formats that state no length, or whose length is not compared, are flagged `length_unverified`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.containers import check_size
from pipeline.audio.content import EncodedFile, open_bytes, sample_range, with_descriptor
from pipeline.audio.resample import check_resampling, resample, resample_blocks
from pipeline.audio.types import Decoded, NativeAudio, UnsupportedError
from pipeline.errors import AudioError

if TYPE_CHECKING:
    from pipeline.sources.base import Segment

_MAX_SAMPLES = 1 << 31  # 8 GiB; an mp3 of 13 hours
_MIN_SAMPLES_BOUND = 1 << 26  # 256 MiB
_MAX_SAMPLES_PER_BYTE = 128


def decode(segment: Segment, sample_rate_hz: int) -> Decoded:
    """Decode one segment to mono at the target rate.

    The result depends on this segment only: it is the resampling of the segment's samples,
    averaged over channels (or of its channel). So a segment equals the same samples in a separate
    file.

    Args:
        segment: The segment.
        sample_rate_hz: Sample rate of the waveform.

    Raises:
        AudioError: The audio is missing, empty or damaged, holds no samples or a non-finite one;
            the segment does not lie within it, or has far more samples than speech in so many
            bytes; or no decoder can open it.

    Example:
        >>> decode(Segment("clip", "/data/clip.flac"), 16000).waveform.shape
        torch.Size([35040])
    """
    with open_bytes(segment) as encoded:
        checked = check_size(encoded, not segment.has_end)
        try:
            max_samples = _max_samples(encoded)
            with with_descriptor(checked.file) as handle:
                native = soundfile.decode(segment, handle, max_samples)
        except UnsupportedError as error:
            native = torchcodec.decode(segment, encoded, error)
    return finish(native._replace(flags=checked.flags + native.flags), sample_rate_hz)


def finish(native: NativeAudio, sample_rate_hz: int) -> Decoded:
    """Resample the decoded samples of a segment.

    Raises:
        AudioError: A sample is not finite, or the rate cannot be resampled.
    """
    check_resampling(len(native.mono), native.rate_hz, sample_rate_hz)
    waveform = resample(native.mono, native.rate_hz, sample_rate_hz)
    _check_finite(waveform)
    return Decoded(waveform, native.rate_hz, native.n_channels, native.flags)


def decode_blocks(segment: Segment, sample_rate_hz: int) -> Iterator[Decoded]:
    """Decode one segment of any length in bounded memory.

    The concatenated waveforms equal the waveform of `decode` within float32 rounding. An mp3 or a
    file that only FFmpeg can read is decoded whole.

    Args:
        segment: The segment.
        sample_rate_hz: Sample rate of the waveform.

    Yields:
        Consecutive blocks of about ten seconds.

    Raises:
        AudioError: As for `decode`; blocks before the damage have been yielded by then.
    """
    with open_bytes(segment) as encoded, ExitStack() as stack:
        checked = check_size(encoded, not segment.has_end)
        handle = stack.enter_context(with_descriptor(checked.file))
        try:
            file = soundfile.open_file(handle)
        except UnsupportedError:
            yield decode(segment, sample_rate_hz)
            return
        with file:
            if file.format == "MP3":  # only its end shows whether it is complete
                yield decode(segment, sample_rate_hz)
                return
            start, stop = sample_range(segment, file.frames, file.samplerate)
            n_known = 1 if file.frames >= soundfile.UNKNOWN_SAMPLES else stop - start
            check_resampling(n_known, file.samplerate, sample_rate_hz)
            flags = list(checked.flags)
            mono = soundfile.mono_blocks(segment, handle, file, flags)
            for block in resample_blocks(mono, file.samplerate, sample_rate_hz):
                _check_finite(block)
                yield Decoded(block, file.samplerate, file.channels, tuple(flags))


def _max_samples(encoded: EncodedFile) -> int:
    """Return a bound on the samples held in memory, far above those of speech of this size."""
    n_bytes = encoded.seek(0, os.SEEK_END)
    encoded.seek(0)
    return min(_MAX_SAMPLES, max(_MIN_SAMPLES_BOUND, n_bytes * _MAX_SAMPLES_PER_BYTE))


def _check_finite(waveform: torch.Tensor) -> None:
    samples = waveform.numpy()  # torch would start threads for this one pass
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(samples)  # not finite if a sample is not, or if it overflows
    if not (np.isfinite(total) or np.isfinite(samples).all()):
        raise AudioError("the audio holds samples that are not finite (NaN or infinity)")

"""Decoding of a segment to one float32 waveform at the target rate.

soundfile reads wav, flac, ogg (vorbis, opus), mp3, aiff and the like without any system package.
torchcodec decodes the other files if FFmpeg's libraries are installed. The texts of an AudioError
contain no paths, because the index of the store records them.

A header can be wrong about the length:

- wav, aiff, au: the file ends early. libsndfile counts the samples that exist, and so do `probe`
  and `decode`. The same holds for an ogg that is cut off: its last page counts the samples.
- flac, or a page lost within an ogg: there are fewer samples than stated, and later ones may have
  moved. `decode` raises AudioError with the sample at which it stopped.
- mp3 lengths are estimates without a Xing header. Fewer samples than estimated are accepted.
  Where libsndfile would stop before the end, `decode` uses FFmpeg or raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.content import open_bytes, sample_range, with_descriptor
from pipeline.audio.resample import check_resampling, resample, resample_blocks
from pipeline.audio.types import Decoded, UnsupportedError
from pipeline.errors import AudioError

if TYPE_CHECKING:
    from pipeline.sources.base import Segment


def decode(segment: Segment, sample_rate_hz: int) -> Decoded:
    """Decode one segment to mono at the target rate.

    The result depends on this segment only. It equals `torchaudio.functional.resample` of the
    segment's samples, averaged over channels (or of its channel), bit for bit. So a segment
    equals the same samples in a separate file.

    Args:
        segment: The segment.
        sample_rate_hz: Sample rate of the waveform.

    Raises:
        AudioError: The audio is missing, empty or damaged, holds no samples or a non-finite one;
            the segment does not lie within it; or no decoder can open it.

    Example:
        >>> decode(Segment("clip", "/data/clip.flac"), 16000).waveform.shape
        torch.Size([35040])
    """
    with open_bytes(segment) as encoded:
        try:
            with with_descriptor(encoded) as handle:
                native = soundfile.decode(segment, handle)
        except UnsupportedError as error:
            native = torchcodec.decode(segment, encoded, error)
    check_resampling(len(native.mono), native.rate_hz, sample_rate_hz)
    waveform = resample(native.mono, native.rate_hz, sample_rate_hz)
    _check_finite(waveform)
    return Decoded(waveform, native.rate_hz, native.n_channels)


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
    with open_bytes(segment) as encoded, with_descriptor(encoded) as handle:
        try:
            file = soundfile.open_file(handle)
        except UnsupportedError:
            yield decode(segment, sample_rate_hz)
            return
        with file:
            if file.format == "MP3":  # only its end shows whether it is complete
                yield decode(segment, sample_rate_hz)
                return
            start, stop = sample_range(segment, file.frames)
            check_resampling(stop - start, file.samplerate, sample_rate_hz)
            mono = soundfile.mono_blocks(segment, handle, file)
            for block in resample_blocks(mono, file.samplerate, sample_rate_hz):
                _check_finite(block)
                yield Decoded(block, file.samplerate, file.channels)


def _check_finite(waveform: torch.Tensor) -> None:
    samples = waveform.numpy()  # torch would start threads for this one pass
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(samples)  # not finite if a sample is not, or if it overflows
    if not (np.isfinite(total) or np.isfinite(samples).all()):
        raise AudioError("the audio holds samples that are not finite (NaN or infinity)")

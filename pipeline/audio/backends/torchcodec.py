"""Decoding with FFmpeg, by torchcodec: files that libsndfile cannot read (aac, mp4, webm, …)."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import io
import threading
import wave
from typing import TYPE_CHECKING, Any

from pipeline.audio.byte_range import ByteRange
from pipeline.audio.content import EncodedFile, check_channel, sample_range
from pipeline.audio.levels import Levels
from pipeline.audio.types import Header, NativeAudio, UnsupportedError
from pipeline.errors import AudioError
from pipeline.store.format.records import (
    FLAG_LENGTH_UNVERIFIED,
    FLAG_LONGER_THAN_HEADER,
    FLAG_TRUNCATED,
)

if TYPE_CHECKING:
    from pipeline.sources.base import Segment

_TOLERANCE_S = 0.2  # encoders pad both ends


def probe(segment: Segment, handle: EncodedFile, error: UnsupportedError) -> Header:
    """Read the header of a file; decode the file if it does not state its length.

    Args:
        segment: The segment.
        handle: Its encoded file.
        error: Reason why soundfile cannot read the file.

    Raises:
        AudioError: FFmpeg is not installed, or cannot read the file either.
    """
    decoder = _open(segment, handle, error)
    header = decoder.metadata
    if not header.duration_seconds_from_header:
        samples = _decode(decoder)
        return Header(int(samples.sample_rate), *samples.data.shape)
    n_samples = round(header.duration_seconds_from_header * header.sample_rate)
    return Header(header.sample_rate, header.num_channels, n_samples)


def decode(segment: Segment, handle: EncodedFile, error: UnsupportedError) -> NativeAudio:
    """Decode the whole file, and return the samples of a segment.

    The flags compare the decoded length with the duration that the header states.

    Args:
        segment: The segment.
        handle: Its encoded file.
        error: Reason why soundfile cannot read the file.

    Raises:
        AudioError: FFmpeg is not installed or cannot read the file either, or the file lacks the
            segment's channel or samples.
    """
    decoder = _open(segment, handle, error)
    decoded = _decode(decoder)
    samples = decoded.data  # [channels, samples]
    n_channels, n_file_samples = samples.shape
    check_channel(segment, n_channels)
    start, stop = sample_range(segment, n_file_samples, int(decoded.sample_rate))
    samples = samples[:, start:stop]
    mono = samples.mean(dim=0) if segment.channel is None else samples[segment.channel]
    levels = Levels()
    levels.add(samples.T.numpy(), mono.numpy())
    flags = levels.flags(is_mean=n_channels > 1 and segment.channel is None)
    if not segment.has_end:
        stated_s = decoder.metadata.duration_seconds_from_header
        flags += _length_flags(stated_s, n_file_samples / decoded.sample_rate)
    return NativeAudio(mono.numpy(), int(decoded.sample_rate), int(n_channels), flags)


def versions() -> dict[str, Any]:
    """Return the version of torchcodec, None if not installed, and whether FFmpeg was found."""
    return {"torchcodec": _version(), "ffmpeg": _missing() is None}


@functools.cache
def _version() -> str | None:
    try:
        return importlib.metadata.version("torchcodec")
    except importlib.metadata.PackageNotFoundError:
        return None


_first_use = threading.Lock()


def _missing() -> str | None:
    """Return what `_find_missing` finds, once: other threads wait for the first one."""
    with _first_use:
        return _find_missing()


@functools.cache
def _find_missing() -> str | None:
    """Return the name of the library that torchcodec lacks for decoding; None if it can decode."""
    silence = io.BytesIO()
    with wave.open(silence, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(320))
    try:
        importlib.import_module("torchcodec.decoders").AudioDecoder(silence.getvalue())
    except ImportError:
        return "torchcodec, which is not installed"
    except (RuntimeError, OSError):
        return "FFmpeg, which is not installed"
    return None


def _open(segment: Segment, handle: EncodedFile, error: UnsupportedError) -> Any:
    missing = _missing()
    if missing is not None:
        raise AudioError(
            f"soundfile cannot read it ({error}); {missing}, may: install it and run again"
        ) from error
    encoded: bytes | str | None = segment.path
    if segment.data is not None:
        encoded = segment.data
    elif isinstance(handle, ByteRange):
        handle.seek(0)
        encoded = handle.read()
    try:
        return importlib.import_module("torchcodec.decoders").AudioDecoder(encoded)
    except (RuntimeError, ValueError) as ffmpeg_error:
        raise AudioError(f"neither soundfile ({error}) nor FFmpeg can read it") from ffmpeg_error


def _length_flags(stated_s: float | None, decoded_s: float) -> tuple[str, ...]:
    if not stated_s:
        return (FLAG_LENGTH_UNVERIFIED,)
    if decoded_s < stated_s - _TOLERANCE_S:
        return (FLAG_TRUNCATED,)
    return (FLAG_LONGER_THAN_HEADER,) if decoded_s > stated_s + _TOLERANCE_S else ()


def _decode(decoder: Any) -> Any:
    """Decode all samples; their `data` is float32 `[channels, samples]`."""
    try:
        return decoder.get_all_samples()
    except (RuntimeError, ValueError) as error:
        raise AudioError("FFmpeg opens the file but cannot decode it") from error

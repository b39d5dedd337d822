"""Decoding with libsndfile: wav, flac, ogg (vorbis, opus), mp3, aiff and the like.

Samples are read in large blocks: each is one call of libsndfile, during which other Python threads
run. If such a call fails, the file is read again in small blocks, so that the error names the
sample where decoding stopped.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from pipeline.audio.backends.mpg123_messages import captured, tell_of_damage
from pipeline.audio.containers import check_size
from pipeline.audio.content import (
    beyond_end,
    check_channel,
    is_clipped,
    reaches_end,
    sample_range,
)
from pipeline.audio.levels import Levels
from pipeline.audio.streams import flac_end, mp3_end, ogg_end, ogg_gap
from pipeline.audio.types import Header, NativeAudio, UnsupportedError
from pipeline.errors import AudioError
from pipeline.sources.base import Segment
from pipeline.store.format.records import FLAG_DAMAGED, FLAG_LENGTH_UNVERIFIED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.audio.content import EncodedFile

_LARGE_BLOCK = 1 << 20  # samples × channels, 4 MiB: a mono clip of 65 s at 16 kHz is one call
SMALL_BLOCK = 1 << 13  # samples per channel; an error names a multiple of it
_MAX_RESERVED_SAMPLES = 1 << 26  # the buffer grows beyond this: a header may state any length
_MAX_SUMMED_CHANNELS = 7  # up to here np.mean adds channel by channel
UNKNOWN_SAMPLES = 1 << 62
"""libsndfile reports this length or more if a flac states none."""
_MP3_FRAME_SAMPLES = 1152
INCOMPLETE = "the file is damaged or incomplete"
_EXACT_SEEK_SUBTYPES = frozenset(
    ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
)
"""Encodings (wav, flac and the like) whose samples after a seek equal those of decoding from the
start. After a seek, mp3 and opus differ in the last bits, and within the last page of a vorbis file
the samples can differ."""

_COMPARED_FORMATS = frozenset(("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "MP3"))
"""Formats whose ends `containers.py` and `mp3_end` have compared."""

_WHOLE_FILE = Segment("")
_MP3 = (b"\xff\xfb\x10\xc4" + bytes(100)) * 4  # silence: four frames of 32 kbit/s
_first_use = threading.Lock()
_is_prepared = False


class _NoReseekFile(soundfile.SoundFile):  # type: ignore[misc] # soundfile has no types
    """Sound file without soundfile's extra seek after each block. An explicit `seek` still works.

    The extra seek is slow, and replaces libsndfile's error for a damaged flac by "psf_fseek()
    failed".
    """

    def seekable(self) -> bool:
        return False


def open_file(handle: EncodedFile) -> soundfile.SoundFile:
    """Open a sound file.

    Args:
        handle: Encoded file, positioned at byte 0. It stays open when the sound file is closed.

    Raises:
        UnsupportedError: libsndfile cannot open it.
    """
    if not _is_prepared:
        _prepare()
    source = handle.fileno() if isinstance(handle, io.FileIO) else handle
    try:
        with captured():
            return _NoReseekFile(source, closefd=False)
    except soundfile.LibsndfileError as error:
        raise UnsupportedError(reason_of(error)) from error


def _prepare() -> None:
    """Use each function of libsndfile once, in one thread, while the others wait.

    cffi makes the types and functions of a library when they are first used, and since 2.0 without
    a lock (python-cffi#271): threads that did so at once have ended the process. mpg123 makes its
    tables at its first file. After a fork the child has what its parent has made.
    """
    global _is_prepared
    with _first_use:
        if _is_prepared:
            return
        _NoReseekFile(io.BytesIO(_MP3)).close()
        with tempfile.TemporaryFile(buffering=0) as file:
            soundfile.write(file.fileno(), np.zeros(64), 16_000, format="WAV", closefd=False)
            file.seek(0)
            try:
                _NoReseekFile(io.BytesIO(b"no sound"))
            except soundfile.LibsndfileError as error:
                reason_of(error)
            with _NoReseekFile(file.fileno(), closefd=False) as opened:
                opened.read(out=np.empty((8, opened.channels), np.float32))
                opened.seek(0)
                _ = opened.samplerate, opened.frames, opened.format, opened.subtype
        _is_prepared = True


def probe(handle: EncodedFile) -> Header:
    """Read the header of a file.

    Args:
        handle: Encoded file, positioned at byte 0.

    Returns:
        The header; its length is at least `UNKNOWN_SAMPLES` if the file does not state it.

    Raises:
        UnsupportedError: libsndfile cannot open it.
    """
    with open_file(handle) as file:
        return Header(file.samplerate, file.channels, file.frames)


def count(handle: EncodedFile, limit_s: float) -> Header:
    """Read the header of a file, but count its samples by decoding it.

    Args:
        handle: Encoded file.
        limit_s: Time limit in seconds.

    Raises:
        UnsupportedError: libsndfile cannot open it.
        AudioError: It is damaged, holds fewer samples than its header states (other than an mp3),
            or takes longer than the limit.
    """
    handle.seek(0)
    stop_s = time.monotonic() + limit_s
    with open_file(handle) as file:
        n_samples = 0
        for block in mono_blocks(_WHOLE_FILE, handle, file, []):
            n_samples += len(block)
            if time.monotonic() > stop_s:
                raise AudioError(
                    f"its length is not known: the header states {_stated(file.frames)} samples, "
                    f"and counting them takes more than {limit_s:g} s"
                )
        return Header(file.samplerate, file.channels, n_samples)


def decode(segment: Segment, handle: EncodedFile, max_samples: int) -> NativeAudio:
    """Decode a segment.

    Args:
        segment: Its samples and channel.
        handle: Encoded file, positioned at byte 0.
        max_samples: Bound on its samples, which are held in memory.

    Returns:
        The samples; the flags are those of `mono_blocks`, and those of an mp3.

    Raises:
        UnsupportedError: libsndfile cannot read all samples.
        AudioError: The file is damaged, it lacks the segment's channel or samples, or the segment
            has more samples than the bound.
    """
    with captured() as messages, open_file(handle) as file:
        rate_hz, n_channels, n_stated = file.samplerate, file.channels, file.frames
        is_mp3 = file.format == "MP3"
        flags: list[str] = []
        mono = _read_mono(segment, handle, file, flags, max_samples)
    if is_mp3:
        flags += [FLAG_DAMAGED] if tell_of_damage(messages) else []
        start, _ = sample_range(segment, n_stated, rate_hz)
        n_read = start + len(mono)
        if reaches_end(segment, n_read, rate_hz):
            _check_mp3_end(handle, n_stated)
            flags += mp3_end(handle, n_read, n_stated)
    return NativeAudio(mono, rate_hz, n_channels, tuple(flags))


def mono_blocks(
    segment: Segment, handle: EncodedFile, file: soundfile.SoundFile, flags: list[str]
) -> Iterator[NDArray[np.float32]]:
    """Read the samples of a segment block by block, as mono.

    Args:
        segment: Its samples and channel.
        handle: Encoded file.
        file: `open_file(handle)`, not read from yet.
        flags: Gets the flags of the samples and of the end of the file, other than an mp3, when
            all blocks have been read.

    Yields:
        float32 `[n]`, C-contiguous, which nothing else refers to: up to 4 MiB of decoded samples.

    Raises:
        AudioError: The file is damaged before the end of the segment, it lacks the segment's
            channel or samples, or several streams are joined in it.
    """
    n_yielded = 0
    levels = Levels()
    try:
        for block in _blocks(segment, file, max(1, _LARGE_BLOCK // file.channels), levels):
            yield block
            n_yielded += len(block)
    except AudioError:
        handle.seek(0)
    else:
        flags += levels.flags(is_mean=file.channels > 1 and segment.channel is None)
        if reaches_end(segment, file.frames, file.samplerate):
            flags += _end_flags(handle, file, is_clipped=segment.has_end)
        elif file.format == "OGG" and (gap := ogg_gap(handle)):
            _, stop = sample_range(segment, file.frames, file.samplerate)
            gap.check(stop, file.frames, file.samplerate, is_opus(file))
        return
    with open_file(handle) as again:
        n_repeated = 0
        for block in _blocks(segment, again, SMALL_BLOCK, Levels()):
            n_repeated += len(block)
            n_new = min(len(block), n_repeated - n_yielded)
            if n_new > 0:
                yield block[len(block) - n_new :]


def seeks_exactly(file: soundfile.SoundFile) -> bool:
    """Return whether samples after a seek equal those of decoding from the start."""
    return file.subtype in _EXACT_SEEK_SUBTYPES and file.frames < UNKNOWN_SAMPLES


def is_opus(file: soundfile.SoundFile) -> bool:
    """Return whether a file is of opus, which counts samples at 48 kHz."""
    return bool(file.subtype == "OPUS")


def versions() -> dict[str, str]:
    """Return the versions of soundfile and libsndfile."""
    return {
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
    }


def _read_mono(
    segment: Segment,
    handle: EncodedFile,
    file: soundfile.SoundFile,
    flags: list[str],
    max_samples: int,
) -> NDArray[np.float32]:
    """Read the samples of a segment: float32 `[n_samples]`, mono."""
    start, stop = sample_range(segment, file.frames, file.samplerate)
    blocks = mono_blocks(segment, handle, file, flags)
    mono = next(blocks, np.empty(0, np.float32))
    n_read = len(mono)
    for block in blocks:
        if n_read + len(block) > len(mono):
            n_reserved = max(2 * len(mono), _MAX_RESERVED_SAMPLES)
            whole = np.empty(min(stop - start, n_reserved), np.float32)
            whole[:n_read] = mono[:n_read]
            mono = whole
        mono[n_read : n_read + len(block)] = block
        n_read += len(block)
        if n_read > max_samples:
            raise AudioError(f"it holds more than {max_samples} samples, too many for its size")
    return mono[:n_read]


def _blocks(
    segment: Segment, file: soundfile.SoundFile, block_samples: int, levels: Levels
) -> Iterator[NDArray[np.float32]]:
    """Read the samples of a segment in blocks of up to `block_samples` samples per channel.

    Adds them to `levels`. Reads at most the stated length: libsndfile takes a tag after the last
    flac frame for a damaged frame.
    """
    n_stated = file.frames
    check_channel(segment, file.channels)
    start, stop = sample_range(segment, n_stated, file.samplerate)
    n_read = _seek(file, start) if start else 0
    while n_read < stop:
        n_asked = min(block_samples, stop - n_read)
        read = read_block(file, n_read, n_asked)
        n_read += len(read)
        n_skipped = max(0, start - (n_read - len(read)))  # samples before the segment
        if n_skipped < len(read):
            mono = mono_of(read[n_skipped:], segment.channel)
            levels.add(read[n_skipped:], mono)
            yield mono
        if len(read) < n_asked:  # the file ends here
            if file.format != "MP3" and n_stated < UNKNOWN_SAMPLES:
                raise decode_error(n_read, n_stated, INCOMPLETE)
            # The stated length was an estimate or unknown, so the segment may exceed the true one.
            is_short = segment.has_end and not is_clipped(segment, n_read, file.samplerate)
            if is_short or n_read <= start > 0:
                raise beyond_end(segment, n_read, file.samplerate)
            return


def read_block(file: soundfile.SoundFile, n_read: int, n_asked: int) -> NDArray[np.float32]:
    """Read the next samples of a file: `[n, n_channels]`, fewer than asked for at its end.

    Raises:
        AudioError: The file is damaged there.
    """
    try:
        with captured():
            return np.asarray(file.read(out=np.empty((n_asked, file.channels), np.float32)))
    except soundfile.LibsndfileError as error:
        raise decode_error(n_read, file.frames, reason_of(error)) from error


def mono_of(samples: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    """Return one channel, or the mean over channels, of `[n, n_channels]`: equal to `np.mean`.

    For few channels np.mean spends most of its time on each sample's inner loop.
    """
    n_channels = samples.shape[1]
    if channel is not None or n_channels == 1:
        return np.ascontiguousarray(samples[:, channel or 0])
    if n_channels > _MAX_SUMMED_CHANNELS:
        return np.asarray(samples.mean(axis=1))
    mean = samples[:, 0] + samples[:, 1]
    for other in range(2, n_channels):
        mean += samples[:, other]
    mean /= n_channels
    return mean


def _end_flags(handle: EncodedFile, file: soundfile.SoundFile, is_clipped: bool) -> tuple[str, ...]:
    """Compare the end of the file with the length that it states.

    The size of a file that is read whole was compared before it was opened.
    """
    if file.format == "FLAC":
        unknown = (FLAG_LENGTH_UNVERIFIED,) if file.frames >= UNKNOWN_SAMPLES else ()
        return unknown + flac_end(handle, file.frames)
    if file.format == "OGG":
        return ogg_end(handle)
    if file.format not in _COMPARED_FORMATS:
        return (FLAG_LENGTH_UNVERIFIED,)
    # The end of an mp3 is compared by `decode`, from where libsndfile has stopped to read.
    return check_size(handle, is_whole=True).flags if is_clipped and file.format != "MP3" else ()


def _seek(file: soundfile.SoundFile, start: int) -> int:
    """Move towards a sample; return the sample reached, 0 if only decoding forward is exact."""
    if not seeks_exactly(file):
        return 0
    try:
        return int(file.seek(start))
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"sample {start} of {file.frames} cannot be reached: {reason_of(error)}"
        ) from error


def _check_mp3_end(handle: EncodedFile, n_stated: int) -> None:
    """Refuse an mp3 with audio after the estimated end, where libsndfile stops.

    A complete mp3 is followed by nothing or by a tag, neither of which opens as an mp3. The last
    frames may stay unread if they hold nothing but the encoder's padding.
    """
    n_unread = 0
    tail = handle.read()  # from where libsndfile stopped reading
    if not tail:
        return
    with contextlib.suppress(UnsupportedError), open_file(io.BytesIO(tail)) as rest:
        n_unread = rest.frames
    if n_unread > 2 * _MP3_FRAME_SAMPLES:
        raise UnsupportedError(
            f"Its first frame and size suggest {n_stated} samples, but it holds more, and no "
            "Xing header to tell how many"
        )


def decode_error(n_read: int, n_stated: int, reason: str) -> AudioError:
    return AudioError(f"decoding stopped after sample {n_read} of {_stated(n_stated)}: {reason}")


def _stated(n_samples: int) -> str:
    return "an unknown number" if n_samples >= UNKNOWN_SAMPLES else str(n_samples)


def reason_of(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(". ")

"""Encoded audio in, one float32 waveform at the model's rate out.

soundfile reads wav, flac, ogg (vorbis, opus), mp3, aiff and the like without any system package.
What it cannot open goes to torchcodec where FFmpeg's libraries are installed. `probe` reads
headers, `decode` reads samples. Reasons in an AudioError hold no paths: they are stored as they
are.

A header can be wrong about the length:

- wav, aiff, au: the file simply ends early. libsndfile counts what is there, and so do `probe`
  and `decode`. An ogg cut off at the end reads the same way: its last page counts the samples.
- flac, or a page lost within an ogg: fewer samples come than were promised, and later ones may
  have moved. `decode` raises AudioError and says where it stopped.
- mp3 lengths are estimates where there is no Xing header. Fewer samples than estimated are taken
  as they are; where libsndfile would stop before the end, `decode` turns to FFmpeg or raises.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import soundfile
import torch
import torchaudio

from pipeline.audio.headers import Stated, read_header
from pipeline.errors import AudioError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16000
_BLOCK_SAMPLES = 1 << 13
_RESERVE_SAMPLES = 1 << 26  # a header may claim anything; beyond this the buffer grows by need
_UNKNOWN_SAMPLES = 1 << 62  # libsndfile's count for a flac that does not say
_END_BYTES = 4096  # of either end of the file that go into its fingerprint
_MP3_FRAME_SAMPLES = 1152
_MAX_KERNEL_ELEMENTS = 1 << 25  # 128 MiB; 44.1 kHz needs 76,000

_STREAM_S = 10  # of audio in a block of `decode_blocks`
_RESAMPLER_WIDTH = 6
_RESAMPLER_ROLLOFF = 0.99
_RESAMPLER = {
    "resampling_method": "sinc_interp_hann",
    "lowpass_filter_width": _RESAMPLER_WIDTH,
    "rolloff": _RESAMPLER_ROLLOFF,
}

AUDIO_IDENTITY: dict[str, Any] = {
    "decoders": ["soundfile", "torchcodec"],
    "mono": "mean over channels in float32",
    "resampler": {"name": "torchaudio.functional.resample", "dtype": "float32", **_RESAMPLER},
}
"""What decides the samples of a waveform; part of a store's identity."""


@dataclass(frozen=True, slots=True)
class EncodedAudio:
    """The undecoded audio of one utterance.

    Attributes:
        path: Absolute path of a local file, or None when only bytes are there.
        data: The encoded bytes, or None when they are in the file. They win over the path.
        name: What to call it in messages.
    """

    path: str | None
    data: bytes | None
    name: str = "audio"


@dataclass(frozen=True, slots=True)
class Probe:
    """What the header says.

    Attributes:
        n_samples: Length of the waveform that `decode` returns, in samples at the target rate.
        source_rate_hz: Rate before resampling.
        n_channels: Channels before they are averaged.
        n_bytes: Size of the encoded audio.
        fingerprint: crc32c of the first and last 4 KiB and the size, as uint32: tells a changed
            file from an unchanged one without reading all of it.
    """

    n_samples: int
    source_rate_hz: int
    n_channels: int
    n_bytes: int
    fingerprint: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """One utterance's sound.

    Attributes:
        waveform: [n_samples] float32, mono, finite, at the target rate. Integers are scaled to
            [-1, 1); float files keep their values, also those beyond ±1.
        source_rate_hz: Rate before resampling.
        n_channels: Channels before they were averaged.
    """

    waveform: torch.Tensor
    source_rate_hz: int
    n_channels: int


def probe(audio: EncodedAudio, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Probe:
    """Reads the header and two short stretches of the file, whatever its length.

    A flac that does not state its length is the exception: it is decoded to be counted.

    Args:
        audio: The encoded audio.
        sample_rate_hz: Rate of the waveform that `decode` will be asked for.

    Raises:
        AudioError: It is missing, empty, holds no samples, or no decoder can open it.
    """
    with _opened(audio) as handle:
        head, n_bytes, fingerprint = _fingerprint(handle)
        stated = read_header(head, n_bytes) or _probe_soundfile(audio, handle)
    rate_hz, n_channels, n_source = stated
    _check_header(rate_hz, n_source, sample_rate_hz)
    n_samples = _resampled_length(n_source, rate_hz, sample_rate_hz)
    return Probe(n_samples, rate_hz, n_channels, n_bytes, fingerprint)


def decode(audio: EncodedAudio, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Decoded:
    """Decodes one utterance to mono at the target rate.

    The result depends on this utterance alone and equals `torchaudio.functional.resample` of the
    channel mean bit for bit. The module's docstring says what becomes of wrong lengths.

    Args:
        audio: The encoded audio.
        sample_rate_hz: Rate of the waveform.

    Raises:
        AudioError: It is missing, empty, damaged, holds no samples or a non-finite one, or no
            decoder can open it.

    Example:
        >>> decode(EncodedAudio("/data/clip.flac", None)).waveform.shape
        torch.Size([35040])
    """
    with _opened(audio) as handle:
        try:
            mono, rate_hz, n_channels = _decode_soundfile(handle)
        except _UnsuitedError as error:
            mono, rate_hz, n_channels = _decode_torchcodec(audio, error)
    _check_header(rate_hz, len(mono), sample_rate_hz)
    waveform = torch.from_numpy(mono)
    if rate_hz != sample_rate_hz:
        waveform = _resampler(rate_hz, sample_rate_hz)(waveform)
    _check_finite(waveform)
    return Decoded(waveform, rate_hz, n_channels)


def decode_blocks(
    audio: EncodedAudio, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Iterator[torch.Tensor]:
    """Decodes one utterance of any length in bounded memory.

    The blocks, joined, are the waveform of `decode` to float32 rounding. An mp3, and what only
    FFmpeg can read, is decoded whole all the same.

    Args:
        audio: The encoded audio.
        sample_rate_hz: Rate of the waveform.

    Yields:
        float32 [n], mono, about ten seconds each.

    Raises:
        AudioError: As for `decode`; blocks before the damage have been handed out by then.
    """
    with _opened(audio) as handle:
        try:
            file = _soundfile(handle)
        except _UnsuitedError:
            yield decode(audio, sample_rate_hz).waveform
            return
        with file:
            if file.format == "MP3":  # whether it is whole can only be told at its end
                yield decode(audio, sample_rate_hz).waveform
                return
            _check_header(file.samplerate, file.frames, sample_rate_hz)
            blocks = _mono_blocks(file)
            for block in _resampled_blocks(blocks, file.samplerate, sample_rate_hz):
                _check_finite(block)
                yield block


def audio_provenance() -> dict[str, Any]:
    """Versions behind the waveforms: they may change which files are readable, not what a layer is.

    Returns:
        JSON-able: soundfile, libsndfile, torchaudio, torchcodec (None if not installed) and
        ffmpeg, which is true where torchcodec found FFmpeg's libraries.
    """
    try:
        torchcodec: str | None = importlib.metadata.version("torchcodec")
    except importlib.metadata.PackageNotFoundError:
        torchcodec = None
    return {
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "torchaudio": torchaudio.__version__,
        "torchcodec": torchcodec,
        "ffmpeg": _ffmpeg_missing() is None,
    }


# --- what every decoder needs -----------------------------------------------------------------


class _UnsuitedError(Exception):
    """soundfile cannot give all samples of this file; the message says why."""


@contextlib.contextmanager
def _opened(audio: EncodedAudio) -> Iterator[io.FileIO | io.BytesIO]:
    """The encoded bytes as an unbuffered file, so that its position is the decoder's."""
    if audio.data is not None:
        handle: io.FileIO | io.BytesIO = io.BytesIO(audio.data)
    elif audio.path is not None:
        try:
            handle = io.FileIO(audio.path)
        except OSError as error:
            raise AudioError(f"the file cannot be opened: {error.strerror}") from error
    else:
        raise AudioError("the dataset has neither a path nor bytes for this audio")
    with handle:
        if handle.seek(0, os.SEEK_END) == 0:
            raise AudioError("the file is empty (0 bytes)")
        handle.seek(0)
        yield handle


def _fingerprint(handle: io.FileIO | io.BytesIO) -> tuple[bytes, int, int]:
    """The first bytes, the number of all bytes, and the crc32c of both ends and that number."""
    head = handle.read(_END_BYTES)
    n_bytes = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, n_bytes - _END_BYTES))
    tail = handle.read(_END_BYTES)
    handle.seek(0)
    return head, n_bytes, int(google_crc32c.value(head + tail + n_bytes.to_bytes(8, "little")))


def _check_header(rate_hz: int, n_samples: int, sample_rate_hz: int) -> None:
    if n_samples <= 0:
        raise AudioError("the file holds no samples")
    divisor = math.gcd(rate_hz, sample_rate_hz)
    if (rate_hz // divisor) * (sample_rate_hz // divisor) > _MAX_KERNEL_ELEMENTS:
        raise AudioError(
            f"the sample rate, {rate_hz} Hz, shares no divisor with {sample_rate_hz} Hz that "
            "would make resampling practical: resample the file first"
        )


def _check_finite(waveform: torch.Tensor) -> None:
    low, high = torch.aminmax(waveform)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise AudioError("the audio holds samples that are not finite (NaN or infinity)")


def _resampled_blocks(
    blocks: Iterator[NDArray[np.float32]], source_rate_hz: int, sample_rate_hz: int
) -> Iterator[torch.Tensor]:
    """Resamples a waveform that arrives in blocks.

    Every output sample sees the same inputs as if the waveform were resampled at once: blocks are
    cut where an output falls on an input, and overlap by the width of the filter.
    """
    divisor = math.gcd(source_rate_hz, sample_rate_hz)
    up, down = sample_rate_hz // divisor, source_rate_hz // divisor
    reach_s = _RESAMPLER_WIDTH / (min(source_rate_hz, sample_rate_hz) * _RESAMPLER_ROLLOFF)
    overlap = math.ceil(reach_s * source_rate_hz / down + 1) * down  # source samples on each side
    step = max(1, _STREAM_S * source_rate_hz // down) * down
    parts: list[NDArray[np.float32]] = [np.zeros(overlap, np.float32)]  # torchaudio pads with zeros
    held, n_read, n_out = overlap, 0, 0
    for block in blocks:
        parts.append(block.copy())
        held, n_read = held + len(block), n_read + len(block)
        if held < overlap + step + overlap:
            continue
        source = np.concatenate(parts)
        yield _resampled_middle(source[: step + 2 * overlap], overlap, step, up, down)
        n_out += step // down * up
        parts = [source[step:]]
        held -= step
    total = _resampled_length(n_read, source_rate_hz, sample_rate_hz)
    rest = np.concatenate(parts)
    if total > n_out:
        yield _resampled_middle(rest, overlap, len(rest), up, down)[: total - n_out]


def _resampled_middle(
    source: NDArray[np.float32], overlap: int, step: int, up: int, down: int
) -> torch.Tensor:
    """Resamples a stretch and keeps what belongs to its `step` source samples after the overlap."""
    waveform = torch.from_numpy(source)
    if up != down:
        waveform = _resampler(down, up)(waveform)
    first = overlap // down * up
    return waveform[first : first + step // down * up if step < len(source) else None]


def _resampled_length(n_source: int, source_rate_hz: int, sample_rate_hz: int) -> int:
    """ceil(n · target/source), rounded through float32 as torchaudio's resampler does."""
    if source_rate_hz == sample_rate_hz:
        return n_source
    divisor = math.gcd(source_rate_hz, sample_rate_hz)
    up, down = sample_rate_hz // divisor, source_rate_hz // divisor
    claimed = int(np.ceil(np.float32(up * n_source / down)))
    return min(claimed, up * (n_source // down + 1))  # no more than the convolution yields


@functools.lru_cache(maxsize=16)
def _resampler(source_rate_hz: int, sample_rate_hz: int) -> torch.nn.Module:
    """The resampler of one pair of rates; building its kernel costs more than a short clip."""
    resampler: torch.nn.Module = torchaudio.transforms.Resample(
        source_rate_hz, sample_rate_hz, dtype=torch.float32, **_RESAMPLER
    )
    return resampler


# --- soundfile --------------------------------------------------------------------------------


class _Stream(soundfile.SoundFile):  # type: ignore[misc] # soundfile has no types
    """A sound file read forwards only.

    soundfile seeks after every block of a seekable file, which costs time and turns libsndfile's
    own account of a damaged flac into "psf_fseek() failed".
    """

    def seekable(self) -> bool:
        return False


def _soundfile(handle: io.FileIO | io.BytesIO) -> soundfile.SoundFile:
    source = handle.fileno() if isinstance(handle, io.FileIO) else handle
    try:
        return _Stream(source, closefd=False)
    except soundfile.LibsndfileError as error:
        raise _UnsuitedError(_reason(error)) from error


def _probe_soundfile(audio: EncodedAudio, handle: io.FileIO | io.BytesIO) -> Stated:
    try:
        with _soundfile(handle) as file:
            n_source = file.frames
            if n_source >= _UNKNOWN_SAMPLES:
                n_source = len(_read_mono(file))
            return file.samplerate, file.channels, n_source
    except _UnsuitedError as error:
        return _probe_torchcodec(audio, error)


def _decode_soundfile(handle: io.FileIO | io.BytesIO) -> tuple[NDArray[np.float32], int, int]:
    with _soundfile(handle) as file:
        rate_hz, n_channels, n_promised = file.samplerate, file.channels, file.frames
        is_mp3 = file.format == "MP3"
        mono = _read_mono(file)
    if is_mp3:
        _check_mp3_end(handle, n_promised)
    return mono, rate_hz, n_channels


def _read_mono(file: soundfile.SoundFile) -> NDArray[np.float32]:
    """Reads to the end of an open file: float32 [n_samples], channels averaged."""
    mono = np.empty(min(file.frames, _RESERVE_SAMPLES), np.float32)
    n_read = 0
    for block in _mono_blocks(file):
        if n_read + len(block) > len(mono):
            mono = np.concatenate([mono, np.empty_like(mono)])
        mono[n_read : n_read + len(block)] = block
        n_read += len(block)
    return mono[:n_read]


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """Reads an open file block by block, averaging channels; each block is good until the next.

    Never asks for more than the header promises: libsndfile would take a tag behind the last
    flac frame for a damaged frame.
    """
    n_promised, n_channels = file.frames, file.channels
    block = np.empty((_BLOCK_SAMPLES, n_channels), np.float32)  # [samples, channels]
    mono = np.empty(_BLOCK_SAMPLES, np.float32)
    n_read = 0
    while n_read < n_promised:
        n_asked = min(_BLOCK_SAMPLES, n_promised - n_read)
        try:
            got = file.read(out=block[:n_asked])
        except soundfile.LibsndfileError as error:
            promised = "an unknown number" if n_promised >= _UNKNOWN_SAMPLES else n_promised
            raise AudioError(
                f"decoding stopped after sample {n_read} of {promised}: {_reason(error)}"
            ) from error
        n_read += len(got)
        if n_channels == 1:
            yield got[:, 0]
        else:
            yield np.mean(got, axis=1, out=mono[: len(got)])
        if len(got) < n_asked:
            if file.format != "MP3" and n_promised < _UNKNOWN_SAMPLES:
                raise AudioError(
                    f"decoding stopped after sample {n_read} of {n_promised}: "
                    "the file is damaged or incomplete"
                )
            return


def _check_mp3_end(handle: io.FileIO | io.BytesIO, n_promised: int) -> None:
    """Refuses an mp3 with sound behind the estimated end, where libsndfile stops.

    What follows a complete mp3 is nothing or a tag, neither of which opens as an mp3. The last
    frames may stay unread where they hold nothing but the encoder's padding.
    """
    n_unread = 0
    with contextlib.suppress(_UnsuitedError), _soundfile(io.BytesIO(handle.read())) as rest:
        n_unread = rest.frames
    if n_unread > 2 * _MP3_FRAME_SAMPLES:
        raise _UnsuitedError(
            f"Its first frame and size suggest {n_promised} samples, but it holds more, and no "
            "Xing header to tell how many"
        )


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(". ")


# --- torchcodec -------------------------------------------------------------------------------


@functools.cache
def _ffmpeg_missing() -> str | None:
    """None where torchcodec can decode, else what is missing."""
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(160, np.float32), SAMPLE_RATE_HZ, format="WAV")
    try:
        importlib.import_module("torchcodec.decoders").AudioDecoder(silence.getvalue())
    except ImportError:
        return "torchcodec, which is not installed"
    except (RuntimeError, OSError):
        return "FFmpeg, which is not installed"
    return None


def _open_torchcodec(audio: EncodedAudio, error: _UnsuitedError) -> Any:
    missing = _ffmpeg_missing()
    if missing is not None:
        raise AudioError(
            f"soundfile cannot read it ({error}); {missing}, may: install it and run again"
        ) from error
    decoders = importlib.import_module("torchcodec.decoders")
    try:
        return decoders.AudioDecoder(audio.data if audio.data is not None else audio.path)
    except (RuntimeError, ValueError) as ffmpeg_error:
        raise AudioError(f"neither soundfile ({error}) nor FFmpeg can read it") from ffmpeg_error


def _probe_torchcodec(audio: EncodedAudio, error: _UnsuitedError) -> tuple[int, int, int]:
    decoder = _open_torchcodec(audio, error)
    header = decoder.metadata
    if not header.duration_seconds_from_header:
        mono, rate_hz, n_channels = _decode_torchcodec(audio, error)
        return rate_hz, n_channels, len(mono)
    n_source = round(header.duration_seconds_from_header * header.sample_rate)
    return header.sample_rate, header.num_channels, n_source


def _decode_torchcodec(
    audio: EncodedAudio, error: _UnsuitedError
) -> tuple[NDArray[np.float32], int, int]:
    decoder = _open_torchcodec(audio, error)
    try:
        samples = decoder.get_all_samples()  # data: [channels, samples]
    except (RuntimeError, ValueError) as ffmpeg_error:
        raise AudioError("FFmpeg opens the file but cannot decode it") from ffmpeg_error
    mono = samples.data.mean(dim=0).numpy()
    return mono, int(samples.sample_rate), int(samples.data.shape[0])

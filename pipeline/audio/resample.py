"""Resampling of whole waveforms and of blocks.

Most pairs of rates are resampled by `torchaudio.functional.resample`, as encoders were trained. Its
kernel has a row for each phase; for pairs with large factors (24,414 Hz to 16 kHz: 8,000 phases of
12,225 taps) it would take too much memory and time. These pairs are resampled by soxr, which
interpolates phases.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
import torch
import torchaudio

from pipeline.errors import AudioError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_S = 10  # of audio in a block of `resample_blocks`
_MAX_KERNEL_ELEMENTS = 1 << 25  # 128 MiB; 44.1 kHz to 16 kHz needs 76,000
_MIN_RATE_HZ = 100
_MAX_RATE_HZ = 10_000_000  # soxr needs seconds for a short file of a higher rate
_MAX_SAMPLES = 1 << 36  # 49 days at 16 kHz
_FILTER_WIDTH = 6
_ROLLOFF = 0.99

RESAMPLER: dict[str, Any] = {
    "resampling_method": "sinc_interp_hann",
    "lowpass_filter_width": _FILTER_WIDTH,
    "rolloff": _ROLLOFF,
}
"""Settings of torchaudio's resampler; part of a store's identity."""
SOXR_RESAMPLER: dict[str, Any] = {"name": "soxr", "dtype": "float32", "quality": "HQ"}
"""Settings of soxr; part of the identity of a store that holds audio resampled by it."""


def needs_soxr(source_rate_hz: int, sample_rate_hz: int) -> bool:
    """Return whether torchaudio's kernel for a pair of rates would be too large."""
    divisor = math.gcd(source_rate_hz, sample_rate_hz)
    return (source_rate_hz // divisor) * (sample_rate_hz // divisor) > _MAX_KERNEL_ELEMENTS


def resample(mono: NDArray[np.float32], source_rate_hz: int, sample_rate_hz: int) -> torch.Tensor:
    """Resample a waveform: float32 `[n_source]` → float32 `[n_samples]`."""
    waveform = torch.from_numpy(mono)
    if source_rate_hz == sample_rate_hz:
        return waveform
    if needs_soxr(source_rate_hz, sample_rate_hz):
        return torch.cat([*_soxr_blocks(iter([mono]), source_rate_hz, sample_rate_hz)])
    resampled: torch.Tensor = _resampler(source_rate_hz, sample_rate_hz)(waveform)
    return resampled


def resample_blocks(
    blocks: Iterator[NDArray[np.float32]], source_rate_hz: int, sample_rate_hz: int
) -> Iterator[torch.Tensor]:
    """Resample a waveform that arrives in blocks.

    Every output sample has the same inputs as if the waveform were resampled at once: blocks are
    cut where an output coincides with an input, and overlap by the width of the filter. soxr has
    a state instead.

    Args:
        blocks: float32 `[n]` each, at the source rate; their lengths do not change the result.
        source_rate_hz: Rate of the blocks.
        sample_rate_hz: Rate of the result.

    Yields:
        float32 `[n]`, about ten seconds each; with soxr as long as the blocks.
    """
    if needs_soxr(source_rate_hz, sample_rate_hz):
        yield from _soxr_blocks(blocks, source_rate_hz, sample_rate_hz)
        return
    divisor = math.gcd(source_rate_hz, sample_rate_hz)
    up, down = sample_rate_hz // divisor, source_rate_hz // divisor
    reach_s = _FILTER_WIDTH / (min(source_rate_hz, sample_rate_hz) * _ROLLOFF)
    overlap = math.ceil(reach_s * source_rate_hz / down + 1) * down  # source samples on each side
    step = max(1, _BLOCK_S * source_rate_hz // down) * down
    parts: list[NDArray[np.float32]] = [np.zeros(overlap, np.float32)]  # torchaudio pads with zeros
    n_held, n_read, n_out = overlap, 0, 0
    for block in blocks:
        parts.append(block)
        n_held, n_read = n_held + len(block), n_read + len(block)
        if n_held < overlap + step + overlap:
            continue
        source = np.concatenate(parts)
        while n_held >= overlap + step + overlap:
            yield _resample_middle(source[: step + 2 * overlap], overlap, step, up, down)
            n_out += step // down * up
            source = source[step:]
            n_held -= step
        parts = [source]
    total = resampled_length(n_read, source_rate_hz, sample_rate_hz)
    rest = np.concatenate(parts)
    if total > n_out:
        yield _resample_middle(rest, overlap, len(rest), up, down)[: total - n_out]


def resampled_length(n_source: int, source_rate_hz: int, sample_rate_hz: int) -> int:
    """Return ceil(n · target/source), rounded through float32 as torchaudio's resampler does."""
    if source_rate_hz == sample_rate_hz:
        return n_source
    divisor = math.gcd(source_rate_hz, sample_rate_hz)
    up, down = sample_rate_hz // divisor, source_rate_hz // divisor
    if needs_soxr(source_rate_hz, sample_rate_hz):
        return -(-n_source * up // down)
    n_rounded = int(np.ceil(np.float32(up * n_source / down)))
    return min(n_rounded, up * (n_source // down + 1))  # at most what the convolution returns


def check_resampling(n_source: int, source_rate_hz: int, sample_rate_hz: int) -> None:
    """Raise AudioError if there are no samples, too many, or if the rate is not one of audio."""
    if n_source <= 0:
        raise AudioError("the file holds no samples")
    if not _MIN_RATE_HZ <= source_rate_hz <= _MAX_RATE_HZ:
        raise AudioError(
            f"the sample rate is {source_rate_hz} Hz, not one of audio: it is below {_MIN_RATE_HZ} "
            f"or above {_MAX_RATE_HZ} Hz"
        )
    n_samples = n_source * sample_rate_hz // source_rate_hz
    if n_samples > _MAX_SAMPLES:
        raise AudioError(
            f"it is too long: {n_samples} samples at {sample_rate_hz} Hz, more than {_MAX_SAMPLES}"
        )


def _soxr_blocks(
    blocks: Iterator[NDArray[np.float32]], source_rate_hz: int, sample_rate_hz: int
) -> Iterator[torch.Tensor]:
    """Resample blocks with soxr; their lengths do not change the result.

    soxr rounds the length of the result. Zeros at the end make it at least the length that is
    rounded up, as torchaudio does.
    """
    stream = soxr.ResampleStream(
        source_rate_hz, sample_rate_hz, 1, "float32", SOXR_RESAMPLER["quality"]
    )
    n_source = n_out = 0
    for block in blocks:
        n_source += len(block)
        resampled = stream.resample_chunk(block)
        n_out += len(resampled)
        if len(resampled):
            yield torch.from_numpy(resampled)
    n_zeros = source_rate_hz // sample_rate_hz + 1
    rest = stream.resample_chunk(np.zeros(n_zeros, np.float32), last=True)
    n_left = resampled_length(n_source, source_rate_hz, sample_rate_hz) - n_out
    yield torch.from_numpy(rest[:n_left])


def _resample_middle(
    source: NDArray[np.float32], overlap: int, step: int, up: int, down: int
) -> torch.Tensor:
    """Resample a block; keep the output of the `step` source samples after the left overlap.

    All of the rest is kept if `step` is `len(source)`.
    """
    waveform = torch.from_numpy(source)
    if up != down:
        waveform = _resampler(down, up)(waveform)
    first = overlap // down * up
    return waveform[first : first + step // down * up if step < len(source) else None]


@functools.lru_cache(maxsize=16)
def _resampler(source_rate_hz: int, sample_rate_hz: int) -> torch.nn.Module:
    """Return the cached resampler of a pair of rates: its kernel takes longer than a short clip."""
    resampler: torch.nn.Module = torchaudio.transforms.Resample(
        source_rate_hz, sample_rate_hz, dtype=torch.float32, **RESAMPLER
    )
    return resampler

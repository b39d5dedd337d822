"""Results of the audio functions and of the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class UnsupportedError(Exception):
    """soundfile cannot read all samples of a file; the message says why."""


class Header(NamedTuple):
    """Facts that the header of a sound file states.

    Attributes:
        rate_hz: Native sample rate in Hz.
        n_channels: Number of channels.
        n_samples: Samples per channel.
    """

    rate_hz: int
    n_channels: int
    n_samples: int


class NativeAudio(NamedTuple):
    """Decoded samples of a segment before resampling.

    Attributes:
        mono: float32 `[n_samples]` at the native rate: the mean over channels, or one channel.
        rate_hz: Native sample rate in Hz.
        n_channels: Number of channels of the file.
        flags: `FLAG_*` values of `pipeline.store.format.records` that apply.
    """

    mono: NDArray[np.float32]
    rate_hz: int
    n_channels: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """Facts about a segment that are known without decoding it.

    Attributes:
        n_samples: Length of the waveform that `decode` returns, in samples at the target rate.
        source_rate_hz: Native sample rate in Hz.
        n_channels: Number of channels of the file.
        n_bytes: Size of the encoded audio.
        fingerprint: crc32c of the first and last 4 KiB of the encoded bytes, of their number, and
            of the part of a segment that is not the whole, as uint32. Detects a changed file, or
            another part of it, without reading all of it.
    """

    n_samples: int
    source_rate_hz: int
    n_channels: int
    n_bytes: int
    fingerprint: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoded samples of a segment.

    Attributes:
        waveform: float32 `[n_samples]`, mono, finite, at the target rate. Integers are scaled to
            [-1, 1); float files keep their values, also those beyond ±1.
        source_rate_hz: Native sample rate in Hz.
        n_channels: Number of channels of the file.
        flags: `FLAG_*` values of `pipeline.store.format.records` that apply to the segment. Of
            blocks, the last one has them all.
    """

    waveform: torch.Tensor
    source_rate_hz: int
    n_channels: int
    flags: tuple[str, ...] = ()

"""What the audio functions return, and what passes between them and the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class UnsupportedError(Exception):
    """soundfile cannot read all samples of a file; the message says why."""


class Header(NamedTuple):
    """What a sound file states about itself.

    Attributes:
        rate_hz: Native sample rate.
        n_channels: Number of channels.
        n_samples: Samples per channel.
    """

    rate_hz: int
    n_channels: int
    n_samples: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of a segment without decoding it.

    Attributes:
        n_samples: Length of the waveform that `decode` returns, in samples at the target rate.
        source_rate_hz: Rate before resampling.
        n_channels: Channels of the file.
        n_bytes: Size of the encoded audio.
        fingerprint: crc32c of the first and last 4 KiB of the encoded bytes and of their number,
            as uint32. Detects a changed file without reading all of it.
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
        waveform: [n_samples] float32, mono, finite, at the target rate. Integers are scaled to
            [-1, 1); float files keep their values, also those beyond ±1.
        source_rate_hz: Rate before resampling.
        n_channels: Channels of the file.
    """

    waveform: torch.Tensor
    source_rate_hz: int
    n_channels: int

"""Self-check of the configured encoder on clips of a dataset, or on synthetic ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.audio.decode import decode_blocks
from pipeline.audio.probe import count_channels
from pipeline.config import Config
from pipeline.encoders.base import Encoder
from pipeline.encoders.selfcheck import SelfCheck, selfcheck
from pipeline.errors import AudioError, SourceError
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source

QUICK_CLIPS = 3
QUICK_CLIP_S = 5.0
FULL_CLIPS = 8


def quick_selfcheck(encoder: Encoder, source: Source) -> SelfCheck | None:
    """Check the encoder on the starts of a few clips of the dataset.

    Args:
        encoder: The encoder.
        source: The dataset.

    Returns:
        The result; None if none of the first rows is readable.
    """
    clips = dataset_clips(source, encoder.geometry.sample_rate_hz, QUICK_CLIPS, QUICK_CLIP_S)
    # Unequal lengths, so that the batch holds padding that could leak.
    clips = [clip[: max(1, len(clip) // (i + 1))] for i, clip in enumerate(clips)]
    return selfcheck(encoder, clips) if clips else None


def full_selfcheck(config: Config, device: str) -> SelfCheck:
    """Check the configured encoder on clips of mixed lengths.

    Args:
        config: Model, extraction settings, and optionally a dataset; without one the clips are
            synthetic.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: A setting is wrong.
        SourceError: None of the first rows of the dataset is readable.
    """
    encoder = resolve_encoder_setup(config).loader(device)()
    rate_hz, longest_s = encoder.geometry.sample_rate_hz, encoder.windows.max_window_s
    if config.dataset.path or config.dataset.name:
        source = open_source(config.dataset, count_channels)
        clips = dataset_clips(source, rate_hz, FULL_CLIPS, longest_s)
        if not clips:
            raise SourceError("the dataset has no readable clip among its first rows")
    else:
        clips = synthetic_clips(rate_hz)
    return selfcheck(encoder, clips)


def synthetic_clips(sample_rate_hz: int) -> list[Tensor]:
    """Make voiced sounds of 0.03 to 8 s, the same at every call: float32 `[n_samples]` each."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for seconds in (0.03, 0.4, 1.0, 2.5, 4.0, 8.0):
        time_s = torch.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
        pitch_hz = 90 + 160 * float(torch.rand((), generator=generator))
        phase = 2 * math.pi * pitch_hz * (time_s + 0.02 * torch.sin(2 * math.pi * 3 * time_s))
        voiced = torch.stack([torch.sin(k * phase) / k for k in range(1, 8)]).sum(0)
        breath = torch.randn(time_s.shape, generator=generator)
        clips.append(0.1 * voiced + 0.01 * breath)
    return clips


def dataset_clips(
    source: Source, sample_rate_hz: int, n_clips: int, longest_s: float
) -> list[Tensor]:
    """Decode the starts of the first readable rows of a dataset.

    Args:
        source: The dataset.
        sample_rate_hz: Sample rate of the clips.
        n_clips: Maximum number of clips.
        longest_s: Maximum length of a clip in seconds; the rest of a recording is not decoded.

    Returns:
        Clips, float32 `[n_samples]` each.
    """
    clips: list[Tensor] = []
    for row in range(min(len(source), 10 * n_clips)):
        if len(clips) == n_clips:
            break
        try:
            clips.append(_start(source, row, sample_rate_hz, round(longest_s * sample_rate_hz)))
        except AudioError:
            continue
    return clips


def _start(source: Source, row: int, sample_rate_hz: int, n_samples: int) -> Tensor:
    """Decode the first samples of a row: float32, at most `[n_samples]`."""
    blocks, n_decoded = [], 0
    for block in decode_blocks(source.segment(row), sample_rate_hz):
        blocks.append(block.waveform)
        n_decoded += len(block.waveform)
        if n_decoded >= n_samples:
            break
    return torch.cat(blocks)[:n_samples]

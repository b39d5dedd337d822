"""Self-check of the configured encoder on clips of a dataset, or on synthetic ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.audio.decode import decode_blocks
from pipeline.audio.probe import count_channels
from pipeline.config import Config
from pipeline.encoders.base import Encoder
from pipeline.encoders.clips import encode_clips
from pipeline.encoders.selfcheck import SelfCheck, is_silent, selfcheck
from pipeline.errors import AudioError, SourceError
from pipeline.extract.encoder_setup import EncoderSetup, resolve_encoder_setup
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source

QUICK_CLIPS = 3
_FIXED_CLIPS = 2  # where each costs a whole window, and a check 14 of them
QUICK_CLIP_S = 4.0
FULL_CLIPS = 8
_TIMED_CLIPS = 16  # most clips of a batch that is timed against one by one
_TIMINGS = 2


@dataclass(frozen=True)
class Clips:
    """Clips for a check.

    Attributes:
        waveforms: float32 `[n_samples]` each.
        note: Why they are not those of the dataset; None if they are, or if there is none.
        is_synthetic: Whether they are synthetic.
        n_silent: Clips of the dataset that were left out because they are silent.
    """

    waveforms: Sequence[Tensor]
    note: str | None = None
    is_synthetic: bool = False
    n_silent: int = 0


def quick_clips(encoder: Encoder, source: Source, n_clips: int = QUICK_CLIPS) -> Clips:
    """Return starts of a few clips of the dataset, of different lengths."""
    found = dataset_clips(source, encoder.geometry.sample_rate_hz, n_clips, QUICK_CLIP_S)
    # Unequal lengths, so that the batch holds padding that could leak.
    clips = [clip[: max(1, len(clip) // (i + 1))] for i, clip in enumerate(found.waveforms)]
    return replace(found, waveforms=clips)


def quick_selfcheck(
    encoder: Encoder, source: Source, setup: EncoderSetup, device: str
) -> tuple[SelfCheck, list[str]]:
    """Check an encoder on the starts of a few clips of the dataset, as the workers run it.

    In a process without the workers' device it is checked in fp32.

    Args:
        encoder: The encoder.
        source: The dataset.
        setup: How the encoder is configured.
        device: "cpu" or "cuda", the device of the workers.

    Returns:
        The result, and what to say about how it was made.
    """
    has_fixed_window = setup.description.window_limit_s is not None
    clips = quick_clips(encoder, source, _FIXED_CLIPS if has_fixed_window else QUICK_CLIPS)
    notes = [] if clips.note is None else [clips.note]
    is_there = encoder.device.type == device
    if not is_there:
        notes.append(
            f"this process has no {device} device: the self-check ran on {encoder.device} in fp32; "
            "run `strata selfcheck` on a node that has one to check the precision"
        )
    found = _check(encoder, clips, setup, device, None if is_there else "fp32")
    return found, notes


def full_selfcheck(config: Config, device: str) -> tuple[SelfCheck, str | None]:
    """Check the configured encoder on clips of mixed lengths.

    Args:
        config: Model, extraction settings, and optionally a dataset; without one the clips are
            synthetic.
        device: "cpu" or "cuda".

    Returns:
        The result, and why the clips are not those of the dataset, if there is one.

    Raises:
        ConfigError: A setting is wrong.
        SourceError: None of the first rows of the dataset is readable.
    """
    setup = resolve_encoder_setup(config)
    encoder = setup.loader(device)()
    rate_hz, longest_s = encoder.geometry.sample_rate_hz, encoder.windows.max_window_s
    if config.dataset.path or config.dataset.name:
        source = open_source(config.dataset, count_channels)
        clips = dataset_clips(source, rate_hz, FULL_CLIPS, longest_s)
    else:
        clips = Clips(synthetic_clips(rate_hz), is_synthetic=True)
    if clips.note and not clips.n_silent:
        raise SourceError("the dataset has no readable clip among its first rows")
    return _check(encoder, clips, setup, device), clips.note


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


def dataset_clips(source: Source, sample_rate_hz: int, n_clips: int, longest_s: float) -> Clips:
    """Decode the starts of the first readable rows of a dataset that are not silent.

    Args:
        source: The dataset.
        sample_rate_hz: Sample rate of the clips.
        n_clips: Maximum number of clips.
        longest_s: Maximum length of a clip in seconds; the rest of a recording is not decoded.

    Returns:
        The clips; synthetic ones if the first rows have none.
    """
    clips: list[Tensor] = []
    n_silent = n_unreadable = 0
    for row in range(min(len(source), 10 * n_clips)):
        if len(clips) == n_clips:
            break
        try:
            clip = _start(source, row, sample_rate_hz, round(longest_s * sample_rate_hz))
        except AudioError:
            n_unreadable += 1
            continue
        if is_silent(clip):
            n_silent += 1
        else:
            clips.append(clip)
    if clips:
        return Clips(clips)
    synthetic = synthetic_clips(sample_rate_hz)[-n_clips:][::-1]
    longest = round(longest_s * sample_rate_hz)
    note = (
        f"of the first {n_silent + n_unreadable} utterances {n_silent} begin with silence and "
        f"{n_unreadable} cannot be read, so that the encoder is checked on synthetic clips"
    )
    return Clips([clip[:longest] for clip in synthetic], note, True, n_silent)


def measure_slowdown(encoder: Encoder, clip: Tensor, batch_frames: int) -> float:
    """Measure how many times longer clips take one by one than in batches.

    Args:
        encoder: The encoder, which has encoded before.
        clip: A clip.
        batch_frames: Maximum of frames in a batch.
    """
    n = max(1, min(_TIMED_CLIPS, batch_frames // encoder.geometry.n_frames(clip.numel())))
    fastest = [math.inf, math.inf]
    for _ in range(_TIMINGS):
        for i, batches in enumerate(([[clip]] * n, [[clip] * n])):
            start_s = time.perf_counter()
            for batch in batches:
                encode_clips(encoder, batch)[0].cpu()  # waits for the device
            fastest[i] = min(fastest[i], time.perf_counter() - start_s)
    return fastest[0] / fastest[1]


def _check(
    encoder: Encoder, clips: Clips, setup: EncoderSetup, device: str, precision: str | None = None
) -> SelfCheck:
    found = selfcheck(
        encoder,
        clips.waveforms,
        setup.form.codec,
        precision=precision,
        is_synthetic=clips.is_synthetic,
    )
    if not found.leaks or precision is not None:
        return found
    longest = max(clips.waveforms, key=len)
    n_most = round(encoder.windows.max_window_s * encoder.geometry.sample_rate_hz)
    slowdown = measure_slowdown(encoder, longest[:n_most], setup.batch_frames(device))
    return replace(found, slowdown=slowdown)


def _start(source: Source, row: int, sample_rate_hz: int, n_samples: int) -> Tensor:
    """Decode the first samples of a row: float32, at most `[n_samples]`."""
    blocks, n_decoded = [], 0
    for block in decode_blocks(source.segment(row), sample_rate_hz):
        blocks.append(block.waveform)
        n_decoded += len(block.waveform)
        if n_decoded >= n_samples:
            break
    return torch.cat(blocks)[:n_samples]

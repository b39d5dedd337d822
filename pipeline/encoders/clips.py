"""Features of clips and of windows, collected over the layers that an encoder yields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.encoders.windows import Window


def encode_clips(
    encoder: Encoder,
    waveforms: Sequence[Tensor],
    *,
    stats: Sequence[Any | None] | None = None,
    precision: str | None = None,
) -> list[Tensor]:
    """Encode clips in one batch.

    Args:
        encoder: The encoder.
        waveforms: As for `Encoder.encode_batch`.
        stats: As for `Encoder.encode_batch`.
        precision: As for `Encoder.encode_batch`.

    Returns:
        Features of each clip, `[n_layers, n_frames, dim]` on the encoder's device; views of one
        tensor.
    """
    layers = list(encoder.encode_batch(waveforms, stats=stats, precision=precision))
    counts = [encoder.geometry.n_frames(len(waveform)) for waveform in waveforms]
    return list(torch.split(torch.stack(layers), counts, dim=1))


def encode_windows(
    encoder: Encoder,
    waveform: Tensor,
    windows: Sequence[Window],
    stats: Any,
    *,
    sample_start: int = 0,
    precision: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Encode windows of a long utterance, one at a time, which bounds the memory.

    Args:
        encoder: The encoder.
        waveform: float32 `[n_samples]` that contains the samples of these windows.
        windows: Windows from `encoder.windows`, all or some.
        stats: Result of `Encoder.utterance_stats` for the whole utterance.
        sample_start: Position of `waveform[0]` in the utterance.
        precision: Replaces the encoder's precision.

    Yields:
        First frame that the window keeps, and the kept features `[n_layers, n_kept, dim]` on the
        encoder's device.
    """
    for window in windows:
        low, high = window.sample_start - sample_start, window.sample_stop - sample_start
        [features] = encode_clips(encoder, [waveform[low:high]], stats=[stats], precision=precision)
        first = window.keep_start - window.feed_start
        yield window.keep_start, features[:, first : first + window.keep_stop - window.keep_start]

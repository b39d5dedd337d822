"""How samples become frames, and how a long utterance becomes overlapping windows: arithmetic only.

Every model of the wav2vec 2.0 family has the same convolution stack: one frame every 320 samples,
each frame looking at 400 of them. Frame `f` sees samples `[320 f, 320 f + 400)`, so the samples
`[320 a, 320 b + 80)` give exactly the frames `a … b-1`, and a cut at a multiple of 320 samples
moves no frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from pipeline.errors import ConfigError

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 320
RECEPTIVE_FIELD_SAMPLES = 400
FRAME_RATE_HZ = SAMPLE_RATE_HZ / HOP_SAMPLES

# Longest stretch encoded at once. Attention costs time in the square of it, and WavLM's position
# bias memory too (0.2 GB a block at 40 s, 1.2 GB at 100 s). At 40 s the base model still runs at
# about 0.85 of its speed on 10 s, the longest utterance of LibriSpeech (35 s) stays whole, and the
# models were trained on crops of 16 to 20 s. docs/encoder.md has the figures.
DEFAULT_MAX_WINDOW_S = 40.0
DEFAULT_CONTEXT_S = 5.0


def n_frames(n_samples: int) -> int:
    """Number of frames of an utterance; shorter than one receptive field it is padded to one.

    Args:
        n_samples: length at 16 kHz, at least 1.

    Returns:
        `max(1, (n_samples - 400) // 320 + 1)`.
    """
    return max(1, (n_samples - RECEPTIVE_FIELD_SAMPLES) // HOP_SAMPLES + 1)


@dataclass(frozen=True)
class Window:
    """A run of frames to keep, and the longer run to encode so that they have context.

    Attributes:
        feed_start: first frame to encode.
        feed_stop: end (exclusive) of the frames to encode.
        keep_start: first frame to keep; the windows of an utterance keep each frame exactly once.
        keep_stop: end (exclusive) of the frames to keep.
    """

    feed_start: int
    feed_stop: int
    keep_start: int
    keep_stop: int

    @property
    def sample_start(self) -> int:
        """First sample to encode; a multiple of 320."""
        return self.feed_start * HOP_SAMPLES

    @property
    def sample_stop(self) -> int:
        """End (exclusive) of the samples to encode; past the end of a clip shorter than a frame."""
        return (self.feed_stop - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES


def plan_windows(
    n_samples: int,
    max_window_s: float = DEFAULT_MAX_WINDOW_S,
    context_s: float = DEFAULT_CONTEXT_S,
) -> tuple[Window, ...]:
    """Cover an utterance by windows of at most `max_window_s`, as few and as even as possible.

    Any boundary between two windows may also be the boundary between two stored pieces: a window
    depends on its own samples and on the statistics of the whole utterance, not on other windows.

    Args:
        n_samples: length of the utterance at 16 kHz, at least 1.
        max_window_s: longest window, context included, in seconds.
        context_s: context on each side that is encoded and thrown away, in seconds.

    Returns:
        Windows in order. The frames they keep are `0 … n_frames(n_samples) - 1`, each exactly once.
        An utterance of at most `max_window_s` is one window without context.

    Raises:
        ConfigError: the context leaves nothing of the window to keep.
    """
    total = n_frames(n_samples)
    longest = n_frames(round(max_window_s * SAMPLE_RATE_HZ))
    if total <= longest:
        return (Window(0, total, 0, total),)
    context = max(0, round(context_s * FRAME_RATE_HZ))
    if longest <= 2 * context:
        raise ConfigError(
            f"max_window_s={max_window_s:g} leaves nothing between two contexts of "
            f"{context_s:g} s; make it more than {2 * context_s:g} s"
        )
    n_windows = math.ceil(total / (longest - 2 * context))
    cuts = [total * i // n_windows for i in range(n_windows + 1)]
    return tuple(
        Window(max(0, start - context), min(total, stop + context), start, stop)
        for start, stop in pairwise(cuts)
    )

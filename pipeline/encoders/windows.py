"""Overlapping windows over a long utterance: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry


@dataclass(frozen=True)
class Window:
    """Consecutive frames to keep, and the longer run of frames to encode, with context.

    Attributes:
        feed_start: First frame to encode.
        feed_stop: End (exclusive) of the frames to encode.
        keep_start: First frame to keep. The windows of an utterance keep every frame exactly once.
        keep_stop: End (exclusive) of the frames to keep.
        sample_start: First sample to encode; a multiple of the hop.
        sample_stop: End (exclusive) of the samples to encode. It may be beyond the utterance where
            the encoder pads the end.
    """

    feed_start: int
    feed_stop: int
    keep_start: int
    keep_stop: int
    sample_start: int
    sample_stop: int


@dataclass(frozen=True)
class Windowing:
    """Windowing of utterances longer than `max_window_s`.

    Attributes:
        geometry: Sample rate, hop and receptive field of the frames.
        max_window_s: Longest window, context included, in seconds.
        context_s: Context on each side of a window that is encoded and discarded, in seconds.

    Raises:
        ConfigError: A length is out of range, or two contexts fill the window.
    """

    geometry: FrameGeometry
    max_window_s: float
    context_s: float

    def __post_init__(self) -> None:
        if not 0 < self.max_window_s < math.inf:
            raise ConfigError(
                f"max_window_s is {self.max_window_s:g}; expected seconds, more than 0"
            )
        if not 0 <= self.context_s < math.inf:
            raise ConfigError(f"context_s is {self.context_s:g}; expected seconds, 0 or more")
        if self.max_window_frames <= 2 * self._context_frames:
            raise ConfigError(
                f"max_window_s={self.max_window_s:g} leaves nothing between two contexts of "
                f"{self.context_s:g} s; make it more than {2 * self.context_s:g} s"
            )

    @property
    def max_window_frames(self) -> int:
        """Frames of the longest window."""
        return self.geometry.n_frames(round(self.max_window_s * self.geometry.sample_rate_hz))

    @property
    def _context_frames(self) -> int:
        return round(self.context_s * self.geometry.frame_rate_hz)

    def plan(self, n_samples: int) -> tuple[Window, ...]:
        """Cover an utterance by as few windows as possible, of equal length within one frame.

        Any boundary between two windows may also be the boundary between two stored pieces: a
        window depends on its own samples and on the statistics of the whole utterance, not on other
        windows.

        Args:
            n_samples: Length of the utterance at the encoder's rate, at least 1.

        Returns:
            Windows in order. They keep the frames `0 … n_frames(n_samples) - 1`, each exactly once.
            An utterance of at most `max_window_s` is one window without context.
        """
        total = self.geometry.n_frames(n_samples)
        if total <= self.max_window_frames:
            return (self._window(0, total, 0, total),)
        context = self._context_frames
        n_windows = math.ceil(total / (self.max_window_frames - 2 * context))
        cuts = [total * i // n_windows for i in range(n_windows + 1)]
        return tuple(
            self._window(max(0, start - context), min(total, stop + context), start, stop)
            for start, stop in pairwise(cuts)
        )

    def _window(self, feed_start: int, feed_stop: int, keep_start: int, keep_stop: int) -> Window:
        sample_start = feed_start * self.geometry.hop_samples
        sample_stop = sample_start + self._most_samples(feed_stop - feed_start)
        return Window(feed_start, feed_stop, keep_start, keep_stop, sample_start, sample_stop)

    def _most_samples(self, n_frames: int) -> int:
        """Return the samples of a window of `n_frames` frames.

        If the encoder pads the end, these are the most samples that have this number of frames, so
        that the last frame sees as much audio and as little padding as possible.
        """
        if self.geometry.right_padding_samples:
            return self.geometry.n_samples(n_frames + 1) - 1
        return self.geometry.n_samples(n_frames)

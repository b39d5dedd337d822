"""Frames and windows: exact counts, exact cover, and cuts that move no frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry

n_frames = GEOMETRY.n_frames


def plan_windows(n_samples, max_window_s, context_s):
    return Windowing(GEOMETRY, max_window_s, context_s).plan(n_samples)


def frames_of_convolutions(n_samples):
    """Count frames by applying the seven convolutions in turn."""
    for kernel, stride in [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]:
        n_samples = (n_samples - kernel) // stride + 1
    return n_samples


@given(st.integers(400, 10_000_000))
def test_frame_count_is_that_of_the_convolutions(n_samples):
    """From one receptive field on, the closed form agrees with the stack of convolutions."""
    assert n_frames(n_samples) == frames_of_convolutions(n_samples)


@pytest.mark.parametrize("n_samples", [1, 79, 80, 320, 399, 400, 719])
def test_a_short_clip_has_one_frame(n_samples):
    """Any length below two frames gives one frame."""
    assert n_frames(n_samples) == 1


@given(
    n_samples=st.integers(1, 60_000_000),
    max_window_s=st.floats(2.0, 120.0),
    context_share=st.floats(0.0, 0.45),
)
def test_windows_keep_each_frame_once(n_samples, max_window_s, context_share):
    """Kept frames cover the utterance exactly, in order, and lie within the encoded frames."""
    windows = plan_windows(n_samples, max_window_s, context_share * max_window_s)
    position = 0
    for window in windows:
        assert window.keep_start == position < window.keep_stop
        assert 0 <= window.feed_start <= window.keep_start
        assert window.keep_stop <= window.feed_stop <= n_frames(n_samples)
        position = window.keep_stop
    assert position == n_frames(n_samples)


@given(n_samples=st.integers(1, 60_000_000))
def test_no_window_is_longer_than_allowed_and_inner_ones_have_their_context(n_samples):
    """A window has at most `max_window_s`; away from the ends it has the full context."""
    windows = plan_windows(n_samples, max_window_s=30.0, context_s=4.0)
    for window in windows:
        assert window.sample_stop - window.sample_start <= max(30 * 16_000, 400)
        assert window.feed_start == max(0, window.keep_start - 200 * (len(windows) > 1))
        assert window.feed_stop in (window.keep_stop + 200, n_frames(n_samples))


@given(n_samples=st.integers(400, 60_000_000))
def test_a_window_of_samples_makes_exactly_its_frames(n_samples):
    """The samples of a window start at a frame, lie in the file and give exactly its frames."""
    for window in plan_windows(n_samples, max_window_s=30.0, context_s=4.0):
        assert window.sample_start == 320 * window.feed_start
        assert window.sample_stop <= n_samples
        count = n_frames(window.sample_stop - window.sample_start)
        assert count == window.feed_stop - window.feed_start


def test_up_to_the_limit_there_is_one_window_without_context():
    """An utterance as long as `max_window_s` is encoded whole; one frame more makes two windows."""
    assert len(plan_windows(30 * 16_000, 30.0, 4.0)) == 1
    assert len(plan_windows(30 * 16_000 + 320, 30.0, 4.0)) == 2


def test_a_context_that_fills_the_window_is_refused():
    """Two contexts of 5 s leave nothing of a window of 10 s."""
    with pytest.raises(ConfigError, match="make it more than 10 s"):
        plan_windows(60 * 16_000, max_window_s=10.0, context_s=5.0)


@given(n_samples=st.integers(1, 3_000_000))
def test_the_last_window_has_the_end_of_the_utterance(n_samples):
    """An encoder that pads its end sees every sample: only what is missing is padding."""
    geometry = FrameGeometry(
        16_000, 1_280, 2_641, left_padding_samples=1_321, right_padding_samples=1_160
    )
    windows = Windowing(geometry, 10.0, 1.0).plan(n_samples)
    assert windows[-1].sample_stop >= n_samples
    for window in windows:
        part = min(window.sample_stop, n_samples) - window.sample_start
        assert geometry.n_frames(part) == window.feed_stop - window.feed_start

"""Long audio: exact frames, statistics of the whole file, independent windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.wav2vec2.moments import MomentAccumulator
from pipeline.errors import EncoderError
from tests.helpers.encoder_kinds import ALL_KINDS, KINDS, reference, small_encoder, speech


def uneven(n_samples):
    """A waveform whose second half is forty times louder, so that local statistics differ."""
    waveform = speech(n_samples, amplitude=0.01)
    waveform[n_samples // 2 :] *= 40
    return waveform


@pytest.mark.parametrize("name", ALL_KINDS)
def test_layer_0_of_windows_equals_that_of_the_whole(name):
    """The input of block 1 is exact, if the context spans the positional convolution's 64 frames.

    All normalisation uses the statistics of the whole file, not of the window.
    """
    waveform = uneven(16 * 16_000)
    whole = small_encoder(name, layers=[0])
    windowed = small_encoder(name, layers=[0], max_window_s=6.0, context_s=1.3)
    assert len(windowed.windows.plan(waveform.numel())) == 5
    [found], [expected] = windowed([waveform]), whole([waveform])
    assert found.shape == expected.shape
    assert relative_errors(found, expected).max() < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_windows_approach_full_attention(name):
    """The blocks differ little from full attention, and each frame is in its place."""
    waveform = uneven(16 * 16_000)
    encoder = small_encoder(name, max_window_s=8.0, context_s=2.0)
    [found] = encoder([waveform])
    expected = reference(encoder, waveform)
    assert found.shape[1] == expected.shape[1] == encoder.geometry.n_frames(waveform.numel())
    correlation = F.cosine_similarity(found, expected, dim=-1)
    shifted = F.cosine_similarity(found[:, 1:], expected[:, :-1], dim=-1)
    assert (correlation.median(-1).values > 0.9).all()
    assert (shifted.median(-1).values < correlation.median(-1).values - 0.03).all()


def test_each_window_can_be_encoded_from_its_own_samples():
    """A worker with one window's samples and the statistics gets identical features."""
    waveform = uneven(10 * 16_000)
    encoder = small_encoder("hubert_base", max_window_s=4.0, context_s=1.0)
    windows = encoder.windows.plan(waveform.numel())
    stats = encoder.utterance_stats(waveform)
    together = dict(encoder.encode_windows(waveform, windows, stats))
    assert list(together) == [window.keep_start for window in windows]
    for window in windows[::-1]:
        accumulator = MomentAccumulator()
        for chunk in waveform.split(12_345):
            accumulator.update(chunk)
        part = waveform[window.sample_start : window.sample_stop]
        [(start, alone)] = encoder.encode_windows(
            part,
            [window],
            encoder.utterance_stats(accumulator.finish()),
            sample_start=window.sample_start,
        )
        assert start == window.keep_start
        assert torch.equal(alone, together[start])


def test_a_call_joins_the_windows():
    """Calling the encoder on a long file equals joining its windows, with short files beside it."""
    waveform = uneven(10 * 16_000)
    encoder = small_encoder("wavlm_large", max_window_s=4.0, context_s=1.0)
    short, long = encoder([speech(8_000), waveform])
    stats = encoder.utterance_stats(waveform)
    parts = encoder.encode_windows(waveform, encoder.windows.plan(waveform.numel()), stats)
    assert torch.equal(long, torch.cat([features for _, features in parts], dim=1))
    assert short.shape[1] == encoder.geometry.n_frames(8_000)


def test_a_batch_refuses_what_needs_windows():
    """The batch path never silently runs attention over a long recording."""
    encoder = small_encoder("hubert_base", max_window_s=4.0, context_s=1.0)
    encoder.encode_batch([speech(64_000)])
    with pytest.raises(EncoderError, match=r"longer than max_window_s=4"):
        encoder.encode_batch([speech(64_080 + 320)])

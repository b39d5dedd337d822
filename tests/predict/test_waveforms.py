"""Waveforms that a program gives: types, rates and what is refused."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio.resample import resample
from pipeline.errors import AudioError, ConfigError, EncoderError
from pipeline.predict.waveforms import as_waveform, check_rate

RATE_HZ = 16_000
SAMPLES = np.random.default_rng(0).uniform(-1, 1, 500)


@pytest.mark.parametrize(("dtype", "subtype"), [(np.int16, "PCM_16"), (np.int32, "PCM_32")])
def test_integers_are_scaled_as_in_a_file(dtype, subtype):
    """To the last bit as libsndfile reads them, also the largest ones."""
    limits = np.iinfo(dtype)
    samples = np.concatenate([(SAMPLES * limits.max).astype(dtype), [limits.min, limits.max]])
    samples = samples.astype(dtype)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, subtype, format="WAV")
    file.seek(0)
    read, _ = soundfile.read(file, dtype="float32")
    for given in (samples, torch.from_numpy(samples)):
        found = as_waveform(given, None, RATE_HZ)
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), read)


def test_floats_of_any_layout_are_taken():
    """Arrays and tensors, in double precision, read-only, reversed, or one channel of two."""
    single = SAMPLES.astype(np.float32)
    expected = torch.from_numpy(single.copy())
    fixed = single.copy()
    fixed.flags.writeable = False
    stereo = np.stack([single, -single], axis=1)
    double = torch.from_numpy(SAMPLES)
    for given in (SAMPLES, double, fixed, single[::-1].copy()[::-1], stereo[:, 0]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(as_waveform(given, None, RATE_HZ), expected)
    assert torch.equal(as_waveform(expected.clone().requires_grad_(), RATE_HZ, RATE_HZ), expected)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 24_414])
def test_other_rates_are_resampled_as_by_an_extraction(rate_hz):
    """By the resampler of the encoders, or by soxr where its kernel is too large."""
    found = as_waveform(SAMPLES, rate_hz, RATE_HZ)
    assert torch.equal(found, resample(SAMPLES.astype(np.float32), rate_hz, RATE_HZ))
    assert len(found) == pytest.approx(500 * RATE_HZ / rate_hz, abs=1)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(0), r"waveform 3 has the shape \[0\]; expected \[n_samples\]"),
        (torch.zeros(2, 400), r"the shape \[2, 400\]; .* Average the channels, or take one"),
        (np.float32(0), "is a float32; expected a tensor or an array"),
        ([0.0, 0.5], "is a list; expected a tensor or an array"),
        ((SAMPLES, RATE_HZ), "is a pair, .* give the samples alone, and the rate as sample_rate="),
        (np.zeros(9, np.uint8), "is uint8; expected float32 or float64, or int16 or int32"),
        (torch.zeros(9, dtype=torch.bfloat16), "is bfloat16; expected float32"),
        (np.zeros(9, ">i2"), "is >i2; expected float32"),
    ],
)
def test_other_waveforms_are_refused(samples, message):
    """The message has the number of the waveform, what it is, and what was expected."""
    with pytest.raises(EncoderError, match=message):
        as_waveform(samples, None, RATE_HZ, 3)


def test_samples_and_rates_that_are_none_are_refused():
    """Values that are not finite, and rates that no audio has, with the number of the waveform."""
    with pytest.raises(AudioError, match="waveform 1 has samples that are not finite"):
        as_waveform(np.array([0, np.nan]), None, RATE_HZ, 1)
    with pytest.raises(AudioError, match="waveform 1: the sample rate is 16 Hz, not one of audio"):
        as_waveform(SAMPLES, 16, RATE_HZ, 1)
    for rate in (0, -1, 16_000.0, True, "16000"):
        with pytest.raises(
            ConfigError, match=r"sample_rate is .*; expected the samples per second"
        ):
            check_rate(rate)
    check_rate(np.int64(8_000))
    check_rate(None)

"""Resampling of rates for which torchaudio's kernel would be too large."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audio.decode import decode, decode_blocks
from pipeline.audio.probe import probe
from pipeline.audio.resample import needs_soxr, resample, resample_blocks, resampled_length
from pipeline.sources.base import Segment
from tests.helpers.audio_files import speechlike, write

RATE_HZ = 16_000
USUAL_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)
LARGE_FACTORS_HZ = (11_127, 15_999, 16_001, 19_531, 22_254, 24_414, 44_099, 48_828)


def tone(frequency_hz: float, rate_hz: int, n_samples: int) -> np.ndarray:
    """Sample a sine: float32 `[n_samples]`."""
    return np.sin(2 * np.pi * frequency_hz * np.arange(n_samples) / rate_hz + 0.3).astype(
        np.float32
    )


def middle(sound: np.ndarray) -> np.ndarray:
    return sound[len(sound) // 4 : 3 * len(sound) // 4]


def test_usual_rates_are_left_to_torchaudio() -> None:
    """Their waveforms stay as they were; rates with large factors need soxr."""
    assert not any(needs_soxr(rate_hz, RATE_HZ) for rate_hz in USUAL_HZ)
    assert all(needs_soxr(rate_hz, RATE_HZ) for rate_hz in LARGE_FACTORS_HZ)


@pytest.mark.parametrize("rate_hz", LARGE_FACTORS_HZ)
def test_a_tone_equals_the_tone_sampled_at_the_target_rate(rate_hz: int) -> None:
    """Up to 0.9 of the band the error is below -58 dB (soxr allows 0.01 dB); lower, below -100."""
    band_hz = min(rate_hz, RATE_HZ) / 2
    for share, most_db in ((0.02, -100), (0.25, -100), (0.5, -90), (0.9, -58)):
        resampled = resample(tone(share * band_hz, rate_hz, 2 * rate_hz), rate_hz, RATE_HZ).numpy()
        error = middle(resampled - tone(share * band_hz, RATE_HZ, len(resampled)))
        assert 10 * np.log10(np.mean(error**2) / 0.5) < most_db, share


@pytest.mark.parametrize("rate_hz", [19_531, 24_414, 44_099, 48_828])
def test_a_tone_above_the_target_band_vanishes(rate_hz: int) -> None:
    """What the target rate cannot hold is damped by more than 120 dB, not folded back."""
    resampled = resample(tone(8_800, rate_hz, 2 * rate_hz), rate_hz, RATE_HZ).numpy()
    assert 10 * np.log10(np.mean(middle(resampled) ** 2) / 0.5) < -120


@pytest.mark.parametrize("rate_hz", [11_127, 24_414, 44_099, 1_000_003])
def test_blocks_of_any_size_give_the_same_samples(rate_hz: int) -> None:
    """The state is kept between blocks: bit for bit, with the length that is predicted."""
    for n_source in (1, 2, 7, 1000, 50_001):
        mono = speechlike(n_source)
        whole = resample(mono, rate_hz, RATE_HZ)
        assert len(whole) == resampled_length(n_source, rate_hz, RATE_HZ)
        assert len(whole) == math.ceil(n_source * RATE_HZ / rate_hz)
        for size in (1 if n_source < 1001 else 333, 7_777):
            parts = (mono[i : i + size] for i in range(0, n_source, size))
            assert torch.equal(torch.cat([*resample_blocks(parts, rate_hz, RATE_HZ)]), whole)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_file_at_an_unusual_rate_is_decoded(tmp_path: Path, name: str) -> None:
    """`probe`, `decode` and `decode_blocks` agree for a recording at 24,414 Hz."""
    clip = Segment("clip", str(write(tmp_path / name, speechlike(3 * 24_414, 2), 24_414)))
    waveform = decode(clip, RATE_HZ).waveform
    assert probe(clip, RATE_HZ).n_samples == len(waveform) == 3 * RATE_HZ
    assert torch.equal(torch.cat([b.waveform for b in decode_blocks(clip, RATE_HZ)]), waveform)

"""Front ends of the general path against transformers' feature extractors."""

from __future__ import annotations

import pytest
import torch

from pipeline.encoders.general.architectures import KINDS
from pipeline.errors import ConfigError
from tests.helpers.encoder_kinds import speech

pytest.importorskip("transformers")

from tests.helpers.general_checkpoints import CHECKPOINTS, extractor_of, inputs_of, read_config

LENGTHS = (640, 3_001, 16_000, 24_077)
SHARED = {"voxtral", "qwen2_audio", "seamless_m4t", "seamless_m4t_v2", "moonshine", "sew-d"}
"""Models that have the front end of another one, with the same settings or other sizes."""
NAMES = [name for name in CHECKPOINTS if name not in SHARED]


def parts(name):
    """Return front end and geometry of the small checkpoint."""
    kind, config = KINDS[name], read_config(name)
    return kind.parts(kind.encoder_config(config), extractor_of(name), name)


def expected_input(name, waveform):
    """Return what the extractor gives, `[time, ...]`, without the frames that its mask excludes."""
    found = inputs_of(name, extractor_of(name), waveform)
    values = next(iter(found.values()))[0]
    if KINDS[name].extractor_class == "WhisperFeatureExtractor":
        return values.T
    mask = found.get("attention_mask")
    values = values[0] if name == "omniasr_ctc" else values
    return values if mask is None else values[: int(mask.sum())]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_extractor(name):
    """Within 1e-5 of the largest value, for clips of several lengths, some with an offset."""
    front_end, geometry = parts(name)
    for seed, n_samples in enumerate(LENGTHS):
        waveform = speech(max(n_samples, geometry.n_samples(2)), seed) + 0.01 * seed
        found = front_end.features(waveform, None)
        expected = expected_input(name, waveform)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_statistics_do_not_depend_on_the_blocks(name):
    """An accumulator gives the same bits for one block and for many, also empty ones."""
    front_end, _ = parts(name)
    waveform = speech(200_000, 3)
    results = []
    for blocks in ([waveform], [*waveform.split(12_345), waveform[:0]]):
        accumulator = front_end.accumulator()
        for block in blocks:
            accumulator.update(block)
        results.append(accumulator.finish())
    first, second = results
    assert (first is None) == (second is None)
    if first is not None:
        assert (first.count, first.largest) == (second.count, second.largest)
        assert torch.equal(first.mean, second.mean)
        assert torch.equal(first.variance(1), second.variance(1))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "granite_speech"])
def test_a_whole_recording_is_normalised_by_its_own_statistics(name):
    """With the accumulated statistics of a clip, the clip has the features that it has alone."""
    front_end, _ = parts(name)
    waveform = speech(48_000 - 80, 2)
    accumulator = front_end.accumulator()
    accumulator.update(waveform)
    alone = front_end.features(waveform, None)
    found = front_end.features(waveform, accumulator.finish())
    assert (found - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_window_is_normalised_by_the_statistics_of_its_utterance(name):
    """A quiet window of a loud utterance has other features than the same samples alone."""
    front_end, _ = parts(name)
    quiet, loud = 0.001 * speech(32_000, 1), speech(32_000, 2)
    accumulator = front_end.accumulator()
    accumulator.update(torch.cat([quiet, loud]))
    stats = accumulator.finish()
    window, alone = front_end.features(quiet, stats), front_end.features(quiet, None)
    if stats is None:
        assert torch.equal(window, alone)
    else:
        assert (window - alone).abs().max() > 0.1 * alone.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_the_shortest_clips_have_finite_features(name):
    """One sample, a constant, and silence."""
    front_end, _ = parts(name)
    for waveform in (torch.ones(1), torch.full((5_000,), 0.25), torch.zeros(5_000)):
        assert torch.isfinite(front_end.features(waveform, None)).all()


@pytest.mark.parametrize("name", ["whisper", "speech_to_text"])
def test_extractors_that_add_noise_are_refused(name):
    """Their features would be different in each run."""
    kind, extractor = KINDS[name], extractor_of(name)
    extractor.dither = 0.5
    with pytest.raises(ConfigError, match=r"adds noise \(dither=0.5\)"):
        kind.parts(kind.encoder_config(read_config(name)), extractor, name)

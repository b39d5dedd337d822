"""Reduced precision: bounded error, no leak, and a rerun in fp32 after an overflow."""

from __future__ import annotations

import pytest
import torch

from pipeline.encoders.selfcheck import find_overflows, relative_errors
from pipeline.encoders.wav2vec2.encoder import load_encoder
from tests.helpers.encoder_kinds import KINDS, small_encoder, speech

LIMITS = {"bf16": 5e-2, "fp16": 6e-3}


def clips():
    return [speech(16_000, 1, amplitude=0.5), speech(5_000, 2, amplitude=0.01), speech(400, 3)]


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", KINDS)
def test_error_against_fp32_is_that_of_the_format(name, precision):
    """Each layer is within a few roundings of fp32, and differs from it."""
    exact, reduced = small_encoder(name), small_encoder(name, precision=precision)
    for found, expected in zip(reduced(clips()), exact(clips()), strict=True):
        errors = relative_errors(found, expected)
        assert errors.max() < LIMITS[precision]
        assert errors.min() > 1e-6


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", KINDS)
def test_batch_mates_leak_nothing_in_reduced_precision(name, precision):
    """The error against fp32 is about the same in a batch as separately."""
    exact, reduced = small_encoder(name), small_encoder(name, precision=precision)
    for clip, found in zip(clips(), reduced(clips()), strict=True):
        [expected] = exact([clip])
        [alone] = reduced([clip])
        limit = min(LIMITS[precision], 3 * relative_errors(alone, expected).max())
        assert relative_errors(found, expected).max() < limit


def test_the_positional_convolution_is_exact_in_bf16_with_few_channels_in_a_group():
    """With 4 channels in a group, which oneDNN's bf16 convolution for AMX sums wrongly."""
    exact = small_encoder("hubert_base", layers=[0])
    reduced = small_encoder("hubert_base", layers=[0], precision="bf16")
    waveform = speech(16_000)
    assert relative_errors(reduced([waveform])[0], exact([waveform])[0]).max() < 5e-2


def test_a_batch_can_be_rerun_in_fp32():
    """The rerun equals the features of an fp32 encoder."""
    exact, reduced = small_encoder("hubert_large"), small_encoder("hubert_large", precision="bf16")
    rerun, _ = reduced.encode_batch(clips(), precision="fp32")
    expected, _ = exact.encode_batch(clips())
    assert torch.equal(rerun, expected)


def test_overflows_are_found_by_utterance_and_layer():
    """Non-finite and too large values are found; the largest float16 value is not one of them.

    Values beyond an utterance's end are ignored.
    """
    encoder = small_encoder("hubert_base", layers=[1, 3, 4])
    features, counts = torch.zeros(3, 5, 10, 32), [10, 10, 4, 10, 10]
    features[1, 0, 9, 0] = float("nan")
    features[2, 1, 0, 5] = -65_505.0
    features[0, 2, 4:] = float("inf")
    features[0, 3, 0, 0] = 65_504.0
    features[:, 4, 2, 2] = float("-inf")
    expected = [3, 4, None, None, 1]
    assert find_overflows(features, counts, encoder.layers) == expected
    assert find_overflows(features.half(), counts, encoder.layers)[2:] == expected[2:]
    assert encoder.misfits(features, counts) == expected


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_an_overflow_in_fp16_is_found_and_fixed_by_fp32(name):
    """A block whose inner layer exceeds float16 gives non-finite features in fp16 only."""
    encoder = small_encoder(name, precision="fp16")
    feed_forward = encoder._model.encoder.transformer.layers[1].feed_forward
    feed_forward.intermediate_dense.bias[0] = 5e4
    feed_forward.output_dense.weight[0, 0] = 2.0
    feed_forward.output_dense.bias[0] = -1e5
    features, counts = encoder.encode_batch(clips())
    assert find_overflows(features, counts, encoder.layers) == [2, 2, 2]
    rerun, counts = encoder.encode_batch(clips(), precision="fp32")
    assert find_overflows(rerun, counts, encoder.layers) == [None, None, None]


def test_features_in_float16_are_the_rounded_ones():
    """`out_dtype` rounds once, at the end."""
    encoder = small_encoder("wavlm_base")
    wide, _ = encoder.encode_batch(clips())
    narrow, _ = encoder.encode_batch(clips(), out_dtype=torch.float16)
    assert narrow.dtype == torch.float16
    assert torch.equal(narrow, wide.half())


def test_auto_is_fp32_on_a_cpu():
    """Without CUDA the default precision is fp32."""
    assert load_encoder("tiny", "random", device="cpu").precision == "fp32"

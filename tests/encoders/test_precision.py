"""Reduced precision: bounded error, no leak, and a rerun in fp32 after an overflow."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from pipeline.encoders.clips import encode_clips
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import find_overflow, relative_errors
from pipeline.errors import ConfigError
from tests.helpers.encoder_kinds import ALL_KINDS, small_encoder, speech
from tests.helpers.fake_cuda import fake_cuda, place, why_not

LIMITS = {"bf16": 5e-2, "fp16": 6e-3}
on_fake_cuda = pytest.mark.skipif(bool(why_not()), reason=why_not())


def clips():
    return [speech(16_000, 1, amplitude=0.5), speech(5_000, 2, amplitude=0.01), speech(400, 3)]


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", ALL_KINDS)
def test_error_against_fp32_is_that_of_the_format(name, precision):
    """Each layer is within a few roundings of fp32, and differs from it."""
    exact, reduced = small_encoder(name), small_encoder(name, precision=precision)
    for found, expected in zip(reduced(clips()), exact(clips()), strict=True):
        errors = relative_errors(found, expected)
        assert errors.max() < LIMITS[precision]
        assert errors.min() > 1e-6


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", ALL_KINDS)
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
    rerun = encode_clips(reduced, clips(), precision="fp32")
    for found, expected in zip(rerun, encode_clips(exact, clips()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("layer", "value", "expected"),
    [
        (1, float("nan"), 3),
        (1, -65_505.0, 3),
        (2, float("inf"), 4),
        (0, float("-inf"), 1),
        (0, 65_504.0, None),
    ],
)
def test_an_overflow_is_found_by_layer(layer, value, expected):
    """Non-finite and too large values are found; the largest float16 value is not one of them."""
    features = torch.zeros(3, 10, 32)
    features[layer, 9, 0] = value
    assert find_overflow(features, [1, 3, 4]) == expected


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_an_overflow_in_fp16_is_found_and_fixed_by_fp32(name):
    """A block whose inner layer exceeds float16 gives non-finite features in fp16 only."""
    encoder = small_encoder(name, precision="fp16")
    feed_forward = encoder._model.encoder.transformer.layers[1].feed_forward
    feed_forward.intermediate_dense.bias[0] = 5e4
    feed_forward.output_dense.weight[0, 0] = 2.0
    feed_forward.output_dense.bias[0] = -1e5
    features = encode_clips(encoder, clips())
    assert [find_overflow(part, encoder.layers) for part in features] == [2, 2, 2]
    rerun = encode_clips(encoder, clips(), precision="fp32")
    assert [find_overflow(part, encoder.layers) for part in rerun] == [None, None, None]


def test_tf32_needs_a_gpu():
    """It is a precision of its own, which a CPU does not have."""
    with pytest.raises(ConfigError, match="tf32 needs a CUDA device, not cpu"):
        load_encoder("tiny", "random", precision="tf32", device="cpu")


def test_auto_is_fp32_on_a_cpu():
    """Without CUDA the default precision is fp32."""
    assert load_encoder("tiny", "random", device="cpu").precision == "fp32"


def set_matmul(value):
    """Set float32 products as a trainer might."""
    torch.backends.cuda.matmul.fp32_precision = value


def set_convolutions(value):
    """Set convolutions, in the way before torch 2.9."""
    torch.backends.cudnn.allow_tf32 = value


def settings_of_float32():
    """Return what CUDA computes float32 products and convolutions in."""
    cudnn = torch.backends.cudnn
    return [part.fp32_precision for part in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]


def settings_of_sums():
    """Return whether CUDA may round partial sums of products in 16 bits, or split them."""
    names = ["allow_fp16_accumulation"]
    for dtype in ("fp16", "bf16"):
        name = f"allow_{dtype}_reduced_precision_reduction"
        names += [name, f"{name}_split_k"]
    return {name: getattr(torch.backends.cuda.matmul, name, None) for name in names}


@on_fake_cuda
@pytest.mark.parametrize(
    "trainer", [lambda: None, lambda: set_matmul("tf32"), lambda: set_convolutions(False)]
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "tf32"])
def test_tf32_is_used_only_in_tf32(precision, trainer):
    """While an encoder computes; afterwards the process has its own settings again."""
    encoder, found = small_encoder("hubert_base", layers=[0]), []

    @contextmanager
    def clock(stage):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        found.append(settings_of_float32())
        with torch.backends.cudnn.flags(enabled=False):  # as code of a model may do
            yield

    before = [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.allow_tf32]
    try:
        trainer()
        own = settings_of_float32()
        encoder.clock = clock
        with fake_cuda():
            list(place(encoder).encode_batch([torch.zeros(8_000)], precision=precision))
        assert settings_of_float32() == own
        assert torch.backends.cudnn.allow_tf32 == (own[1] == "tf32")
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        set_convolutions(before[1])
        set_matmul(before[0])
    expected = ["tf32" if precision == "tf32" else "ieee"] * 3
    assert found == [expected, expected]


def set_accumulation():
    """Let products in fp16 add up in fp16, as a trainer may for speed."""
    torch.backends.cuda.matmul.allow_fp16_accumulation = True


def set_no_split():
    """Allow neither rounded partial sums nor split products in bf16."""
    name = "allow_bf16_reduced_precision_reduction"
    is_pair = hasattr(torch.backends.cuda.matmul, f"{name}_split_k")
    setattr(torch.backends.cuda.matmul, name, (False, False) if is_pair else False)


@on_fake_cuda
@pytest.mark.parametrize("trainer", [lambda: None, set_accumulation, set_no_split])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_in_16_bits_add_up_in_float32(precision, trainer):
    """Whatever a trainer has set; afterwards the process has its own settings again."""
    encoder, found = small_encoder("hubert_base", layers=[0]), []
    matmul = torch.backends.cuda.matmul

    @contextmanager
    def clock(stage):
        found.append(settings_of_sums())
        yield

    encoder.clock = clock
    try:
        trainer()
        own = settings_of_sums()
        with fake_cuda():
            list(place(encoder).encode_batch([torch.zeros(8_000)], precision=precision))
        assert settings_of_sums() == own
    finally:
        matmul.allow_fp16_accumulation = False
        matmul.allow_fp16_reduced_precision_reduction = True
        matmul.allow_bf16_reduced_precision_reduction = True
    assert len(found) == 2
    for settings in found:
        assert not any(on for name, on in settings.items() if not name.endswith("split_k"))


@pytest.mark.parametrize("name", ["hubert_base", "wavlm_large", "conformer"])
def test_autocast_of_a_trainer_changes_nothing(name):
    """Features of an encoder that is called within it are those of its own precision."""
    encoder = small_encoder(name, layers=[1])
    expected = encoder(clips())
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(clips())
        assert torch.is_autocast_enabled("cpu")
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)

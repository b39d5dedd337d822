"""The convolution stack: folded GroupNorm, packing, and hard audio."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.wav2vec2 import moments as moments_module
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.wav2vec2.moments import (
    MomentAccumulator,
    Moments,
    compute_moments,
    sum_moments,
)
from pipeline.encoders.wav2vec2.norms import LayerNorm
from pipeline.encoders.wav2vec2.stream import Stream
from pipeline.errors import EncoderError
from tests.helpers.encoder_kinds import KINDS, small_encoder, speech

GROUP_NORM = ["hubert_base", "wav2vec2_large", "wavlm_base"]


def packed(encoder, waveforms, stats=None, precision="fp32"):
    """Front-end frames of each waveform, `[n_frames, channels]`."""
    stack = encoder._modules_for(precision)[0]
    pack = Pack([GEOMETRY.n_frames(waveform.numel()) for waveform in waveforms], "cpu", 32)
    with torch.inference_mode():
        frames = stack(waveforms, stats or [None] * len(waveforms), pack)
    assert not frames[pack.n_frames :].any()
    return list(frames[: pack.n_frames].split(list(pack.counts)))


def stock(encoder, waveform, dtype=torch.float64):
    """Frames of one waveform by torchaudio, by default in float64: `[n_frames, channels]`."""
    waveform = F.pad(waveform, (0, max(0, 400 - waveform.numel()))).to(dtype)
    if encoder._spec.normalize_waveform:
        waveform = F.layer_norm(waveform, waveform.shape)
    extractor = encoder._model.feature_extractor.to(dtype)
    with torch.inference_mode():
        features, _ = extractor(waveform[None], None)
    extractor.float()
    return features[0]


def error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


HARD = {
    "speech": speech(20_000),
    "DC offset 0.5": 0.05 * speech(20_000) + 0.5,
    "near-silent": 1e-5 * speech(20_000),
    "one step of 16 bits": (speech(20_000) > 0.1) / 32768.0,
    "zeros": torch.zeros(20_000),
    "constant": torch.full((20_000,), 0.3),
    "full scale": speech(20_000).sign(),
    "one frame": speech(400),
    "0.01 s": speech(160),
    "one sample": torch.ones(1),
}


@pytest.mark.parametrize("audio", HARD)
@pytest.mark.parametrize("name", KINDS)
def test_equals_float64_torchaudio_on_hard_audio(name, audio):
    """DC offset, silence, zeros and clips shorter than a frame lose no precision in fp32.

    The error is below 2e-6, or below that of torchaudio in float32 on the same CPU.
    """
    encoder = small_encoder(name)
    [found] = packed(encoder, [HARD[audio]])
    exact = stock(encoder, HARD[audio])
    limit = max(2e-6, error(stock(encoder, HARD[audio], torch.float32), exact))
    assert error(found, exact) < limit


@pytest.mark.parametrize("audio", HARD)
def test_a_waveform_that_is_normalized_for_a_group_norm_equals_torchaudio(audio):
    """As in wav2vec 2.0 base checkpoints of Hugging Face; the gain is folded in as well."""
    encoder = small_encoder("hubert_base")
    encoder._spec = replace(encoder._spec, normalize_waveform=True)
    [found] = packed(encoder, [HARD[audio]])
    assert error(found, stock(encoder, HARD[audio])) < 2e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("audio", ["speech", "DC offset 0.5", "near-silent", "zeros"])
@pytest.mark.parametrize("name", GROUP_NORM)
def test_reduced_precision_survives_hard_audio(name, audio, precision):
    """The waveform is centred and scaled before it is rounded, so quiet or shifted audio is safe.

    Stock bf16 loses a signal of 0.005 on an offset of 0.5 entirely.
    """
    encoder = small_encoder(name, precision=precision)
    [found] = packed(encoder, [HARD[audio]], precision=precision)
    limit = {"bf16": 3e-2, "fp16": 4e-3}[precision]
    assert error(found.double(), stock(encoder, HARD[audio])) < limit


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", GROUP_NORM)
def test_reduced_precision_keeps_weak_treble_beside_strong_bass(name, precision):
    """High-pass kernels see only a hiss 70 dB below the bass; GroupNorm scales it to full strength.

    The rounding noise of samples rounded once to bf16 is far above the hiss.
    """
    encoder = small_encoder(name, precision=precision)
    kernels = encoder._model.feature_extractor.conv_layers[0].conv.weight  # [channels, 1, 10]
    ramp = torch.linspace(-1, 1, 10)
    smooth, _ = torch.linalg.qr(torch.stack([ramp**power for power in range(5)], dim=1))
    kernels.sub_(kernels @ smooth @ smooth.T)
    bass = 0.5 * torch.sin(2 * torch.pi * 60 / 16_000 * torch.arange(20_000))
    waveform = bass + 1.5e-4 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    encoder._model.feature_extractor.conv_layers[0].layer_norm.eps = 1e-12
    [found] = packed(encoder, [waveform], precision=precision)
    limit = {"bf16": 3e-2, "fp16": 4e-3}[precision]
    assert error(found.double(), stock(encoder, waveform)) < limit


@pytest.mark.parametrize("name", KINDS)
def test_neighbours_in_the_stream_change_nothing(name):
    """Frames are the same with louder neighbours as without, also across chunks of the stream."""
    encoder = small_encoder(name)
    waveforms = [50 * speech(9_000, 1), speech(30_123, 2), 50 * speech(400, 3), speech(719, 4)]
    encoder._modules_for("fp32")[0].chunk_rows = 17
    together = packed(encoder, waveforms)
    for found, waveform in zip(together, waveforms, strict=True):
        [alone] = packed(encoder, [waveform])
        assert error(found, alone) < 2e-6
        assert error(found, stock(encoder, waveform)) < 3e-6


def test_padding_contaminates_stock_group_norm():
    """Torchaudio's batch with `lengths` has an error above one percent: the trap exists."""
    encoder = small_encoder("hubert_base")
    short, long = speech(8_000, 1), speech(32_000, 2)
    padded = torch.stack([F.pad(short, (0, 24_000)), long])
    with torch.inference_mode():
        batch, counts = encoder._model.feature_extractor(padded, torch.tensor([8_000, 32_000]))
    assert error(batch[0, : counts[0]], stock(encoder, short)) > 1e-2


def test_folded_statistics_are_those_of_the_convolution():
    """Each channel of the folded first layer has mean β and standard deviation γ."""
    encoder = small_encoder("hubert_base")
    waveform = speech(16_000) + 0.1
    moments = Moments.stack([encoder.utterance_stats(waveform)])
    folded = encoder._modules_for("fp32")[0].fold(moments)
    windows = ((waveform.double() - folded.shift) * folded.scale).unfold(0, 10, 5)
    channels = windows @ folded.weight[0].T + folded.bias[0]  # [windows, channels]
    norm = encoder._model.feature_extractor.conv_layers[0].layer_norm
    torch.testing.assert_close(channels.mean(0), norm.bias.double(), rtol=0, atol=1e-6)
    deviation = channels.std(0, correction=0)
    assert ((deviation <= norm.weight.abs() * 1.0001) & (deviation > 0)).all()


@pytest.mark.parametrize("chunk", [1, 7, 4_999, 163_840, 400_000])
def test_moments_do_not_depend_on_how_the_file_is_read(chunk):
    """Streaming in any chunks gives bit-identical sums."""
    waveform = speech(400_000 if chunk > 100 else 3_000)
    accumulator = MomentAccumulator()
    for part in waveform.split(chunk):
        accumulator.update(part)
    streamed, whole = asdict(accumulator.finish()), asdict(compute_moments(waveform))
    assert all(torch.equal(streamed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("n_samples", [400, 163_839, 163_845, 163_846, 327_700])
def test_moments_are_those_of_all_windows(n_samples):
    """No window across block borders is lost or counted twice."""
    waveform = speech(n_samples) + 0.25
    windows = waveform.double().unfold(0, 10, 5)
    found = compute_moments(waveform)
    assert found.n_windows == windows.shape[0]
    assert found.variance == pytest.approx(waveform.double().var(correction=0).item(), rel=1e-9)
    torch.testing.assert_close(found.window_mean, windows.mean(0), rtol=1e-10, atol=1e-12)
    covariance = torch.cov(windows.T, correction=0)
    torch.testing.assert_close(found.window_covariance, covariance, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("clip_rows", [1, 8])
def test_moments_of_a_batch_are_those_of_each_clip(clip_rows, monkeypatch):
    """As a GPU sums them: across chunks, for clips shorter than a frame, and with an offset."""
    monkeypatch.setattr(moments_module, "_ROWS_AT_ONCE", 16)
    lengths = [1, 9, 400, 719, 720, 8_000, 33_333]
    waveforms = [speech(n, seed) + 0.3 * seed for seed, n in enumerate(lengths)]
    pack = Pack([GEOMETRY.n_frames(n) for n in lengths], "cpu")
    stream = Stream(pack, lengths, clip_rows, row_multiple=1, gap=2)
    found = sum_moments(
        stream.fill(waveforms),
        torch.tensor(lengths),
        torch.from_numpy(stream.clip_of_row),
        torch.from_numpy(stream.row_in_clip),
        320,
    )
    expected = Moments.stack([compute_moments(waveform) for waveform in waveforms])
    for name, values in asdict(expected).items():
        torch.testing.assert_close(getattr(found, name), values, rtol=1e-12, atol=1e-12)


def test_no_samples_have_no_moments():
    """An empty waveform is an error."""
    with pytest.raises(EncoderError, match="without samples"):
        MomentAccumulator().finish()


def test_layer_norm_is_taken_in_float32():
    """Reduced precision rounds the result of the norm, not its sums."""
    norm = torch.nn.LayerNorm(64).requires_grad_(False)
    x = (torch.randn(5, 64) + 30).bfloat16()
    found = LayerNorm(norm, torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, norm(x.float()).bfloat16())

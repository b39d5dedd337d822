"""The self-check passes sound encoders and finds leaks and overflows."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from pipeline.encoders.checking.comparisons import is_constant
from pipeline.encoders.checking.findings import describe_check, findings
from pipeline.encoders.kernels import cpu
from pipeline.encoders.selfcheck import LEAK, relative_errors, selfcheck
from pipeline.encoders.settings import resolve_settings
from tests.helpers.encoder_kinds import small_encoder, speech
from tests.helpers.fake_encoders import NARROW, FaultyEncoder, spelled


def clips():
    return [speech(12_000, 1), speech(5_000, 2), speech(400, 3)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_sound_encoder_passes(precision):
    """Errors per layer are within the tolerance; the result is JSON."""
    encoder = small_encoder("wavlm_base", precision=precision, layers=[0, 4])
    report = selfcheck(encoder, clips())
    assert report.ok
    assert len(report.alone_vs_batch) == len(report.precision_vs_fp32) == 2
    assert report.audio_s == pytest.approx(17_400 / 16_000)
    assert (max(report.precision_vs_fp32) > 0) == (precision != "fp32")
    assert json.loads(json.dumps(asdict(report)))["precision"] == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_leak_is_found(monkeypatch, precision):
    """With attention across utterances the check fails, in every precision."""
    monkeypatch.setattr(
        cpu,
        "find_spans",
        lambda counts, n_heads: [cpu.Span(slice(0, sum(counts)), 1, sum(counts))],
    )
    report = selfcheck(small_encoder("hubert_base", precision=precision), clips())
    assert not report.ok
    assert max(report.alone_vs_batch) > report.tolerance


def test_values_that_do_not_fit_are_counted():
    """A model whose features exceed float16 is not ok."""
    encoder = small_encoder("hubert_large", layers=[4])
    encoder._model.encoder.transformer.layers[3].feed_forward.output_dense.bias[0] = 1e6
    report = selfcheck(encoder, clips())
    assert report.n_misfits == report.n_unstorable == 3
    assert not report.ok
    [text] = findings(report)
    assert "layer 4 has values up to 1.0e+06, beyond float16 (65504), in 3 of 3 clips" in text


def test_values_that_are_not_finite_have_no_error():
    """The result is strict JSON; a layer without finite values has None, others are measured."""
    encoder = small_encoder("hubert_large", layers=[3, 4])
    encoder._model.encoder.transformer.layers[3].feed_forward.output_dense.bias[0] = torch.nan
    report = selfcheck(encoder, clips())
    assert report.alone_vs_batch[0] < 1e-5
    assert report.alone_vs_batch[1] is report.largest[1] is None
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["largest"][1] is None
    [text] = findings(report)
    assert "layer 4 has values that are not finite" in text


def test_a_sound_encoder_has_nothing_to_say():
    """No findings, and a line with what was compared."""
    report = selfcheck(small_encoder("wavlm_base"), clips())
    assert findings(report) == []
    assert set(report.mates) == {"batch", "permuted", "silence"}
    verdict, compared = describe_check(report)
    assert "3 clips, 1.1 s: ok" in verdict
    assert "encoded again: the same bits" in compared


def test_two_clips_take_fourteen_encodings(monkeypatch):
    """In fp32, so that a model with whole windows costs 14 of them (docs/encoder.md)."""
    encoder = small_encoder("hubert_base")
    encode, n_clips = encoder.encode_batch, []
    monkeypatch.setattr(
        encoder,
        "encode_batch",
        lambda waveforms, **options: n_clips.append(len(waveforms)) or encode(waveforms, **options),
    )
    assert selfcheck(encoder, clips()[:2]).ok
    assert sum(n_clips) == 14


def test_silence_says_nothing():
    """If all clips are silent, that is the only finding, and the check is not ok."""
    report = selfcheck(small_encoder("hubert_base"), [torch.zeros(5_000), torch.zeros(900)])
    assert (report.n_silent, report.ok) == (2, False)
    [text] = findings(report)
    assert "all 2 clips are silent" in text


def test_one_by_one_is_followed_by_the_call(monkeypatch):
    """An encoder with `one_by_one` never has two utterances in a batch."""
    encoder, sizes = small_encoder("hubert_base"), []
    encode = encoder._encode
    monkeypatch.setattr(
        encoder, "_encode", lambda clips, *more: sizes.append(len(clips)) or encode(clips, *more)
    )
    together = encoder(clips())
    encoder.one_by_one = True
    alone = encoder(clips())
    assert sizes == [3, 1, 1, 1]
    for one, other in zip(together, alone, strict=True):
        assert relative_errors(one, other).max() < 1e-5


def mates_of(fault, lengths, precision="fp32"):
    """Check a faulty encoder on clips that spell their frames; return which batches differ."""
    settings = resolve_settings(NARROW, precision=precision, device="cpu")
    waves = [torch.from_numpy(spelled(i + 1, n, NARROW.geometry)) for i, n in enumerate(lengths)]
    report = selfcheck(FaultyEncoder(NARROW, settings, fault), waves)
    assert report.leaks == any(error > LEAK for error in report.mates.values())
    return {name for name, error in report.mates.items() if error > LEAK}, report


def test_each_batch_finds_what_the_others_miss():
    """Silence finds padding of clips of one length; the reverse order finds a fault of order."""
    assert mates_of("padding", [4_000, 4_000, 4_000])[0] == {"silence"}
    assert mates_of("ascending", [9_000, 5_000, 2_000])[0] == {"permuted"}
    assert mates_of("", [9_000, 5_000, 2_000])[0] == set()


def test_clips_of_one_length_are_compared_where_no_two_are_equal():
    """An encoder may leak only between clips of one length, as these are never padded."""
    assert mates_of("equal", [9_000, 5_000, 2_000])[0] == {"permuted"}


def test_rounding_of_a_reduced_precision_is_no_leak():
    """What differs in a batch by less than the precision's rounding is a leak in fp32 only."""
    found, report = mates_of("coarse", [9_000, 5_000, 2_000], "bf16")
    assert found == set()
    assert max(report.alone_vs_batch) > LEAK
    assert report.ok


def test_infinite_layers_are_not_constant():
    """They are reported as not finite."""
    frames = torch.full((3, 2), torch.inf)
    assert not is_constant([frames, frames])
    assert is_constant([torch.ones(3, 2), torch.ones(1, 2)])
    assert not is_constant([torch.ones(3, 2), torch.zeros(1, 2)])


def test_relative_errors_are_by_layer_and_keep_nan():
    """Each layer is relative to its own largest value; NaN stays NaN."""
    reference = torch.ones(3, 2, 2) * torch.tensor([1.0, 10.0, 1.0])[:, None, None]
    found = reference.clone()
    found[0, 1, 1] += 0.5
    found[1, 0, 0] += 0.5
    found[2, 0, 0] = float("nan")
    errors = relative_errors(found, reference)
    assert errors[:2].tolist() == pytest.approx([0.5, 0.05])
    assert errors[2].isnan()

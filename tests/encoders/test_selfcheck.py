"""The self-check passes sound encoders and finds leaks and overflows."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from pipeline.encoders.kernels import cpu
from pipeline.encoders.selfcheck import relative_errors, selfcheck
from tests.helpers.encoder_kinds import small_encoder, speech


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
    assert report.n_misfits == 3
    assert not report.ok


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

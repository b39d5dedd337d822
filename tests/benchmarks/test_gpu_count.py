"""The count of what a batch asks of a GPU, against formulas worked out by hand."""

from __future__ import annotations

import sys

import pytest

from benchmarks import gpu_count
from benchmarks.gpu_count import count_batch
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from tests.helpers.fake_cuda import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def test_the_arithmetic_is_that_of_the_architecture() -> None:
    """HuBERT base, two blocks: products of all frames, and attention within each clip."""
    lengths_s, n_blocks, dim, inner = [5.0, 7.0, 9.0], 2, 768, 3072
    counts, _ = count_batch("hubert_base", "fp16", lengths_s, layers=[1, 2])
    frames = [GEOMETRY.n_frames(round(16_000 * seconds)) for seconds in lengths_s]
    n = sum(frames)
    blocks = n_blocks * 2 * n * (4 * dim**2 + 2 * dim * inner)
    projection = 2 * n * 512 * dim
    assert counts.flop["addmm"] == blocks + projection
    assert counts.flop["_varlen_attn_out"] == n_blocks * 4 * dim * sum(x**2 for x in frames)
    # Kernels 3 and 2, stride 2, in rows that the clips share; each begins at a multiple of 8.
    convolutions = 2 * n * 512 * 512 * (3 * (32 + 16 + 8 + 4) + 2 * (2 + 1))
    assert convolutions < counts.flop["mm"] + counts.flop["addmm_"] < 1.1 * convolutions
    # 16 groups of 48 channels, 143 inputs for 16 outputs; and the first convolution, 64 a frame.
    batched = 2 * n * (143 * 48 * dim + 64 * 32 * 512)
    assert batched < counts.flop["bmm"] < 1.1 * batched
    assert counts.flop.total() == pytest.approx(
        sum(counts.flop[name] for name in ("addmm", "_varlen_attn_out", "mm", "addmm_", "bmm"))
    )


@pytest.mark.parametrize(
    ("model", "precision", "clip_s"),
    [("hubert_base", "fp16", 10), ("hubert_large", "fp32", 20), ("wavlm_large", "fp32", 30)],
)
def test_a_batch_fits_into_the_memory_that_it_is_taken_to_need(
    model: str, precision: str, clip_s: int
) -> None:
    """At its peak, while the layers of two batches wait for their copies to the host."""
    lengths_s = [float(clip_s)] * (320 // clip_s)
    counts, needed = count_batch(model, precision, lengths_s, layers=[1, 2])
    n_frames = sum(GEOMETRY.n_frames(round(16_000 * seconds)) for seconds in lengths_s)
    dim = 768 if model == "hubert_base" else 1024
    waiting = 2 * 2 * n_frames * dim * 2
    assert 0.1 * needed < counts.peak + waiting < needed


def test_it_says_that_it_is_a_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody may take it for a measurement."""
    monkeypatch.setattr(sys, "argv", ["gpu_count.py", "--model", "tiny", "--clips-s", "2", "3"])
    gpu_count.main()
    printed = capsys.readouterr().out
    assert printed.startswith("A count on fake tensors. Nothing was run on a GPU, and nothing")
    assert "tiny, fp16, 2 clips, 5 s" in printed
    assert "\ntotal  " in printed
    assert "\naddmm  " in printed

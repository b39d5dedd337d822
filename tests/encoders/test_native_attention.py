"""Attention in C: its numbers, and when torch computes instead."""

from __future__ import annotations

import pytest
import torch

from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.kernels.cpu import CpuKernels
from pipeline.encoders.kernels.native import attention as native
from pipeline.encoders.kernels.reference import ReferenceKernels

HEADS, WIDTH = 2, native.HEAD_DIM
DIM = HEADS * WIDTH
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
EDGES = [
    1,
    2,
    5,
    16,
    17,
    23,
    24,
    25,
    32,
    33,
    47,
    48,
    49,
    65,
    81,
    95,
    97,
    193,
    239,
    240,
    241,
    265,
    500,
]
"""Frames of clips around the sizes of the tiles, and of the shares of a thread."""


@pytest.fixture(params=TOLERANCE)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that is computed in C here."""
    if not native.is_available(request.param, WIDTH):
        pytest.skip(f"no compiler, or a CPU without instructions for {request.param}")
    return request.param


def projected_of(pack: Pack, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(pack.n_rows, 3 * DIM, generator=random).to(dtype)


def bias_of(pack: Pack, seed: int = 0):
    """A gate for each query, and a bias that differs for every distance, before and after."""
    random = torch.Generator().manual_seed(seed)
    gates = 2 + torch.randn(pack.n_rows, HEADS, generator=random)
    by_distance = torch.randn(HEADS, 2 * pack.longest + 99, generator=random)
    middle = pack.longest + 49

    def bias(n: int) -> torch.Tensor:
        frames = torch.arange(n)
        return by_distance[:, middle + frames - frames[:, None]]

    return gates, bias


@pytest.mark.parametrize("with_bias", [False, True])
def test_clips_of_every_length_have_the_numbers_of_the_reference(dtype, with_bias) -> None:
    """Each clip is as exact as the dtype of the weights allows; rows after the last one are 0."""
    pack = Pack(EDGES, "cpu", 32)
    projected = projected_of(pack, dtype)
    gates, bias = bias_of(pack) if with_bias else (None, None)
    found = native.attend(projected, pack, HEADS, gates, bias)
    exact = ReferenceKernels().attention(
        projected.double(), pack, HEADS, gates, None if bias is None else lambda n: bias(n).double()
    )
    assert found.dtype == dtype
    assert found.shape == exact.shape
    for clip, wanted in zip(
        found[: pack.n_frames].double().split(EDGES),
        exact[: pack.n_frames].split(EDGES),
        strict=True,
    ):
        assert float((clip - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE[dtype]
    assert pack.n_rows > pack.n_frames
    assert not found[pack.n_frames :].any()


def test_large_scores_do_not_overflow(dtype) -> None:
    """Weights span all of float32: the scores differ by up to hundreds (and are exact here)."""
    pack = Pack([300], "cpu", 32)
    random = torch.Generator().manual_seed(0)
    projected = torch.randint(-12, 13, (pack.n_rows, 3 * DIM), generator=random).to(dtype)
    found = native.attend(projected, pack, HEADS)
    exact = ReferenceKernels().attention(projected.double(), pack, HEADS)
    assert float((found.double() - exact).abs().max() / exact.abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("n_threads", [2, 3])
def test_neighbours_and_threads_do_not_change_a_bit(dtype, n_threads, monkeypatch) -> None:
    """A clip alone, with one thread, has the bits that it has in a batch, with several."""
    pack, alone = Pack([70, 301, 12], "cpu"), Pack([301], "cpu")
    projected = projected_of(pack, dtype)
    gates, bias = bias_of(pack)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    together = native.attend(projected, pack, HEADS, gates, bias)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    single = native.attend(projected[70:371], alone, HEADS, gates[70:371], bias)
    assert torch.equal(together[70:371], single)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_values_that_are_not_finite_stay_so(dtype, value, part) -> None:
    """In their clip and head only: that is how an overflow is found."""
    pack = Pack([31, 40, 9], "cpu")
    projected = projected_of(pack, dtype)
    projected[31, ("query", "key", "value").index(part) * DIM + 3] = value
    first, found, last = native.attend(projected, pack, HEADS).split(pack.counts)
    assert not torch.isfinite(found[:, :WIDTH]).all()
    assert torch.isfinite(found[:, WIDTH:]).all()
    assert torch.isfinite(first).all()
    assert torch.isfinite(last).all()


def test_the_kernels_of_a_cpu_use_it(dtype, monkeypatch) -> None:
    """For heads of its width; others are torch's."""
    pack = Pack([20, 30], "cpu")
    called = []
    monkeypatch.setattr(
        native, "attend", lambda projected, *rest: called.append(projected.shape) or projected
    )
    CpuKernels().attention(projected_of(pack, dtype), pack, HEADS)
    CpuKernels().attention(projected_of(pack, dtype), pack, 2 * HEADS)
    assert called == [(50, 3 * DIM)]


def test_without_the_library_torch_computes(tmp_path, monkeypatch) -> None:
    """The numbers are the same up to rounding."""
    pack = Pack([20, 30, 30], "cpu")
    projected = projected_of(pack, torch.float32)
    gates, bias = bias_of(pack)
    usual = CpuKernels().attention(projected, pack, HEADS, gates, bias)
    native._load.cache_clear()
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.native")
    try:
        assert not native.is_available(torch.float32, WIDTH)
        with pytest.raises(
            ValueError, match=r"no attention in torch.float32 with heads of 64 here"
        ):
            native.attend(projected, pack, HEADS)
        torch.testing.assert_close(
            CpuKernels().attention(projected, pack, HEADS, gates, bias), usual, rtol=0, atol=1e-5
        )
    finally:
        native._load.cache_clear()


@pytest.mark.parametrize(
    ("dtype_", "width"), [(torch.float64, 64), (torch.float16, 64), (torch.float32, 80)]
)
def test_other_dtypes_and_widths_are_not_computed(dtype_, width) -> None:
    """float64 is for references; 80 is the width of models with a billion parameters."""
    assert not native.is_available(dtype_, width)

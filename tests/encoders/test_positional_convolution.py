"""The positional convolution: by FFT and as a Toeplitz product as by its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.encoders.kernels import kernels_for, toeplitz
from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.kernels.cpu import CpuKernels
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.kernels.reference import ReferenceKernels

KERNELS = {"cpu": CpuKernels, "cuda": CudaKernels, "reference": ReferenceKernels}


@pytest.fixture(params=KERNELS)
def convolve(request: pytest.FixtureRequest):
    """`convolve(conv, x, counts)` with the operations of each device, in float32."""
    kernels = KERNELS[request.param]()

    def run(conv, x: torch.Tensor, counts: list[int], dtype=torch.float32, **options):
        weight, bias = conv.weight.detach(), conv.bias.detach()
        position = kernels.positional_convolution(weight, bias, conv.groups, dtype, **options)
        with torch.inference_mode():
            return position(x, Pack(counts, "cpu"))

    return run


def by_definition(conv: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """One utterance `[frames, dim]` in float64, by the convolution of torch."""
    y = F.conv1d(
        x.double().T[None],
        conv.weight.double(),
        conv.bias.double(),
        padding=conv.padding[0],
        groups=conv.groups,
    )
    return F.gelu(y[0, :, : len(x)].T)


@pytest.mark.parametrize("kernel", [128, 19, 4])
@pytest.mark.parametrize("groups", [1, 4])
def test_each_clip_is_convolved_separately(convolve, kernel, groups) -> None:
    """For lengths below and above the kernel's, and at the borders of blocks."""
    torch.manual_seed(kernel)
    conv = torch.nn.Conv1d(32, 32, kernel, padding=kernel // 2, groups=groups)
    edge = kernel + 1  # frames that a block gives
    counts = [1, kernel // 2, edge - 1, edge, edge + 1, 2 * edge, 300, 1]
    clips = [torch.randn(count, 32) * 10.0**i for i, count in enumerate(counts, start=-3)]
    found = convolve(conv, torch.cat(clips), counts).split(counts)
    for clip, got in zip(clips, found, strict=True):
        wanted = by_definition(conv, clip)
        assert (got - wanted).abs().max() <= 2e-6 * wanted.abs().max()


def test_neighbours_change_nothing(convolve) -> None:
    """An utterance between two that are a million times louder does not change."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(16, 16, 128, padding=64, groups=2)
    clip, loud = torch.randn(65, 16), 1e6 * torch.randn(70, 16)
    alone = convolve(conv, clip, [65])
    among = convolve(conv, torch.cat([loud, clip, loud]), [70, 65, 70])[70:135]
    assert (among - alone).abs().max() <= 1e-6 * alone.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(convolve, dtype) -> None:
    """In float64 to its rounding; in the others to theirs. Many blocks are computed in parts."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(32, 32, 128, padding=64, groups=4)
    x, counts = torch.randn(500, 32), [3, 450, 47]
    found = convolve(conv, x, counts, dtype)
    limit = {torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for got, clip in zip(found.split(counts), x.split(counts), strict=True):
        wanted = by_definition(conv, clip)
        assert (got - wanted).abs().max() <= limit * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gelu_can_be_left_out(convolve, dtype) -> None:
    """GELU of the convolution without it is the convolution with it, and they differ."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(32, 32, 19, padding=9, groups=4)
    x, counts = torch.randn(70, 32), [3, 67]
    plain = convolve(conv, x, counts, dtype, gelu=False)
    whole = convolve(conv, x, counts, dtype)
    torch.testing.assert_close(F.gelu(plain), whole)
    assert plain.min() < -0.2 < whole.min()


def test_blocks_are_computed_in_parts(monkeypatch) -> None:
    """The Toeplitz product bounds its memory."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(32, 32, 128, padding=64, groups=4)
    position = CudaKernels().positional_convolution(
        conv.weight.detach(), conv.bias.detach(), 4, torch.float32
    )
    x, pack = torch.randn(500, 32), Pack([3, 450, 47], "cpu")
    with torch.inference_mode():
        whole = position(x, pack)
        monkeypatch.setattr(toeplitz, "_MAX_BLOCKS", 7)
        torch.testing.assert_close(position(x, pack), whole)


def test_each_device_has_its_operations() -> None:
    """Unknown devices get the reference."""
    found = [type(kernels_for(torch.device(name))) for name in ("cpu", "cuda", "meta")]
    assert found == [CpuKernels, CudaKernels, ReferenceKernels]

"""The positional convolution: by FFT as by its definition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pipeline.encoders.wav2vec2.position import PositionalConvolution


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
def test_each_utterance_is_convolved_separately(kernel, groups) -> None:
    """For lengths below and above the kernel's, and at the borders of blocks."""
    torch.manual_seed(kernel)
    conv = torch.nn.Conv1d(32, 32, kernel, padding=kernel // 2, groups=groups)
    position = PositionalConvolution(SimpleNamespace(conv=conv), torch.float32)
    edge = kernel + 1  # frames that a block gives
    counts = [1, kernel // 2, edge - 1, edge, edge + 1, 2 * edge, 300, 1]
    clips = [torch.randn(count, 32) * 10.0**i for i, count in enumerate(counts, start=-3)]
    with torch.inference_mode():
        found = position(torch.cat(clips), counts).split(counts)
        for clip, got in zip(clips, found, strict=True):
            wanted = by_definition(conv, clip)
            assert (got - wanted).abs().max() <= 2e-6 * wanted.abs().max()


def test_neighbours_change_nothing() -> None:
    """An utterance between two that are a million times louder does not change."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(16, 16, 128, padding=64, groups=2)
    position = PositionalConvolution(SimpleNamespace(conv=conv), torch.float32)
    clip, loud = torch.randn(65, 16), 1e6 * torch.randn(70, 16)
    with torch.inference_mode():
        alone = position(clip, [65])
        among = position(torch.cat([loud, clip, loud]), [70, 65, 70])[70:135]
    assert (among - alone).abs().max() <= 1e-6 * alone.abs().max()


def test_other_devices_convolve_directly() -> None:
    """The implementation for GPUs gives the same result; here it runs on the CPU."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(16, 16, 128, padding=64, groups=2)
    position = PositionalConvolution(SimpleNamespace(conv=conv), torch.float32)
    x, counts = torch.randn(200, 16), [3, 150, 47]
    with torch.inference_mode():
        expected = position(x, counts)
        position._spectrum, position._direct = None, conv.weight
        torch.testing.assert_close(position(x, counts), expected)

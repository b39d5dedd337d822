"""Small torch modules as a user might write them, and factories for `register_encoder`."""

from __future__ import annotations

import torch
from torch import nn

import pipeline

LAYERS = ("blocks.0", "blocks.1", "blocks.2")
DIM = 8


class Block(nn.Module):
    """Mixes channels; with `attends` each frame also sees the mean of all frames.

    With lengths only of those inside.
    """

    def __init__(self, dim: int, attends: bool) -> None:
        super().__init__()
        self.attends = attends
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        mean: torch.Tensor | float = 0.0
        if self.attends:
            weights = torch.ones(x.shape[:2], device=x.device) if inside is None else inside.float()
            mean = (x * weights[..., None]).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
        return x + torch.tanh(self.linear(x) + mean)


class Toy(nn.Module):
    """A convolution of 25 ms every 20 ms, padded at both ends by `padding`, and three blocks."""

    def __init__(self, attends: bool = False, padding: int = 0, hop: int = 320) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, DIM, 400, hop, padding=padding)
        self.blocks = nn.ModuleList([Block(DIM, attends) for _ in range(3)])

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        x = self.conv(waveforms[:, None]).transpose(1, 2)
        inside = None
        if lengths is not None:
            hop, needed = self.conv.stride[0], 400 - 2 * self.conv.padding[0]
            counts = (lengths - needed).div(hop, rounding_mode="floor") + 1
            inside = torch.arange(x.shape[1], device=x.device) < counts[:, None]
        for block in self.blocks:
            x = block(x, inside)
        return x


def make() -> nn.Module:
    """A toy without attention: its receptive field can be found."""
    return Toy()


def make_attentive() -> nn.Module:
    """A toy whose frames see the whole clip, and which can be told the lengths."""
    return Toy(attends=True)


def make_other() -> nn.Module:
    """The toy with other weights."""
    torch.manual_seed(1)
    return Toy()


def make_number() -> int:
    """What is no module."""
    return 3


def make_nothing() -> nn.Module:
    """A factory that fails."""
    raise FileNotFoundError("no file\nencoder.pt")


DEFINITION = pipeline.register_encoder("toy", make, layers=LAYERS, version="1")

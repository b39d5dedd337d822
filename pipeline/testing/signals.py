"""Signals for the checks."""

from __future__ import annotations

from functools import lru_cache, reduce

import torch
from torch import Tensor


def speech(n_samples: int, seed: int = 0, amplitude: float = 0.1, rate_hz: int = 16_000) -> Tensor:
    """Make a voiced, noisy, slowly modulated signal: float32 `[n_samples]`."""
    return _speech(n_samples, seed, amplitude, rate_hz).clone()


@lru_cache(maxsize=64)  # the checks ask for the same signals again
def _speech(n_samples: int, seed: int, amplitude: float, rate_hz: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(n_samples, dtype=torch.float64) / rate_hz
    pitch = 90 + 15 * seed + 20 * torch.sin(2 * torch.pi * 3 * t)
    phase = 2 * torch.pi * torch.cumsum(pitch / rate_hz, 0)
    voiced = reduce(torch.add, (torch.sin(k * phase) / k for k in range(1, 12)))
    envelope = 0.2 + torch.sin(2 * torch.pi * (2 + 0.3 * seed) * t).clamp_min(0.0)
    noise = 0.2 * torch.randn(n_samples, generator=generator, dtype=torch.float64)
    return (amplitude * envelope * (voiced + noise)).float()

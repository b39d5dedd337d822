"""The device that torch computes on."""

from __future__ import annotations

import torch

from pipeline.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the device of a setting: auto, cpu or cuda.

    Raises:
        ConfigError: The setting has another value, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; expected auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError("device is cuda and torch finds no GPU; set device=cpu")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")

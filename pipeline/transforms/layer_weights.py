"""Layer weights, from numbers, text or a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError


def read_weights(
    weights: str | Path | Sequence[float] | Tensor, n_layers: int, softmax: bool = False
) -> tuple[float, ...]:
    """Read one weight per layer; return them as rounded to float32.

    Args:
        weights: `average`; numbers; `[0.1, 0.9]` as text; or a file: .json with a list, .npy, or
            .pt with a tensor, or with the `state_dict` of a model that has a `WeightedSum`, to
            whose scalars a softmax is applied.
        n_layers: Layers of the store.
        softmax: Whether to apply a softmax to the numbers.

    Raises:
        ConfigError: They are not `n_layers` finite numbers.
    """
    if isinstance(weights, str) and weights == "average":
        numbers, softmax = torch.zeros(n_layers), True
    elif isinstance(weights, str | Path):
        numbers, scalars = _load_weights(str(weights))
        softmax = softmax or scalars
    else:
        numbers = torch.as_tensor(weights).detach().cpu()
    if numbers.shape != (n_layers,) or not bool(torch.isfinite(numbers.float()).all()):
        raise ConfigError(
            f"weights are {numbers.tolist()}; expected {n_layers} finite numbers, one per layer"
        )
    numbers = numbers.double().softmax(0) if softmax else numbers
    return tuple(numbers.float().tolist())


def _load_weights(text: str) -> tuple[Tensor, bool]:
    """Read numbers from text or a file; return whether they are scalars of a `WeightedSum`, too."""
    try:
        if text.lstrip().startswith("["):
            return torch.tensor(json.loads(text), dtype=torch.float64), False
        path = Path(text)
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path)), False
        if path.suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(found, Tensor):
                return found, False
            scalars = [v for k, v in found.items() if k.rpartition(".")[2] == "scalars"]
            if len(scalars) != 1:
                raise ConfigError(f"{path} has {len(scalars)} weighted sums; expected one")
            return scalars[0], True
        return torch.tensor(json.loads(path.read_text()), dtype=torch.float64), False
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(
            f"weights={text}: there is no such file; expected average, a list of numbers, or a file"
        ) from None
    except Exception as error:  # the libraries raise many types for a damaged file
        raise ConfigError(f"weights {text!r} cannot be read: {error}") from error

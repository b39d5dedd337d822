"""Layer normalisation in float32 for reduced precisions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.base import wide_dtype


class LayerNorm:
    """A layer norm over the last axis, computed in float32 at least, for every dtype."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        """Take the weights of a LayerNorm module of torch, for products in `dtype`."""
        wide = wide_dtype(dtype)
        self._shape, self._eps = module.normalized_shape, module.eps
        self._weight, self._bias = module.weight.detach().to(wide), module.bias.detach().to(wide)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise `[..., channels]`; return the same shape and dtype."""
        if x.dtype == self._weight.dtype or x.device.type == "cpu":  # there it sums in float32
            return F.layer_norm(x, self._shape, self._weight, self._bias, self._eps)
        wide = x.to(self._weight.dtype)
        return F.layer_norm(wide, self._shape, self._weight, self._bias, self._eps).to(x.dtype)

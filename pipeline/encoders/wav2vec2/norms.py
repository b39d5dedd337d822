"""Layer norms in float32 for reduced precisions, and batch norms with fixed statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class BatchNorm(nn.Module):
    """A batch norm over channels with fixed statistics; it counts no batches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[batch, dim, frames]`."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the norm as an affine map: factor and term of each channel, float64 `[dim]`."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        factor = self.weight.detach().double() * (variance.double() + self.eps).rsqrt()
        return factor, self.bias.detach().double() - mean.double() * factor

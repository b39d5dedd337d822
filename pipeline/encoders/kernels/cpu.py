"""Linear maps in the precision of the products, with what may be fused into them.

On x86 CPUs the weights are laid out once as oneDNN wants them: `F.linear` orders them anew at every
call, or has MKL do float32. With the sizes of these models oneDNN's own kernels were 10 to 15 %
ahead of it on one CPU with AVX-512, and twice as fast in float32 on another (torch 2.14). A GELU
behind the product, or a term added to it, is done while the result is in the cache. Elsewhere it is
`F.linear` and what follows it.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 32


def fill_up(rows: int) -> int:
    """Rows that a batch should have instead: oneDNN keeps something for every new size."""
    return -(-rows // _ROWS) * _ROWS


def gelu_(x: Tensor) -> Tensor:
    """GELU by the error function, written over its input."""
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


class Linear:
    """`x Wᵀ + b`, then perhaps a term added, then perhaps GELU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Prepare the weights.

        Args:
            weight: float32 `[out, in]`.
            bias: float32 `[out]` or None.
            dtype: of the product; the product's terms are summed in float32.
        """
        self.dtype = dtype
        self.n_out = weight.shape[0]
        self.bias = None if bias is None else bias.to(dtype)
        self._packed = can_pack(weight.device, dtype)
        with torch.inference_mode():
            weight = weight.to(dtype)
            self._weight = (
                torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight
            )

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Map `[rows, in]` of any dtype to `[rows, out]` in the precision's."""
        x = x.to(self.dtype)
        if self._packed:
            then, how = ("gelu", "none") if gelu else ("none", "")  # "none": by the error function
            packed = torch.ops.mkldnn._linear_pointwise
            result: Tensor = packed(x, self._weight, self.bias, then, [], how)
            return result
        y = F.linear(x, self._weight, self.bias)
        return gelu_(y) if gelu else y

    def add(self, x: Tensor, term: Tensor) -> Tensor:
        """Map `[rows, in]` and add `term` `[rows, out]`, which may be overwritten.

        Both are of the precision's dtype already.
        """
        if self._packed:
            packed_sum = torch.ops.mkldnn._linear_pointwise.binary
            result: Tensor = packed_sum(x, term, self._weight, self.bias, "add")
            return result
        y = term.addmm_(x, self._weight.T)
        return y if self.bias is None else y.add_(self.bias)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether oneDNN has fused products for this device and dtype."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32

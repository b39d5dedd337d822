"""Steps of Adam of linear heads, and weighted sums, where the library is compiled and fits the CPU.

Addresses are taken once, so a `NativeHeads` is valid as long as its tensors are neither replaced
nor resized.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.native import is_stale, load_library

LIBRARY = Path(__file__).with_name("libheads.native")
INTERFACE = 1
"""Number of the interface that is used here, as in heads.c."""
AVX2, AVX512 = 1, 2
"""Levels of instructions, as in heads.c."""
BETAS, EPS = (0.9, 0.999), 1e-8
"""Settings of Adam: those of `torch.optim.Adam`."""
_NAME = "strata_heads"  # what the names of its functions begin with
_WIDTH, _ROWS = 16, 4  # dim is a multiple of one, projection of the other

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t


class _Layer(ctypes.Structure):
    _fields_ = [(name, _POINTER) for name in ("value", "mean", "square")]


class _Head(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("n_outputs", "projection", "dim", "n_scalars")),
        ("layers", _Layer * 5),
        ("product", _POINTER),
        ("product_bias", _POINTER),
    ]


class _Adam(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float) for name in ("beta1", "beta2", "eps", "step_size", "root_scale")
    ]


class _Inputs(ctypes.Structure):
    _fields_ = [("base", _POINTER), ("rows", _POINTER), ("n_rows", _SIZE)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("features", _POINTER),
        *((name, _SIZE) for name in ("n_layers", "n_utterances", "dim")),
        ("rows", _POINTER),
        ("n_rows", _SIZE),
    ]


class HeadTensors(NamedTuple):
    """Parameters of heads, or the moments of their gradients: float32, contiguous.

    Attributes:
        first: [n_heads, projection, dim].
        first_bias: [n_heads, projection].
        last: Transposed, [n_heads, projection, n_outputs].
        last_bias: [n_heads, n_outputs].
        scalars: Scalars of weighted sums, [n_heads, n_layers]; of other heads [n_heads, 0].
    """

    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor
    scalars: Tensor

    def zeros(self) -> HeadTensors:
        """Return zeros of the same shapes."""
        return HeadTensors(*map(torch.zeros_like, self))

    def take(self, heads: Sequence[int]) -> HeadTensors:
        """Return copies of some heads."""
        return HeadTensors(*(part[list(heads)] for part in self))


class HeadInputs(NamedTuple):
    """What heads get.

    Attributes:
        pooled: Features of all utterances, float32 [n_layers, n_utterances, dim], contiguous.
        rows: Positions of the utterances of a batch, int64 [n].
        axes: Index of each head's layer, [n_heads]; not used for weighted sums.
        mix: Weights of weighted sums, float32 [n_heads, n_layers], contiguous; else None.
    """

    pooled: Tensor
    rows: Tensor
    axes: Sequence[int]
    mix: Tensor | None


class NativeHeads:
    """Heads whose tensors C code changes in place.

    Args:
        values: Their parameters.
        means: Means of their gradients, as Adam has them.
        squares: Means of the squares of their gradients.
        product: Both layers multiplied, [n_heads, n_outputs, dim].
        product_bias: [n_heads, n_outputs, 1].
        lrs: Learning rate of each head.
    """

    def __init__(
        self,
        values: HeadTensors,
        means: HeadTensors,
        squares: HeadTensors,
        product: Tensor,
        product_bias: Tensor,
        lrs: Sequence[float],
    ) -> None:
        self._kept = (values, means, squares, product, product_bias)
        self._lrs = tuple(lrs)
        n, projection, dim = values.first.shape
        shape = (values.last.shape[2], projection, dim, values.scalars.shape[1])
        self._heads = (_Head * n)()
        for i, head in enumerate(self._heads):
            head.n_outputs, head.projection, head.dim, head.n_scalars = shape
            for number, layer in enumerate(head.layers):
                parts = (tensors[number] for tensors in (values, means, squares))
                layer.value, layer.mean, layer.square = (_address(part, i) for part in parts)
            head.product, head.product_bias = _address(product, i), _address(product_bias, i)
        self._shape = shape
        self._settings = (_Adam * n)()
        n_outputs = shape[0]
        n_values = (n_outputs + _ROWS) * (dim + 1) + _ROWS * n_outputs + shape[3]
        self._scratch, self._memory = torch.empty(n_values), torch.empty(0)
        self._sums = torch.empty(n, shape[3], dtype=torch.float64)

    def outputs(self, inputs: HeadInputs) -> Tensor:
        """Return the outputs of the heads, [n_heads, n_outputs, n]."""
        library, level = _loaded()
        n_heads = len(self._heads)
        out = torch.empty(n_heads, self._shape[0], len(inputs.rows))
        library.strata_heads_outputs(
            level, self._heads, n_heads, self._inputs(inputs), out.data_ptr()
        )
        return out

    def learn(self, number: int, inputs: HeadInputs, errors: Tensor) -> None:
        """Take a step of Adam with each head, and multiply its layers.

        Args:
            number: Number of the step, from 1.
            inputs: What `outputs` got.
            errors: Gradient with respect to the outputs, float32 [n_heads, n_outputs, n].
        """
        library, level = _loaded()
        (beta1, beta2), errors = BETAS, errors.contiguous()
        root_scale, share = 1 / math.sqrt(1 - beta2**number), 1 - beta1**number
        for by, lr in zip(self._settings, self._lrs, strict=True):
            by.beta1, by.beta2, by.eps = beta1, beta2, EPS
            by.step_size, by.root_scale = lr / share, root_scale
        mix = inputs.mix
        library.strata_heads_learn(
            level,
            self._heads,
            len(self._heads),
            self._inputs(inputs),
            None if mix is None else _batch(inputs.pooled, inputs.rows),
            None if mix is None else mix.data_ptr(),
            errors.data_ptr(),
            self._settings,
            None if mix is None else self._mixed(len(inputs.rows))[1].data_ptr(),
            self._sums.data_ptr(),
            self._scratch.data_ptr(),
        )

    def _inputs(self, inputs: HeadInputs) -> Any:
        """Return where each head finds its inputs; weighted sums are computed."""
        n = len(inputs.rows)
        found = (_Inputs * len(self._heads))()
        if inputs.mix is None:
            batch = _batch(inputs.pooled, inputs.rows)  # checks them
            for head, axis in zip(found, inputs.axes, strict=True):
                head.base, head.rows = _address(inputs.pooled, axis), batch.rows
                head.n_rows = n
            return found
        mixed = self._mixed(n)[0]
        for i, head in enumerate(found):
            head.base, head.n_rows = _address(mixed, i), n
        return found

    def mix(self, inputs: HeadInputs) -> None:
        """Compute the weighted sums of these inputs, once for `outputs` and `learn`."""
        if inputs.mix is not None:
            mix_layers(inputs.pooled, inputs.rows, inputs.mix, self._mixed(len(inputs.rows))[0])

    def _mixed(self, batch: int) -> Tensor:
        """Return memory for weighted sums and their gradients; new memory takes time."""
        shape = (2, len(self._heads), batch, self._shape[2])
        if self._memory.shape != shape:
            self._memory = torch.empty(shape)
        return self._memory


def mix_layers(pooled: Tensor, rows: Tensor, mix: Tensor, out: Tensor) -> None:
    """Compute weighted sums of layers.

    Args:
        pooled: Features of all utterances, float32 [n_layers, n_utterances, dim], contiguous.
        rows: Positions of the utterances, int64 [n].
        mix: Weights, float32 [n_heads, n_layers], contiguous.
        out: Receives the sums, float32 [n_heads, n, dim], contiguous.

    Raises:
        IndexError: A position is out of range.
        ValueError: The features or the positions have another type or form.
    """
    library, level = _loaded()
    library.strata_heads_mix(level, _batch(pooled, rows), mix.data_ptr(), len(mix), out.data_ptr())


def can_mix(pooled: Tensor) -> bool:
    """Return whether `mix_layers` can read these features on this machine."""
    is_plain = pooled.device.type == "cpu" and pooled.dtype == torch.float32
    return is_plain and pooled.is_contiguous() and fits(pooled.shape[2], _ROWS)


def fits(dim: int, projection: int) -> bool:
    """Return whether heads of these sizes can be computed on this machine."""
    return best_level() > 0 and dim % _WIDTH == 0 and projection % _ROWS == 0


def best_level() -> int:
    """Return the best instructions of this machine; 0 if there are none, or no library."""
    return _loaded()[1]


def stale_note() -> str:
    """Return a warning if the library is of another version of its sources, and not used."""
    if not is_stale(LIBRARY, _NAME, INTERFACE):
        return ""
    return (
        f"WARNING: {LIBRARY} is of another version of Strata and is not used, so heads are trained "
        "without C code, more slowly; compile it again: python scripts/build_native.py"
    )


def _batch(pooled: Tensor, rows: Tensor) -> _Batch:
    if not (can_mix(pooled) and rows.is_contiguous() and rows.dtype == torch.int64):
        raise ValueError(
            f"C code cannot read {pooled.dtype} features of shape {list(pooled.shape)} and strides "
            f"{pooled.stride()} at {rows.dtype} positions of strides {rows.stride()}; expected "
            "contiguous float32 features and contiguous int64 positions on the CPU"
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < pooled.shape[1]:
        raise IndexError(f"positions of utterances reach beyond the {pooled.shape[1]:,} there are")
    return _Batch(pooled.data_ptr(), *pooled.shape, rows.data_ptr(), len(rows))


def _address(tensor: Tensor, i: int) -> int:
    """Return the address of a head's part of a tensor."""
    return int(tensor.data_ptr() + i * tensor.stride(0) * tensor.element_size())


@cache
def _loaded() -> tuple[Any, int]:
    """Return the library and its best level."""
    library = load_library(LIBRARY, _NAME, INTERFACE)
    if library is None:
        return None, 0
    number, heads, batch = ctypes.c_int, ctypes.POINTER(_Head), ctypes.POINTER(_Batch)
    inputs, adam = ctypes.POINTER(_Inputs), ctypes.POINTER(_Adam)
    outputs = [number, heads, _SIZE, inputs]
    arguments = {
        "mix": [number, batch, _POINTER, _SIZE, _POINTER],
        "outputs": [*outputs, _POINTER],
        "learn": [*outputs, batch, _POINTER, _POINTER, adam, _POINTER, _POINTER, _POINTER],
    }
    for name, types in arguments.items():
        function = getattr(library, f"{_NAME}_{name}")
        function.argtypes, function.restype = types, None
    return library, int(library.strata_heads_level())

"""Decoding of int8 features in one pass, where the library is compiled and the CPU has AVX2."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pipeline.native import load_library

LIBRARY = Path(__file__).with_name("libint8.native")
INTERFACE = 1
"""Number of the interface that is used here, as in int8.c."""
AVX2, AVX512 = 1, 2
"""Levels of instructions, as in int8.c."""


def decode(steps: Tensor, scales: Tensor, out: Tensor, level: int | None = None) -> bool:
    """Compute `offset + scale * q`, with the bits of `Int8Codec.decode`.

    Args:
        steps: int8 [n_frames, dim].
        scales: float32 [2, dim]: offset and scale.
        out: Destination of the shape of `steps`; float16 or float32.
        level: Instructions to use; None takes the best of this machine.

    Returns:
        Whether it was done. It is not without the library, on other CPUs, or if a tensor is not
        contiguous or has another type.
    """
    loaded = _load()
    kinds = (torch.float16, torch.float32)
    tensors = (steps, scales, out)
    if loaded is None or out.dtype not in kinds or not all(x.is_contiguous() for x in tensors):
        return False
    function, best = loaded
    to_half = out.dtype == kinds[0]
    function(
        best if level is None else level,
        steps.data_ptr(),
        *steps.shape,
        scales.data_ptr(),
        out.data_ptr() if to_half else None,
        None if to_half else out.data_ptr(),
        False,
    )
    return True


def best_level() -> int:
    """Return the best instructions of this machine; 0 if there are none, or no library."""
    loaded = _load()
    return 0 if loaded is None else loaded[1]


@cache
def _load() -> tuple[ctypes._FuncPointer, int] | None:
    """Return the function and its best level."""
    library = load_library(LIBRARY, "strata_int8", INTERFACE)
    if library is None:
        return None
    level = int(library.strata_int8_level())
    function = library.strata_int8_decode
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    number = ctypes.c_int
    function.argtypes = [number, pointer, size, size, pointer, pointer, pointer, number]
    function.restype = None
    return (function, level) if level else None

"""Attention within the clips of a packed batch, where the library is compiled and fits the CPU."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.encoders.kernels.base import Pack, PositionBias
from pipeline.native import load_library

LIBRARY = Path(__file__).with_name("libattention.native")
INTERFACE = 1
"""Number of the interface that is used here, as in attention.c."""
HEAD_DIM = 64
"""The only width of a head, as in attention.c: that of all published base and large models."""
DTYPES = {torch.float32: 1, torch.bfloat16: 2}
"""Numbers of the dtypes, as in attention.c."""
_NAME = "strata_attention"  # what the names of its functions begin with
_ALIGNMENT = 64

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _Attention(ctypes.Structure):
    _fields_ = [
        ("dtype", _SIZE),
        *((name, _POINTER) for name in ("projected", "mixed", "gates", "bias")),
        *((name, _POINTER) for name in ("starts", "counts")),
        *((name, _SIZE) for name in ("n_clips", "n_heads", "longest")),
        ("scratch", _POINTER),
    ]


class _Loaded(NamedTuple):
    """The library and what it needs.

    Attributes:
        library: Its functions.
        dtypes: Numbers of the dtypes that it computes on this CPU, added up.
        parallel: OpenMP's function that runs another one on the threads of torch.
    """

    library: ctypes.CDLL
    dtypes: int
    parallel: ctypes.c_void_p


def is_available(dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether `attend` computes heads of this dtype and width on this machine."""
    loaded = _load()
    if loaded is None or head_dim != HEAD_DIM:
        return False
    return bool(loaded.dtypes & DTYPES.get(dtype, 0))


def attend(
    projected: Tensor,
    pack: Pack,
    n_heads: int,
    gates: Tensor | None = None,
    bias: PositionBias | None = None,
) -> Tensor:
    """Attend within each clip; see `Kernels.attention`.

    The products of bfloat16 are summed in float32, the softmax is float32.

    Raises:
        ValueError: `is_available` is false.
    """
    loaded, dim = _load(), projected.shape[1] // 3
    if loaded is None or not is_available(projected.dtype, dim // n_heads):
        raise ValueError(f"no attention in {projected.dtype} with heads of {dim // n_heads} here")
    projected = projected.contiguous()
    mixed = projected.new_empty(len(projected), dim)
    mixed[pack.n_frames :] = 0.0
    places = torch.tensor([pack.starts, pack.counts])
    kept: list[Tensor | None] = [None, None]  # until the call ends
    if gates is not None and bias is not None:
        kept = [gates.float().contiguous(), _by_distance(bias(pack.longest))]
    n_threads = torch.get_num_threads()
    n_bytes = loaded.library.strata_attention_scratch(pack.longest) * n_threads
    scratch = torch.empty(n_bytes + _ALIGNMENT, dtype=torch.uint8)
    task = _Attention(
        DTYPES[projected.dtype],
        projected.data_ptr(),
        mixed.data_ptr(),
        *(None if tensor is None else tensor.data_ptr() for tensor in kept),
        places[0].data_ptr(),
        places[1].data_ptr(),
        len(pack.counts),
        n_heads,
        pack.longest,
        -(-scratch.data_ptr() // _ALIGNMENT) * _ALIGNMENT,
    )
    loaded.library.strata_attention_run(ctypes.byref(task), loaded.parallel, n_threads)
    return mixed


def _by_distance(bias: Tensor) -> Tensor:
    """Return a relative position bias, `[heads, n, n]`, as float32 `[heads, 2 * n - 1]`.

    The bias of query i and key j is at j - i + n - 1.
    """
    before, after = bias[:, 1:, 0].flip(1), bias[:, 0]
    return torch.cat([before, after], dim=1).float().contiguous()


@cache
def _load() -> _Loaded | None:
    """Load the library, unless the CPU lacks the instructions, or torch is without OpenMP."""
    library = load_library(LIBRARY, _NAME, INTERFACE)
    if library is None or sys.platform != "linux":
        return None
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    dtypes = int(library.strata_attention_dtypes())
    if parallel is None or not dtypes:
        return None
    library.strata_attention_scratch.argtypes = [_SIZE]
    library.strata_attention_scratch.restype = _SIZE
    library.strata_attention_run.argtypes = [
        ctypes.POINTER(_Attention),
        _POINTER,
        ctypes.c_uint,
    ]
    library.strata_attention_run.restype = None
    return _Loaded(library, dtypes, ctypes.cast(parallel, _POINTER))

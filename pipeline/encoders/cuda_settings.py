"""How torch computes on a GPU while an encoder does, whatever a trainer has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch

_ROUNDED_SUMS = (
    "allow_fp16_accumulation",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
)
"""Settings of cuBLAS that let a product in 16 bits round its partial sums to 16 bits. The last two
are on by default."""


@contextmanager
def cuda_settings(*, tf32: bool) -> Iterator[None]:
    """Fix what changes features: TF32, the sums of products in 16 bits, and cuDNN's attention.

    The settings are the process's: a trainer gets its own back afterwards.

    Products and convolutions in float32 are computed in TF32 or exactly. The older setting of cuDNN
    for TF32 is kept equal to the newer ones, because code of a model that reads it, as
    `torch.backends.cudnn.flags` does, gets an error if they differ. Products in 16 bits are summed
    in float32. cuDNN's attention, which torch prefers on Hopper, is off: it builds a plan for each
    new shape, in up to half a second, and keeps it, and every batch has other shapes.

    Args:
        tf32: Whether float32 products are computed in TF32.
    """
    cuda, cudnn = cast(Any, torch.backends.cuda), cast(Any, torch.backends.cudnn)
    attends_by_cudnn = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(False)
    rounded = {name: _value(cuda.matmul, name) for name in _ROUNDED_SUMS}
    for name in _ROUNDED_SUMS:
        setattr(cuda.matmul, name, False)
    backends = [cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [backend.fp32_precision for backend in backends]
    older: bool | None = None
    with suppress(RuntimeError):  # they differed before, so there is no value to read
        older = cudnn.allow_tf32
    if older is not None:
        cudnn.allow_tf32 = tf32
    for backend in backends:
        backend.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(attends_by_cudnn)
        for name, value in rounded.items():
            setattr(cuda.matmul, name, value)
        if older is not None:
            cudnn.allow_tf32 = older
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting


def _value(matmul: Any, name: str) -> object:
    """Return a setting of cuBLAS in the form in which it can be set again.

    Newer versions of torch keep two values under one name: whether partial sums may be rounded, and
    whether a product may be split along its sums at all.
    """
    value, splits = getattr(matmul, name), getattr(matmul, f"{name}_split_k", None)
    return value if splits is None else (value, splits)

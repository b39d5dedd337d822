"""Page-locked memory of the host, into which a GPU copies directly and while it computes."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.store.write.buffer import Allocate


def allocator(device: torch.device) -> Allocate:
    """Return how to allocate memory that receives features from a device."""
    return page_locked if device.type == "cuda" else np.empty


def page_locked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate a page-locked array.

    The memory is registered with CUDA until the array and its views are deleted; no copy may be
    under way then. PyTorch's own page-locked memory comes in powers of two, up to twice the size of
    a unit, and is kept for the lifetime of the process.

    Raises:
        torch.cuda.CudaError: The system does not lock that much memory.
    """
    raw = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
    cuda: Any = torch.cuda
    cuda.check_error(cuda.cudart().cudaHostRegister(raw.data_ptr(), raw.numel(), 0))
    owner = raw.numpy()
    # It holds `raw`: CUDA must not find registered memory reused for other data.
    weakref.finalize(owner, _release, raw).atexit = False
    return owner.view(dtype).reshape(shape)


def _release(raw: torch.Tensor) -> None:
    """Take memory from CUDA, before it is freed."""
    cuda: Any = torch.cuda
    cuda.cudart().cudaHostUnregister(raw.data_ptr())

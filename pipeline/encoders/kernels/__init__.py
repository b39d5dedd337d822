"""Operations tuned for one kind of device: products, attention, the positional convolution.

In and out: tensors of one packed batch. `base.py` is the contract, `reference.py` is plain PyTorch,
`cpu.py` and `cuda.py` are the tuned ones. A test compares each with the reference in float64.
"""

from __future__ import annotations

import torch

from pipeline.encoders.kernels.base import Kernels
from pipeline.encoders.kernels.cpu import CpuKernels
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.kernels.reference import ReferenceKernels


def kernels_for(device: torch.device) -> Kernels:
    """Return the operations for a device; plain PyTorch where there are no others."""
    kinds = {"cpu": CpuKernels, "cuda": CudaKernels}
    return kinds.get(device.type, ReferenceKernels)()

"""Between tensors and stored values: the one place where a codec meets torch.

Encoding and decoding give the same bits as the codec does with NumPy, on any device: they consist
of comparisons, conversions and single operations in float32, none of which is reordered or fused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.store.format.codecs import BFLOAT16, INT8, SMALLEST_SCALE, Codec, FloatArray, Stored
from pipeline.store.native import int8

_ONE_THREAD = 32_767
"""Values that torch computes in the calling thread. More are split over threads, which costs more
than it gains while other threads read, and is bad in the workers of a loader."""


def torch_dtype(codec: Codec) -> torch.dtype:
    """Return the torch dtype of stored values."""
    dtype: torch.dtype = getattr(torch, codec.name)
    return dtype


def as_tensor(codec: Codec, stored: Stored) -> Tensor:
    """Return stored values as a tensor of their type, sharing memory."""
    tensor = torch.from_numpy(stored)
    return tensor.view(torch.bfloat16) if codec == BFLOAT16 else tensor


def measure(codec: Codec, features: Tensor) -> FloatArray:
    """Return the scales of one utterance, float32 [n_scales, dim]; see `Codec.measure`.

    Args:
        codec: The codec.
        features: [n_frames, dim] on the CPU.
    """
    if codec == INT8:
        low, high = torch.aminmax(features, dim=0)
        return np.asarray(int8_scales(low.float(), high.float()).numpy())
    return codec.measure(features.float().numpy())


def encode_into(codec: Codec, features: Tensor, out: Stored, scales: FloatArray) -> None:
    """Encode features of one utterance into an array of stored values of the same shape.

    Args:
        codec: The codec.
        features: Floating-point values on the CPU, within the codec's range, [..., n_frames, dim].
        out: Where to put them; may be a part of a larger array.
        scales: [..., n_scales, dim], from `measure`.
    """
    if codec.is_rounding:
        as_tensor(codec, out).copy_(features)
    elif codec == INT8:
        torch.from_numpy(out).copy_(int8_steps(features, torch.from_numpy(scales)))
    else:
        out[...] = codec.encode(features.float().numpy(), scales)


def int8_scales(low: Tensor, high: Tensor) -> Tensor:
    """Return offset and scale for ranges of features, on their device; see `Int8Codec.scales_of`.

    Args:
        low: Smallest values, float32 [..., dim].
        high: Largest values, of the same shape.

    Returns:
        float32 [..., 2, dim].
    """
    offset = low * 0.5 + high * 0.5 + 0.0
    scale = (high - low) / (2 * INT8.n_steps)
    scale = torch.where(scale < float(SMALLEST_SCALE), 0.0, scale)
    return torch.stack([offset, scale], dim=-2)


def int8_steps(features: Tensor, scales: Tensor) -> Tensor:
    """Return whole numbers of steps from the offsets, as float32, on the device of the features.

    Args:
        features: [n_frames, dim].
        scales: float32, [2, dim] of one utterance, or [n_frames, 2, dim].
    """
    offset, scale = scales.unbind(-2)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    steps = features.float().sub(offset).mul_(inverse)
    return steps.round_().clamp_(-INT8.n_steps, INT8.n_steps)


def decode_into(codec: Codec, stored: Stored, out: Tensor, scales: FloatArray) -> None:
    """Decode stored values of one utterance into a tensor of the same shape.

    Args:
        codec: The codec.
        stored: [n_frames, dim].
        out: Floating-point values; those of the codec are rounded to its type.
        scales: [n_scales, dim], from `measure`.
    """
    if codec.is_rounding:
        out.copy_(as_tensor(codec, stored))
    elif codec == INT8:
        _decode_int8(torch.from_numpy(stored), torch.from_numpy(scales), out)
    else:
        out.copy_(torch.from_numpy(codec.decode(stored, scales)))


def _decode_int8(steps: Tensor, scales: Tensor, out: Tensor) -> None:
    """Compute `scale * q + offset`, without C code by blocks that stay in the CPU's cache."""
    if int8.decode(steps, scales, out):
        return
    n_frames, dim = steps.shape
    n_rows = max(1, _ONE_THREAD // dim)
    offset, scale = scales
    is_final = out.dtype == torch.float32
    block = torch.empty(0) if is_final else torch.empty((min(n_rows, n_frames), dim))
    for first in range(0, n_frames, n_rows):
        target = out[first : first + n_rows]
        values = target if is_final else block[: len(target)]
        values.copy_(steps[first : first + n_rows]).mul_(scale).add_(offset)
        if not is_final:
            target.copy_(values)

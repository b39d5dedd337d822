"""Between tensors and stored values: the one place where a codec meets torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.store.format.codecs import Codec, Stored


def torch_dtype(codec: Codec) -> torch.dtype:
    """Return the torch dtype of stored values."""
    return torch.from_numpy(np.empty(0, codec.dtype)).dtype


def encode_into(codec: Codec, features: Tensor, out: Stored) -> None:
    """Encode features into an array of stored values of the same shape.

    Args:
        codec: The codec.
        features: Floating-point values on the CPU, within the codec's range.
        out: Where to put them; may be a part of a larger array.
    """
    if codec.is_rounding:
        torch.from_numpy(out).copy_(features)
    else:
        out[...] = codec.encode(features.float().numpy())


def decode_into(codec: Codec, stored: Stored, out: Tensor) -> None:
    """Decode stored values into a float32 tensor of the same shape."""
    if codec.is_rounding:
        out.copy_(torch.from_numpy(stored))
    else:
        out.copy_(torch.from_numpy(codec.decode(stored)))

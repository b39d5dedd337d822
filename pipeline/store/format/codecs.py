"""Codecs: how frame values are stored.

The codec of a store is part of its identity. `tests/store/test_codecs.py` tests every
implementation against the contract of `Codec`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.errors import StoreError

Stored = npt.NDArray[Any]
"""Frame values as stored: an array of the codec's dtype."""
FloatArray = npt.NDArray[np.float32]


def checksum(*arrays: npt.NDArray[Any]) -> int:
    """Return crc32c of the bytes of arrays, one after the other."""
    crc = 0
    for array in arrays:
        crc = crc32c(np.ascontiguousarray(array).data, crc)
    return crc


class Codec(Protocol):
    """A format for frame values.

    An implementation must satisfy this:

    - Encoding is deterministic, and encoding a decoded value gives the stored one again, unless
      its steps are below the resolution of float32.
    - A value whose magnitude is at most `largest` decodes to a finite one of `value_dtype`.
    - A stored value depends on nothing outside its own utterance (or piece), layer and feature.
    - The fill, which marks frames without an owner, differs from every encoded finite value.

    Attributes:
        name: Name in the identity, and of `extract.dtype`.
        dtype: Type of stored values, little-endian.
        zarr_type: Data type in the metadata of the Zarr array.
        value_dtype: Type of the values that readers return. If it is `dtype`, stored values are
            returned as they are.
        bytes_per_value: Size of a stored value.
        largest: Largest magnitude that can be stored.
        fill: Stored value of frames without an owner.
        is_rounding: Whether encoding is rounding to a floating-point type, to nearest even. Then
            any library's conversion gives the same bytes, on any device.
        n_scales: Numbers that decoding needs for each utterance (piece), layer and feature.
    """

    name: str
    dtype: np.dtype[Any]
    zarr_type: str
    value_dtype: np.dtype[Any]
    bytes_per_value: int
    largest: float
    fill: float
    is_rounding: bool
    n_scales: int

    def measure(self, values: FloatArray) -> FloatArray:
        """Return the scales of utterances: [..., n_frames, dim] → [..., n_scales, dim]."""

    def encode(self, values: FloatArray, scales: FloatArray) -> Stored:
        """Return finite values within the range as stored values of the same shape.

        Args:
            values: [..., n_frames, dim].
            scales: Those of the utterance, from `measure`.
        """

    def decode(self, stored: Stored, scales: FloatArray) -> FloatArray:
        """Return stored values as float32, of the same shape; the arguments are as for `encode`."""

    def fits(self, low: float, high: float) -> bool:
        """Return whether values from `low` to `high` can be stored; NaN cannot."""

    def is_fill(self, stored: Stored) -> bool:
        """Return whether all values are the fill, bit for bit."""


class _NamedCodec:
    """What codecs of this module share: equality and pickling by name, range, fill, no scales."""

    name: str
    dtype: np.dtype[Any]
    largest: float
    fill: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"codec_of({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return codec_of, (self.name,)

    def measure(self, values: FloatArray) -> FloatArray:
        """Return no scales."""
        return np.empty((*values.shape[:-2], 0, values.shape[-1]), np.float32)

    def fits(self, low: float, high: float) -> bool:
        """Compare with the largest value."""
        return -self.largest <= low and high <= self.largest

    def is_fill(self, stored: Stored) -> bool:
        """Compare bits: another NaN is not the fill."""
        bits = np.dtype(f"<u{self.dtype.itemsize}")
        fill = np.full(1, self.fill, self.dtype).view(bits)[0]
        return bool((stored.view(bits) == fill).all())


class RoundingCodec(_NamedCodec):
    """Floating-point values of a NumPy type, rounded to nearest even; the fill is NaN."""

    is_rounding = True
    n_scales = 0
    fill = float("nan")

    def __init__(self, name: str) -> None:
        self.name = self.zarr_type = name
        self.dtype = self.value_dtype = np.dtype(name).newbyteorder("<")
        self.bytes_per_value = self.dtype.itemsize
        self.largest = float(np.finfo(self.dtype).max)

    def encode(self, values: FloatArray, scales: FloatArray) -> Stored:
        """Round to the stored type."""
        return values.astype(self.dtype)

    def decode(self, stored: Stored, scales: FloatArray) -> FloatArray:
        """Widen to float32."""
        return stored.astype(np.float32)


class BFloat16Codec(_NamedCodec):
    """bfloat16, the upper half of a float32, rounded to nearest even; the fill is NaN.

    NumPy and zarr-python have no such type, so the array holds the bits as uint16.
    """

    name = "bfloat16"
    zarr_type = "uint16"
    dtype: np.dtype[Any] = np.dtype("<u2")
    value_dtype: np.dtype[Any] = np.dtype("<f4")
    bytes_per_value = 2
    largest = float(np.array(0x7F7F0000, np.uint32).view(np.float32))
    fill: float = 0x7FC0
    is_rounding = True
    n_scales = 0

    def encode(self, values: FloatArray, scales: FloatArray) -> Stored:
        """Round to the upper 16 bits."""
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return ((bits + half) >> np.uint32(16)).astype(self.dtype)

    def decode(self, stored: Stored, scales: FloatArray) -> FloatArray:
        """Append 16 zero bits."""
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


class Int8Codec(_NamedCodec):
    """Whole numbers q from -127 to 127: `value = offset + scale * q`, in float32.

    Each utterance (or piece), layer and feature has its own offset, the middle of its range, and
    scale, 1/254 of its width. So features with a large variance or a large constant part, which
    trained encoders have, cost the others nothing. Both follow from the smallest and the largest
    value alone, so they are the same on every device and in every order of computation.

    Values are returned as float16, so `largest` leaves room for the rounding of q.
    """

    name = "int8"
    zarr_type = "int8"
    dtype: np.dtype[Any] = np.dtype("i1")
    value_dtype: np.dtype[Any] = np.dtype("<f2")
    bytes_per_value = 1
    largest = 64_992.0
    fill: float = -128
    is_rounding = False
    n_scales = 2
    n_steps = 127

    def measure(self, values: FloatArray) -> FloatArray:
        """Return offset and scale of each feature, [..., 2, dim]."""
        return self.scales_of(values.min(axis=-2), values.max(axis=-2))

    def scales_of(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Return offset and scale for the range of each feature, [..., dim] → [..., 2, dim]."""
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        offset = low * np.float32(0.5) + high * np.float32(0.5) + np.float32(0)  # never -0
        scale = (high - low) / np.float32(2 * self.n_steps)
        scale = np.where(scale < SMALLEST_SCALE, np.float32(0), scale)
        return np.stack([offset, scale], axis=-2)

    def encode(self, values: FloatArray, scales: FloatArray) -> Stored:
        """Return q, rounded to nearest even."""
        offset, scale = scales[..., :1, :], scales[..., 1:, :]
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        steps = np.rint((values - offset) * inverse)
        return np.asarray(np.clip(steps, -self.n_steps, self.n_steps), self.dtype)

    def decode(self, stored: Stored, scales: FloatArray) -> FloatArray:
        """Return `offset + scale * q`."""
        offset, scale = scales[..., :1, :], scales[..., 1:, :]
        return np.asarray(stored.astype(np.float32) * scale + offset, np.float32)


SMALLEST_SCALE = np.float32(1e-30)
"""Features that vary less are stored as constant."""
FLOAT16 = RoundingCodec("float16")
FLOAT32 = RoundingCodec("float32")
BFLOAT16 = BFloat16Codec()
INT8 = Int8Codec()
DEFAULT_CODEC: Codec = FLOAT16
"""The codec of new stores, and of format 1."""
PORTABLE_DTYPES = ("float16", "float32")
"""Dtypes of features that other libraries read, from the narrowest to the widest."""
CODECS: tuple[Codec, ...] = (FLOAT16, FLOAT32, BFLOAT16, INT8)


def codec_of(name: str) -> Codec:
    """Return the codec with a name.

    Raises:
        StoreError: This version has none of that name.
    """
    for codec in CODECS:
        if codec.name == name:
            return codec
    known = ", ".join(codec.name for codec in CODECS)
    raise StoreError(f"frames are stored as {name}; this strata reads {known}")

"""Codecs: how frame values are stored.

The codec of a store is part of its identity. `tests/store/test_codecs.py` tests every
implementation against the contract of `Codec`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError

Stored = npt.NDArray[Any]
"""Frame values as stored: an array of the codec's dtype."""


class Codec(Protocol):
    """A format for frame values.

    An implementation must satisfy this:

    - Encoding is deterministic, and encoding a decoded value gives the stored one again.
    - A value whose magnitude is at most `largest` decodes to a finite one.
    - A stored value depends on nothing outside its own utterance, layer and feature.
    - The fill, which marks frames without an owner, differs from every encoded finite value.

    Attributes:
        name: Name in the identity and in the array's metadata.
        dtype: Type of stored values, little-endian.
        bytes_per_value: Size of a stored value.
        largest: Largest magnitude that can be stored.
        fill: Value of frames without an owner.
        is_rounding: Whether encoding is rounding to `dtype`, to nearest even. Then any library's
            conversion gives the same bytes, on any device.
    """

    name: str
    dtype: np.dtype[Any]
    bytes_per_value: int
    largest: float
    fill: float
    is_rounding: bool

    def encode(self, values: npt.NDArray[np.float32]) -> Stored:
        """Return finite values within the range as stored values of the same shape."""

    def decode(self, stored: Stored) -> npt.NDArray[np.float32]:
        """Return stored values as float32, of the same shape."""

    def fits(self, low: float, high: float) -> bool:
        """Return whether values from `low` to `high` can be stored; NaN cannot."""

    def is_fill(self, stored: Stored) -> bool:
        """Return whether all values are the fill, bit for bit."""


class RoundingCodec(Codec):
    """Floating-point values, rounded to nearest even; the fill is NaN."""

    is_rounding = True
    fill = float("nan")

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = np.dtype(name).newbyteorder("<")
        self.bytes_per_value = self.dtype.itemsize
        self.largest = float(np.finfo(self.dtype).max)
        self._bits = np.dtype(f"<u{self.bytes_per_value}")
        self._fill_bits = np.full(1, self.fill, self.dtype).view(self._bits)[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RoundingCodec) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"RoundingCodec({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return RoundingCodec, (self.name,)

    def encode(self, values: npt.NDArray[np.float32]) -> Stored:
        """Round to the stored type."""
        return values.astype(self.dtype)

    def decode(self, stored: Stored) -> npt.NDArray[np.float32]:
        """Widen to float32."""
        return stored.astype(np.float32)

    def fits(self, low: float, high: float) -> bool:
        """Compare with the largest finite value."""
        return -self.largest <= low and high <= self.largest

    def is_fill(self, stored: Stored) -> bool:
        """Compare bits: another NaN is not the fill."""
        return bool((stored.view(self._bits) == self._fill_bits).all())


FLOAT16 = RoundingCodec("float16")
DEFAULT_CODEC: Codec = FLOAT16
"""The codec of new stores, and of format 1."""
PORTABLE_DTYPES = ("float16", "float32")
"""Dtypes of features that other libraries read, from the narrowest to the widest."""
_CODECS: dict[str, Codec] = {codec.name: codec for codec in (FLOAT16,)}


def codec_of(name: str) -> Codec:
    """Return the codec with a name.

    Raises:
        StoreError: This version has none of that name.
    """
    codec = _CODECS.get(name)
    if codec is None:
        known = ", ".join(_CODECS)
        raise StoreError(f"frames are stored as {name}; this strata reads {known}")
    return codec

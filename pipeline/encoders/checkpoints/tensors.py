"""Tensors of a file of PyTorch, described by its pickle and read from the mapped file on demand."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.checkpoints.pickles import Constructor
from pipeline.encoders.checkpoints.records import Named

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(slots=True)
class Storage:
    """Values in a file that one or more tensors view.

    Attributes:
        key: Name of the storage in the file.
        dtype: Type of the values.
        n_values: Their number.
        start: Offset of the first byte in the file; None as long as it is unknown.
        crc: CRC-32 of the bytes; None if the file has none.
    """

    key: str
    dtype: torch.dtype
    n_values: int
    start: int | None = None
    crc: int | None = None

    @property
    def n_bytes(self) -> int:
        """Number of bytes."""
        return self.n_values * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, not read.

    Attributes:
        storage: Where its values are.
        offset: Its first value in the storage.
        shape: Its shape.
        strides: Steps between its values, by dimension.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage_of(kind: object, key: object, n_values: object) -> Storage:
    """Return the storage that a persistent id describes.

    Raises:
        ValueError: It describes none, or values of an unknown type.
    """
    name = kind.kind.rpartition(".")[2] if isinstance(kind, Named) else ""
    if name not in _DTYPES:
        raise ValueError(f"it has values of an unknown type ({name or type(kind).__name__})")
    if not isinstance(key, str) or type(n_values) is not int or not _is_count(n_values):
        raise ValueError("its pickle has a storage without a name or a size")
    return Storage(key, _DTYPES[name], n_values)


def read_tensor(data: mmap.mmap, tensor: StoredTensor, checked: set[str]) -> Tensor:
    """Return a tensor whose values are those of the mapped file; nothing is copied if possible.

    Args:
        data: The file, mapped for copy-on-write.
        tensor: The tensor.
        checked: Storages whose checksum was right; this one is added.

    Raises:
        ValueError: The checksum of the storage is wrong.
    """
    storage = tensor.storage
    if not storage.n_values:
        return torch.empty(tensor.shape, dtype=storage.dtype)
    if storage.start is None:
        raise ValueError(f"its storage {storage.key} is missing")
    whole = torch.frombuffer(data, dtype=torch.uint8, count=storage.n_bytes, offset=storage.start)
    if storage.crc is not None and storage.key not in checked:
        if zlib.crc32(whole.numpy().data) != storage.crc:
            raise ValueError(f"its storage {storage.key} is damaged (wrong checksum)")
        checked.add(storage.key)
    if storage.start % storage.dtype.itemsize:  # only files from before PyTorch 1.6
        whole = whole.clone()
    return whole.view(storage.dtype).as_strided(tensor.shape, tensor.strides, tensor.offset)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> StoredTensor:
    """Check a call of `torch._utils._rebuild_tensor` or `_rebuild_tensor_v2`."""
    if not (
        isinstance(storage, Storage)
        and _is_count(offset)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides)
        and all(map(_is_count, (*shape, *strides)))
    ):
        raise ValueError("its pickle has a tensor without a storage, a shape or strides")
    n_values = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if n_values and (last >= storage.n_values or n_values > storage.n_values):
        raise ValueError(
            f"it has a tensor of the shape {list(shape)} beyond its storage {storage.key} of "
            f"{storage.n_values} values"
        )
    if not n_values and offset > storage.n_values:
        raise ValueError(f"it has a tensor beyond its storage {storage.key}")
    return StoredTensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *rest: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise ValueError("its pickle has a parameter without a tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Check a call of `torch._tensor._rebuild_from_type_v2`, of tensors with attributes."""
    known = isinstance(function, Named) and function.kind in CONSTRUCTORS
    if not known or not isinstance(args, tuple):
        raise ValueError("its pickle has a tensor of an unknown kind")
    return CONSTRUCTORS[function.kind](*args)


def _shape(values: Any = ()) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list):
        raise ValueError("its pickle has a shape that is none")
    return tuple(values)


CONSTRUCTORS: Mapping[str, Constructor] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _shape,
}
"""What PyTorch calls to rebuild tensors; here, descriptions of tensors are made."""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62

"""Files of tensors: both formats of PyTorch, and safetensors.

The pickles of a PyTorch file are interpreted as data (`pickles.py`), so no code in it is run. The
file is mapped, not read: what it holds is known after the pickles, and a tensor is a view of the
mapped file.
"""

from __future__ import annotations

import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.encoders.checkpoints.pickles import Stream, read_pickle
from pipeline.encoders.checkpoints.records import Named, printable
from pipeline.encoders.checkpoints.tensors import (
    CONSTRUCTORS,
    Storage,
    read_tensor,
    storage_of,
)
from pipeline.errors import WeightsError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file from before PyTorch 1.6
_LEGACY_VERSION = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and the extra field
_MAX_PICKLE_BYTES = 1 << 28
_OTHERS = {  # first bytes of files that are saved under the name of a checkpoint
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself; run git lfs pull",
    b"<!DOCTYPE": "it is a web page; the download did not give the file",
    b"<!doctype": "it is a web page; the download did not give the file",
    b"<html": "it is a web page; the download did not give the file",
    b"\x1f\x8b": "it is compressed with gzip; unpack it",
}


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """A tensor in a safetensors file, not read.

    Attributes:
        name: Its name.
        shape: Its shape.
    """

    name: str
    shape: tuple[int, ...]


class TensorFile:
    """A file of tensors, mapped into memory.

    Attributes:
        path: The file.
        content: What the file holds: containers and scalars of Python, `Named`, `Inert`, and
            tensors as `StoredTensor`. For safetensors a dict of the tensors by name.
        settings: Settings beside the tensors: the metadata of a safetensors file, else empty.
    """

    def __init__(
        self, path: Path, content: Any, read: Callable[[Any], Tensor], settings: dict[str, Any]
    ) -> None:
        """Use `open_tensor_file`."""
        self.path = path
        self.content = content
        self.settings = settings
        self._read = read

    def read(self, tensor: Any) -> Tensor:
        """Read a tensor of `content`, of any dtype, on the CPU.

        Raises:
            WeightsError: Its bytes are damaged.
        """
        with _readable(self.path):
            return self._read(tensor)


def open_tensor_file(path: Path) -> TensorFile:
    """Open a file, and find out what it holds without reading tensors.

    Args:
        path: The file. Its content decides on the format, not its name.

    Raises:
        WeightsError: The file cannot be read, or is damaged.
    """
    with _readable(path):
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise ValueError("it is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = data[:64]
        for first, problem in _OTHERS.items():
            if start.startswith(first):
                raise ValueError(problem)
        if start[:4] == b"PK\x03\x04":
            content = _read_zip(path, data)
        elif start[8:9] == b"{" or path.suffix == ".safetensors":
            return _open_safetensors(path)
        elif start[:1] == b"\x80":
            content = _read_legacy(data)
        elif data[257:262] == b"ustar":
            raise ValueError("it has the format of PyTorch 0.1; save it again with a later version")
        else:
            raise ValueError("it is neither a file of PyTorch nor of safetensors")
        checked: set[str] = set()
        return TensorFile(path, content, lambda tensor: read_tensor(data, tensor, checked), {})


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        *(OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError),
        *(struct.error, zipfile.BadZipFile, SafetensorError, MemoryError),
    ) as error:
        reason = printable(str(error)) or type(error).__name__
        raise WeightsError(f"cannot read the weights at {path}: {reason}") from error


def _read_zip(path: Path, data: mmap.mmap) -> Any:
    """Interpret the pickle of a file of PyTorch 1.6 or later, a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is truncated or damaged ({error})") from error
    folders = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError(f"it is a zip archive with {len(folders)} data.pkl; expected 1")
    [folder] = folders
    if f"{folder}constants.pkl" in entries:
        raise ValueError("it is a TorchScript program; save the state dict of the model")
    order = entries.get(f"{folder}byteorder")
    _check_byte_order(order is None or bytes(_bytes_of(data, order)) != b"big")
    storages: dict[str, Storage] = {}

    def find(persistent_id: Any) -> Storage:
        _, kind, key, _, n_values = _checked_id(persistent_id, 5)
        storage = storage_of(kind, key, n_values)
        if storage.key not in storages:
            entry = entries.get(f"{folder}data/{storage.key}")
            if entry is None:
                raise ValueError(f"its storage {storage.key} is missing")
            if entry.file_size != storage.n_bytes:
                raise ValueError(
                    f"its storage {storage.key} has {entry.file_size} bytes, and its pickle states "
                    f"{storage.n_bytes}"
                )
            storage.start = _start_of(data, entry)
            storage.crc = entry.CRC or None
            storages[storage.key] = storage
        if (found := storages[storage.key]).dtype != storage.dtype:
            raise ValueError(f"its storage {storage.key} has two types")
        return found

    pickle = _bytes_of(data, entries[f"{folder}data.pkl"])
    return read_pickle(Stream(pickle), CONSTRUCTORS, find)


def _bytes_of(data: mmap.mmap, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a small entry, after a check of their checksum."""
    if entry.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"its entry {entry.filename} is larger than those of checkpoints")
    start = _start_of(data, entry)
    content = memoryview(data)[start : start + entry.file_size]
    if entry.CRC and zlib.crc32(content) != entry.CRC:  # 0: PyTorch computed none
        raise ValueError(f"its entry {entry.filename} is damaged (wrong checksum)")
    return content


def _start_of(data: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """Return the offset of an entry's bytes, which must be stored as they are, and whole."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"its entry {entry.filename} is compressed, which PyTorch does not do")
    header = data[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if signature != b"PK\x03\x04" or start + entry.file_size > len(data):
        raise ValueError(f"its entry {entry.filename} is not where its directory says")
    return int(start)


def _read_legacy(data: mmap.mmap) -> Any:
    """Interpret the pickles of a file from before PyTorch 1.6; the storages follow them."""
    stream = Stream(memoryview(data))
    storages: dict[str, Storage] = {}

    def find(persistent_id: Any) -> Storage | Named:
        if isinstance(persistent_id, tuple) and persistent_id[:1] == ("module",):
            return Named("a module")
        _, kind, key, _, n_values, view = _checked_id(persistent_id, 6)
        storage = storage_of(kind, key, n_values)
        if view is not None:
            raise ValueError("it has views of storages, as PyTorch before 0.4 wrote them")
        found = storages.setdefault(storage.key, storage)
        if (found.dtype, found.n_values) != (storage.dtype, storage.n_values):
            raise ValueError(f"its storage {storage.key} has two sizes")
        return found

    if read_pickle(stream, {}, _no_storage) != _LEGACY_MAGIC:
        raise ValueError("it is a pickle, and no file of PyTorch")
    if read_pickle(stream, {}, _no_storage) != _LEGACY_VERSION:
        raise ValueError("it has an unknown version of the format of PyTorch before 1.6")
    system = read_pickle(stream, {}, _no_storage)
    _check_byte_order(not isinstance(system, dict) or system.get("little_endian") is not False)
    content = read_pickle(stream, CONSTRUCTORS, find)
    keys = read_pickle(stream, {}, _no_storage)
    position = stream.position
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise ValueError("its list of storages does not fit its pickle")
        [n_values] = struct.unpack("<q", data[position : position + 8])
        if n_values != storage.n_values:
            raise ValueError(
                f"its storage {key} has {n_values} values, and its pickle states {storage.n_values}"
            )
        storage.start = position + 8
        position = storage.start + storage.n_bytes
        if position > len(data):
            raise ValueError(f"it is truncated: its storage {key} ends after the end of the file")
    missing = [key for key, storage in storages.items() if storage.start is None]
    if missing:
        raise ValueError(f"its storage {missing[0]} is missing")
    return content


def _checked_id(persistent_id: Any, length: int) -> tuple[Any, ...]:
    if not isinstance(persistent_id, tuple) or len(persistent_id) != length:
        raise ValueError("its pickle has a reference to something else than a storage")
    return persistent_id


def _no_storage(persistent_id: Any) -> Any:
    raise ValueError("its first pickles have storages")


def _check_byte_order(is_little: bool) -> None:
    if not is_little:
        raise ValueError("it was written on a big-endian machine; save it again on another")


def _open_safetensors(path: Path) -> TensorFile:
    file: Any = safe_open(path, framework="pt")
    names: list[str] = list(file.keys())
    content = {name: SafeTensor(name, tuple(file.get_slice(name).get_shape())) for name in names}
    settings = _settings_of(file.metadata())
    return TensorFile(path, content, lambda tensor: file.get_tensor(tensor.name), settings)


def _settings_of(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the metadata of a safetensors file, with values that are JSON objects as such."""
    settings: dict[str, Any] = {}
    for key, text in (metadata or {}).items():
        try:
            value = json.loads(text) if text.startswith("{") else text
        except ValueError:
            value = text
        settings[key] = value
    return settings

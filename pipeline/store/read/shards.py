"""Reading the bytes of shards and pooled chunks.

A shard that ends in the index of a flat one is a little-endian matrix at the start of its file;
that is checked once per shard, and then its frames are read straight into the place where the
caller wants them. Anything else (a store that another tool has rewritten, with a codec perhaps) is
read through zarr-python.

Shards are read by `preadv`, not through memory maps: a map that meets a file cut short, or a
failing disk, ends the process with a signal, where a read ends in an error that names the file.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr

from pipeline.errors import DamagedError, StoreError
from pipeline.store.format.layout import FRAMES, POOLED, Layout

Matrix = npt.NDArray[np.float16]

MAX_OPEN_SHARDS = 256
"""Shards that one reader keeps open, where the process may open four times as many files."""
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_MOST_PARTS = 1024  # of one preadv; IOV_MAX on Linux
_UNLESS_IT_WAITS = getattr(os, "RWF_NOWAIT", 0)  # Linux; elsewhere every read waits
_n_bytes = attrgetter("nbytes")


class ShardReader:
    """The frames and pooled means of one store. Safe to use from several threads, and in a fork."""

    def __init__(self, root: Path, layout: Layout) -> None:
        self._root = root
        self.layout = layout
        self._frame_bytes = layout.dim * np.dtype(np.float16).itemsize
        self._flat: dict[tuple[int, int], bool] = {}
        self._shard = lru_cache(maxsize=most_open_shards())(self._open)
        self._zarr: dict[str, tuple[int, Any]] = {}

    def read(self, axis: int, slot: int, start: int, stop: int) -> Matrix:
        """Frames `start:stop` of a slot, one layer: float16 [n_frames, dim].

        Raises:
            DamagedError: The shard is missing or cut short.
        """
        out = np.empty((stop - start, self.layout.dim), np.float16)
        self.read_into(axis, slot, start, [out])
        return out

    def read_into(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> None:
        """Fills `parts` with consecutive frames of a slot, one layer.

        Args:
            axis: Position on the layer axis.
            slot: The slot.
            start: First frame of the first part, within the slot.
            parts: Where to put them: float16 [n_frames, dim] each, contiguous.

        Raises:
            DamagedError: The shard is missing, cut short, or cannot be read.
        """
        shard = self._shard(axis, slot)
        if shard is None:
            self._read_by_zarr(axis, slot, start, parts)
            return
        offset = start * self._frame_bytes
        try:
            got = os.preadv(shard.descriptor, _buffers(parts), offset)
            if got != sum(map(_n_bytes, parts)):
                _read_rest(shard.descriptor, parts, offset, got)
        except (OSError, EOFError) as error:
            path = self._root / self.layout.shard_key(axis, slot)
            raise DamagedError(
                f"shard {path} cannot be read ({error}); run `strata verify`"
            ) from error

    def read_cached(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> bool:
        """As `read_into` if the system has all of it in memory; else tells it to fetch that.

        Who has several reads to make tries all of them first: then the disk works on those that
        failed at the same time, and `read_into` waits for less.

        Returns:
            Whether `parts` are filled.
        """
        shard = self._shard(axis, slot)
        if shard is None:
            self._read_by_zarr(axis, slot, start, parts)
            return True
        offset = start * self._frame_bytes
        wanted: int = sum(map(_n_bytes, parts))
        try:
            got = os.preadv(shard.descriptor, _buffers(parts), offset, _UNLESS_IT_WAITS)
        except OSError:  # it would have to wait, or something is wrong that `read_into` will tell
            got = 0
        if got != wanted:
            _fetch(shard.descriptor, offset, wanted)
        return got == wanted

    def announce(self, axis: int, slot: int, start: int, stop: int) -> None:
        """Tells the system to fetch frames `start:stop` of a slot, one layer; does not wait."""
        shard = self._shard(axis, slot)
        if shard is not None:
            wanted = (stop - start) * self._frame_bytes
            _fetch(shard.descriptor, start * self._frame_bytes, wanted)

    def pooled(self, slot: int) -> npt.NDArray[np.float32]:
        """The pooled chunk of a slot: float32 [utterances_per_slot, n_layers, dim].

        Raises:
            DamagedError: It is missing, cut short, or its checksum is wrong.
        """
        path = self._root / self.layout.pooled_key(slot)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing; run `strata verify`") from None
        size = self.layout.pooled_data_bytes
        if len(raw) != size + 4:
            return self._pooled_by_zarr(slot, path)
        checksum = google_crc32c.value(np.frombuffer(raw, np.uint8, size))
        if checksum != int.from_bytes(raw[size:], "little"):
            raise DamagedError(f"{path} has a wrong checksum; run `strata verify`")
        return np.frombuffer(raw, np.float32, size // 4).reshape(self.layout.pooled_shape(1)[1:])

    def _open(self, axis: int, slot: int) -> _OpenFile | None:
        """The shard, open for reading; None if it is not flat."""
        path = self._root / self.layout.shard_key(axis, slot)
        try:
            shard = self._open_file(path)
        except FileNotFoundError:
            raise DamagedError(f"shard {path} is missing; run `strata verify`") from None
        except OSError as error:
            if error.errno in _TOO_MANY:
                raise StoreError(f"{error}; raise the limit on open files (ulimit -n)") from error
            raise DamagedError(f"shard {path} cannot be opened ({error})") from error
        key = (axis, slot)
        if key not in self._flat:
            self._flat[key] = self._is_flat(shard, path)
            if not self._flat[key]:
                self._check_zarr_reads(path, axis, slot)
        return shard if self._flat[key] else None

    def _open_file(self, path: Path) -> _OpenFile:
        try:
            return _OpenFile(path)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
        self._shard.cache_clear()
        return _OpenFile(path)

    def _is_flat(self, shard: _OpenFile, path: Path) -> bool:
        layout = self.layout
        status = os.fstat(shard.descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:  # Zarr takes both for absent
            raise DamagedError(f"shard {path} is not a file with content; run `strata verify`")
        if status.st_size != layout.shard_bytes:
            return False
        index = os.pread(shard.descriptor, len(layout.shard_index), layout.shard_data_bytes)
        return index == layout.shard_index

    def _check_zarr_reads(self, path: Path, axis: int, slot: int) -> None:
        """Makes sure that a shard which is not flat is at least a Zarr shard."""
        first = self.layout.slot_start(slot)
        try:
            self._array(FRAMES)[axis, first : first + self.layout.frames_per_unit]
        except Exception as error:  # zarr raises whatever its codecs raise
            del self._flat[axis, slot]
            raise DamagedError(f"shard {path} is damaged; run `strata verify`") from error

    def _read_by_zarr(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> None:
        first = self.layout.slot_start(slot) + start
        array = self._array(FRAMES)
        for part in parts:
            part[...] = array[axis, first : first + len(part)]
            first += len(part)

    def _pooled_by_zarr(self, slot: int, path: Path) -> npt.NDArray[np.float32]:
        try:
            return np.asarray(self._array(POOLED)[slot])
        except Exception as error:  # zarr raises whatever its codecs raise
            raise DamagedError(f"{path} is damaged; run `strata verify`") from error

    def _array(self, key: str) -> Any:
        """A Zarr array, opened in this process: zarr's event loop does not survive a fork."""
        owner, array = self._zarr.get(key, (-1, None))
        if owner != os.getpid():
            array = zarr.open_array(self._root / key, mode="r")
            self._zarr[key] = (os.getpid(), array)
        return array


class _OpenFile:
    """A descriptor that is closed when nobody reads from it any more.

    The cache may drop a shard while another thread reads it, so closing is left to the last
    reference.
    """

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def most_open_shards() -> int:
    """How many shards a reader may keep open under this process's limit on open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_OPEN_SHARDS
    return max(1, min(MAX_OPEN_SHARDS, soft // 4))


def _buffers(parts: Sequence[Matrix]) -> Any:
    """What one preadv can fill: NumPy arrays are buffers, which their types do not say."""
    return parts if len(parts) <= _MOST_PARTS else parts[:_MOST_PARTS]


def _fetch(descriptor: int, offset: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_WILLNEED)


def _read_rest(descriptor: int, parts: Sequence[Matrix], offset: int, done: int) -> None:
    """Reads what is missing of `parts` after their first `done` bytes.

    A single read may return less than asked for.

    Raises:
        EOFError: The file ends before they are full.
    """
    for part in parts:
        view = part.data.cast("B")
        known = min(done, len(view))
        view, offset, done = view[known:], offset + known, done - known
        while len(view):
            got = os.preadv(descriptor, [view], offset)
            if not got:
                raise EOFError(f"it ends at byte {offset}")
            view, offset = view[got:], offset + got

"""Reads of shards and pooled chunks.

A flat shard begins with a little-endian matrix and ends in a known index. That is checked once per
shard; after that its frames are read directly into the caller's arrays. Any other shard, of a store
that another tool has rewritten, is read by zarr-python.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import lru_cache
from weakref import WeakMethod

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.errors import DamagedError, StoreError
from pipeline.store.backend.base import Location, ObjectReader
from pipeline.store.backend.opening import open_backend
from pipeline.store.backend.zarr_arrays import ZarrArrays
from pipeline.store.format.codecs import Stored
from pipeline.store.format.layout import FRAMES, POOLED, Layout

Matrix = Stored

_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class ShardReader:
    """Frames and pooled means of one store. Safe to use from several threads, and after a fork.

    Its files are closed when it is dropped, or by `close`.
    """

    def __init__(self, store: Location, layout: Layout) -> None:
        self._backend = open_backend(store)
        self.layout = layout
        self.dtype = layout.codec.dtype
        self._frame_bytes = layout.frame_bytes
        self._flat: dict[tuple[int, int], bool] = {}
        # A cache that referred to this reader would keep its files open until a garbage collection.
        opening = WeakMethod(self._open)
        cache = lru_cache(maxsize=self._backend.max_readers)
        self._opened = cache(lambda axis, slot: opening()(axis, slot))  # type: ignore[misc]
        self._shard: Callable[[int, int], ObjectReader | None] = self._opened
        self._arrays = ZarrArrays(self._backend)

    def close(self) -> None:
        """Release the open files, once no other thread reads from them; later reads raise."""
        backend = self._backend

        def refuse(axis: int, slot: int) -> ObjectReader:
            raise StoreError(f"the store {backend} is closed; open it again with open_store")

        self._shard = refuse
        self._opened.cache_clear()

    def locate(self, axis: int, slot: int) -> str:
        """Where a shard is, for messages."""
        return self._backend.locate(self.layout.shard_key(axis, slot))

    def locate_pooled(self, slot: int) -> str:
        """Where a pooled chunk is, for messages."""
        return self._backend.locate(self.layout.pooled_key(slot))

    def read(self, axis: int, slot: int, start: int, stop: int) -> Matrix:
        """Read frames `start:stop` of a slot, one layer, as stored: [n_frames, dim].

        Raises:
            DamagedError: The shard is missing or cut short.
        """
        out = np.empty((stop - start, self.layout.dim), self.dtype)
        self.read_into(axis, slot, start, [out])
        return out

    def read_into(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> None:
        """Fill `parts` with consecutive frames of a slot, one layer.

        Args:
            axis: Position on the layer axis.
            slot: The slot.
            start: First frame of the first part, within the slot.
            parts: Destinations [n_frames, dim] of the codec's dtype, each contiguous.

        Raises:
            DamagedError: The shard is missing, cut short, or cannot be read.
        """
        shard = self._shard(axis, slot)
        if shard is None:
            self._read_by_zarr(axis, slot, start, parts)
            return
        try:
            shard.read_into(parts, start * self._frame_bytes)
        except (OSError, EOFError) as error:
            path = self.locate(axis, slot)
            raise DamagedError(
                f"shard {path} cannot be read ({error}); run `strata verify`"
            ) from error

    def read_cached(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> bool:
        """Read as `read_into` does if that takes no waiting; else start fetching the bytes.

        To make several reads, try all of them with this method first: the storage then works on the
        pending ones at the same time, and `read_into` waits less.

        Returns:
            Whether `parts` are filled.
        """
        shard = self._shard(axis, slot)
        if shard is None:
            self._read_by_zarr(axis, slot, start, parts)
            return True
        return shard.read_cached(parts, start * self._frame_bytes)

    def prefetch(self, axis: int, slot: int, start: int, stop: int) -> None:
        """Start fetching frames `start:stop` of a slot, one layer; do not wait."""
        shard = self._shard(axis, slot)
        if shard is not None:
            shard.prefetch(start * self._frame_bytes, (stop - start) * self._frame_bytes)

    def pooled(self, slot: int) -> npt.NDArray[np.float32]:
        """Read the pooled chunk of a slot: float32 [utterances_per_slot, n_layers, dim].

        Raises:
            DamagedError: It is missing, cut short, or its checksum is wrong.
        """
        key = self.layout.pooled_key(slot)
        path = self._backend.locate(key)
        try:
            raw = self._backend.read(key)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing; run `strata verify`") from None
        size = self.layout.pooled_data_bytes
        if len(raw) != size + 4:
            return self._pooled_by_zarr(slot, path)
        checksum = crc32c(memoryview(raw)[:size])
        if checksum != int.from_bytes(raw[size:], "little"):
            raise DamagedError(f"{path} has a wrong checksum; run `strata verify`")
        return np.frombuffer(raw, np.float32, size // 4).reshape(self.layout.pooled_shape(1)[1:])

    def _open(self, axis: int, slot: int) -> ObjectReader | None:
        """Open a shard for reading; return None if it is not flat."""
        path = self.locate(axis, slot)
        try:
            shard = self._open_reader(self.layout.shard_key(axis, slot))
        except FileNotFoundError:
            raise DamagedError(f"shard {path} is missing; run `strata verify`") from None
        except OSError as error:
            if error.errno in _TOO_MANY:
                raise StoreError(f"{error}; raise the limit on open files (ulimit -n)") from error
            raise DamagedError(f"shard {path} cannot be opened ({error})") from error
        key = (axis, slot)
        is_flat = self._flat.get(key)
        if is_flat is None:
            is_flat = self._is_flat(shard, path)
            if not is_flat:
                self._check_zarr_reads(path, axis, slot)
            self._flat[key] = is_flat  # not before the check: other threads rely on it
        return shard if is_flat else None

    def _open_reader(self, key: str) -> ObjectReader:
        try:
            return self._backend.open_reader(key)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
        self._opened.cache_clear()
        return self._backend.open_reader(key)

    def _is_flat(self, shard: ObjectReader, path: str) -> bool:
        layout, size = self.layout, shard.size
        if not size:  # Zarr would take it for absent
            raise DamagedError(f"shard {path} is not a file with content; run `strata verify`")
        if size != layout.shard_bytes:
            return False
        index = shard.read(layout.shard_data_bytes, len(layout.shard_index))
        return index == layout.shard_index

    def _check_zarr_reads(self, path: str, axis: int, slot: int) -> None:
        """Check that zarr-python can read a shard that is not flat."""
        first = self.layout.slot_start(slot)
        try:
            self._arrays[FRAMES][axis, first : first + self.layout.frames_per_unit]
        except Exception as error:  # zarr raises whatever its codecs raise
            raise DamagedError(f"shard {path} is damaged; run `strata verify`") from error

    def _read_by_zarr(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> None:
        first = self.layout.slot_start(slot) + start
        array = self._arrays[FRAMES]
        try:
            for part in parts:
                part[...] = array[axis, first : first + len(part)]
                first += len(part)
        except Exception as error:  # zarr raises whatever its codecs raise
            path = self.locate(axis, slot)
            raise DamagedError(f"shard {path} is damaged; run `strata verify`") from error

    def _pooled_by_zarr(self, slot: int, path: str) -> npt.NDArray[np.float32]:
        try:
            return np.asarray(self._arrays[POOLED][slot])
        except Exception as error:  # zarr raises whatever its codecs raise
            raise DamagedError(f"{path} is damaged; run `strata verify`") from error

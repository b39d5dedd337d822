"""Reading the bytes of shards and pooled chunks.

A shard that ends in the index of a flat one maps as a matrix; that is checked once per shard.
Anything else (a store that another tool has rewritten, with a codec perhaps) is read through
zarr-python.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr

from pipeline.errors import DamagedError
from pipeline.store.layout import FRAMES, POOLED, Layout

Matrix = npt.NDArray[np.float16]


class ShardReader:
    """The frames and pooled means of one store."""

    def __init__(self, root: Path, layout: Layout) -> None:
        self._root = root
        self._layout = layout
        self._maps: dict[tuple[int, int], Matrix | None] = {}

    def read(self, axis: int, slot: int, start: int, stop: int) -> Matrix:
        """Frames `start:stop` of a slot, one layer: float16 [n_frames, dim].

        Raises:
            DamagedError: The shard is missing or cut short.
        """
        matrix = self.matrix(axis, slot)
        if matrix is not None:
            return matrix[start:stop]
        first = self._layout.slot_start(slot)
        return np.asarray(self._frames[axis, first + start : first + stop])

    def matrix(self, axis: int, slot: int) -> Matrix | None:
        """The whole shard as a memory map [frames_per_unit, dim]; None if it is not flat."""
        key = (axis, slot)
        if key not in self._maps:
            self._maps[key] = self._map(axis, slot)
        return self._maps[key]

    def pooled(self, slot: int) -> npt.NDArray[np.float32]:
        """The pooled chunk of a slot: float32 [utterances_per_slot, n_layers, dim].

        Raises:
            DamagedError: It is missing, cut short, or its checksum is wrong.
        """
        path = self._root / self._layout.pooled_key(slot)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing; run `strata verify`") from None
        size = self._layout.pooled_data_bytes
        if len(raw) != size + 4:
            return np.asarray(self._pooled[slot])
        checksum = google_crc32c.value(np.frombuffer(raw, np.uint8, size))
        if checksum != int.from_bytes(raw[size:], "little"):
            raise DamagedError(f"{path} has a wrong checksum; run `strata verify`")
        return np.frombuffer(raw, np.float32, size // 4).reshape(self._layout.pooled_shape(1)[1:])

    def _map(self, axis: int, slot: int) -> Matrix | None:
        path = self._root / self._layout.shard_key(axis, slot)
        layout = self._layout
        try:
            size = path.stat().st_size
            if size != layout.shard_bytes:
                self._check_zarr_reads(path, axis, slot)
                return None
            with path.open("rb") as file:
                file.seek(layout.shard_data_bytes)
                if file.read() != layout.shard_index:
                    self._check_zarr_reads(path, axis, slot)
                    return None
            shape = (layout.frames_per_unit, layout.dim)
            return np.memmap(path, np.dtype("<f2"), mode="r", shape=shape)
        except FileNotFoundError:
            raise DamagedError(f"shard {path} is missing; run `strata verify`") from None

    def _check_zarr_reads(self, path: Path, axis: int, slot: int) -> None:
        """Makes sure that a shard which is not flat is at least a Zarr shard."""
        first = self._layout.slot_start(slot)
        try:
            self._frames[axis, first : first + self._layout.frames_per_unit]
        except Exception as error:  # zarr raises whatever its codecs raise
            raise DamagedError(f"shard {path} is damaged; run `strata verify`") from error

    @cached_property
    def _frames(self) -> Any:
        return zarr.open_array(self._root / FRAMES, mode="r")

    @cached_property
    def _pooled(self) -> Any:
        return zarr.open_array(self._root / POOLED, mode="r")

"""Reads of stored values: shards, chunks of pooled statistics, and chunks of scales.

A flat shard begins with a little-endian matrix and ends in a known index. That is checked once per
shard; after that its frames are read directly into the caller's arrays. Any other shard, of a store
that another tool has rewritten, is read by zarr-python.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from weakref import WeakMethod

import numpy as np
from crc32c import crc32c

from pipeline.errors import DamagedError, StoreError, UnreachableError
from pipeline.store.backend.base import Location, ObjectReader
from pipeline.store.backend.ends import End, OtherEndError
from pipeline.store.backend.held_reader import HeldRanges
from pipeline.store.backend.opening import open_backend
from pipeline.store.backend.zarr_arrays import ZarrArrays, reported
from pipeline.store.format.codecs import FloatArray, Stored
from pipeline.store.format.layout import FRAMES, POOLED, SCALE, Layout
from pipeline.store.native.rows import RowScatter
from pipeline.store.read.catalogue import ALONE, Place, Span

Matrix = Stored

SCALES = -1
"""In place of a position on the layer axis: the chunk of scales."""
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_MISSING = (
    "run `strata verify`; if something was dropped from the store since it was opened, open it "
    "again"
)


def _unreadable(what: str, error: Exception) -> DamagedError:
    if isinstance(error, FileNotFoundError):
        return DamagedError(f"{what} is missing; {_MISSING}")
    return DamagedError(f"{what} cannot be read ({error}); run `strata verify`")


class ShardReader:
    """Stored values of one store. Safe to use from several threads, and after a fork.

    Its files are closed when it is dropped, or by `close`. Slots are numbered as in a catalogue.

    Attributes:
        place: Place of the store among several.
        layout: Shapes of the arrays.
        dtype: Type of the stored values.
        is_direct: Whether stored values are returned as they are.
        dim: Features of a frame.
        frame_bytes: Bytes of a frame, one layer.
        parallel_reads: Reads that are worth having in flight at a time.
        reads_wait: Whether reads wait for a server; see `Backend`.
        reader: Returns the reader of a shard, given its position on the layer axis and its slot;
            None if it is not flat.
    """

    def __init__(self, store: Location, layout: Layout, place: Place = ALONE) -> None:
        self._backend = open_backend(store)
        self.place = place
        self._first_slot = place.first_slot
        self.layout = layout
        self.dtype = layout.codec.dtype
        self.is_direct = layout.codec.dtype == layout.codec.value_dtype
        self.dim, self.frame_bytes = layout.dim, layout.frame_bytes
        self.parallel_reads = self._backend.parallel_reads
        self.reads_wait = self._backend.reads_wait
        self._flat: dict[tuple[int, int], bool] = {}
        self._ends = End(layout.shard_bytes, layout.shard_index), End(layout.scale_bytes)
        self._whole = False
        # A cache that referred to this reader would keep its files open until a garbage collection.
        opening = WeakMethod(self._open)
        cache = lru_cache(maxsize=max(1, self._backend.max_readers // place.n_stores))
        self._opened = cache(lambda axis, slot: opening()(axis, slot))  # type: ignore[misc]
        self.reader: Callable[[int, int], ObjectReader | None] = self._opened
        self._scale_bytes = layout.codec.n_scales * layout.dim * 4
        self._arrays = ZarrArrays(self._backend)

    def close(self) -> None:
        """Release the open files, once no other thread reads from them; later reads raise."""
        backend = self._backend

        def refuse(axis: int, slot: int) -> ObjectReader:
            raise StoreError(f"the store {backend} is closed; open it again with open_store")

        self.reader = refuse
        self._opened.cache_clear()

    def expect_whole(self) -> None:
        """Fetch by large blocks from now on: most frames of some layers will be read."""
        if not self._whole:
            self._whole = True
            self._opened.cache_clear()

    def holding(self, held: HeldRanges) -> ShardReader:
        """Return the same shards, of which some ranges, by axis and slot, are in memory."""
        view = copy(self)
        view.reader = lambda axis, slot: held.reader((axis, slot), lambda: self.reader(axis, slot))
        return view

    def check_frames(self) -> None:
        """Check that frames are kept.

        Raises:
            StoreError: They are not.
        """
        if not self.layout.keeps_frames:
            raise StoreError(
                f"store {self._backend} keeps no frames (extract.keep=[pooled]); `pooled` reads "
                "what it has. For frames, extract into another store= with "
                "extract.keep=[frames,pooled]"
            )

    @property
    def name(self) -> str:
        """The store, for messages."""
        return str(self._backend)

    def locate(self, axis: int, slot: int) -> str:
        """Where a shard is, for messages."""
        return self._backend.locate(self.layout.shard_key(axis, slot - self._first_slot))

    def locate_utterance(self, axis: int, slot: int) -> str:
        """Where the values of utterances of a slot are, one layer, with their scales."""
        if not self.layout.keeps_scales:
            return self.locate(axis, slot)
        scales = self._backend.locate(self.layout.scale_key(slot - self._first_slot))
        return f"{self.locate(axis, slot)} or {scales}"

    def locate_pooled(self, slot: int) -> str:
        """Where a pooled chunk is, for messages."""
        return self._backend.locate(self.layout.pooled_key(slot - self._first_slot))

    def read(self, axis: int, slot: int, start: int, stop: int) -> Matrix:
        """Read frames `start:stop` of a slot, one layer, as stored: [n_frames, dim].

        Raises:
            DamagedError: The shard is missing or cut short.
        """
        out = np.empty((stop - start, self.layout.dim), self.dtype)
        self.read_into(axis, slot, start, [out])
        return out

    def read_into(
        self, axis: int, slot: int, start: int, parts: Sequence[Matrix], streams: bool = False
    ) -> None:
        """Fill `parts` with consecutive frames of a slot, one layer.

        Args:
            axis: Position on the layer axis.
            slot: The slot.
            start: First frame of the first part, within the slot.
            parts: Destinations [n_frames, dim] of the codec's dtype, each contiguous.
            streams: As for `ObjectReader.read_into`.

        Raises:
            DamagedError: The shard is missing, cut short, or cannot be read.
        """
        shard = self.reader(axis, slot)
        if shard is None:
            self._read_by_zarr(axis, slot, start, parts)
            return
        try:
            shard.read_into(parts, start * self.frame_bytes, streams)
        except UnreachableError:
            raise
        except OtherEndError:
            self._note_other_end(axis, slot, shard)
            self._read_by_zarr(axis, slot, start, parts)
        except (OSError, EOFError) as error:
            raise _unreadable(f"shard {self.locate(axis, slot)}", error) from error

    def read_cached(
        self, axis: int, slot: int, start: int, parts: Sequence[Matrix], streams: bool = False
    ) -> bool:
        """Read as `read_into` does if that takes no waiting; else start fetching the bytes.

        To make several reads, try all of them with this method first: the storage then works on the
        pending ones at the same time, and `read_into` waits less.

        Returns:
            Whether `parts` are filled.
        """
        shard = self.reader(axis, slot)
        if shard is None:
            self._read_by_zarr(axis, slot, start, parts)
            return True
        return shard.read_cached(parts, start * self.frame_bytes, streams)

    def prefetch(self, axis: int, slot: int, start: int, stop: int) -> None:
        """Start fetching frames `start:stop` of a slot, one layer; do not wait."""
        shard = self.reader(axis, slot)
        if shard is not None:
            shard.prefetch(start * self.frame_bytes, (stop - start) * self.frame_bytes)

    def prefetch_coded(self, axis: int, slot: int, start: int, stop: int, position: int) -> None:
        """Start fetching frames as `prefetch` does, and the scales of their piece."""
        self.prefetch(axis, slot, start, stop)
        if self._scale_bytes:
            chunk = self.reader(SCALES, slot)
            if chunk is not None:
                chunk.prefetch(self._scale_offset(axis, position), self._scale_bytes)

    def read_decoded(
        self, axis: int, span: Span, scales: FloatArray, out: Matrix, streams: bool
    ) -> bool:
        """Decode int8 frames of a span as they are read, [n_frames, dim], if that can be done.

        Returns:
            Whether `out` is filled; if not, frames must be read and decoded.
        """
        slot, start, _, _ = span
        shard = self.reader(axis, slot)
        if shard is None or shard.mapped is None or not self.layout.codec.n_scales:
            return False
        if out.dtype != self.layout.codec.value_dtype:
            return False
        return shard.mapped.decode_int8(start * self.frame_bytes, scales, out, streams)

    def scatter(
        self,
        axis: int,
        slot: int,
        start: int,
        n_frames: int,
        to: RowScatter,
        first: int,
        column: int,
    ) -> bool:
        """Copy frames of a slot, one layer, from a map to their places, if that can be done.

        Args:
            axis: Position on the layer axis.
            slot: The slot.
            start: First frame within it.
            n_frames: Number of frames.
            to: Places for rows of the codec's `value_dtype`.
            first: Number of the first frame among the rows.
            column: Where to put them.

        Returns:
            Whether that was done; if not, frames must be read and copied.
        """
        shard = self.reader(axis, slot) if self.is_direct else None
        if shard is None or shard.mapped is None:
            return False
        return to.copy_mapped(shard.mapped, start * self.frame_bytes, n_frames, first, column)

    def scales(self, axis: int, slot: int, position: int) -> FloatArray:
        """Read the scales of a piece, one layer: float32 [n_scales, dim].

        Raises:
            DamagedError: The chunk of scales is missing or cut short.
        """
        layout = self.layout
        out = np.empty((layout.codec.n_scales, layout.dim), np.float32)
        if not out.size:
            return out
        chunk = self.reader(SCALES, slot)
        if chunk is None:
            out[...] = self.scale_chunk(slot)[position, axis]
            return out
        try:
            chunk.read_into([out], self._scale_offset(axis, position))
        except UnreachableError:
            raise
        except OtherEndError:
            out[...] = self.scale_chunk(slot)[position, axis]
        except (OSError, EOFError) as error:
            path = self._backend.locate(layout.scale_key(slot - self._first_slot))
            raise _unreadable(path, error) from error
        return out

    def _scale_offset(self, axis: int, position: int) -> int:
        return (position * self.layout.n_layers + axis) * self._scale_bytes

    def scale_chunk(self, slot: int) -> FloatArray:
        """Read the scales of a slot: float32 [utterances_per_slot, n_layers, n_scales, dim].

        Raises:
            DamagedError: They are missing, cut short, or their checksum is wrong.
        """
        return self._chunk(SCALE, slot, self.layout.scale_shape(1)[1:])

    def pooled(self, slot: int) -> FloatArray:
        """Read pooled statistics: float32 [utterances_per_slot, n_statistics, n_layers, dim].

        Raises:
            DamagedError: They are missing, cut short, or their checksum is wrong.
        """
        layout = self.layout
        return self._chunk(
            POOLED,
            slot,
            (layout.utterances_per_slot, len(layout.statistics), layout.n_layers, layout.dim),
        )

    def _chunk(self, array: str, slot: int, shape: tuple[int, ...]) -> FloatArray:
        """Read a chunk of float32 that ends in its checksum."""
        slot -= self._first_slot
        key, n_bytes = self.layout.first_object(array, slot)
        path = self._backend.locate(key)
        try:
            raw = self._backend.read(key)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing; {_MISSING}") from None
        size = n_bytes - 4
        if len(raw) != n_bytes:
            return self._chunk_by_zarr(array, slot, path).reshape(shape)
        checksum = crc32c(memoryview(raw)[:size])
        if checksum != int.from_bytes(raw[size:], "little"):
            raise DamagedError(f"{path} has a wrong checksum; run `strata verify`")
        return np.frombuffer(raw, np.float32, size // 4).reshape(shape)

    def _open(self, axis: int, slot: int) -> ObjectReader | None:
        """Open a shard, or the chunk of scales, for reading; return None if it is not flat."""
        self.check_frames()
        layout, key = self.layout, (axis, slot)
        slot -= self._first_slot
        shard_key = layout.scale_key(slot) if axis == SCALES else layout.shard_key(axis, slot)
        path = self._backend.locate(shard_key)
        end = self._ends[axis == SCALES]
        try:
            shard = self._open_reader(shard_key, end)
        except UnreachableError:
            raise
        except OSError as error:
            if error.errno in _TOO_MANY:
                raise StoreError(f"{error}; raise the limit on open files (ulimit -n)") from error
            raise _unreadable(path if axis == SCALES else f"shard {path}", error) from error
        is_flat = self._flat.get(key)
        if is_flat is None:
            is_flat = shard.has_end(end)
            if is_flat is False:
                self._note_other_end(*key, shard)
            elif is_flat:
                self._flat[key] = True  # not before the check: other threads rely on it
        return None if is_flat is False else shard

    def _open_reader(self, key: str, end: End) -> ObjectReader:
        try:
            return self._backend.open_reader(key, whole=self._whole, end=end)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
        self._opened.cache_clear()
        return self._backend.open_reader(key, whole=self._whole, end=end)

    def _note_other_end(self, axis: int, slot: int, shard: ObjectReader) -> None:
        """Note that a shard is not flat, once zarr-python has read it."""
        if axis != SCALES and (axis, slot) not in self._flat:
            path = self.locate(axis, slot)
            if not shard.size:  # Zarr would take it for absent
                raise DamagedError(f"shard {path} is not a file with content; run `strata verify`")
            self._check_zarr_reads(path, axis, slot - self._first_slot)
        self._flat[axis, slot] = False

    def _check_zarr_reads(self, path: str, axis: int, slot: int) -> None:
        """Check that zarr-python can read a shard that is not flat."""
        first = self.layout.slot_start(slot)
        with reported(f"shard {path}"):
            self._arrays[FRAMES][axis, first : first + self.layout.frames_per_unit]

    def _read_by_zarr(self, axis: int, slot: int, start: int, parts: Sequence[Matrix]) -> None:
        first = self.layout.slot_start(slot - self._first_slot) + start
        with reported(f"shard {self.locate(axis, slot)}"):
            array = self._arrays[FRAMES]
            for part in parts:
                part[...] = array[axis, first : first + len(part)]
                first += len(part)

    def _chunk_by_zarr(self, array: str, slot: int, path: str) -> FloatArray:
        with reported(path):
            return np.asarray(self._arrays[array][slot])

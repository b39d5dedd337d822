"""One slot: the features of a unit in memory, and the files that they become.

Frames are written as soon as they are final, in any order, into shards under temporary names, so
that most of a unit is on its way to the disk while the rest of it is still being computed. Nothing
is visible before `commit`: shards get their names, then the pooled chunk, then the unit's index
file is created, exclusively and last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend, Location, PartialObject
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.codecs import Stored
from pipeline.store.format.layout import ATTRIBUTES, Layout, index_key
from pipeline.store.serialization import parquet_bytes


class UnitBuffer:
    """The features of one unit in memory, laid out as the shards will be.

    It is reused from unit to unit: `start` with the number of frames that the unit has, fill in or
    `blank` each of its utterances, `seal` them, then hand it to a `SlotWriter`.

    Attributes:
        frames: Stored values [n_layers, frames_per_unit, dim], of the codec's dtype.
        pooled: float32 [utterances_per_slot, n_layers, dim].
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.frames: Stored = np.empty(
            (layout.n_layers, layout.frames_per_unit, layout.dim), layout.codec.dtype
        )
        self.pooled: npt.NDArray[np.float32] = np.empty(
            (layout.utterances_per_slot, layout.n_layers, layout.dim), np.float32
        )

    def start(self, n_frames: int) -> None:
        """Begins a unit of `n_frames`; what lies beyond them is filled with NaN."""
        self.pooled.fill(np.nan)
        self.blank(n_frames, self.layout.frames_per_unit)

    def blank(self, start: int, stop: int) -> None:
        """Fills frames with NaN: they belong to nobody."""
        self.frames[:, start:stop].fill(self.layout.codec.fill)

    def seal(self, position: int, start: int, stop: int) -> tuple[int, ...]:
        """Pools and checksums an utterance whose frames have been put into their place.

        The mean is taken over the stored values, so that it can be verified from them.

        Args:
            position: The utterance's place in the unit.
            start: Its first frame, within the slot.
            stop: One past its last frame.

        Returns:
            crc32c of the stored bytes of each layer.
        """
        stored = self.frames[:, start:stop]
        self.pooled[position] = pool(stored)
        return tuple(crc32c(layer) for layer in stored)


def pool(stored: Stored) -> npt.NDArray[np.float32]:
    """Mean over frames, [n_layers, n_frames, dim] → [n_layers, dim], summed in float64."""
    mean = stored.mean(axis=1, dtype=np.float64)
    return np.asarray(mean, np.float32)


def crc32c(array: npt.NDArray[Any]) -> int:
    """Checksum of the bytes of a contiguous array."""
    return int(google_crc32c.value(array))


@dataclass(frozen=True)
class CommitOutcome:
    """How a commit ended.

    Attributes:
        won: Whether this attempt is the one that counts.
        n_bytes: Bytes written to the slot.
    """

    won: bool
    n_bytes: int


class SlotWriter:
    """Writes one attempt at a unit: `write` all its frames, `complete`, `commit`.

    `write` and `complete` raise nothing that the file system says: they keep it for `check` and
    `commit`, so that they can be left to a thread that nobody waits for. A block that is left
    without a commit leaves no half-written file.

    Args:
        store: The store.
        buffer: The unit's features; not looked at any more after `complete`.
        unit: Number of the unit.
        slot: The slot that this attempt has claimed.
    """

    def __init__(self, store: Location, buffer: UnitBuffer, unit: int, slot: int) -> None:
        self._backend, self._buffer = open_backend(store), buffer
        self._layout = buffer.layout
        self._unit, self._slot = unit, slot
        self._partials: dict[str, PartialObject] = {}  # by key, until they are published
        self._error: StoreError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def write(self, start: int, stop: int) -> None:
        """Puts frames [start, stop) of all layers into the shards; they are final."""
        if start == stop or self._error is not None:
            return
        try:
            if not self._partials:
                for key in self._layout.shard_keys(self._slot):
                    self._open(key)
            partials = self._partials.values()
            for partial, layer in zip(partials, self._buffer.frames, strict=True):
                partial.write(layer[start:stop].data.cast("B"), start * layer.strides[0])
        except StoreError as error:
            self._fail(error)

    def complete(self) -> None:
        """Adds the index of each shard and the pooled chunk; the buffer is free afterwards."""
        if self._error is not None:
            return
        layout, pooled = self._layout, self._buffer.pooled
        try:
            for partial in self._partials.values():
                partial.write(layout.shard_index, layout.shard_data_bytes)
            chunk = self._backend.open_partial(layout.pooled_key(self._slot))
            self._partials[layout.pooled_key(self._slot)] = chunk
            chunk.write(pooled.data.cast("B"), 0)
            chunk.write(crc32c(pooled).to_bytes(4, "little"), layout.pooled_data_bytes)
        except StoreError as error:
            self._fail(error)

    def check(self) -> None:
        """Raises what has gone wrong so far, as `commit` would."""
        if self._error is not None:
            raise self._explained(self._error) from self._error

    def publish(self) -> None:
        """Gives all files their names, durably; still nothing is visible."""
        for partial in self._partials.values():
            check_there(self._backend)
            partial.publish()
        self._partials = {}

    def commit(self, index: pa.Table) -> CommitOutcome:
        """Makes the unit visible.

        Args:
            index: Its index rows (`records_table`).

        Returns:
            Whether this attempt won. If another one had committed the unit before, this one's
            shards are removed again.

        Raises:
            NoSpaceError: The disk is full. Nothing is visible.
            StoreError: The store cannot be written.
        """
        content, key = parquet_bytes(index), index_key(self._unit)
        self.check()
        try:
            published = list(self._partials)
            self.publish()
            check_there(self._backend)
            _check_whole(self._backend, published)
            won = self._backend.put_if_absent(key, [content])
        except StoreError as error:
            self.discard()
            if not self._backend.exists(key):
                discard_slot(self._backend, self._layout, self._slot)
            raise self._explained(error) from error
        if not won:
            discard_slot(self._backend, self._layout, self._slot)
        return CommitOutcome(won, self._layout.slot_bytes)

    def discard(self) -> None:
        """Removes the half-written files, if there are any."""
        while self._partials:
            self._partials.popitem()[1].discard()

    def _open(self, key: str) -> None:
        check_there(self._backend)
        self._partials[key] = self._backend.open_partial(key)

    def _fail(self, error: StoreError) -> None:
        self._error = error
        self.discard()

    def _explained(self, error: StoreError) -> StoreError:
        return type(error)(
            f"unit {self._unit} ({self._layout.slot_bytes:,} bytes) is not committed: {error}"
        )


def check_there(backend: Backend) -> None:
    """Makes sure that a store which was unmounted is not begun anew below its mount point.

    Raises:
        StoreError: It is gone.
    """
    if not backend.exists(ATTRIBUTES):
        raise StoreError(
            f"store {backend} has vanished (is it still mounted?); what was committed is safe "
            "there: bring it back and run the same command again"
        )


def _check_whole(backend: Backend, keys: Iterable[str]) -> None:
    """Makes sure that nobody has swept the slot while it was being written.

    A slot is swept once its unit is committed in another one. Should a repair take that commit
    back, an attempt that was still at work must not put a slot with holes in its place.

    Raises:
        StoreError: A file is gone.
    """
    for key in keys:
        if not backend.exists(key):
            raise StoreError(f"{backend.locate(key)} was swept while the attempt was still at work")


def discard_slot(store: Location, layout: Layout, slot: int) -> None:
    """Removes the shards and the pooled chunk of a slot, as far as they are there."""
    backend = open_backend(store)
    for key in (*layout.shard_keys(slot), layout.pooled_key(slot)):
        try:
            backend.delete(key)
        except StoreError:
            return  # garbage, which the next sweep removes

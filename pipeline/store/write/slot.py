"""The commit protocol: from a unit's features in memory to a committed slot.

Frames are written as soon as they are final, in any order, into partial shards, so that most of a
unit is written while the rest is still being computed. Nothing is visible before `commit`: it
publishes the shards and chunks, and last creates the unit's index file exclusively.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pyarrow as pa
from crc32c import crc32c

from pipeline.errors import StoreError, UnansweredError
from pipeline.store.backend.base import Backend, Location, Map, PartialObject
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.layout import ATTRIBUTES, Layout, index_key
from pipeline.store.serialization import parquet_bytes
from pipeline.store.tokens.stored import discard_tokens_of
from pipeline.store.write.buffer import ALL_LAYERS, UnitBuffer


@dataclass(frozen=True)
class CommitOutcome:
    """Result of a commit.

    Attributes:
        won: Whether this attempt committed the unit; False if another one had.
        n_bytes: Bytes written to the slot.
    """

    won: bool
    n_bytes: int


class SlotWriter:
    """Writes one attempt at a unit: `write` all frames, then `complete`, then `commit`.

    `write` may run in several threads at a time. It and `complete` keep a StoreError for `check`
    and `commit` instead of raising it, so that they can run in a thread whose result is not
    awaited. Leaving the `with` block without a commit removes all partial objects; no thread may
    be writing then.

    Args:
        store: The store.
        buffer: The unit's features; not used after `complete`.
        unit: Number of the unit.
        slot: Slot that this attempt has claimed.
        run: Syncs several objects at a time.
    """

    def __init__(
        self,
        store: Location,
        buffer: UnitBuffer,
        unit: int,
        slot: int,
        run: Map = map,
    ) -> None:
        self._backend, self._buffer = open_backend(store), buffer
        self._layout = buffer.layout
        self._unit, self._slot = unit, slot
        self._shard_keys: dict[int, str] = {}  # by position on the layer axis
        if self._layout.keeps_frames:
            keys = self._layout.shard_keys(slot)
            self._shard_keys = dict(zip(self._layout.kept_axes, keys, strict=True))
        self._run = run
        self._opening = threading.Lock()
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

    @property
    def n_bytes(self) -> int:
        """Bytes that the attempt writes to its slot."""
        return self._layout.slot_bytes

    def write(self, start: int, stop: int, layers: slice = ALL_LAYERS) -> None:
        """Write frames [start, stop), which are final, of some positions on the layer axis.

        Frames that are never written are zero; where the storage has holes, they take no space.
        Layers that were dropped are not written.
        """
        if start == stop or not self._shard_keys or self._error is not None:
            return
        try:
            shards = self._open_shards()
            for axis in range(self._layout.n_layers)[layers]:
                if axis in shards:
                    frames = self._buffer.frames[axis]
                    place = start * frames.strides[0]
                    shards[axis].write(frames[start:stop].data.cast("B"), place)
        except StoreError as error:
            self._error = error

    def complete(self) -> None:
        """Write the index of each shard, and the chunks. Then the buffer may be reused."""
        if self._error is not None:
            return
        layout = self._layout
        try:
            for shard in self._open_shards().values():
                shard.write(layout.shard_index, layout.shard_data_bytes)
            self._buffer.clear_dropped()
            if layout.keeps_pooled:
                self._write_chunk(layout.pooled_key(self._slot), self._buffer.pooled)
            if layout.keeps_scales:
                self._write_chunk(layout.scale_key(self._slot), self._buffer.scales)
        except StoreError as error:
            self._error = error

    def _write_chunk(self, key: str, values: FloatArray) -> None:
        """Write a chunk of an array, then its checksum."""
        chunk = self._open(key)
        chunk.write(values.data.cast("B"), 0)
        chunk.write(crc32c(values.data).to_bytes(4, "little"), values.nbytes)

    def check(self) -> None:
        """Raise the first error of `write` or `complete`, as `commit` does."""
        if self._error is not None:
            raise self._with_unit(self._error) from self._error

    def publish(self) -> None:
        """Publish all shards and chunks; the unit is not visible yet."""
        check_exists(self._backend)
        self._backend.publish(list(self._partials.values()), self._run)
        self._partials = {}

    def commit(self, index: pa.Table) -> CommitOutcome:
        """Commit the unit.

        Args:
            index: Its index rows (`records_table`).

        Returns:
            Whether this attempt won. If another one has committed the unit, the data of this one
            are removed.

        Raises:
            NoSpaceError: The disk is full. Nothing is visible.
            UnansweredError: The storage has not said whether the unit is committed.
            StoreError: The store cannot be written.
        """
        content, key = parquet_bytes(index), index_key(self._unit)
        self.check()
        try:
            sizes = self._layout.slot_objects(self._slot)
            published = {key: sizes[key] for key in self._partials}
            self.publish()
            if not self._backend.writes_in_memory:
                check_exists(self._backend)
            _check_complete(self._backend, published, self._run)
            won = self._backend.put_if_absent(key, [content])
        except UnansweredError as error:  # the commit may appear later: its data must stay
            raise self._with_unit(error, "may be committed") from error
        except StoreError as error:
            self.discard()
            if not self._exists(key):
                discard_slot(self._backend, self._layout, self._slot)
            raise self._with_unit(error) from error
        if not won:
            discard_slot(self._backend, self._layout, self._slot)
        return CommitOutcome(won, self.n_bytes)

    def _exists(self, key: str) -> bool:
        """Return whether there is a commit; True if the storage cannot say."""
        try:
            return self._backend.exists(key)
        except OSError:
            return True

    def discard(self) -> None:
        """Remove the partial objects, if there are any."""
        while self._partials:
            self._partials.popitem()[1].discard()

    def _open_shards(self) -> dict[int, PartialObject]:
        """Return all shards by their position on the layer axis; the first call opens them."""
        with self._opening:
            keys = self._shard_keys.items()
            return {axis: self._partials.get(key) or self._open(key) for axis, key in keys}

    def _open(self, key: str) -> PartialObject:
        if not self._backend.writes_in_memory:  # it would be made in a folder that has vanished
            check_exists(self._backend)
        partial = self._partials[key] = self._backend.open_partial(key)
        return partial

    def _with_unit(self, error: StoreError, state: str = "is not committed") -> StoreError:
        return type(error)(f"unit {self._unit} ({self.n_bytes:,} bytes) {state}: {error}")


def check_exists(backend: Backend) -> None:
    """Check that the store exists: one that was unmounted must not be recreated at its path.

    Raises:
        StoreError: It does not exist.
    """
    if not backend.exists(ATTRIBUTES):
        raise StoreError(
            f"store {backend} has vanished (is it still mounted?); what was committed is safe "
            "there: bring it back and run the same command again"
        )


def _check_complete(backend: Backend, sizes: Mapping[str, int], run: Map) -> None:
    """Check that the objects of the slot are there, with all their bytes.

    A clean-up removes the objects of a slot once its unit is committed in another slot. If a repair
    then revokes that commit, this attempt must not commit an incomplete slot. The same holds if
    a server has stored fewer bytes than it was sent, and has reported success.

    Args:
        backend: The store.
        sizes: Bytes of each object, by key.
        run: As for `Backend.publish`.

    Raises:
        StoreError: An object is missing, or has another size.
    """

    def check(item: tuple[str, int]) -> None:
        key, n_bytes = item
        try:
            found = backend.size(key)
        except FileNotFoundError:
            raise StoreError(
                f"{backend.locate(key)} was removed while the attempt was still writing"
            ) from None
        if found != n_bytes:
            raise StoreError(
                f"{backend.locate(key)} has {found:,} bytes, and {n_bytes:,} were written: the "
                "storage, or a proxy before it, cuts what it is sent"
            )

    list(run(check, list(sizes.items())))


def discard_slot(store: Location, layout: Layout, slot: int) -> None:
    """Remove the objects of a slot, those that exist, and its tokens."""
    backend = open_backend(store)
    try:
        for key in layout.slot_objects(slot):
            backend.delete(key)
        discard_tokens_of(backend, slot)
    except StoreError:
        return  # the next clean-up removes the rest


def commit_unit(
    store: Location, buffer: UnitBuffer, unit: int, slot: int, index: pa.Table
) -> CommitOutcome:
    """Write a unit into its slot and commit it.

    Args:
        store: The store.
        buffer: The unit's features.
        unit: Number of the unit.
        slot: Slot that this attempt has claimed.
        index: The unit's index rows (`records_table`).

    Returns:
        Whether this attempt won. If another one has committed the unit, the data of this one are
        removed.

    Raises:
        NoSpaceError: The disk is full. Nothing is visible.
        StoreError: The store cannot be written.
    """
    with SlotWriter(store, buffer, unit, slot) as writer:
        writer.write(0, buffer.layout.frames_per_unit)
        writer.complete()
        return writer.commit(index)

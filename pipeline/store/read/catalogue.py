"""The utterances of a reader and their places: Arrow columns and arrays, no objects.

A catalogue is a snapshot of the committed index. It takes about 30 bytes per utterance besides the
id and the carried columns, so a store of a million utterances opens in a second.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DamagedError, StoreError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.format.layout import GROUP, Layout
from pipeline.store.format.records import DROPPED, FIELDS, RESERVED_NAMES
from pipeline.store.format.tombstones import tombstone_of
from pipeline.store.labels import Labels, labels_state, places_of

IntArray = npt.NDArray[np.int64]
Span = tuple[int, int, int, int]
"""Consecutive frames of a piece: the slot, the first frame within it, one past the last, and the
position of the piece in the unit."""


class Piece(NamedTuple):
    """A piece of an utterance; most utterances have one.

    Attributes:
        unit: Its unit.
        position: Its position in the unit.
        start: Its first frame within the utterance.
        stop: One past its last frame.
    """

    unit: int
    position: int
    start: int
    stop: int


_SLOT_BITS = 32

_OMITTED = ("crc32c", "flags", "n_samples", "source_rate_hz")
"""Columns that no read needs; `FeatureStore.record` reads them."""
_HASH_BLOCK = 65_536
_MAX_COMPARED = 2_000


@dataclass(frozen=True)
class Place:
    """Place of a store among several that are read as one.

    Attributes:
        number: Number of the store.
        n_stores: Number of stores.
        prefix: What comes before its ids.
    """

    number: int = 0
    n_stores: int = 1
    prefix: str = ""

    @property
    def first_slot(self) -> int:
        """Number that the slots of the store are counted from, so that no two stores share one."""
        return self.number << _SLOT_BITS


ALONE = Place()


def store_of_slot(slot: int) -> int:
    """Return the number of the store of a slot as catalogues number them."""
    return slot >> _SLOT_BITS


@dataclass(frozen=True)
class Catalogue:
    """The complete utterances of a store, in the order of the source dataset.

    Attributes:
        metadata: `id` and the carried columns, a row per utterance.
        first_piece: First piece of each utterance, then the number of pieces: [n_utterances + 1].
        unit: Unit of each piece, [n_pieces].
        slot: Slot of each piece; among several stores with the number of its store, see `Place`.
        start: First frame of each piece, within its slot.
        n_frames: Frames of each piece.
        place: Position of each piece in its unit, and in its slot's pooled chunk.
        quarantined: `id` and `reason` of the utterances without features.
        dropped: Tombstones of the utterances that were dropped, to explain why they are missing.
        state: What was committed when it was read; see `committed_state`.
    """

    metadata: pa.Table
    first_piece: IntArray
    unit: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32] | IntArray
    start: npt.NDArray[np.int32]
    n_frames: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    quarantined: pa.Table
    dropped: frozenset[str] = frozenset()
    state: str = ""

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @property
    def ids(self) -> pa.ChunkedArray:
        """Ids, in order."""
        return self.metadata["id"]

    @cached_property
    def frame_counts(self) -> IntArray:
        """Frames of each utterance: [n_utterances]."""
        if len(self.n_frames) == len(self):
            return self.n_frames.astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(self.n_frames, dtype=np.int64)])
        return np.diff(ends[self.first_piece])

    def length(self, position: int) -> int:
        """Return the number of frames of an utterance."""
        return int(self.views[-1][position])

    def spans(self, position: int, start: int, stop: int) -> list[Span]:
        """Return where frames `start:stop` of an utterance are, in order: one span per piece."""
        first_piece, slots, starts, counts, places, _ = self.views
        first, end = first_piece[position], first_piece[position + 1]
        if end == first + 1 and 0 <= start < stop <= counts[first]:  # as almost always
            at = starts[first]
            return [(slots[first], at + start, at + stop, places[first])]
        spans = []
        for piece in range(first, end):
            low, high = max(start, 0), min(stop, counts[piece])
            if low < high:
                at = starts[piece]
                spans.append((slots[piece], at + low, at + high, places[piece]))
            start, stop = start - counts[piece], stop - counts[piece]
        return spans

    @property
    def store_numbers(self) -> IntArray:
        """Number of the store of each utterance: [n_utterances]."""
        return self.slot[self.first_piece[:-1]].astype(np.int64) >> _SLOT_BITS

    def store_of(self, position: int) -> int:
        """Return the number of the store of an utterance."""
        first_piece, slots, *_ = self.views
        number: int = slots[first_piece[position]] >> _SLOT_BITS
        return number

    def pieces_of(self, number: int) -> IntArray:
        """Return the indices of the pieces that are in store `number`, ascending."""
        return np.flatnonzero(self.slot.astype(np.int64) >> _SLOT_BITS == number)

    def piece_places(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return utterance, slot, first frame in the slot and frames of each piece: [n_pieces]."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.first_piece))
        slot, start, n_frames = (
            array.astype(np.int64) for array in (self.slot, self.start, self.n_frames)
        )
        return owner, slot, start, n_frames

    def pieces(self, position: int) -> list[Piece]:
        """Return the pieces of an utterance, in order."""
        pieces = range(*self.first_piece[position : position + 2].tolist())
        stops = np.cumsum(self.n_frames[pieces.start : pieces.stop], dtype=np.int64).tolist()
        return [
            Piece(int(self.unit[i]), int(self.place[i]), start, stop)
            for i, start, stop in zip(pieces, [0, *stops], stops, strict=False)
        ]

    def find(self, name: str) -> int | None:
        """Return the position of an id, or None."""
        hashes, order = self._hashes
        wanted = np.uint32(zlib.crc32(name.encode()))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:  # different ids may have equal hashes
            if self._id_array[int(order[at])].as_py() == name:
                return int(order[at])
            at += 1
        return None

    def explain_missing(self, name: str) -> str:
        """Return why an id has no features: its quarantine reason, or the most similar ids."""
        lost = self.quarantined.filter(pc.equal(self.quarantined["id"], name))
        if len(lost):
            return f"utterance {name!r} is quarantined: {lost['reason'][0].as_py()}"
        if self.dropped and tombstone_of(name) in self.dropped:
            return f"utterance {name!r} was dropped from the store (`strata drop`)"
        similar = self._similar(name)
        hint = f"; similar: {', '.join(repr(item) for item in similar)}" if similar else ""
        return f"no utterance {name!r} among the {len(self):,} committed ones{hint}"

    def matching(self, condition: pc.Expression) -> IntArray:
        """Return the positions of the utterances for which a condition holds, ascending.

        Args:
            condition: On `id`, the carried columns and `n_frames`.

        Raises:
            StoreError: The condition names an unknown column, or compares incompatible types.
        """
        table = self.metadata.append_column("n_frames", pa.array(self.frame_counts))
        table = table.append_column("__position", pa.array(np.arange(len(self))))
        try:
            found = table.filter(condition)["__position"].to_numpy()
        except pa.ArrowException as error:
            known = ", ".join(table.column_names[:-1])
            raise StoreError(
                f"cannot select by {condition} ({error}); the columns are {known}"
            ) from error
        return np.asarray(found, np.int64)

    def positions_in(self, unit: int) -> IntArray:
        """Return the positions of the utterances that have a piece in a unit, ascending."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.first_piece))
        return np.unique(owner[self.unit == unit])

    def take(self, positions: IntArray) -> Catalogue:
        """Return a catalogue of the utterances at `positions`, in that order."""
        counts = np.diff(self.first_piece)[positions]
        first = np.concatenate([[0], np.cumsum(counts)])
        pieces = np.repeat(self.first_piece[:-1][positions] - first[:-1], counts)
        pieces += np.arange(len(pieces))
        return Catalogue(
            metadata=self.metadata.take(index_files.row_numbers(positions)),
            first_piece=first,
            unit=self.unit[pieces],
            slot=self.slot[pieces],
            start=self.start[pieces],
            n_frames=self.n_frames[pieces],
            place=self.place[pieces],
            quarantined=self.quarantined.slice(0, 0),
            dropped=self.dropped,
            state=self.state,
        )

    @cached_property
    def views(self) -> tuple[memoryview, ...]:
        """Arrays that every read indexes; a view returns a number in a third of an array's time."""
        pieces = self.slot, self.start, self.n_frames, self.place
        return tuple(array.data for array in (self.first_piece, *pieces, self.frame_counts))

    @property
    def has_repeated_ids(self) -> bool:
        """Whether two utterances have the same id; takes as long as the first search of an id."""
        hashes, order = self._hashes
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        rows = order[np.unique(np.concatenate([same, same + 1]))].tolist()
        return len({self._id_array[row].as_py() for row in rows}) < len(rows)

    @cached_property
    def _id_array(self) -> pa.Array | pa.ChunkedArray:
        return self.ids.chunk(0) if self.ids.num_chunks == 1 else self.ids

    @cached_property
    def _hashes(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """crc32 of the ids, ascending, and the position of each: 12 bytes an utterance."""
        hashes = np.empty(len(self), np.uint32)
        for start in range(0, len(self), _HASH_BLOCK):
            some = self._id_array.slice(start, _HASH_BLOCK).to_pylist()
            hashes[start : start + len(some)] = [zlib.crc32(name.encode()) for name in some]
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def _similar(self, name: str) -> list[str]:
        """Return up to three similar ids, of those with the longest common prefix."""
        candidates: list[str] = []
        for length in range(len(name), -1, -1):
            sharing = self.ids.filter(pc.starts_with(self.ids, pattern=name[:length]))
            candidates = sharing.slice(0, _MAX_COMPARED).to_pylist()
            if len(candidates) >= 3 and (
                similar := difflib.get_close_matches(name, candidates, n=3)
            ):
                return similar
        return difflib.get_close_matches(name, candidates, n=3)


def read_catalogue(
    store: Location,
    layout: Layout,
    labels: Labels | None = None,
    units: Sequence[int] | None = None,
) -> Catalogue:
    """Read what is committed in a store.

    Args:
        store: The store.
        layout: Its layout.
        labels: The utterances to show, in order, and their columns; None shows all, with the
            columns that were committed with them.
        units: Committed units to read, at least one; None reads all. Utterances with pieces in
            other units are left out.

    Raises:
        DamagedError: The index of a unit is unreadable, or is not that of this layout.
    """
    names = [item.name for item in FIELDS if item.name not in _OMITTED]
    if units is not None:
        index, state = index_files.read_units(store, units), ""
        index = index if labels is None else index.select(names)
    elif labels is None:
        index, state = index_files.read_committed(store, without=_OMITTED)
    else:
        index, state = index_files.read_committed(store, columns=names)
    if labels is None:
        return replace(_committed(store, index, layout), state=_joined_state("", state))
    catalogue = _committed(store, labels.shown(index), layout, ["row"])
    place = places_of(labels.numbers, index_files.numbers(catalogue.metadata["row"]))
    is_complete = place >= 0
    chosen = labels.table.select(["id", *labels.names])
    return replace(
        catalogue.take(place[is_complete]),
        metadata=chosen.take(index_files.row_numbers(np.flatnonzero(is_complete))),
        quarantined=catalogue.quarantined,
        dropped=_dropped(index),
        state=_joined_state(labels.state, state),
    )


def committed_state(store: Location, generation: int | None, known: Catalogue) -> str:
    """Return the `state` of a catalogue that would be read now, with few requests.

    Args:
        store: The store.
        generation: Generation of its labels; None is the newest.
        known: What was committed before.
    """
    last = int(known.unit.max(initial=-1))
    return _joined_state(labels_state(store, generation), index_files.index_state(store, last))


def _joined_state(labels: str, index: str) -> str:
    return f"{labels}/{index}"


def _dropped(index: pa.Table) -> frozenset[str]:
    """Return the tombstones of the utterances that were dropped."""
    return frozenset(index_files.of_status(index, DROPPED)["id"].to_pylist())


def _committed(
    store: Location, table: pa.Table, layout: Layout, columns: Sequence[str] = ()
) -> Catalogue:
    """Return the catalogue of index rows; `columns` are kept besides those of the dataset.

    Raises:
        DamagedError: The rows are not those of a store of this layout.
    """
    quarantined = index_files.still_quarantined(table)
    pieces, first_piece = index_files.complete_utterances(table)
    start = index_files.numbers(pieces["frame_start"])
    names = [name for name in pieces.column_names if name not in RESERVED_NAMES]
    metadata = pieces.select(["id", *columns, *names])
    if len(pieces) != len(first_piece) - 1:
        metadata = metadata.take(index_files.row_numbers(first_piece[:-1]))
    catalogue = Catalogue(
        metadata=metadata.combine_chunks(),
        first_piece=first_piece,
        unit=_numbers(pieces["unit"]),
        slot=_numbers(pieces["slot"]),
        start=(start % layout.frames_per_unit).astype(np.int32),
        n_frames=_numbers(pieces["n_frames"]),
        place=_numbers(pieces["position"]),
        quarantined=quarantined.select(["id", "reason"]).combine_chunks(),
        dropped=_dropped(table),
    )
    has_place = catalogue.place < layout.utterances_per_slot
    has_frames = catalogue.start + catalogue.n_frames <= layout.frames_per_unit
    is_in_slot = start // layout.frames_per_unit == catalogue.slot
    if not (has_place & has_frames & is_in_slot).all():
        raise DamagedError(
            f"the index of store {store} is not that of its {GROUP}: files of another store were "
            "put among its own, or its zarr.json was changed; restore both from a copy"
        )
    del table, pieces
    pa.default_memory_pool().release_unused()
    return catalogue


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    return index_files.numbers(column).astype(np.int32, copy=False)

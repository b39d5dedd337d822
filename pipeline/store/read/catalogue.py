"""Which utterances a reader sees, and where they lie: Arrow columns and arrays, no objects.

A catalogue is a snapshot of the committed index. It costs some 30 bytes an utterance besides the
id and the carried columns, so that a store of a million utterances opens in a second.
"""

from __future__ import annotations

import difflib
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.format.records import RESERVED_NAMES

IntArray = npt.NDArray[np.int64]
Span = tuple[int, int, int]
"""Where frames lie: a slot, the first of them within it, and one past the last."""

_LEFT_OUT = ("crc32c", "flags", "n_samples", "source_rate_hz")
"""Columns that no read needs; `FeatureStore.record` looks them up."""
_HASHED_AT_ONCE = 65_536
_MOST_COMPARED = 2_000


@dataclass(frozen=True)
class Catalogue:
    """The complete utterances of a store, in the order of the source dataset.

    Attributes:
        metadata: `id` and the carried columns, a row per utterance.
        first_piece: First piece of each utterance, and the number of pieces: [n_utterances + 1].
        unit: Unit of each piece, [n_pieces].
        slot: Slot of each piece.
        start: First frame of each piece within its slot.
        n_frames: Frames of each piece.
        place: Position of each piece within its unit, and within its slot's pooled chunk.
        quarantined: `id` and `reason` of the utterances that have no features.
    """

    metadata: pa.Table
    first_piece: IntArray
    unit: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    n_frames: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    quarantined: pa.Table

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
        """Frames of an utterance."""
        return int(self._views[-1][position])

    def spans(self, position: int, start: int, stop: int) -> list[Span]:
        """Where frames `start:stop` of an utterance lie, in order: one span per piece."""
        first_piece, slots, starts, counts, _ = self._views
        spans = []
        for piece in range(first_piece[position], first_piece[position + 1]):
            low, high = max(start, 0), min(stop, counts[piece])
            if low < high:
                at = starts[piece]
                spans.append((slots[piece], at + low, at + high))
            start, stop = start - counts[piece], stop - counts[piece]
        return spans

    def find(self, name: str) -> int | None:
        """Position of an id, or None."""
        hashes, order = self._hashes
        wanted = np.uint32(zlib.crc32(name.encode()))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:  # equal hashes are rare, but they occur
            if self._id_array[int(order[at])].as_py() == name:
                return int(order[at])
            at += 1
        return None

    def why_missing(self, name: str) -> str:
        """Says what is known of an id that has no features."""
        lost = self.quarantined.filter(pc.equal(self.quarantined["id"], name))
        if len(lost):
            return f"utterance {name!r} is quarantined: {lost['reason'][0].as_py()}"
        near = self._near(name)
        hint = f"; near it: {', '.join(repr(item) for item in near)}" if near else ""
        return f"no utterance {name!r} among the {len(self):,} committed ones{hint}"

    def matching(self, condition: pc.Expression) -> IntArray:
        """Positions of the utterances for which a condition on the metadata holds, ascending.

        Besides `id` and the carried columns, `n_frames` can be asked for.

        Raises:
            StoreError: The condition names a column that is not there, or compares apples to pears.
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

    def take(self, positions: IntArray) -> Catalogue:
        """The utterances at `positions`, in that order; those without features are left out."""
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
        )

    @cached_property
    def _views(self) -> tuple[memoryview, ...]:
        """Arrays that every read looks into; views give a number in a third of an array's time."""
        arrays = self.first_piece, self.slot, self.start, self.n_frames, self.frame_counts
        return tuple(array.data for array in arrays)

    @cached_property
    def _id_array(self) -> pa.Array:
        return self.ids.chunk(0) if self.ids.num_chunks == 1 else self.ids.combine_chunks()

    @cached_property
    def _hashes(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """crc32 of the ids, ascending, and the position of each: 12 bytes an utterance."""
        hashes = np.empty(len(self), np.uint32)
        for start in range(0, len(self), _HASHED_AT_ONCE):
            some = self._id_array.slice(start, _HASHED_AT_ONCE).to_pylist()
            hashes[start : start + len(some)] = [zlib.crc32(name.encode()) for name in some]
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def _near(self, name: str) -> list[str]:
        """Up to three ids that look like `name`: compared with those that begin as it does."""
        candidates: list[str] = []
        for length in range(len(name), -1, -1):
            like = self.ids.filter(pc.starts_with(self.ids, pattern=name[:length]))
            candidates = like.slice(0, _MOST_COMPARED).to_pylist()
            if len(candidates) >= 3 and (near := difflib.get_close_matches(name, candidates, n=3)):
                return near
        return difflib.get_close_matches(name, candidates, n=3)


def read_catalogue(store: Location, frames_per_unit: int) -> Catalogue:
    """Read what is committed in a store.

    Raises:
        DamagedError: The index of a unit is not readable.
    """
    table = index_files.read_index(store, without=_LEFT_OUT)
    lost = index_files.still_quarantined(table)
    pieces, first_piece = index_files.complete_utterances(table)
    start = index_files.numbers(pieces["frame_start"])
    names = [name for name in pieces.column_names if name not in RESERVED_NAMES]
    metadata = pieces.select(["id", *names])
    if len(pieces) != len(first_piece) - 1:
        metadata = metadata.take(index_files.row_numbers(first_piece[:-1]))
    catalogue = Catalogue(
        metadata=metadata.combine_chunks(),
        first_piece=first_piece,
        unit=_numbers(pieces["unit"]),
        slot=_numbers(pieces["slot"]),
        start=(start % frames_per_unit).astype(np.int32),
        n_frames=_numbers(pieces["n_frames"]),
        place=_numbers(pieces["position"]),
        quarantined=lost.select(["id", "reason"]).combine_chunks(),
    )
    del table, pieces
    pa.default_memory_pool().release_unused()
    return catalogue


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    return index_files.numbers(column).astype(np.int32, copy=False)

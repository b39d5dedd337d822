"""Verified reads: frames and statistics are compared with their checksums before they are used.

The index has a checksum of each layer of each utterance, or of each piece of a long one. So a part
of an utterance can be verified only with the rest of its piece, which is read as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any
from weakref import proxy

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from crc32c import crc32c

from pipeline.errors import DamagedError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.format.codecs import checksum
from pipeline.store.format.layout import Layout, index_key
from pipeline.store.format.pooling import is_same, pool
from pipeline.store.format.records import FIELDS, OK
from pipeline.store.read.catalogue import ALONE, Catalogue, Place
from pipeline.store.read.merged import Cut
from pipeline.store.read.shards import Matrix, ShardReader

_BLOCK = 512  # frames that are read only for their checksum, at a time


@dataclass(frozen=True)
class _UnitChecksums:
    """The utterances of one unit that have features.

    Attributes:
        rows: Row of the other arrays, by position in the unit.
        ids: Ids, [n].
        places: Slot, first frame on the frame axis and number of frames: int64 [n, 3].
        checksums: crc32c of each layer, uint32 [n, n_layers].
    """

    rows: dict[int, int]
    ids: pa.Array
    places: npt.NDArray[np.int64]
    checksums: npt.NDArray[np.uint32]


class Checksums:
    """Checksums of the frames of a store. The index file of a unit is read when first needed."""

    def __init__(self, backend: Backend, layout: Layout, place: Place = ALONE) -> None:
        self._backend, self._layout, self._place = backend, layout, place
        self._units: dict[int, _UnitChecksums] = {}

    def of(self, catalogue: Catalogue, position: int, piece: int) -> npt.NDArray[np.uint32]:
        """Return the checksum of each layer of a piece of an utterance, uint32 [n_layers].

        Args:
            catalogue: The utterances.
            position: Position of the utterance.
            piece: Index of the piece in the arrays of the catalogue.

        Raises:
            DamagedError: The unit's index is damaged, or lists the utterance elsewhere.
        """
        unit = int(catalogue.unit[piece])
        known = self.of_unit(unit)
        row = known.rows.get(int(catalogue.place[piece]))
        slot, n_frames = int(catalogue.slot[piece]), int(catalogue.n_frames[piece])
        slot -= self._place.first_slot
        place = [slot, self._layout.slot_start(slot) + int(catalogue.start[piece]), n_frames]
        name = catalogue.ids[position].as_py()
        found = None if row is None else f"{self._place.prefix}{known.ids[row].as_py()}"
        if found != name or known.places[row].tolist() != place:
            raise DamagedError(
                f"{self._backend.locate(index_key(unit))} has no utterance {name!r} at the place "
                "where it was when the store was opened; open it again, or run `strata verify`"
            )
        checksums: npt.NDArray[np.uint32] = known.checksums[row]
        return checksums

    def of_unit(self, unit: int) -> _UnitChecksums:
        """Return the checksums of a unit.

        Raises:
            DamagedError: Its index is damaged.
        """
        known = self._units.get(unit)
        if known is None:
            known = self._units[unit] = self._read(unit)
        return known

    def _read(self, unit: int) -> _UnitChecksums:
        table = index_files.read_unit(self._backend, unit)
        n_layers = self._layout.n_layers
        done = [
            row
            for row in table.select(
                ["id", "position", "status", "slot", "frame_start", "n_frames", "crc32c"]
            ).to_pylist()
            if row["status"] == OK and len(row["crc32c"] or ()) == n_layers
        ]
        return _UnitChecksums(
            rows={row["position"]: i for i, row in enumerate(done)},
            ids=pa.array([row["id"] for row in done], pa.string()),
            places=np.array(
                [(row["slot"], row["frame_start"], row["n_frames"]) for row in done], np.int64
            ),
            checksums=np.array([row["crc32c"] for row in done], np.uint32),
        )


class CopyCheck:
    """Compares whole shards and scales with the index, before copies of them are used.

    Args:
        backend: The store. It keeps this object, so this should be a weak reference.
        layout: Its layout.
        catalogue: Utterances of all slots that copies may be of.
    """

    def __init__(self, backend: Backend, layout: Layout, catalogue: Catalogue) -> None:
        self._backend, self._layout = backend, layout
        self._checksums = Checksums(backend, layout)
        self._units, self._slots = catalogue.unit, catalogue.slot
        self._last_scales: tuple[int, npt.NDArray[np.float32]] | None = None

    def __call__(self, key: str, content: memoryview) -> bool:
        """Compare an object; return whether that can be done.

        Raises:
            DamagedError: It has other bytes than were committed.
        """
        place = self._layout.shard_place(key)
        if place is None:  # scales, which end in their checksum
            is_sound = crc32c(content[:-4]) == int.from_bytes(content[-4:], "little")
            if not is_sound:
                raise DamagedError(
                    f"{self._backend.locate(key)} has a wrong checksum; run `strata verify`"
                )
            return True
        axis, slot = place
        units = np.unique(self._units[self._slots == slot]).tolist()
        first, size = self._layout.slot_start(slot), self._layout.frame_bytes
        scales = self._scales_of(slot)
        for unit in units:
            known = self._checksums.of_unit(unit)
            for position, row in known.rows.items():
                if known.places[row, 0] != slot:
                    continue
                start = int(known.places[row, 1]) - first
                stop = start + int(known.places[row, 2])
                found = crc32c(content[start * size : stop * size])
                if scales is not None:
                    found = crc32c(scales[position, axis].data, found)
                if found != known.checksums[row, axis]:
                    raise DamagedError(
                        f"shard {self._backend.locate(key)} has other features of "
                        f"{known.ids[row].as_py()!r} than were committed; run `strata verify`"
                    )
        return bool(units)

    def _scales_of(self, slot: int) -> npt.NDArray[np.float32] | None:
        """Read the scales of a slot, which checksums of int8 frames include; keep the last ones."""
        layout, last = self._layout, self._last_scales
        if not layout.keeps_scales:
            return None
        if last is None or last[0] != slot:
            raw = self._backend.read(layout.scale_key(slot))
            if len(raw) != layout.scale_bytes:
                raise DamagedError(
                    f"{self._backend.locate(layout.scale_key(slot))} has {len(raw):,} bytes; "
                    f"expected {layout.scale_bytes:,}; run `strata verify`"
                )
            shape = layout.scale_shape(1)[1:]
            last = slot, np.frombuffer(raw, np.float32, math.prod(shape)).reshape(shape)
            self._last_scales = last
        return last[1]


def check_copies(backend: Backend, layout: Layout, catalogue: Catalogue) -> None:
    """Have copies of shards and scales, where any are kept, compared with the index.

    Raises:
        ConfigError: There is too little room for copies.
    """
    backend.check_copies(CopyCheck(proxy(backend), layout, catalogue), layout.shard_bytes)


def committed_record(backend: Backend, catalogue: Catalogue, position: int) -> dict[str, Any]:
    """Return the index record of an utterance, or of its first piece, without its columns.

    Raises:
        DamagedError: Its unit's index is missing or unreadable.
    """
    first = int(catalogue.first_piece[position])
    unit = index_files.read_unit(backend, int(catalogue.unit[first]))
    row = unit.filter(pc.equal(unit["position"], int(catalogue.place[first])))
    found: dict[str, Any] = row.select([item.name for item in FIELDS]).to_pylist()[0]
    return found


def committed_checksums(
    backend: Backend, catalogue: Catalogue, number: int
) -> dict[int, list[int]]:
    """Return the crc32c of each layer of the pieces of one store, by index of the piece.

    Args:
        backend: The store.
        catalogue: The utterances, also of others.
        number: Number of the store.

    Raises:
        DamagedError: The index of a unit is unreadable.
    """
    names = ["unit", "position", "crc32c"]
    index = index_files.read_index(backend, columns=names)
    places = zip(*(index[name].to_pylist() for name in names[:2]), strict=True)
    known = dict(zip(places, index["crc32c"].to_pylist(), strict=True))
    return {
        piece: known[int(catalogue.unit[piece]), int(catalogue.place[piece])]
        for piece in catalogue.pieces_of(number).tolist()
    }


class LayerCheck:
    """Compares one layer of an utterance as stored, in order, with the checksums of its pieces.

    Args:
        shards: Shards of the store.
        catalogue: Its utterances.
        checksums: Its checksums.
        position: Position of the utterance.
        axis: Position on the layer axis.
        piece: The piece of the utterance whose frames come first, from 0.
    """

    def __init__(
        self,
        shards: ShardReader,
        catalogue: Catalogue,
        checksums: Checksums,
        position: int,
        axis: int,
        piece: int = 0,
    ) -> None:
        self._shards, self._catalogue, self._checksums = shards, catalogue, checksums
        self._position, self._axis = position, axis
        self._piece = int(catalogue.first_piece[position]) + piece
        self._done = self._crc = 0  # frames of the piece, and their checksum

    def add(self, frames: Matrix) -> None:
        """Take the next frames, [n_frames, dim].

        Raises:
            DamagedError: They end a piece, and its checksum is wrong.
        """
        while len(frames):
            some = frames[: int(self._catalogue.n_frames[self._piece]) - self._done]
            frames = frames[len(some) :]
            self._crc = crc32c(np.ascontiguousarray(some).data, self._crc)
            self._done += len(some)
            if self._done == self._catalogue.n_frames[self._piece]:
                self._finish_piece()

    def add_stored(self, stop: int | None = None) -> None:
        """Take the next frames of the piece from the disk: those before `stop`, or the rest."""
        catalogue, piece = self._catalogue, self._piece
        if stop is None:
            if not self._done:
                return  # the piece before has ended
            stop = int(catalogue.n_frames[piece])
        slot, first = int(catalogue.slot[piece]), int(catalogue.start[piece])
        while self._done < stop and self._piece == piece:
            n = min(_BLOCK, stop - self._done)
            start = first + self._done
            self.add(self._shards.read(self._axis, slot, start, start + n))

    def _finish_piece(self) -> None:
        expected = self._checksums.of(self._catalogue, self._position, self._piece)[self._axis]
        slot, place = (
            int(array[self._piece]) for array in (self._catalogue.slot, self._catalogue.place)
        )
        scales = self._shards.scales(self._axis, slot, place)
        if crc32c(scales.data, self._crc) != expected:
            layout = self._shards.layout
            raise DamagedError(
                f"layer {layout.layers[self._axis]} of utterance "
                f"{self._catalogue.ids[self._position].as_py()!r} has a wrong checksum in "
                f"{self._shards.locate_utterance(self._axis, slot)}; run `strata verify`"
            )
        self._piece += 1
        self._done = self._crc = 0


def check_cuts(
    shards: ShardReader,
    catalogue: Catalogue,
    checksums: Checksums,
    cuts: Sequence[Cut],
    axes: Sequence[int],
) -> None:
    """Check the filled destinations of `cuts`, as `merged.gather` has left them.

    Raises:
        DamagedError: A destination is not a part of what was committed.
    """
    for position, first, where in cuts:
        if not where.shape[1]:
            continue
        begin, end = catalogue.first_piece[position : position + 2]
        ends = np.cumsum(catalogue.n_frames[begin:end], dtype=np.int64)
        piece = int(np.searchsorted(ends, first, side="right"))
        before = first - (int(ends[piece - 1]) if piece else 0)
        for i, axis in enumerate(axes):
            check = LayerCheck(shards, catalogue, checksums, position, axis, piece)
            check.add_stored(before)
            if shards.is_direct:
                check.add(where[i])
            else:  # the destination has decoded values: read the stored ones again
                for slot, start, stop, _ in catalogue.spans(
                    position, first, first + where.shape[1]
                ):
                    check.add(shards.read(axis, slot, start, stop))
            check.add_stored()


def check_pooled(
    shards: ShardReader, catalogue: Catalogue, checksums: Checksums, axes: Sequence[int]
) -> None:
    """Check all statistics against those of the frames, and these against their checksums.

    In a store without frames the checksums are those of the statistics. Of a catalogue of several
    stores, the utterances of the one of `shards` are checked.

    Raises:
        DamagedError: One is not.
    """
    layout, slot = shards.layout, -1
    codec = layout.codec
    owner = np.repeat(np.arange(len(catalogue)), np.diff(catalogue.first_piece))
    pieces = catalogue.pieces_of(shards.place.number)
    for piece in pieces[np.argsort(catalogue.slot[pieces], kind="stable")].tolist():
        if slot != catalogue.slot[piece]:
            slot = int(catalogue.slot[piece])
            chunk = shards.pooled(slot) if layout.keeps_pooled else None
        position, start = int(owner[piece]), int(catalogue.start[piece])
        number, place = piece - int(catalogue.first_piece[position]), int(catalogue.place[piece])
        for axis in axes:
            kept = None if chunk is None else chunk[place, :, axis]
            if layout.keeps_frames:
                frames = shards.read(axis, slot, start, start + int(catalogue.n_frames[piece]))
                LayerCheck(shards, catalogue, checksums, position, axis, number).add(frames)
                scales = shards.scales(axis, slot, place)
                right = pool(codec, frames[None], scales[None], layout.statistics)[:, 0]
                is_right = kept is None or all(
                    map(is_same, repeat(codec), layout.statistics, kept, right)
                )
            else:
                found = checksum(shards.pooled(slot)[place, :, axis])
                is_right = found == checksums.of(catalogue, position, piece)[axis]
            if not is_right:
                names = "/".join(layout.statistics)
                found_wrong = (
                    f"the pooled {names} is not that of its frames"
                    if layout.keeps_frames
                    else f"the statistics ({names}) have a wrong checksum"
                )
                raise DamagedError(
                    f"layer {layout.layers[axis]} of utterance "
                    f"{catalogue.ids[position].as_py()!r}: {found_wrong} "
                    f"({shards.locate_pooled(slot)}); run `strata verify`"
                )

"""The values of a unit of a copy: read from the sources, verified, and converted if need be.

Layers are made in parallel, and each is passed on to be written as soon as it is final. Every piece
is compared with its checksum while it is read: a piece that stays whole by the very bytes that are
written, one that is cut before its first part is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from crc32c import crc32c

from pipeline.errors import DamagedError
from pipeline.store.format.codecs import FloatArray, Stored, checksum
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import FIELDS, OK, QUARANTINED
from pipeline.store.read.shards import ShardReader
from pipeline.store.tensors import as_tensor, decode_into, encode_into, measure
from pipeline.store.write.buffer import ALL_LAYERS, UnitBuffer
from pipeline.transforms.copy.pieces import Pieces
from pipeline.transforms.copy.sources import Source
from pipeline.transforms.writer import Final

_BLOCK = 256  # frames that are converted or checked at a time
_AHEAD_BYTES = 4 << 20  # of a layer that are fetched together
_CHUNKS = 4  # of statistics of each source, which are kept in memory


@dataclass(frozen=True)
class _Part:
    """A piece of the copy: where it is in its source, and where in the buffer.

    Attributes:
        name: Id of the utterance, for messages.
        crcs: Checksums in the source of the piece that it is a part of, one per layer there.
        position: Its position in the unit.
        at: Its first frame in the buffer.
        stop: One past its last frame there.
        slot: Its slot in the source.
        place: Its position in the unit there.
        start: Its first frame within the slot there.
        whole: First frame there of the piece that it is a part of, and one past the last.
    """

    name: str
    crcs: Sequence[int]
    position: int
    at: int
    stop: int
    slot: int
    place: int
    start: int
    whole: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether it is a piece of its source, not a part of one."""
        return self.whole == (self.start, self.start + self.stop - self.at)


class CopyMaker:
    """Makes the units of a copy.

    Args:
        sources: The stores.
        pieces: Pieces of the copy.
        layout: Shapes of the copy.
    """

    kind, stage = "copy", "read"

    def __init__(self, sources: Sequence[Source], pieces: Pieces, layout: Layout) -> None:
        self._pieces, self._layout = pieces, layout
        self._readers = [_SourceReader(source, layout) for source in sources]
        self._n_threads = max(source.backend.parallel_reads for source in sources)
        self._may_overflow = any(reader.may_overflow for reader in self._readers)

    def make(self, unit: int, slot: int, buffer: UnitBuffer, final: Final) -> pa.Table:
        """Read a unit; return its index rows.

        Raises:
            DamagedError: A piece of a source is damaged.
        """
        rows = slice(*(int(self._pieces.plan.unit_offsets[unit + i]) for i in range(2)))
        parts = self._parts(rows)
        buffer.start(parts[-1][1].stop)
        for reader, part in parts:
            reader.copy_statistics(part, buffer)
        crcs = np.zeros((len(parts), self._layout.n_layers), np.uint32)
        overflows: dict[int, str] = {}

        def make_layer(axis: int) -> None:
            expected = 0
            for number, (reader, part) in enumerate(parts):
                if number == expected:
                    expected = self._expect(parts, number, axis)
                overflow = reader.read(part, axis, buffer)
                if overflow is not None:
                    overflows[part.position] = overflow
                else:
                    crcs[part.position, axis] = reader.checksum_of(part, axis, buffer)
            if not self._may_overflow:
                final(slice(axis, axis + 1))

        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # each layer has a thread; more wait for each other
        try:
            with ThreadPoolExecutor(self._n_threads, initializer=_use_one_thread) as pool:
                for _ in pool.map(make_layer, range(self._layout.n_layers)):
                    pass
        finally:
            torch.set_num_threads(torch_threads)
        if self._may_overflow:
            for position in overflows:
                part = parts[position][1]
                buffer.drop(position, part.at, part.stop)
                buffer.pooled[position].fill(np.nan)
            final(ALL_LAYERS)
        return self._index(rows, slot, [part for _, part in parts], crcs, overflows)

    def _expect(self, parts: Sequence[tuple[_SourceReader, _Part]], first: int, axis: int) -> int:
        """Start fetching the next pieces of a layer; return the number of the one after them."""
        n_bytes, number = 0, first
        while number < len(parts) and n_bytes < _AHEAD_BYTES:
            reader, part = parts[number]
            n_bytes += reader.expect(part, axis)
            number += 1
        return number

    def _parts(self, rows: slice) -> list[tuple[_SourceReader, _Part]]:
        """Return the pieces of a unit, in order, and the readers of their sources."""
        pieces, table = self._pieces, self._pieces.table
        length = rows.stop - rows.start
        names, crcs = (
            table[name].slice(rows.start, length).to_pylist() for name in ("id", "crc32c")
        )
        columns = (
            *(pieces.source, pieces.n_frames, pieces.slot, pieces.place, pieces.start),
            *(pieces.whole_start, pieces.whole_frames),
        )
        numbers = zip(*(column[rows].tolist() for column in columns), strict=True)
        found, at = [], 0
        for i, (source, n_frames, slot, place, start, begin, whole) in enumerate(numbers):
            where = (slot, place, start, (begin, begin + whole))
            part = _Part(names[i], crcs[i], i, at, at + n_frames, *where)
            found.append((self._readers[source], part))
            at += n_frames
        return found

    def _index(
        self,
        rows: slice,
        slot: int,
        parts: Sequence[_Part],
        crcs: npt.NDArray[np.uint32],
        overflows: dict[int, str],
    ) -> pa.Table:
        """Return the rows of the index of a unit."""
        table = self._pieces.table.slice(rows.start, len(parts))
        begin = self._layout.slot_start(slot)
        made = [
            {
                "status": OK,
                "reason": None,
                "slot": slot,
                "frame_start": begin + part.at,
                "n_frames": part.stop - part.at,
                "crc32c": own,
            }
            for part, own in zip(parts, crcs.tolist(), strict=True)
        ]
        lost = {"status": QUARANTINED, "frame_start": None, "n_frames": 0, "crc32c": None}
        for position, reason in overflows.items():
            made[position] |= {**lost, "reason": reason}
        arrays = [
            pa.array([row[item.name] for row in made], item.type)
            if item.name in made[0]
            else table[item.name].cast(item.type).combine_chunks()
            for item in FIELDS
        ]
        found = pa.Table.from_arrays(arrays, schema=pa.schema(FIELDS))
        for name in self._pieces.column_names:
            found = found.append_column(table.schema.field(name), table[name])
        return found.combine_chunks()


def _use_one_thread() -> None:
    torch.set_num_threads(1)


class _SourceReader:
    """Reads and converts pieces of one source. Each layer may have a thread of its own.

    Attributes:
        may_overflow: Whether the copy cannot hold all values that the source can.
    """

    def __init__(self, source: Source, layout: Layout) -> None:
        self._backend, self._from, self._to = source.backend, source.layout, layout
        self._shards = ShardReader(source.backend, source.layout)
        self._axes = [source.layout.layers.index(layer) for layer in layout.layers]
        self._is_same_codec = source.layout.codec == layout.codec
        self.may_overflow = source.layout.codec.largest > layout.codec.largest
        has = source.layout.statistics if source.layout.keeps_pooled else ()
        self._kept: list[int] | None = None  # statistics that the copy has from the source
        if self._is_same_codec and set(layout.statistics) <= set(has):
            self._kept = [has.index(name) for name in layout.statistics]
        self._chunk = lru_cache(maxsize=_CHUNKS)(self._shards.pooled)
        self._checked: dict[int, tuple[int, int]] = {}  # the last piece that was cut, by layer

    def copy_statistics(self, part: _Part, buffer: UnitBuffer) -> None:
        """Copy the statistics of a piece, of all layers, if its values stay what they are.

        Raises:
            DamagedError: They are all that the source keeps, and have a wrong checksum; or their
                file is damaged.
        """
        if self._kept is None or not self._copies_statistics(part):
            return
        row = self._chunk(part.slot)[part.place]  # [n_statistics, n_layers, dim]
        if not self._from.keeps_frames:
            for axis in self._axes:
                if checksum(row[:, axis]) != part.crcs[axis]:
                    self._raise_damage(part, axis, self._shards.locate_pooled(part.slot))
        buffer.pooled[part.position] = row[self._kept][:, self._axes]

    def expect(self, part: _Part, axis: int) -> int:
        """Start fetching what `read` will read of a piece; return its bytes."""
        if not self._needs_frames(part):
            return 0
        n_frames, own = part.stop - part.at, self._axes[axis]
        self._shards.prefetch_coded(own, part.slot, part.start, part.start + n_frames, part.place)
        return n_frames * self._from.frame_bytes

    def read(self, part: _Part, axis: int, buffer: UnitBuffer) -> str | None:
        """Put the frames and scales of one layer of a piece into the buffer, if they are needed.

        Args:
            part: The piece.
            axis: Position on the layer axis of the copy.
            buffer: The unit.

        Returns:
            Why the piece is quarantined, if its values do not fit.

        Raises:
            DamagedError: The piece has a wrong checksum.
        """
        if not self._needs_frames(part):
            return None
        own, out = self._axes[axis], buffer.frames[axis, part.at : part.stop]
        own_scales = buffer.scales[part.position, axis]
        scales = self._shards.scales(own, part.slot, part.place)
        stored = out if self._is_same_codec else np.empty(out.shape, self._from.codec.dtype)
        self._shards.read_into(own, part.slot, part.start, [stored])
        if not part.is_whole:
            self._check_whole(part, own, scales)
        elif checksum(stored, scales) != part.crcs[own]:
            self._raise_damage(part, own, self._shards.locate(own, part.slot))
        if self._is_same_codec:
            own_scales[...] = scales
        else:
            overflow = self._convert(stored, scales, out, own_scales)
            if overflow:
                return f"layer {self._to.layers[axis]} {overflow}"
        if self._to.keeps_pooled and not self._copies_statistics(part):
            layer = slice(axis, axis + 1)
            buffer.pool(part.position, part.at, part.stop, layers=layer)
        return None

    def checksum_of(self, part: _Part, axis: int, buffer: UnitBuffer) -> int:
        """Return the checksum of one layer of a piece, which `read` has put into the buffer."""
        if self._to.keeps_frames and self._is_same_codec and part.is_whole:
            return part.crcs[self._axes[axis]]  # of the same bytes
        layer = slice(axis, axis + 1)
        return buffer.checksums(part.position, part.at, part.stop, layer)[0]

    def _copies_statistics(self, part: _Part) -> bool:
        return self._kept is not None and part.is_whole

    def _needs_frames(self, part: _Part) -> bool:
        return self._to.keeps_frames or not self._copies_statistics(part)

    def _convert(
        self, stored: Stored, scales: FloatArray, out: Stored, out_scales: FloatArray
    ) -> str | None:
        """Encode values in the format of the copy; return what does not fit, in words."""
        source, target = self._from.codec, self._to.codec
        if source.is_rounding:
            features = as_tensor(source, stored)
        else:
            features = torch.empty(stored.shape)
            decode_into(source, stored, features, scales)
        if self.may_overflow:
            low, high = (float(value) for value in torch.aminmax(features))
            if not target.fits(low, high):
                return (
                    f"reaches {max(-low, high):.3g}, more than {target.name} holds; copy with "
                    "dtype=bfloat16 or float32"
                )
        if target.n_scales:
            out_scales[...] = measure(target, features)
        for first in range(0, len(features), _BLOCK):
            block = slice(first, first + _BLOCK)
            encode_into(target, features[block], out[block], out_scales)
        return None

    def _check_whole(self, part: _Part, axis: int, scales: FloatArray) -> None:
        """Compare a piece that is cut with its checksum, before its first part is used."""
        piece = (part.slot, part.whole[0])
        if self._checked.get(axis) == piece:
            return
        crc = 0
        for first in range(*part.whole, _BLOCK):
            block = self._shards.read(axis, part.slot, first, min(first + _BLOCK, part.whole[1]))
            crc = crc32c(block.data, crc)
        if crc32c(scales.data, crc) != part.crcs[axis]:
            self._raise_damage(part, axis, self._shards.locate(axis, part.slot))
        self._checked[axis] = piece

    def _raise_damage(self, part: _Part, axis: int, path: str) -> NoReturn:
        raise DamagedError(
            f"{path}: layer {self._from.layers[axis]} of utterance {part.name!r} has a wrong "
            f"checksum; run `strata verify {self._backend} --repair`, then the command that made "
            "that store, or leave the utterance out with where="
        )

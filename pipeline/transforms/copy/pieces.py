"""From chosen utterances to the plan of a copy: pieces, and where each is in its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.store import index as index_files
from pipeline.store.format.plan import SCHEMA, Plan, make_plan, round_up_to_chunk
from pipeline.store.format.records import FIELDS
from pipeline.store.read.catalogue import IntArray
from pipeline.transforms.copy.joining import Joined
from pipeline.transforms.copy.sources import Source

PLANNED = ("id", "row", "unit", "position", "piece", "n_pieces")
"""Columns that a plan and an index have in common."""
CARRIED = ("n_samples", "source_rate_hz", "flags")
"""Columns of the index that a piece has from its source."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a copy, a row each, in the order of its plan.

    Attributes:
        plan: The plan of the copy.
        table: Columns of the index that are known beforehand: `PLANNED`, `CARRIED`, the columns of
            the dataset, and `crc32c` of the whole piece of the source, of all its layers.
        source: Source of each piece, [n].
        slot: Its slot there.
        place: Its position in the unit there.
        start: Its first frame within the slot there.
        n_frames: Its frames.
        whole_start: First frame of the piece of the source that it is, or is a part of.
        whole_frames: Frames of that piece.
    """

    plan: Plan
    table: pa.Table
    source: IntArray
    slot: IntArray
    place: IntArray
    start: IntArray
    n_frames: IntArray
    whole_start: IntArray
    whole_frames: IntArray

    @property
    def column_names(self) -> list[str]:
        """Names of the columns of the dataset."""
        reserved = {item.name for item in FIELDS}
        return [name for name in self.table.column_names if name not in reserved]


def make_pieces(
    sources: Sequence[Source], chosen: Joined, capacity: int, facts: dict[str, Any]
) -> Pieces:
    """Plan the copy of utterances.

    A piece stays a piece, unless it is longer than a unit.

    Args:
        sources: The sources.
        chosen: The utterances.
        capacity: Frames of a unit.
        facts: Facts of the plan's source.

    Raises:
        ConfigError: A piece is longer than a unit, and its source keeps no frames to be cut.
    """
    capacity = round_up_to_chunk(capacity)
    utterance, source, piece = _pieces_of(sources, chosen)
    found = {
        name: _gathered(sources, source, piece, lambda s, name=name: getattr(s.catalogue, name))
        for name in ("slot", "start", "n_frames", "place")
    }
    whole = found["n_frames"]
    _check_capacity(sources, source, whole, capacity)
    n_parts = np.maximum(1, -(-whole // capacity))
    origin = np.repeat(np.arange(len(whole)), n_parts)  # piece of a source of each new piece
    part = _counted(n_parts)
    n_frames = np.minimum(capacity, whole[origin] - part * capacity)
    owner = utterance[origin]
    n_pieces = np.bincount(owner, minlength=len(chosen))
    before = np.concatenate([[0], np.cumsum(n_frames)])[:-1]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    carried = _facts_of(sources, source, piece).take(index_files.row_numbers(origin))
    rows = {
        "id": chosen.metadata["id"].combine_chunks().take(index_files.row_numbers(owner)),
        "row": pa.array(owner),
        "n_samples": carried["n_samples"],
        "n_frames": pa.array(n_frames, pa.int32()),
        "piece": pa.array(_counted(n_pieces), pa.int32()),
        "n_pieces": pa.array(n_pieces[owner], pa.int32()),
        "piece_start": pa.array(before - before[first][owner]),
    }
    for name in ("n_bytes", "fingerprint"):
        values = _gathered(sources, source, piece, lambda s, name=name: s.planned(name))
        rows[name] = pa.array(values[origin])
    schema = pa.schema([item for item in SCHEMA if item.name in rows])
    plan = make_plan(pa.table({n: rows[n] for n in schema.names}).cast(schema), facts, capacity)
    columns = {name: plan.table[name] for name in PLANNED}
    columns |= {name: carried[name] for name in (*CARRIED, "crc32c")}
    metadata = chosen.metadata.drop_columns(["id"]).take(index_files.row_numbers(owner))
    columns |= {name: metadata[name] for name in metadata.column_names}
    return Pieces(
        plan,
        pa.table(columns).combine_chunks(),
        source=source[origin],
        slot=found["slot"][origin],
        place=found["place"][origin],
        start=found["start"][origin] + part * capacity,
        n_frames=n_frames,
        whole_start=found["start"][origin],
        whole_frames=whole[origin],
    )


def _pieces_of(sources: Sequence[Source], chosen: Joined) -> tuple[IntArray, IntArray, IntArray]:
    """Return utterance, source and piece in the catalogue of the source, of every piece."""
    first, count = np.empty(len(chosen), np.int64), np.empty(len(chosen), np.int64)
    for number, source in enumerate(sources):
        own = chosen.source == number
        starts = source.catalogue.first_piece
        at = chosen.position[own]
        first[own], count[own] = starts[at], starts[at + 1] - starts[at]
    utterance = np.repeat(np.arange(len(chosen)), count)
    return utterance, chosen.source[utterance], first[utterance] + _counted(count)


def _gathered(
    sources: Sequence[Source], source: IntArray, piece: IntArray, values: Any
) -> npt.NDArray[np.int64]:
    """Return `values(source)[piece]` of every piece."""
    out = np.empty(len(source), np.int64)
    for number, item in enumerate(sources):
        own = source == number
        out[own] = np.asarray(values(item))[piece[own]]
    return out


def _facts_of(sources: Sequence[Source], source: IntArray, piece: IntArray) -> pa.Table:
    """Return the rows of the index of every piece."""
    offsets = np.cumsum([0, *(len(item.pieces) for item in sources)])
    table = pa.concat_tables([item.pieces for item in sources])
    return table.take(index_files.row_numbers(offsets[source] + piece))


def _check_capacity(
    sources: Sequence[Source], source: IntArray, n_frames: IntArray, capacity: int
) -> None:
    for number, item in enumerate(sources):
        longest = int(n_frames[source == number].max(initial=0))
        if longest > capacity and not item.layout.keeps_frames:
            raise ConfigError(
                f"frames_per_unit={capacity} is less than the {longest:,} frames of an utterance "
                f"of {item.backend}, which keeps no frames to cut it; set at least {longest}"
            )


def _counted(counts: npt.NDArray[Any]) -> IntArray:
    """Return 0, 1, ... for each count, one after the other: [2, 3] → [0, 1, 0, 1, 2]."""
    starts = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) - np.repeat(starts, counts), np.int64)

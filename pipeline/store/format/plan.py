"""The plan: an exact cover of the dataset by units. Pure arithmetic on Arrow columns.

The plan has one row per piece of every utterance, in source order. The rows of a unit are
consecutive. No unit has more than `frames_per_unit` frames or `utterances_per_slot` utterances. The
plan is made once; after that, units are only appended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.store.format.layout import CHUNK_FRAMES, FORMAT_VERSION

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

DEFAULT_FRAMES_PER_UNIT = 59_904
"""20 minutes of 20 ms frames, 234 chunks; 1.1 GB of memory for 12 base layers."""
SMALL_FRAMES_PER_UNIT = 6_144
"""About 2 minutes: the smallest unit of a small corpus."""
SMALL_CORPUS_UNITS = 8
"""Units of a small corpus, about: enough for several workers, and little to lose in a crash."""
FRAMES_PER_POOLED_UTTERANCE = 8
"""Fewest frames per utterance of a full slot; bounds the pooled array."""
FRAMES_PER_SPARE_UTTERANCE = 512
"""Frames, 10 s, per utterance of a slot's minimal capacity: shorter ones may be appended later."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # of the source dataset
        pa.field("n_samples", pa.int64(), nullable=False),  # at the encoder's rate; 0: unreadable
        pa.field("n_frames", pa.int32(), nullable=False),  # planned, of this piece
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # within the unit
        pa.field("piece", pa.int32(), nullable=False),  # 0 .. n_pieces-1
        pa.field("n_pieces", pa.int32(), nullable=False),
        pa.field("piece_start", pa.int64(), nullable=False),  # first frame within the utterance
        pa.field("n_bytes", pa.int64(), nullable=False),  # of the encoded audio
        pa.field("fingerprint", pa.uint32(), nullable=False),  # of the encoded audio
    ]
)
_METADATA_KEY = b"strata"
NUMBERED = "labels"
"""Fact of a plan's source: the generation of labels with which it was written, if there is one."""


@dataclass(frozen=True)
class Plan:
    """The unit and position of every utterance.

    Attributes:
        table: Rows of `SCHEMA`, sorted by unit and position.
        frames_per_unit: Capacity of a unit in frames.
        utterances_per_slot: Capacity of a unit in utterances.
        source: Fingerprint of the source that was planned, and more facts of it.
    """

    table: pa.Table
    frames_per_unit: int
    utterances_per_slot: int
    source: dict[str, Any]

    @cached_property
    def unit_offsets(self) -> IntArray:
        """First row of each unit, then the number of rows: [n_units + 1]."""
        units = self.table["unit"].to_numpy()
        n_units = int(units[-1]) + 1 if len(units) else 0
        return np.searchsorted(units, np.arange(n_units + 1))

    @cached_property
    def first_records(self) -> pa.Table:
        """The first record of each utterance, by number: rows of `SCHEMA`."""
        if np.array_equal(self.table["row"].to_numpy(), np.arange(len(self.table))):
            return self.table.combine_chunks()  # nothing is in pieces or was planned again
        first_pieces = self.table.filter(pc.equal(self.table["piece"], 0)).sort_by(
            [("row", "ascending"), ("unit", "ascending")]
        )
        is_first = np.diff(first_pieces["row"].to_numpy(), prepend=-1) != 0  # not planned again
        return first_pieces.filter(pa.array(is_first)).combine_chunks()

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.unit_offsets) - 1

    @property
    def n_utterances(self) -> int:
        """Number of distinct utterances, without further pieces and deferred rows."""
        planned = np.zeros(self.n_numbers, bool)
        planned[self.table["row"].to_numpy()] = True
        return int(np.count_nonzero(planned))

    @property
    def n_frames(self) -> int:
        """Number of planned frames."""
        return int(pc.sum(self.table["n_frames"]).as_py() or 0)

    def unit_rows(self, unit: int) -> pa.Table:
        """Return the rows of one unit, in order of position."""
        start, stop = self.unit_offsets[unit], self.unit_offsets[unit + 1]
        return self.table.slice(start, stop - start).combine_chunks()

    def audio_seconds(self, sample_rate_hz: int) -> float:
        """Return the planned duration of the audio, in seconds."""
        longest = np.zeros(self.n_numbers, np.int64)  # pieces and deferred rows repeat
        np.maximum.at(longest, self.table["row"].to_numpy(), self.table["n_samples"].to_numpy())
        return float(longest.sum()) / sample_rate_hz

    @property
    def n_numbers(self) -> int:
        """The number after the last one of an utterance."""
        return int(pc.max(self.table["row"]).as_py() or 0) + 1

    def restricted_to(self, rows: pa.Table) -> Plan:
        """Return a plan of some of the rows, to count their utterances, frames and seconds."""
        return Plan(rows, self.frames_per_unit, self.utterances_per_slot, self.source)

    def extended(self, rows: pa.Table) -> Plan:
        """Return this plan with units for further rows appended; its own units do not change.

        Args:
            rows: `SCHEMA` without unit and position.
        """
        unit, position = cover(
            rows["n_frames"].to_numpy(), self.frames_per_unit, self.utterances_per_slot
        )
        table = pa.concat_tables([self.table, _with_cover(rows, unit + self.n_units, position)])
        return Plan(table, self.frames_per_unit, self.utterances_per_slot, self.source)

    def to_arrow(self) -> pa.Table:
        """Return the table of plan.parquet; the other attributes are in its schema metadata."""
        metadata = {
            "format_version": FORMAT_VERSION,
            "frames_per_unit": self.frames_per_unit,
            "utterances_per_slot": self.utterances_per_slot,
            "source": self.source,
        }
        return self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Plan:
        """Return the plan of a table that `to_arrow` made.

        Raises:
            StoreError: The table is not a plan, or one of another format version.
        """
        metadata = table.schema.metadata or {}
        if _METADATA_KEY not in metadata or table.column_names != SCHEMA.names:
            raise StoreError("plan.parquet was not written by strata; move it away to plan again")
        facts = json.loads(metadata[_METADATA_KEY])
        if facts["format_version"] != FORMAT_VERSION:
            raise StoreError(
                f"plan.parquet has format version {facts['format_version']}; "
                f"this strata reads version {FORMAT_VERSION}"
            )
        plain = table.replace_schema_metadata(None).cast(SCHEMA)
        return cls(plain, facts["frames_per_unit"], facts["utterances_per_slot"], facts["source"])


def make_plan(rows: pa.Table, source: dict[str, Any], frames_per_unit: int | None = None) -> Plan:
    """Cover the rows of a dataset by units.

    Args:
        rows: `SCHEMA` without unit and position, in source order.
        source: Fingerprint of the source, stored with the plan.
        frames_per_unit: Frames per unit, rounded up to whole chunks; None chooses it from the
            corpus: about 20 minutes, less for a small corpus or where that fills shards better.

    Returns:
        The plan. Its `utterances_per_slot` is that of the fullest unit, and at least one per
        `FRAMES_PER_SPARE_UTTERANCE` frames. It can never grow, so without this minimum a corpus of
        20-minute recordings would have a capacity of one or two, and 10,000 clips of 5 s appended
        later would need 5,000 slots of 1.1 GB instead of 86. The minimum costs at most 1/256 of a
        slot, and nothing where utterances are shorter than 10 s.
    """
    n_frames = rows["n_frames"].to_numpy()
    if frames_per_unit is None:
        capacity = choose_frames_per_unit(n_frames)
    else:
        capacity = round_up_to_chunk(frames_per_unit)
    most = max(1, capacity // FRAMES_PER_POOLED_UTTERANCE)
    unit, position = cover(n_frames, capacity, most)
    table = _with_cover(rows, unit, position)
    fullest = int(position.max()) + 1 if len(position) else 1
    return Plan(table, capacity, max(fullest, capacity // FRAMES_PER_SPARE_UTTERANCE), source)


def cover(
    n_frames: npt.NDArray[Any], frames_per_unit: int, utterances_per_unit: int
) -> tuple[Int32Array, Int32Array]:
    """Assign consecutive utterances to units, greedily and in order.

    Args:
        n_frames: Frames of each utterance, [n_utterances]. One that is longer than a unit counts
            as 0 frames, because it will be quarantined.
        frames_per_unit: Capacity of a unit in frames.
        utterances_per_unit: Capacity of a unit in utterances.

    Returns:
        Unit and position of each utterance, two int32 arrays [n_utterances]. No unit is empty, and
        the utterances of a unit are consecutive.
    """
    n = len(n_frames)
    starts = np.array(_starts(n_frames, frames_per_unit, utterances_per_unit), np.int32)
    sizes = np.diff(starts, append=np.int32(n))
    unit = np.repeat(np.arange(len(starts), dtype=np.int32), sizes)
    position = np.arange(n, dtype=np.int32) - np.repeat(starts, sizes)
    return unit, position


def _starts(
    n_frames: npt.NDArray[Any], frames_per_unit: int, utterances_per_unit: int
) -> list[int]:
    """Return the first utterance of each unit; see `cover`."""
    sizes = np.where(n_frames > frames_per_unit, 0, n_frames)
    ends = np.cumsum(sizes, dtype=np.int64)
    starts: list[int] = []
    start = before = 0
    while start < len(ends):
        starts.append(start)
        stop = int(np.searchsorted(ends, before + frames_per_unit, side="right"))
        start = min(stop, start + utterances_per_unit)
        before = int(ends[start - 1])
    return starts


def choose_frames_per_unit(n_frames: npt.NDArray[Any]) -> int:
    """Choose the capacity of a unit in frames.

    First the number of units is chosen. A unit has at most 20 minutes. A corpus of less than eight
    such units gets about eight of at least two minutes. An utterance of up to 20 minutes must fit
    into one unit. The capacity is then the smallest multiple of 256 frames for which that number of
    units is enough, so that shards are nearly full. If a recording is longer than 20 minutes, units
    have the full 20 minutes.
    """
    total, longest = int(n_frames.sum()), int(n_frames.max(initial=1))
    if longest > DEFAULT_FRAMES_PER_UNIT:
        return DEFAULT_FRAMES_PER_UNIT
    by_default = _units_needed(n_frames, DEFAULT_FRAMES_PER_UNIT)
    n_units = max(1, by_default, min(SMALL_CORPUS_UNITS, total // SMALL_FRAMES_PER_UNIT))
    low = max(round_up_to_chunk(longest), round_up_to_chunk(-(-total // n_units)))
    high = max(low, DEFAULT_FRAMES_PER_UNIT)
    while low < high:
        middle = round_up_to_chunk((low + high) // 2)
        if middle >= high:
            middle = high - CHUNK_FRAMES
        if _units_needed(n_frames, middle) <= n_units:
            high = middle
        else:
            low = middle + CHUNK_FRAMES
    return high


def make_batches(n_frames: npt.NDArray[Any], max_batch_frames: int) -> list[range]:
    """Cut the clips of a unit into batches. Depends on the plan alone, so resume repeats it.

    Args:
        n_frames: Frames of each clip of a unit, [n].
        max_batch_frames: Bound on the frames of a batch. A clip that exceeds it is a batch of its
            own.

    Returns:
        Consecutive clips of each batch, as indices into `n_frames`.
    """
    batches: list[range] = []
    start = total = 0
    for i, count in enumerate(np.asarray(n_frames).tolist()):
        if i > start and total + count > max_batch_frames:
            batches.append(range(start, i))
            start, total = i, 0
        total += count
    if start < len(n_frames):
        batches.append(range(start, len(n_frames)))
    return batches


def round_up_to_chunk(n_frames: int) -> int:
    """Return the next multiple of 256 frames, at least 256."""
    return max(1, -(-n_frames // CHUNK_FRAMES)) * CHUNK_FRAMES


def _units_needed(n_frames: npt.NDArray[Any], capacity: int) -> int:
    return len(_starts(n_frames, capacity, max(1, capacity // FRAMES_PER_POOLED_UTTERANCE)))


def _with_cover(rows: pa.Table, unit: Int32Array, position: Int32Array) -> pa.Table:
    columns = {name: rows[name] for name in rows.column_names}
    columns["unit"] = pa.array(unit, pa.int32())
    columns["position"] = pa.array(position, pa.int32())
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)

"""Rows of the index: the record of each utterance of a committed unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

OK = "ok"
QUARANTINED = "quarantined"
DEFERRED = "deferred"
DROPPED = "dropped"
"""Of an utterance that `drop` has removed; its id is a tombstone, and it has no columns."""

FLAG_PADDED = "padded"  # shorter than the receptive field: zero-padded to one frame
FLAG_WINDOWED = "windowed"  # longer than max_window_s: encoded in overlapping windows
FLAG_TRUNCATED = "truncated"  # the file ends before its stated end
FLAG_LONGER_THAN_HEADER = "longer_than_header"  # the file goes on after the end of its header
FLAG_LENGTH_UNVERIFIED = "length_unverified"  # nothing in the file states its length, to compare
FLAG_DAMAGED = "damaged"  # the decoder left out or muted damaged parts
FLAG_SILENT = "silent"  # every sample is zero
FLAG_CANCELLED = "cancelled"  # the channels cancel in their mean
FLAG_FP32 = "fp32"  # its batch was out of range in the reduced precision: encoded again in fp32
AUDIO_FLAGS = frozenset(
    (
        FLAG_TRUNCATED,
        FLAG_LONGER_THAN_HEADER,
        FLAG_LENGTH_UNVERIFIED,
        FLAG_DAMAGED,
        FLAG_SILENT,
        FLAG_CANCELLED,
    )
)
"""Flags of the sound itself, which summaries count."""

FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
    pa.field("unit", pa.int32(), nullable=False),
    pa.field("position", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("piece", pa.int32(), nullable=False),
    pa.field("n_pieces", pa.int32(), nullable=False),
    pa.field("slot", pa.int32(), nullable=False),
    pa.field("frame_start", pa.int64()),  # on the frame axis of the store
    pa.field("n_frames", pa.int32(), nullable=False),
    pa.field("n_samples", pa.int64(), nullable=False),  # decoded, at the encoder's rate
    pa.field("source_rate_hz", pa.int32()),
    pa.field("flags", pa.list_(pa.string()), nullable=False),
    pa.field("crc32c", pa.list_(pa.uint32())),  # of the stored bytes, one per layer
)
RESERVED_NAMES = frozenset(item.name for item in FIELDS)
"""Names that columns of a dataset must not have."""


@dataclass(frozen=True)
class Record:
    """One utterance (or one piece of a long one) as committed with its unit.

    Attributes:
        id: The utterance's id.
        row: Its row in the source dataset.
        position: Its position in the unit, and in the slot's pooled chunk.
        status: ok, quarantined, dropped, or deferred to a later unit (decoded longer than planned,
            and the slot was full).
        reason: Reason for quarantine or deferral.
        piece: Number of this piece, from 0.
        n_pieces: Number of pieces of the utterance.
        frame_start: First frame on the frame axis of the store; None unless ok.
        n_frames: Frames of this piece; 0 unless ok.
        n_samples: Decoded samples of the whole utterance at the encoder's rate; 0 if it was not
            decoded.
        source_rate_hz: Sample rate of the source audio; None if it was not read.
        flags: `FLAG_*` values that apply.
        crc32c: Checksum of the stored bytes `[n_frames, dim]` of each layer; None unless ok.
    """

    id: str
    row: int
    position: int
    status: str
    reason: str | None = None
    piece: int = 0
    n_pieces: int = 1
    frame_start: int | None = None
    n_frames: int = 0
    n_samples: int = 0
    source_rate_hz: int | None = None
    flags: tuple[str, ...] = field(default=())
    crc32c: tuple[int, ...] | None = None


def records_table(records: Sequence[Record], unit: int, slot: int, metadata: pa.Table) -> pa.Table:
    """Return the index of one unit: its records, and the carried columns.

    Args:
        records: In order of position.
        unit: Number of the unit.
        slot: Slot that holds its frames.
        metadata: Carried columns of the same utterances, in the same order.
    """
    values: dict[str, list[Any]] = {
        item.name: [getattr(record, item.name) for record in records]
        for item in FIELDS
        if item.name not in ("unit", "slot")
    }
    values["unit"] = [unit] * len(records)
    values["slot"] = [slot] * len(records)
    columns = [pa.array(values[item.name], item.type) for item in FIELDS]
    table = pa.Table.from_arrays(columns, schema=pa.schema(FIELDS))
    for item in metadata.schema:
        table = table.append_column(item, metadata[item.name])
    return table.combine_chunks()

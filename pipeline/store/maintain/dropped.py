"""Verification that nothing is left of dropped utterances in a unit that has others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.layout import POOLED, SCALE
from pipeline.store.format.records import DROPPED, RESERVED_NAMES
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.read.shards import ShardReader

Row = dict[str, Any]
_CLEARED: dict[str, Any] = {
    "crc32c": None,
    "reason": None,
    "source_rate_hz": None,
    "n_samples": 0,
    "flags": [],
}
"""What the index has of a dropped utterance."""


def check_tombstones(table: pa.Table) -> Iterator[str]:
    """Check that the dropped utterances of a unit are those with a tombstone, and have no values.

    Args:
        table: Index rows of the unit, with the columns of the dataset.
    """
    columns = [name for name in table.column_names if name not in RESERVED_NAMES]
    is_dropped = pc.equal(table["status"], DROPPED).to_numpy(zero_copy_only=False)
    differs = is_dropped != are_tombstones(table["id"])
    for name in table["id"].filter(pa.array(differs)).to_pylist():
        yield f"utterance {name!r} has a tombstone or the status dropped, but not both"
    for row in table.filter(pa.array(is_dropped)).to_pylist():
        left = [name for name, value in _CLEARED.items() if row[name] != value]
        left += [name for name in columns if row[name] is not None]
        if left:
            yield f"{', '.join(left)} of the dropped utterance {row['id']!r} are still there"


def check_cleared(
    shards: ShardReader,
    slot: int,
    dropped: Sequence[Row],
    pooled: FloatArray | None,
    scales: FloatArray | None,
) -> Iterator[str]:
    """Check that frames of dropped utterances are zero, and their statistics and scales NaN.

    Args:
        shards: Stored values of the store.
        slot: A slot that has other utterances.
        dropped: Index rows of its dropped utterances; those with `frame_start` have a place.
        pooled: Statistics of the slot, if any are kept.
        scales: Scales of the slot, if there are any.
    """
    layout, first = shards.layout, shards.layout.slot_start(slot)
    for row in dropped:
        for array, values in ((POOLED, pooled), (SCALE, scales)):
            if values is not None and not np.isnan(values[row["position"]]).all():
                key = layout.first_object(array, slot)[0]
                yield f"values of the dropped utterance {row['id']!r} are still in {key}"
        if row["frame_start"] is None or not layout.keeps_frames:
            continue
        start = row["frame_start"] - first
        for axis in layout.kept_axes:
            frames = shards.read(axis, slot, start, start + row["n_frames"])
            if np.ascontiguousarray(frames).view(np.uint8).any():
                yield (
                    f"frames of the dropped utterance {row['id']!r} are still in "
                    f"{layout.shard_key(axis, slot)}"
                )

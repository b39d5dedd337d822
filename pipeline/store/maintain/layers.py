"""Checks of one layer of a unit: its checksums, and that there is nothing between utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.format.codecs import FloatArray, Stored, checksum
from pipeline.store.format.layout import Layout
from pipeline.store.format.pooling import pool
from pipeline.store.read.shards import ShardReader

Row = dict[str, Any]
_READ_BYTES = 8 << 20  # of adjacent utterances that are read together, about
_NO_SCALES = np.empty((0, 0), np.float32)


def check_layer(
    shards: ShardReader,
    layout: Layout,
    slot: int,
    axis: int,
    done: Sequence[Row],
    taken: npt.NDArray[np.bool_],
    scales: FloatArray | None,
) -> tuple[list[str], list[FloatArray]]:
    """Read one shard.

    Args:
        shards: Reads the shard.
        layout: Shapes of the store.
        slot: The slot.
        axis: Position on the layer axis.
        done: Index rows of the utterances with features.
        taken: Whether a frame of the slot is one of an utterance, [frames_per_unit].
        scales: Scales of the slot, if there are any.

    Returns:
        Its problems, and the statistics of each utterance.
    """
    codec = layout.codec
    layer, key = layout.layers[axis], layout.shard_key(axis, slot)
    where = key if scales is None else f"{key} or {layout.scale_key(slot)}"
    problems, statistics = [], []
    for row, stored in _frames(shards, layout, slot, axis, done):
        own = _NO_SCALES if scales is None else scales[row["position"], axis]
        if checksum(stored, own) != row["crc32c"][axis]:
            problems.append(
                f"layer {layer} of utterance {row['id']!r} has a wrong checksum ({where})"
            )
        found = pool(codec, stored[None], own[None], layout.statistics)
        statistics.append(found[:, 0])
    edges = np.flatnonzero(np.diff(taken, prepend=True, append=True))
    for start, stop in edges.reshape(-1, 2).tolist():
        if not codec.is_fill(shards.read(axis, slot, start, stop)):
            problems.append(f"layer {layer} has values in frames without an utterance ({key})")
    return problems, statistics


def _frames(
    shards: ShardReader, layout: Layout, slot: int, axis: int, done: Sequence[Row]
) -> Iterator[tuple[Row, Stored]]:
    """Yield the stored frames of each utterance; those that are adjacent are one read."""
    first = 0
    while first < len(done):
        start = stop = done[first]["frame_start"]
        last = first
        while last < len(done) and done[last]["frame_start"] == stop:
            if last > first and (stop - start) * layout.frame_bytes >= _READ_BYTES:
                break
            stop += done[last]["n_frames"]
            last += 1
        rows = done[first:last]
        parts = [np.empty((row["n_frames"], layout.dim), layout.codec.dtype) for row in rows]
        shards.read_into(axis, slot, start - layout.slot_start(slot), parts)
        yield from zip(rows, parts, strict=True)
        first = last

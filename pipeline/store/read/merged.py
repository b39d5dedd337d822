"""Merged reads: frames of many utterances, in the order of the disk, into given arrays.

Reads that the system can serve from memory are served first. All others are requested before the
first one is waited for, so a disk works on many at a time: all layers of an utterance, or a
shuffled batch, take about two thirds of the time of single reads. Values that are stored in another
form than they are returned in are read by blocks and decoded while they are in the CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch

from pipeline.store.read.catalogue import Catalogue, Span
from pipeline.store.read.shards import Matrix, ShardReader
from pipeline.store.tensors import decode_into

Cut = tuple[int, int, Matrix]
"""Position of an utterance, first frame, and destination [n_layers, n_frames, dim] of the codec's
`value_dtype`, each layer contiguous."""

_Read = tuple[int, int, int, list[Matrix]]
"""Position on the layer axis, slot, first frame within it, and destinations, filled in order."""
_BLOCK = 512  # frames that are decoded at a time
_MOST_CACHED = 4 << 20  # bytes that are in the CPU's cache when the last of them is read
_MAX_PENDING = 64  # reads; more do not make a disk faster

Item = TypeVar("Item")


def read_mapped(
    shards: ShardReader,
    catalogue: Catalogue,
    position: int,
    axis: int,
    start: int | None,
    stop: int | None,
) -> Matrix | None:
    """Read frames `start:stop` of an utterance, one layer, straight from a map.

    Copying one second takes 2 microseconds, so each call of a function in between would be felt.

    Returns:
        [1, n_frames, dim]; None if the frames are not those of one piece, are not stored as they
        are returned, or cannot be copied from a map: `read_cut` reads them, or says what is wrong.

    Raises:
        DamagedError: A shard is missing.
    """
    first_piece, slots, starts, counts, _, _ = catalogue.views
    piece = first_piece[position]
    if start is None:
        start = 0
    if stop is None:
        stop = counts[piece]
    if not 0 <= start < stop <= counts[piece] or first_piece[position + 1] != piece + 1:
        return None
    shard = shards.reader(axis, slots[piece])
    if shard is None or shard.mapped is None or not shards.is_direct:
        return None
    out = np.empty((1, stop - start, shards.dim), shards.dtype)
    offset = (starts[piece] + start) * shards.frame_bytes
    return out if shard.mapped.read_into((out,), offset, False) else None


def read_cut(shards: ShardReader, catalogue: Catalogue, cut: Cut, axes: Sequence[int]) -> None:
    """Fill the destination of one cut, as `gather` does, with less overhead.

    Raises:
        DamagedError: A shard is missing or damaged.
    """
    position, first, where = cut
    spans = catalogue.spans(position, first, first + where.shape[1])
    if len(spans) != 1 or len(axes) != 1:
        gather([(shards, [cut])], catalogue, axes)
    elif shards.is_direct:
        slot, start, _, _ = spans[0]
        shards.read_into(axes[0], slot, start, (where[0],))
    else:
        _decode_span(shards, axes[0], spans[0], where[0])


def gather(
    sources: Sequence[tuple[ShardReader, Iterable[Cut]]],
    catalogue: Catalogue,
    axes: Sequence[int],
) -> None:
    """Fill the destinations of cuts.

    Reads are sorted by store, layer and place on disk; adjacent utterances are one read.

    Args:
        sources: The shards of each store, and what to read from it, with the destinations.
        catalogue: Utterances of all of them.
        axes: Position on the layer axis of each layer of the destinations.

    Raises:
        DamagedError: A shard is missing or damaged.
    """
    reads: list[tuple[ShardReader, _Read]] = []
    coded: list[tuple[ShardReader, int, Span, Matrix]] = []
    for shards, cuts in sources:
        parts = _parts(catalogue, cuts)
        if shards.is_direct:
            runs = _runs(parts)
            reads += [
                (shards, (axis, slot, start, [part[i] for part in run]))
                for i, axis in enumerate(axes)
                for (slot, start), run in runs
            ]
        else:
            coded += [
                (shards, axis, span, part[i]) for i, axis in enumerate(axes) for span, part in parts
            ]
    _read(reads)
    _decode(coded)


def _parts(catalogue: Catalogue, cuts: Iterable[Cut]) -> list[tuple[Span, Matrix]]:
    """Return the spans of cuts, by place on disk, and what part of a destination each fills."""
    found: list[tuple[Span, Matrix]] = []
    for position, first, where in cuts:
        at = 0
        for span in catalogue.spans(position, first, first + where.shape[1]):
            after = at + span[2] - span[1]
            found.append((span, where[:, at:after]))
            at = after
    found.sort(key=_place)
    return found


def _runs(parts: Sequence[tuple[Span, Matrix]]) -> list[tuple[tuple[int, int], list[Matrix]]]:
    """Return slot and first frame of runs of adjacent frames, and the parts that each fills."""
    runs: list[tuple[tuple[int, int], list[Matrix]]] = []
    last = (-1, -1)
    for (slot, start, stop, _), part in parts:
        if (slot, start) == last:
            runs[-1][1].append(part)
        else:
            runs.append(((slot, start), [part]))
        last = (slot, stop)
    return runs


def _read(reads: Sequence[tuple[ShardReader, _Read]]) -> None:
    n_bytes = sum(part.nbytes for _, (*_, parts) in reads for part in parts)
    streams = n_bytes > _MOST_CACHED
    pending: list[tuple[ShardReader, _Read]] = []
    for some in [*_groups(reads), []]:  # the next ones are requested before some are waited for
        missing = [
            (shards, read) for shards, read in some if not shards.read_cached(*read, streams)
        ]
        for shards, read in pending:
            shards.read_into(*read, streams)
        pending = missing


def _decode(spans: Sequence[tuple[ShardReader, int, Span, Matrix]]) -> None:
    """Read and decode spans; the storage fetches the next ones meanwhile."""
    streams = sum(part.nbytes for *_, part in spans) > _MOST_CACHED
    groups = [[], *_groups(spans)]
    for some, after in zip(groups, [*groups[1:], []], strict=True):
        for shards, axis, span, _ in after if some else after[1:]:  # the first requests its own
            shards.prefetch_coded(axis, *span)
        for shards, axis, span, part in some:
            _decode_span(shards, axis, span, part, streams)


def _groups(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divide reads so that of two groups as many are pending as may be."""
    size = _MAX_PENDING // 2
    return [items[first : first + size] for first in range(0, len(items), size)]


def _decode_span(
    shards: ShardReader, axis: int, span: Span, out: Matrix, streams: bool = False
) -> None:
    """Read and decode one layer of a span into an array of values, [n_frames, dim]."""
    slot, start, stop, position = span
    codec = shards.layout.codec
    scales = shards.scales(axis, slot, position)
    if shards.read_decoded(axis, span, scales, out, streams):
        return
    shards.prefetch_coded(axis, slot, start, stop, position)
    stored = np.empty((min(_BLOCK, stop - start), out.shape[1]), codec.dtype)
    values = torch.from_numpy(out)
    for first in range(start, stop, _BLOCK):
        block = stored[: stop - first]
        shards.read_into(axis, slot, first, [block])
        decode_into(codec, block, values[first - start :][: len(block)], scales)


def _place(found: tuple[Span, Matrix]) -> Span:
    return found[0]

"""Merged reads: frames of many utterances, in the order of the disk, into given arrays.

Reads that the system can serve from memory are served first. All others are requested before the
first one is waited for, so a disk works on many at a time: all layers of an utterance, or a
shuffled batch, take about two thirds of the time of single reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.store.read.catalogue import Catalogue, Span
from pipeline.store.read.shards import Matrix, ShardReader

Cut = tuple[int, int, Matrix]
"""Position of an utterance, first frame, and destination [n_layers, n_frames, dim] of the codec's
dtype, each layer contiguous."""

_Read = tuple[int, int, int, list[Matrix]]
"""Position on the layer axis, slot, first frame within it, and destinations, filled in order."""
_MAX_PENDING = 64  # reads; more do not make a disk faster


def read_cut(shards: ShardReader, catalogue: Catalogue, cut: Cut, axes: Sequence[int]) -> None:
    """Fill the destination of one cut, as `gather` does, with less overhead.

    Reading one second takes a few microseconds, so the Python code around it matters.

    Raises:
        DamagedError: A shard is missing or damaged.
    """
    position, first, where = cut
    spans = catalogue.spans(position, first, first + where.shape[1])
    if len(spans) == len(axes) == 1:
        slot, start, _ = spans[0]
        shards.read_into(axes[0], slot, start, [where[0]])
    else:
        gather(shards, catalogue, [cut], axes)


def gather(
    shards: ShardReader, catalogue: Catalogue, cuts: Iterable[Cut], axes: Sequence[int]
) -> None:
    """Fill the destinations of `cuts`.

    Reads are sorted by layer and place on disk; adjacent utterances are one read.

    Args:
        shards: Shards of the store.
        catalogue: Utterances of the store.
        cuts: What to read, and the destinations.
        axes: Position on the layer axis of each layer of the destinations.

    Raises:
        DamagedError: A shard is missing or damaged.
    """
    runs = _runs(catalogue, cuts)
    reads = [
        (axis, slot, start, [part[i] for part in parts])
        for i, axis in enumerate(axes)
        for (slot, start, _), parts in runs
    ]
    _read(shards, reads)


def _runs(catalogue: Catalogue, cuts: Iterable[Cut]) -> list[tuple[Span, list[Matrix]]]:
    """Return runs of adjacent frames, and the parts of the destinations that each fills."""
    found: list[tuple[Span, Matrix]] = []
    for position, first, where in cuts:
        at = 0
        for span in catalogue.spans(position, first, first + where.shape[1]):
            after = at + span[2] - span[1]
            found.append((span, where[:, at:after]))
            at = after
    found.sort(key=_place)
    runs: list[tuple[Span, list[Matrix]]] = []
    last = (-1, -1)
    for (slot, start, stop), part in found:
        if (slot, start) == last:
            (_, first, _), parts = runs[-1]
            parts.append(part)
            runs[-1] = ((slot, first, stop), parts)
        else:
            runs.append(((slot, start, stop), [part]))
        last = (slot, stop)
    return runs


def _read(shards: ShardReader, reads: Sequence[_Read]) -> None:
    for first in range(0, len(reads), _MAX_PENDING):
        some = reads[first : first + _MAX_PENDING]
        missing = [read for read in some if not shards.read_cached(*read)]
        for read in missing:
            shards.read_into(*read)


def _place(found: tuple[Span, Matrix]) -> Span:
    return found[0]

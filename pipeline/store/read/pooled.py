"""Pooled statistics of utterances, from those of their pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pipeline.errors import StoreError
from pipeline.objects.parallel import run_parallel
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.pooling import MEAN, STATISTICS, STD, pool
from pipeline.store.read.catalogue import Catalogue
from pipeline.store.read.shards import ShardReader


def read_pooled(
    shards: ShardReader,
    catalogue: Catalogue,
    axes: Sequence[int],
    statistic: str,
    out: FloatArray,
) -> None:
    """Read a statistic over the frames of every utterance; the chunk of a slot is read once.

    A statistic that is not stored is computed from the frames. Means and deviations of an utterance
    in several pieces are those of its pieces weighted by their frames, in float64.

    Args:
        shards: Stored values.
        catalogue: Utterances of the store; those of other stores are skipped.
        axes: Positions on the layer axis.
        statistic: Of `STATISTICS`.
        out: Destination, float32 [n_utterances, n_layers, dim].

    Raises:
        StoreError: The statistic is unknown, or neither it nor the frames are kept.
        DamagedError: A chunk or a shard is missing or damaged.
    """
    if statistic not in STATISTICS:
        raise StoreError(f"no statistic {statistic!r}; there are {', '.join(STATISTICS)}")
    n_pieces = np.diff(catalogue.first_piece)
    owner = np.repeat(np.arange(len(catalogue)), n_pieces)
    whole = n_pieces[owner] == 1
    names = (statistic, MEAN) if statistic == STD and not whole.all() else (statistic,)
    own = catalogue.pieces_of(shards.place.number)
    order = own[np.argsort(catalogue.slot[own], kind="stable")]
    bounds = np.flatnonzero(np.diff(catalogue.slot[order], prepend=-1, append=-1))
    long: dict[int, list[FloatArray]] = {}
    of_slots = [order[first:last] for first, last in pairwise(bounds)]
    for start in range(0, len(of_slots), shards.parallel_reads):
        some = of_slots[start : start + shards.parallel_reads]
        read = run_parallel(
            lambda pieces: _of_pieces(shards, catalogue, pieces, axes, names), some, len(some)
        )
        for pieces, found in zip(some, read, strict=True):
            out[owner[pieces]] = found[0]  # utterances in several pieces are replaced below
            for i in np.flatnonzero(~whole[pieces]).tolist():
                long.setdefault(int(pieces[i]), [values[i] for values in found])
    for utterance in np.unique(owner[np.array(list(long), np.int64)]).tolist():
        pieces = np.arange(*catalogue.first_piece[utterance : utterance + 2])
        values = [np.stack([long[p][k] for p in pieces.tolist()]) for k in range(len(names))]
        out[utterance] = _joined(statistic, values, catalogue.n_frames[pieces])


def _of_pieces(
    shards: ShardReader,
    catalogue: Catalogue,
    pieces: np.ndarray,
    axes: Sequence[int],
    names: Sequence[str],
) -> list[FloatArray]:
    """Return statistics of pieces of one slot, each [n_pieces, n_layers, dim]."""
    layout, slot = shards.layout, int(catalogue.slot[pieces[0]])
    if layout.keeps_pooled and set(names) <= set(layout.statistics):
        chunk = shards.pooled(slot)
        kept = [layout.statistics.index(name) for name in names]
        return [chunk[catalogue.place[pieces], k][:, axes] for k in kept]
    if not layout.keeps_frames:
        raise StoreError(
            f"store {shards.name} keeps neither the statistic {names[0]} nor frames, but "
            f"{', '.join(layout.statistics)}; extract into another store= with "
            f"extract.pooling=[{','.join((*layout.statistics, names[0]))}]"
        )
    out = np.empty((len(names), len(pieces), len(axes), layout.dim), np.float32)
    for i, piece in enumerate(pieces.tolist()):
        start, place = int(catalogue.start[piece]), int(catalogue.place[piece])
        stop = start + int(catalogue.n_frames[piece])
        for k, axis in enumerate(axes):
            stored = shards.read(axis, slot, start, stop)
            scales = shards.scales(axis, slot, place)
            out[:, i, k] = pool(layout.codec, stored[None], scales[None], names)[:, 0]
    return list(out)


def _joined(statistic: str, values: Sequence[FloatArray], n_frames: np.ndarray) -> FloatArray:
    """Return a statistic of an utterance: those of its pieces [n_pieces, n_layers, dim], joined."""
    if statistic == "max":
        return np.asarray(values[0].max(axis=0))
    if statistic in ("first", "last"):
        return np.asarray(values[0][0 if statistic == "first" else -1])
    shares = (n_frames / n_frames.sum())[:, None, None]
    if statistic == MEAN:
        total = (values[0].astype(np.float64) * n_frames[:, None, None]).sum(axis=0)
        return np.asarray(total / n_frames.sum(), np.float32)
    deviations, means = (item.astype(np.float64) for item in values)
    mean = (means * shares).sum(axis=0)
    variance = ((np.square(deviations) + np.square(means - mean)) * shares).sum(axis=0)
    return np.asarray(np.sqrt(variance), np.float32)

"""Pooled means of utterances, from the means of their pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.store.read.catalogue import Catalogue
from pipeline.store.read.shards import ShardReader


def read_pooled(
    shards: ShardReader, catalogue: Catalogue, axes: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return the mean over frames of every utterance; the chunk of each slot is read once.

    The mean of an utterance in several pieces is the mean of its pieces weighted by their frames,
    in float64.

    Args:
        shards: Shards of the store.
        catalogue: Utterances of the store.
        axes: Positions on the layer axis.

    Returns:
        float32 [n_utterances, n_layers, dim].

    Raises:
        DamagedError: A chunk is missing or damaged.
    """
    n_pieces = np.diff(catalogue.first_piece)
    owner = np.repeat(np.arange(len(catalogue)), n_pieces)
    whole = n_pieces[owner] == 1
    order = np.argsort(catalogue.slot, kind="stable")
    bounds = np.flatnonzero(np.diff(catalogue.slot[order], prepend=-1, append=-1))
    out = np.empty((len(catalogue), len(axes), shards.layout.dim), np.float32)
    long: dict[int, npt.NDArray[np.float64]] = {}
    for first, last in pairwise(bounds):
        pieces = order[first:last]
        chunk = shards.pooled(int(catalogue.slot[pieces[0]]))
        single = pieces[whole[pieces]]
        out[owner[single]] = chunk[catalogue.place[single]][:, axes]
        for piece in pieces[~whole[pieces]]:
            mean = chunk[catalogue.place[piece], axes].astype(np.float64)
            utterance = int(owner[piece])
            total = mean * int(catalogue.n_frames[piece])
            long[utterance] = long[utterance] + total if utterance in long else total
    for utterance, total in long.items():
        out[utterance] = total / catalogue.frame_counts[utterance]
    return out

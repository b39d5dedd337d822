"""Errors of ABX, from the distances of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.probing.abx.cells import Block, Items
from pipeline.probing.abx.warping import Float32, IntArray, block_distances
from pipeline.probing.evaluation import Evaluation, FloatArray

_CELLS_PER_CHUNK = 1 << 22
_BLOCKS_PER_CHUNK = 4096


@dataclass(frozen=True)
class CellIndex:
    """Cells whose errors are reported: averaged over contexts, in a fixed order.

    Attributes:
        pair: Number of the ordered pair of classes of each cell, int64 [n_cells], ascending.
        speakers: Speaker of A and B, and of X, int64 [n_cells, 2]; ascending for each pair.
        of_block: Cell of each error of the blocks, block after block, int64 [n_errors]. A cell is
            the mean of its errors, which are those of different contexts.
        n_pairs: Number of pairs of classes.
    """

    pair: IntArray
    speakers: IntArray
    of_block: IntArray
    n_pairs: int

    @property
    def n_contexts(self) -> IntArray:
        """Number of contexts that each cell is the mean of, int64 [n_cells]."""
        return np.bincount(self.of_block, minlength=len(self.pair))

    def to_dict(self) -> dict[str, Any]:
        """Return what scores need of the cells, as JSON has it."""
        return {
            "pair": self.pair.tolist(),
            "speakers": self.speakers.tolist(),
            "n_contexts": self.n_contexts.tolist(),
            "n_pairs": self.n_pairs,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> CellIndex:
        """Return the cells of `to_dict`; which error of a block is of which cell is lost."""
        counts = np.array(stored["n_contexts"], np.int64)
        return cls(
            np.array(stored["pair"], np.int64),
            np.array(stored["speakers"], np.int64).reshape(-1, 2),
            np.repeat(np.arange(len(counts)), counts),
            int(stored["n_pairs"]),
        )


Read = Callable[[IntArray], tuple[Float32, IntArray]]
"""Reads items: returns their frames of length 1, one item after the other, float32 [n_frames, dim],
and the first frame of each item, then the number of frames, int64 [n_items + 1]."""


def abx_errors(
    items: Items,
    blocks: list[Block],
    cells: CellIndex,
    n_frames: IntArray,
    read: Read,
    most_frames: int,
) -> FloatArray:
    """Return the error of each cell: the share of triples in which X is closer to B than to A.

    An equal distance counts as half an error. The errors of a pair of classes and of speakers are
    averaged over contexts.

    Args:
        items: The items.
        blocks: Items to compare, of `plan_blocks`.
        cells: Their cells, of `index_cells`.
        n_frames: Number of frames of each item, int64 [n_items].
        read: Reads items, given by ascending index.
        most_frames: Frames that are read at a time, if one block has no more.

    Returns:
        [n_cells].
    """
    values = []
    for chunk, used in _chunks(blocks, n_frames, most_frames):
        frames, bounds = read(used)
        places = [
            (np.searchsorted(used, block.rows), np.searchsorted(used, block.columns))
            for block in chunk
        ]
        found = block_distances(frames, bounds, places)
        for block, distances in zip(chunk, found, strict=True):
            values += _block_errors(items, block, distances)
    return np.asarray(np.bincount(cells.of_block, np.array(values)) / cells.n_contexts)


def index_cells(items: Items, blocks: list[Block]) -> CellIndex:
    """Return the cells of blocks, which do not depend on the frames."""
    keys = [
        (label, other, block.speaker, block.other)
        for block in blocks
        for label, b in _compared(items, block)
        for other in np.unique(items.label[block.rows[b]]).tolist()
    ]
    cells, of_block = np.unique(np.array(keys, np.int64), axis=0, return_inverse=True)
    pairs, pair = np.unique(cells[:, :2], axis=0, return_inverse=True)
    return CellIndex(
        pair.reshape(-1).astype(np.int64), cells[:, 2:], of_block.reshape(-1), len(pairs)
    )


def joined(parts: Sequence[CellIndex]) -> CellIndex:
    """Return the cells of several folds as one index; pairs and speakers are those of a fold."""
    pairs = np.cumsum([0, *(part.n_pairs for part in parts)])
    cells = np.cumsum([0, *(len(part.pair) for part in parts)])
    speakers = np.cumsum([0, *(int(part.speakers.max(initial=0)) + 1 for part in parts)])
    return CellIndex(
        np.concatenate([part.pair + pairs[i] for i, part in enumerate(parts)]),
        np.concatenate([part.speakers + speakers[i] for i, part in enumerate(parts)]),
        np.concatenate([part.of_block + cells[i] for i, part in enumerate(parts)]),
        int(pairs[-1]),
    )


def _compared(items: Items, block: Block) -> Iterator[tuple[int, IntArray]]:
    """Yield each class of A and X of a block, with the rows of B."""
    row_labels = items.label[block.rows]
    for label in np.unique(items.label[block.columns]).tolist():
        is_b = row_labels != label
        n_a = len(is_b) - int(is_b.sum())
        if is_b.any() and n_a > (block.speaker == block.other):
            yield label, np.flatnonzero(is_b)


def _chunks(
    blocks: list[Block], n_frames: IntArray, most_frames: int
) -> Iterator[tuple[list[Block], IntArray]]:
    """Yield consecutive blocks whose items have few frames, and these items, ascending."""
    start = 0
    while start < len(blocks):
        used: set[int] = set()
        stop, total = start, 0
        while stop < len(blocks) and stop - start < _BLOCKS_PER_CHUNK:
            block = blocks[stop]
            new = {*block.rows.tolist(), *block.columns.tolist()} - used
            total += int(n_frames[list(new)].sum())
            if total > most_frames and stop > start:
                break
            used |= new
            stop += 1
        yield blocks[start:stop], np.array(sorted(used), np.int64)
        start = stop


def _block_errors(items: Items, block: Block, distances: Float32) -> list[float]:
    """Return the error of each cell of a block, in the order of `_compared` and by class of B."""
    row_labels, column_labels = items.label[block.rows], items.label[block.columns]
    found: list[float] = []
    for label, b in _compared(items, block):
        a = np.flatnonzero(row_labels == label)
        x = np.flatnonzero(column_labels == label)
        # an item is not compared with itself
        allowed = (block.rows[a][:, None] != block.columns[x]).astype(np.float64)
        to_a, to_b = distances[np.ix_(a, x)][:, None], distances[np.ix_(b, x)]
        wrong = (to_a > to_b) + 0.5 * (to_a == to_b)  # [n_a, n_b, n_x]
        share = np.einsum("abx,ax->b", wrong, allowed) / allowed.sum()
        _, which = np.unique(row_labels[b], return_inverse=True)
        found += (np.bincount(which, share) / np.bincount(which)).tolist()
    return found


class MinimalPairs(Evaluation):
    """Error of ABX: averaged over contexts and speakers of X, over speakers, and over pairs.

    A drawn test set is one of speakers: each counts as often as it is drawn. What no drawn speaker
    has is left out.
    """

    def __init__(self, cells: CellIndex, errors: FloatArray) -> None:
        """Take the cells and their errors, [n_cells]."""
        names, groups = np.unique(cells.speakers, return_inverse=True)
        super().__init__(len(names), "speakers")
        first, other = groups.reshape(cells.speakers.shape).T
        is_within = np.array_equal(first, other)
        self._other = None if is_within else other
        self._n_contexts = cells.n_contexts.astype(np.float64)
        self._errors = np.asarray(errors, np.float64)
        # cells of a pair and a speaker of A and B are adjacent, and so are those of a pair
        is_new = np.ones(len(first), bool)
        is_new[1:] = (first[1:] != first[:-1]) | (cells.pair[1:] != cells.pair[:-1])
        self._speaker_starts = np.flatnonzero(is_new)
        self._first = first[self._speaker_starts]
        pairs = cells.pair[self._speaker_starts]
        self._pair_starts = np.searchsorted(pairs, np.arange(cells.n_pairs))

    def scores(self, weights: FloatArray) -> FloatArray:
        """Return the error for each vector of weights; 0.5 if no cell is drawn."""
        n_draws = max(1, _CELLS_PER_CHUNK // max(1, len(self._errors)))
        chunks = np.split(weights, range(n_draws, len(weights), n_draws))
        return np.concatenate([self._scores(chunk) for chunk in chunks])

    def _scores(self, weights: FloatArray) -> FloatArray:
        counts = self._n_contexts * (1.0 if self._other is None else weights[:, self._other])
        counts = np.broadcast_to(counts, (len(weights), len(self._errors)))
        of_speakers, is_known = _means(counts, self._errors, self._speaker_starts)
        drawn = weights[:, self._first] * is_known
        of_pairs, is_known = _means(drawn, of_speakers, self._pair_starts)
        n_known = is_known.sum(1)
        return np.where(n_known > 0, of_pairs.sum(1) / np.maximum(1, n_known), 0.5)


def _means(
    weights: FloatArray, values: FloatArray, starts: IntArray
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return weighted means of adjacent values, 0 without any weight, and whether there is some."""
    total = np.add.reduceat(weights, starts, axis=1)
    is_known = total > 0
    sums = np.add.reduceat(weights * values, starts, axis=1)
    return np.where(is_known, sums / np.where(is_known, total, 1.0), 0.0), is_known


def unit_frames(frames: npt.NDArray[np.generic]) -> Float32:
    """Return frames [n, dim] scaled to length 1, as float32; a frame of zeros stays one."""
    wide = frames.astype(np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.maximum(norms, np.float32(1e-20)))

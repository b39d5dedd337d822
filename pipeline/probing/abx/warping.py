"""Distances of items: dynamic time warping over the angles between frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_PAIRS_AT_ONCE = 8192
"""Pairs that are warped together: their tables stay in the cache of a core."""
_CELLS_PER_CHUNK = 1 << 24
"""Largest number of angles that are in memory at once: 64 MiB, and as much for the products."""


def angles(left: Float32, right: Float32) -> Float32:
    """Return the angles between frames, as shares of a half turn: [n_left, n_right].

    Args:
        left: Frames of length 1, [n_left, dim].
        right: Frames of length 1, [n_right, dim].
    """
    cosines = left @ right.T
    np.clip(cosines, -1.0, 1.0, out=cosines)
    np.arccos(cosines, out=cosines)
    cosines /= np.float32(np.pi)
    return np.asarray(cosines)


def warped(
    distances: Float32, base: IntArray, stride: IntArray, n_left: IntArray, n_right: IntArray
) -> Float32:
    """Return the mean distance along the best path of each pair of items.

    A path goes from the first frames to the last frames, one step in either item or in both; the
    best one has the least sum of distances, and of equal ones the one that is diagonal for longest
    from the end. The sum is divided by the number of frames of the path. Pairs take as many steps
    as the longest ones, so similar lengths should be given together.

    Args:
        distances: Distances of frames of all pairs, [n].
        base: Index in `distances` of the first frames of each pair, [n_pairs].
        stride: Distance in `distances` between frames of the left item, [n_pairs].
        n_left: Number of frames of the left items, [n_pairs].
        n_right: Number of frames of the right items, [n_pairs].

    Returns:
        [n_pairs].
    """
    width = int(n_right.max())
    # beyond its last frame, a pair repeats it; what follows its last cell is not used
    columns = [np.minimum(j, n_right - 1) for j in range(width)]
    cost = np.empty((width, len(base)), np.float32)
    steps = np.empty((width, len(base)), np.int16)
    result = np.empty(len(base), np.float32)
    first_right, first_left = int(n_right.min()), int(n_left.min())
    for i in range(int(n_left.max())):
        row = base + np.minimum(i, n_left - 1) * stride
        diagonal_cost, diagonal_steps = cost[0], steps[0]  # used from the second column on
        for j in range(width):
            here = distances[row + columns[j]]
            above_cost, above_steps = cost[j].copy(), steps[j].copy()  # of the previous row
            if i == 0 and j == 0:
                cost[0], steps[0] = here, 1
            elif i == 0:
                cost[j], steps[j] = cost[j - 1] + here, steps[j - 1] + 1
            elif j == 0:
                cost[0] += here
                steps[0] += 1
            else:
                is_left = cost[j - 1] <= above_cost
                side = np.where(is_left, cost[j - 1], above_cost)
                is_diagonal = diagonal_cost <= side
                np.add(np.where(is_diagonal, diagonal_cost, side), here, out=cost[j])
                count = np.where(is_left, steps[j - 1], above_steps)
                np.add(np.where(is_diagonal, diagonal_steps, count), 1, out=steps[j])
            diagonal_cost, diagonal_steps = above_cost, above_steps
            if i + 1 >= first_left and j + 1 >= first_right:
                ends = np.flatnonzero((n_left == i + 1) & (n_right == j + 1))
                result[ends] = cost[j, ends] / steps[j, ends]
    return result


def block_distances(
    frames: Float32, bounds: IntArray, blocks: list[tuple[IntArray, IntArray]]
) -> list[Float32]:
    """Return the distances between the items of each block.

    Args:
        frames: Frames of length 1 of all items, one after the other, [n_frames, dim].
        bounds: First frame of each item, then the number of frames, [n_items + 1].
        blocks: Items of the rows and of the columns of each block.

    Returns:
        [n_rows, n_columns] for each block.
    """
    found: list[Float32] = []
    for chunk in _chunks(bounds, blocks):
        found += _chunk_distances(frames, bounds, chunk)
    return found


def _chunks(
    bounds: IntArray, blocks: list[tuple[IntArray, IntArray]]
) -> list[list[tuple[IntArray, IntArray]]]:
    """Divide blocks so that the angles of a chunk fit in memory."""
    lengths = np.diff(bounds)
    chunks: list[list[tuple[IntArray, IntArray]]] = []
    size = _CELLS_PER_CHUNK + 1
    for rows, columns in blocks:
        n = int(lengths[rows].sum() * lengths[columns].sum())
        if size + n > _CELLS_PER_CHUNK:
            chunks.append([])
            size = 0
        chunks[-1].append((rows, columns))
        size += n
    return chunks


def _chunk_distances(
    frames: Float32, bounds: IntArray, blocks: list[tuple[IntArray, IntArray]]
) -> list[Float32]:
    """Return the distances of the blocks of a chunk: similar lengths are warped together."""
    lengths = np.diff(bounds)
    parts, bases, strides, sizes = [], [], [], []
    offset = 0
    for rows, columns in blocks:
        row_frames, column_frames = (_frames_of(bounds, items) for items in (rows, columns))
        parts.append(angles(frames[row_frames], frames[column_frames]).ravel())
        width = len(column_frames)
        first_row = np.cumsum(np.append(0, lengths[rows[:-1]]))
        first_column = np.cumsum(np.append(0, lengths[columns[:-1]]))
        bases.append((offset + first_row[:, None] * width + first_column).ravel())
        strides.append(np.full(len(rows) * len(columns), width))
        left, right = np.broadcast_arrays(lengths[rows][:, None], lengths[columns])
        sizes.append(np.stack([left.ravel(), right.ravel()]))
        offset += len(parts[-1])
    distances, base, stride = (np.concatenate(values) for values in (parts, bases, strides))
    lengths_of = np.concatenate(sizes, axis=1)  # [2, n_pairs]
    left, right = (_size_class(values) for values in lengths_of)
    order = np.lexsort((right, left))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (left[order[1:]] != left[order[:-1]]) | (right[order[1:]] != right[order[:-1]])
    result = np.empty(len(base), np.float32)
    for similar in np.split(order, np.flatnonzero(is_new)[1:]):
        for at in np.split(similar, range(_PAIRS_AT_ONCE, len(similar), _PAIRS_AT_ONCE)):
            result[at] = warped(distances, base[at], stride[at], *lengths_of[:, at])
    n_pairs = [len(rows) * len(columns) for rows, columns in blocks]
    split = np.split(result, np.cumsum(n_pairs)[:-1])
    return [
        item.reshape(len(rows), len(columns))
        for item, (rows, columns) in zip(split, blocks, strict=True)
    ]


def _size_class(lengths: IntArray) -> IntArray:
    """Return a number that lengths share if they differ by an eighth or less; exact up to 8."""
    exponent = np.maximum(0, np.floor(np.log2(np.maximum(1, lengths))).astype(np.int64) - 3)
    return np.asarray(exponent * 16 + (lengths >> exponent))


def _frames_of(bounds: IntArray, items: IntArray) -> IntArray:
    """Return the frames of items, one item after the other."""
    lengths = bounds[items + 1] - bounds[items]
    shift = np.repeat(bounds[items] - np.append(0, lengths.cumsum()[:-1]), lengths)
    return np.asarray(np.arange(lengths.sum()) + shift, np.int64)

"""Distances of items: dynamic time warping over the angles between frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

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


def warped(distances: Float32, base: IntArray, stride: IntArray, shape: tuple[int, int]) -> Float32:
    """Return the mean distance along the best path of each pair of items.

    A path goes from the first frames to the last frames, one step in either item or in both; the
    best one has the least sum of distances, and of equal ones the one that is diagonal for longest
    from the end. The sum is divided by the number of frames of the path.

    Args:
        distances: Distances of frames of all pairs, [n].
        base: Index in `distances` of the first frames of each pair, [n_pairs].
        stride: Distance in `distances` between frames of the left item, [n_pairs].
        shape: Number of frames of the left and of the right items, which all pairs share.

    Returns:
        [n_pairs].
    """
    n_left, n_right = shape
    n = len(base)
    cost = np.empty((n_right, n), np.float32)
    steps = np.empty((n_right, n), np.int16)
    for i in range(n_left):
        row = base + i * stride
        diagonal_cost, diagonal_steps = cost[0], steps[0]  # used from the second column on
        for j in range(n_right):
            here = distances[row + j]
            above_cost, above_steps = cost[j].copy(), steps[j].copy()  # of the previous row
            if i == 0 and j == 0:
                cost[0], steps[0] = here, 1
            elif i == 0:
                cost[j], steps[j] = cost[j - 1] + here, steps[j - 1] + 1
            elif j == 0:
                cost[0] += here
                steps[0] += 1
            else:
                best, count = diagonal_cost, diagonal_steps
                side = np.minimum(cost[j - 1], above_cost)
                aside = np.where(cost[j - 1] <= above_cost, steps[j - 1], above_steps)
                is_diagonal = best <= side
                np.add(np.where(is_diagonal, best, side), here, out=cost[j])
                np.add(np.where(is_diagonal, count, aside), 1, out=steps[j])
            diagonal_cost, diagonal_steps = above_cost, above_steps
    return np.asarray(cost[-1] / steps[-1])


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
    """Return the distances of the blocks of a chunk; pairs of equal lengths are warped together."""
    lengths = np.diff(bounds)
    most = int(lengths.max()) + 1
    parts, bases, strides, shapes = [], [], [], []
    offset = 0
    for rows, columns in blocks:
        row_frames, column_frames = (_frames_of(bounds, items) for items in (rows, columns))
        parts.append(angles(frames[row_frames], frames[column_frames]).ravel())
        width = len(column_frames)
        first_row = np.cumsum(np.append(0, lengths[rows[:-1]]))
        first_column = np.cumsum(np.append(0, lengths[columns[:-1]]))
        bases.append((offset + first_row[:, None] * width + first_column).ravel())
        strides.append(np.full(len(rows) * len(columns), width))
        shapes.append((lengths[rows][:, None] * most + lengths[columns]).ravel())
        offset += len(parts[-1])
    distances, base, stride = (np.concatenate(values) for values in (parts, bases, strides))
    kinds, kind_of = np.unique(np.concatenate(shapes), return_inverse=True)
    order = np.argsort(kind_of, kind="stable")
    ends = np.searchsorted(kind_of[order], np.arange(len(kinds) + 1))
    result = np.empty(len(base), np.float32)
    for number, kind in enumerate(kinds.tolist()):
        at = order[ends[number] : ends[number + 1]]
        result[at] = warped(distances, base[at], stride[at], divmod(kind, most))
    sizes = [len(rows) * len(columns) for rows, columns in blocks]
    split = np.split(result, np.cumsum(sizes)[:-1])
    return [
        item.reshape(len(rows), len(columns))
        for item, (rows, columns) in zip(split, blocks, strict=True)
    ]


def _frames_of(bounds: IntArray, items: IntArray) -> IntArray:
    """Return the frames of items, one item after the other."""
    lengths = bounds[items + 1] - bounds[items]
    shift = np.repeat(bounds[items] - np.append(0, lengths.cumsum()[:-1]), lengths)
    return np.asarray(np.arange(lengths.sum()) + shift, np.int64)

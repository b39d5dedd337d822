"""Dealing utterances out to parts, in given shares: pure arithmetic on NumPy arrays.

Parts are alike in their classes, groups stay whole, and a seed decides the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.probing.labels import IntArray

_TRIES = 200


def deal(classes: IntArray, shares: Sequence[float], seed: int, keep_first: bool) -> IntArray:
    """Deals utterances out, class by class, so that each class is shared out as the whole is.

    Args:
        classes: Class of each utterance, [n].
        shares: Of the parts; they sum to one.
        seed: Decides which utterance of a class goes where.
        keep_first: Give the first utterance of each class to part 0, so that it has all classes.

    Returns:
        Part of each utterance, [n].
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(classes))
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    counts = np.zeros(len(shares))
    parts = np.empty(len(classes), np.int64)
    before = None
    for i, item in enumerate(order.tolist()):
        first = keep_first and classes[item] != before
        part = 0 if first else int(np.argmax(np.multiply(shares, i + 1) - counts))
        parts[item], before = part, classes[item]
        counts[part] += 1
    return parts


def deal_groups(
    classes: IntArray, groups: IntArray, shares: Sequence[float], seed: int
) -> IntArray:
    """Deals whole groups out: of many random orders the one that comes nearest to the shares.

    Args:
        classes: Class of each utterance, [n].
        groups: Group of each utterance, from 0, [n].
        shares: Of the parts, no more than there are groups; they sum to one.
        seed: Of the random orders.

    Returns:
        Part of each utterance, [n]. Every part has at least one group.
    """
    random = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    counts = np.zeros((n_groups, int(classes.max()) + 1))
    np.add.at(counts, (groups, classes), 1)
    wanted = np.outer(shares, counts.sum(0))  # [n_parts, n_classes]
    best, best_distance = np.zeros(n_groups, np.int64), np.inf
    for _ in range(_TRIES):
        parts = _fill(random.permutation(n_groups), counts.sum(1), shares)
        found = np.zeros_like(wanted)
        np.add.at(found, parts, counts)
        missing = ((found[0] == 0) & (wanted[0] > 0)).sum()  # classes that part 0 lacks
        distance = np.abs(found - wanted).sum() + len(classes) * missing
        if distance < best_distance:
            best, best_distance = parts, distance
    return best[groups]


def _fill(order: IntArray, sizes: npt.NDArray[np.float64], shares: Sequence[float]) -> IntArray:
    """Gives each group in turn to the part that lacks most; the last ones to parts without any."""
    lacks = np.multiply(shares, sizes.sum())
    parts = np.empty(len(order), np.int64)
    empty = set(range(len(shares)))
    for i, group in enumerate(order.tolist()):
        candidates = sorted(empty) if len(order) - i <= len(empty) else range(len(shares))
        part = max(candidates, key=lambda item: lacks[item])
        parts[group] = part
        lacks[part] -= sizes[group]
        empty.discard(part)
    return parts

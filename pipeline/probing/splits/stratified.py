"""Random stratified splits into parts of given shares, optionally by whole groups.

scikit-learn has no splitter for this (tests/probing/test_splits.py, `test_scikit_learn_...`):

- `StratifiedShuffleSplit` raises ValueError for a class with one utterance, and for a part with
  fewer utterances than classes. `StratifiedKFold` raises if all classes are smaller than the number
  of folds. Small classes are common here (speakers, intents), and train must have all of them.
- `GroupShuffleSplit` applies the shares to the number of groups, not of utterances, and does not
  stratify: with speakers of unequal size, a part may be several times too large, and train may lack
  a class.
- `StratifiedGroupKFold` makes folds of equal size only, not train, dev and test by ratios.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.probing.labels import IntArray

_N_TRIALS = 200
_EQUAL = 0.1
"""Total variation distance up to which the shares of the classes count as equal."""


def stratified_split(
    classes: IntArray, shares: Sequence[float], seed: int, keep_first: bool
) -> IntArray:
    """Assign utterances to parts so that each class is divided as the whole is.

    Args:
        classes: Class of each utterance, int64 [n].
        shares: Share of each part; they sum to one.
        seed: Seed of the assignment.
        keep_first: Whether the first utterance of each class goes to part 0, so that part 0 has all
            classes.

    Returns:
        Part of each utterance, int64 [n].
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(classes))
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    counts = np.zeros(len(shares))
    parts = np.empty(len(classes), np.int64)
    previous = None
    for i, item in enumerate(order.tolist()):
        is_first = keep_first and classes[item] != previous
        part = 0 if is_first else int(np.argmax(np.multiply(shares, i + 1) - counts))
        parts[item], previous = part, classes[item]
        counts[part] += 1
    return parts


def stratified_group_split(
    classes: IntArray, groups: IntArray, shares: Sequence[float], seed: int
) -> IntArray:
    """Assign whole groups to parts: of 200 random assignments, use the one closest to the shares.

    Args:
        classes: Class of each utterance, int64 [n].
        groups: Group of each utterance, from 0, int64 [n].
        shares: Share of each part, at most as many as groups; they sum to one.
        seed: Seed of the random assignments.

    Returns:
        Part of each utterance, int64 [n]. Every part has at least one group.
    """
    random = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    counts = np.zeros((n_groups, int(classes.max()) + 1))
    np.add.at(counts, (groups, classes), 1)
    targets = np.outer(shares, counts.sum(0))  # [n_parts, n_classes]
    best, best_distance = np.zeros(n_groups, np.int64), np.inf
    for _ in range(_N_TRIALS):
        parts = _assign_in_order(random.permutation(n_groups), counts.sum(1), shares)
        assigned = np.zeros_like(targets)
        np.add.at(assigned, parts, counts)
        n_missing = ((assigned[0] == 0) & (targets[0] > 0)).sum()  # classes that part 0 lacks
        distance = np.abs(assigned - targets).sum() + len(classes) * n_missing
        if distance < best_distance:
            best, best_distance = parts, distance
    return best[groups]


def have_equal_shares(parts: Sequence[IntArray]) -> bool:
    """Whether each part has about the shares of the classes that all parts together have.

    The total variation distance is at most 0.1, plus what rounding to whole utterances may make.

    Args:
        parts: Class of each utterance of each part, int64 [n_utterances].
    """
    parts = [part for part in parts if len(part)]
    n_classes = int(max(part.max() for part in parts)) + 1
    counts = np.stack([np.bincount(part, minlength=n_classes) for part in parts])
    whole = counts.sum(0) / counts.sum()
    sizes = counts.sum(1)
    distances = np.abs(counts / sizes[:, None] - whole).sum(1) / 2
    rounding = np.count_nonzero(whole) / (4 * sizes)
    return bool((distances <= _EQUAL + rounding).all())


def _assign_in_order(
    order: IntArray, sizes: npt.NDArray[np.float64], shares: Sequence[float]
) -> IntArray:
    """Assign each group, in order, to the part that lacks most; the last groups to empty parts.

    Args:
        order: Groups, int64 [n_groups].
        sizes: Utterances of each group, [n_groups].
        shares: Share of each part.

    Returns:
        Part of each group, int64 [n_groups].
    """
    missing = np.multiply(shares, sizes.sum())
    parts = np.empty(len(order), np.int64)
    empty = set(range(len(shares)))
    for i, group in enumerate(order.tolist()):
        candidates = sorted(empty) if len(order) - i <= len(empty) else range(len(shares))
        part = max(candidates, key=lambda item: missing[item])
        parts[group] = part
        missing[part] -= sizes[group]
        empty.discard(part)
    return parts

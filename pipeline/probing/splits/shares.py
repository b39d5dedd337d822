"""Shares of train, for learning curves: nested, and in proportion from each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.config import TaskConfig
from pipeline.errors import ConfigError, counted
from pipeline.probing.labels import IntArray, Labels
from pipeline.probing.splits.making import Split


def take_share(split: Split, task: TaskConfig, labels: Labels, fraction: float, seed: int) -> Split:
    """Return a split with a share of the training utterances; dev and test stay as they are.

    A smaller share is a part of a larger one. A share that has as many utterances as there are
    classes has one of each class, and beyond them utterances in proportion to the classes.

    Args:
        split: The split of the whole.
        task: Settings of the task.
        labels: Labels of every utterance.
        fraction: Share of train, above 0 and at most 1.
        seed: Seed of the draw.

    Raises:
        ConfigError: A task that must have all classes in train, such as `sid`, would lack some.
    """
    if fraction == 1:
        return split
    classes = labels.strata(task.kind)
    folds, sizes, missing = [], [], []
    for fold in split.folds:
        order = _nested_order(classes[fold.train], seed)
        n = max(1, round(fraction * len(fold.train)))
        train = np.sort(fold.train[order[:n]])
        folds.append(replace(fold, train=train))
        sizes.append((n, len(fold.train)))
        n_classes = len(np.unique(classes[fold.train]))
        missing.append((n_classes - len(np.unique(classes[train])), n_classes))
    n, n_all = np.mean(sizes, axis=0).round().astype(int).tolist()
    how = "in proportion from each class" if len(np.unique(classes)) > 1 else "at random"
    return Split(
        tuple(folds),
        f"{split.description}; {n:,} of {n_all:,} training utterances, drawn {how}, seed {seed}",
        (*split.warnings, *_missing_classes(missing, sizes, task, fraction)),
    )


def _nested_order(classes: IntArray, seed: int) -> IntArray:
    """Return the order in which utterances are added to a share, int64 [n].

    First come one of each class, those of frequent classes before others; then what each class
    lacks most in proportion to its size.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    _, starts, sizes = np.unique(classes[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(classes)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    tie = random.permutation(len(classes))
    # below 0 for the first of each class; else the share of the class that is drawn before
    place = np.where(rank == 0, -size / size.max(), (rank + 0.5) / size)
    return np.asarray(by_class[np.lexsort((tie, place))])


def _missing_classes(
    missing: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    task: TaskConfig,
    fraction: float,
) -> list[str]:
    """Return a warning about classes that a share lacks, if it lacks some.

    Raises:
        ConfigError: The task cannot do without them.
    """
    worst = int(np.argmax([n_missing for n_missing, _ in missing]))
    (n_missing, n_classes), (n, n_all) = missing[worst], sizes[worst]
    if not n_missing or task.kind == "regression":  # whose strata are tenths of the numbers
        return []
    what = (
        f"fractions: {fraction:g} of train is {counted(n, 'utterance')}, and there are "
        f"{counted(n_classes, 'class')}, so {n_missing:,} of them are not trained on"
    )
    if not task.speaker_independent:
        smallest = n_classes / n_all
        raise ConfigError(
            f"{what}; task {task.name} cannot learn them. Give fractions of at least "
            f"{np.ceil(smallest * 1e4) / 1e4:g}"
        )
    return [what]

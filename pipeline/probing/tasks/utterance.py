"""Utterance tasks: a class per utterance and label column, from pooled features or from frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import TaskConfig
from pipeline.errors import ConfigError, counted, first_few
from pipeline.probing.baselines import chance, logistic_regression, majority
from pipeline.probing.evaluation import Ratio
from pipeline.probing.labels import Classes, Fold, classes_of
from pipeline.probing.metrics import IntArray, confusion_matrix, macro_f1
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, Note, OnHead
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.tasks.utterance_heads import UtteranceHeads
from pipeline.probing.trainers.objectives import Classification
from pipeline.probing.trainers.pooled import PooledData, untrained_score

_MUCH = 0.1
"""Share of the test items above which classes that dev lacks give a warning."""


class UtteranceTask(Task):
    """Classification of utterances. A prediction is correct if all label columns are."""

    higher_is_better = True

    def __init__(self, data: TaskData) -> None:
        """Check the labels and read the pooled features, if heads get these.

        Args:
            data: What to learn from.

        Raises:
            ConfigError: A column has fewer than two classes, a class to be recognised is missing
                from train, or `task.pooling` does not fit.
            StoreError: The heads need frames, and the store keeps none.
        """
        self._folds = data.folds
        self._classes = classes_of(data.labels)
        self.classes = self._classes.names
        self.warnings = check_classes(self._classes, data.labels.columns, data.folds, data.config)
        numbers = self._classes.numbers
        self.truth = tuple(
            tuple(tuple(row) for row in numbers[fold.test].tolist()) for fold in data.folds
        )
        objective = Classification(tuple(len(names) for names in self.classes))
        labels = torch.from_numpy(numbers.T.copy())
        self._heads = UtteranceHeads(data, labels, (objective,) * len(data.folds))

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train all heads together."""
        self._heads.train(specs, on_head, note)

    def evaluate(self, heads: Sequence[HeadResult]) -> Ratio:
        """Return the accuracy: an utterance is correct if it is so in all label columns."""
        truth, predictions = self._over_folds(heads)
        return Ratio((predictions == truth).all(1), np.ones(len(truth)))

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the macro-F1."""
        return {"macro_f1": macro_f1(*self._over_folds(heads))}

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the scores of chance, majority class, an untrained head, logistic regression."""
        untrained, vectors = self._heads.untrained_score(layer), self._heads.vectors(layer)
        return baselines_on_vectors(vectors, self._classes, self._folds, layer, untrained)

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...]:
        """Return [reference][prediction] counts in the first label column."""
        truth, predictions = self._over_folds(heads)
        matrix = confusion_matrix(truth[:, 0], predictions[:, 0], len(self.classes[0]))
        return tuple(tuple(row) for row in matrix.tolist())

    def write_files(self, folder: Path) -> None:
        """Write nothing."""

    def _over_folds(self, heads: Sequence[HeadResult]) -> tuple[IntArray, IntArray]:
        """Concatenate references and predictions of heads: [n, n_columns] each."""
        truth = np.concatenate([np.array(self.truth[head.fold], np.int64) for head in heads])
        predictions = np.concatenate([np.array(head.predictions, np.int64) for head in heads])
        return truth, predictions


def class_baselines(data: PooledData, classes: Classes, layer: Candidate) -> dict[str, float]:
    """Return the scores of chance, majority class, an untrained head, logistic regression.

    Args:
        data: Features and folds.
        classes: Classes of the items that the features are of.
        layer: A layer of the features.
    """
    vectors = data.pooled[data.layers.index(layer)].numpy()
    return baselines_on_vectors(vectors, classes, data.folds, layer, untrained_score(data, layer))


def baselines_on_vectors(
    vectors: npt.NDArray[np.float32],
    classes: Classes,
    folds: Sequence[Fold],
    layer: Candidate,
    untrained: float,
) -> dict[str, float]:
    """Return the scores of chance, majority class, an untrained head, logistic regression.

    Args:
        vectors: Pooled features of a layer, [n_items, dim].
        classes: Classes of the items.
        folds: The folds, of items.
        layer: The layer.
        untrained: Score of an untrained head on it.
    """
    scores = {
        "chance": chance(classes),
        "majority class": majority(classes, folds),
        f"untrained head, layer {layer}": untrained,
    }
    score = logistic_regression(vectors, classes, folds)
    return scores if score is None else scores | {f"logistic regression, layer {layer}": score}


def check_classes(
    classes: Classes,
    columns: Sequence[str],
    folds: Sequence[Fold],
    task: TaskConfig,
    noun: str = "utterance",
) -> tuple[str, ...]:
    """Check the classes of each label column.

    Args:
        classes: The classes.
        columns: Names of the label columns.
        folds: The folds.
        task: Settings of the task.
        noun: What has a class, for messages.

    Returns:
        Warnings about classes of dev or test that train lacks, about classes of many test
        utterances that dev lacks, and about classes with one utterance.

    Raises:
        ConfigError: A column has one class only; or train lacks a class of dev or test, and the
            task is not speaker-independent, or it lacks those of all test utterances.
    """
    warnings = []
    for axis, (column, names) in enumerate(zip(columns, classes.names, strict=True)):
        if len(names) < 2:
            raise ConfigError(
                f"column {column!r} has one class only, {names[0]!r}; nothing to learn"
            )
        numbers = classes.numbers[:, axis]
        warnings += _unseen_classes(numbers, names, column, folds, task, noun)
        warnings += _classes_missing_in_dev(numbers, names, column, folds, noun)
        n_single = int((np.unique(numbers[numbers >= 0], return_counts=True)[1] == 1).sum())
        if n_single:
            warnings.append(
                f"{n_single} of {len(names)} classes of {column!r} with one {noun} only, never "
                "both trained on and tested"
            )
    return tuple(warnings)


def _unseen_classes(
    numbers: IntArray,
    names: Sequence[str],
    column: str,
    folds: Sequence[Fold],
    task: TaskConfig,
    noun: str,
) -> list[str]:
    """Return a warning about the classes of a column that train lacks, if there are any."""
    unseen: set[int] = set()
    n_lost = 0
    for fold in folds:
        trained = np.unique(numbers[fold.train])
        evaluated = np.concatenate([numbers[fold.dev], numbers[fold.test]])
        unseen.update(np.setdiff1d(evaluated, trained).tolist())
        n_lost += int((~np.isin(numbers[fold.test], trained)).sum())
    if not unseen:
        return []
    n_test = sum(len(fold.test) for fold in folds)
    listed = first_few([names[number] for number in sorted(unseen)])
    what = (
        f"{counted(len(unseen), 'class')} of {column!r} ({listed}) in dev or test and not in train"
    )
    if len(folds) > 1:
        what += " in a fold"
    if not task.speaker_independent:
        raise ConfigError(
            f"{what}: task {task.name} learns only what is in train. Give another split.column, or "
            "split.column=null to make a split"
        )
    if n_lost == n_test:
        raise ConfigError(
            f"{what}, and no test {noun} is of another class: every score would be 0. Give "
            "another split or other labels"
        )
    return [
        f"{what}: no head can predict what it is not trained on, so {n_lost} of {n_test} test "
        f"{noun}s count as errors"
    ]


def _classes_missing_in_dev(
    numbers: IntArray, names: Sequence[str], column: str, folds: Sequence[Fold], noun: str
) -> list[str]:
    """Return a warning if dev lacks the classes of a tenth or more of the test items."""
    missing: set[int] = set()
    n_affected = 0
    for fold in folds:
        lacks = ~np.isin(numbers[fold.test], numbers[fold.dev])
        missing.update(numbers[fold.test][lacks].tolist())
        n_affected += int(lacks.sum())
    n_test = sum(len(fold.test) for fold in folds)
    if n_affected < _MUCH * n_test:
        return []
    listed = first_few([names[number] for number in sorted(missing)])
    where = " in a fold" if len(folds) > 1 else ""
    return [
        f"dev lacks {counted(len(missing), 'class')} of {column!r} ({listed}){where}, which "
        f"{n_affected:,} of {n_test:,} test {noun}s have: dev cannot choose the best layer for "
        "them. Give another split.seed, larger split.ratios for dev, or split.folds"
    ]

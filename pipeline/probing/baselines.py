"""Baselines: chance, the majority class, scikit-learn's logistic and ridge regression."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import counted
from pipeline.probing.evaluation import FloatArray
from pipeline.probing.labels import Classes, Fold, IntArray
from pipeline.probing.results import CandidateScore, HeadResult

_MAX_WORK = 4e9
"""Utterances × features × classes above which a logistic regression takes too long."""
_LATE = 0.8
"""Share of the steps after which a best step counts as near the last."""
_MAX_RIDGE_WORK = 2e11
"""Utterances × features × the smaller of the two above which a ridge regression takes too long."""


def chance(classes: Classes) -> float:
    """Return the accuracy of uniformly drawn classes, over all label columns."""
    return float(np.prod([1 / len(names) for names in classes.names]))


def majority(classes: Classes, folds: Sequence[Fold]) -> float:
    """Return the test accuracy of the most frequent training class of each label column."""
    correct = []
    for fold in folds:
        train, test = classes.numbers[fold.train], classes.numbers[fold.test]
        most_common = [Counter(column.tolist()).most_common(1)[0][0] for column in train.T]
        correct.append((test == np.array(most_common)).all(1))
    return float(np.concatenate(correct).mean())


def logistic_regression(
    vectors: npt.NDArray[np.float32], classes: Classes, folds: Sequence[Fold]
) -> float | None:
    """Return the test accuracy of scikit-learn's logistic regression with default settings.

    Args:
        vectors: Pooled features of one layer, [n_utterances, dim]. They are standardised by the
            training utterances.
        classes: Labels; each column gets its own classifier.
        folds: The folds.

    Returns:
        Fraction of test utterances that are correct in all columns; None if fitting takes too long.
    """
    work = sum(len(fold.train) for fold in folds) * vectors.shape[1]
    if work * sum(len(names) for names in classes.names) > _MAX_WORK:
        return None
    correct = []
    for fold in folds:
        columns = classes.numbers.T
        by_column = [_predict(vectors, column, fold) == column[fold.test] for column in columns]
        correct.append(np.all(by_column, axis=0))
    return float(np.concatenate(correct).mean())


def _predict(vectors: npt.NDArray[np.float32], labels: IntArray, fold: Fold) -> IntArray:
    """Fit a classifier on train and predict test: int64 [n_test]."""
    present = np.unique(labels[fold.train])
    if len(present) == 1:  # the classifier needs two classes
        return np.full(len(fold.test), present[0])
    model = fitted_classifier(vectors[fold.train], labels[fold.train])
    assert model is not None  # the work was limited before
    return np.asarray(model.predict(vectors[fold.test]), np.int64)


def fitted_classifier(vectors: npt.NDArray[np.float32], labels: IntArray) -> Any | None:
    """Fit scikit-learn's logistic regression to standardised features.

    Args:
        vectors: Features, [n, dim].
        labels: Classes, [n].

    Returns:
        The classifier, with a method `predict`; None if fitting takes too long, or there is one
        class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    n_classes = len(np.unique(labels))
    if n_classes < 2 or vectors.size * n_classes > _MAX_WORK:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings(), threadpool_limits(1):  # one thread: results are reproducible
        # no convergence, and classes with few utterances; the sweep has a warning of its own
        warnings.simplefilter("ignore", UserWarning)
        return model.fit(vectors, labels)


def ridge_regression(
    vectors: npt.NDArray[np.float32], numbers: FloatArray, folds: Sequence[Fold]
) -> FloatArray | None:
    """Return the test predictions of scikit-learn's ridge regression.

    The strength is chosen among 13 from 1e-2 to 1e10 by leave-one-out error on train.

    Args:
        vectors: Pooled features of one layer, [n_utterances, dim]. They are standardised by the
            training utterances.
        numbers: Labels, [n_columns, n_utterances].
        folds: The folds.

    Returns:
        Predictions of the test utterances, fold after fold, [n_columns, n_test]; None if fitting
        takes too long.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    smaller = min(max(len(fold.train) for fold in folds), vectors.shape[1])
    if sum(len(fold.train) for fold in folds) * vectors.shape[1] * smaller > _MAX_RIDGE_WORK:
        return None
    predictions = []
    with threadpool_limits(1):  # results are reproducible
        for fold in folds:
            model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 10, 13)))
            train = vectors[fold.train].astype(np.float64)
            model.fit(train, numbers[:, fold.train].T)
            found = np.asarray(model.predict(vectors[fold.test].astype(np.float64)))
            predictions.append(found.reshape(len(fold.test), -1).T)
    return np.hstack(predictions)


def baseline_warnings(
    best: CandidateScore,
    heads: Sequence[HeadResult],
    baselines: Mapping[str, float],
    steps: int,
    higher_is_better: bool,
) -> tuple[str, ...]:
    """Return a warning if a baseline is better than the interval of the best candidate.

    Args:
        best: Score of the best candidate.
        heads: Its heads, at the chosen learning rate.
        baselines: Scores of the baselines, by name.
        steps: Most steps of a head.
        higher_is_better: Direction of the metric.
    """
    sign, bound = (1, best.high) if higher_is_better else (-1, best.low)
    better = {name: score for name, score in baselines.items() if sign * (score - bound) > 0}
    if not better:
        return ()
    name = max(better, key=lambda item: sign * better[item])
    warning = (
        f"the baseline {name!r} ({better[name]:.3f}) is better than the best candidate "
        f"({best.test:.3f})"
    )
    n_late = sum(head.step > _LATE * steps for head in heads)
    if 2 * n_late > len(heads):
        warning += (
            f": {n_late} of its {len(heads)} heads had the best dev score near the last of "
            f"{counted(steps, 'step')}, so the heads may not be trained enough to rank layers; "
            "raise task.steps"
        )
    return (warning,)

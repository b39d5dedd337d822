"""What scores are measured against: chance, the majority class, scikit-learn's classifier."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.probing.labels import Classes, Fold, IntArray

_MOST_WORK = 4e9
"""Utterances × classes × features beyond which a logistic regression takes too long."""


def chance(classes: Classes) -> float:
    """Share that is right when classes are drawn with equal odds, in all columns."""
    return float(np.prod([1 / len(names) for names in classes.names]))


def majority(classes: Classes, folds: Sequence[Fold]) -> float:
    """Test share of what is most frequent in train, in each column for itself."""
    hits = []
    for fold in folds:
        train, test = classes.numbers[fold.train], classes.numbers[fold.test]
        common = [Counter(column.tolist()).most_common(1)[0][0] for column in train.T]
        hits.append((test == np.array(common)).all(1))
    return float(np.concatenate(hits).mean())


def logistic_regression(
    vectors: npt.NDArray[np.float32], classes: Classes, folds: Sequence[Fold]
) -> float | None:
    """Test accuracy of scikit-learn's logistic regression, as it comes, trained on train.

    Args:
        vectors: Pooled features of one layer, [n_utterances, dim]; standardised by train.
        classes: Labels; every column gets a classifier of its own.
        folds: Who trains and who is tested.

    Returns:
        Share that is right in all columns; None where it would take too long.
    """
    work = sum(len(fold.train) for fold in folds) * vectors.shape[1]
    if work * sum(len(names) for names in classes.names) > _MOST_WORK:
        return None
    hits = []
    for fold in folds:
        columns = classes.numbers.T
        right = [_predicted(vectors, column, fold) == column[fold.test] for column in columns]
        hits.append(np.all(right, axis=0))
    return float(np.concatenate(hits).mean())


def _predicted(vectors: npt.NDArray[np.float32], labels: IntArray, fold: Fold) -> IntArray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    known = np.unique(labels[fold.train])
    if len(known) == 1:  # the classifier wants two
        return np.full(len(fold.test), known[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings(), threadpool_limits(1):  # one thread: the same numbers anywhere
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors[fold.train], labels[fold.train])
    return np.asarray(model.predict(vectors[fold.test]), np.int64)

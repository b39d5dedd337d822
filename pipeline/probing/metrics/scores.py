"""Scores on test, how sure they are, and whether one candidate beats another.

A score is a ratio over test utterances: `counts.sum() / sizes.sum()`. For an accuracy a count is 1
where the utterance is right and every size is 1; for an error rate they are its edits and its
symbols. Several seeds are averaged per utterance first, `counts` becoming their mean: they answer
the same questions, so only utterances are drawn anew, and more seeds make no score look surer than
its test set allows. How much the seeds differ is told beside it, as their standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RESAMPLES = 2_000
FLIPS = 20_000
PAIRED_TEST = "paired sign-flip test over utterances"

_CELLS_AT_ONCE = 1 << 22


def ratio(counts: npt.NDArray[np.generic], sizes: npt.NDArray[np.generic]) -> float:
    """The score of a set of utterances; a set without symbols counts as one."""
    return float(counts.sum()) / max(1.0, float(sizes.sum()))


def bootstrap_intervals(
    counts: FloatArray, sizes: IntArray, seed: int = 0, level: float = 0.95
) -> FloatArray:
    """Percentile bootstrap intervals of several candidates, over utterances.

    Efron & Tibshirani, "An introduction to the bootstrap", chapter 13.

    Args:
        counts: Of each candidate and utterance, [n_candidates, n_utterances].
        sizes: Of each utterance, [n_utterances].
        seed: Of the draws, which are the same for all candidates.
        level: Of confidence.

    Returns:
        Lower and upper ends, [n_candidates, 2].
    """
    random = np.random.default_rng(seed)
    n = len(sizes)
    at_once = max(1, _CELLS_AT_ONCE // n)
    drawn = []
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        times = random.multinomial(n, np.full(n, 1 / n), size=rows).astype(np.float64)
        drawn.append(times @ counts.T / np.maximum(1.0, times @ sizes)[:, None])
    tail = (1 - level) / 2
    return np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0).T


def paired_p_value(counts: FloatArray, others: FloatArray, seed: int = 0) -> float:
    """Two-sided p-value of the difference of two candidates on the same utterances.

    Under the null hypothesis the two are exchangeable in each utterance, so its difference is as
    likely to have the other sign. With one seed and right or wrong answers this is McNemar's exact
    test, up to the number of flips. Differences of equal size are flipped together, as a binomial.

    Args:
        counts: Of one candidate, [n_utterances].
        others: Of the other.
        seed: Of the flips.
    """
    differences = np.round(counts - others, 9)
    sizes, how_many = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    random = np.random.default_rng(seed)
    total = np.zeros(FLIPS)
    for size, number in zip(sizes.tolist(), how_many.tolist(), strict=True):
        total += size * (2 * random.binomial(number, 0.5, FLIPS) - number)
    extreme = np.abs(total) >= abs(float(differences.sum())) - 1e-6
    return (1 + int(extreme.sum())) / (1 + FLIPS)


def macro_f1(truth: IntArray, said: IntArray) -> float:
    """F1 of each class, averaged over classes and then over label columns.

    Args:
        truth: [n_utterances, n_columns].
        said: Likewise.
    """
    from sklearn.metrics import f1_score

    columns = zip(truth.T, said.T, strict=True)
    return float(np.mean([f1_score(a, b, average="macro", zero_division=0.0) for a, b in columns]))


def confusion_matrix(truth: IntArray, said: IntArray, n_classes: int) -> IntArray:
    """How often each class was taken for each: [truth, said].

    Args:
        truth: Classes, [n].
        said: Likewise.
        n_classes: Classes there are.
    """
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (truth, said), 1)
    return matrix


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, with n - 1; 0 for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

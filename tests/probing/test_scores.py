"""Metrics, intervals and the paired test, compared with independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from pipeline.probing.baselines import chance, logistic_regression, majority
from pipeline.probing.labels import Classes, Fold
from pipeline.probing.metrics import (
    bootstrap_intervals,
    confusion_matrix,
    macro_f1,
    overall_score,
    paired_p_value,
    seed_deviation,
)


def correct_counts(n_correct, n):
    """Return the counts of `n` utterances, of which the first are correct."""
    return (np.arange(n) < n_correct).astype(float)


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    """The bootstrap agrees with the normal approximation of a binomial."""
    n, n_correct = 1000, 800
    ((low, high),) = bootstrap_intervals(correct_counts(n_correct, n)[None], np.ones(n, int))
    half = norm.ppf(0.975) * np.sqrt(0.8 * 0.2 / n)
    assert low == pytest.approx(0.8 - half, abs=0.003)
    assert high == pytest.approx(0.8 + half, abs=0.003)
    assert bootstrap_intervals(correct_counts(5, 5)[None], np.ones(5, int)).tolist() == [[1.0, 1.0]]


def test_the_interval_of_an_error_rate_weights_long_utterances():
    """One long utterance with only errors makes the interval wide."""
    sizes = np.array([10] * 50 + [500])
    wrong = np.where(sizes == 500, 500.0, 0.0)
    ((low, high),) = bootstrap_intervals(wrong[None], sizes)
    assert overall_score(wrong, sizes) == 0.5
    assert low == 0.0
    assert 0.7 < high < 0.9


def test_the_interval_covers_the_true_value():
    """Of many test sets, about 95 % of the intervals contain the true accuracy."""
    random = np.random.default_rng(0)
    drawn = (random.random((200, 300)) < 0.7).astype(float)
    ends = bootstrap_intervals(drawn, np.ones(300, int))
    covered = np.mean((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7))
    assert 0.9 <= covered <= 0.99


def test_more_seeds_do_not_narrow_an_interval():
    """The mean over ten equal seeds has the interval of one seed."""
    one = correct_counts(70, 100)
    ten = np.stack([one] * 10).mean(0)
    same = bootstrap_intervals(np.stack([one, ten]), np.ones(100, int))
    assert same[0].tolist() == same[1].tolist()


@pytest.mark.parametrize(("only_one", "only_other"), [(9, 1), (30, 18), (5, 5), (12, 0)])
def test_the_paired_test_of_accuracies_is_mcnemars(only_one, only_other):
    """The p-value is that of the exact binomial test where one candidate is right, one wrong."""
    one = np.array([1.0] * only_one + [0.0] * only_other + [1.0] * 40)
    other = np.array([0.0] * only_one + [1.0] * only_other + [1.0] * 40)
    exact = binomtest(only_one, only_one + only_other).pvalue
    assert paired_p_value(one, other) == pytest.approx(exact, abs=0.012)
    assert paired_p_value(other, one) == paired_p_value(one, other)


def test_no_difference_is_not_significant():
    """Equal counts give a p-value of 1."""
    assert paired_p_value(correct_counts(10, 50), correct_counts(10, 50)) == 1.0
    counts = np.random.default_rng(0).integers(0, 5, 80).astype(float)
    assert paired_p_value(counts, counts) == 1.0


def test_the_paired_test_keeps_its_level():
    """Of equal pairs about 5 % have p below 0.05; of different pairs nearly all."""
    random = np.random.default_rng(1)
    sizes = random.integers(0, 4, (80, 120)).astype(float)
    others = random.permuted(np.stack([sizes, sizes[::-1]]), axis=0)
    null = [paired_p_value(a, b) for a, b in zip(*others, strict=True)]
    assert 0.005 < np.mean(np.array(null) < 0.05) < 0.11
    worse = sizes + (random.random(sizes.shape) < 0.2)
    assert np.mean([paired_p_value(a, b) < 0.05 for a, b in zip(sizes, worse, strict=True)]) > 0.95


def test_seeds_are_averaged_per_utterance():
    """Means over three seeds, which are thirds, are compared exactly."""
    one = np.array([1, 1 / 3, 2 / 3, 1] * 10)
    other = np.array([2 / 3, 0, 1 / 3, 2 / 3] * 10)
    assert paired_p_value(one, other) < 1e-3
    assert paired_p_value(one, one[::-1]) > 0.5


def test_macro_f1_weights_classes_equally():
    """A class that is never predicted halves the score, however rare it is."""
    truth = np.array([[0]] * 98 + [[1]] * 2)
    predictions = np.zeros((100, 1), int)
    assert macro_f1(truth, predictions) == pytest.approx((2 * 0.98 / 1.98) / 2)
    both = macro_f1(np.hstack([truth, truth]), np.hstack([predictions, truth]))
    assert both == pytest.approx((macro_f1(truth, predictions) + 1) / 2)


def test_the_confusion_matrix_has_truth_in_its_rows():
    """Two utterances of class 0 are predicted as class 2."""
    found = confusion_matrix(np.array([0, 0, 1, 0]), np.array([2, 2, 1, 0]), 3)
    assert found.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_the_deviation_of_one_seed_is_zero():
    """The deviation of several seeds is the sample standard deviation."""
    assert seed_deviation([0.7]) == 0.0
    assert seed_deviation([0.6, 0.8]) == pytest.approx(0.1 * 2**0.5)


def test_baselines():
    """Chance and majority are accuracies on test; the classifier learns linear classes."""
    random = np.random.default_rng(0)
    numbers = np.array([[0, 0, 0, 1, 2][i % 5] for i in range(200)])[:, None]
    classes = Classes((("a", "b", "c"),), numbers)
    at = np.arange(200)
    folds = [Fold(at[:100], at[100:120], at[120:])]
    vectors = random.standard_normal((200, 6)).astype(np.float32)
    assert chance(classes) == pytest.approx(1 / 3)
    assert majority(classes, folds) == 0.6
    assert logistic_regression(vectors, classes, folds) < 0.75
    vectors[:, 0] += 10 * numbers[:, 0]
    assert logistic_regression(100 + 1e-3 * vectors, classes, folds) > 0.95
    pairs = Classes((("a", "b", "c"), ("x", "y")), np.hstack([numbers, numbers == 2]))
    assert chance(pairs) == pytest.approx(1 / 6)
    assert majority(pairs, folds) == 0.6

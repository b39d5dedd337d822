"""Scores, their intervals, and the paired test: against other formulas for the same things."""

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
    paired_p_value,
    ratio,
    seed_deviation,
)


def answers(right, n):
    """Right and wrong answers to `n` utterances."""
    return (np.arange(n) < right).astype(float)


def test_the_interval_of_an_accuracy_is_that_of_a_share():
    """The bootstrap agrees with the normal approximation of a binomial where that holds."""
    n, right = 1000, 800
    ((low, high),) = bootstrap_intervals(answers(right, n)[None], np.ones(n, int))
    half = norm.ppf(0.975) * np.sqrt(0.8 * 0.2 / n)
    assert low == pytest.approx(0.8 - half, abs=0.003)
    assert high == pytest.approx(0.8 + half, abs=0.003)
    assert bootstrap_intervals(answers(5, 5)[None], np.ones(5, int)).tolist() == [[1.0, 1.0]]


def test_the_interval_of_an_error_rate_weighs_long_utterances():
    """Errors per symbol: one long utterance that is all wrong makes the interval wide."""
    sizes = np.array([10] * 50 + [500])
    wrong = np.where(sizes == 500, 500.0, 0.0)
    ((low, high),) = bootstrap_intervals(wrong[None], sizes)
    assert ratio(wrong, sizes) == 0.5
    assert low == 0.0
    assert 0.7 < high < 0.9


def test_the_interval_covers_the_truth():
    """Over many test sets, about 95 % of the intervals hold the share they were drawn from."""
    random = np.random.default_rng(0)
    drawn = (random.random((200, 300)) < 0.7).astype(float)
    ends = bootstrap_intervals(drawn, np.ones(300, int))
    covered = np.mean((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7))
    assert 0.9 <= covered <= 0.99


def test_more_seeds_do_not_make_a_test_set_larger():
    """The mean over ten equal seeds is no surer than one seed."""
    one = answers(70, 100)
    ten = np.stack([one] * 10).mean(0)
    same = bootstrap_intervals(np.stack([one, ten]), np.ones(100, int))
    assert same[0].tolist() == same[1].tolist()


@pytest.mark.parametrize(("only_one", "only_other"), [(9, 1), (30, 18), (5, 5), (12, 0)])
def test_the_paired_test_is_mcnemars_for_right_and_wrong(only_one, only_other):
    """The exact binomial test on the utterances that only one of the two gets right."""
    one = np.array([1.0] * only_one + [0.0] * only_other + [1.0] * 40)
    other = np.array([0.0] * only_one + [1.0] * only_other + [1.0] * 40)
    exact = binomtest(only_one, only_one + only_other).pvalue
    assert paired_p_value(one, other) == pytest.approx(exact, abs=0.012)
    assert paired_p_value(other, one) == paired_p_value(one, other)


def test_no_difference_is_no_evidence():
    """However many utterances agree."""
    assert paired_p_value(answers(10, 50), answers(10, 50)) == 1.0
    counts = np.random.default_rng(0).integers(0, 5, 80).astype(float)
    assert paired_p_value(counts, counts) == 1.0


def test_the_paired_test_keeps_its_level():
    """Of pairs that do not differ, about 5 % have p below 0.05; of those that do, nearly all."""
    random = np.random.default_rng(1)
    sizes = random.integers(0, 4, (80, 120)).astype(float)
    others = random.permuted(np.stack([sizes, sizes[::-1]]), axis=0)
    null = [paired_p_value(a, b) for a, b in zip(*others, strict=True)]
    assert 0.005 < np.mean(np.array(null) < 0.05) < 0.11
    worse = sizes + (random.random(sizes.shape) < 0.2)
    assert np.mean([paired_p_value(a, b) < 0.05 for a, b in zip(sizes, worse, strict=True)]) > 0.95


def test_seeds_are_averaged_per_utterance():
    """Thirds, as three seeds give them, are compared exactly."""
    one = np.array([1, 1 / 3, 2 / 3, 1] * 10)
    other = np.array([2 / 3, 0, 1 / 3, 2 / 3] * 10)
    assert paired_p_value(one, other) < 1e-3
    assert paired_p_value(one, one[::-1]) > 0.5


def test_macro_f1_counts_every_class_alike():
    """A class that is never found halves the score, however rare it is."""
    truth = np.array([[0]] * 98 + [[1]] * 2)
    predictions = np.zeros((100, 1), int)
    assert macro_f1(truth, predictions) == pytest.approx((2 * 0.98 / 1.98) / 2)
    both = macro_f1(np.hstack([truth, truth]), np.hstack([predictions, truth]))
    assert both == pytest.approx((macro_f1(truth, predictions) + 1) / 2)


def test_the_confusion_matrix_has_truth_in_its_rows():
    """Two of class 0 were taken for class 2."""
    found = confusion_matrix(np.array([0, 0, 1, 0]), np.array([2, 2, 1, 0]), 3)
    assert found.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_the_deviation_of_one_seed_is_zero():
    """And that of several their sample standard deviation."""
    assert seed_deviation([0.7]) == 0.0
    assert seed_deviation([0.6, 0.8]) == pytest.approx(0.1 * 2**0.5)


def test_baselines():
    """Chance and majority are shares of the test set; the classifier learns what is linear."""
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

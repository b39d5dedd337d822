"""Metrics, intervals and the paired test, compared with independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from pipeline.probing.baselines import (
    baseline_warnings,
    chance,
    logistic_regression,
    majority,
)
from pipeline.probing.evaluation import Evaluation, Ratio, Sums
from pipeline.probing.labels import Classes, Fold
from pipeline.probing.metrics import confusion_matrix, macro_f1
from pipeline.probing.report.p_values import p_value_text
from pipeline.probing.results import CandidateScore, HeadResult
from pipeline.probing.significance import (
    draws_of,
    interval,
    paired_results,
    paired_test,
    resampled_scores,
    seed_deviation,
    sign_flip_p_value,
    smallest_p_value,
)


def correct_counts(n_correct, n):
    """Return the counts of `n` utterances, of which the first are correct."""
    return (np.arange(n) < n_correct).astype(float)


def intervals(*counts, sizes=None):
    """Return the interval of each row of counts."""
    sizes = np.ones(len(counts[0])) if sizes is None else sizes
    return interval(resampled_scores([[Ratio(row, sizes)] for row in counts]))


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    """The bootstrap agrees with the normal approximation of a binomial."""
    n, n_correct = 1000, 800
    ((low, high),) = intervals(correct_counts(n_correct, n))
    half = norm.ppf(0.975) * np.sqrt(0.8 * 0.2 / n)
    assert low == pytest.approx(0.8 - half, abs=0.003)
    assert high == pytest.approx(0.8 + half, abs=0.003)
    assert intervals(correct_counts(5, 5)).tolist() == [[1.0, 1.0]]


def test_the_interval_of_an_error_rate_weights_long_utterances():
    """One long utterance with only errors makes the interval wide."""
    sizes = np.array([10] * 50 + [500])
    wrong = np.where(sizes == 500, 500.0, 0.0)
    ((low, high),) = intervals(wrong, sizes=sizes)
    assert Ratio(wrong, sizes).score == 0.5
    assert low == 0.0
    assert 0.7 < high < 0.9


def test_the_interval_covers_the_true_value():
    """Of many test sets, about 95 % of the intervals contain the true accuracy."""
    random = np.random.default_rng(0)
    drawn = (random.random((200, 300)) < 0.7).astype(float)
    ends = intervals(*drawn)
    covered = np.mean((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7))
    assert 0.9 <= covered <= 0.99


def test_an_error_rate_without_symbols_is_the_number_of_errors():
    """A drawn test set of empty references has a score, too."""
    assert Ratio(np.array([2.0, 1.0]), np.zeros(2)).score == 3.0


def test_more_seeds_do_not_narrow_an_interval():
    """The mean over ten equal seeds has the interval of one seed."""
    one = Ratio(correct_counts(70, 100), np.ones(100))
    first, second = interval(resampled_scores([[one], [one] * 10]))
    assert second == pytest.approx(first, abs=1e-12)


def test_the_score_of_several_seeds_is_the_mean_of_their_scores():
    """Also on resampled test sets, and if the score is no ratio of the mean counts."""
    random = np.random.default_rng(0)
    runs = [Sums(random.random((40, 2)), lambda sums: sums[:, 0] ** 2) for _ in range(3)]
    together = resampled_scores([runs])[0]
    alone = [resampled_scores([[run]])[0] for run in runs]
    assert together == pytest.approx(np.mean(alone, axis=0))


@pytest.mark.parametrize(("only_one", "only_other"), [(9, 1), (30, 18), (5, 5), (12, 0)])
def test_the_paired_test_of_accuracies_is_mcnemars(only_one, only_other):
    """The p-value is that of the exact binomial test where one candidate is right, one wrong."""
    one = np.array([1.0] * only_one + [0.0] * only_other + [1.0] * 40)
    other = np.array([0.0] * only_one + [1.0] * only_other + [1.0] * 40)
    exact = binomtest(only_one, only_one + only_other).pvalue
    assert sign_flip_p_value(one, other) == pytest.approx(exact, abs=0.012)
    assert sign_flip_p_value(other, one) == sign_flip_p_value(one, other)


def test_no_difference_is_not_significant():
    """Equal counts give a p-value of 1."""
    assert sign_flip_p_value(correct_counts(10, 50), correct_counts(10, 50)) == 1.0
    counts = np.random.default_rng(0).integers(0, 5, 80).astype(float)
    assert sign_flip_p_value(counts, counts) == 1.0


def test_the_paired_test_keeps_its_level():
    """Of equal pairs about 5 % have p below 0.05; of different pairs nearly all."""
    random = np.random.default_rng(1)
    sizes = random.integers(0, 4, (80, 120)).astype(float)
    others = random.permuted(np.stack([sizes, sizes[::-1]]), axis=0)
    null = [sign_flip_p_value(a, b) for a, b in zip(*others, strict=True)]
    assert 0.005 < np.mean(np.array(null) < 0.05) < 0.11
    worse = sizes + (random.random(sizes.shape) < 0.2)
    assert (
        np.mean([sign_flip_p_value(a, b) < 0.05 for a, b in zip(sizes, worse, strict=True)]) > 0.95
    )


def test_seeds_are_averaged_per_utterance():
    """Means over three seeds, which are thirds, are compared exactly."""
    one = np.array([1, 1 / 3, 2 / 3, 1] * 10)
    other = np.array([2 / 3, 0, 1 / 3, 2 / 3] * 10)
    assert sign_flip_p_value(one, other) < 1e-3
    assert sign_flip_p_value(one, one[::-1]) > 0.5


def correlation(sums):
    """Return the correlation of x and y from sums of 1, x, y, xx, yy, xy."""
    n, x, y, xx, yy, xy = sums.T
    return (xy / n - x * y / n**2) / np.sqrt((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2))


def correlated(x, y):
    """Return the evaluation of predictions `x` of `y` by their correlation."""
    return Sums(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1), correlation)


def test_the_interval_of_a_correlation_is_fishers():
    """The bootstrap of a function of sums agrees with the z-transformation."""
    random = np.random.default_rng(3)
    x = random.standard_normal(600)
    y = x + random.standard_normal(600)
    run = correlated(x, y)
    assert run.score == pytest.approx(np.corrcoef(x, y)[0, 1])
    expected = np.tanh(np.arctanh(run.score) + np.array([-1, 1]) * norm.ppf(0.975) / 597**0.5)
    assert interval(resampled_scores([[run]]))[0] == pytest.approx(expected, abs=0.012)


def test_the_permutation_test_keeps_its_level():
    """Of predictions that are equally good about 5 % have p below 0.05; of better ones nearly all.

    For scores that are a ratio it is the sign-flip test.
    """
    random = np.random.default_rng(4)
    p_values: dict[float, list[float]] = {1.0: [], 0.5: []}
    for _ in range(60):
        y = random.standard_normal(80)
        one = correlated(y + random.standard_normal(80), y)
        for noise, found in p_values.items():
            p_value, name = paired_test(
                [one], [correlated(y + noise * random.standard_normal(80), y)]
            )
            found.append(p_value)
    assert name == "paired permutation test over utterances"
    assert np.mean(np.array(p_values[1.0]) < 0.05) < 0.13
    assert np.mean(np.array(p_values[0.5]) < 0.05) > 0.7
    counts = [random.integers(0, 2, 60).astype(float) for _ in range(2)]
    a, b = (Ratio(row, np.ones(60)) for row in counts)
    same = [Sums(run.values, run.of_sums) for run in (a, b)]
    exact = sign_flip_p_value(*counts)
    assert paired_test([a], [b]) == (exact, "paired sign-flip test over utterances")
    assert paired_test([same[0]], [same[1]])[0] == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize(
    ("p_value", "test", "expected"),
    [
        (1 / 20_001, "paired sign-flip test over utterances", "p < 0.0001"),
        (2 / 20_001, "paired sign-flip test over utterances", "p = 0.0001"),
        (1 / 4_001, "paired permutation test over utterances", "p < 0.001"),
        (2 / 2_001, "paired bootstrap over speakers", "p < 0.001"),
        (0.25, "paired bootstrap over speakers", "p = 0.25"),
        (math.nan, "paired bootstrap over speakers", "p = nan"),
        (1e-9, "a test of another version", "p = 1e-09"),
    ],
)
def test_the_smallest_p_value_of_random_draws_is_a_bound(p_value, test, expected):
    """With k draws a p-value is never below about 1 / k, whatever the difference is."""
    assert p_value_text(p_value, test) == expected


def test_a_large_difference_has_the_smallest_p_value():
    """Of each paired test; its name gives the number of draws."""
    better, worse = np.ones(60), np.zeros(60)
    sizes = np.ones(60)
    p_value, test = paired_test([Ratio(better, sizes)], [Ratio(worse, sizes)])
    assert p_value == smallest_p_value(test)
    assert draws_of(test) == (20_000, "random sign flips")


class Median(Evaluation):
    """A score that is no function of sums: the weighted median of values."""

    def __init__(self, values):
        super().__init__(len(values), "speakers")
        self.order, self.sorted = np.argsort(values), np.sort(values)

    def scores(self, weights):
        """Return the smallest value with half of the weight."""
        shares = weights[:, self.order].cumsum(1)
        return self.sorted[(shares >= shares[:, -1:] / 2).argmax(1)]


PAIRS = [(0, 1), (2, 0)]


def test_other_scores_are_compared_by_the_bootstrap():
    """A clear difference has a small p-value, none a large one."""
    values = np.random.default_rng(5).standard_normal(200)
    p_value, name = paired_test([Median(values)], [Median(values + 0.8)])
    assert name == "paired bootstrap over speakers"
    assert p_value < 0.01
    assert paired_test([Median(values)], [Median(values.copy())])[0] == 1.0


def test_pairs_are_tested_as_alone():
    """Samples are drawn once for all pairs; a difference is that of the first to the second."""
    values = np.random.default_rng(5).standard_normal(60)
    medians = [[Median(values + shift)] for shift in (0.0, 0.8, 0.1)]
    ratios = [[Ratio(values > shift, np.ones(60))] for shift in (0.0, 0.8, 0.1)]
    for sets in (medians, ratios):
        for (one, other), found in zip(PAIRS, paired_results(sets, PAIRS, seed=3), strict=True):
            assert (found.p_value, found.test) == paired_test(sets[one], sets[other], seed=3)
            difference = sets[one][0].score - sets[other][0].score
            assert found.low <= difference <= found.high
    assert paired_results(medians, PAIRS)[0].high < 0
    assert paired_results(medians, []) == []


@pytest.mark.parametrize(("n", "smallest"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_the_bootstrap_of_few_groups_is_no_surer_than_sign_flips(n, smallest):
    """One group makes all samples equal: no difference is shown, however large it is."""
    values = np.arange(n, dtype=float)
    assert paired_test([Median(values)], [Median(values + 9)])[0] == smallest


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


def test_a_baseline_beyond_the_interval_gives_a_warning():
    """With the advice to train longer, if most heads were best near the last step."""
    best = CandidateScore(3, 1e-2, 0.5, 0.4, 0.3, 0.45, 0.0)
    late, early = (HeadResult(3, 1e-2, 0, 0, step, 0.5, 0.4, (), ()) for step in (620, 100))
    baselines = {"chance": 0.1, "logistic regression, layer 3": 0.5}
    (warning,) = baseline_warnings(best, [late, late, early], baselines, 640, True)
    assert warning.startswith("the baseline 'logistic regression, layer 3' (0.500) is better than")
    assert "2 of its 3 heads had the best dev score near the last of 640 steps" in warning
    assert warning.endswith("raise task.steps")
    (warning,) = baseline_warnings(best, [early, early], baselines, 640, True)
    assert "steps" not in warning
    assert baseline_warnings(best, [late], {"chance": 0.1, "other": 0.44}, 640, True) == ()
    assert baseline_warnings(best, [late], {"chance": 0.9}, 640, False) == ()
    assert baseline_warnings(best, [late], {"chance": 0.2}, 640, False)
    assert baseline_warnings(best, [late], {"chance": 0.45}, 640, True) == ()  # the bound
    assert baseline_warnings(best, [late], {"chance": 0.3}, 640, False) == ()
    (warning,) = baseline_warnings(best, [late], {"chance": 0.6, "majority class": 0.7}, 640, True)
    assert "'majority class' (0.700)" in warning


@pytest.mark.parametrize(
    ("steps", "is_late"), [((513,), True), ((512,), False), ((620, 100), False)]
)
def test_a_baseline_that_wins_names_the_steps_if_most_heads_are_late(steps, is_late):
    """Late is after four fifths of the steps, and most is more than half of the heads."""
    best = CandidateScore(3, 1e-2, 0.5, 0.4, 0.3, 0.45, 0.0)
    heads = [HeadResult(3, 1e-2, 0, 0, step, 0.5, 0.4, (), ()) for step in steps]
    (warning,) = baseline_warnings(best, heads, {"chance": 0.5}, 640, True)
    assert ("raise task.steps" in warning) == is_late

"""Confidence intervals of scores, and tests of the difference of two candidates.

Candidates and seeds are tested on the same groups. The bootstrap draws groups only, so more seeds
do not narrow an interval; the deviation between seeds is reported separately. The score of several
seeds is the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from pipeline.probing.evaluation import Evaluation, FloatArray, Ratio, Sums

Runs = Sequence[Evaluation]
"""Evaluations whose mean score is reported, e.g. those of the seeds of a candidate."""

N_RESAMPLES = 2_000
"""Bootstrap samples of an interval."""
N_FLIPS = 20_000
"""Random sign flips of a paired test."""
N_SWAPS = 4_000
"""Random swaps of a paired test of scores that are no ratio."""

_SIGN_FLIP = "paired sign-flip test"
_PERMUTATION = "paired permutation test"
_BOOTSTRAP = "paired bootstrap"
_DRAWS = {
    _SIGN_FLIP: (N_FLIPS, "random sign flips"),
    _PERMUTATION: (N_SWAPS, "random swaps"),
    _BOOTSTRAP: (N_RESAMPLES, "resamples"),
}
"""Number and name of the random draws of each test."""
_LEVEL = 0.95
_CELLS_PER_CHUNK = 1 << 22
"""Largest number of draws × groups that is drawn at once: 32 MiB of float64."""


def mean_score(runs: Runs) -> float:
    """Return the mean score of runs."""
    return float(np.mean([run.score for run in runs]))


def resampled_scores(sets: Sequence[Runs], seed: int = 0) -> FloatArray:
    """Return the mean score of each set of runs on bootstrap samples of the test groups.

    Args:
        sets: Runs of several candidates, all on the same groups.
        seed: Seed of the draws. All sets share the draws.

    Returns:
        [n_sets, `N_RESAMPLES`].
    """
    n = sets[0][0].n_groups
    random = np.random.default_rng(seed)
    parts = []
    for n_draws in _chunks(N_RESAMPLES, n):
        # number of times that each group is drawn: [n_draws, n_groups]
        weights = random.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float64)
        parts.append([np.mean([run.scores(weights) for run in runs], axis=0) for runs in sets])
    return np.concatenate(parts, axis=1)


def interval(resampled: FloatArray) -> FloatArray:
    """Return percentile bootstrap intervals at 95 %.

    Efron & Tibshirani, "An introduction to the bootstrap", chapter 13.

    Args:
        resampled: Scores on bootstrap samples, [..., n_resamples].

    Returns:
        Lower and upper bounds, [..., 2].
    """
    tail = (1 - _LEVEL) / 2
    return np.moveaxis(np.quantile(resampled, [tail, 1 - tail], axis=-1), 0, -1)


def paired_test(
    runs_a: Runs,
    runs_b: Runs,
    seed: int = 0,
    resampled: tuple[FloatArray, FloatArray] | None = None,
) -> tuple[float, str]:
    """Test whether two candidates differ, on the same test groups.

    Ratios of equal sizes: sign flips of the difference of each group. Other functions of sums:
    swaps of the two candidates in each group. Other scores: bootstrap of the difference, with a
    p-value of at least 0.5 ** (n - 1) for n groups: the smallest that a sign-flip test has. Of one
    group all bootstrap samples are equal.

    Args:
        runs_a: Runs of one candidate.
        runs_b: Runs of the other candidate, as many, in the same order.
        seed: Seed of the test.
        resampled: `resampled_scores` of both with the same seed, if they are known.

    Returns:
        The two-sided p-value, and the name of the test.
    """
    group, every = runs_a[0].group, [*runs_a, *runs_b]
    if _are_ratios(every) and all(np.array_equal(run.sizes, every[0].sizes) for run in every):
        a, b = (
            np.asarray(np.mean([run.counts for run in part], axis=0))
            for part in (every[: len(runs_a)], every[len(runs_a) :])
        )
        return sign_flip_p_value(a, b, seed), f"{_SIGN_FLIP} over {group}"
    if _are_sums(every):
        swapped = _swap_p_value(every[: len(runs_a)], every[len(runs_a) :], seed)
        return swapped, f"{_PERMUTATION} over {group}"
    a, b = resampled_scores([runs_a, runs_b], seed) if resampled is None else resampled
    p_value = _bootstrap_p_value(a, b, runs_a[0].n_groups)
    return p_value, f"{_BOOTSTRAP} over {group}"


@dataclass(frozen=True)
class PairedResult:
    """Difference of two candidates on the same test groups.

    Attributes:
        low: Lower bound of the 95 % bootstrap interval of the difference.
        high: Upper bound of that interval.
        p_value: p-value of the paired test.
        test: Name of the paired test.
    """

    low: float
    high: float
    p_value: float
    test: str


def paired_results(
    sets: Sequence[Runs], pairs: Sequence[tuple[int, int]], seed: int = 0
) -> list[PairedResult]:
    """Test pairs of candidates as `paired_test` does; each candidate is resampled once.

    Args:
        sets: Runs of the candidates, as many of each, on the same groups.
        pairs: Positions of the candidates of each pair.
        seed: Seed of the tests and of the draws.
    """
    if not pairs:
        return []
    resampled = resampled_scores(sets, seed)
    found = []
    for one, other in pairs:
        a, b = resampled[one], resampled[other]
        low, high = interval(a - b).tolist()
        found.append(PairedResult(low, high, *paired_test(sets[one], sets[other], seed, (a, b))))
    return found


def draws_of(test: str) -> tuple[int, str] | None:
    """Return the number of random draws of a test, and what they are, by the name of the test.

    None for a name that `paired_test` does not give.
    """
    return next((draws for name, draws in _DRAWS.items() if test.startswith(name)), None)


def smallest_p_value(test: str) -> float:
    """Return the p-value of a test in which no random draw is as extreme as what was found."""
    if (draws := draws_of(test)) is None:
        return 0.0
    return (2 if test.startswith(_BOOTSTRAP) else 1) / (1 + draws[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 1979: the smallest is multiplied by the number of tests, the next one by one less,
    and so on; a corrected value is at least that of a smaller one.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(np.take(p_values, order) * factors))
    return [float(value) for value in corrected]


def _bootstrap_p_value(a: FloatArray, b: FloatArray, n_groups: int) -> float:
    """Return the two-sided p-value of the difference of two scores on bootstrap samples."""
    n_tail = min(int((a <= b).sum()), int((a >= b).sum()))
    return min(1.0, max(2 * (1 + n_tail) / (1 + N_RESAMPLES), 0.5 ** (n_groups - 1)))


def sign_flip_p_value(counts_a: FloatArray, counts_b: FloatArray, seed: int = 0) -> float:
    """Return the two-sided p-value of the difference of two candidates' counts.

    Under the null hypothesis the two are exchangeable in each group, so each difference is equally
    likely to have either sign. For accuracies of one seed this approximates McNemar's exact test,
    with `N_FLIPS` random flips. For the k differences of one size, the k random signs are drawn as
    one binomial(k, 0.5).

    Args:
        counts_a: Counts of one candidate, [n_groups].
        counts_b: Counts of the other candidate, [n_groups].
        seed: Seed of the flips.
    """
    differences = np.round(counts_a - counts_b, 9)
    sizes, n_of_size = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    random = np.random.default_rng(seed)
    total = np.zeros(N_FLIPS)
    for size, number in zip(sizes.tolist(), n_of_size.tolist(), strict=True):
        total += size * (2 * random.binomial(number, 0.5, N_FLIPS) - number)
    extreme = np.abs(total) >= abs(float(differences.sum())) - 1e-6
    return (1 + int(extreme.sum())) / (1 + N_FLIPS)


def _swap_p_value(runs_a: Sequence[Sums], runs_b: Sequence[Sums], seed: int) -> float:
    """Return the two-sided p-value of the difference of two candidates' scores.

    Under the null hypothesis the two are exchangeable in each group. All runs of a candidate are
    swapped together.
    """
    random = np.random.default_rng(seed)
    n = runs_a[0].n_groups
    found = abs(mean_score(runs_a) - mean_score(runs_b))
    n_extreme = 0
    for n_draws in _chunks(N_SWAPS, n):
        swapped = random.integers(0, 2, (n_draws, n)).astype(np.float64)
        difference = np.zeros(n_draws)
        for a, b in zip(runs_a, runs_b, strict=True):
            moved = swapped @ (b.values - a.values)
            difference += a.of_sums(a.values.sum(0) + moved) - b.of_sums(b.values.sum(0) - moved)
        n_extreme += int((np.abs(difference / len(runs_a)) >= found - 1e-9).sum())
    return (1 + n_extreme) / (1 + N_SWAPS)


def seed_deviation(scores: Sequence[float]) -> float:
    """Return the sample standard deviation over seeds; 0 for one seed."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


def _chunks(n_draws: int, n_groups: int) -> Iterator[int]:
    """Yield numbers of draws that sum to `n_draws` and that fit in memory."""
    largest = max(1, _CELLS_PER_CHUNK // n_groups)
    for start in range(0, n_draws, largest):
        yield min(largest, n_draws - start)


def _are_ratios(runs: Sequence[Evaluation]) -> TypeGuard[Sequence[Ratio]]:
    return all(isinstance(run, Ratio) for run in runs)


def _are_sums(runs: Sequence[Evaluation]) -> TypeGuard[Sequence[Sums]]:
    return all(isinstance(run, Sums) for run in runs)

"""Paired tests of candidates of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.comparing.evaluating import evaluations
from pipeline.comparing.results import PairTest, Variant
from pipeline.probing.report.naming import candidate_name
from pipeline.probing.results import Candidate
from pipeline.probing.significance import holm, paired_results


def paired_tests(
    sides: Sequence[tuple[Variant, Candidate]], wanted: Sequence[tuple[int, int]]
) -> list[PairTest]:
    """Test pairs of candidates; the p-values are not corrected yet.

    Args:
        sides: Variants with the same test units and numbers of seeds, each with a candidate.
        wanted: Positions of the sides of each pair.

    Raises:
        ConfigError: The predictions of a sweep do not give its score.
    """
    runs = [evaluations(variant.sweep, candidate) for variant, candidate in sides]
    tests = []
    for (i, j), found in zip(wanted, paired_results(runs, wanted), strict=True):
        (one, first), (other, second) = sides[i], sides[j]
        tests.append(
            PairTest(
                first=one.name,
                first_candidate=first,
                second=other.name,
                second_candidate=second,
                difference=one.sweep.score(first).test - other.sweep.score(second).test,
                low=found.low,
                high=found.high,
                p_value=found.p_value,
                adjusted=1.0,
                test=found.test,
                first_name=candidate_name(first, one.sweep),
                second_name=candidate_name(second, other.sweep),
            )
        )
    return tests


def corrected(tests: Sequence[PairTest]) -> list[PairTest]:
    """Return tests with p-values that are corrected for their number by Holm's method."""
    adjusted = holm([test.p_value for test in tests]) if tests else []
    return [replace(test, adjusted=value) for test, value in zip(tests, adjusted, strict=True)]

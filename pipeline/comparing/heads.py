"""Whether another kind of head has another best layer.

Zaiem et al., "Speech self-supervised representations benchmarking: a case for larger probing
heads", 2023, find that rankings of encoders change with the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.comparing.pairs import corrected, paired_tests
from pipeline.comparing.results import HeadChange, PairTest
from pipeline.config.sweep_schema import ATTENTIVE, COSINE, LDA, LINEAR, LSTM, MLP
from pipeline.probing.evaluation import FloatArray
from pipeline.probing.report.naming import candidate_name
from pipeline.probing.results import Candidate, Sweep

if TYPE_CHECKING:
    from pipeline.comparing.results import TaskComparison, Variant

_KNOWN = (LINEAR, MLP, ATTENTIVE, LSTM, COSINE, LDA)

MIN_RANKED = 5
"""Fewest layers of which a rank correlation is stated: of four, any order has one of 1/24."""


def head_order(head: str) -> tuple[int, str]:
    """Return the place of a kind of head: the simplest come first."""
    return (_KNOWN.index(head) if head in _KNOWN else len(_KNOWN), head)


def compare_heads(task: TaskComparison) -> tuple[HeadChange, ...]:
    """Compare the other heads of each encoder with its first one, at the largest share of train.

    Sweeps of a single layer have no best layer and are not compared.
    """
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in task.full:
        groups.setdefault((variant.encoder, variant.setting), []).append(variant)
    changes = [
        _change(variants[0], other)
        for variants in groups.values()
        for other in variants[1:]
        if other.head != variants[0].head and min(map(_n_single, (variants[0], other))) > 1
    ]
    tests = iter(corrected([change.test for change in changes if change.test is not None]))
    return tuple(
        change if change.test is None else replace(change, test=next(tests)) for change in changes
    )


def _n_single(variant: Variant) -> int:
    """Return the number of single layers that were swept."""
    return sum(isinstance(score.layer, int) for score in variant.sweep.scores)


def _change(first: Variant, other: Variant) -> HeadChange:
    n_layers, correlation = _rank_correlation(first.sweep, other.sweep)
    before, after = first.best_layer.layer, other.best_layer.layer
    return HeadChange(
        encoder=first.encoder,
        reference=first.head,
        head=other.head,
        reference_layer=before,
        layer=after,
        n_layers=n_layers,
        rank_correlation=correlation,
        test=_test(other, after, before),
        reference_name=candidate_name(before, first.sweep),
        name=candidate_name(after, other.sweep),
    )


def _test(variant: Variant, layer: Candidate, other: Candidate) -> PairTest | None:
    """Test two layers with one head; the p-value is not corrected yet."""
    layers = [score.layer for score in variant.sweep.scores]
    if layer == other or other not in layers or variant.test_set is None:
        return None
    [found] = paired_tests([(variant, layer), (variant, other)], [(0, 1)])
    return found


def _rank_correlation(one: Sweep, other: Sweep) -> tuple[int, float | None]:
    """Return the number of layers that both have, and Spearman's correlation of their dev scores.

    The latter is None with fewer layers than `MIN_RANKED`, or if all scores of one are equal.
    """
    mine, theirs = (
        {score.layer: score.dev for score in sweep.scores if isinstance(score.layer, int)}
        for sweep in (one, other)
    )
    layers = [layer for layer in mine if layer in theirs]
    if len(layers) < MIN_RANKED:
        return len(layers), None
    first, second = (_ranks([scores[layer] for layer in layers]) for scores in (mine, theirs))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return len(layers), None
    return len(layers), float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Sequence[float]) -> FloatArray:
    """Return ranks; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])

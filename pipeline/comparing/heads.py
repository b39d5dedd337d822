"""Whether another kind of head has another best layer.

Zaiem et al., "Speech self-supervised representations benchmarking: a case for larger probing
heads", 2023, find that rankings of encoders change with the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.comparing.evaluating import evaluations
from pipeline.comparing.results import HeadChange, PairTest
from pipeline.config.sweep_schema import ATTENTIVE, COSINE, LDA, LINEAR, LSTM, MLP
from pipeline.probing.evaluation import FloatArray
from pipeline.probing.results import Candidate, Sweep
from pipeline.probing.significance import holm, paired_results

if TYPE_CHECKING:
    from pipeline.comparing.results import TaskComparison, Variant

_KNOWN = (LINEAR, MLP, ATTENTIVE, LSTM, COSINE, LDA)


def head_order(head: str) -> tuple[int, str]:
    """Return the place of a kind of head: the simplest come first."""
    return (_KNOWN.index(head) if head in _KNOWN else len(_KNOWN), head)


def compare_heads(task: TaskComparison) -> tuple[HeadChange, ...]:
    """Compare the other heads of each encoder with its first one, at the largest share of train."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in task.full:
        groups.setdefault((variant.encoder, variant.setting), []).append(variant)
    changes = [
        _change(variants[0], other)
        for variants in groups.values()
        for other in variants[1:]
        if other.head != variants[0].head
    ]
    tests = [change.test for change in changes if change.test is not None]
    adjusted = iter(holm([test.p_value for test in tests]) if tests else [])
    return tuple(
        change
        if change.test is None
        else replace(change, test=replace(change.test, adjusted=next(adjusted)))
        for change in changes
    )


def _change(first: Variant, other: Variant) -> HeadChange:
    before, after = first.best_layer.layer, other.best_layer.layer
    return HeadChange(
        encoder=first.encoder,
        reference=first.head,
        head=other.head,
        reference_layer=before,
        layer=after,
        rank_correlation=_rank_correlation(first.sweep, other.sweep),
        test=_test(other, after, before),
    )


def _test(variant: Variant, layer: Candidate, other: Candidate) -> PairTest | None:
    """Test two layers with one head; the p-value is not corrected yet."""
    layers = [score.layer for score in variant.sweep.scores]
    if layer == other or other not in layers or variant.test_set is None:
        return None
    runs = [evaluations(variant.sweep, item) for item in (layer, other)]
    [found] = paired_results(runs, [(0, 1)])
    scores = [variant.sweep.score(item).test for item in (layer, other)]
    return PairTest(
        first=variant.name,
        first_candidate=layer,
        second=variant.name,
        second_candidate=other,
        difference=scores[0] - scores[1],
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        adjusted=1.0,
        test=found.test,
    )


def _rank_correlation(one: Sweep, other: Sweep) -> float | None:
    """Return Spearman's correlation of the dev scores of the layers that both have."""
    mine, theirs = (
        {score.layer: score.dev for score in sweep.scores if isinstance(score.layer, int)}
        for sweep in (one, other)
    )
    layers = [layer for layer in mine if layer in theirs]
    if len(layers) < 3:
        return None
    first, second = (_ranks([scores[layer] for layer in layers]) for scores in (mine, theirs))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Sequence[float]) -> FloatArray:
    """Return ranks; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])

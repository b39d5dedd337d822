"""Ranking of candidates: dev selects the learning rate and the best candidate, test is reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.probing.metrics import (
    PAIRED_TEST,
    FloatArray,
    IntArray,
    bootstrap_intervals,
    overall_score,
    paired_p_value,
    seed_deviation,
)
from pipeline.probing.results import WEIGHTED, Candidate, CandidateScore, Comparison, HeadResult
from pipeline.probing.tasks.base import Task

HeadsBySeed = list[list[HeadResult]]
"""Heads of one candidate at one learning rate, [n_seeds][n_folds], by seed and by fold."""


@dataclass(frozen=True)
class Ranking:
    """Scores of all candidates, and the best one.

    Attributes:
        scores: One per candidate, in the order of the sweep.
        best: The candidate with the best dev score.
        comparison: Paired test of the best two candidates by dev; None if there is only one.
        chosen: Heads of each candidate at the learning rate with the best dev score.
    """

    scores: tuple[CandidateScore, ...]
    best: Candidate
    comparison: Comparison | None
    chosen: dict[Candidate, HeadsBySeed]


def rank(task: Task, heads: Sequence[HeadResult], candidates: Sequence[Candidate]) -> Ranking:
    """Score and rank the candidates.

    Args:
        task: The task that the heads learned.
        heads: All heads of the sweep.
        candidates: The candidates, in the order of the sweep. The first wins a tie.
    """
    sign = 1.0 if task.higher_is_better else -1.0
    chosen = {layer: _heads_at_best_lr(heads, layer, sign) for layer in candidates}
    # utterances: the test utterances of all folds, fold after fold
    sizes = sizes_of(task, chosen[candidates[0]])
    counts = {layer: counts_of(task, by_seed) for layer, by_seed in chosen.items()}
    means = np.stack([counts[layer].mean(0) for layer in candidates])  # [candidates, utterances]
    intervals = bootstrap_intervals(means, sizes)
    scores = tuple(
        _score(task, layer, chosen[layer], counts[layer], sizes, intervals[i])
        for i, layer in enumerate(candidates)
    )
    order = sorted(range(len(scores)), key=lambda i: -sign * scores[i].dev)
    best = scores[order[0]]
    comparison = None
    if len(order) > 1:
        second = scores[order[1]]
        p_value = paired_p_value(means[order[0]], means[order[1]])
        comparison = Comparison(
            best.layer, second.layer, best.test - second.test, p_value, PAIRED_TEST
        )
    return Ranking(scores, best.layer, comparison, chosen)


def best_single_layer(scores: Sequence[CandidateScore], higher_is_better: bool) -> Candidate:
    """Return the candidate with the best dev score, without the weighted sum."""
    layers = [score for score in scores if score.layer != WEIGHTED]
    ordered = sorted(layers, key=lambda score: score.dev, reverse=higher_is_better)
    return ordered[0].layer


def _heads_at_best_lr(heads: Sequence[HeadResult], layer: Candidate, sign: float) -> HeadsBySeed:
    """Return the heads of a candidate at the learning rate with the best mean dev score."""
    by_rate: dict[float, list[HeadResult]] = defaultdict(list)
    for head in heads:
        if head.layer == layer:
            by_rate[head.lr].append(head)
    best = max(by_rate.values(), key=lambda group: sign * float(np.mean([h.dev for h in group])))
    by_seed: dict[int, list[HeadResult]] = defaultdict(list)
    for head in sorted(best, key=lambda head: (head.seed, head.fold)):
        by_seed[head.seed].append(head)
    return list(by_seed.values())


def sizes_of(task: Task, by_seed: HeadsBySeed) -> IntArray:
    """Return the size of each test utterance, fold after fold: [n_utterances]."""
    return np.concatenate([task.sizes(head.fold) for head in by_seed[0]])


def counts_of(task: Task, by_seed: HeadsBySeed) -> FloatArray:
    """Return the counts of each seed, fold after fold: [n_seeds, n_utterances]."""
    return np.stack([np.concatenate([task.counts(head) for head in folds]) for folds in by_seed])


def _score(
    task: Task,
    layer: Candidate,
    by_seed: HeadsBySeed,
    counts: FloatArray,
    sizes: IntArray,
    interval: FloatArray,
) -> CandidateScore:
    """Score a candidate.

    Args:
        task: The task.
        layer: The candidate.
        by_seed: Its heads at the chosen learning rate.
        counts: [n_seeds, n_utterances].
        sizes: [n_utterances].
        interval: Lower and upper bound, [2].
    """
    heads = [head for folds in by_seed for head in folds]
    extras = [task.extra(folds) for folds in by_seed]
    return CandidateScore(
        layer=layer,
        lr=heads[0].lr,
        dev=float(np.mean([head.dev for head in heads])),
        test=overall_score(counts.mean(0), sizes),
        low=float(interval[0]),
        high=float(interval[1]),
        seed_sd=seed_deviation([overall_score(seed_counts, sizes) for seed_counts in counts]),
        extra={name: float(np.mean([extra[name] for extra in extras])) for name in extras[0]},
    )

"""Ranking of candidates: dev selects the learning rate and the best candidate, test is reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.probing.evaluation import Evaluation, FloatArray
from pipeline.probing.results import WEIGHTED, Candidate, CandidateScore, Comparison, HeadResult
from pipeline.probing.significance import (
    Runs,
    interval,
    paired_test,
    resampled_scores,
    seed_deviation,
)
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
        groups: What the bootstrap draws, e.g. utterances.
    """

    scores: tuple[CandidateScore, ...]
    best: Candidate
    comparison: Comparison | None
    chosen: dict[Candidate, HeadsBySeed]
    groups: str


def rank(task: Task, heads: Sequence[HeadResult], candidates: Sequence[Candidate]) -> Ranking:
    """Score and rank the candidates.

    Args:
        task: The task that the heads learned.
        heads: All heads of the sweep.
        candidates: The candidates, in the order of the sweep. The first wins a tie.
    """
    sign = 1.0 if task.higher_is_better else -1.0
    chosen = {layer: _heads_at_best_lr(heads, layer, sign) for layer in candidates}
    runs = {layer: evaluations_of(task, by_seed) for layer, by_seed in chosen.items()}
    resampled = resampled_scores([runs[layer] for layer in candidates])
    intervals = interval(resampled)
    scores = tuple(
        _score(task, layer, chosen[layer], runs[layer], intervals[i])
        for i, layer in enumerate(candidates)
    )
    order = sorted(scores, key=lambda score: -sign * score.dev)
    best, comparison = order[0], None
    if len(order) > 1:
        second = order[1]
        a, b = (resampled[candidates.index(score.layer)] for score in (best, second))
        p_value, test = paired_test(runs[best.layer], runs[second.layer], resampled=(a, b))
        comparison = Comparison(best.layer, second.layer, best.test - second.test, p_value, test)
    groups = runs[best.layer][0].group
    return Ranking(scores, best.layer, comparison, chosen, groups)


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


def evaluations_of(task: Task, by_seed: HeadsBySeed) -> list[Evaluation]:
    """Return the evaluation of each seed, [n_seeds]."""
    return [task.evaluate(heads) for heads in by_seed]


def _score(
    task: Task, layer: Candidate, by_seed: HeadsBySeed, runs: Runs, bounds: FloatArray
) -> CandidateScore:
    """Score a candidate.

    Args:
        task: The task.
        layer: The candidate.
        by_seed: Its heads at the chosen learning rate.
        runs: Their evaluations, [n_seeds].
        bounds: Lower and upper bound of the interval, [2].
    """
    heads = [head for folds in by_seed for head in folds]
    extras = [task.extra(folds) for folds in by_seed]
    scores = [run.score for run in runs]
    return CandidateScore(
        layer=layer,
        lr=heads[0].lr,
        dev=float(np.mean([head.dev for head in heads])),
        test=float(np.mean(scores)),
        low=float(bounds[0]),
        high=float(bounds[1]),
        seed_sd=seed_deviation(scores),
        extra={name: float(np.mean([extra[name] for extra in extras])) for name in extras[0]},
    )

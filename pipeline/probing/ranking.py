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
    paired_p_value,
    ratio,
    seed_deviation,
)
from pipeline.probing.results import WEIGHTED, Comparison, HeadResult, Layer, LayerScore
from pipeline.probing.tasks.base import Task

Runs = list[list[HeadResult]]
"""Heads of one candidate at one learning rate: one list per seed, in the order of the folds."""


@dataclass(frozen=True)
class Ranking:
    """Scores of all candidates, and the best one.

    Attributes:
        scores: One per candidate, in the order of the sweep.
        best: The candidate with the best dev score.
        comparison: Paired test of the best two candidates; None if there is only one.
        chosen: Heads of each candidate at the learning rate with the best dev score.
    """

    scores: tuple[LayerScore, ...]
    best: Layer
    comparison: Comparison | None
    chosen: dict[Layer, Runs]


def rank(task: Task, heads: Sequence[HeadResult], candidates: Sequence[Layer]) -> Ranking:
    """Score and rank the candidates.

    Args:
        task: What the heads learned.
        heads: All heads of the sweep.
        candidates: The candidates, in the order of the sweep. The first wins a tie.
    """
    sign = 1.0 if task.higher_is_better else -1.0
    chosen = {layer: _best_rate(heads, layer, sign) for layer in candidates}
    sizes = np.concatenate([task.sizes(head.fold) for head in chosen[candidates[0]][0]])
    counts = {layer: _counts(task, runs) for layer, runs in chosen.items()}
    means = np.stack([counts[layer].mean(0) for layer in candidates])
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


def mean_scores(heads: Sequence[HeadResult]) -> list[dict[str, object]]:
    """Return the mean scores over seeds and folds, per candidate and learning rate."""
    groups: dict[tuple[Layer, float], list[HeadResult]] = defaultdict(list)
    for head in heads:
        groups[head.layer, head.lr].append(head)
    return [
        {
            "layer": layer,
            "lr": lr,
            "dev": float(np.mean([head.dev for head in group])),
            "test": float(np.mean([head.test for head in group])),
        }
        for (layer, lr), group in groups.items()
    ]


def best_layer(scores: Sequence[LayerScore], higher_is_better: bool) -> Layer:
    """Return the single layer with the best dev score, ignoring the weighted sum."""
    layers = [score for score in scores if score.layer != WEIGHTED]
    ordered = sorted(layers, key=lambda score: score.dev, reverse=higher_is_better)
    return ordered[0].layer


def _best_rate(heads: Sequence[HeadResult], layer: Layer, sign: float) -> Runs:
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


def _counts(task: Task, runs: Runs) -> FloatArray:
    """Return the counts of each seed, fold after fold: [n_seeds, n_utterances]."""
    return np.stack([np.concatenate([task.counts(head) for head in heads]) for heads in runs])


def _score(
    task: Task, layer: Layer, runs: Runs, counts: FloatArray, sizes: IntArray, interval: FloatArray
) -> LayerScore:
    heads = [head for run in runs for head in run]
    extras = [task.extra(run) for run in runs]
    return LayerScore(
        layer=layer,
        lr=heads[0].lr,
        dev=float(np.mean([head.dev for head in heads])),
        test=ratio(counts.mean(0), sizes),
        low=float(interval[0]),
        high=float(interval[1]),
        seed_sd=seed_deviation([ratio(seed_counts, sizes) for seed_counts in counts]),
        extra={name: float(np.mean([extra[name] for extra in extras])) for name in extras[0]},
    )

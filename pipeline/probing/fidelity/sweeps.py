"""The same sweep on stored and on reference features: what a probe notices of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from pipeline.config import SweepConfig
from pipeline.devices import choose_device
from pipeline.errors import ConfigError
from pipeline.events import Observer, announced
from pipeline.probing.fidelity.run import choose_layers
from pipeline.probing.labels import read_labels
from pipeline.probing.ranking import evaluations_of, rank
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, candidates_of
from pipeline.probing.run import TASK_KINDS, list_heads, size_warnings
from pipeline.probing.significance import (
    Runs,
    interval,
    mean_score,
    paired_test,
    resampled_scores,
    seed_deviation,
)
from pipeline.probing.splits import make_split
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.trainers.pooled import resolve_steps
from pipeline.store.read.features import FeatureStore

SIGNIFICANT = 0.05
"""p-value below which a difference counts, after Bonferroni's correction for the candidates."""
SEED_ERRORS = 3.0
"""Standard errors between seeds that a difference must exceed to count. Training amplifies the
smallest difference of its inputs, so heads of equally good features differ as those of two seeds
do, and a test over utterances alone would find many of them significant."""


@dataclass(frozen=True)
class ScoreDifference:
    """Test scores of one candidate on both stores, on the same test utterances.

    Attributes:
        layer: The candidate; None for the mean over all candidates.
        reference: Score on the reference.
        stored: Score on the store.
        difference: `stored - reference`.
        low: Lower bound of the 95 % bootstrap interval of the difference, over test utterances.
        high: Upper bound of that interval.
        p_value: p-value of the paired test, not corrected.
        seed_error: Standard error of the difference between seeds; 0 for one seed.
    """

    layer: Candidate | None
    reference: float
    stored: float
    difference: float
    low: float
    high: float
    p_value: float
    seed_error: float


@dataclass(frozen=True)
class SweepLoss:
    """What a task notices of the difference of two stores.

    Attributes:
        task: Name of the task.
        labels: Its label columns.
        metric: Its metric.
        higher_is_better: Direction of the metric.
        n_train: Utterances to train on, mean over folds.
        n_test: Test utterances of all folds.
        split: Description of the split.
        test: Name of the paired test.
        candidates: One for each layer and the weighted sum.
        mean: Mean over the candidates, per utterance.
        warnings: Warnings to show before the scores.
    """

    task: str
    labels: tuple[str, ...]
    metric: str
    higher_is_better: bool
    n_train: int
    n_test: int
    split: str
    test: str
    candidates: tuple[ScoreDifference, ...]
    mean: ScoreDifference
    warnings: tuple[str, ...]

    @property
    def noticed(self) -> tuple[ScoreDifference, ...]:
        """Differences that count, the most significant first.

        Each candidate and their mean is a test; by Bonferroni's correction, one that counts has a
        p-value below `SIGNIFICANT` divided by their number. It also exceeds `SEED_ERRORS`.
        """
        every = (self.mean, *self.candidates)
        found = [i for i in every if abs(i.difference) > SEED_ERRORS * i.seed_error]
        limit = SIGNIFICANT / len(every)
        return tuple(sorted((i for i in found if i.p_value < limit), key=lambda item: item.p_value))


def compare_sweeps(
    store: FeatureStore,
    reference: FeatureStore,
    config: SweepConfig,
    observer: Observer | None = None,
) -> SweepLoss:
    """Train the same heads on two stores, and compare their test scores utterance by utterance.

    Labels, folds, seeds and learning rates are the same: dev of the reference selects the learning
    rate of a candidate for both stores. Dev of each store selects the step of a head. Nothing is
    written.

    Args:
        store: The store, which has the labels.
        reference: The same utterances in the same order.
        config: Settings of the sweep.
        observer: Receives progress.

    Raises:
        ConfigError: The store lacks the labels or layers, or cannot be split as configured.
    """
    if len(config.variants) > 1 or config.fraction != 1:
        raise ConfigError(
            "heads and fractions are settings of `strata sweep`; fidelity compares one head on all "
            "of train. Leave them out, or set task.head"
        )
    [config] = config.variants
    observer = observer or Observer()
    names = store.named_layers
    common = {layer: names[layer] for layer in store.layers if layer in reference.layers}
    asked = None if isinstance(config.layers, str) else config.layers
    layers = choose_layers(common, asked)
    labels = read_labels(store, config.task, config.labels)
    split = make_split(store, config.task, config.split, labels)
    n_train = max(len(fold.train) for fold in split.folds)
    config = replace(config, task=resolve_steps(config.task, n_train))
    specs = list_heads(config, candidates_of(store, layers), len(split.folds))
    device = choose_device(config.device)
    candidates = list(dict.fromkeys(spec.layer for spec in specs))
    n_total = len(specs) + len(specs) // len(config.task.lrs)
    runs: list[list[Runs]] = []
    rates: dict[Candidate, float] = {}
    n_before = 0
    for features in (reference, store):
        with announced(observer, "reading the features and the labels"):
            data = TaskData(features, config.task, labels, split.folds, layers, device)
            task = TASK_KINDS[config.task.kind](data)
        wanted = [spec for spec in specs if spec.lr == rates.get(spec.layer, spec.lr)]
        heads = _train(task, wanted, n_before, n_total, observer)
        n_before += len(wanted)
        with announced(observer, "scoring the heads"):
            chosen = rank(task, heads, candidates).chosen
        rates = {layer: by_seed[0][0].lr for layer, by_seed in chosen.items()}
        runs.append([evaluations_of(task, chosen[layer]) for layer in candidates])
    differences, mean, test = _differences(candidates, runs[0], runs[1])
    n_test = sum(len(fold.test) for fold in split.folds)
    return SweepLoss(
        task=config.task.name,
        labels=labels.columns,
        metric=config.task.metric,
        higher_is_better=task.higher_is_better,
        n_train=round(sum(len(fold.train) for fold in split.folds) / len(split.folds)),
        n_test=n_test,
        split=split.description,
        test=test,
        candidates=differences,
        mean=mean,
        warnings=(*split.warnings, *task.warnings, *size_warnings(n_test)),
    )


def _train(
    task: Task, specs: Sequence[HeadSpec], n_before: int, n_total: int, observer: Observer
) -> list[HeadResult]:
    """Train heads on one store; `n_before` of `n_total` are trained already."""
    heads: dict[HeadSpec, HeadResult] = {}
    if not n_before:
        observer.head_trained(0, n_total)

    def on_head(spec: HeadSpec, head: HeadResult, *_: object) -> None:
        heads[spec] = head
        observer.head_trained(n_before + len(heads), n_total)

    task.train(specs, on_head, observer.note)
    return [heads[spec] for spec in specs]


def _differences(
    candidates: Sequence[Candidate], expected: Sequence[Runs], found: Sequence[Runs]
) -> tuple[tuple[ScoreDifference, ...], ScoreDifference, str]:
    """Compare the scores on the reference and on the store, of each candidate and of their mean.

    Returns:
        The differences of the candidates, that of the mean, and the name of the paired test.

    Args:
        candidates: The candidates.
        expected: Evaluations of each candidate on the reference, [n_candidates][n_seeds].
        found: The same on the store.
    """
    names: list[Candidate | None] = [*candidates, None]
    before, after = ([*runs, list(chain(*runs))] for runs in (expected, found))
    resampled = resampled_scores([*before, *after])
    resampled_before, resampled_after = np.split(resampled, 2)
    intervals = interval(resampled_after - resampled_before).tolist()
    n_seeds = len(expected[0])
    compared = []
    draws = zip(resampled_before, resampled_after, strict=True)
    every = zip(names, before, after, draws, intervals, strict=True)
    for name, a, b, of_both, (low, high) in every:
        scores = [mean_score(runs) for runs in (a, b)]
        p_value, test = paired_test(a, b, resampled=of_both)
        deviations = [seed_deviation(_scores_by_seed(runs, n_seeds)) for runs in (a, b)]
        compared.append(
            ScoreDifference(
                layer=name,
                reference=scores[0],
                stored=scores[1],
                difference=scores[1] - scores[0],
                low=low,
                high=high,
                p_value=p_value,
                seed_error=float(np.linalg.norm(deviations)) / n_seeds**0.5,
            )
        )
    return tuple(compared[:-1]), compared[-1], test


def _scores_by_seed(runs: Runs, n_seeds: int) -> list[float]:
    """Return the mean score of each seed, over one or more candidates in turn."""
    scores = np.array([run.score for run in runs]).reshape(-1, n_seeds)
    return [float(score) for score in scores.mean(0)]

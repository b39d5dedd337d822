"""The same sweep on stored and on reference features: what a probe notices of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config import SweepConfig
from pipeline.events import Observer, announced
from pipeline.probing.fidelity.run import choose_layers
from pipeline.probing.labels import read_labels
from pipeline.probing.metrics import (
    PAIRED_TEST,
    FloatArray,
    bootstrap_intervals,
    overall_score,
    paired_p_value,
)
from pipeline.probing.ranking import Ranking, counts_of, rank, sizes_of
from pipeline.probing.results import Candidate, HeadResult, HeadSpec
from pipeline.probing.run import TASK_KINDS, choose_device, list_heads, size_warnings
from pipeline.probing.splits import make_split
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.trainers.pooled import resolve_steps
from pipeline.store.read.features import FeatureStore

SIGNIFICANT = 0.05
"""p-value below which a difference counts, after Bonferroni's correction for the candidates."""


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
    """

    layer: Candidate | None
    reference: float
    stored: float
    difference: float
    low: float
    high: float
    p_value: float


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
        p-value below `SIGNIFICANT` divided by their number.
        """
        found = (self.mean, *self.candidates)
        limit = SIGNIFICANT / len(found)
        return tuple(sorted((i for i in found if i.p_value < limit), key=lambda item: item.p_value))


def compare_sweeps(
    store: FeatureStore,
    reference: FeatureStore,
    config: SweepConfig,
    observer: Observer | None = None,
) -> SweepLoss:
    """Train the same heads on two stores, and compare their test scores utterance by utterance.

    Labels, folds, seeds and learning rates are the same. On each store dev selects the step of a
    head and the learning rate of a candidate, as in a sweep. Nothing is written.

    Args:
        store: The store, which has the labels.
        reference: The same utterances in the same order.
        config: Settings of the sweep.
        observer: Receives progress.

    Raises:
        ConfigError: The store lacks the labels or layers, or cannot be split as configured.
    """
    observer = observer or Observer()
    common = [layer for layer in store.layers if layer in reference.layers]
    asked = None if isinstance(config.layers, str) else config.layers
    layers = choose_layers(common, asked)
    labels = read_labels(store, config.task, config.labels)
    split = make_split(store, config.task, config.split, labels)
    n_train = max(len(fold.train) for fold in split.folds)
    config = replace(config, task=resolve_steps(config.task, n_train))
    specs = list_heads(config, layers, len(split.folds))
    device = choose_device(config.device)
    rankings: list[tuple[Task, Ranking]] = []
    for i, features in enumerate((reference, store)):
        with announced(observer, "reading the features and the labels"):
            data = TaskData(features, config.task, labels, split.folds, layers, device)
            task = TASK_KINDS[config.task.kind](data)
        heads = _train(task, specs, i * len(specs), 2 * len(specs), observer)
        with announced(observer, "scoring the heads"):
            rankings.append((task, rank(task, heads, _candidates(specs))))
    differences, mean = _differences(rankings, _candidates(specs))
    task = rankings[0][0]
    n_test = sum(len(fold.test) for fold in split.folds)
    return SweepLoss(
        task=config.task.name,
        labels=labels.columns,
        metric=config.task.metric,
        higher_is_better=task.higher_is_better,
        n_train=round(sum(len(fold.train) for fold in split.folds) / len(split.folds)),
        n_test=n_test,
        split=split.description,
        test=PAIRED_TEST,
        candidates=differences,
        mean=mean,
        warnings=(*split.warnings, *task.warnings, *size_warnings(n_test)),
    )


def _candidates(specs: Sequence[HeadSpec]) -> list[Candidate]:
    return list(dict.fromkeys(spec.layer for spec in specs))


def _train(
    task: Task, specs: Sequence[HeadSpec], n_before: int, n_total: int, observer: Observer
) -> list[HeadResult]:
    """Train heads on one store; `n_before` of `n_total` are trained already."""
    heads: dict[HeadSpec, HeadResult] = {}
    if not n_before:
        observer.head_trained(0, n_total)

    def on_head(spec: HeadSpec, head: HeadResult) -> None:
        heads[spec] = head
        observer.head_trained(n_before + len(heads), n_total)

    task.train(specs, on_head, observer.note)
    return [heads[spec] for spec in specs]


def _differences(
    rankings: Sequence[tuple[Task, Ranking]], candidates: Sequence[Candidate]
) -> tuple[tuple[ScoreDifference, ...], ScoreDifference]:
    """Compare the scores on the reference and on the store, of each candidate and of their mean."""
    means = []  # [2][n_candidates + 1, n_utterances]
    for task, ranking in rankings:
        counts = [counts_of(task, ranking.chosen[layer]).mean(0) for layer in candidates]
        means.append(np.stack([*counts, np.mean(counts, axis=0)]))
    expected, found = means
    sizes = sizes_of(rankings[0][0], rankings[0][1].chosen[candidates[0]])
    intervals = bootstrap_intervals(found - expected, sizes)

    def difference(
        layer: Candidate | None, a: FloatArray, b: FloatArray, at: int
    ) -> ScoreDifference:
        reference, stored = overall_score(a, sizes), overall_score(b, sizes)
        low, high = intervals[at].tolist()
        return ScoreDifference(
            layer, reference, stored, stored - reference, low, high, paired_p_value(a, b)
        )

    compared = [
        difference(layer, expected[i], found[i], i) for i, layer in enumerate([*candidates, None])
    ]
    return tuple(compared[:-1]), compared[-1]

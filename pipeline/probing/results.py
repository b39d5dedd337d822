"""What a sweep found, as plain values: trainers make it, the report and the JSON show it.

A candidate is one layer of the store, or the learned weighted sum of all that were swept. A head is
one candidate trained at one learning rate from one seed. Scores are shares or rates (0.93, not 93).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Layer = int | Literal["weighted", "collapsed"]
"""A candidate: a layer by its number, the weighted sum, or the one layer of a collapsed store."""

WEIGHTED: Literal["weighted"] = "weighted"


@dataclass(frozen=True)
class HeadResult:
    """One head, as it stood where dev chose it.

    Attributes:
        layer: Its candidate.
        lr: Learning rate of Adam.
        seed: Of its initial values and the order of the data.
        fold: Fold of a cross-validation; 0 where there is one split.
        step: Step at which it was best on dev.
        dev: Score on dev there.
        test: Score on test there.
        curve: (step, training loss, dev score) at each evaluation.
        predictions: What it says of each test utterance, in the order of `Sweep.test_ids` (of its
            fold): a class per label column for utterance tasks, the text for frame tasks.
        layer_weights: Of the weighted sum, one per swept layer; None for others.
    """

    layer: Layer
    lr: float
    seed: int
    fold: int
    step: int
    dev: float
    test: float
    curve: tuple[tuple[int, float, float], ...]
    predictions: tuple[tuple[int, ...], ...] | tuple[str, ...]
    layer_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class LayerScore:
    """One candidate at the learning rate that dev chose for it, over seeds and folds.

    Attributes:
        layer: The candidate.
        lr: Its learning rate, by the mean dev score.
        dev: Mean dev score.
        test: Mean test score.
        low: Lower end of the 95 % bootstrap interval of the test score, over test utterances.
        high: Its upper end.
        seed_sd: Standard deviation of the test score over seeds; 0 for one seed.
        extra: Further test scores by name: macro_f1, or wer beside cer.
    """

    layer: Layer
    lr: float
    dev: float
    test: float
    low: float
    high: float
    seed_sd: float
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Whether the best candidate by dev really beats the second, on the same test utterances.

    Attributes:
        best: The best by dev.
        second: The runner-up by dev.
        difference: Test score of the best less that of the second.
        p_value: Of the paired test.
        test: Name of the paired test.
    """

    best: Layer
    second: Layer
    difference: float
    p_value: float
    test: str


@dataclass(frozen=True)
class Sweep:
    """All that a sweep found.

    Attributes:
        task: Name of the recipe, e.g. ks.
        store: Path of the store, as given.
        encoder: What made the features, in words; random weights are named as such.
        warnings: What a reader of the scores must know: random weights, leakage, tiny splits.
        labels: Label columns.
        metric: accuracy, cer, wer or per.
        higher_is_better: Of the metric.
        layers: Layers that were swept.
        n_train: Utterances.
        n_dev: Utterances.
        n_test: Utterances.
        split: How the splits came about, in words.
        classes: Class names of each label column; the vocabulary for frame tasks.
        test_ids: Ids of the test utterances, per fold.
        truth: What is right for them, like `HeadResult.predictions`, per fold.
        scores: One per candidate: layers in order, then the weighted sum.
        best: The candidate that dev chose.
        comparison: Of the best two; None with fewer than two candidates.
        yardsticks: Reference test scores by name: chance, majority class, logistic regression on
            the best layer's pooled vectors, an untrained head.
        layer_weights: Learned weights, mean over the seeds of the chosen learning rate; None
            without weighted sum.
        confusion: Test counts of the best candidate, [truth][prediction], of the first label
            column, summed over seeds and folds; None for frame tasks.
        heads: Every head, for learning curves and the JSON.
        seconds: Wall time by stage: read, train, score.
        trained: Heads trained now.
        reused: Heads taken from an earlier run of the same settings.
    """

    task: str
    store: str
    encoder: str
    warnings: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    higher_is_better: bool
    layers: tuple[int, ...]
    n_train: int
    n_dev: int
    n_test: int
    split: str
    classes: tuple[tuple[str, ...], ...]
    test_ids: tuple[tuple[str, ...], ...]
    truth: tuple[tuple[tuple[int, ...], ...] | tuple[str, ...], ...]
    scores: tuple[LayerScore, ...]
    best: Layer
    comparison: Comparison | None
    yardsticks: dict[str, float]
    layer_weights: tuple[float, ...] | None
    confusion: tuple[tuple[int, ...], ...] | None
    heads: tuple[HeadResult, ...]
    seconds: dict[str, float]
    trained: int
    reused: int

    def score(self, layer: Layer) -> LayerScore:
        """The score of a candidate."""
        return next(score for score in self.scores if score.layer == layer)

"""Heads and sweep results as plain values: the contract between trainers, ranking and report.

A candidate is one layer of the store, or the learned weighted sum of all swept layers. A head is
one candidate trained at one learning rate, from one seed, on one fold. Fields named `layer` hold a
candidate. Scores are fractions (0.93, not 93).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from pipeline.store.format.layers import COLLAPSED_LAYER, label_layers

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.store.read.features import FeatureStore

Candidate = int | Literal["weighted", "collapsed"]
"""A layer number, "weighted" for the weighted sum, or "collapsed" for a collapsed store's layer."""

WEIGHTED: Literal["weighted"] = "weighted"

NO_RATE = 0.0
"""Learning rate of a head that is not trained."""

SIGNIFICANCE_LEVEL = 0.05
"""p-value below which a difference is called significant."""

DEV_IS_TEST = "dev is test"
"""Part of the description of a split without other utterances than those of test for dev."""

Predictions = tuple[tuple[int, ...], ...] | tuple[tuple[float, ...], ...] | tuple[str, ...]
"""One item per utterance: the class or the number in each label column, or a transcript. In
verification one per trial: its score."""


def candidates_of(store: FeatureStore, layers: Sequence[int]) -> tuple[Candidate, ...]:
    """Return the candidates that are single layers of a store.

    The layer -1 is the weighted sum of a collapsed store, and `conv` of others.
    """
    return ("collapsed",) if store.is_collapsed else tuple(layers)


def stored_layer(candidate: Candidate) -> int:
    """Return the layer number, in the store, of a candidate that is a single layer."""
    return COLLAPSED_LAYER if isinstance(candidate, str) else candidate


@dataclass(frozen=True)
class HeadSpec:
    """Settings that identify a head within a sweep.

    Attributes:
        layer: The candidate.
        lr: Learning rate of Adam.
        seed: Seed of the initial parameters and of the data order.
        fold: Index of the fold.
    """

    layer: Candidate
    lr: float
    seed: int
    fold: int


@dataclass(frozen=True)
class HeadResult:
    """A trained head, at the step with the best dev score.

    Attributes:
        layer: The candidate.
        lr: Learning rate of Adam.
        seed: Seed of the initial parameters and of the data order.
        fold: Index of the fold; 0 if there is one split.
        step: Step with the best dev score.
        dev: Dev score at that step.
        test: Test score at that step.
        curve: (step, training loss, dev score) at each evaluation.
        predictions: Prediction for each test utterance, in the order of `Sweep.test_ids` of the
            fold; in verification the score of each trial.
        layer_weights: Weight of each swept layer, for a weighted sum; else None.
    """

    layer: Candidate
    lr: float
    seed: int
    fold: int
    step: int
    dev: float
    test: float
    curve: tuple[tuple[int, float, float], ...]
    predictions: Predictions
    layer_weights: tuple[float, ...] | None = None


class OnHead(Protocol):
    """Called with each head as soon as it is trained."""

    def __call__(
        self,
        spec: HeadSpec,
        result: HeadResult,
        parameters: Mapping[str, Tensor] | None = None,
        /,
    ) -> None:
        """Take a head.

        Args:
            spec: Its settings.
            result: Its scores and predictions.
            parameters: What computes its predictions, as `pipeline.heads.trained.TrainedHead` has
                it; None if the task cannot give it.
        """


Note = Callable[[str], None]
"""Called with progress lines for the terminal."""


@dataclass(frozen=True)
class CandidateScore:
    """Scores of a candidate over seeds and folds, at the learning rate with the best dev score.

    Attributes:
        layer: The candidate.
        lr: The learning rate with the best mean dev score.
        dev: Dev score, mean over the heads.
        test: Test score over the test utterances of all folds together, with counts averaged over
            seeds. Folds with more test utterances weigh more; `mean_scores` weighs heads equally.
        low: Lower bound of the 95 % bootstrap interval of the test score, over `Sweep.groups`.
        high: Upper bound of that interval.
        seed_sd: Standard deviation of the test score over seeds; 0 for one seed.
        extra: Further test scores by name: macro_f1, or wer beside cer.
    """

    layer: Candidate
    lr: float
    dev: float
    test: float
    low: float
    high: float
    seed_sd: float
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Paired test of the two candidates with the best dev scores, on the same test utterances.

    Attributes:
        best: The candidate with the best dev score.
        second: The candidate with the second-best dev score.
        difference: Test score of `best` minus that of `second`.
        p_value: p-value of the paired test.
        test: Name of the paired test.
    """

    best: Candidate
    second: Candidate
    difference: float
    p_value: float
    test: str


@dataclass(frozen=True)
class Setup:
    """What a sweep was made with, as a methods section states it.

    Attributes:
        recipe: Settings of the task by the names of `TaskConfig`, as they were trained with.
        encoder: What is known of the encoder: see `encoder_facts`.
        speakers: Speakers of "train", "dev" and "test", or of "all" with several folds; empty if
            the column of the speakers is not known.
        speaker_column: That column.
        n_stored: Utterances of the store, of which a selection has fewer.
        n_used: Utterances that the sweep got, labelled or not.
        version: Version of Strata.
        fraction: Share of train that heads were trained on.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    speakers: dict[str, int] = field(default_factory=dict)
    speaker_column: str | None = None
    n_stored: int = 0
    n_used: int = 0
    version: str = ""
    fraction: float = 1.0


@dataclass(frozen=True)
class Sweep:
    """Results of a sweep.

    Attributes:
        task: Name of the task, e.g. ks.
        store: Path of the store, or those of several, as given.
        encoder: Description of the encoder; names random weights.
        warnings: Warnings to show before the scores: random weights, leakage, small splits.
        labels: Label columns.
        metric: accuracy, cer, wer, per, ccc, pearson, mae, eer or min_dcf.
        higher_is_better: Direction of the metric.
        layers: Swept layers.
        layer_names: Their names; empty in results of earlier versions, whose layers have the
            standard ones.
        n_train: Training utterances, mean over folds.
        n_dev: Dev utterances, mean over folds.
        n_test: Test utterances, sum over folds.
        split: Description of the split.
        classes: Class names of each label column, none for numbers; for transcripts the vocabulary.
        test_ids: Ids of the test utterances, per fold.
        truth: References of the test utterances, per fold, in the form of `HeadResult.predictions`.
        scores: One per candidate: layers in order, then the weighted sum.
        best: The candidate with the best dev score.
        comparison: Test of the best two candidates; None if there is one candidate.
        baselines: Reference test scores by name: chance, majority class, logistic regression on
            the pooled features of the best layer, an untrained head.
        layer_weights: Learned weights, mean over the heads of the chosen learning rate; None
            without a weighted sum.
        confusion: Test counts of the best candidate, [reference][prediction], in the first label
            column, summed over the heads of the chosen learning rate; None without classes.
        heads: All heads, for learning curves and the JSON.
        seconds: Wall time in seconds by stage: "read", "train", "score".
        trained: Number of heads trained in this run.
        reused: Number of heads taken from the cache.
        groups: What the bootstrap of the intervals draws: utterances or speakers.
        spans: Path of the spans that were learned; None if the labels are columns of the store.
        setup: Settings, for a methods section.
        units: What was tested, per fold, where test ids and references do not say it: see
            `Task.units`.
    """

    task: str
    store: str | tuple[str, ...]
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
    truth: tuple[Predictions, ...]
    scores: tuple[CandidateScore, ...]
    best: Candidate
    comparison: Comparison | None
    baselines: dict[str, float]
    layer_weights: tuple[float, ...] | None
    confusion: tuple[tuple[int, ...], ...] | None
    heads: tuple[HeadResult, ...]
    seconds: dict[str, float]
    trained: int
    reused: int
    groups: str = "utterances"
    spans: str | None = None
    setup: Setup = Setup()
    units: tuple[dict[str, Any], ...] = ()
    layer_names: tuple[str, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether heads were trained, at learning rates."""
        return any(head.lr != NO_RATE for head in self.heads)

    @property
    def is_dev_test(self) -> bool:
        """Whether the best candidate was chosen on the test set, for lack of other speakers."""
        return DEV_IS_TEST in self.split

    @property
    def layer_labels(self) -> dict[int, str]:
        """What tables call each swept layer: its number if it is 0 or a block, else its name."""
        return label_layers(self.layers, self.layer_names)

    def score(self, layer: Candidate) -> CandidateScore:
        """Return the score of a candidate."""
        return next(score for score in self.scores if score.layer == layer)


def mean_scores(heads: Sequence[HeadResult]) -> list[dict[str, object]]:
    """Return the plain mean of the heads' scores, per candidate and learning rate.

    Every head weighs the same. `CandidateScore.test` is computed over all test utterances together,
    so the two differ if folds have different sizes.
    """
    groups: dict[tuple[Candidate, float], list[HeadResult]] = defaultdict(list)
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

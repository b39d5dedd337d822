"""Base of all tasks: what a sweep needs to train, score and describe heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from pipeline.config import TaskConfig
from pipeline.probing.labels import Fold, Labels
from pipeline.probing.metrics import FloatArray, IntArray
from pipeline.probing.results import HeadResult, HeadSpec, Layer, Note, OnHead, Predictions
from pipeline.store.read.features import FeatureStore


class Task(Protocol):
    """What heads learn, and how they are scored.

    An implementation must

    - be made by a `TaskFactory` that raises ConfigError if the labels cannot be learned;
    - train every head as a function of its spec alone, so that the heads trained beside it do not
      change it and a cached head can be reused;
    - return one prediction per test utterance of the fold, in the order of `truth`;
    - score with `counts` and `sizes`, so that `counts(head).sum() / sizes(head.fold).sum()` is the
      test score of the head;
    - leave the store unchanged.

    tests/probing/test_tasks.py checks this for every implementation.

    Attributes:
        warnings: What a reader must know before the scores.
        classes: Class names of each label column; for transcripts the symbols.
        truth: References of the test utterances, per fold.
        higher_is_better: Direction of the metric.
    """

    warnings: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    truth: tuple[Predictions, ...]
    higher_is_better: bool

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train heads. Call `on_head` once per spec, as soon as its head is trained."""

    def sizes(self, fold: int) -> IntArray:
        """Return the weight of each test utterance, [n_test]: 1, or its number of symbols."""

    def counts(self, head: HeadResult) -> FloatArray:
        """Return the correct predictions, or the errors, in each test utterance: [n_test]."""

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return further test scores of the heads of one seed, given in the order of the folds."""

    def baselines(self, layer: Layer) -> dict[str, float]:
        """Return reference test scores by name; some are computed on `layer`."""

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...] | None:
        """Return [reference][prediction] counts in the first label column; None if undefined."""

    def write_files(self, folder: Path) -> None:
        """Write the files that users of the heads need beside the results, if there are any."""


TaskFactory = Callable[
    [FeatureStore, TaskConfig, Labels, tuple[Fold, ...], Sequence[int], torch.device], Task
]
"""Makes a task of store, settings, labels of every utterance, folds, swept layers and device."""

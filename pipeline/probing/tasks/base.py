"""Contract of a task: how a sweep trains, scores and describes heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.config import TaskConfig
from pipeline.errors import counted
from pipeline.probing.evaluation import Evaluation
from pipeline.probing.labels import Fold, Labels
from pipeline.probing.results import (
    Candidate,
    HeadResult,
    HeadSpec,
    Note,
    OnHead,
    Predictions,
    candidates_of,
)
from pipeline.probing.tasks.spans_data import SpanData
from pipeline.store.read.features import FeatureStore

_MIN_SPEAKERS = 20
"""Test speakers below which a warning is given."""


@dataclass(frozen=True)
class TaskData:
    """What a task is created from.

    Attributes:
        store: The store.
        config: Settings of the task.
        labels: Labels of every utterance of the store.
        folds: The folds.
        layers: Swept layers of the store.
        device: Device to train on.
        spans: Labelled intervals, for tasks on these.
        memory: Bytes that the frames of a framewise task may take in memory.
    """

    store: FeatureStore
    config: TaskConfig
    labels: Labels
    folds: tuple[Fold, ...]
    layers: tuple[int, ...]
    device: torch.device
    spans: SpanData | None = None
    memory: int = 1 << 30

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates that are single layers, in the order of `layers`."""
        return candidates_of(self.store, self.layers)


class Task(Protocol):
    """Training and scoring of heads for one kind of label.

    An implementation must

    - be created by a `TaskFactory` that raises ConfigError if the labels cannot be learned;
    - train every head as a function of its spec only, independent of the other heads in the call,
      so that a cached head can be reused;
    - return one prediction per item of `truth` of the fold, in that order;
    - evaluate heads so that `evaluate([head]).score` is the test score of the head, over the same
      groups for every candidate and seed;
    - leave the store unchanged.

    tests/probing/test_tasks.py checks this for every implementation.

    Attributes:
        warnings: Warnings to show before the scores.
        items: What is learned, with numbers, if that is not one label per utterance; else empty.
        classes: Class names of each label column; for transcripts the symbols.
        truth: References, per fold: of each test utterance, or of each trial of two of them.
        fingerprint: Hash of what heads depend on beyond the settings, the labels and the features,
            e.g. of a file that the settings name; empty for nothing.
        higher_is_better: Direction of the metric.
        units: What evaluations need besides references and predictions, per fold, as JSON has it:
            utterances and speakers of trials, cells of ABX. None for other tasks.
    """

    warnings: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    truth: tuple[Predictions, ...]
    fingerprint: str = ""
    higher_is_better: bool
    items: str = ""
    units: tuple[dict[str, Any], ...] = ()

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train heads. Call `on_head` once per spec, as soon as its head is trained.

        With the parameters of a head, `strata predict` can use it.
        """

    def evaluate(self, heads: Sequence[HeadResult]) -> Evaluation:
        """Return the test score of the heads of one seed, given in the order of the folds."""

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return further test scores of the heads of one seed, given in the order of the folds."""

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return reference test scores by name; some are computed on `layer`."""

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...] | None:
        """Return [reference][prediction] counts in the first label column; None if undefined."""

    def classes_of_fold(self, fold: int) -> tuple[tuple[str, ...], ...]:
        """Return `classes` as the heads of a fold have them."""
        return self.classes

    def write_files(self, folder: Path) -> None:
        """Write the files that users of the heads need in addition to the results, if any."""


TaskFactory = Callable[[TaskData], Task]
"""Creates a task of one kind."""


def few_speakers(n_speakers: int) -> tuple[str, ...]:
    """Return a warning about intervals over few test speakers, if they are few."""
    if n_speakers >= _MIN_SPEAKERS:
        return ()
    noun = counted(n_speakers, "test speaker")
    return (f"only {noun}: intervals over so few speakers say little",)

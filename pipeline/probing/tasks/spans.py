"""Span tasks: a class per labelled interval, such as a phone or a word, from pooled features.

All spans of an utterance are in one part of a split. An utterance is also the unit of intervals and
paired tests: its count is the number of its spans that are correct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, counted
from pipeline.probing.evaluation import Ratio
from pipeline.probing.labels import Classes
from pipeline.probing.metrics import IntArray, confusion_matrix, macro_f1
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, Note, OnHead
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.tasks.inputs import check_pooling
from pipeline.probing.tasks.spans_data import SpanData
from pipeline.probing.tasks.utterance import check_classes, class_baselines
from pipeline.probing.trainers.objectives import Classification
from pipeline.probing.trainers.pooled import PooledData, train_pooled_heads
from pipeline.spans.pooling import iter_pooled_spans


class SpanTask(Task):
    """Classification of spans. A prediction is the classes of all spans of an utterance."""

    higher_is_better = True

    def __init__(self, data: TaskData) -> None:
        """Check the classes and pool the features of the spans.

        Args:
            data: What to learn from; it has spans.

        Raises:
            ConfigError: There are fewer than two classes, or a part has no spans.
            StoreError: The store keeps no frames.
        """
        if data.spans is None:
            raise ConfigError(f"task {data.config.name} learns spans, and none are given")
        if data.config.metric != "accuracy":
            raise ConfigError(
                f"task.metric is {data.config.metric!r}; expected accuracy (the macro-F1 is "
                "reported beside it)"
            )
        spans = data.spans
        self._device = data.device
        self._folds = tuple(spans.fold_of(fold) for fold in data.folds)
        for name in ("train", "dev", "test"):
            if any(not len(getattr(fold, name)) for fold in self._folds):
                raise ConfigError(f"no span is in {name}; give spans of more utterances")
        self._counts = tuple(np.diff(spans.bounds)[fold.test].tolist() for fold in data.folds)
        self._classes = Classes((spans.names,), spans.numbers[:, None])
        self.classes = self._classes.names
        column = (spans.column,)
        checks = check_classes(self._classes, column, self._folds, data.config, "span")
        self.warnings = (*spans.warnings, *checks)
        sizes = [[len(part) for part in (f.train, f.dev, f.test)] for f in self._folds]
        n_train, n_dev, n_test = np.mean(sizes, axis=0).round().astype(int).tolist()
        self.items = (
            f"{counted(len(spans.numbers), 'span')} of {counted(len(spans.names), 'class')}: "
            f"{n_train:,} to train, {n_dev:,} dev, {n_test:,} test"
        )
        self.truth = tuple(
            self._by_utterance(spans.numbers[fold.test].tolist(), number)
            for number, fold in enumerate(self._folds)
        )
        self._pooled_data = PooledData(
            pooled=_pooled(data, spans),
            layers=data.candidates,
            labels=torch.from_numpy(spans.numbers[None].copy()),
            objectives=(Classification((len(spans.names),)),) * len(data.folds),
            folds=self._folds,
            task=data.config,
        )

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train all heads together."""

        def on_trained(
            spec: HeadSpec, head: HeadResult, parameters: Mapping[str, Tensor] | None = None, /
        ) -> None:
            classes = [row[0] for row in head.predictions]
            grouped = self._by_utterance([int(number) for number in classes], spec.fold)
            on_head(spec, replace(head, predictions=grouped), parameters)

        train_pooled_heads(self._pooled_data, specs, self._device, on_trained, note)

    def evaluate(self, heads: Sequence[HeadResult]) -> Ratio:
        """Return the accuracy over spans; the groups are utterances."""
        counts, sizes = [], []
        for head in heads:
            for truth, found in zip(self.truth[head.fold], head.predictions, strict=True):
                counts.append(sum(map(int.__eq__, truth, found)))  # type: ignore[arg-type]
                sizes.append(len(truth))
        return Ratio(np.array(counts), np.array(sizes))

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the macro-F1 over spans."""
        truth, found = self._over_folds(heads)
        return {"macro_f1": macro_f1(truth[:, None], found[:, None])}

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the scores of chance, majority class, an untrained head, logistic regression."""
        return class_baselines(self._pooled_data, self._classes, layer)

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...]:
        """Return [reference][prediction] counts of spans."""
        matrix = confusion_matrix(*self._over_folds(heads), len(self.classes[0]))
        return tuple(tuple(row) for row in matrix.tolist())

    def write_files(self, folder: Path) -> None:
        """Write nothing."""

    def _by_utterance(self, numbers: list[int], fold: int) -> tuple[tuple[int, ...], ...]:
        """Group the classes of test spans by the utterances of a fold."""
        ends = np.cumsum([0, *self._counts[fold]]).tolist()
        return tuple(tuple(numbers[first:last]) for first, last in pairwise(ends))

    def _over_folds(self, heads: Sequence[HeadResult]) -> tuple[IntArray, IntArray]:
        """Concatenate references and predictions of all spans: [n] each."""
        truth = [number for head in heads for row in self.truth[head.fold] for number in row]
        found = [number for head in heads for row in head.predictions for number in row]
        return np.array(truth, np.int64), np.array(found, np.int64)


def _pooled(data: TaskData, spans: SpanData) -> Tensor:
    """Return the statistics that heads get, concatenated: float32 [n_layers, n_spans, dim]."""
    names, dim = check_pooling(data.config), data.store.feature_dim
    out = torch.empty(len(data.layers), len(spans.placed), dim * len(names))
    for i, name in enumerate(names):
        place = slice(i * dim, (i + 1) * dim)
        for rows, values in iter_pooled_spans(data.store, spans.placed, data.layers, name):
            out[:, torch.from_numpy(rows), place] = values.transpose(0, 1)
    return out

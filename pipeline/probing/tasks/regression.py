"""Regression: a number per utterance and label column, from pooled features or from frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import ConfigError
from pipeline.probing.baselines import ridge_regression
from pipeline.probing.evaluation import FloatArray, Sums
from pipeline.probing.labels import Fold, Labels, numbers_of
from pipeline.probing.metrics import AGREEMENT, agreement, agreement_of_sums, agreement_sums
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, Note, OnHead
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.tasks.utterance_heads import UtteranceHeads
from pipeline.probing.trainers.objectives import LOSSES, Regression


class RegressionTask(Task):
    """Prediction of numbers: valence, arousal, a mean opinion score, an age.

    The score is the mean over label columns of the concordance correlation coefficient, of the
    correlation, or of the mean absolute error.
    """

    def __init__(self, data: TaskData) -> None:
        """Check the labels and read the pooled features, if heads get these.

        Args:
            data: What to learn from.

        Raises:
            ConfigError: A label is no number, a column is constant over train, the metric or the
                loss is unknown, or `task.pooling` does not fit.
            StoreError: The heads need frames, and the store keeps none.
        """
        metric, loss = data.config.metric, data.config.loss or LOSSES[0]
        for key, value, known in (("metric", metric, AGREEMENT), ("loss", loss, LOSSES)):
            if value not in known:
                raise ConfigError(f"task.{key} is {value!r}; expected {' or '.join(known)}")
        self.higher_is_better = metric != "mae"
        self._metric, self._columns = metric, data.labels.columns
        self._folds = data.folds
        self._numbers = numbers_of(data.labels)  # [n_columns, n_utterances]
        self.classes: tuple[tuple[str, ...], ...] = tuple(() for _ in self._columns)
        self.warnings: tuple[str, ...] = ()
        self.truth = tuple(
            tuple(tuple(row) for row in self._numbers[:, fold.test].T.tolist())
            for fold in data.folds
        )
        objectives = [self._objective(fold, data.labels, metric, loss) for fold in data.folds]
        labels = torch.from_numpy(self._numbers.astype(np.float32))
        self._heads = UtteranceHeads(data, labels, objectives)

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train all heads together."""
        self._heads.train(specs, on_head, note)

    def evaluate(self, heads: Sequence[HeadResult]) -> Sums:
        """Return the metric, averaged over label columns, as a function of moments."""
        sums = agreement_sums(*self._over_folds(heads))
        return Sums(sums, lambda total: agreement_of_sums(self._metric, total).mean(1))

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the other metrics, and with several label columns the metric of each."""
        pair = self._over_folds(heads)
        others = [name for name in AGREEMENT if name != self._metric]
        extra = {name: float(agreement(name, *pair).mean()) for name in others}
        if len(self._columns) > 1:
            by_column = agreement(self._metric, *pair).tolist()
            names = [f"{self._metric} {column}" for column in self._columns]
            extra |= dict(zip(names, by_column, strict=True))
        return extra

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the scores of the mean of train, an untrained head, and ridge regression."""
        truth = np.hstack([self._numbers[:, fold.test] for fold in self._folds])
        means = np.hstack(
            [
                np.tile(self._numbers[:, fold.train].mean(1, keepdims=True), len(fold.test))
                for fold in self._folds
            ]
        )
        ridge = ridge_regression(self._heads.vectors(layer), self._numbers, self._folds)
        scores = {
            "mean of train": float(agreement(self._metric, truth, means).mean()),
            f"untrained head, layer {layer}": self._heads.untrained_score(layer),
        }
        if ridge is not None:
            score = float(agreement(self._metric, truth, ridge).mean())
            scores[f"ridge regression, layer {layer}"] = score
        return scores

    def confusion(self, heads: Sequence[HeadResult]) -> None:
        """Return None: numbers have no confusion matrix."""
        return

    def write_files(self, folder: Path) -> None:
        """Write nothing."""

    def _objective(self, fold: Fold, labels: Labels, metric: str, loss: str) -> Regression:
        """Return what the heads of a fold learn.

        Raises:
            ConfigError: A column is constant over train.
        """
        train = self._numbers[:, fold.train]
        deviations = train.std(1)
        for column, values, deviation in zip(labels.columns, train, deviations, strict=True):
            if not deviation > 0:
                raise ConfigError(
                    f"column {column!r} is {values[0]:g} for every training utterance; nothing to "
                    "learn"
                )
        return Regression(tuple(train.mean(1).tolist()), tuple(deviations.tolist()), loss, metric)

    def _over_folds(self, heads: Sequence[HeadResult]) -> tuple[FloatArray, FloatArray]:
        """Concatenate references and predictions of heads: [n_columns, n] each."""
        truth = np.concatenate([np.array(self.truth[head.fold], np.float64) for head in heads])
        found = np.concatenate([np.array(head.predictions, np.float64) for head in heads])
        return truth.T, found.T

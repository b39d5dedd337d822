"""Framewise tasks: a class per frame, from labelled intervals: phones, voice activity, speakers.

A frame has the label of the span that its centre is in. Frames in no span are neither trained on
nor scored, unless `task.unlabelled` names a class for them. An utterance is the unit of intervals
and paired tests: its counts are those of its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config.sweep_schema import LSTM
from pipeline.errors import ConfigError, counted, first_few
from pipeline.probing.evaluation import Ratio, Sums
from pipeline.probing.metrics import IntArray, macro_f1_of_sums
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, Note, OnHead
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.tasks.inputs import check_units, sequence_data
from pipeline.probing.trainers import sequences
from pipeline.probing.trainers.frame_lessons import FrameLabelLesson
from pipeline.probing.trainers.framewise import (
    N_SAMPLED,
    FramewiseData,
    logistic_score,
    score_of,
    train_framewise_heads,
    untrained_score,
)
from pipeline.probing.trainers.sequence_data import SequenceData
from pipeline.spans.frame_labels import frame_labels
from pipeline.store.format.pooling import MEAN

METRICS = ("accuracy", "f1")


class FramewiseTask(Task):
    """Classification of frames. A prediction is the confusions of the frames of an utterance.

    It has three numbers for each pair that occurs: reference, predicted class, number of frames.
    """

    higher_is_better = True

    def __init__(self, data: TaskData) -> None:
        """Label the frames and check the classes.

        Args:
            data: What to learn from; it has spans.

        Raises:
            ConfigError: There are fewer than two classes, a part has no frames with labels, or a
                setting does not fit the task or the head.
            SourceError: A frame is in spans of different labels.
            StoreError: The store keeps no frames.
        """
        config, spans = data.config, data.spans
        if spans is None:
            raise ConfigError(f"task {config.name} learns spans, and none are given")
        if config.metric not in METRICS:
            raise ConfigError(f"task.metric is {config.metric!r}; expected {' or '.join(METRICS)}")
        if config.pooling != (MEAN,):
            raise ConfigError(f"task {config.name} gets frames; task.pooling is for other tasks")
        check_units(config)
        data.store.check_frames()
        labels = frame_labels(
            data.store, spans.placed, classes=spans.names, unlabelled=config.unlabelled
        )
        self._metric, self._folds = config.metric, data.folds
        self.fingerprint = f"layers {list(data.layers)}, memory {data.memory}"  # order of frames
        self.classes = (labels.names,)
        if len(labels.names) < 2:
            raise ConfigError(
                f"all spans of {spans.column} have the label {labels.names[0]!r}; nothing to "
                "learn. task.unlabelled=NAME makes frames in no span a class"
            )
        self._data = FramewiseData(
            data.store, labels, data.layers, data.folds, config, data.device, data.memory
        )
        n = len(labels.names)
        self._counts = counts = np.zeros((len(data.store), n), np.int64)
        for position in labels.positions.tolist():
            row = labels[position]
            counts[position] = np.bincount(row[row >= 0], minlength=n)
        self.truth = tuple(tuple(map(_perfect, counts[fold.test])) for fold in data.folds)
        self.warnings = (*spans.warnings, *self._unseen())
        sizes = [[counts[p].sum() for p in (f.train, f.dev, f.test)] for f in data.folds]
        n_train, n_dev, n_test = np.mean(sizes, axis=0).round().astype(int).tolist()
        self._sequences: SequenceData | None = None
        if config.head == LSTM:
            lessons = [FrameLabelLesson.of(data.store, config, labels, of) for of in data.folds]
            self._sequences = sequence_data(data, lessons)
        self.items = (
            f"{counted(n, 'class')} of frames: {counted(n_train, 'frame')} to train, "
            f"{n_dev:,} dev, {n_test:,} test"
        )

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train fold by fold and seed by seed, LSTMs layer by layer, too.

        An interruption keeps what is trained.
        """
        if self._sequences is not None:
            sequences.train_sequence_heads(self._sequences, specs, on_head, note)
            return
        train_framewise_heads(self._data, specs, on_head, note)

    def evaluate(self, heads: Sequence[HeadResult]) -> Sums:
        """Return the accuracy or the macro-F1 over frames; the groups are utterances."""
        return self._evaluation(self._metric, heads)

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the other one of accuracy and macro-F1."""
        if self._metric == "f1":
            return {"accuracy": self._evaluation("accuracy", heads).score}
        return {"macro_f1": self._evaluation("f1", heads).score}

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the scores of chance, majority class, an untrained head, logistic regression."""
        n = len(self.classes[0])
        majority, uniform = np.zeros((n, n), np.int64), np.zeros((n, n), np.int64)
        for fold in self._folds:
            test = self._counts[fold.test].sum(0)
            majority[:, self._counts[fold.train].sum(0).argmax()] += test
            uniform += test[:, None]  # times 1 / n
        scores = {
            "chance": score_of(self._metric, uniform),
            "majority class": score_of(self._metric, majority),
            f"untrained head, layer {layer}": self._untrained_score(layer),
        }
        score = logistic_score(self._data, layer)
        name = f"logistic regression on {N_SAMPLED:,} frames at most, layer {layer}"
        return scores if score is None else scores | {name: score}

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...]:
        """Return [reference][prediction] counts of frames."""
        n = len(self.classes[0])
        total = np.zeros((n, n), np.int64)
        for head in heads:
            for triples in head.predictions:
                rows, columns, counts = _columns(triples)
                np.add.at(total, (rows, columns), counts)
        return tuple(tuple(row) for row in total.tolist())

    def write_files(self, folder: Path) -> None:
        """Write nothing."""

    def _untrained_score(self, layer: Candidate) -> float:
        if self._sequences is not None:
            return sequences.untrained_score(self._sequences, layer)
        return untrained_score(self._data, layer)

    def _unseen(self) -> list[str]:
        """Check that each part of each fold has frames, and warn of classes that train lacks.

        Raises:
            ConfigError: A part has no frames with labels, train has one class only, or no test
                frame is of a class of train.
        """
        unseen: set[int] = set()
        n_lost = n_test = 0
        for fold in self._folds:
            train, dev, test = (self._counts[p].sum(0) for p in (fold.train, fold.dev, fold.test))
            for name, found in (("train", train), ("dev", dev), ("test", test)):
                if not found.sum():
                    raise ConfigError(f"no frame of {name} has a label; give more spans")
            if (train > 0).sum() < 2:
                name = self.classes[0][int(train.argmax())]
                raise ConfigError(f"all frames of train are {name!r}; nothing to learn")
            unseen.update(np.flatnonzero((train == 0) & (dev + test > 0)).tolist())
            n_lost += int(test[train == 0].sum())
            n_test += int(test.sum())
        if not unseen:
            return []
        names = first_few([self.classes[0][number] for number in sorted(unseen)])
        what = f"classes of dev or test that are not in train ({names})"
        if n_lost == n_test:
            raise ConfigError(
                f"{what}, and no test frame is of another class: every score would be 0. Give "
                "another split or other labels"
            )
        return [
            f"{what}: no head can predict them, "
            f"and {n_lost:,} of {n_test:,} test frames count as errors"
        ]

    def _evaluation(self, metric: str, heads: Sequence[HeadResult]) -> Sums:
        n = len(self.classes[0])
        rows = [triples for head in heads for triples in head.predictions]
        if metric == "accuracy":
            found = [_columns(triples) for triples in rows]
            correct = [int(counts[a == b].sum()) for a, b, counts in found]
            return Ratio(np.array(correct), np.array([int(counts.sum()) for *_, counts in found]))
        values = np.zeros((len(rows), 3 * n))
        for out, triples in zip(values, rows, strict=True):
            a, b, counts = _columns(triples)
            np.add.at(out, a[a == b], counts[a == b])
            np.add.at(out, n + a, counts)
            np.add.at(out, 2 * n + b, counts)
        return Sums(values, macro_f1_of_sums)


def _columns(triples: object) -> IntArray:
    """Return references, predictions and counts of the confusions of an utterance: [3, n]."""
    return np.array(triples, np.int64).reshape(-1, 3).T


def _perfect(counts: IntArray) -> tuple[int, ...]:
    """Return the confusions of an utterance whose frames are all predicted correctly."""
    used = np.flatnonzero(counts)
    return tuple(np.stack([used, used, counts[used]], axis=1).ravel().tolist())

"""Heads on utterances, as `task.head` names them: on pooled features, or on frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.config.sweep_schema import ATTENTIVE
from pipeline.probing.results import (
    Candidate,
    HeadSpec,
    Note,
    OnHead,
    stored_layer,
)
from pipeline.probing.tasks.base import TaskData
from pipeline.probing.tasks.inputs import check_attentive, pooled_inputs, sequence_data
from pipeline.probing.trainers import pooled, sequences
from pipeline.probing.trainers.objectives import Objective
from pipeline.probing.trainers.sequence_data import UtteranceLesson


class UtteranceHeads:
    """Training and baselines of the heads of an utterance task."""

    def __init__(self, data: TaskData, labels: Tensor, objectives: Sequence[Objective]) -> None:
        """Read the pooled features, if heads get these.

        Args:
            data: Features, settings and folds.
            labels: Label of each utterance in each label column, [n_columns, n_utterances].
            objectives: What the heads of each fold learn.

        Raises:
            ConfigError: `task.pooling` does not fit.
            StoreError: The heads need frames, and the store keeps none.
        """
        self._task_data = data
        self._pooled: pooled.PooledData | None = None
        if data.config.head == ATTENTIVE:
            check_attentive(data)
            pairs = zip(objectives, data.folds, strict=True)
            counts, batch = data.store.frame_counts, data.config.batch
            lessons = [UtteranceLesson(labels, of, fold, batch, counts) for of, fold in pairs]
            self._sequences = sequence_data(data, lessons)
            return
        self._pooled = pooled.PooledData(
            pooled=pooled_inputs(data),
            layers=data.candidates,
            labels=labels,
            objectives=tuple(objectives),
            folds=data.folds,
            task=data.config,
        )

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train heads, and call `on_head` with each."""
        if self._pooled is None:
            sequences.train_sequence_heads(self._sequences, specs, on_head, note)
        else:
            pooled.train_pooled_heads(self._pooled, specs, self._task_data.device, on_head, note)

    def untrained_score(self, layer: Candidate) -> float:
        """Return the test score of a head before training, in the first fold: a baseline."""
        if self._pooled is None:
            return sequences.untrained_score(self._sequences, layer)
        return pooled.untrained_score(self._pooled, layer)

    def vectors(self, layer: Candidate) -> npt.NDArray[np.float32]:
        """Return pooled features of a layer, for baselines: [n_utterances, dim]."""
        if self._pooled is None:
            found = pooled_inputs(self._task_data, [stored_layer(layer)])[0]
        else:
            found = self._pooled.pooled[self._pooled.layers.index(layer)]
        vectors: npt.NDArray[np.float32] = found.numpy()
        return vectors

"""What heads learn from the frames of whole utterances, and how these frames are read.

In: a store, labels, and the positions of train, dev and test. Out: batches of positions, frames,
losses, predictions and scores, for the trainer in `sequences.py`. A lesson is what the heads of one
fold learn: the labels of utterances, transcripts, or the labels of frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TaskConfig
from pipeline.config.sweep_schema import ATTENTIVE, LSTM
from pipeline.heads.networks import FrameHead, FramewiseLSTM, FramewiseMLP, PooledAttentive
from pipeline.probing.labels import Fold, IntArray
from pipeline.probing.results import Predictions
from pipeline.probing.trainers.objectives import Objective
from pipeline.probing.trainers.pooled import data_order
from pipeline.store.read.features import FeatureStore


class Lesson(Protocol):
    """What the heads of one fold learn.

    Attributes:
        n_outputs: Outputs of a head: per utterance, or per frame.
        higher_is_better: Direction of the score.
        fold: Positions of the utterances of train, dev and test.
        largest_batch: Frames that a training batch has at most.
    """

    @property
    def n_outputs(self) -> int: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def fold(self) -> Fold: ...
    @property
    def largest_batch(self) -> int: ...

    def order(self, seed: int) -> Iterator[IntArray]:
        """Yield the positions of training batches without end, in the order of a seed."""

    def loss(self, outputs: Tensor, positions: IntArray) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and its gradient with respect to the outputs.

        Args:
            outputs: Outputs of a head for the utterances, or for all of their frames,
                [n, n_outputs].
            positions: Positions of the utterances.
        """

    def predict(self, outputs: Tensor, positions: IntArray) -> list[Any]:
        """Return the prediction of each utterance, as `HeadResult.predictions` has them."""

    def score(self, predictions: Predictions, positions: IntArray) -> float:
        """Return the score of predictions of utterances."""

    def dev_loss(self, outputs: Tensor, positions: IntArray) -> float:
        """Return the loss of dev utterances, summed; a lower one also counts as an improvement.

        0 if the score alone decides when a head stops.
        """

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors that predictions need beside those of the head, by name."""


@dataclass(frozen=True)
class SequenceData:
    """Frames of a store, and what is learned from them.

    Attributes:
        store: The features.
        layers: Swept layers of the store; the weighted sum is over these.
        task: Settings of the task.
        lessons: What the heads of each fold learn.
        device: Device to train on.
        memory: Bytes for frames and training in memory.
    """

    store: FeatureStore
    layers: tuple[int, ...]
    task: TaskConfig
    lessons: tuple[Lesson, ...]
    device: torch.device
    memory: int

    def network(self, fold: int) -> FrameHead:
        """Return a head of a fold, initialised by torch's random state."""
        task, dim = self.task, self.store.feature_dim
        n_outputs = self.lessons[fold].n_outputs
        if task.head == ATTENTIVE:
            return PooledAttentive(dim, n_outputs, task.projection)
        if task.head == LSTM:
            return FramewiseLSTM(dim, n_outputs, task.projection, task.units)
        return FramewiseMLP(dim, n_outputs, task.projection)

    def read(self, positions: IntArray, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read the frames of utterances, one utterance after the other, without padding.

        Args:
            positions: Positions of the utterances.
            axes: Positions on the layer axis of the store.

        Returns:
            [n_layers, n_frames, dim] in the dtype of the store's readers, and the frames of each
            utterance, int64 [n].
        """
        store = self.store
        lengths = store.frame_counts[positions]
        ends = np.cumsum(lengths)
        stored = np.empty((len(axes), int(ends[-1]), store.feature_dim), store.codec.value_dtype)
        spans = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        cuts = [
            (position, 0, stored[:, start:stop])
            for position, (start, stop) in zip(positions.tolist(), spans, strict=True)
        ]
        store.read_into(cuts, axes)
        frames = torch.from_numpy(stored).to(self.device)
        return frames, torch.from_numpy(lengths.astype(np.int64))


def normalized(layer: Tensor, task: TaskConfig) -> Tensor:
    """Return the frames of a layer as heads get them, float32 [n_frames, dim]."""
    values = layer.float()
    return nn.functional.layer_norm(values, values.shape[1:]) if task.normalize else values


class LayerMix(torch.autograd.Function):
    """Weighted sum of layers that keeps them in their stored dtype: [n_layers, n_frames, dim]."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, frames: Tensor, task: TaskConfig) -> Tensor:
        ctx.frames, ctx.task = frames, task  # not saved for backward: they need no gradient
        out = torch.zeros(frames.shape[1:], device=frames.device)
        for weight, layer in zip(weights.tolist(), frames, strict=True):
            out.add_(normalized(layer, task), alpha=weight)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        flat = gradient.flatten()
        products = [torch.dot(normalized(layer, ctx.task).flatten(), flat) for layer in ctx.frames]
        return torch.stack(products), None, None


@dataclass(frozen=True)
class UtteranceLesson:
    """Labels of utterances: classes, or numbers.

    Training batches are those of the linear heads of the same seed.

    Attributes:
        labels: Label of each utterance of the store in each label column, [n_columns,
            n_utterances].
        objective: Loss, predictions and score.
        fold: Positions of train, dev and test.
        batch: Utterances per step.
        frame_counts: Frames of each utterance of the store, int64 [n_utterances].
    """

    labels: Tensor
    objective: Objective
    fold: Fold
    batch: int
    frame_counts: IntArray

    @property
    def n_outputs(self) -> int:
        """Classes of all label columns, or the number of columns."""
        return sum(self.objective.widths)

    @property
    def higher_is_better(self) -> bool:
        """Direction of the score."""
        return self.objective.higher_is_better

    @property
    def largest_batch(self) -> int:
        """Frames of the longest training utterances."""
        return int(np.sort(self.frame_counts[self.fold.train])[-self.batch :].sum())

    def order(self, seed: int) -> Iterator[IntArray]:
        """Yield batches of `batch` utterances in the order of a seed."""
        for rows in data_order(seed, len(self.fold.train), self.batch):
            yield self.fold.train[rows.numpy()]

    def loss(self, outputs: Tensor, positions: IntArray) -> tuple[Tensor, Tensor]:
        """Return the loss of the objective, and its gradient."""
        loss, gradient = self.objective.loss(
            outputs.T[None], self._of(positions).to(outputs.device)
        )
        return loss[0], gradient[0].T

    def predict(self, outputs: Tensor, positions: IntArray) -> list[Any]:
        """Return the class or the number of each utterance in each column."""
        return [tuple(row) for row in self.objective.predict(outputs.T[None])[0].T.tolist()]

    def score(self, predictions: Predictions, positions: IntArray) -> float:
        """Return the score of the objective."""
        labels = self._of(positions)
        found = torch.tensor(predictions, dtype=labels.dtype).T
        return self.objective.scores(found[None], labels)[0]

    def dev_loss(self, outputs: Tensor, positions: IntArray) -> float:
        """Return 0: the score decides."""
        return 0.0

    def parameters(self) -> dict[str, Tensor]:
        """Return those of the objective."""
        return self.objective.parameters()

    def _of(self, positions: IntArray) -> Tensor:
        return self.labels[:, torch.from_numpy(positions)]

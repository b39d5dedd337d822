"""What heads learn from the frames of utterances: a transcript by CTC, or a class per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TaskConfig
from pipeline.feed.batching import BatchPolicy, EpochBatches
from pipeline.heads.ctc import Target, ctc_losses, greedy_symbols
from pipeline.heads.vocabulary import Vocabulary
from pipeline.probing.labels import Fold, IntArray
from pipeline.probing.metrics import error_rate
from pipeline.probing.results import Predictions
from pipeline.probing.trainers.frame_data import Transcripts
from pipeline.probing.trainers.framewise import Triples, score_of, triples_of
from pipeline.spans.frame_labels import FrameLabels
from pipeline.store.read.features import FeatureStore


def batches_by_frames(
    store: FeatureStore, positions: IntArray, batch: int, seed: int
) -> Iterator[IntArray]:
    """Yield batches of utterances of similar length without end, epoch by epoch.

    They are those of `make_loader` of the same utterances and seed.

    Args:
        store: The store.
        positions: Positions of the utterances.
        batch: Frames of a batch with padding; a longer utterance forms a batch of one.
        seed: Seed of the order.
    """
    policy = BatchPolicy(batch, shuffle=True, seed=seed)
    epochs = EpochBatches(store.frame_counts[positions], store.slots[positions], policy)
    epoch = 0
    while True:
        for rows in epochs.batches(epoch):
            yield positions[rows]
        epoch += 1


class TranscriptLesson:
    """Transcripts, by CTC. The error rate on dev decides, and the loss on dev delays the stop.

    Attributes:
        n_outputs: Symbols, with the blank.
        higher_is_better: False.
        fold: Positions of the utterances that are trained on, of dev and of test.
    """

    higher_is_better = False

    def __init__(self, store: FeatureStore, task: TaskConfig, transcripts: Transcripts) -> None:
        """Find the positions of the utterances.

        Args:
            store: The store.
            task: Settings of the task.
            transcripts: Transcripts of the fold.
        """
        self._store, self._task = store, task
        self._vocabulary: Vocabulary = transcripts.vocabulary
        self.n_outputs = len(transcripts.vocabulary)
        parts = [
            np.array([store.position(key) for key in part], np.int64)
            for part in (transcripts.train, transcripts.dev, transcripts.test)
        ]
        self.fold = Fold(np.sort(parts[0]), parts[1], parts[2])
        self._targets: dict[int, Target] = {
            store.position(key): target
            for targets in (transcripts.train, transcripts.dev_targets)
            for key, target in targets.items()
        }
        self._texts = {
            store.position(key): text
            for texts in (transcripts.dev, transcripts.test)
            for key, text in texts.items()
        }

    @property
    def largest_batch(self) -> int:
        """Those of a batch, or of the longest utterance."""
        return max(self._task.batch, int(self._store.frame_counts[self.fold.train].max()))

    def order(self, seed: int) -> Iterator[IntArray]:
        """Yield batches of at most `task.batch` frames with padding, without end."""
        return batches_by_frames(self._store, self.fold.train, self._task.batch, seed)

    def loss(self, outputs: Tensor, positions: IntArray) -> tuple[Tensor, Tensor]:
        """Return the CTC loss per symbol, averaged over utterances, and its gradient."""
        return _with_gradient(outputs, lambda leaf: self._ctc(leaf, positions))

    def predict(self, outputs: Tensor, positions: IntArray) -> list[Any]:
        """Return the transcripts, decoded greedily."""
        path = outputs.argmax(1).cpu().numpy()
        ends = np.cumsum(self._store.frame_counts[positions])[:-1]
        decode = self._vocabulary.decode
        return [decode(greedy_symbols(part)) for part in np.split(path, ends)]

    def score(self, predictions: Predictions, positions: IntArray) -> float:
        """Return the error rate."""
        references = [self._texts[position] for position in positions.tolist()]
        return error_rate(self._task.metric, references, [str(text) for text in predictions])

    def dev_loss(self, outputs: Tensor, positions: IntArray) -> float:
        """Return the sum of the losses of the utterances for which CTC is defined."""
        parts = torch.split(outputs, self._store.frame_counts[positions].tolist())
        pairs = zip(positions.tolist(), parts, strict=True)
        kept = [(position, part) for position, part in pairs if position in self._targets]
        if not kept:
            return 0.0
        numbers = np.array([position for position, _ in kept], np.int64)
        return float(self._ctc(torch.cat([part for _, part in kept]), numbers)) * len(kept)

    def parameters(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def _ctc(self, outputs: Tensor, positions: IntArray) -> Tensor:
        """Return the CTC loss per symbol, averaged over utterances."""
        lengths = torch.from_numpy(self._store.frame_counts[positions].astype(np.int64))
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(outputs.device)
        targets = [self._targets[position] for position in positions.tolist()]
        return ctc_losses(outputs.log_softmax(1)[None], mask, targets)[0]


@dataclass(frozen=True)
class FrameLabelLesson:
    """A class per frame, by cross-entropy; frames without a label are read but do not count.

    A prediction has the confusions of an utterance: reference, prediction and number of frames for
    each pair that occurs.

    Attributes:
        store: The store.
        task: Settings of the task.
        labels: Label of each frame.
        fold: Positions of the utterances of train that have labels, of dev and of test.
    """

    store: FeatureStore
    task: TaskConfig
    labels: FrameLabels
    fold: Fold
    higher_is_better = True

    @classmethod
    def of(
        cls, store: FeatureStore, task: TaskConfig, labels: FrameLabels, fold: Fold
    ) -> FrameLabelLesson:
        """Leave utterances without a labelled frame out of train."""
        kept = [position for position in fold.train.tolist() if (labels[position] >= 0).any()]
        return cls(store, task, labels, Fold(np.array(kept, np.int64), fold.dev, fold.test))

    @property
    def n_outputs(self) -> int:
        """Number of classes."""
        return len(self.labels.names)

    @property
    def largest_batch(self) -> int:
        """Those of a batch, or of the longest utterance."""
        return max(self.task.batch, int(self.store.frame_counts[self.fold.train].max()))

    def order(self, seed: int) -> Iterator[IntArray]:
        """Yield batches of at most `task.batch` frames with padding, without end."""
        return batches_by_frames(self.store, self.fold.train, self.task.batch, seed)

    def loss(self, outputs: Tensor, positions: IntArray) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy, averaged over labelled frames, and its gradient."""
        labels = torch.from_numpy(self._of(positions)).to(outputs.device)
        loss = partial(nn.functional.cross_entropy, target=labels, ignore_index=-1)
        return _with_gradient(outputs, loss)

    def predict(self, outputs: Tensor, positions: IntArray) -> list[Any]:
        """Return the confusions of each utterance."""
        found, n = outputs.argmax(1).cpu().numpy(), self.n_outputs
        ends = np.cumsum(self.store.frame_counts[positions])[:-1]
        return [
            _confusions(labels, predicted, n)
            for labels, predicted in zip(
                np.split(self._of(positions), ends), np.split(found, ends), strict=True
            )
        ]

    def score(self, predictions: Predictions, positions: IntArray) -> float:
        """Return the accuracy or the macro-F1 over frames."""
        cells = np.zeros((self.n_outputs, self.n_outputs), np.int64)
        for triples in predictions:
            rows, columns, counts = np.array(triples, np.int64).reshape(-1, 3).T
            np.add.at(cells, (rows, columns), counts)
        return score_of(self.task.metric, cells)

    def dev_loss(self, outputs: Tensor, positions: IntArray) -> float:
        """Return 0: the score decides."""
        return 0.0

    def parameters(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def _of(self, positions: Sequence[int] | IntArray) -> IntArray:
        """Return the labels of all frames of utterances, one after the other."""
        return np.concatenate([self.labels[int(position)] for position in positions])


def _with_gradient(outputs: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return a loss, and its gradient with respect to the outputs."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_of(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def _confusions(labels: IntArray, predicted: IntArray, n_classes: int) -> Triples:
    """Return reference, prediction and number of frames of each pair, ascending."""
    kept = labels >= 0
    cells, counts = np.unique(labels[kept] * n_classes + predicted[kept], return_counts=True)
    return triples_of(cells, counts, 1, n_classes)[0]

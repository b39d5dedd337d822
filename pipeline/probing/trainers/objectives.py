"""What the heads of an utterance task learn: their loss, predictions and score.

Gradients are derived by hand and taken head by head, because sums over a stack round differently
for different numbers of heads (see `head_stack.py`). Plain references with autograd:
tests/probing/test_objectives.py and tests/probing/test_pooled_trainer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from pipeline.probing.metrics import agreement

CCC, MSE = "ccc", "mse"
LOSSES = (CCC, MSE)
"""Losses of a regression."""


class Objective(Protocol):
    """Loss, predictions and score of heads.

    Attributes:
        widths: Number of outputs of a head for each label column.
        higher_is_better: Direction of the score.
    """

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def higher_is_better(self) -> bool: ...

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each head, and its gradient with respect to the outputs.

        Args:
            outputs: [n_heads, sum(widths), batch].
            labels: [n_columns, batch].

        Returns:
            [n_heads] and [n_heads, sum(widths), batch].
        """

    def predict(self, outputs: Tensor) -> Tensor:
        """Return predictions [n_heads, n_columns, n] of outputs [n_heads, sum(widths), n]."""

    def scores(self, predictions: Tensor, labels: Tensor) -> list[float]:
        """Return the score of each head.

        Args:
            predictions: [n_heads, n_columns, n].
            labels: [n_columns, n].
        """

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors that `predict` needs beside the outputs, by name."""


@dataclass(frozen=True)
class Classification:
    """A class per label column: cross-entropy, and the share that is correct in all columns.

    Attributes:
        widths: Number of classes of each label column.
    """

    widths: tuple[int, ...]
    higher_is_better = True

    @property
    def _columns(self) -> list[slice]:
        ends = accumulate(self.widths, initial=0)
        return [slice(start, stop) for start, stop in pairwise(ends)]

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy, summed over label columns, and its gradient."""
        n = outputs.shape[2]
        loss = outputs.new_zeros(len(outputs))
        errors = torch.empty_like(outputs)
        ones = outputs.new_ones(()).expand(len(outputs), 1, n)
        for columns, targets in zip(self._columns, labels, strict=True):
            log_probs = outputs[:, columns].log_softmax(1)
            index = targets.expand(len(outputs), 1, n)
            loss -= log_probs.gather(1, index).mean((1, 2))
            errors[:, columns] = log_probs.exp_().scatter_add_(1, index, -ones)
        return loss, errors.div_(n)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the class with the largest output in each column: int64."""
        return torch.stack([outputs[:, columns].argmax(1) for columns in self._columns], 1)

    def scores(self, predictions: Tensor, labels: Tensor) -> list[float]:
        """Return the fraction of utterances that are correct in all columns."""
        correct = (predictions == labels).all(1)
        return [count / labels.shape[1] for count in correct.sum(1).tolist()]

    def parameters(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


@dataclass(frozen=True)
class Regression:
    """A number per label column, learned in units of its deviation over train.

    Attributes:
        means: Mean of each column over train.
        deviations: Standard deviation of each column over train, not 0.
        loss_name: "ccc": 1 minus the concordance correlation coefficient over the batch (Atmaja &
            Akagi, "Evaluation of error- and correlation-based loss functions for multitask learning
            dimensional speech emotion recognition", 2021); "mse": the mean squared error. Both are
            summed over columns.
        metric: Metric of the score, averaged over columns: "ccc", "pearson" or "mae".
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    loss_name: str
    metric: str

    @property
    def widths(self) -> tuple[int, ...]:
        """One output per column."""
        return (1,) * len(self.means)

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is a correlation."""
        return self.metric != "mae"

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, summed over columns, and its gradient."""
        targets = (labels - self._column(self.means, labels)) / self._column(
            self.deviations, labels
        )
        of = _ccc_loss if self.loss_name == CCC else _squared_error
        pairs = [of(head, targets.to(head.dtype)) for head in outputs]
        return torch.stack([loss for loss, _ in pairs]), torch.stack([item for _, item in pairs])

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the numbers, in the unit of the labels."""
        deviations = self._column(self.deviations, outputs)
        return outputs * deviations + self._column(self.means, outputs)

    def scores(self, predictions: Tensor, labels: Tensor) -> list[float]:
        """Return the metric, averaged over columns."""
        truth = labels.double().cpu().numpy()
        found = predictions.double().cpu().numpy()
        return [float(agreement(self.metric, truth, head).mean()) for head in found]

    def parameters(self) -> dict[str, Tensor]:
        """Return means and deviations of the labels, float32 [n_columns]."""
        return {
            "means": torch.tensor(self.means, dtype=torch.float32),
            "deviations": torch.tensor(self.deviations, dtype=torch.float32),
        }

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values, dtype=torch.float32)[:, None]


def _squared_error(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared error, summed over columns, and its gradient: [n_columns, batch]."""
    errors = outputs - targets
    return errors.square().mean(1).sum(), errors.mul(2 / outputs.shape[1])


def _ccc_loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over columns of 1 - CCC, and its gradient: [n_columns, batch].

    CCC = 2 c / d with the covariance c of outputs x and targets y, and d = var x + var y +
    (mean x - mean y)^2 (Lin, 1989). Then d CCC / d x_i = 2 / (n d) ((y_i - m_y) - CCC (x_i - m_y)).
    """
    n = outputs.shape[1]
    target_mean = targets.mean(1, keepdim=True)
    deviation = targets - target_mean
    centred = outputs - outputs.mean(1, keepdim=True)
    covariance = (centred * deviation).mean(1, keepdim=True)
    offset = outputs.mean(1, keepdim=True) - target_mean
    scale = centred.square().mean(1, keepdim=True) + deviation.square().mean(1, keepdim=True)
    scale = (scale + offset.square()).clamp_min(1e-12)
    ccc = 2 * covariance / scale
    gradient = (deviation - ccc * (outputs - target_mean)) * (-2 / n) / scale
    return (1 - ccc).sum(), gradient

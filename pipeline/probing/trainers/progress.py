"""Progress of heads in training, how heads are stacked, and threads for the stacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from pipeline.probing.results import WEIGHTED, HeadResult, HeadSpec, Predictions
from pipeline.probing.trainers.snapshot import Snapshot


class HeadProgress:
    """Progress of a head in training.

    Attributes:
        spec: Its settings.
        step: Step with the best dev score.
        dev: Dev score at `step`.
        best: The head at `step`.
        evaluations_since_best: Evaluations since `step`.
    """

    def __init__(self, spec: HeadSpec, dev: float, best: Snapshot, higher_is_better: bool) -> None:
        self.spec, self.dev, self.best = spec, dev, best
        self._sign = 1 if higher_is_better else -1
        self.step = self.evaluations_since_best = 0
        self._curve: list[tuple[int, float, float]] = []

    def record(self, step: int, loss: float, dev: float) -> bool:
        """Record an evaluation, and return whether its dev score is the best so far.

        Args:
            step: Steps taken.
            loss: Mean training loss since the last evaluation.
            dev: Score on dev.
        """
        self._curve.append((step, loss, dev))
        is_best = self._sign * dev > self._sign * self.dev
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        if is_best:
            self.step, self.dev = step, dev
        return is_best

    def result(self, test: float, predictions: Predictions) -> HeadResult:
        """Return the head at its best step, with its test score and predictions."""
        mix = self.best.mix
        return HeadResult(
            **asdict(self.spec),
            step=self.step,
            dev=self.dev,
            test=test,
            curve=tuple(self._curve),
            predictions=predictions,
            layer_weights=None if mix is None else tuple(mix[0].tolist()),
        )

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors of the head at its best step, by name."""
        return self.best.tensors()


def stacks_of(specs: Sequence[HeadSpec], by_layer: bool) -> list[list[HeadSpec]]:
    """Group heads into stacks; weighted sums, which take longest, come first."""
    stacks: dict[tuple[object, ...], list[HeadSpec]] = defaultdict(list)
    for spec in dict.fromkeys(specs):
        weighted = spec.layer == WEIGHTED
        stacks[(spec.fold, spec.seed, spec.layer if by_layer else weighted)].append(spec)
    return sorted(stacks.values(), key=lambda stack: stack[0].layer != WEIGHTED)

"""Progress of heads in training, its expected duration, and how heads are stacked."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from pipeline.config import TaskConfig
from pipeline.probing.results import WEIGHTED, HeadResult, HeadSpec, Predictions
from pipeline.probing.trainers.snapshot import Snapshot

_N_TIMED = 3
"""Steps that are timed to estimate the duration, at least: the first batches are read ahead."""
_TIMED_S = 3.0
"""Seconds that they take, at least, unless an evaluation comes first."""


class StepTimer:
    """Estimate of the duration of all steps, from the first ones.

    Args:
        task: Settings of the task: `steps` and `eval_every`.
        device: Device that computes the steps.
    """

    def __init__(self, task: TaskConfig, device: torch.device) -> None:
        self._task, self._device = task, device
        self._start_s = math.inf  # none, or already estimated

    def limit_s(self, step: int) -> float | None:
        """Return the seconds of all steps, once; None while too few are timed, and later.

        Args:
            step: Number of the step that was taken, from 1.
        """
        if step == 1:  # takes longer than the others
            self._start_s = finished_s(self._device)
        passed_s = time.perf_counter() - self._start_s
        least_s = 0.0 if step == self._task.eval_every else _TIMED_S
        if step <= _N_TIMED or passed_s <= least_s:
            return None
        passed_s = finished_s(self._device) - self._start_s
        self._start_s = math.inf
        return passed_s / (step - 1) * self._task.steps


def finished_s(device: torch.device) -> float:
    """Wait for the device, and return the time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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

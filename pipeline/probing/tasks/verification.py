"""Speaker verification: are two utterances of one speaker? By the cosine of pooled features.

Nothing is trained but, with `task.head=lda`, a linear discriminant analysis of the training
speakers. SUPERB trains an x-vector on frames instead, so scores cannot be compared with its table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.sweep_schema import LDA
from pipeline.errors import ConfigError, counted
from pipeline.probing.evaluation import Evaluation, FloatArray
from pipeline.probing.labels import Fold, IntArray
from pipeline.probing.results import (
    Candidate,
    HeadResult,
    HeadSpec,
    Note,
    OnHead,
)
from pipeline.probing.splits.trials import Trials, draw_trials, read_trials
from pipeline.probing.tasks.base import Task, TaskData, few_speakers
from pipeline.probing.tasks.inputs import pooled_inputs

CHANCE = {"eer": 0.5, "min_dcf": 1.0}
"""Score of decisions that do not look at the trials, by metric."""
P_TARGET = 0.01
"""Prior probability of a trial of one speaker, for the detection cost."""

_MAX_COMPONENTS = 200
_CELLS_PER_CHUNK = 1 << 23
"""Largest number of draws × trials whose weights are in memory: 64 MiB of float64."""
_TRIALS_PER_CHUNK = 256
"""Trials whose vectors are copied at once, so that the copies stay in a core's cache."""


class VerificationTask(Task):
    """Verification of speakers, scored by the equal error rate or the detection cost."""

    higher_is_better = False
    classes: tuple[tuple[str, ...], ...] = ((),)

    def __init__(self, data: TaskData) -> None:
        """Choose the trials of dev and test, and read the pooled features.

        Args:
            data: What to evaluate; the label is the speaker.

        Raises:
            ConfigError: The metric is unknown, a part gives no trials, or the list of
                trials cannot be used.
        """
        config = data.config
        if config.metric not in CHANCE:
            raise ConfigError(f"task.metric is {config.metric!r}; expected {' or '.join(CHANCE)}")
        self._config, self._folds = config, data.folds
        self._speakers = np.unique(
            [text or "" for text in data.labels.texts[0]], return_inverse=True
        )[1].astype(np.int64)
        self._dev, self._test = [], []
        warnings = []
        for fold in data.folds:
            test, warning = self._trials(data, fold.test)
            is_dev_test = np.array_equal(fold.dev, fold.test)
            self._test.append(test)
            self._dev.append(
                test
                if is_dev_test
                else draw_trials(
                    fold.dev, data.labels.texts[0], config.n_trials, config.sample_seed, "dev"
                )
            )
            warnings += warning
        n_speakers = sum(len(np.unique(self._speakers[item.pairs])) for item in self._test)
        n_dev, n_test = sum(map(len, self._dev)), sum(map(len, self._test))
        self.items = f"{counted(n_test, 'test trial')}, {counted(n_dev, 'dev trial')}"
        warnings += few_speakers(n_speakers)
        self.warnings = tuple(dict.fromkeys(warnings))
        self.truth = tuple(
            tuple((float(item),) for item in trials.is_target.tolist()) for trials in self._test
        )
        pairs = [(item.pairs.tolist(), item.is_target.tolist()) for item in self._test]
        self.units = tuple(map(self._unit, data.folds, self._test, repeat(data.labels.texts[0])))
        self.fingerprint = hashlib.sha256(repr(pairs).encode()).hexdigest()
        self._layers = data.candidates
        self._pooled = pooled_inputs(data).numpy()  # [n_layers, n_utterances, dim]

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Score the trials of dev and test on each layer."""
        for spec in specs:
            parameters = self._parameters(spec.layer, self._folds[spec.fold])
            vectors = self._embed(spec.layer, parameters)
            dev, test = (
                cosines(vectors, trials) for trials in (self._dev[spec.fold], self._test[spec.fold])
            )
            found = HeadResult(
                **asdict(spec),
                step=0,
                dev=self._evaluation([self._dev[spec.fold]], [dev]).score,
                test=self._evaluation([self._test[spec.fold]], [test]).score,
                curve=(),
                predictions=tuple((score,) for score in test.tolist()),
            )
            on_head(spec, found, {key: torch.from_numpy(v) for key, v in parameters.items()})

    def evaluate(self, heads: Sequence[HeadResult]) -> Detection:
        """Return the metric over the trials of all folds; groups are speakers."""
        return self._of_heads(heads, self._config.metric)

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the other metric."""
        others = [name for name in CHANCE if name != self._config.metric]
        return {name: self._of_heads(heads, name).score for name in others}

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the score of equal scores for all trials."""
        return {"chance": CHANCE[self._config.metric]}

    def confusion(self, heads: Sequence[HeadResult]) -> None:
        """Return None: there are no classes."""
        return

    def write_files(self, folder: Path) -> None:
        """Write nothing."""

    def _trials(self, data: TaskData, test: IntArray) -> tuple[Trials, list[str]]:
        """Return the trials of test, and warnings."""
        config = data.config
        if config.trials is None:
            return draw_trials(test, data.labels.texts[0], config.n_trials, config.sample_seed), []
        trials, n_missing = read_trials(
            config.trials, data.store.ids, config.skip_missing_trials, config.trial_id_form
        )
        speakers = self._speakers[trials.pairs]
        wrong = trials.is_target != (speakers[:, 0] == speakers[:, 1])
        if wrong.any():
            ids = [data.store.ids[i] for i in trials.pairs[wrong.argmax()]]
            raise ConfigError(
                f"{config.trials}: {counted(int(wrong.sum()), 'trial')} against column "
                f"{data.labels.columns[0]!r} of the store, e.g. {ids[0]} and {ids[1]}; set "
                "labels=[COLUMN] to the column of the speaker"
            )
        warnings = []
        if n_missing:
            warnings.append(
                f"{counted(n_missing, 'trial')} of {config.trials} left out, because utterances "
                "are not in the store: scores are not those of the whole list"
            )
        return trials, warnings

    @staticmethod
    def _unit(fold: Fold, trials: Trials, speakers: Sequence[str | None]) -> dict[str, Any]:
        """Return the trials of a fold by positions of its test utterances, and their speakers."""
        return {
            "trials": np.searchsorted(fold.test, trials.pairs).tolist(),
            "speakers": [speakers[i] or "" for i in fold.test.tolist()],
        }

    def _parameters(self, layer: Candidate, fold: Fold) -> dict[str, FloatArray]:
        """Return the mean of the training vectors, [dim], and the LDA's projection, [dim, k]."""
        vectors = self._pooled[self._layers.index(layer)].astype(np.float64)
        mean = vectors[fold.train].mean(0) if len(fold.train) else np.zeros(vectors.shape[1])
        if self._config.head != LDA:
            return {"mean": mean}
        projection = _discriminants(vectors[fold.train] - mean, self._speakers[fold.train])
        return {"mean": mean, "projection": projection}

    def _embed(self, layer: Candidate, parameters: dict[str, FloatArray]) -> FloatArray:
        """Return the vector of each utterance, of length 1: [n_utterances, dim or k]."""
        vectors = self._pooled[self._layers.index(layer)].astype(np.float64) - parameters["mean"]
        if "projection" in parameters:
            vectors = vectors @ parameters["projection"]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-300))

    def _of_heads(self, heads: Sequence[HeadResult], metric: str) -> Detection:
        trials = [self._test[head.fold] for head in heads]
        scores = [np.array(head.predictions, np.float64)[:, 0] for head in heads]
        return self._evaluation(trials, scores, metric)

    def _evaluation(
        self, trials: Sequence[Trials], scores: Sequence[FloatArray], metric: str | None = None
    ) -> Detection:
        """Return the evaluation of trials of several folds; a speaker counts once per fold."""
        n_speakers = int(self._speakers.max()) + 1
        pairs = [self._speakers[item.pairs] + i * n_speakers for i, item in enumerate(trials)]
        return Detection(
            np.concatenate(scores),
            np.concatenate([item.is_target for item in trials]),
            np.concatenate(pairs),
            metric or self._config.metric,
        )


def cosines(vectors: FloatArray, trials: Trials) -> FloatArray:
    """Return the score of each trial, [n_trials], of vectors of length 1."""
    found = np.empty(len(trials))
    for first in range(0, len(trials), _TRIALS_PER_CHUNK):
        chunk = slice(first, first + _TRIALS_PER_CHUNK)
        left, right = trials.pairs[chunk].T
        found[chunk] = np.einsum("td,td->t", vectors[left], vectors[right])
    return found


class Detection(Evaluation):
    """Equal error rate or minimum detection cost; a drawn test set is one of speakers.

    A trial of one speaker weighs as often as the speaker is drawn, one of two speakers as often as
    both are drawn together.
    """

    def __init__(
        self,
        scores: FloatArray,
        is_target: npt.NDArray[np.bool_],
        speakers: IntArray,
        metric: str,
    ) -> None:
        """Sort the trials.

        Args:
            scores: Score of each trial, higher for one speaker, [n_trials].
            is_target: Whether a trial is of one speaker, [n_trials].
            speakers: Number of the speaker of both utterances, from 0, [n_trials, 2].
            metric: "eer" or "min_dcf".
        """
        is_used = np.bincount(speakers.ravel()) > 0
        groups = (is_used.cumsum() - 1)[speakers]  # speakers without a trial are left out
        super().__init__(int(is_used.sum()), "speakers")
        order = np.argsort(scores)  # equal scores have no threshold between them
        ordered, kinds = scores[order], is_target[order]
        pairs = groups[order]
        self._targets = pairs[kinds, 0]
        self._others = np.ascontiguousarray(pairs[~kinds].T)  # [2, n]
        # a threshold is between different scores: number of trials of each kind below it
        ends = np.append(0, 1 + np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)))
        below = np.append(0, kinds.cumsum())[ends]
        self._below = below, ends - below
        self._of_shares = _equal_error_rate if metric == "eer" else _detection_cost
        self._chance = CHANCE[metric]

    def scores(self, weights: FloatArray) -> FloatArray:
        """Return the metric for each vector of weights; 0.5 or 1 if a kind of trial has none."""
        n_draws = max(1, _CELLS_PER_CHUNK // (len(self._targets) + self._others.shape[1]))
        chunks = np.split(weights, range(n_draws, len(weights), n_draws))
        return np.concatenate([self._scores(chunk) for chunk in chunks])

    def _scores(self, weights: FloatArray) -> FloatArray:
        left, right = self._others
        misses = _share_below(weights[:, self._targets])
        rejections = _share_below(weights[:, left] * weights[:, right])
        is_known = (misses[:, -1] > 0) & (rejections[:, -1] > 0)
        return np.where(is_known, self._of_shares(misses, rejections, self._below), self._chance)


def _share_below(weights: FloatArray) -> FloatArray:
    """Return the share of the weight of the first trials, [n_draws, 1 + n_trials], from 0 to 1.

    All 0 if there is no weight.
    """
    shares = np.zeros((len(weights), 1 + weights.shape[1]))
    weights.cumsum(1, out=shares[:, 1:])
    total = shares[:, -1:].copy()
    shares /= np.where(total > 0, total, 1.0)
    return shares


def _equal_error_rate(
    misses: FloatArray, rejections: FloatArray, below: tuple[IntArray, IntArray]
) -> FloatArray:
    """Return the rate at which misses and false alarms are equal, between two thresholds linearly.

    Args:
        misses: Share of the first trials of one speaker, [n_draws, 1 + n_targets].
        rejections: Share of the first trials of two speakers, [n_draws, 1 + n_others].
        below: Number of trials of either kind below each threshold, [n_thresholds].

    Returns:
        [n_draws].
    """
    rows = np.arange(len(misses))

    def at(threshold: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return misses and false alarms at a threshold per draw."""
        targets, others = (count[threshold] for count in below)
        return misses[rows, targets], 1.0 - rejections[rows, others]

    # misses rise with the threshold and false alarms fall: search where they cross
    low = np.zeros(len(misses), np.int64)
    high = np.full(len(misses), len(below[0]) - 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        missed, false_alarms = at(middle)
        low = np.where(missed >= false_alarms, low, middle)
        high = np.where(missed >= false_alarms, middle, high)
    before, after = at(low), at(high)
    gap, rise = before[1] - before[0], (after[0] - after[1]) - (before[0] - before[1])
    share = np.where(rise > 0, gap / np.where(rise > 0, rise, 1.0), 1.0).clip(0, 1)
    return np.asarray(before[0] + share * (after[0] - before[0]))


def _detection_cost(
    misses: FloatArray, rejections: FloatArray, below: tuple[IntArray, IntArray]
) -> FloatArray:
    """Return the least detection cost with equal costs, 1 for a system that decides blindly.

    NIST speaker recognition evaluation; `P_TARGET` as in the evaluations of VoxCeleb. Arguments are
    those of `_equal_error_rate`.
    """
    targets, others = below
    cost = P_TARGET * misses[:, targets] + (1 - P_TARGET) * (1.0 - rejections[:, others])
    return np.asarray(cost.min(1) / min(P_TARGET, 1 - P_TARGET))


def _discriminants(vectors: FloatArray, speakers: IntArray) -> FloatArray:
    """Return the directions that separate the training speakers, [dim, k].

    Args:
        vectors: Training vectors, [n, dim].
        speakers: Speaker of each, [n].
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from threadpoolctl import threadpool_limits

    n_speakers = len(np.unique(speakers))
    if n_speakers < 2 or len(vectors) <= n_speakers:
        raise ConfigError(
            f"task.head=lda learns from {counted(len(vectors), 'utterance')} of "
            f"{counted(n_speakers, 'speaker')} in train; it needs two speakers with several "
            "utterances. Use task.head=cosine"
        )
    n_components = min(n_speakers - 1, _MAX_COMPONENTS)
    model: Any = LinearDiscriminantAnalysis(
        solver="eigen", shrinkage="auto", n_components=n_components
    )
    with threadpool_limits(1):  # results are reproducible
        model.fit(vectors, speakers)
    return np.ascontiguousarray(model.scalings_[:, :n_components], np.float64)

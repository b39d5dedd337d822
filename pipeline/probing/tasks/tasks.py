"""The two kinds of task, as a sweep sees them: a class per utterance, or CTC over frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from pipeline.config import TaskConfig
from pipeline.errors import ConfigError
from pipeline.probing.baselines import chance, logistic_regression, majority
from pipeline.probing.labels import Classes, Fold, HeadSpec, IntArray, Labels, classes_of
from pipeline.probing.leakage import some
from pipeline.probing.metrics.error_rates import error_counts
from pipeline.probing.metrics.scores import FloatArray, confusion_matrix, macro_f1, ratio
from pipeline.probing.results import HeadResult, Layer
from pipeline.probing.tasks.transcripts import prepare_transcripts
from pipeline.probing.trainers.ctc import train_frame_heads, untrained_rate
from pipeline.probing.trainers.pooled import Probing, train_probes, untrained_score
from pipeline.store.format.layout import COLLAPSED_LAYER
from pipeline.store.read.features import FeatureStore

Said = tuple[tuple[int, ...], ...] | tuple[str, ...]
Done = Callable[[HeadSpec, HeadResult], None]
Note = Callable[[str], None]


class Task(Protocol):
    """What a sweep asks of a task.

    Attributes:
        warnings: What a reader of the scores must know.
        classes: Class names of each label column, or the symbols.
        truth: What is right for the test utterances, per fold.
        higher_is_better: Of the metric.
    """

    warnings: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    truth: tuple[Said, ...]
    higher_is_better: bool

    def train(self, specs: Sequence[HeadSpec], done: Done, note: Note) -> None:
        """Trains heads; `done` takes each as soon as it is finished."""

    def sizes(self, fold: int) -> IntArray:
        """What each test utterance counts for: 1, or its symbols."""

    def counts(self, head: HeadResult) -> FloatArray:
        """What a head got right, or wrong, of each test utterance."""

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Further scores of the heads of one seed, in the order of the folds."""

    def yardsticks(self, layer: Layer) -> dict[str, float]:
        """Reference scores on test; some are on a layer."""

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...] | None:
        """Which class was taken for which, in the first label column."""


class UtteranceTask(Task):
    """A class per utterance and label column, on pooled features."""

    higher_is_better = True

    def __init__(
        self,
        store: FeatureStore,
        task: TaskConfig,
        labels: Labels,
        folds: tuple[Fold, ...],
        layers: Sequence[int],
        device: torch.device,
    ) -> None:
        """Reads the pooled features.

        Args:
            store: The store.
            task: The recipe.
            labels: Of every utterance.
            folds: Who trains, selects and is reported.
            layers: Layers of the store that are swept.
            device: Where to compute.

        Raises:
            ConfigError: There is one class only, or none for some speaker that is to be recognised.
        """
        self._task, self._folds, self._device = task, folds, device
        self._classes = classes_of(labels)
        self.classes = self._classes.names
        self.warnings = _check_classes(self._classes, labels.columns, folds, task)
        numbers = self._classes.numbers
        self.truth = tuple(
            tuple(tuple(row) for row in numbers[fold.test].tolist()) for fold in folds
        )
        self._probing = Probing(
            pooled=store.pooled(list(layers)).transpose(0, 1).contiguous(),
            layers=tuple(candidate(layer) for layer in layers),
            labels=torch.from_numpy(numbers.T.copy()),
            n_classes=tuple(len(names) for names in self.classes),
            folds=folds,
            task=task,
        )

    def train(self, specs: Sequence[HeadSpec], done: Done, note: Note) -> None:
        """Trains heads; `done` takes each as soon as it is finished."""
        train_probes(self._probing, specs, self._device, done)

    def sizes(self, fold: int) -> IntArray:
        """Every utterance counts for one."""
        return np.ones(len(self._folds[fold].test), np.int64)

    def counts(self, head: HeadResult) -> FloatArray:
        """1 where all label columns are right."""
        right = np.array(head.predictions) == np.array(self.truth[head.fold])
        return np.asarray(right.all(1), np.float64)

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """The macro-F1."""
        return {"macro_f1": macro_f1(*self._joined(heads))}

    def yardsticks(self, layer: Layer) -> dict[str, float]:
        """Chance, the majority class, scikit-learn's logistic regression, an untrained head."""
        axis = self._probing.layers.index(layer)
        found = {
            "chance": chance(self._classes),
            "majority class": majority(self._classes, self._folds),
            f"untrained head, layer {layer}": untrained_score(self._probing, layer),
        }
        vectors = self._probing.pooled[axis].numpy()
        score = logistic_regression(vectors, self._classes, self._folds)
        return found if score is None else found | {f"logistic regression, layer {layer}": score}

    def confusion(self, heads: Sequence[HeadResult]) -> tuple[tuple[int, ...], ...]:
        """Which class was taken for which, in the first label column."""
        truth, said = self._joined(heads)
        matrix = confusion_matrix(truth[:, 0], said[:, 0], len(self.classes[0]))
        return tuple(tuple(row) for row in matrix.tolist())

    def _joined(self, heads: Sequence[HeadResult]) -> tuple[IntArray, IntArray]:
        truth = np.concatenate([np.array(self.truth[head.fold], np.int64) for head in heads])
        said = np.concatenate([np.array(head.predictions, np.int64) for head in heads])
        return truth, said


class FrameTask(Task):
    """A text per utterance, by CTC over its frames."""

    higher_is_better = False

    def __init__(
        self,
        store: FeatureStore,
        task: TaskConfig,
        labels: Labels,
        folds: tuple[Fold, ...],
        layers: Sequence[int],
        device: torch.device,
    ) -> None:
        """Prepares the transcripts; arguments as for `UtteranceTask`."""
        self._store, self._task, self._layers, self._device = store, task, layers, device
        texts = labels.texts[0]
        self._transcripts = [prepare_transcripts(store, task, fold, texts) for fold in folds]
        found = [line for transcripts in self._transcripts for line in transcripts.warnings]
        self.warnings = tuple(dict.fromkeys(found))
        self.vocabulary = self._transcripts[0].vocabulary
        self.classes = (self.vocabulary.symbols,)
        self.truth = tuple(tuple(part.test.values()) for part in self._transcripts)

    def train(self, specs: Sequence[HeadSpec], done: Done, note: Note) -> None:
        """Trains heads seed by seed and fold by fold, so that what is finished is kept."""
        for fold, seed in dict.fromkeys((spec.fold, spec.seed) for spec in specs):
            some_specs = [spec for spec in specs if (spec.fold, spec.seed) == (fold, seed)]
            heads = train_frame_heads(
                self._store,
                self._task,
                self._transcripts[fold],
                self._layers,
                some_specs,
                self._device,
                note,
            )
            for spec, head in zip(some_specs, heads, strict=True):
                done(spec, head)

    def sizes(self, fold: int) -> IntArray:
        """The symbols of each utterance."""
        texts = self._texts(fold)
        return error_counts(self._task.metric, texts, texts)[1]

    def counts(self, head: HeadResult) -> FloatArray:
        """The errors in each utterance."""
        return self._errors(self._task.metric, head)[0].astype(np.float64)

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """The word error rate, beside that of characters."""
        if self._task.metric != "cer":
            return {}
        found = [self._errors("wer", head) for head in heads]
        errors, words = (np.concatenate(part) for part in zip(*found, strict=True))
        return {"wer": ratio(errors, words)}

    def yardsticks(self, layer: Layer) -> dict[str, float]:
        """An untrained head, and saying nothing at all."""
        number = COLLAPSED_LAYER if isinstance(layer, str) else layer
        rate = untrained_rate(self._store, self._task, self._transcripts[0], number, self._device)
        return {f"untrained head, layer {layer}": rate, "saying nothing": 1.0}

    def confusion(self, heads: Sequence[HeadResult]) -> None:
        """There is none."""
        return

    def _texts(self, fold: int) -> list[str]:
        return list(self._transcripts[fold].test.values())

    def _errors(self, metric: str, head: HeadResult) -> tuple[IntArray, IntArray]:
        said = [str(text) for text in head.predictions]
        return error_counts(metric, self._texts(head.fold), said)


def candidate(layer: int) -> Layer:
    """A layer of a store as the candidate that it is."""
    return "collapsed" if layer == COLLAPSED_LAYER else layer


def _check_classes(
    classes: Classes, columns: Sequence[str], folds: Sequence[Fold], task: TaskConfig
) -> tuple[str, ...]:
    """Refuses one class, and classes that are tested but never trained where that is an error."""
    warnings = []
    for axis, (column, names) in enumerate(zip(columns, classes.names, strict=True)):
        if len(names) < 2:
            raise ConfigError(
                f"column {column!r} has one class only, {names[0]!r}; nothing to learn"
            )
        numbers = classes.numbers[:, axis]
        unseen: set[int] = set()
        for fold in folds:
            tested = {*numbers[fold.dev].tolist(), *numbers[fold.test].tolist()}
            unseen |= tested - set(numbers[fold.train].tolist())
        if not unseen:
            continue
        shown = some([names[number] for number in sorted(unseen)])
        if not task.speaker_independent:
            raise ConfigError(
                f"{len(unseen)} classes of {column!r} ({shown}) are in dev or test and not in "
                f"train; task {task.name} cannot learn them. Give another split.column, or "
                "split.column=null to split here"
            )
        warnings.append(
            f"{len(unseen)} classes of {column!r} ({shown}) are in dev or test and not in train: "
            "every head gets them wrong"
        )
    return tuple(warnings)

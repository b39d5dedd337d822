"""Trainer of framewise tasks: a class per frame, heads on all layers in one pass.

A head is SUPERB's head for phone recognition (Yang et al., "SUPERB: Speech processing Universal
PERformance Benchmark", 2021): Linear(dim → 256), Linear(→ classes) on each frame, with ReLU between
them for `task.head=mlp`. SUPERB trains it by CTC on transcripts; here it is trained by
cross-entropy on the labels of frames.

Frames are streamed from the store in shuffled batches (`make_frame_loader`), so memory is bounded
whatever the corpus. A batch is read once for all heads of a seed and fold. Heads of one layer form
a stack (`HeadStack`), and on a CPU the stacks take their steps in parallel, each in one thread. A
head does not depend on the other heads in training: its initial parameters depend on its seed and
layer, and the order of the frames on the seed, the swept layers and the memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.config import TaskConfig
from pipeline.errors import counted
from pipeline.events import rough_duration
from pipeline.feed.dataset import FeatureDataset
from pipeline.feed.frames.batch import LAYER_NORM
from pipeline.feed.frames.loader import FrameLoader, make_frame_loader
from pipeline.probing.baselines import fitted_classifier
from pipeline.probing.labels import Fold, IntArray
from pipeline.probing.metrics import class_counts, macro_f1_of_sums
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, Note, OnHead, candidates_of
from pipeline.probing.trainers.fused_stack import make_stack
from pipeline.probing.trainers.objectives import Classification
from pipeline.probing.trainers.progress import HeadProgress, StepTimer, stacks_of
from pipeline.probing.trainers.snapshot import HeadShape, Snapshot
from pipeline.spans.frame_labels import FrameLabels
from pipeline.store.read.features import FeatureStore
from pipeline.threads import single_threaded

Item = TypeVar("Item")

Triples = tuple[int, ...]
"""Confusions of an utterance: reference, prediction and number of frames, one after the other."""

N_SAMPLED = 20_000
"""Largest number of frames that the logistic regression of the baselines is fitted to."""
_COPIES = 3  # of a batch as float32, beside the windows of the loader
_SCORE_CELLS = 1 << 22  # outputs of the heads of one stack that are computed at once


@dataclass(frozen=True)
class FramewiseData:
    """Frames and their labels.

    Attributes:
        store: The features.
        labels: Label of each frame; -1 for frames that are not used.
        layers: Swept layers of the store.
        folds: The folds, of utterances.
        task: Settings of the task.
        device: Device to train on.
        memory: Bytes for frames in memory.
    """

    store: FeatureStore
    labels: FrameLabels
    layers: tuple[int, ...]
    folds: tuple[Fold, ...]
    task: TaskConfig
    device: torch.device
    memory: int

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.labels.names)

    def batches(
        self, positions: IntArray, seed: int | None = None, is_endless: bool = False
    ) -> Iterator[Batch]:
        """Yield the frames of utterances that have labels.

        Args:
            positions: Positions of the utterances.
            seed: Seed of the order; None is that of the store.
            is_endless: Whether epochs follow each other without end; else there is one.
        """
        loader = self._loader(positions, seed)
        while True:
            for batch in loader:
                owner = positions[batch.utterances.numpy()]
                classes = self.labels.at(owner, batch.frames.numpy())
                kept = np.flatnonzero(classes >= 0)
                if not len(kept):
                    continue
                features = batch.features
                if len(kept) < len(classes):
                    features = features[torch.from_numpy(kept)]
                yield Batch(
                    features.to(self.device).float().transpose(0, 1).contiguous(),
                    torch.from_numpy(classes[kept]).to(self.device),
                    owner[kept],
                )
            if not is_endless:
                return

    def _loader(self, positions: IntArray, seed: int | None) -> FrameLoader:
        values = self.task.batch * len(self.layers) * self.store.feature_dim
        return make_frame_loader(
            FeatureDataset(self.store.take(positions.tolist()), layers=self.layers),
            frames_per_batch=self.task.batch,
            shuffle=False if seed is None else "reservoir",
            seed=seed or 0,
            normalize=LAYER_NORM if self.task.normalize else None,
            memory=max(self.memory - 4 * _COPIES * values, self.memory // 2),
        )


class Batch(NamedTuple):
    """Frames with labels.

    Attributes:
        frames: float32 [n_layers, n, dim].
        classes: Class of each frame, int64 [n].
        positions: Position of the utterance of each frame in the store, int64 [n].
    """

    frames: Tensor
    classes: Tensor
    positions: IntArray


def train_framewise_heads(
    data: FramewiseData,
    specs: Sequence[HeadSpec],
    on_head: OnHead = lambda spec, result, parameters=None, /: None,
    note: Note = lambda line: None,
) -> None:
    """Train heads, select the step of each on dev, and score it on test.

    Args:
        data: Frames, labels and settings.
        specs: Settings of the heads. Those of one seed and fold share their passes over the data.
        on_head: Called with each head as soon as its seed and fold are trained.
        note: Called with progress lines.
    """
    on_cpu = data.device.type == "cpu"
    n_threads = torch.get_num_threads() if on_cpu else 1
    with single_threaded(n_threads) as pool:
        for fold, seed in dict.fromkeys((spec.fold, spec.seed) for spec in specs):
            group = [spec for spec in specs if (spec.fold, spec.seed) == (fold, seed)]
            stacks = [_Stack(stack, data) for stack in stacks_of(group, on_cpu)]
            _train(stacks, data, pool, note)
            heads = [head for stack in stacks for head in stack.heads]
            for head, result in zip(heads, _tested(heads, data, pool), strict=True):
                on_head(head.spec, result, head.parameters())


def untrained_score(data: FramewiseData, layer: Candidate) -> float:
    """Return the test score of a head before training, in the first fold: a baseline."""
    spec = HeadSpec(layer, lr=1.0, seed=0, fold=0)
    with single_threaded(1) as pool:
        heads = _Stack([spec], data).snapshot()
        (cells,) = _confusions([heads], data, data.folds[0].test, pool)
    return score_of(data.task.metric, cells[0])


def logistic_score(data: FramewiseData, layer: Candidate) -> float | None:
    """Return the test score of logistic regression on a sample of training frames, a baseline.

    Of the first fold, with at most `N_SAMPLED` frames; None if fitting takes too long.
    """
    axis = candidates_of(data.store, data.layers).index(layer)
    vectors, classes, n_frames = [], [], 0
    for batch in data.batches(data.folds[0].train, seed=0):
        vectors.append(batch.frames[axis].cpu().numpy())
        classes.append(batch.classes.cpu().numpy())
        n_frames += len(classes[-1])
        if n_frames >= N_SAMPLED:
            break
    sample = slice(0, N_SAMPLED)
    model = fitted_classifier(np.concatenate(vectors)[sample], np.concatenate(classes)[sample])
    if model is None:
        return None
    cells = np.zeros((data.n_classes, data.n_classes), np.int64)
    for batch in data.batches(data.folds[0].test):
        found = model.predict(batch.frames[axis].cpu().numpy())
        np.add.at(cells, (batch.classes.cpu().numpy(), found), 1)
    return score_of(data.task.metric, cells)


def score_of(metric: str, cells: IntArray) -> float:
    """Return the score of a confusion matrix [n_classes, n_classes]: accuracy or macro-F1."""
    if metric == "f1":
        return float(macro_f1_of_sums(class_counts(cells[None]))[0])
    return float(np.trace(cells)) / max(1, int(cells.sum()))


class _Stack:
    """Heads that take their steps together.

    Attributes:
        heads: All heads, also those that have stopped.
        active: Those that are trained, in the order of the stack.
    """

    def __init__(self, specs: Sequence[HeadSpec], data: FramewiseData) -> None:
        layers = candidates_of(data.store, data.layers)
        task, dim = data.task, data.store.feature_dim
        shape = HeadShape(dim, task.projection, data.n_classes, len(layers), task.head)
        objective = Classification((data.n_classes,))
        self._stack = make_stack(specs, layers, shape, objective, data.device, task.batch)
        now = self.snapshot()
        self.heads = [
            HeadProgress(spec, -math.inf, now.copy_of(i), higher_is_better=True)
            for i, spec in enumerate(specs)
        ]
        self.active = list(self.heads)
        self._losses: list[Tensor] = []

    def snapshot(self) -> Snapshot:
        """Return the active heads as they are now."""
        return self._stack.snapshot()

    def step(self, batch: Batch) -> None:
        """Take a step on a batch."""
        rows = torch.arange(len(batch.classes), device=batch.classes.device)
        self._losses.append(self._stack.step(batch.frames, batch.classes[None], rows))

    def record(self, step: int, scores: Sequence[float], patience: int) -> None:
        """Record the dev scores of the active heads, and stop those that improve no more."""
        now, losses = self.snapshot(), torch.stack(self._losses).double().mean(0).tolist()
        self._losses = []
        kept = []
        for i, head in enumerate(self.active):
            if not math.isfinite(losses[i]):
                continue  # diverged: its best step so far is the result
            if head.record(step, losses[i], scores[i]):
                head.best = now.copy_of(i)
            if head.evaluations_since_best < patience:
                kept.append(i)
        if kept and len(kept) < len(self.active):
            self._stack.keep(kept)
        self.active = [self.active[i] for i in kept]


def _train(
    stacks: Sequence[_Stack], data: FramewiseData, pool: ThreadPoolExecutor, note: Note
) -> None:
    """Train the heads of one seed and fold until each has stopped or reached the last step."""
    task, spec = data.task, stacks[0].heads[0].spec
    fold = data.folds[spec.fold]
    begun_s = time.perf_counter()
    _evaluate(stacks, data, fold.dev, 0, pool)
    evaluation_s = time.perf_counter() - begun_s
    batches = data.batches(fold.train, spec.seed, is_endless=True)
    timer = StepTimer(task, data.device)
    for step in range(1, task.steps + 1):
        active = [stack for stack in stacks if stack.active]
        if not active:
            return
        batch = next(batches)
        _each(pool, partial(_Stack.step, batch=batch), active)
        if (limit_s := timer.limit_s(step)) is not None:
            limit_s += evaluation_s * -(-task.steps // task.eval_every)
            n_heads = sum(len(stack.heads) for stack in stacks)
            note(
                f"seed {spec.seed}, {counted(n_heads, 'head')}: training takes at most about "
                f"{rough_duration(limit_s)}"
            )
        if step % task.eval_every == 0 or step == task.steps:
            _evaluate(active, data, fold.dev, step, pool)
            heads = [head for stack in stacks for head in stack.heads]
            best = max(heads, key=lambda head: head.dev)
            note(
                f"seed {spec.seed}, step {step} of {task.steps}, "
                f"{counted(sum(len(stack.active) for stack in stacks), 'head')}; best on dev: "
                f"{task.metric} {best.dev:.3f} (layer {best.spec.layer}, lr {best.spec.lr:g})"
            )


def _evaluate(
    stacks: Sequence[_Stack],
    data: FramewiseData,
    dev: IntArray,
    step: int,
    pool: ThreadPoolExecutor,
) -> None:
    """Record the dev scores of the active heads; before training, only the scores."""
    cells = _confusions([stack.snapshot() for stack in stacks], data, dev, pool)
    for stack, of_heads in zip(stacks, cells, strict=True):
        scores = [score_of(data.task.metric, matrix) for matrix in of_heads]
        if step:
            stack.record(step, scores, data.task.patience)
        else:
            for head, score in zip(stack.heads, scores, strict=True):
                head.dev = score


def _confusions(
    stacks: Sequence[Snapshot], data: FramewiseData, positions: IntArray, pool: ThreadPoolExecutor
) -> list[IntArray]:
    """Return confusions over utterances: of each stack [n_heads, n_classes, n_classes]."""
    n = data.n_classes
    totals = [torch.zeros(len(some.weight), n * n, dtype=torch.int64) for some in stacks]

    def add(batch: Batch, item: tuple[Snapshot, Tensor]) -> None:
        some, total = item
        for head, found in enumerate(_predictions(some, batch)):
            total[head] += torch.bincount(batch.classes * n + found, minlength=n * n).cpu()

    for batch in data.batches(positions):
        _each(pool, partial(add, batch), list(zip(stacks, totals, strict=True)))
    return [total.view(-1, n, n).numpy() for total in totals]


def _tested(
    heads: Sequence[HeadProgress], data: FramewiseData, pool: ThreadPoolExecutor
) -> list[HeadResult]:
    """Score heads, each at its best step, on test; predictions are confusions of utterances."""
    n = data.n_classes
    test = data.folds[heads[0].spec.fold].test
    number = np.full(len(data.store), -1, np.int64)
    number[test] = np.arange(len(test))
    found: list[list[tuple[IntArray, IntArray]]] = [[] for _ in heads]

    def add(batch: Batch, index: int) -> None:
        (predicted,) = _predictions(heads[index].best, batch)
        cells = (batch.classes * n + predicted).cpu().numpy()
        keys = number[batch.positions] * (n * n) + cells
        found[index].append(np.unique(keys, return_counts=True))

    for batch in data.batches(test):
        _each(pool, partial(add, batch), range(len(heads)))
    results = []
    for head, parts in zip(heads, found, strict=True):
        keys = np.concatenate([np.zeros(0, np.int64), *(some for some, _ in parts)])
        counts = np.concatenate([np.zeros(0, np.int64), *(some for _, some in parts)])
        distinct, inverse = np.unique(keys, return_inverse=True)
        totals = np.bincount(inverse, counts, len(distinct)).astype(np.int64)
        cells = np.zeros(n * n, np.int64)
        np.add.at(cells, distinct % (n * n), totals)
        predictions = triples_of(distinct, totals, len(test), n)
        results.append(head.result(score_of(data.task.metric, cells.reshape(n, n)), predictions))
    return results


def triples_of(
    keys: IntArray, counts: IntArray, n_utterances: int, n_classes: int
) -> tuple[Triples, ...]:
    """Return the confusions of each utterance.

    Args:
        keys: (utterance * n_classes + reference) * n_classes + prediction, ascending.
        counts: Frames of each key.
        n_utterances: Number of utterances.
        n_classes: Number of classes.
    """
    cells = n_classes * n_classes
    parts = np.stack([keys % cells // n_classes, keys % n_classes, counts], axis=1)
    bounds = np.searchsorted(keys // cells, np.arange(n_utterances + 1)).tolist()
    return tuple(
        tuple(parts[bounds[i] : bounds[i + 1]].ravel().tolist()) for i in range(n_utterances)
    )


@torch.no_grad()
def _predictions(heads: Snapshot, batch: Batch) -> Iterator[Tensor]:
    """Yield the predicted classes of a batch by each head, int64 [n]."""
    n_per_chunk = max(1, _SCORE_CELLS // heads.n_values)
    rows = torch.arange(len(batch.classes), device=batch.classes.device)
    chunks = [
        heads.outputs_of(batch.frames, some).argmax(1) for some in torch.split(rows, n_per_chunk)
    ]
    yield from torch.cat(chunks, dim=1)


def _each(pool: ThreadPoolExecutor, run: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Run a function on each item, in the threads of a pool."""
    for _ in pool.map(run, items):
        pass

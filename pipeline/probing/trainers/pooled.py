"""Utterance tasks: linear heads on pooled features, all layers × learning rates × seeds at once.

Features are read once. Heads on the same layer from the same seed are a stack (`Stack`) and see the
same batches. Stacks train side by side, one per CPU thread: one stack of all heads took a quarter
more time, waiting for memory at every step. Each computes in one thread, so that the numbers do not
depend on how many threads there are. On a GPU a stack is all layers of a seed.

Nothing of a head depends on the heads beside it: its first values come from its seed and layer, the
order of the data from its seed.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from pipeline.config import TaskConfig
from pipeline.probing.labels import Fold, HeadSpec
from pipeline.probing.results import WEIGHTED, HeadResult, Layer
from pipeline.probing.trainers.head_stack import Readout, Shape, Stack

Done = Callable[[HeadSpec, HeadResult], None]

_LOGITS_AT_ONCE = 1 << 24
_LEAST_STEPS, _PASSES, _LOOKS = 640, 20, 32


@dataclass(frozen=True)
class Probing:
    """What heads are trained on.

    Attributes:
        pooled: Features, float32 [n_layers, n_utterances, dim].
        layers: What is on the layer axis.
        labels: Class of each utterance in each label column, int64 [n_columns, n_utterances].
        n_classes: Classes of each column.
        folds: Who trains, selects and is reported.
        task: The recipe.
    """

    pooled: Tensor
    layers: tuple[Layer, ...]
    labels: Tensor
    n_classes: tuple[int, ...]
    folds: tuple[Fold, ...]
    task: TaskConfig

    def to(self, device: torch.device) -> Probing:
        """The same with its tensors on a device."""
        return replace(self, pooled=self.pooled.to(device), labels=self.labels.to(device))

    @property
    def shape(self) -> Shape:
        """Sizes of a head."""
        n_layers, _, dim = self.pooled.shape
        return Shape(dim, self.task.projection, self.n_classes, n_layers)

    def said(self, readout: Readout, positions: Tensor) -> Tensor:
        """The classes that heads give to utterances: [heads, n_columns, n]."""
        at_once = max(1, _LOGITS_AT_ONCE // readout.weight[:, :, 0].numel())
        parts = []
        for some in torch.split(positions, at_once):
            scores = readout.scores(readout.inputs(readout.seen(self.pooled, some)))
            parts.append(torch.stack([scores[:, slot].argmax(1) for slot in self.shape.slots], 1))
        return torch.cat(parts, 2)

    def right(self, said: Tensor, positions: Tensor) -> list[float]:
        """Share of utterances in which a head is right in all columns, per head."""
        hits = (said == self.labels[:, positions]).all(1)
        return [count / len(positions) for count in hits.sum(1).tolist()]


def train_probes(
    probing: Probing,
    specs: Sequence[HeadSpec],
    device: torch.device,
    done: Done = lambda spec, result: None,
) -> list[HeadResult]:
    """Trains heads, picks each one's step on dev and scores it on test.

    Args:
        probing: The data and the recipe.
        specs: Which heads.
        device: Where to compute.
        done: Takes each head as soon as its stack is finished, in no particular order.

    Returns:
        One result per spec, in their order.
    """
    probing = probing.to(device)
    results: dict[HeadSpec, HeadResult] = {}
    on_cpu = device.type == "cpu"
    stop = threading.Event()
    with _threads(torch.get_num_threads() if on_cpu else 1) as pool:
        jobs = [pool.submit(_train, probing, some, stop) for some in _stacks(specs, on_cpu)]
        try:
            for job in as_completed(jobs):
                for spec, result in job.result().items():
                    results[spec] = result
                    done(spec, result)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [results[spec] for spec in specs]


def fitted(task: TaskConfig, n_train: int) -> TaskConfig:
    """The recipe with the number of steps that fits a training set, where none is given."""
    per_pass = math.ceil(n_train / min(task.batch, n_train))
    steps = task.steps or max(_LEAST_STEPS, _PASSES * per_pass)
    return replace(task, steps=steps, eval_every=task.eval_every or max(1, steps // _LOOKS))


def untrained_score(probing: Probing, layer: Layer) -> float:
    """Test score of a head as it is before training, in the first fold: a yardstick."""
    spec = HeadSpec(layer, lr=1.0, seed=0, fold=0)
    readout = Stack([spec], probing.layers, probing.shape, probing.pooled.device).readout()
    test = torch.from_numpy(probing.folds[0].test)
    return probing.right(probing.said(readout, test), test)[0]


def data_order(seed: int, n: int, batch: int) -> Iterator[Tensor]:
    """Batches of shuffled numbers below `n`, epoch after epoch without end: of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, n)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(n, generator=generator)])
        yield left[:batch]
        left = left[batch:]


class _Progress:
    """A head under way.

    Attributes:
        spec: Which it is.
        step: Step at which it was best on dev.
        dev: Its score there.
        best: How it stood there.
        waited: Looks at dev since then.
    """

    def __init__(self, spec: HeadSpec, dev: float, best: Readout) -> None:
        self.spec, self.dev, self.best = spec, dev, best
        self.step = self.waited = 0
        self._curve: list[tuple[int, float, float]] = []

    def looked(self, step: int, loss: float, dev: float) -> bool:
        """Takes the mean loss since the last look and the score on dev; says if it is the best."""
        self._curve.append((step, loss, dev))
        better = dev > self.dev
        self.waited = 0 if better else self.waited + 1
        if better:
            self.step, self.dev = step, dev
        return better

    def result(self, probing: Probing) -> HeadResult:
        """The head where it was best."""
        test = torch.from_numpy(probing.folds[self.spec.fold].test).to(probing.pooled.device)
        said = probing.said(self.best, test)
        mix = self.best.mix
        return HeadResult(
            layer=self.spec.layer,
            lr=self.spec.lr,
            seed=self.spec.seed,
            fold=self.spec.fold,
            step=self.step,
            dev=self.dev,
            test=probing.right(said, test)[0],
            curve=tuple(self._curve),
            predictions=tuple(tuple(row) for row in said[0].T.tolist()),
            layer_weights=None if mix is None else tuple(mix[0].tolist()),
        )


def _train(
    probing: Probing, specs: Sequence[HeadSpec], stop: threading.Event
) -> dict[HeadSpec, HeadResult]:
    """Trains a stack until each head has stopped or taken all steps."""
    task, device = probing.task, probing.pooled.device
    fold = probing.folds[specs[0].fold]
    train, dev = (torch.from_numpy(part).to(device) for part in (fold.train, fold.dev))
    stack = Stack(specs, probing.layers, probing.shape, device)
    readout = stack.readout()
    scores = probing.right(probing.said(readout, dev), dev)
    heads = [_Progress(spec, scores[i], readout.head(i)) for i, spec in enumerate(specs)]
    active, order = list(heads), data_order(specs[0].seed, len(train), task.batch)
    for start in range(0, task.steps, task.eval_every):
        n_steps = min(task.eval_every, task.steps - start)
        losses = _steps(probing, stack, train, order, n_steps)
        readout = stack.readout()
        scores = probing.right(probing.said(readout, dev), dev)
        kept = []
        for i, head in enumerate(active):
            if not math.isfinite(losses[i]):
                continue  # too large a learning rate: its best stands
            if head.looked(start + n_steps, losses[i], scores[i]):
                head.best = readout.head(i)
            if head.waited < task.patience:
                kept.append(i)
        if stop.is_set() or not kept:
            break
        if len(kept) < len(active):
            stack.keep(kept)
            active = [active[i] for i in kept]
    return {head.spec: head.result(probing) for head in heads}


def _steps(
    probing: Probing, stack: Stack, train: Tensor, order: Iterator[Tensor], n_steps: int
) -> list[float]:
    """Takes steps; returns the mean loss of each head."""
    losses = []
    for rows in islice(order, n_steps):
        batch = train[rows.to(train.device)]
        losses.append(stack.step(probing.pooled, probing.labels, batch))
    return [math.fsum(row) / n_steps for row in torch.stack(losses, 1).tolist()]


def _stacks(specs: Sequence[HeadSpec], by_layer: bool) -> list[list[HeadSpec]]:
    """Heads that train together; weighted sums first, which take longest."""
    stacks: dict[tuple[object, ...], list[HeadSpec]] = defaultdict(list)
    for spec in dict.fromkeys(specs):
        weighted = spec.layer == WEIGHTED
        stacks[(spec.fold, spec.seed, spec.layer if by_layer else weighted)].append(spec)
    return sorted(stacks.values(), key=lambda stack: stack[0].layer != WEIGHTED)


@contextmanager
def _threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)

"""Trainer of utterance tasks: heads on pooled features, all layers and settings at once.

Features are read once. Heads of one layer, seed and fold form a stack (`Stack`) and are trained
on the same batches. On a CPU, stacks train in parallel, one per thread: a single stack of all heads
took a quarter more time, limited by memory bandwidth. Each stack computes in one thread, so the
results do not depend on the number of threads. On a GPU, the heads of one seed and fold form two
stacks: one on single layers, one on weighted sums.

A head does not depend on the other heads in training: its initial parameters depend on its seed and
layer, and the data order on its seed.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from pipeline.config import TaskConfig
from pipeline.events import rough_duration
from pipeline.probing.labels import Fold
from pipeline.probing.results import WEIGHTED, Candidate, HeadResult, HeadSpec, Note, OnHead
from pipeline.probing.trainers.fused_stack import make_stack
from pipeline.probing.trainers.head_stack import Stack
from pipeline.probing.trainers.objectives import Objective
from pipeline.probing.trainers.progress import HeadProgress, stacks_of
from pipeline.probing.trainers.snapshot import HeadShape, Snapshot
from pipeline.threads import single_threaded

_MAX_OUTPUTS = 1 << 24
"""Largest number of outputs (heads × classes × utterances) that is computed at once."""
_MIN_STEPS, _MIN_EPOCHS, _N_EVALUATIONS = 640, 20, 32
"""With `steps=0`: 640 steps, or 20 epochs if that is more. With `eval_every=0`: 32 evaluations."""
_N_TIMED = 2
"""Steps of each kind of stack that are timed to estimate the duration."""
_NOTE_FROM_S = 5.0


@dataclass(frozen=True)
class PooledData:
    """Pooled features and labels of an utterance task.

    Attributes:
        pooled: Features, float32 [n_layers, n_utterances, dim].
        layers: Candidate at each index of the layer axis.
        labels: Label of each utterance in each label column: classes as int64, or numbers as
            float32, [n_columns, n_utterances].
        objectives: What the heads of each fold learn.
        folds: The folds.
        task: Settings of the task.
    """

    pooled: Tensor
    layers: tuple[Candidate, ...]
    labels: Tensor
    objectives: tuple[Objective, ...]
    folds: tuple[Fold, ...]
    task: TaskConfig

    def to(self, device: torch.device) -> PooledData:
        """Return the data with its tensors on a device."""
        pooled = self.pooled.to(device).contiguous()
        return replace(self, pooled=pooled, labels=self.labels.to(device))

    @property
    def shape(self) -> HeadShape:
        """Sizes of a head."""
        n_layers, _, dim = self.pooled.shape
        n_outputs = sum(self.objectives[0].widths)
        return HeadShape(dim, self.task.projection, n_outputs, n_layers, self.task.head)

    def stack(self, specs: Sequence[HeadSpec]) -> Stack:
        """Return untrained heads of one seed and fold."""
        fold = specs[0].fold
        batch, device = min(self.task.batch, len(self.folds[fold].train)), self.pooled.device
        return make_stack(specs, self.layers, self.shape, self.objectives[fold], device, batch)

    def predictions(self, heads: Snapshot, positions: Tensor, fold: int) -> Tensor:
        """Return the predicted labels of utterances: [n_heads, n_columns, n].

        Args:
            heads: The heads.
            positions: Positions of the utterances, int64 [n].
            fold: Fold of the heads.
        """
        n_per_chunk = max(1, _MAX_OUTPUTS // heads.n_values)
        predict = self.objectives[fold].predict
        chunks = [
            predict(heads.outputs_of(self.pooled, chunk))
            for chunk in torch.split(positions, n_per_chunk)
        ]
        return torch.cat(chunks, 2)

    def scores(self, predictions: Tensor, positions: Tensor, fold: int) -> list[float]:
        """Return the score of each head.

        Args:
            predictions: [n_heads, n_columns, n].
            positions: Positions of the utterances, int64 [n].
            fold: Fold of the heads.
        """
        return self.objectives[fold].scores(predictions, self.labels[:, positions])


def train_pooled_heads(
    data: PooledData,
    specs: Sequence[HeadSpec],
    device: torch.device,
    on_head: OnHead = lambda spec, result, parameters=None, /: None,
    note: Note = lambda line: None,
) -> list[HeadResult]:
    """Train heads, select the step of each on dev, and score it on test.

    Args:
        data: Features, labels and settings.
        specs: Settings of the heads.
        device: Device to train on.
        on_head: Called with each head as soon as its stack is trained, in no particular order.
        note: Called once with the expected duration, if it is long.

    Returns:
        A result per spec, in their order.
    """
    data = data.to(device)
    results: dict[HeadSpec, HeadResult] = {}
    on_cpu = device.type == "cpu"
    stop = threading.Event()
    n_threads = torch.get_num_threads() if on_cpu else 1
    with single_threaded(n_threads) as pool:
        stacks = stacks_of(specs, on_cpu)
        limit_s = _limit_s(data, stacks, pool, n_threads)
        if limit_s > _NOTE_FROM_S:
            note(
                f"training takes at most about {rough_duration(limit_s)}; heads that improve no "
                "more stop early"
            )
        jobs = [pool.submit(_train, data, stack, stop) for stack in stacks]
        try:
            for job in as_completed(jobs):
                for spec, (result, parameters) in job.result().items():
                    results[spec] = result
                    on_head(spec, result, parameters)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [results[spec] for spec in specs]


def _limit_s(
    data: PooledData,
    stacks: Sequence[Sequence[HeadSpec]],
    pool: ThreadPoolExecutor,
    n_threads: int,
) -> float:
    """Estimate the seconds until every head has taken all steps, from a few timed ones.

    A stack of each kind is timed in all threads at once, as stacks are trained: threads share the
    memory's bandwidth, and the cores with other programs.
    """
    by_kind: dict[tuple[bool, int], float] = {}
    ends = [0.0] * min(n_threads, len(stacks))  # of each thread
    for stack in stacks:
        kind = (stack[0].layer == WEIGHTED, len(stack))
        if kind not in by_kind:
            timed = [pool.submit(_stack_s, data, stack) for _ in ends]
            by_kind[kind] = sum(job.result() for job in timed) / len(ends)
        heapq.heappush(ends, heapq.heappop(ends) + by_kind[kind])
    return max(ends, default=0.0)


def _stack_s(data: PooledData, specs: Sequence[HeadSpec]) -> float:
    """Return the seconds of all steps and evaluations of a stack, by those of a few."""
    number, task = specs[0].fold, data.task
    fold = data.folds[number]
    train, dev = (torch.from_numpy(part).to(data.pooled.device) for part in (fold.train, fold.dev))
    stack = data.stack(specs)
    order = data_order(specs[0].seed, len(train), task.batch)
    _take_steps(data, stack, train, order, 1)
    start_s = time.perf_counter()
    _take_steps(data, stack, train, order, _N_TIMED)
    stepped_s = time.perf_counter()
    data.scores(data.predictions(stack.snapshot(), dev, number), dev, number)
    evaluation_s = time.perf_counter() - stepped_s
    n_evaluations = 1 + -(-task.steps // task.eval_every)
    return (stepped_s - start_s) / _N_TIMED * task.steps + evaluation_s * n_evaluations


def resolve_steps(task: TaskConfig, n_train: int) -> TaskConfig:
    """Replace `steps` and `eval_every` by their defaults for a training set, where they are 0.

    An epoch is taken as `n_train / task.batch` steps. This is exact for utterance tasks only: in
    frame tasks `batch` counts frames, so set `steps` explicitly there.

    Args:
        task: Settings of the task.
        n_train: Number of training utterances.
    """
    steps_per_epoch = math.ceil(n_train / min(task.batch, n_train))
    steps = task.steps or max(_MIN_STEPS, _MIN_EPOCHS * steps_per_epoch)
    return replace(task, steps=steps, eval_every=task.eval_every or max(1, steps // _N_EVALUATIONS))


def untrained_score(data: PooledData, layer: Candidate) -> float:
    """Return the test score of a head before training, in the first fold: a baseline."""
    head = data.stack([HeadSpec(layer, lr=1.0, seed=0, fold=0)]).snapshot()
    test = torch.from_numpy(data.folds[0].test)
    return data.scores(data.predictions(head, test, 0), test, 0)[0]


def data_order(seed: int, n: int, batch: int) -> Iterator[Tensor]:
    """Yield batches of shuffled indices below `n` without end, epoch by epoch.

    A batch may span two epochs. The order depends on the seed only.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, n)
    remaining = torch.empty(0, dtype=torch.int64)
    while True:
        while len(remaining) < batch:
            remaining = torch.cat([remaining, torch.randperm(n, generator=generator)])
        yield remaining[:batch]
        remaining = remaining[batch:]


def _result(head: HeadProgress, data: PooledData) -> HeadResult:
    """Score a head, at its best step, on test."""
    fold = head.spec.fold
    test = torch.from_numpy(data.folds[fold].test).to(data.pooled.device)
    predictions = data.predictions(head.best, test, fold)
    rows = tuple(tuple(row) for row in predictions[0].T.tolist())
    return head.result(data.scores(predictions, test, fold)[0], rows)


def _train(
    data: PooledData, specs: Sequence[HeadSpec], stop: threading.Event
) -> dict[HeadSpec, tuple[HeadResult, dict[str, Tensor]]]:
    """Train a stack until each head has stopped or taken all steps."""
    task, device = data.task, data.pooled.device
    number = specs[0].fold
    fold, objective = data.folds[number], data.objectives[number]
    train, dev = (torch.from_numpy(part).to(device) for part in (fold.train, fold.dev))
    stack = data.stack(specs)
    now = stack.snapshot()
    scores = data.scores(data.predictions(now, dev, number), dev, number)
    heads = [
        HeadProgress(spec, scores[i], now.copy_of(i), objective.higher_is_better)
        for i, spec in enumerate(specs)
    ]
    active, order = list(heads), data_order(specs[0].seed, len(train), task.batch)
    for start in range(0, task.steps, task.eval_every):
        n_steps = min(task.eval_every, task.steps - start)
        losses = _take_steps(data, stack, train, order, n_steps)
        now = stack.snapshot()
        scores = data.scores(data.predictions(now, dev, number), dev, number)
        kept = []
        for i, head in enumerate(active):
            if not (math.isfinite(losses[i]) and math.isfinite(scores[i])):
                continue  # diverged: its best step so far is the result
            if head.record(start + n_steps, losses[i], scores[i]):
                head.best = now.copy_of(i)
            if head.evaluations_since_best < task.patience:
                kept.append(i)
        if stop.is_set() or not kept:
            break
        if len(kept) < len(active):
            stack.keep(kept)
            active = [active[i] for i in kept]
    return {
        head.spec: (_result(head, data), head.parameters() | objective.parameters())
        for head in heads
    }


def _take_steps(
    data: PooledData,
    stack: Stack,
    train: Tensor,
    order: Iterator[Tensor],
    n_steps: int,
) -> list[float]:
    """Take training steps, and return the mean loss of each head."""
    losses = []
    for rows in islice(order, n_steps):
        batch = train[rows.to(train.device)]
        losses.append(stack.step(data.pooled, data.labels, batch))
    return [math.fsum(row) / n_steps for row in torch.stack(losses, 1).tolist()]

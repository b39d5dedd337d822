"""Trainer of heads that need the frames of whole utterances, by torch's automatic gradients.

Heads are those of `pipeline.heads.networks`: attentive pooling on utterances; hidden layers and
LSTMs on frames. Heads of one layer, seed and fold read their frames together, and take their steps
one after the other. On a CPU such groups train in parallel, each in one thread, so that the results
depend neither on the number of threads nor on other heads; on a GPU they follow each other.

Memory is bounded whatever the corpus: frames are read from the store batch by batch, and a batch
that is too large is taken in parts. Then its outputs are computed first, part by part, and the
gradients of the loss with respect to them; a second pass over the parts adds up the gradients with
respect to the parameters. They are those of the whole batch, up to rounding.

Plain reference: tests/probing/test_sequences.py trains the same heads with torch's modules and
losses on padded batches, and compares losses and parameters.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.sweep_schema import LSTM
from pipeline.errors import ConfigError, counted
from pipeline.events import rough_duration
from pipeline.heads.modules import WeightedSum
from pipeline.probing.labels import IntArray
from pipeline.probing.results import (
    WEIGHTED,
    Candidate,
    HeadResult,
    HeadSpec,
    Note,
    OnHead,
    stored_layer,
)
from pipeline.probing.trainers.progress import finished_s, stacks_of
from pipeline.probing.trainers.sequence_data import LayerMix, SequenceData, normalized
from pipeline.threads import single_threaded

MAX_GRADIENT_NORM = 1.0
"""Norm to which the gradients of an LSTM are clipped, as in s3prl."""
_PART_BYTES = 1 << 30
"""Memory of the part of a batch that is in memory at once, unless one utterance needs more."""
_FLOAT_BYTES = 4
_KEPT = 2
"""Blocks that malloc keeps after they are freed: the measured peak over what is in use."""
_COPIES = 5
"""Of each parameter: its value, gradient, two moments of Adam, and value at the best step."""
_NOTE_FROM_S = 5.0
_INITIALISING = threading.Lock()
"""Held while torch's random state is that of a head."""


def train_sequence_heads(
    data: SequenceData,
    specs: Sequence[HeadSpec],
    on_head: OnHead = lambda spec, result, parameters=None, /: None,
    note: Note = lambda line: None,
) -> None:
    """Train heads, select the step of each on dev, and score it on test.

    Args:
        data: Features, labels and settings.
        specs: Settings of the heads.
        on_head: Called with each head as soon as those of its layer, seed and fold are trained, in
            no particular order.
        note: Called once with the expected duration, if it is long.

    Raises:
        ConfigError: The frames of the longest utterance do not fit in memory.
    """
    groups = stacks_of(specs, by_layer=True)
    parts = {group[0].layer: _frames_per_part(data, group) for group in groups}
    n_threads = torch.get_num_threads() if data.device.type == "cpu" else 1
    n_threads = max(1, min(n_threads, *(data.memory // n_bytes for _, n_bytes in parts.values())))
    stop = threading.Event()
    with single_threaded(n_threads) as pool:
        limit_s = pool.submit(_work_s, data, groups, parts).result() / min(n_threads, len(groups))
        if limit_s > _NOTE_FROM_S:
            note(
                f"training takes at most about {rough_duration(limit_s)}, without the evaluations; "
                "heads that improve no more stop early"
            )
        jobs = [
            pool.submit(_train, data, group, parts[group[0].layer][0], stop) for group in groups
        ]
        try:
            for job in as_completed(jobs):
                for head, result in job.result():
                    on_head(head.spec, result, head.parameters())
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def untrained_score(data: SequenceData, layer: Candidate) -> float:
    """Return the test score of a head before training, in the first fold: a baseline."""
    spec = HeadSpec(layer, lr=1.0, seed=0, fold=0)
    group = _Group(data, [spec], _frames_per_part(data, [spec])[0])
    return group.evaluate(group.heads, data.lessons[0].fold.test)[0][0]


def _frames_per_part(data: SequenceData, specs: Sequence[HeadSpec]) -> tuple[int, int]:
    """Return the most frames of a part of a batch, and the bytes that training a group takes.

    Raises:
        ConfigError: The longest utterance does not fit in memory.
    """
    store = data.store
    n_layers = len(data.layers) if _is_weighted(specs[0]) else 1
    stored = n_layers * store.codec.value_dtype.itemsize
    with torch.device("meta"):
        network = data.network(specs[0].fold)
    n_parameters = sum(value.numel() for value in network.parameters())
    fixed = len(specs) * _COPIES * n_parameters * _FLOAT_BYTES
    frame_bytes = (stored + 4 * _FLOAT_BYTES) * store.feature_dim + network.frame_bytes
    frame_bytes *= _KEPT
    folds = [lesson.fold for lesson in data.lessons]
    used = np.concatenate([part for fold in folds for part in (fold.train, fold.dev, fold.test)])
    longest = int(used[store.frame_counts[used].argmax()])
    n_longest = int(store.frame_counts[longest])
    if fixed + n_longest * frame_bytes > data.memory:
        raise ConfigError(
            f"training {counted(len(specs), 'head')} of {n_parameters:,} parameters on utterance "
            f"{store.ids[longest]!r} with {counted(n_longest, 'frame')} takes about "
            f"{(fixed + n_longest * frame_bytes) / 1e9:.2g} GB, more than memory; raise memory=, "
            "give fewer task.lrs, or sweep a store without it"
        )
    largest = max(lesson.largest_batch for lesson in data.lessons)
    fitting = min(_PART_BYTES, data.memory - fixed) // frame_bytes
    n = max(n_longest, min(fitting, largest))
    return n, fixed + n * frame_bytes


class _Head:
    """A head in training.

    Attributes:
        spec: Its settings.
        dev: Best dev score.
        mix: The weights of the layers, for a weighted sum.
    """

    def __init__(self, data: SequenceData, spec: HeadSpec) -> None:
        self.spec = spec
        with _INITIALISING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(f"{spec.seed} {spec.layer}".encode()))
            self.network = data.network(spec.fold)
        self.network.to(data.device)
        self.mix = WeightedSum(len(data.layers)).to(data.device) if _is_weighted(spec) else None
        self._task, self._lesson = data.task, data.lessons[spec.fold]
        self._all = [*self.network.parameters(), *(self.mix.parameters() if self.mix else ())]
        self._optimizer = torch.optim.Adam(self._all, lr=spec.lr, fused=True)
        self._sign = 1 if self._lesson.higher_is_better else -1
        self._losses: list[Tensor] = []
        self._curve: list[tuple[int, float, float]] = []
        self._best_dev_loss = math.inf
        self._step = self._evaluations_since_best = 0
        self.dev = math.nan
        self._best = self._snapshot()

    def outputs(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs for frames [n_layers, n_frames, dim] of utterances.

        Args:
            frames: Frames of the layer, or of all layers for a weighted sum.
            lengths: Frames of each utterance.
        """
        if self.mix is None:
            return self.network.of_frames(frames[0], lengths)
        mixed = LayerMix.apply(self.mix.weights(), frames, self._task)
        return self.network.of_frames(mixed, lengths)

    def step(self, loss: Tensor) -> None:
        """Update the parameters by their gradients, and record the loss."""
        self._losses.append(loss.detach())
        if self._task.head == LSTM:
            nn.utils.clip_grad_norm_(self._all, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def record(self, step: int, dev: float, dev_loss: float) -> bool:
        """Record an evaluation, and return whether training continues.

        Step 0 is the head before training. A loss or a score that is not finite ends the training:
        the best step so far is the result.
        """
        if not step:
            self.dev, self._best_dev_loss = dev, dev_loss
            return True
        loss = float(torch.stack(self._losses).double().mean())
        self._losses = []
        if not (math.isfinite(loss) and math.isfinite(dev)):
            return False
        self._curve.append((step, loss, dev))
        self._evaluations_since_best += 1
        if dev_loss < self._best_dev_loss:
            self._best_dev_loss, self._evaluations_since_best = dev_loss, 0
        if self._sign * dev > self._sign * self.dev:
            self.dev, self._step, self._evaluations_since_best = dev, step, 0
            self._best = self._snapshot()
        is_perfect = self.dev == (1.0 if self._sign > 0 else 0.0)
        return not is_perfect and self._evaluations_since_best < self._task.patience

    def restore(self) -> None:
        """Set the parameters to those of the best step."""
        with torch.no_grad():
            for parameter, value in zip(self._all, self._best, strict=True):
                parameter.copy_(value)

    def result(self, test: float, predictions: Sequence[Any]) -> HeadResult:
        """Return the head at its best step, with its test score and predictions."""
        weights = None if self.mix is None else tuple(self.mix.weights().tolist())
        return HeadResult(
            **asdict(self.spec),
            step=self._step,
            dev=self.dev,
            test=test,
            curve=tuple(self._curve),
            predictions=tuple(predictions),
            layer_weights=weights,
        )

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors by the names of `pipeline.heads.trained`."""
        tensors = {name: value.detach() for name, value in self.network.tensors().items()}
        mix = {"layer_weights": self.mix.weights().detach()} if self.mix else {}
        return tensors | mix | self._lesson.parameters()

    def _snapshot(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._all]


class _Group:
    """Heads of one layer, seed and fold, which read their frames together.

    Attributes:
        heads: The heads.
    """

    def __init__(self, data: SequenceData, specs: Sequence[HeadSpec], n_per_part: int) -> None:
        self.heads = [_Head(data, spec) for spec in specs]
        self._data, self._n_per_part = data, n_per_part
        self._lesson = data.lessons[specs[0].fold]
        layers = data.layers if _is_weighted(specs[0]) else [stored_layer(specs[0].layer)]
        self._axes = data.store.axes(layers)
        self._is_weighted = _is_weighted(specs[0])

    def step(self, heads: Sequence[_Head], positions: IntArray) -> None:
        """Take a step of heads on a batch of utterances."""
        parts = self._parts(positions)
        if len(parts) == 1:
            self._step_at_once(heads, positions)
            return
        outputs: list[list[Tensor]] = [[] for _ in heads]
        for part in parts:
            for own, found in zip(outputs, self._outputs(heads, part), strict=True):
                own.append(found)
        losses, gradients = [], []
        for own in outputs:
            loss, gradient = self._lesson.loss(torch.cat(own), positions)
            losses.append(loss)
            gradients.append(torch.split(gradient, [len(found) for found in own]))
        for number, part in enumerate(parts):
            self._add_gradients(heads, part, [of[number] for of in gradients])
        for head, loss in zip(heads, losses, strict=True):
            head.step(loss)

    def _step_at_once(self, heads: Sequence[_Head], positions: IntArray) -> None:
        frames, lengths = self._frames(positions)
        for head in heads:
            outputs = head.outputs(frames, lengths)
            loss, gradient = self._lesson.loss(outputs.detach(), positions)
            outputs.backward(gradient)  # type: ignore[no-untyped-call]
            head.step(loss)

    @torch.no_grad()
    def _outputs(self, heads: Sequence[_Head], part: IntArray) -> list[Tensor]:
        """Return the outputs of each head. Frames are released before the next part is read."""
        frames, lengths = self._frames(part)
        return [head.outputs(frames, lengths) for head in heads]

    def _add_gradients(
        self, heads: Sequence[_Head], part: IntArray, gradients: Sequence[Tensor]
    ) -> None:
        """Add the gradients of each head on a part, given those of its outputs."""
        frames, lengths = self._frames(part)
        for head, gradient in zip(heads, gradients, strict=True):
            head.outputs(frames, lengths).backward(gradient)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def evaluate(
        self, heads: Sequence[_Head], positions: IntArray
    ) -> list[tuple[float, float, list[Any]]]:
        """Return score, loss and predictions of each head on utterances."""
        predictions: list[list[Any]] = [[] for _ in heads]
        losses = [0.0] * len(heads)
        for part in self._parts(positions):
            for number, outputs in enumerate(self._outputs(heads, part)):
                predictions[number] += self._lesson.predict(outputs, part)
                losses[number] += self._lesson.dev_loss(outputs, part)
        scores = [self._lesson.score(tuple(items), positions) for items in predictions]
        return list(zip(scores, losses, predictions, strict=True))

    def _frames(self, positions: IntArray) -> tuple[Tensor, Tensor]:
        """Read utterances: [n_layers, n_frames, dim], and the frames of each, [n]."""
        frames, lengths = self._data.read(positions, self._axes)
        if not self._is_weighted:
            frames = normalized(frames[0], self._data.task)[None]
        return frames, lengths

    def _parts(self, positions: IntArray) -> list[IntArray]:
        """Cut utterances, in their order, into parts of at most `n_per_part` frames."""
        cuts, n_frames = [], 0
        for i, n in enumerate(self._data.store.frame_counts[positions].tolist()):
            if i and n_frames + n > self._n_per_part:
                cuts.append(i)
                n_frames = 0
            n_frames += n
        return np.split(positions, cuts)


def _train(
    data: SequenceData, specs: Sequence[HeadSpec], n_per_part: int, stop: threading.Event
) -> list[tuple[_Head, HeadResult]]:
    """Train a group until each head has stopped or taken all steps; nothing if it is stopped."""
    task, lesson = data.task, data.lessons[specs[0].fold]
    group = _Group(data, specs, n_per_part)
    for head, (dev, loss, _) in zip(
        group.heads, group.evaluate(group.heads, lesson.fold.dev), strict=True
    ):
        head.record(0, dev, loss)
    active = list(group.heads)
    for step, positions in enumerate(lesson.order(specs[0].seed), 1):
        if stop.is_set():
            return []
        if step > task.steps or not active:
            break
        group.step(active, positions)
        if step % task.eval_every == 0 or step == task.steps:
            found = group.evaluate(active, lesson.fold.dev)
            kept = [
                head.record(step, dev, loss)
                for head, (dev, loss, _) in zip(active, found, strict=True)
            ]
            active = [head for head, is_kept in zip(active, kept, strict=True) if is_kept]
    for head in group.heads:
        head.restore()
    tested = group.evaluate(group.heads, lesson.fold.test)
    return [
        (head, head.result(test, predictions))
        for head, (test, _, predictions) in zip(group.heads, tested, strict=True)
    ]


def _work_s(
    data: SequenceData,
    groups: Sequence[Sequence[HeadSpec]],
    parts: dict[Candidate, tuple[int, int]],
) -> float:
    """Estimate the seconds of one thread if every head takes all steps, from two steps of each."""
    by_kind: dict[bool, float] = {}
    for group in groups:
        kind = _is_weighted(group[0])
        if kind not in by_kind:
            by_kind[kind] = _step_s(data, group[0], parts[group[0].layer][0])
    return sum(by_kind[_is_weighted(group[0])] * len(group) for group in groups) * data.task.steps


def _step_s(data: SequenceData, spec: HeadSpec, n_per_part: int) -> float:
    """Return the seconds of the second step of a head."""
    group = _Group(data, [spec], n_per_part)
    order: Iterator[IntArray] = data.lessons[spec.fold].order(spec.seed)
    group.step(group.heads, next(order))
    start_s = time.perf_counter()
    group.step(group.heads, next(order))
    return finished_s(data.device) - start_s


def _is_weighted(spec: HeadSpec) -> bool:
    return spec.layer == WEIGHTED

"""Trainer of frame tasks: linear CTC heads on all layers, in one pass over the features.

A head is SUPERB's head for phone recognition (`FramewiseLinear`): Linear(dim → 256),
Linear(→ symbols) and CTC, without augmentation, trained by Adam at a constant learning rate. Its
two linear layers are multiplied into one before frames go through it: the same function at a
fraction of the cost. Plain reference: `test_heads_train_as_in_a_plain_loop` in
tests/probing/test_ctc.py trains both layers, with torch's CTCLoss, and compares the losses.

The features of a batch are read once for all heads of a seed, and converted from the stored dtype
to float32. A head does not depend on the other heads in training: its initial parameters depend on
its seed and layer, and the data order on its seed. On a CPU, with equal numbers of threads, the
result is bit-identical.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TaskConfig
from pipeline.errors import counted
from pipeline.events import rough_duration
from pipeline.feed.batch import Batch
from pipeline.heads.ctc import Target, ctc_bytes, ctc_losses, greedy_symbols
from pipeline.heads.modules import FramewiseLinear, WeightedSum
from pipeline.probing.metrics import error_rate
from pipeline.probing.results import (
    WEIGHTED,
    Candidate,
    HeadResult,
    HeadSpec,
    Note,
    OnHead,
    stored_layer,
)
from pipeline.probing.trainers.frame_data import FrameData, Transcripts
from pipeline.probing.trainers.progress import StepTimer
from pipeline.store.read.features import FeatureStore

_CHUNK_BYTES = 1 << 28
"""Memory for the scores and CTC tables of the heads whose loss is computed at once."""


def train_ctc_heads(
    store: FeatureStore,
    task: TaskConfig,
    transcripts: Transcripts,
    layers: Sequence[int],
    specs: Sequence[HeadSpec],
    device: torch.device,
    note: Note = lambda line: None,
    on_head: OnHead = lambda spec, result, parameters=None, /: None,
) -> list[HeadResult]:
    """Train heads, select the step of each on dev, and score it on test.

    Args:
        store: The features.
        task: Settings of the task.
        transcripts: Transcripts of a fold (`prepare_transcripts`).
        layers: Swept layers of the store; the weighted sum is over these.
        specs: Heads of this fold. Heads of one seed share their passes over the data.
        device: Device to train on.
        note: Called with a progress line at each evaluation.
        on_head: Called with each head once those of its seed are trained.

    Returns:
        A result per spec, in their order. Predictions are texts, in the order of
        `transcripts.test`.
    """
    data = FrameData(store, task, transcripts, _layers_to_read(layers, specs), device)
    results: dict[HeadSpec, HeadResult] = {}
    for seed in dict.fromkeys(spec.seed for spec in specs):
        heads = [_Head(spec, data) for spec in dict.fromkeys(specs) if spec.seed == seed]
        _train(heads, data, seed, note)
        predictions = _transcribe(data, transcripts.test, [head.best for head in heads])
        for head, texts in zip(heads, predictions, strict=True):
            result = head.result(_error_rate(data, transcripts.test, texts), texts)
            results[head.spec] = result
            on_head(head.spec, result, head.best.parameters())
    return [results[spec] for spec in specs]


def untrained_error_rate(
    store: FeatureStore,
    task: TaskConfig,
    transcripts: Transcripts,
    layer: int,
    device: torch.device,
) -> float:
    """Return the test error rate of a head before training, a baseline.

    Args:
        store: The features.
        task: Settings of the task.
        transcripts: Transcripts of a fold.
        layer: Layer of the store that the head reads.
        device: Device to compute on.
    """
    data = FrameData(store, task, transcripts, [layer], device)
    head = _Head(HeadSpec(layer, lr=1.0, seed=0, fold=0), data)
    (texts,) = _transcribe(data, transcripts.test, [head.best])
    return _error_rate(data, transcripts.test, texts)


def initial_head(
    seed: int, layer: Candidate, dim: int, vocab: int, projection: int
) -> FramewiseLinear:
    """Return a head before training: torch's initialisation, seeded by seed and layer."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed} {layer}".encode()))
        return FramewiseLinear(dim, vocab, projection)


@dataclass(frozen=True)
class LinearMap:
    """A head as one linear map from frames to scores.

    Attributes:
        axis: Index of the head's layer on the layer axis of the frames; unused with `mix`.
        mix: Weights of all layers, [n_layers], for a weighted sum; else None.
        weight: [vocab, dim].
        bias: [vocab].
    """

    axis: int
    mix: Tensor | None
    weight: Tensor
    bias: Tensor

    def __call__(self, frames: Tensor) -> Tensor:
        """Map frames [n_layers, n_frames, dim] to scores [n_frames, vocab]."""
        if self.mix is None:
            layer = frames[self.axis]
        else:
            layer = torch.matmul(self.mix, frames.flatten(1)).view(frames.shape[1:])
        return nn.functional.linear(layer, self.weight, self.bias)

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors by name; `layer_weights` for a weighted sum."""
        mix = {} if self.mix is None else {"layer_weights": self.mix}
        return {"weight": self.weight, "bias": self.bias, **mix}


class _Head:
    """A head in training.

    Attributes:
        spec: Its settings.
        active: Whether training continues.
        best: The head at its best dev error rate; before the first evaluation, the untrained head.
        best_dev: Best dev error rate; infinite before the first evaluation.
    """

    def __init__(self, spec: HeadSpec, data: FrameData) -> None:
        self.spec = spec
        self.active = True
        vocab, device = len(data.transcripts.vocabulary), data.device
        head = initial_head(spec.seed, spec.layer, data.dim, vocab, data.task.projection)
        self._linear = head.to(device)
        self._axis, self._mix = 0, None
        parameters = list(head.parameters())
        if spec.layer == WEIGHTED:
            self._mix = WeightedSum(len(data.layers)).to(device)
            parameters += self._mix.parameters()
        else:
            self._axis = data.layers.index(stored_layer(spec.layer))
        self._optimizer = torch.optim.Adam(parameters, lr=spec.lr)
        self._patience = data.task.patience
        self._losses: list[Tensor] = []
        self._evaluations_since_best = 0
        self._best_step = 0
        self._curve: list[tuple[int, float, float]] = []
        self._best_dev_loss = float("inf")
        self.best_dev = float("inf")
        self.best = self.snapshot()

    def linear_map(self) -> LinearMap:
        """Return the head as one linear map, differentiable with respect to its parameters."""
        projector, output = self._linear.projector, self._linear.output
        assert isinstance(projector, nn.Linear)
        weight = output.weight @ projector.weight  # [vocab, dim]
        bias = output.weight @ projector.bias + output.bias
        return LinearMap(self._axis, self._mix.weights() if self._mix else None, weight, bias)

    @torch.no_grad()
    def snapshot(self) -> LinearMap:
        """Return a copy of the head as one linear map, without gradients."""
        return self.linear_map()

    def step(self, loss: Tensor) -> None:
        """Update the parameters by their gradients, and record the training loss."""
        self._losses.append(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def record(self, step: int, dev: float, dev_loss: float) -> None:
        """Record the error rate and the loss on dev; stop after `patience` without improvement.

        The error rate selects the step. A lower loss also counts as an improvement, because the
        error rate rises at first: CTC predicts fewer and fewer symbols before it predicts correct
        ones. A loss that is not finite ends the training: the best step so far is the result.
        """
        loss = float(torch.stack(self._losses).mean())
        self._losses = []
        if not (math.isfinite(loss) and math.isfinite(dev_loss)):
            self.active = False
            return
        self._curve.append((step, loss, dev))
        self._evaluations_since_best += 1
        if dev < self.best_dev:
            self.best, self.best_dev, self._best_step = self.snapshot(), dev, step
            self._evaluations_since_best = 0
        if dev_loss < self._best_dev_loss:
            self._best_dev_loss = dev_loss
            self._evaluations_since_best = 0
        self.active = self._evaluations_since_best < self._patience and dev > 0

    def result(self, test: float, predictions: Sequence[str]) -> HeadResult:
        """Return the head at its best dev error rate."""
        mix = self.best.mix
        return HeadResult(
            **asdict(self.spec),
            step=self._best_step,
            dev=self.best_dev,
            test=test,
            curve=tuple(self._curve),
            predictions=tuple(predictions),
            layer_weights=None if mix is None else tuple(mix.tolist()),
        )


def _train(heads: Sequence[_Head], data: FrameData, seed: int, note: Note) -> None:
    """Train the heads of one seed until each has stopped or reached the last step."""
    task, batches = data.task, data.epochs(seed)
    timer = StepTimer(task, data.device)
    for step in range(1, task.steps + 1):
        active = [head for head in heads if head.active]
        if not active:
            return
        _step(active, next(batches), data)
        if (limit_s := timer.limit_s(step)) is not None:
            note(
                f"seed {seed}, {counted(len(heads), 'head')}: training takes at most about "
                f"{rough_duration(limit_s)}, without the evaluations"
            )
        if step % task.eval_every == 0 or step == task.steps:
            _evaluate(active, data, step)
            best = min(heads, key=lambda head: head.best_dev)
            note(
                f"seed {seed}, step {step} of {task.steps}, {counted(len(active), 'head')}; best "
                f"on dev: {task.metric} {best.best_dev:.3f} (layer {best.spec.layer}, lr "
                f"{best.spec.lr:g})"
            )


def _score_untrained(heads: Sequence[_Head], data: FrameData) -> None:
    """Score heads that diverged before their first evaluation as they were before training."""
    diverged = [head for head in heads if math.isinf(head.best_dev)]
    if not diverged:
        return
    predictions = _transcribe(data, data.transcripts.dev, [head.best for head in diverged])
    for head, texts in zip(diverged, predictions, strict=True):
        head.best_dev = _error_rate(data, data.transcripts.dev, texts)


def _step(heads: Sequence[_Head], batch: Batch, data: FrameData) -> None:
    """Take one step of each head on a batch."""
    for chunk, losses in _losses(heads, batch, data, data.transcripts.train):
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for head, loss in zip(chunk, losses.detach(), strict=True):
            head.step(loss)


def _losses(
    heads: Sequence[_Head], batch: Batch, data: FrameData, targets: Mapping[str, Target]
) -> Iterator[tuple[Sequence[_Head], Tensor]]:
    """Yield the losses of the heads on a batch, in chunks of heads that fit in memory."""
    batch_targets = [targets[key] for key in batch.ids]
    frames, mask = data.frames(batch), batch.mask.to(data.device)
    scores_bytes = mask.numel() * len(data.transcripts.vocabulary) * 4
    longest_target = max(len(item) for item in batch_targets)
    tables_bytes = len(batch) * ctc_bytes(mask.shape[1], longest_target)
    # 6: scores, log-softmax, padded log-softmax, and the gradient of each
    n_per_chunk = max(1, _CHUNK_BYTES // (6 * scores_bytes + tables_bytes))
    for first in range(0, len(heads), n_per_chunk):
        chunk = heads[first : first + n_per_chunk]
        scores = torch.stack([head.linear_map()(frames) for head in chunk])
        yield chunk, ctc_losses(scores.log_softmax(2), mask, batch_targets)


def _evaluate(heads: Sequence[_Head], data: FrameData, step: int) -> None:
    """Record the error rate and the loss of each head on dev."""
    texts, targets = data.transcripts.dev, data.transcripts.dev_targets
    predictions = _transcribe(data, texts, [head.snapshot() for head in heads])
    dev_losses = dict.fromkeys(heads, 0.0)
    with torch.no_grad():
        for batch in data.batches(targets) if targets else ():
            for chunk, losses in _losses(heads, batch, data, targets):
                for head, loss in zip(chunk, losses.tolist(), strict=True):
                    dev_losses[head] += loss * len(batch)
    for head, predicted in zip(heads, predictions, strict=True):
        head.record(step, _error_rate(data, texts, predicted), dev_losses[head])
    _score_untrained(heads, data)


@torch.no_grad()
def _transcribe(
    data: FrameData, ids: Collection[str], maps: Sequence[LinearMap]
) -> list[list[str]]:
    """Decode utterances greedily with each head: [n_heads][n_utterances] texts."""
    decode = data.transcripts.vocabulary.decode
    texts: list[dict[str, str]] = [{} for _ in maps]
    for batch in data.batches(ids):
        frames = data.frames(batch)
        ends = np.cumsum(batch.lengths.numpy())[:-1]
        for linear_map, by_id in zip(maps, texts, strict=True):
            path = linear_map(frames).argmax(1).cpu().numpy()
            for key, part in zip(batch.ids, np.split(path, ends), strict=True):
                by_id[key] = decode(greedy_symbols(part))
    return [[by_id[key] for key in ids] for by_id in texts]


def _error_rate(
    data: FrameData, references: Mapping[str, str], predictions: Sequence[str]
) -> float:
    return error_rate(data.task.metric, list(references.values()), predictions)


def _layers_to_read(layers: Sequence[int], specs: Sequence[HeadSpec]) -> list[int]:
    """Return the layers that the heads need, in the order of the sweep."""
    candidates = {spec.layer for spec in specs}
    if WEIGHTED in candidates:
        return list(layers)
    needed = {stored_layer(candidate) for candidate in candidates}
    return [layer for layer in layers if layer in needed]

"""Frame tasks: linear CTC heads on every layer, all trained in one pass over the features.

A head is SUPERB's for phone recognition (`FramewiseLinear`): Linear(dim → 256), Linear(→ symbols)
and CTC, without augmentation, with Adam at a constant learning rate. Its two layers are multiplied
out before the frames go through them: the same function, at a fraction of the cost.

Features of a batch are read once and serve all heads of a seed. Stored as float16, they are
computed with in float32. Nothing of a head depends on the heads beside it: its first values come
from its seed and layer, the order of the data from its seed, and its arithmetic is its own. On a
CPU, with the same number of threads, that holds to the bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.config import TaskConfig
from pipeline.feed.dataset import Batch
from pipeline.heads.ctc import Target, ctc_bytes, ctc_losses
from pipeline.heads.modules import FramewiseLinear, WeightedSum
from pipeline.probing.labels import HeadSpec
from pipeline.probing.results import WEIGHTED, HeadResult, Layer
from pipeline.probing.tasks.transcripts import Transcripts
from pipeline.probing.trainers.frame_feed import FrameFeed, Readout
from pipeline.store.format.layout import COLLAPSED_LAYER
from pipeline.store.read.features import FeatureStore

Note = Callable[[str], None]

_HEADS_BYTES = 1 << 28  # of the scores and CTC tables of the heads that go through it together


def train_frame_heads(
    store: FeatureStore,
    task: TaskConfig,
    transcripts: Transcripts,
    layers: Sequence[int],
    specs: Sequence[HeadSpec],
    device: torch.device,
    note: Note = lambda line: None,
) -> list[HeadResult]:
    """Trains heads, picks each one's step on dev and scores it on test.

    Args:
        store: The features.
        task: The recipe.
        transcripts: What is said in the utterances of a fold (`prepare_transcripts`).
        layers: Layers of the store that are swept: the weighted sum is over these.
        specs: Heads to train, of this fold; those of one seed share their passes over the data.
        device: Where to compute.
        note: Takes a line for people at each evaluation.

    Returns:
        A result per head, in the order of `specs`; its predictions are texts, in the order of
        `transcripts.test`.
    """
    feed = FrameFeed(store, task, transcripts, _layers_to_read(layers, specs), device)
    done: dict[HeadSpec, HeadResult] = {}
    for seed in dict.fromkeys(spec.seed for spec in specs):
        heads = [_Head(spec, feed) for spec in dict.fromkeys(specs) if spec.seed == seed]
        _train(heads, feed, seed, note)
        texts = feed.transcribe(transcripts.test, [head.best for head in heads])
        for head, said in zip(heads, texts, strict=True):
            done[head.spec] = head.result(feed.rate(transcripts.test, said), said)
    return [done[spec] for spec in specs]


def untrained_rate(
    store: FeatureStore,
    task: TaskConfig,
    transcripts: Transcripts,
    layer: int,
    device: torch.device,
) -> float:
    """The error rate on test of a head before training: a yardstick.

    Args:
        store: The features.
        task: The recipe.
        transcripts: What is said in the utterances of a fold.
        layer: The layer that it is on.
        device: Where to compute.
    """
    feed = FrameFeed(store, task, transcripts, [layer], device)
    head = _Head(HeadSpec(layer, lr=1.0, seed=0, fold=0), feed)
    (said,) = feed.transcribe(transcripts.test, [head.best])
    return feed.rate(transcripts.test, said)


def first_values(seed: int, layer: Layer, dim: int, vocab: int, projection: int) -> FramewiseLinear:
    """A head before training, with torch's usual values: a function of its seed and layer."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed} {layer}".encode()))
        return FramewiseLinear(dim, vocab, projection)


class _Head:
    """A head under way.

    Attributes:
        spec: Which it is.
        active: Whether it is still trained.
        best: How it stood where dev was best; its first values until dev has been asked.
        best_dev: Its error rate there.
    """

    def __init__(self, spec: HeadSpec, feed: FrameFeed) -> None:
        self.spec = spec
        self.active = True
        vocab, device = len(feed.transcripts.vocabulary), feed.device
        head = first_values(spec.seed, spec.layer, feed.dim, vocab, feed.task.projection)
        self._linear = head.to(device)
        self._axis, self._mix = 0, None
        parameters = list(head.parameters())
        if spec.layer == WEIGHTED:
            self._mix = WeightedSum(len(feed.layers)).to(device)
            parameters += self._mix.parameters()
        else:
            self._axis = feed.layers.index(_stored(spec.layer))
        self._optimizer = torch.optim.Adam(parameters, lr=spec.lr)
        self._patience = feed.task.patience
        self._losses: list[Tensor] = []
        self._waited = 0
        self._best_step = 0
        self._curve: list[tuple[int, float, float]] = []
        self._best_dev_loss = float("inf")
        self.best_dev = float("inf")
        self.best = self.snapshot()

    def readout(self) -> Readout:
        """The head as one map, for autograd to go back through."""
        projector, output = self._linear.projector, self._linear.output
        assert isinstance(projector, nn.Linear)
        weight = output.weight @ projector.weight  # [vocab, dim]
        bias = output.weight @ projector.bias + output.bias
        return Readout(self._axis, self._mix.weights() if self._mix else None, weight, bias)

    @torch.no_grad()
    def snapshot(self) -> Readout:
        """The head as it stands now."""
        return self.readout()

    def step(self, loss: Tensor) -> None:
        """Moves the head by the gradients it has."""
        self._losses.append(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def evaluated(self, step: int, dev: float, dev_loss: float) -> None:
        """Takes its error rate and its loss on dev, and stops it if it has nothing left to learn.

        The error rate chooses the step. The loss keeps a head going through the phase, which CTC
        begins with, in which it says less and less before it says what is right.
        """
        loss = float(torch.stack(self._losses).mean())
        self._losses = []
        self._curve.append((step, loss, dev))
        self._waited += 1
        if dev < self.best_dev:
            self.best, self.best_dev, self._best_step = self.snapshot(), dev, step
            self._waited = 0
        if dev_loss < self._best_dev_loss:
            self._best_dev_loss = dev_loss
            self._waited = 0
        self.active = self._waited < self._patience and dev > 0

    def result(self, test: float, said: Sequence[str]) -> HeadResult:
        """The head where it was best."""
        mix = self.best.mix
        return HeadResult(
            layer=self.spec.layer,
            lr=self.spec.lr,
            seed=self.spec.seed,
            fold=self.spec.fold,
            step=self._best_step,
            dev=self.best_dev,
            test=test,
            curve=tuple(self._curve),
            predictions=tuple(said),
            layer_weights=None if mix is None else tuple(mix.tolist()),
        )


def _train(heads: Sequence[_Head], feed: FrameFeed, seed: int, note: Note) -> None:
    """Trains the heads of one seed, until each has stopped or seen all steps."""
    task, batches = feed.task, feed.epochs(seed)
    for step in range(1, task.steps + 1):
        active = [head for head in heads if head.active]
        if not active:
            return
        _step(active, next(batches), feed)
        if step % task.eval_every == 0 or step == task.steps:
            _evaluate(active, feed, step)
            best = min(heads, key=lambda head: head.best_dev)
            note(
                f"seed {seed}, step {step} of {task.steps}, {len(active)} heads; best on dev: "
                f"{task.metric} {best.best_dev:.3f} (layer {best.spec.layer}, lr {best.spec.lr:g})"
            )


def _step(heads: Sequence[_Head], batch: Batch, feed: FrameFeed) -> None:
    """One step of each head on a batch."""
    for some, losses in _losses(heads, batch, feed, feed.transcripts.train):
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for head, loss in zip(some, losses.detach(), strict=True):
            head.step(loss)


def _losses(
    heads: Sequence[_Head], batch: Batch, feed: FrameFeed, known: Mapping[str, Target]
) -> Iterator[tuple[Sequence[_Head], Tensor]]:
    """The loss of each head on a batch, of as many heads at a time as memory allows."""
    targets = [known[key] for key in batch.ids]
    frames, mask = feed.frames(batch), batch.mask.to(feed.device)
    scores_bytes = mask.numel() * len(feed.transcripts.vocabulary) * 4
    tables_bytes = len(batch) * ctc_bytes(mask.shape[1], max(len(item) for item in targets))
    # scores, their log-softmax, the same padded, and a gradient of each
    at_once = max(1, _HEADS_BYTES // (6 * scores_bytes + tables_bytes))
    for first in range(0, len(heads), at_once):
        some = heads[first : first + at_once]
        scores = torch.stack([head.readout()(frames) for head in some])
        yield some, ctc_losses(scores.log_softmax(2), mask, targets)


def _evaluate(heads: Sequence[_Head], feed: FrameFeed, step: int) -> None:
    """Asks each head for the dev set: what it says, and its loss."""
    texts, targets = feed.transcripts.dev, feed.transcripts.dev_targets
    said = feed.transcribe(texts, [head.snapshot() for head in heads])
    dev_losses = dict.fromkeys(heads, 0.0)
    with torch.no_grad():
        for batch in feed.batches(targets) if targets else ():
            for some, losses in _losses(heads, batch, feed, targets):
                for head, loss in zip(some, losses.tolist(), strict=True):
                    dev_losses[head] += loss * len(batch)
    for head, found in zip(heads, said, strict=True):
        head.evaluated(step, feed.rate(texts, found), dev_losses[head])


def _layers_to_read(layers: Sequence[int], specs: Sequence[HeadSpec]) -> list[int]:
    """Layers that the heads look at, in the order of the sweep."""
    candidates = {spec.layer for spec in specs}
    if WEIGHTED in candidates:
        return list(layers)
    wanted = {_stored(layer) for layer in candidates}
    return [layer for layer in layers if layer in wanted]


def _stored(layer: Layer) -> int:
    """The number in the store of a candidate that is one layer."""
    return COLLAPSED_LAYER if isinstance(layer, str) else layer

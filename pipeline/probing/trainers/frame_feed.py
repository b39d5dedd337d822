"""Frames of utterances as CTC heads take them, and what heads say of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TaskConfig
from pipeline.feed.dataset import Batch, FeatureDataset
from pipeline.feed.loader import FeatureLoader, make_loader
from pipeline.heads.ctc import greedy_symbols
from pipeline.probing.metrics.error_rates import error_rate
from pipeline.probing.tasks.transcripts import Transcripts
from pipeline.store.read.features import FeatureStore


@dataclass(frozen=True)
class Readout:
    """A head as one linear map of a frame.

    Attributes:
        axis: Its layer's place on the layer axis of the frames.
        mix: Weights of all layers in place of one, [n_layers]; or None.
        weight: [vocab, dim].
        bias: [vocab].
    """

    axis: int
    mix: Tensor | None
    weight: Tensor
    bias: Tensor

    def __call__(self, frames: Tensor) -> Tensor:
        """Scores [n_frames, vocab] of frames [n_layers, n_frames, dim]."""
        if self.mix is None:
            layer = frames[self.axis]
        else:
            layer = torch.matmul(self.mix, frames.flatten(1)).view(frames.shape[1:])
        return nn.functional.linear(layer, self.weight, self.bias)


class FrameFeed:
    """The features and transcripts of a frame task.

    Attributes:
        layers: Layers that are read, in this order.
        dim: Features per frame.
        transcripts: What is said in the utterances.
        task: The recipe.
        device: Where frames are wanted.
    """

    def __init__(
        self,
        store: FeatureStore,
        task: TaskConfig,
        transcripts: Transcripts,
        layers: Sequence[int],
        device: torch.device,
    ) -> None:
        self.layers = tuple(layers)
        self.dim = store.feature_dim
        self.transcripts = transcripts
        self.task = task
        self.device = device
        self._store = store

    def epochs(self, seed: int) -> Iterator[Batch]:
        """Training batches, epoch after epoch without end, in the order of a seed."""
        loader = self.batches(self.transcripts.train, shuffle=True, seed=seed)
        while True:
            yield from loader

    def batches(self, ids: Collection[str], shuffle: bool = False, seed: int = 0) -> FeatureLoader:
        """Batches of utterances; unless they are shuffled, in the order of the store."""
        return make_loader(
            FeatureDataset(self._store.select(id=list(ids)), layers=self.layers),
            max_frames_per_batch=self.task.batch,
            shuffle=shuffle,
            seed=seed,
            pin_memory=self.device.type == "cuda",
        )

    def frames(self, batch: Batch) -> Tensor:
        """The valid frames of all utterances in a row: float32 [n_layers, n_frames, dim]."""
        features = batch.features.to(self.device, non_blocking=True)
        parts = [features[i, :, :n] for i, n in enumerate(batch.lengths.tolist())]
        frames = torch.cat(parts, dim=1).float()
        return nn.functional.layer_norm(frames, [self.dim]) if self.task.normalize else frames

    @torch.no_grad()
    def transcribe(self, ids: Collection[str], readouts: Sequence[Readout]) -> list[list[str]]:
        """What each head says of each utterance, decoded greedily: [n_heads][n_utterances]."""
        decode = self.transcripts.vocabulary.decode
        said: list[dict[str, str]] = [{} for _ in readouts]
        for batch in self.batches(ids):
            frames = self.frames(batch)
            cuts = np.cumsum(batch.lengths.numpy())[:-1]
            for readout, found in zip(readouts, said, strict=True):
                path = readout(frames).argmax(1).cpu().numpy()
                for key, part in zip(batch.ids, np.split(path, cuts), strict=True):
                    found[key] = decode(greedy_symbols(part))
        return [[found[key] for key in ids] for found in said]

    def rate(self, texts: Mapping[str, str], said: Sequence[str]) -> float:
        """The error rate of what a head says of utterances, by the metric of the task."""
        return error_rate(self.task.metric, list(texts.values()), said)

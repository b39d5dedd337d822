"""A trained head: what a sweep has learned, usable without the sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.heads.ctc import greedy_symbols
from pipeline.heads.facts import FRAMES, FRAMEWISE, REGRESSION, VERIFICATION, HeadFacts, problem_of
from pipeline.heads.files import read_head, write_head
from pipeline.heads.prediction import Prediction
from pipeline.heads.scoring import (
    classified,
    mixed,
    normalized,
    outputs_of,
    pooled,
    spans_of_frames,
)
from pipeline.heads.vocabulary import Vocabulary, as_tokens


@dataclass(frozen=True)
class TrainedHead:
    """A head that predicts.

    Attributes:
        facts: What it is.
        tensors: Its parameters by name, on the CPU; `pipeline.heads.facts` has their shapes.

    Raises:
        ConfigError: The tensors do not fit the facts, or are not finite.

    Example:
        >>> head = TrainedHead.load("sweeps/features/ks-digit/trained/layer-9.safetensors")
        >>> head(store.read("clip", head.facts.layers)).labels
        ('seven',)
    """

    facts: HeadFacts
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Check the tensors."""
        if problem := problem_of(self.facts, self.tensors):
            raise ConfigError(f"the head of {self.facts.task}, layer {self.facts.layer}: {problem}")

    @classmethod
    def load(cls, path: str | Path) -> TrainedHead:
        """Read a head that `save` wrote.

        Raises:
            ConfigError: The file is missing, holds no head, or one of a newer version.
        """
        facts, tensors = read_head(path)
        try:
            return cls(facts, tensors)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}; run the sweep again") from error

    def save(self, path: str | Path) -> None:
        """Write the head, atomically; equal heads give equal bytes.

        Raises:
            StoreError: The file cannot be written.
        """
        write_head(path, self.facts, self.tensors)

    def __call__(self, features: Tensor) -> Prediction:
        """Predict from the features of one utterance, or of one span.

        Args:
            features: [n_layers, n_frames, dim], of the layers `facts.layers`, in their order.

        Raises:
            ConfigError: They have another shape, or no frames.
        """
        facts = self.facts
        wanted = (len(facts.layers), facts.dim)
        if features.ndim != 3 or not features.shape[1] or features.shape[::2] != wanted:
            raise ConfigError(
                f"the features have the shape {list(features.shape)}; expected [{wanted[0]}, "
                f"n_frames, {wanted[1]}], of the layers {list(facts.layers)}"
            )
        if facts.is_pooled:
            return self.of_pooled(pooled(features, facts.pooling).unsqueeze(0))[0]
        return self.of_frames([features])

    @torch.no_grad()
    def of_frames(self, parts: Iterable[Tensor]) -> Prediction:
        """Predict from the frames of one utterance, of which one layer at a time is in memory.

        Args:
            parts: Consecutive frames, [n_layers, n, dim] each, of the layers `facts.layers`.

        Raises:
            ConfigError: The head gets statistics over frames.
        """
        facts = self.facts
        if facts.is_pooled:
            raise ConfigError(
                f"a head of the kind {facts.kind} and the form {facts.head} gets "
                "statistics over frames; see of_pooled"
            )
        frames = torch.cat([self._of_part(part) for part in parts])
        outputs = outputs_of(facts, self.tensors, frames)
        if facts.kind == FRAMES:
            vocabulary = Vocabulary(as_tokens(facts.tokens), facts.classes[0])
            symbols = greedy_symbols(outputs.argmax(0).numpy())
            return Prediction(transcript=vocabulary.decode(symbols))
        if facts.kind == FRAMEWISE:
            return Prediction(spans=spans_of_frames(facts, outputs))
        return self._of_outputs(outputs)[0]

    @torch.no_grad()
    def of_pooled(self, statistics: Tensor) -> list[Prediction]:
        """Predict from statistics over the frames of utterances, or of spans.

        Args:
            statistics: The statistics `facts.pooling` of each item, concatenated, float32
                [n_items, n_layers, n_inputs].

        Raises:
            ConfigError: They have another shape, or the head needs frames.
        """
        facts = self.facts
        wanted = (len(facts.layers), facts.n_inputs)
        if not facts.is_pooled or statistics.ndim != 3 or statistics.shape[1:] != wanted:
            raise ConfigError(
                f"the statistics have the shape {list(statistics.shape)}; expected [n_items, "
                f"{wanted[0]}, {wanted[1]}], and a head that does not need frames"
            )
        if not len(statistics):
            return []
        layers = statistics.detach().cpu().float().transpose(0, 1).contiguous()
        inputs = mixed(self.tensors, layers)
        if facts.kind == VERIFICATION:
            vectors = inputs.double() - self.tensors["mean"]
            if "projection" in self.tensors:
                vectors = vectors @ self.tensors["projection"]
            norms = vectors.norm(dim=1, keepdim=True).clamp_min(1e-300)
            return [Prediction(embedding=vector) for vector in vectors / norms]
        return self._of_outputs(outputs_of(facts, self.tensors, inputs))

    def _of_part(self, features: Tensor) -> Tensor:
        """Return the layer or the weighted sum of some frames: [n_layers, n, dim] to [n, dim]."""
        frames = features.detach().cpu().float()
        return mixed(self.tensors, normalized(frames) if self.facts.normalize else frames)

    def _of_outputs(self, outputs: Tensor) -> list[Prediction]:
        """Return the classes or the numbers of outputs [n_outputs, n_items]."""
        if self.facts.kind == REGRESSION:
            deviations, means = (self.tensors[name][:, None] for name in ("deviations", "means"))
            values = outputs * deviations + means
            return [Prediction(values=tuple(row)) for row in values.T.tolist()]
        found = classified(outputs, self.facts.classes)
        return [Prediction(labels, scores) for labels, scores in found]

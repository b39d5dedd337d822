"""Trained heads as files: what a sweep has learned, usable without the sweep.

A file is a safetensors file. Its tensors compute the predictions; its metadata, one JSON document,
describes the task and the features. Kinds of heads, by `task.kind` of the sweep:

- `utterance`: `weight` [n_outputs, n_inputs] and `bias` [n_outputs] on statistics over the frames
  of an utterance; the outputs of all label columns follow each other.
- `regression`: the same with an output per column, in units of `deviations` [n_columns] from
  `means` [n_columns].
- `frames`: `weight` [1 + n_symbols, dim] and `bias` on every frame; output 0 is CTC's blank.
- `verification`: `mean` [n_inputs] is subtracted, then `projection` [n_inputs, k] is applied, if
  there is one. The score of two utterances is the cosine of their vectors.

A head on a weighted sum has `layer_weights` [n_layers], which sum to one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline import files
from pipeline.errors import ConfigError
from pipeline.heads.ctc import greedy_symbols
from pipeline.heads.vocabulary import Vocabulary, as_tokens

VERSION = 1
"""Version of the files."""
UTTERANCE, REGRESSION, FRAMES, VERIFICATION = "utterance", "regression", "frames", "verification"
KINDS = (UTTERANCE, REGRESSION, FRAMES, VERIFICATION)

TRAINED = "trained"
"""Folder of the heads, in the output folder of a sweep."""

_METADATA = "strata_head"


def file_of(folder: Path, layer: int | str) -> Path:
    """Return the file of the head on a layer, "weighted" or "collapsed", in a sweep's folder."""
    name = layer if isinstance(layer, str) else f"layer-{layer}"
    return folder / TRAINED / f"{name}.safetensors"


@dataclass(frozen=True)
class Prediction:
    """The prediction of a head for one utterance.

    Attributes:
        labels: The most probable class in each label column.
        scores: Its probability.
        transcript: The transcript, of a head on frames.
        values: The number in each label column, of a regression.
        embedding: Vector of length 1 for verification, float64 [k].
    """

    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    transcript: str | None = None
    values: tuple[float, ...] = ()
    embedding: Tensor | None = None

    def cosine(self, other: Prediction) -> float:
        """Return the score of two utterances in verification: higher for one speaker.

        Raises:
            ConfigError: The head is not one for verification.
        """
        if self.embedding is None or other.embedding is None:
            raise ConfigError("only the predictions of a verification head have a cosine")
        return float(self.embedding @ other.embedding)


@dataclass(frozen=True)
class HeadFacts:
    """Description of a trained head: its task, the features that it reads, its scores.

    Attributes:
        task: Name of the task.
        kind: One of `KINDS`.
        metric: Metric of the scores.
        labels: Label columns.
        classes: Class names of each label column; for transcripts the symbols.
        tokens: Kind of these symbols; None without transcripts.
        pooling: Statistics over frames that the head gets, concatenated.
        normalize: Whether each frame of each layer is normalised first, by a LayerNorm without
            parameters.
        layer: Layer, "weighted" or "collapsed".
        layers: Layers of the store that it reads, in the order of the first axis of its features.
        dim: Features per frame.
        frame_rate_hz: Frames per second.
        identity: Identity of the features without their dataset: dtype, audio path and encoder.
        weights: Origin of the encoder's weights, e.g. random; None if unknown.
        model: Settings that load the encoder, by their names in `model.*`; empty if unknown.
        dev: Dev score of this head.
        test: Its test score.
        lr: Learning rate.
        seed: Seed of its initial values.
        fold: Fold that it was trained on.
        key: Hash of all that the head depends on.
        strata: Version of Strata that wrote the file.
    """

    task: str
    kind: str
    metric: str
    labels: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    tokens: str | None
    pooling: tuple[str, ...]
    normalize: bool
    layer: int | str
    layers: tuple[int, ...]
    dim: int
    frame_rate_hz: float
    identity: dict[str, Any]
    weights: str | None
    model: dict[str, Any]
    dev: float
    test: float
    lr: float
    seed: int
    fold: int
    key: str
    strata: str

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the head."""
        return self.dim * (1 if self.kind == FRAMES else len(self.pooling))

    @property
    def is_pooled(self) -> bool:
        """Whether the head gets statistics over frames, and needs no frames."""
        return self.kind != FRAMES


@dataclass(frozen=True)
class TrainedHead:
    """A head that predicts.

    Attributes:
        facts: What it is.
        tensors: Its parameters by name, on the CPU.

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
        if problem := _problem(self.facts, self.tensors):
            raise ConfigError(f"the head of {self.facts.task}, layer {self.facts.layer}: {problem}")

    @classmethod
    def load(cls, path: str | Path) -> TrainedHead:
        """Read a head that `save` wrote.

        Raises:
            ConfigError: The file is missing, holds no head, or one of a newer version.
        """
        try:
            with safe_open(path, "pt") as file:
                document = json.loads((file.metadata() or {})[_METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = document.pop("version")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ConfigError(
                f"{path} holds no trained head ({type(error).__name__}: {error}); expected a file "
                "that `strata sweep` or `strata export-head` wrote"
            ) from error
        if version != VERSION:
            raise ConfigError(
                f"{path} holds a head of version {version}; this Strata reads version {VERSION}: "
                "use the newer Strata that wrote it"
            )
        try:
            names = [item.name for item in fields(HeadFacts)]
            facts = {name: document[name] for name in names}
            for name in ("labels", "pooling", "layers"):
                facts[name] = tuple(facts[name])
            facts["classes"] = tuple(map(tuple, facts["classes"]))
            return cls(HeadFacts(**facts), tensors)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} holds a head whose description is damaged: {error!r}; run the sweep again"
            ) from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}; run the sweep again") from error

    def save(self, path: str | Path) -> None:
        """Write the head, atomically; equal heads give equal bytes.

        Raises:
            StoreError: The file cannot be written.
        """
        document = {item.name: getattr(self.facts, item.name) for item in fields(HeadFacts)}
        document["version"] = VERSION
        text = json.dumps(document, sort_keys=True, allow_nan=False)
        tensors = {name: self.tensors[name].contiguous() for name in sorted(self.tensors)}
        files.write_atomic(Path(path), [save(tensors, {_METADATA: text})])

    def __call__(self, features: Tensor) -> Prediction:
        """Predict from the features of one utterance.

        Args:
            features: [n_layers, n_frames, dim], of the layers `facts.layers`, in their order.

        Raises:
            ConfigError: They have another shape, or no frames.
        """
        wanted = (len(self.facts.layers), self.facts.dim)
        if features.ndim != 3 or not features.shape[1] or features.shape[::2] != wanted:
            raise ConfigError(
                f"the features have the shape {list(features.shape)}; expected [{wanted[0]}, "
                f"n_frames, {wanted[1]}], of the layers {list(self.facts.layers)}"
            )
        if self.facts.is_pooled:
            return self.of_pooled(_pooled(features, self.facts.pooling).unsqueeze(0))[0]
        return Prediction(transcript=self._transcribe(features.detach().cpu()))

    @torch.no_grad()
    def of_pooled(self, pooled: Tensor) -> list[Prediction]:
        """Predict from statistics over the frames of utterances.

        Args:
            pooled: The statistics `facts.pooling` of each utterance, concatenated, float32
                [n_utterances, n_layers, n_inputs].

        Raises:
            ConfigError: They have another shape, or the head needs frames.
        """
        facts = self.facts
        wanted = (len(facts.layers), facts.n_inputs)
        if not facts.is_pooled or pooled.ndim != 3 or pooled.shape[1:] != wanted:
            raise ConfigError(
                f"the statistics have the shape {list(pooled.shape)}; expected [n_utterances, "
                f"{wanted[0]}, {wanted[1]}], and a head that does not need frames"
            )
        if not len(pooled):
            return []
        inputs = self._mixed(pooled.detach().cpu().float().transpose(0, 1).contiguous())
        if facts.kind == VERIFICATION:
            vectors = inputs.double() - self.tensors["mean"]
            if "projection" in self.tensors:
                vectors = vectors @ self.tensors["projection"]
            norms = vectors.norm(dim=1, keepdim=True).clamp_min(1e-300)
            return [Prediction(embedding=vector) for vector in vectors / norms]
        outputs = torch.mm(self.tensors["weight"], inputs.T) + self.tensors["bias"][:, None]
        if facts.kind == REGRESSION:
            deviations, means = (self.tensors[name][:, None] for name in ("deviations", "means"))
            values = outputs * deviations + means
            return [Prediction(values=tuple(row)) for row in values.T.tolist()]
        return self._classes(outputs)

    def _classes(self, outputs: Tensor) -> list[Prediction]:
        """Return the classes of outputs, [n_outputs, n_utterances]."""
        found: list[list[tuple[str, float]]] = [[] for _ in range(outputs.shape[1])]
        ends = accumulate((len(names) for names in self.facts.classes), initial=0)
        for (start, stop), names in zip(pairwise(ends), self.facts.classes, strict=True):
            best = outputs[start:stop].argmax(0)
            probabilities = outputs[start:stop].softmax(0).gather(0, best[None])[0]
            pairs = zip(best.tolist(), probabilities.tolist(), strict=True)
            for items, (number, probability) in zip(found, pairs, strict=True):
                items.append((names[number], probability))
        return [
            Prediction(tuple(name for name, _ in items), tuple(score for _, score in items))
            for items in found
        ]

    @torch.no_grad()
    def _transcribe(self, features: Tensor) -> str:
        """Decode the frames of an utterance greedily: [n_layers, n_frames, dim] to a text."""
        frames = features.float()
        if self.facts.normalize:
            frames = nn.functional.layer_norm(frames, [self.facts.dim])
        scores = nn.functional.linear(
            self._mixed(frames), self.tensors["weight"], self.tensors["bias"]
        )
        symbols = self.facts.classes[0]
        vocabulary = Vocabulary(as_tokens(self.facts.tokens), symbols)
        return vocabulary.decode(greedy_symbols(scores.argmax(1).numpy()))

    def _mixed(self, layers: Tensor) -> Tensor:
        """Return the layer, or the weighted sum of the layers: [n_layers, n, d] to [n, d]."""
        if "layer_weights" not in self.tensors:
            return layers[0]
        return torch.mv(layers.flatten(1).T, self.tensors["layer_weights"]).view(layers.shape[1:])


def _pooled(features: Tensor, names: Sequence[str]) -> Tensor:
    """Return statistics over frames, [n_layers, n_statistics * dim] float32, from [.., n, dim].

    They are those of `pipeline.store.format.pooling`, in float64 until they are rounded.
    """
    values = features.detach().cpu().double()
    of = {
        "mean": lambda: values.mean(1),
        "std": lambda: values.std(1, correction=0),
        "max": lambda: values.amax(1),
        "first": lambda: values[:, 0],
        "last": lambda: values[:, -1],
    }
    return torch.cat([of[name]() for name in names], dim=-1).float()


def _problem(facts: HeadFacts, tensors: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a head; None if nothing is."""
    if facts.kind not in KINDS:
        return f"its kind is {facts.kind!r}; expected {', '.join(KINDS)}"
    n_columns, n_classes = len(facts.labels), sum(len(names) for names in facts.classes)
    n_outputs = {UTTERANCE: n_classes, REGRESSION: n_columns, FRAMES: 1 + n_classes}
    shapes: dict[str, tuple[int | None, ...]] = {}
    if facts.kind == VERIFICATION:
        shapes["mean"] = (facts.n_inputs,)
        if "projection" in tensors:
            shapes["projection"] = (facts.n_inputs, None)
    else:
        shapes["weight"] = (n_outputs[facts.kind], facts.n_inputs)
        shapes["bias"] = (n_outputs[facts.kind],)
    if facts.kind == REGRESSION:
        shapes |= {"means": (n_columns,), "deviations": (n_columns,)}
    if facts.layer == "weighted":
        shapes["layer_weights"] = (len(facts.layers),)
    elif len(facts.layers) != 1:
        return f"it reads one layer, and names {list(facts.layers)}"
    if set(shapes) != set(tensors):
        return f"it has the tensors {sorted(tensors)}; expected {sorted(shapes)}"
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if len(found) != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, found, strict=True)
        ):
            return f"{name} has the shape {list(found)}; expected {list(shape)}"
        if not bool(torch.isfinite(tensors[name]).all()):
            return f"{name} has values that are not finite"
    if not all(map(math.isfinite, (facts.dev, facts.test))):
        return "its scores are not finite"
    return None

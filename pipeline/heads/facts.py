"""Description of a trained head, and the tensors that a head of its kind has.

Kinds of heads, by `task.kind` of the sweep:

- `utterance`: the outputs of all label columns follow each other.
- `regression`: an output per column, in units of `deviations` [n_columns] from `means`
  [n_columns].
- `spans`: a class per labelled interval, from its frames as `utterance` from all frames.
- `framewise`: a class per frame.
- `frames`: a symbol per frame; output 0 is CTC's blank.
- `verification`: `mean` [n_inputs] is subtracted, then `projection` [n_inputs, k] is applied, if
  there is one. The score of two utterances is the cosine of their vectors.

Forms of heads, by `task.head`; inputs are frames, or statistics over the frames of an item:

- `linear`: `weight` [n_outputs, n_inputs] and `bias` [n_outputs].
- `mlp`: the same on the positive part of `hidden_weight` [projection, n_inputs] and `hidden_bias`.
- `attentive`: frames are projected (`projection_weight` [projection, dim], `projection_bias`), and
  their mean and deviation are weighted by attention (`attention_weight` [width, projection],
  `attention_bias`, `attention_vector` [width]); `weight` is [n_outputs, 2 projection].
- `lstm`: frames are projected, and go through two bidirectional layers, whose tensors have the
  names of `torch.nn.LSTM` after `lstm.`; `weight` is [n_outputs, 2 units].

A head on a weighted sum has `layer_weights` [n_layers], which sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config.sweep_schema import ATTENTIVE, COSINE, LDA, LINEAR, LSTM, MLP
from pipeline.heads.networks import LSTM_LAYERS

UTTERANCE, REGRESSION, FRAMES, VERIFICATION = "utterance", "regression", "frames", "verification"
SPANS, FRAMEWISE = "spans", "framewise"
FORMS = {
    UTTERANCE: (LINEAR, MLP, ATTENTIVE),
    REGRESSION: (LINEAR, MLP, ATTENTIVE),
    SPANS: (LINEAR, MLP),
    FRAMEWISE: (LINEAR, MLP, LSTM),
    FRAMES: (LINEAR, MLP, LSTM),
    VERIFICATION: (COSINE, LDA),
}
"""Forms that heads of each kind may have in a file."""
KINDS = tuple(FORMS)

_GATES = 4


@dataclass(frozen=True)
class HeadFacts:
    """Description of a trained head: its task, the features that it reads, its scores.

    Attributes:
        task: Name of the task.
        kind: One of `KINDS`.
        metric: Metric of the scores.
        labels: Label columns; of tasks on spans the name of the file.
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
        head: Form of the head, of `FORMS` of the kind.
        first_centre_s: Centre of the first frame, in seconds from the start of an utterance.
        layer_names: Names of `layers`; empty in files of earlier versions, whose layers have the
            standard ones.
        unlabelled: Of framewise heads, the class that stands for frames in no span; None: there
            is none.
        one_by_one: Whether the encoder encodes clips one by one, because the other clips of a batch
            change their features.
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
    head: str = LINEAR
    first_centre_s: float = 0.0
    unlabelled: str | None = None
    one_by_one: bool = False
    layer_names: tuple[str, ...] = ()

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the head: of a frame, or of the statistics over frames."""
        return self.dim * (len(self.pooling) if self.is_pooled else 1)

    @property
    def is_pooled(self) -> bool:
        """Whether the head gets statistics over frames, and needs no frames."""
        return self.kind not in (FRAMES, FRAMEWISE) and self.head != ATTENTIVE

    @property
    def needs_frames(self) -> bool:
        """Whether the frames of an utterance are needed, also where statistics of parts are."""
        return self.kind == SPANS or not self.is_pooled

    @property
    def n_outputs(self) -> int:
        """Number of outputs of a head that has some."""
        if self.kind == REGRESSION:
            return len(self.labels)
        return sum(map(len, self.classes)) + (self.kind == FRAMES)


def problem_of(facts: HeadFacts, tensors: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a head; None if nothing is."""
    if facts.kind not in KINDS:
        return f"its kind is {facts.kind!r}; expected {', '.join(KINDS)}"
    if facts.head not in FORMS[facts.kind]:
        return (
            f"its form is {facts.head!r}; expected {', '.join(FORMS[facts.kind])} for the kind "
            f"{facts.kind}"
        )
    names = _names(facts, tensors)
    if facts.layer == "weighted":
        names |= {"layer_weights"}
    elif len(facts.layers) != 1:
        return f"it reads one layer, and names {list(facts.layers)}"
    if names != set(tensors):
        return f"it has the tensors {sorted(tensors)}; expected {sorted(names)}"
    for name, shape in _shapes(facts, tensors).items():
        found = tuple(tensors[name].shape)
        if found != shape:
            return f"{name} has the shape {list(found)}; expected {list(shape)}"
        if not bool(torch.isfinite(tensors[name]).all()):
            return f"{name} has values that are not finite"
    if not all(map(math.isfinite, (facts.dev, facts.test))):
        return "its scores are not finite"
    return None


def _names(facts: HeadFacts, tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors of a head, without the weights of layers."""
    if facts.kind == VERIFICATION:
        return {"mean", *({"projection"} & set(tensors))}
    names = {"weight", "bias"}
    if facts.kind == REGRESSION:
        names |= {"means", "deviations"}
    if facts.head == MLP:
        names |= {"hidden_weight", "hidden_bias"}
    if facts.head in (ATTENTIVE, LSTM):
        names |= {"projection_weight", "projection_bias"}
    if facts.head == ATTENTIVE:
        names |= {"attention_weight", "attention_bias", "attention_vector"}
    if facts.head == LSTM:
        names |= set(_lstm_shapes(1, 1))
    return names


def _shapes(facts: HeadFacts, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the tensors of a head have; sizes inside it are those of a tensor."""
    n_inputs, n_outputs, n_columns = facts.n_inputs, facts.n_outputs, len(facts.labels)
    shapes: dict[str, tuple[int, ...]] = {"layer_weights": (len(facts.layers),)}
    shapes |= {"means": (n_columns,), "deviations": (n_columns,), "bias": (n_outputs,)}
    if facts.kind == VERIFICATION:
        k = _size(tensors, "projection", 1)
        shapes |= {"mean": (n_inputs,), "projection": (n_inputs, k)}
    elif facts.head == LINEAR:
        shapes["weight"] = (n_outputs, n_inputs)
    elif facts.head == MLP:
        width = _size(tensors, "hidden_weight", 0)
        shapes |= {"hidden_weight": (width, n_inputs), "hidden_bias": (width,)}
        shapes["weight"] = (n_outputs, width)
    else:
        width = _size(tensors, "projection_weight", 0)
        shapes |= {"projection_weight": (width, facts.dim), "projection_bias": (width,)}
        if facts.head == ATTENTIVE:
            n_keys = _size(tensors, "attention_weight", 0)
            shapes |= {"attention_weight": (n_keys, width), "attention_bias": (n_keys,)}
            shapes |= {"attention_vector": (n_keys,), "weight": (n_outputs, 2 * width)}
        else:
            units = _size(tensors, "lstm.weight_hh_l0", 1)
            shapes |= _lstm_shapes(width, units) | {"weight": (n_outputs, 2 * units)}
    return {name: shape for name, shape in shapes.items() if name in tensors}


def _lstm_shapes(n_inputs: int, units: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of the LSTM, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LSTM_LAYERS):
        width = n_inputs if layer == 0 else 2 * units
        for direction in ("", "_reverse"):
            end = f"l{layer}{direction}"
            shapes[f"lstm.weight_ih_{end}"] = (_GATES * units, width)
            shapes[f"lstm.weight_hh_{end}"] = (_GATES * units, units)
            shapes[f"lstm.bias_ih_{end}"] = (_GATES * units,)
            shapes[f"lstm.bias_hh_{end}"] = (_GATES * units,)
    return shapes


def _size(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Return a size of a tensor; -1 if it has fewer axes or there is none, which fits no shape."""
    shape = tuple(tensors[name].shape) if name in tensors else ()
    return shape[axis] if axis < len(shape) else -1

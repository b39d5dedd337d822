"""Arithmetic of trained heads: from features to outputs, in plain torch.

Each function is that of the program on the card of an exported head (`pipeline.predict.export`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from pipeline.config.sweep_schema import ATTENTIVE, LSTM, MLP
from pipeline.heads.facts import HeadFacts
from pipeline.heads.networks import LSTM_LAYERS, attentive_statistics
from pipeline.heads.prediction import LabelledSpan

Tensors = Mapping[str, Tensor]


def outputs_of(facts: HeadFacts, tensors: Tensors, inputs: Tensor) -> Tensor:
    """Return the outputs of a head for items, or for the frames of one utterance.

    Args:
        facts: The head.
        tensors: Its tensors.
        inputs: float32 [n, n_inputs]: statistics of items, or the frames of an utterance.

    Returns:
        [n_outputs, n]; of an attentive head, which has one for all frames, [n_outputs, 1].
    """
    if facts.head == MLP:
        hidden = torch.mm(tensors["hidden_weight"], inputs.T) + tensors["hidden_bias"][:, None]
        inputs = hidden.relu_().T
    if facts.head in (ATTENTIVE, LSTM):
        inputs = nn.functional.linear(
            inputs, tensors["projection_weight"], tensors["projection_bias"]
        )
        of_frames = attentive_outputs if facts.head == ATTENTIVE else lstm_outputs
        inputs = of_frames(tensors, inputs)
    return torch.mm(tensors["weight"], inputs.T) + tensors["bias"][:, None]


def attentive_outputs(tensors: Tensors, frames: Tensor) -> Tensor:
    """Return mean and deviation of frames, weighted by attention: [n, d] to [1, 2 d]."""
    names = ("attention_weight", "attention_bias", "attention_vector")
    return attentive_statistics(
        frames, torch.tensor([len(frames)]), *(tensors[name] for name in names)
    )


def lstm_outputs(tensors: Tensors, frames: Tensor) -> Tensor:
    """Return what the bidirectional LSTM makes of the frames of an utterance: [n, 2 units]."""
    n_inputs, units = frames.shape[1], tensors["lstm.weight_hh_l0"].shape[1]
    lstm = nn.LSTM(n_inputs, units, LSTM_LAYERS, bidirectional=True, device="meta")
    start = "lstm."
    own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    lstm.load_state_dict(own, assign=True)  # takes the tensors as they are
    found: Tensor = lstm(frames)[0]
    return found


def mixed(tensors: Tensors, layers: Tensor) -> Tensor:
    """Return the layer, or the weighted sum of the layers: [n_layers, n, d] to [n, d]."""
    if "layer_weights" not in tensors:
        return layers[0]
    return torch.mv(layers.flatten(1).T, tensors["layer_weights"]).view(layers.shape[1:])


def pooled(features: Tensor, names: Sequence[str]) -> Tensor:
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


def normalized(features: Tensor) -> Tensor:
    """Return each frame with mean 0 and variance 1 over its features."""
    return nn.functional.layer_norm(features, [features.shape[-1]])


def classified(
    outputs: Tensor, classes: Sequence[Sequence[str]]
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Return the most probable class in each column, and its probability, of each item.

    Args:
        outputs: [n_outputs, n].
        classes: Names of the classes of each column; their outputs follow each other.
    """
    ends = accumulate(map(len, classes), initial=0)
    columns = []
    for (start, stop), names in zip(pairwise(ends), classes, strict=True):
        best, scores = _most_probable(outputs[start:stop])
        columns.append([(names[i], score) for i, score in zip(best, scores, strict=True)])
    rows = zip(*columns, strict=True)
    return [(tuple(name for name, _ in row), tuple(score for _, score in row)) for row in rows]


def spans_of_frames(facts: HeadFacts, outputs: Tensor) -> tuple[LabelledSpan, ...]:
    """Join runs of frames of one class: [n_classes, n_frames] to spans that cover all frames.

    A span begins and ends in the middle between the centres of two frames; the first begins at
    0. So a span has its frames by the rule for spans: those whose centres are in it.
    """
    best, scores = outputs.argmax(0), outputs.softmax(0).amax(0).double()
    changes = (torch.nonzero(best[1:] != best[:-1]).flatten() + 1).tolist()
    hop_s = 1 / facts.frame_rate_hz
    found = []
    for first, last in pairwise([0, *changes, len(best)]):
        start_s, stop_s = (facts.first_centre_s + (n - 0.5) * hop_s for n in (first, last))
        found.append(
            LabelledSpan(
                round(start_s, 6) if first else 0.0,
                round(stop_s, 6),
                facts.classes[0][int(best[first])],
                float(scores[first:last].mean()),
                first,
                last,
            )
        )
    return tuple(found)


def _most_probable(outputs: Tensor) -> tuple[list[int], list[float]]:
    """Return the largest output of each item, and its softmax: of [n_classes, n]."""
    best = outputs.argmax(0)
    return best.tolist(), outputs.softmax(0).gather(0, best[None])[0].tolist()

"""Heads beyond linear: their formulas, and independence of padding and of other utterances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.heads.networks import FrameHead, FramewiseLSTM, FramewiseMLP, PooledAttentive

DIM, OUTPUTS = 6, 5
LENGTHS = torch.tensor([4, 9, 1, 6])


def attentive_by_hand(tensors: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Compute the outputs of one utterance [n_frames, dim], frame by frame, by the formulas."""
    projected = [
        tensors["projection_weight"] @ frame + tensors["projection_bias"] for frame in frames
    ]
    energies = [
        tensors["attention_vector"]
        @ torch.tanh(tensors["attention_weight"] @ x + tensors["attention_bias"])
        for x in projected
    ]
    total = sum(math.exp(energy) for energy in energies)
    weights = [math.exp(energy) / total for energy in energies]
    mean = sum(w * x for w, x in zip(weights, projected, strict=True))
    square = sum(w * x * x for w, x in zip(weights, projected, strict=True))
    deviation = (square - mean * mean).clamp_min(1e-5).sqrt()
    return tensors["weight"] @ torch.cat([mean, deviation]) + tensors["bias"]


def mlp_by_hand(tensors: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Compute the outputs of the frames of one utterance."""
    hidden = frames @ tensors["hidden_weight"].T + tensors["hidden_bias"]
    return hidden.clamp_min(0) @ tensors["weight"].T + tensors["bias"]


def lstm_by_hand(tensors: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Compute the outputs of the frames of one utterance with the recurrence written out."""
    values = frames @ tensors["projection_weight"].T + tensors["projection_bias"]
    for layer in (0, 1):
        both = []
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w, u, b, c = (tensors[f"lstm.{name}_{suffix}"] for name in names)
            order = range(len(values)) if suffix == f"l{layer}" else reversed(range(len(values)))
            state = cell = torch.zeros(u.shape[1], dtype=values.dtype)
            found = {}
            for t in order:
                i, f, g, o = (w @ values[t] + u @ state + b + c).chunk(4)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                state = o.sigmoid() * cell.tanh()
                found[t] = state
            both.append(torch.stack([found[t] for t in range(len(values))]))
        values = torch.cat(both, 1)
    return values @ tensors["weight"].T + tensors["bias"]


HEADS = {
    "attentive": (lambda: PooledAttentive(DIM, OUTPUTS, 7), attentive_by_hand),
    "mlp": (lambda: FramewiseMLP(DIM, OUTPUTS, 7), mlp_by_hand),
    "lstm": (lambda: FramewiseLSTM(DIM, OUTPUTS, 7, units=3), lstm_by_hand),
}


@pytest.fixture(params=sorted(HEADS))
def head_and_formula(request):
    """A head of each kind in float64, and its formula."""
    make, formula = HEADS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double(), formula


@pytest.fixture
def features() -> Tensor:
    """Frames of four utterances, padded with NaN: float64 [4, 9, DIM]."""
    random = torch.Generator().manual_seed(1)
    values = 2 * torch.randn(4, 9, DIM, generator=random, dtype=torch.float64) + 1
    values[torch.arange(9) >= LENGTHS[:, None]] = math.nan
    return values


def by_utterance(head: FrameHead, outputs: Tensor) -> list[Tensor]:
    """Split padded outputs into those of each utterance."""
    if outputs.ndim == 2:
        return list(outputs)
    return [part[:n] for part, n in zip(outputs, LENGTHS.tolist(), strict=True)]


def test_a_head_computes_its_formula(head_and_formula, features):
    """In a padded batch, each utterance has the outputs of the formula, from the named tensors."""
    head, formula = head_and_formula
    tensors = {name: value.detach() for name, value in head.tensors().items()}
    assert sum(value.numel() for value in tensors.values()) == sum(
        value.numel() for value in head.parameters()
    )
    found = by_utterance(head, head(features, LENGTHS))
    for item, values, n in zip(found, features, LENGTHS.tolist(), strict=True):
        assert torch.allclose(item, formula(tensors, values[:n]), atol=1e-12)


def test_other_utterances_and_padding_change_nothing(head_and_formula, features):
    """Outputs and gradients of an utterance are those that it has alone, in any order."""
    head, _ = head_and_formula
    rows = [3, 0, 2, 1]
    frames = torch.cat([features[row, : LENGTHS[row]] for row in rows])
    together = head.of_frames(frames, LENGTHS[rows])
    alone = [head(features[row : row + 1, : LENGTHS[row]]).flatten(0, -2) for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    gradients = [
        torch.autograd.grad(outputs.square().sum(), list(head.parameters()))
        for outputs in (together, torch.cat(alone))
    ]
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, atol=1e-10)


def test_padding_scores_zero(head_and_formula, features):
    """Heads on frames give zero for padding, so that a loss over the batch can leave it out."""
    head, _ = head_and_formula
    outputs = head(features, LENGTHS)
    assert bool(torch.isfinite(outputs).all())
    if outputs.ndim == 3:
        assert not outputs[torch.arange(9) >= LENGTHS[:, None]].any()


def test_a_head_takes_stored_features():
    """Float16 features are computed with in the dtype of the parameters."""
    for make, _ in HEADS.values():
        features = torch.randn(2, 5, DIM).half()
        head = make()
        assert torch.equal(head(features), head(features.float()))


def test_the_lstm_is_superbs_with_its_settings():
    """With 1024 units it has the parameters of two bidirectional layers behind a projection."""
    with torch.device("meta"):
        head = FramewiseLSTM(768, 32, projection=1024, units=1024)
        n = sum(value.numel() for value in nn.LSTM(1024, 1024, 2, bidirectional=True).parameters())
    linear = 769 * 1024 + 2049 * 32
    assert sum(value.numel() for value in head.parameters()) == n + linear == 42_828_832

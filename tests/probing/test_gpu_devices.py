"""Heads, their training and quantizers on a GPU that is not there: no mix of devices.

`tests/helpers/fake_cuda.py` explains how. What reads values on the host cannot run there.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.feed.batch import Batch, Example, collate
from pipeline.heads.modules import FramewiseLinear, PooledLinear, WeightedSum
from pipeline.heads.networks import FramewiseMLP
from pipeline.probing.results import WEIGHTED, Candidate, HeadSpec
from pipeline.probing.trainers.fused_stack import make_stack
from pipeline.probing.trainers.objectives import Classification, Objective, Regression
from pipeline.probing.trainers.snapshot import HeadShape
from pipeline.tokens.nearest import Quantizer
from tests.helpers.fake_cuda import DEVICE, fake_cuda, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
LAYERS: tuple[Candidate, ...] = (1, 2, WEIGHTED)
N, DIM = 10, 8


def batch() -> Batch:
    """Two utterances of two layers, with a column of numbers and tokens."""
    return collate(
        [
            Example(torch.zeros(2, n, DIM).half(), str(n), 0, {"age": n}, torch.zeros(n).long())
            for n in (5, 3)
        ]
    )


def test_a_batch_moves_with_all_its_tensors() -> None:
    """Features, lengths, starts, tokens, columns, and the mask that is made of them."""
    given = batch()
    with fake_cuda() as fake:
        moved = given.pin_memory().to(DEVICE, non_blocking=True)
        parts = [moved.features, moved.lengths, moved.starts, moved.tokens, moved.columns["age"]]
        assert {part.device for part in [*parts, moved.mask]} == {DEVICE}
        assert not fake.waits
        assert not fake.unpinned


def test_heads_score_a_batch() -> None:
    """The weighted sum of layers, and the heads after it, with the lengths of the batch."""
    given = batch()
    mix, frames = WeightedSum(2, normalize=True), FramewiseLinear(DIM, 3)
    pooled, hidden = PooledLinear(DIM, 3), FramewiseMLP(DIM, 3, projection=4)
    with fake_cuda():
        moved = given.to(DEVICE)
        summed = mix.to(DEVICE)(moved.features)
        scores = frames.to(DEVICE)(summed, moved.lengths)
        assert scores.device == pooled.to(DEVICE)(summed, moved.lengths).device == DEVICE
        assert hidden.to(DEVICE).of_frames(summed.flatten(0, 1), moved.lengths).device == DEVICE


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        (Classification((3, 2)), "linear"),
        (Classification((3, 2)), "mlp"),
        (Regression((0.5,), (2.0,), "ccc", "ccc"), "linear"),
        (Regression((0.5,), (2.0,), "mse", "mae"), "mlp"),
    ],
)
@pytest.mark.parametrize("layer", [(1, 2), (1, 1), (WEIGHTED, WEIGHTED)])
def test_a_stack_of_heads_takes_steps(
    objective: Objective, kind: str, layer: tuple[Candidate, ...]
) -> None:
    """Loss, gradients, optimizer and predictions; also after a head has been dropped."""
    n_outputs = sum(objective.widths)
    shape = HeadShape(DIM, 4, n_outputs, len(LAYERS) - 1, kind)
    specs = [HeadSpec(layer[i], lr=0.1, seed=0, fold=0) for i in range(2)]
    with fake_cuda():
        pooled = torch.zeros(2, N, DIM, device=DEVICE)
        labels = torch.zeros(len(objective.widths), N, device=DEVICE)
        labels = labels.long() if isinstance(objective, Classification) else labels
        rows = torch.arange(4, device=DEVICE)
        stack = make_stack(specs, LAYERS, shape, objective, DEVICE, 4)
        assert stack.step(pooled, labels, rows).device == DEVICE
        stack.keep([1])
        stack.step(pooled, labels, rows)
        outputs = stack.snapshot().copy_of(0).outputs_of(pooled, rows)
        assert objective.predict(outputs).device == DEVICE


def test_a_quantizer_finds_the_nearest_centroids() -> None:
    """Of frames in the memory of the host."""
    with fake_cuda():
        moved, labels, distances = Quantizer(torch.randn(5, DIM), DEVICE).nearest(
            torch.randn(N, DIM).half()
        )
        assert {item.device for item in (moved, labels, distances)} == {DEVICE}

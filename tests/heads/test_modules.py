"""Linear heads: exact on pooled features, independent of padding, equal to s3prl's."""

from __future__ import annotations

import pytest
import torch

import pipeline
from pipeline.heads.modules import masked_mean
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [30, 7, 120, 55, 1]


@pytest.fixture
def batch(tmp_path):
    """A padded batch of five utterances with three layers of eight features."""
    make_store(tmp_path / "store", LENGTHS, features=noise)
    dataset = pipeline.FeatureDataset(pipeline.open_store(tmp_path / "store"))
    loader = pipeline.make_loader(dataset, max_frames_per_batch=10_000, shuffle=False)
    return next(iter(loader))


@pytest.fixture
def pooled(tmp_path, batch):
    return pipeline.open_store(tmp_path / "store").pooled()


def train(head, features, lengths, labels, steps=5):
    """Train a few steps of SGD in float64; return the losses and the final parameters."""
    head = head.double()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(head(features, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), torch.cat([p.flatten() for p in head.parameters()])


class UtteranceModel(torch.nn.Module):
    """SUPERB's model of utterance tasks: weighted sum, mean, projection, logits."""

    def __init__(self):
        super().__init__()
        self.sum = pipeline.WeightedSum(3)
        self.head = pipeline.PooledLinear(8, 4)

    def forward(self, features, lengths):
        return self.head(self.sum(features), lengths)


def test_training_on_pooled_features_equals_training_on_frames(batch, pooled):
    """Losses and parameters are equal up to float32 rounding, including the layer weights."""
    labels = torch.tensor([0, 1, 2, 3, 0])
    torch.manual_seed(0)
    on_frames = train(UtteranceModel(), batch.features, batch.lengths, labels)
    torch.manual_seed(0)
    on_pooled = train(UtteranceModel(), pooled, None, labels)
    for a, b in zip(on_frames, on_pooled, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_the_order_of_projection_and_mean_does_not_matter(batch):
    """Projecting frames and then averaging them, as s3prl does, gives the same scores."""
    head = pipeline.PooledLinear(8, 4).double()
    frames = batch.features[:, 0].double()
    by_frame = masked_mean(head.projector(frames), batch.lengths)
    assert torch.allclose(head(frames, batch.lengths), head.output(by_frame))


@pytest.mark.parametrize("garbage", [7.0, float("nan"), float("inf")])
def test_padding_changes_neither_scores_nor_gradients(batch, garbage):
    """Values of padding change no bit of scores and gradients."""
    dirty = batch.features.clone()
    dirty[~batch.mask[:, None].expand(-1, 3, -1)] = garbage
    for head in (pipeline.PooledLinear(8, 4), pipeline.FramewiseLinear(8, 5)):
        gradients = []
        for features in (batch.features, dirty):
            head.zero_grad()
            scores = head(features[:, 1], batch.lengths)
            weights = torch.linspace(-1, 1, scores.numel()).reshape(scores.shape)
            (scores * weights).sum().backward()
            gradients.append((scores.detach(), head.output.bias.grad.clone()))
        assert torch.equal(gradients[0][0], gradients[1][0])
        assert torch.equal(gradients[0][1], gradients[1][1])
    pooling = pipeline.PooledLinear(8, 4)
    alone = torch.cat([pooling(batch.features[i : i + 1, 1, :n]) for i, n in enumerate(LENGTHS)])
    assert torch.allclose(pooling(batch.features[:, 1], batch.lengths), alone, atol=1e-6)


def test_frames_beyond_the_length_score_zero(batch):
    """With lengths, padding scores zero; without lengths every frame is scored."""
    head = pipeline.FramewiseLinear(8, 5)
    scores = head(batch.features[:, 0], batch.lengths)
    assert scores.shape == (5, 120, 5)
    assert not scores[~batch.mask].any()
    assert torch.equal(head(batch.features[:, 0])[batch.mask], scores[batch.mask])


def test_the_weighted_sum_starts_with_equal_weights_and_follows_its_scalars(batch):
    """Zero scalars give the mean over layers; a large scalar selects a layer."""
    head = pipeline.WeightedSum(3)
    assert torch.equal(head.scalars, torch.zeros(3))
    assert torch.allclose(head(batch.features), batch.features.float().mean(1), atol=1e-6)
    with torch.no_grad():
        head.scalars[2] = 100
    assert torch.allclose(head(batch.features), batch.features[:, 2].float())


def test_normalising_removes_the_scale_of_a_layer(batch):
    """LayerNorm without parameters makes the sum independent of the scale of a layer."""
    head = pipeline.WeightedSum(3, normalize=True)
    scaled = batch.features.float() * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    valid = batch.mask
    assert torch.allclose(head(batch.features)[valid], head(scaled)[valid], atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_heads_compile_and_script(batch):
    """torch.compile makes one graph of each head, and TorchScript compiles it."""
    frames = (batch.features[:, 0], batch.lengths)
    for head, arguments in (
        (pipeline.WeightedSum(3), (batch.features,)),
        (pipeline.WeightedSum(3, normalize=True), (batch.features,)),
        (pipeline.FramewiseLinear(8, 5), frames),
        (pipeline.FramewiseLinear(8, 5, projection=None), frames[:1]),
        (pipeline.PooledLinear(8, 4), frames),
    ):
        wanted = head(*arguments)
        compiled = torch.compile(head, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(*arguments), wanted, atol=1e-6)
        assert torch.allclose(torch.jit.script(head)(*arguments), wanted, atol=1e-6)

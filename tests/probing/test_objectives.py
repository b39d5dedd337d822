"""Objectives: hand-derived gradients against autograd, and metrics of numbers against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from pipeline.errors import ConfigError
from pipeline.probing.metrics import AGREEMENT, agreement, agreement_of_sums, agreement_sums
from pipeline.probing.trainers.objectives import LOSSES, Regression


def concordance(x, y):
    """Return the concordance correlation coefficient by its definition."""
    return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def plain_loss(name, outputs, targets):
    """Return the loss of one head with autograd, [n_columns, batch] each."""
    if name == "mse":
        return ((outputs - targets) ** 2).mean(1).sum()
    x, y = outputs, targets
    mean_x, mean_y = x.mean(1), y.mean(1)
    covariance = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(1)
    scale = x.var(1, correction=0) + y.var(1, correction=0) + (mean_x - mean_y) ** 2
    return (1 - 2 * covariance / scale).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_autograd(name):
    """Targets are standardised by the mean and the deviation of train."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randn(2, 40, generator=random) * torch.tensor([[3.0], [0.1]]) + 5
    outputs = torch.randn(3, 2, 40, generator=random).requires_grad_()
    objective = Regression((5.0, 4.9), (3.0, 0.1), name, "ccc")
    targets = (labels - torch.tensor([[5.0], [4.9]])) / torch.tensor([[3.0], [0.1]])
    expected = torch.stack([plain_loss(name, head, targets) for head in outputs])
    expected.sum().backward()
    with torch.no_grad():
        loss, gradient = objective.loss(outputs, labels)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, outputs.grad, rtol=1e-4, atol=1e-7)


def test_predictions_have_the_unit_of_the_labels():
    """An output of 0 is the mean of train, one of 1 a deviation above it."""
    objective = Regression((5.0, -2.0), (3.0, 0.5), "mse", "mae")
    outputs = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert objective.predict(outputs).tolist() == [[[5.0, 8.0], [-2.0, -1.5]]]
    assert objective.scores(
        objective.predict(outputs), torch.tensor([[5.0, 8.0], [-2.0, -2.5]])
    ) == [pytest.approx(0.25)]
    assert not objective.higher_is_better


def test_constant_outputs_have_a_finite_loss():
    """One utterance, or equal ones: the loss is 1 and the gradient is finite."""
    objective = Regression((0.0,), (1.0,), "ccc", "ccc")
    loss, gradient = objective.loss(torch.zeros(1, 1, 4), torch.zeros(1, 4))
    assert loss.tolist() == [1.0]
    assert torch.isfinite(gradient).all()


@given(st.integers(0, 2**32 - 1), st.floats(-1e4, 1e4))
def test_metrics_of_numbers_equal_their_definitions(seed, offset):
    """Also far from zero, where sums of squares lose digits."""
    random = np.random.default_rng(seed)
    truth = offset + random.standard_normal((2, 30))
    found = truth * 0.7 + random.standard_normal((2, 30))
    for column in range(2):
        x, y = found[column], truth[column]
        expected = {
            "ccc": concordance(x, y),
            "pearson": pearsonr(x, y).statistic,
            "mae": np.abs(x - y).mean(),
        }
        for metric in AGREEMENT:
            value = agreement(metric, truth, found)[column]
            assert value == pytest.approx(expected[metric], rel=1e-6, abs=1e-6)


def test_sums_of_weighted_utterances_are_those_of_repeated_ones():
    """A weight of 2 counts an utterance twice."""
    random = np.random.default_rng(1)
    truth, found = random.standard_normal((2, 1, 20))
    weights = random.integers(0, 3, 20)
    sums = agreement_sums(truth, found)
    for metric in AGREEMENT:
        repeated = agreement(metric, truth.repeat(weights, axis=1), found.repeat(weights, axis=1))
        assert agreement_of_sums(metric, (weights @ sums)[None])[0] == pytest.approx(repeated)


def test_correlations_of_constant_numbers_are_zero():
    """Constant predictions, and a draw of one utterance only."""
    truth = np.arange(10.0)[None]
    constant = np.full((1, 10), 3.7)
    for metric in ("ccc", "pearson"):
        assert agreement(metric, truth, constant)[0] == pytest.approx(0, abs=1e-9)
        one = agreement_sums(truth, truth + 1)[3][None] * 10
        assert np.isfinite(agreement_of_sums(metric, one)).all()
    with pytest.raises(ConfigError, match="metric is 'cc'; did you mean"):
        agreement("cc", truth, constant)

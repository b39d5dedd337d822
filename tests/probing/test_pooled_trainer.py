"""Stacked heads: equal to heads trained in plain torch, for any other heads in the stack."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import load_sweep_config
from pipeline.heads.modules import WeightedSum
from pipeline.probing.labels import Fold
from pipeline.probing.results import WEIGHTED, HeadSpec
from pipeline.probing.trainers import pooled
from pipeline.probing.trainers.objectives import Classification
from pipeline.probing.trainers.pooled import (
    PooledData,
    data_order,
    train_pooled_heads,
    untrained_score,
)
from pipeline.probing.trainers.snapshot import HeadShape, initial_parameters

CPU = torch.device("cpu")
DIM, CLASSES, N = 32, 5, 400
LAYERS = (3, 6, 9)
KS = load_sweep_config(["task=ks"]).task


def settings_of_ks(**settings):
    """Return the settings of ks with smaller numbers."""
    settings = {"steps": 60, "batch": 32, "eval_every": 20, "patience": 9} | settings
    return replace(KS, projection=16, **settings)


def make_data(n_classes=(CLASSES,), strength=1.0, **settings):
    """Return utterances with classes visible in layer 6, less in layer 3, not in layer 9."""
    random = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.randint(0, n, (N,), generator=random) for n in n_classes])
    pooled = torch.randn(len(LAYERS), N, DIM, generator=random)
    for column, n in zip(labels, n_classes, strict=True):
        centres = torch.randn(n, DIM, generator=random)
        pooled[1] += strength * centres[column]
        pooled[0] += 0.3 * strength * centres[column]
    at = np.arange(N)
    fold = Fold(at[at % 4 < 2], at[at % 4 == 2], at[at % 4 == 3])
    objectives = (Classification(tuple(n_classes)),)
    return PooledData(pooled, LAYERS, labels, objectives, (fold,), settings_of_ks(**settings))


def trained(data, *specs):
    """Train heads, each given as (layer, lr) or (layer, lr, seed)."""
    specs = [HeadSpec(*spec, *([0] if len(spec) == 2 else []), 0) for spec in specs]
    return train_pooled_heads(data, specs, CPU)


def plain_head(layer, seed, shape):
    """Return plain modules with the initial parameters of a head of the stack."""
    values = initial_parameters(seed, layer, shape)
    first, last = (
        nn.Linear(shape.dim, shape.projection),
        nn.Linear(shape.projection, shape.n_outputs),
    )
    head = nn.Sequential(first, nn.ReLU() if shape.kind == "mlp" else nn.Identity(), last)
    for parameter, value in zip(head.parameters(), values[:4], strict=True):
        parameter.data.copy_(value)
    return head, WeightedSum(shape.n_layers)


def close(found, expected):
    """Compare parameters after a few steps of Adam, which magnifies rounding."""
    torch.testing.assert_close(found, expected.detach(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("layer", [6, WEIGHTED])
@pytest.mark.parametrize(
    ("n_classes", "kind"),
    [((CLASSES,), "linear"), ((3, 4, 2), "linear"), ((90,), "linear"), ((3, 4, 2), "mlp")],
    ids=["one", "three", "many", "mlp"],
)
def test_a_stack_steps_as_autograd_does(layer, n_classes, kind):
    """Losses and parameters equal those of plain modules, cross-entropy and torch's Adam.

    With few classes, gradients of linear heads are computed with the multiplied layers; with more
    classes than utterances in a batch, layer by layer, as those of a hidden layer.
    """
    data = make_data(n_classes, head=kind)
    lrs = (1e-2, 1e-3)
    stack = data.stack([HeadSpec(layer, lr, 4, 0) for lr in lrs])
    batches = [rows for _, rows in zip(range(12), data_order(4, N, 32), strict=False)]
    losses = torch.stack([stack.step(data.pooled, data.labels, rows) for rows in batches])
    for i, lr in enumerate(lrs):
        head, mix = plain_head(layer, 4, data.shape)
        optimizer = torch.optim.Adam([*head.parameters(), *mix.parameters()], lr=lr)
        for step, rows in enumerate(batches):
            layers = data.pooled[:, rows]
            seen = mix(layers.transpose(0, 1)) if layer == WEIGHTED else layers[1]
            logits = head(seen).split(n_classes, dim=1)
            loss = sum(
                nn.functional.cross_entropy(part, wanted)
                for part, wanted in zip(logits, data.labels[:, rows], strict=True)
            )
            assert losses[step, i] == pytest.approx(float(loss.detach()), rel=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = stack.snapshot().copy_of(i).tensors()
        first, _, last = head
        if kind == "mlp":
            close(found["hidden_weight"], first.weight)
            close(found["hidden_bias"], first.bias)
            close(found["weight"], last.weight)
            close(found["bias"], last.bias)
        else:
            close(found["weight"], last.weight @ first.weight)
            close(found["bias"], last(first.bias))
        if layer == WEIGHTED:
            close(found["layer_weights"], mix.weights())


def test_a_hidden_layer_learns_what_a_linear_head_cannot():
    """The class is whether two features have the same sign."""
    data = make_data((2,), head="mlp", steps=400)
    data.labels[0] = ((data.pooled[2, :, 0] > 0) == (data.pooled[2, :, 1] > 0)).long()
    data.pooled[2, :, :2] *= 6
    linear = replace(data, task=replace(data.task, head="linear"))
    assert trained(data, (9, 1e-2))[0].test > 0.8
    assert trained(linear, (9, 1e-2))[0].test < 0.65


def test_a_plain_loop_reaches_the_same_accuracy():
    """A loop without this code, from other initial values, agrees within seed noise."""
    data = make_data(strength=0.45, steps=200)
    seeds = range(5)
    stacked = [head.test for head in trained(data, *((6, 1e-3, seed) for seed in seeds))]
    fold = data.folds[0]
    x, y = data.pooled[1], data.labels[0]
    plain = []
    for seed in seeds:
        torch.manual_seed(100 + seed)
        model = nn.Sequential(nn.Linear(DIM, 16), nn.Linear(16, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        best, test = 0.0, 0.0
        for step in range(200):
            rows = torch.from_numpy(fold.train)[torch.randint(0, len(fold.train), (32,))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            if (step + 1) % 20 == 0:
                correct = model(x).argmax(1) == y
                dev = correct[fold.dev].float().mean().item()
                if dev > best:
                    best, test = dev, correct[fold.test].float().mean().item()
        plain.append(test)
    noise = np.hypot(np.std(stacked, ddof=1), np.std(plain, ddof=1))
    assert 0.5 < np.mean(plain) < 0.95
    assert abs(np.mean(stacked) - np.mean(plain)) < 3 * noise / np.sqrt(len(seeds)) + 0.01


def test_the_layer_with_the_classes_is_best():
    """Layer 6 beats layer 3, layer 9 is at chance, and the weighted sum selects layer 6."""
    heads = trained(make_data(steps=200), *((layer, 1e-2) for layer in (*LAYERS, WEIGHTED)))
    three, six, nine, weighted = (head.test for head in heads)
    assert six > 0.95
    assert nine < 0.35
    assert nine < three < six
    assert weighted > 0.9
    assert np.argmax(heads[-1].layer_weights) == 1
    assert sum(heads[-1].layer_weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("n_classes", "kind"),
    [((CLASSES,), "linear"), ((3, 4, 2), "linear"), ((90,), "linear"), ((CLASSES,), "mlp")],
    ids=["one", "three", "many", "mlp"],
)
def test_a_head_does_not_depend_on_the_others(n_classes, kind):
    """A head trained separately or with heads of other settings is bit-identical."""
    data = make_data(n_classes, head=kind)
    many = [(layer, lr, seed) for layer in (6, WEIGHTED) for lr in (1e-1, 1e-3) for seed in (0, 1)]
    together = trained(data, *many)
    for spec, head in list(zip(many, together, strict=True))[1::3]:
        assert trained(data, spec) == [head]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_stack_may_span_layers(kind):
    """Heads on several layers, as on a GPU, of which some stop, step as in separate stacks."""
    data = make_data(head=kind)
    specs = [HeadSpec(layer, lr, 0, 0) for layer in (9, 3) for lr in (1e-2, 1e-3)]
    together, alone = data.stack(specs), data.stack(specs[3:])
    for step, rows in zip(range(10), data_order(0, N, 32), strict=False):
        if step == 5:
            together.keep([1, 3])
        loss = together.step(data.pooled, data.labels, rows)[-1]
        assert loss == alone.step(data.pooled, data.labels, rows)[0]
    rows = torch.arange(N)
    both, one = together.snapshot(), alone.snapshot()
    assert torch.equal(
        both.outputs(both.inputs(both.select_layers(data.pooled, rows)))[1:],
        one.outputs(one.inputs(one.select_layers(data.pooled, rows))),
    )
    assert [spec.lr for spec in together.specs] == [1e-3, 1e-3]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_number_of_threads_does_not_matter(kind):
    """Results are bit-identical for any number of threads: a stack is computed in one thread."""
    data = make_data(head=kind)
    specs = [(layer, 1e-2, seed) for layer in LAYERS for seed in (0, 1)]
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(trained(data, *specs))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_heads_stop_without_improvement_on_dev():
    """Heads stop independently; the others are unchanged."""
    patient, hasty = make_data(steps=400), make_data(steps=400, patience=2)
    specs = [(6, 1e-1), (6, 1e-2), (6, 1e-5)]
    ends = []
    for long, short in zip(trained(patient, *specs), trained(hasty, *specs), strict=True):
        assert short.curve == long.curve[: len(short.curve)]
        devs = [dev for _, _, dev in short.curve]
        assert short.dev == max(devs)
        assert short.step in (0, short.curve[int(np.argmax(devs))][0])
        ends.append(short.curve[-1][0])
        assert short.curve[-1][0] in (400, short.step + 2 * 20)
    assert len(set(ends)) > 1


def test_test_is_scored_at_the_best_dev_step():
    """The predictions are those of the best step, not of the last."""
    data = make_data(strength=0.3, steps=300)
    (head,) = trained(data, (6, 1e-1))
    assert head.step < 300
    cut = replace(data, task=replace(data.task, steps=head.step))
    (shorter,) = trained(cut, (6, 1e-1))
    assert (shorter.test, shorter.predictions) == (head.test, head.predictions)
    truth = data.labels[0][data.folds[0].test]
    predictions = torch.tensor(head.predictions)[:, 0]
    assert head.test == (predictions == truth).sum().item() / 100


def test_an_utterance_is_correct_if_all_its_slots_are():
    """Intent classification has three label columns and one score."""
    data = make_data((3, 4, 2), strength=0.5, steps=200)
    (head,) = trained(data, (6, 1e-2))
    predictions = np.array(head.predictions)
    correct = predictions == data.labels.T.numpy()[data.folds[0].test]
    assert predictions.shape == (100, 3)
    assert head.test == correct.all(1).mean()
    assert head.test < correct.mean(0).min()


def test_a_diverging_head_does_not_affect_others():
    """The best step of a diverging head has no NaN, and the other heads are unchanged."""
    data = make_data()
    wild, tame = trained(data, (6, 1e38), (6, 1e-2))
    assert np.isfinite([wild.dev, wild.test, *(loss for _, loss, _ in wild.curve)]).all()
    assert trained(data, (6, 1e-2)) == [tame]


def test_a_small_train_set_is_one_batch():
    """With fewer utterances than a batch, all are in one batch."""
    data = make_data(batch=1000)
    (head,) = trained(data, (6, 1e-2))
    assert head.test > 0.8


def test_the_data_order_depends_on_the_seed_and_covers_every_epoch():
    """Each epoch is a permutation, for any batch size; equal seeds give equal orders."""
    order = data_order(3, 10, 4)
    batches = [next(order).tolist() for _ in range(10)]
    flat = list(chain(*batches))
    assert [sorted(flat[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    again = data_order(3, 10, 4)
    assert [next(again).tolist() for _ in range(10)] == batches
    assert next(data_order(4, 10, 4)).tolist() != batches[0]


def test_initial_parameters_are_those_of_a_linear_layer():
    """Uniform within 1 / sqrt(fan-in), as a function of seed and layer only."""
    shape = HeadShape(64, 256, 10, 3)
    values = initial_parameters(0, 6, shape)
    for value, fan_in in zip(values, (64, 64, 256, 256), strict=True):
        bound = fan_in**-0.5
        assert value.abs().max() <= bound
        if value.numel() > 200:
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert torch.equal(values[0], initial_parameters(0, 6, shape)[0])
    assert not torch.equal(values[0], initial_parameters(1, 6, shape)[0])
    assert not torch.equal(values[0], initial_parameters(0, 7, shape)[0])
    assert torch.equal(initial_parameters(0, WEIGHTED, shape)[4], torch.zeros(3))


def test_an_untrained_head_is_at_chance():
    """Without training, the accuracy is below 0.5."""
    assert untrained_score(make_data(), 6) < 0.5


class Clock:
    """Time that passes by steps and evaluations only."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_the_expected_duration_counts_steps_and_evaluations(monkeypatch):
    """Evaluations before training and after every few steps, too."""
    clock = Clock()

    def step(data, stack, train, order, n_steps):
        clock.now += 2.0 * n_steps

    def score(self, predictions, positions, fold):
        clock.now += 10.0
        return [0.0]

    monkeypatch.setattr(pooled, "time", clock)
    monkeypatch.setattr(pooled, "_take_steps", step)
    monkeypatch.setattr(PooledData, "scores", score)
    spec = HeadSpec(3, 1e-3, 0, 0)
    for eval_every, n_evaluations in ((20, 4), (60, 2), (45, 3)):
        data = make_data(eval_every=eval_every)
        assert pooled._stack_s(data, [spec]) == 60 * 2 + 10 * n_evaluations


def test_the_expected_duration_is_that_of_the_busiest_thread(monkeypatch):
    """Three stacks of one second on two threads take two; each kind is timed in all threads."""
    timed = []

    def seconds(data, specs):
        timed.append(specs[0].layer)
        return 4.0 if specs[0].layer == WEIGHTED else 1.0

    monkeypatch.setattr(pooled, "_stack_s", seconds)
    single = [[HeadSpec(layer, 1e-3, 0, 0)] for layer in LAYERS]
    weighted = [[HeadSpec(WEIGHTED, 1e-3, 0, 0)]]
    with ThreadPoolExecutor(2) as pool:
        assert pooled._limit_s(None, single, pool, 2) == 2.0
        assert len(timed) == 2
        assert pooled._limit_s(None, weighted + single, pool, 2) == 4.0
        assert pooled._limit_s(None, weighted + single, pool, 16) == 4.0

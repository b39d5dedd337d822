"""Steps of linear heads in C: equal to those in torch up to rounding, with all instructions."""

from __future__ import annotations

import pytest
import torch

from pipeline.probing.results import WEIGHTED, HeadSpec
from pipeline.probing.trainers.fused_stack import FusedStack, make_stack
from pipeline.probing.trainers.head_stack import HeadStack
from pipeline.probing.trainers.native import heads as native
from pipeline.probing.trainers.objectives import Classification, Regression
from pipeline.probing.trainers.snapshot import HeadShape
from pipeline.store.native.rows import LIBRARY as OTHER_LIBRARY

CPU = torch.device("cpu")
LAYERS, N, BATCH = (1, 2, 3), 50, 22
needs_library = pytest.mark.skipif(not native.best_level(), reason="no C compiler, or another CPU")


@pytest.fixture(params=[native.AVX2, native.AVX512])
def level(request, monkeypatch):
    """Compute with some instructions of this machine."""
    library, best = native._loaded()
    if request.param > best:
        pytest.skip("not on this CPU")
    monkeypatch.setattr(native, "_loaded", lambda: (library, request.param))


def features(dim):
    """Return features of three layers, [3, N, dim]."""
    return torch.randn(len(LAYERS), N, dim, generator=torch.Generator().manual_seed(2))


@needs_library
@pytest.mark.parametrize("layer", [2, WEIGHTED])
@pytest.mark.parametrize("n_outputs", [1, 2, 5, 11])
@pytest.mark.parametrize(("dim", "projection"), [(16, 4), (48, 20)])
def test_steps_are_those_of_torch(level, layer, n_outputs, dim, projection):
    """Losses, products and weights of layers agree, for remainders of all blocks, after a stop."""
    if n_outputs == 1:
        objective, labels = Regression((0.5,), (2.0,), "mse", "mae"), torch.randn(1, N)
    else:
        objective, labels = Classification((n_outputs,)), torch.arange(N)[None] % n_outputs
    specs = [HeadSpec(layer, lr, 3, 0) for lr in (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)]
    shape = HeadShape(dim, projection, n_outputs, len(LAYERS))
    fused = FusedStack(specs, LAYERS, shape, objective)
    plain = HeadStack(specs, LAYERS, shape, objective, CPU)
    pooled = features(dim)
    for step in range(6):
        if step == 3:
            for stack in (fused, plain):
                stack.keep([0, 1, 4])
        rows = torch.randperm(N)[:BATCH]
        losses = [stack.step(pooled, labels, rows) for stack in (fused, plain)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    found, expected = fused.snapshot(), plain.snapshot()
    assert [spec.lr for spec in fused.specs] == [3e-2, 1e-2, 1e-4]
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-3, atol=1e-4)
    if layer == WEIGHTED:
        torch.testing.assert_close(found.mix, expected.mix, rtol=1e-3, atol=1e-5)


@needs_library
def test_a_head_has_the_same_bits_in_any_stack(level):
    """The number of heads that share the sums of layers does not matter."""
    shape, objective = HeadShape(48, 8, 3, len(LAYERS)), Classification((3,))
    specs = [HeadSpec(WEIGHTED, 10.0**-i, 0, 0) for i in range(6)]
    pooled, labels = features(48), torch.arange(N)[None] % 3
    many, one = (FusedStack(some, LAYERS, shape, objective) for some in (specs, specs[5:]))
    for step in range(4):
        rows = torch.arange(step, step + BATCH)
        assert many.step(pooled, labels, rows)[5] == one.step(pooled, labels, rows)[0]
    assert torch.equal(many.snapshot().weight[5:], one.snapshot().weight)
    assert torch.equal(many.snapshot().mix[5:], one.snapshot().mix)


@needs_library
@pytest.mark.parametrize("rows", [[0, N], [-1, 0]])
def test_a_position_out_of_range_is_refused(rows):
    """C code would read outside the features."""
    shape = HeadShape(16, 4, 2, len(LAYERS))
    stack = FusedStack([HeadSpec(WEIGHTED, 1e-2, 0, 0)], LAYERS, shape, Classification((2,)))
    with pytest.raises(IndexError):
        stack.step(features(16), torch.zeros(1, N, dtype=torch.int64), torch.tensor(rows))


@needs_library
@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (torch.Tensor.double, torch.arange(4)),
        (lambda pooled: pooled.transpose(0, 1).contiguous().transpose(0, 1), torch.arange(4)),
        (torch.clone, torch.arange(4, dtype=torch.int32)),
        (torch.clone, torch.arange(8)[::2]),
    ],
    ids=["float64", "strided", "int32", "strided rows"],
)
def test_tensors_of_another_form_are_refused(change, rows):
    """C code would read other numbers; the message has types and strides."""
    shape = HeadShape(16, 4, 2, len(LAYERS))
    for layer in (2, WEIGHTED):
        stack = FusedStack([HeadSpec(layer, 1e-2, 0, 0)], LAYERS, shape, Classification((2,)))
        with pytest.raises(ValueError, match=r"C code cannot read .*; expected contiguous"):
            stack.step(change(features(16)), torch.zeros(1, N, dtype=torch.int64), rows)


@needs_library
def test_outputs_of_weighted_sums_are_those_of_torch(level):
    """Features that C code cannot read are read by torch."""
    shape = HeadShape(16, 4, 2, len(LAYERS))
    specs = [HeadSpec(WEIGHTED, 1e-2, seed, 0) for seed in range(5)]
    heads = FusedStack(specs, LAYERS, shape, Classification((2,))).snapshot()
    heads = heads._replace(mix=torch.rand(5, len(LAYERS)))
    pooled, rows = features(16), torch.tensor([4, 0, N - 1])
    assert native.can_mix(pooled)
    strided = pooled.transpose(0, 1).contiguous().transpose(0, 1)
    assert not native.can_mix(strided)
    torch.testing.assert_close(heads.outputs_of(pooled, rows), heads.outputs_of(strided, rows))


@pytest.mark.parametrize(
    ("sizes", "kind", "is_fused"),
    [
        ((768, 256, 10), "linear", True),
        ((768, 256, 10), "mlp", False),  # computed layer by layer
        ((768, 256, 1251), "linear", False),  # the same: more outputs than a batch
        ((24, 256, 2), "linear", False),  # no whole blocks
        ((768, 6, 1), "linear", False),
    ],
)
def test_heads_that_do_not_fit_are_trained_in_torch(sizes, kind, is_fused):
    """Without the library, all are."""
    shape, objective = HeadShape(*sizes, 3, kind), Classification((sizes[2],))
    stack = make_stack([HeadSpec(1, 1e-2, 0, 0)], LAYERS, shape, objective, CPU, 128)
    assert isinstance(stack, FusedStack) == (is_fused and native.best_level() > 0)


def test_without_the_library_heads_are_trained_in_torch(tmp_path, monkeypatch):
    """Nothing else changes."""
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.native")
    native._loaded.cache_clear()
    try:
        shape, objective = HeadShape(768, 256, 10, 3), Classification((10,))
        assert native.best_level() == 0
        stack = make_stack([HeadSpec(1, 1e-2, 0, 0)], LAYERS, shape, objective, CPU, 128)
        assert isinstance(stack, HeadStack)
    finally:
        native._loaded.cache_clear()


@needs_library
@pytest.mark.parametrize("number", [native.INTERFACE + 1, None])
def test_a_library_of_another_version_is_not_used(number, monkeypatch):
    """Its functions may differ; a sweep says how to compile it again. Old ones have no number."""
    assert native.stale_note() == ""
    if number is None:
        monkeypatch.setattr(native, "LIBRARY", OTHER_LIBRARY)
    else:
        monkeypatch.setattr(native, "INTERFACE", number)
    native._loaded.cache_clear()
    try:
        assert native.best_level() == 0
        assert not native.fits(768, 256)
        note = native.stale_note()
        assert note.startswith(f"WARNING: {native.LIBRARY} is of another version of Strata")
        assert note.endswith("compile it again: python scripts/build_native.py")
    finally:
        native._loaded.cache_clear()

"""Layers captured by hooks, and groups of clips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.encoders.captured import CapturedModule, CapturePoint, group_clips, pack_groups
from pipeline.errors import ConfigError, EncoderError


class Block(nn.Module):
    """Adds 1 in place, and counts its calls; `form` is what it returns."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form, self.calls = form, 0

    def forward(self, hidden_states: torch.Tensor) -> object:
        self.calls += 1
        hidden_states += 1
        forms = {"tuple": (hidden_states, None), "mapping": {"last": hidden_states}}
        return forms.get(self.form, hidden_states)


class Model(nn.Module):
    """Three blocks with outputs of different forms, and an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block("tuple"), Block("mapping")])
        self.unused = nn.Identity()

    def forward(self, x: torch.Tensor, again: bool = False) -> torch.Tensor:
        x = self.layers[0](hidden_states=x)
        x, _ = self.layers[1](x)
        if again:
            x, _ = self.layers[1](x)
        return self.layers[2](x)["last"]


def points(*names: str) -> list[CapturePoint]:
    return [CapturePoint(name) for name in names]


def test_outputs_and_inputs_are_captured_as_they_were() -> None:
    """In the order of the points, though each block changes its input in place."""
    chosen = [*points("layers.2", "layers.0", "layers.1"), CapturePoint("layers.0", is_input=True)]
    captured = CapturedModule(Model(), chosen)
    for _ in range(2):
        found = captured(torch.zeros(2, 5, 3))
        assert [layer.unique().tolist() for layer in found] == [[3.0], [1.0], [2.0], [0.0]]
        assert {layer.shape for layer in found} == {(2, 5, 3)}


def test_other_orders_of_axes_are_turned() -> None:
    """`BDT` and `TBD` become `[clips, frames, dim]`."""
    x = torch.arange(30.0).reshape(2, 5, 3)
    [found] = CapturedModule(Model(), [CapturePoint("layers.0", True, "BDT")])(x.clone())
    assert torch.equal(found, x.transpose(1, 2))
    [found] = CapturedModule(Model(), [CapturePoint("layers.0", True, "TBD")])(x.clone())
    assert torch.equal(found, x.transpose(0, 1))
    with pytest.raises(ConfigError, match="axes='DTB' is not one of BTD, BDT, TBD"):
        CapturePoint("layers.0", axes="DTB")


def test_the_forward_pass_stops_after_the_last_point() -> None:
    """From the second call on; the first one looks for modules that are called twice."""
    model = Model()
    captured = CapturedModule(model, points("layers.1", "layers.0"))
    for expected in (1, 1, 1):
        captured(torch.zeros(1, 5, 3))
        assert model.layers[2].calls == expected
    assert model.layers[1].calls == 3


def test_hooks_are_removed() -> None:
    """After a call, also one that failed."""
    model = Model()
    captured = CapturedModule(model, points("layers.1"))
    captured(torch.zeros(1, 5, 3))
    with pytest.raises(TypeError):
        captured()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_module_that_is_not_one_layer_is_refused() -> None:
    """It is called twice, or never, or its output is no `[clips, frames, dim]`."""
    x = torch.zeros(1, 5, 3)
    with pytest.raises(EncoderError, match=r"reaches the output of 'layers\.1' twice"):
        CapturedModule(Model(), points("layers.1"))(x, again=True)
    for name in ("layers", "unused"):
        with pytest.raises(EncoderError, match=f"does not reach the output of '{name}'"):
            CapturedModule(Model(), points(name))(x)
    with pytest.raises(EncoderError, match=r"is torch.float32 \[5, 3\]; expected .* three axes"):
        CapturedModule(Model(), points("layers.0"))(x[0])
    with pytest.raises(EncoderError, match=r"is torch.int64"):
        CapturedModule(Model(), points("layers.0"))(x.long())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    """And without a near one with the children of the module."""
    with pytest.raises(ConfigError, match=r"no submodule 'layer.2'; the nearest are layers\.2"):
        CapturedModule(Model(), points("layer.2"))
    with pytest.raises(ConfigError, match="no submodule 'xyz'; it has layers, unused"):
        CapturedModule(Model(), points("xyz"))
    with pytest.raises(ConfigError, match="no submodules to capture"):
        CapturedModule(Model(), [])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.booleans(), st.floats(0.5, 1.0))
def test_groups_hold_each_clip_once(lengths: list[int], padding: bool, least: float) -> None:
    """Without padding the clips of a group have one length; with it, little is padding."""
    groups = group_clips(lengths, padding=padding, least_filled=least)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[i] for i in group]
        assert padding or len(set(inside)) == 1
        assert sum(inside) >= least * max(inside) * len(inside) * (1 - 1e-9)
    if not padding:
        assert len(groups) == len(set(lengths))


def test_packed_frames_are_in_the_order_of_the_clips() -> None:
    """Each clip has its own frames, without padding."""
    counts = [2, 4, 2, 3]

    def run(group):
        longest = max(counts[i] for i in group)
        return [torch.tensor([[[i + k]] * longest for i in group]) for k in (0.0, 0.5)]

    first, second = pack_groups([[1, 3], [0, 2]], counts, run)
    assert first[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3]
    assert torch.equal(second, first + 0.5)


def test_frames_that_the_geometry_does_not_state_are_refused() -> None:
    """Nothing is cut or filled in silence."""
    with pytest.raises(EncoderError, match="gives 5 frames for 1 clips, and its geometry 4"):
        pack_groups([[0]], [4], lambda group: [torch.zeros(1, 5, 3)])

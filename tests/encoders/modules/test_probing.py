"""What is found out about a module by running it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import pipeline
from pipeline.encoders.modules.building import build_module
from pipeline.encoders.modules.definition import ModuleDefinition
from pipeline.encoders.modules.probing import Probe, probe_module
from pipeline.encoders.modules.references import Reference
from pipeline.errors import ConfigError, EncoderError
from tests.helpers.toy_modules import DIM, LAYERS, Toy

GEOMETRY = pipeline.FrameGeometry(16_000, 320, 400)


def defined(module: nn.Module, **settings) -> ModuleDefinition:
    """A definition of a module."""
    return ModuleDefinition("toy", Reference(module), **({"layers": LAYERS} | settings))


def probed(module: nn.Module, **settings) -> Probe:
    """What is found out about it."""
    definition = defined(module, **settings)
    return probe_module(definition, build_module(definition))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Toy(), GEOMETRY),
        (Toy(padding=40), replace(GEOMETRY, left_padding_samples=40, right_padding_samples=40)),
        (
            Toy(padding=200, hop=160),
            replace(GEOMETRY, hop_samples=160, left_padding_samples=200, right_padding_samples=200),
        ),
    ],
    ids=["no padding", "padding", "centred"],
)
def test_hop_and_receptive_field_are_found(module, expected) -> None:
    """To the sample, with the padding at both ends, if there is no attention."""
    found = probed(module)
    assert (found.geometry, found.field_is_known) == (expected, True)
    assert found.dims == (DIM, DIM, DIM)
    assert found.shortest_samples == expected.n_samples(1)


def test_with_attention_the_field_is_that_of_the_number_of_frames() -> None:
    """Every frame sees the clip, so that nothing but hop and length of a frame can be known."""
    found = probed(Toy(attends=True))
    assert (found.geometry, found.field_is_known) == (GEOMETRY, False)
    centred = probed(Toy(attends=True, padding=200)).geometry
    assert (centred.hop_samples, centred.n_samples(1), centred.centre_samples) == (320, 1, 0)


def test_the_field_of_a_model_that_sees_all_of_the_past_is_not_known() -> None:
    """Its frames change with the first sample of a clip, and with none behind them."""

    class Past(Toy):
        def forward(self, waveforms, lengths=None):
            return super().forward(waveforms + 0.01 * waveforms.cumsum(1), lengths)

    found = probed(Past())
    assert (found.geometry, found.field_is_known) == (GEOMETRY, False)


def test_more_frames_than_hops_are_refused() -> None:
    """Those that see nothing but padding; the message has the numbers."""
    with pytest.raises(
        EncoderError, match=r"54 frames for 16000 .* more than n_samples // 320 \+ 1"
    ):
        probed(Toy(padding=800))


def test_clips_are_padded_only_where_that_changes_nothing() -> None:
    """A module that is told the lengths uses them; without them it sees the padding."""
    lengths = {"lengths_argument": "lengths"}
    assert probed(Toy(attends=True), **lengths).pads
    assert not probed(Toy(attends=True)).pads
    assert probed(Toy(attends=True)).stacks

    class Deaf(Toy):
        """Is told the lengths, and ignores them."""

        def forward(self, waveforms, lengths=None):
            return super().forward(waveforms)

    assert not probed(Deaf(attends=True), **lengths).pads


def test_clips_that_change_each_other_are_found() -> None:
    """A norm over the batch lets clips of one length differ from themselves alone."""

    class Leaky(Toy):
        def forward(self, waveforms, lengths=None):
            return super().forward(waveforms / waveforms.std(), lengths)

    assert not probed(Leaky()).stacks


def test_a_module_that_is_not_deterministic_is_refused() -> None:
    """Dropout that evaluation mode does not end, and a state that is kept."""

    class Noisy(Toy):
        def forward(self, waveforms, lengths=None):
            return super().forward(nn.functional.dropout(waveforms, 0.1), lengths)

    with pytest.raises(EncoderError, match=r"toy is not deterministic: layer blocks\.0 differs by"):
        probed(Noisy())


def test_features_that_are_not_finite_are_refused() -> None:
    """On noise of a usual amplitude, as with weights that were never loaded."""
    module = Toy()
    nn.init.constant_(module.blocks[1].linear.weight, torch.nan)
    with pytest.raises(EncoderError, match=r"layer blocks\.1 has values that are not finite"):
        probed(module)


@pytest.mark.parametrize("drift", [0.0, 1e-7])
def test_a_buffer_that_changes_is_refused(drift) -> None:
    """Also if two runs agree within rounding; a table that grows is no state, nor is a NaN."""

    class Counting(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("table", torch.arange(3.0))
            self.register_buffer("unset", torch.tensor(torch.nan))

        def forward(self, waveforms, lengths=None):
            self.table = torch.arange(len(self.table) + 1.0)
            self.calls += drift
            return super().forward(waveforms * (1 + self.calls), lengths)

    if not drift:
        assert probed(Counting()).geometry == GEOMETRY
        return
    with pytest.raises(EncoderError, match="toy keeps a state between calls: its buffer calls"):
        probed(Counting())


def test_a_module_that_ends_the_program_is_an_error() -> None:
    """A run would end early, with the exit code of success."""

    class Ending(Toy):
        def forward(self, waveforms, lengths=None):
            raise SystemExit(0)

    with pytest.raises(EncoderError, match=r"forward pass on samples \[1, 16000\] failed: Sys"):
        probed(Ending())


def test_layers_of_other_rates_or_axes_are_refused_by_name() -> None:
    """With the numbers that were seen."""

    class Halved(Toy):
        """The last block has half of the frames."""

        def forward(self, waveforms, lengths=None):
            x = self.conv(waveforms[:, None]).transpose(1, 2)
            return self.blocks[2](self.blocks[1](self.blocks[0](x))[:, ::2])

    with pytest.raises(
        EncoderError, match=r"blocks\.0 has 1 × 49, blocks\.1 has 1 × 49, blocks\.2 has 1 × 25"
    ):
        probed(Halved())
    with pytest.raises(EncoderError, match="stated as TBD: state another"):
        probed(Toy(), axes="TBD")


def test_frames_first_are_turned() -> None:
    """`axes="TBD"` is what torch calls `batch_first=False`."""

    class FramesFirst(Toy):
        def forward(self, waveforms, lengths=None):
            x = self.conv(waveforms[:, None]).permute(2, 0, 1)
            return self.blocks[2](self.blocks[1](self.blocks[0](x)))

    assert probed(FramesFirst(), axes="TBD").geometry == GEOMETRY


def test_a_number_of_frames_without_a_simple_form_is_refused() -> None:
    """The message has the numbers, and how to state the geometry; also if it is stated wrongly."""

    class Odd(Toy):
        """Drops a frame of every ninth."""

        def forward(self, waveforms, lengths=None):
            x = self.conv(waveforms[:, None]).transpose(1, 2)
            n = x.shape[1]
            return self.blocks[2](self.blocks[1](self.blocks[0](x[:, : max(1, n - n // 9)])))

    with pytest.raises(EncoderError, match=r"samples give \d+ frames, not \d+.*State the geometry"):
        probed(Odd())
    wrong = replace(GEOMETRY, receptive_field_samples=480)
    with pytest.raises(EncoderError, match="a need of 480 for one frame: 1119 samples give 3 fr"):
        probed(Toy(), geometry=wrong)
    assert probed(Toy(), geometry=GEOMETRY).geometry == GEOMETRY


def test_vectors_of_one_step_are_made_one_frame() -> None:
    """A model of patches is refused with the numbers; `outputs` makes frames of them."""

    class Patches(Toy):
        """Four vectors per frame."""

        def forward(self, waveforms, lengths=None):
            x = self.conv(waveforms[:, None]).transpose(1, 2).repeat_interleave(4, 1)
            return self.blocks[2](self.blocks[1](self.blocks[0](x)))

    with pytest.raises(EncoderError, match=r"4 more at once.*outputs= can make one frame"):
        probed(Patches())
    assert probed(Patches(), outputs=Reference(mean_of_four)).geometry == GEOMETRY
    with pytest.raises(
        EncoderError, match=r"outputs of toy returns \[1, 49\]; expected a floating"
    ):
        probed(Toy(), outputs=Reference(no_layer))
    with pytest.raises(
        EncoderError, match=r"outputs of toy returns \[1, 49, 8\]; expected a float"
    ):
        probed(Toy(), outputs=Reference(whole_numbers))


def mean_of_four(layer):
    return layer.unflatten(1, (-1, 4)).mean(2)


def no_layer(layer):
    return layer[..., 0]


def whole_numbers(layer):
    return layer.long()


def test_a_window_of_fixed_length_is_refused() -> None:
    """Its number of frames does not grow."""

    class Fixed(Toy):
        def forward(self, waveforms, lengths=None):
            padded = nn.functional.pad(waveforms, (0, 64_000 - waveforms.shape[1]))
            return super().forward(padded)

    with pytest.raises(EncoderError, match="199 frames for 16000 samples and 199 for 32000"):
        probed(Fixed())


def test_a_module_that_needs_more_than_a_frame_gets_zeros() -> None:
    """Its shortest clip is found; the frames of shorter clips are those of the padded clip."""

    class Reflecting(Toy):
        """Needs three frames."""

        def forward(self, waveforms, lengths=None):
            if waveforms.shape[1] < 1_500:
                raise RuntimeError("too short")
            return super().forward(waveforms)

    assert probed(Reflecting()).shortest_samples == 1_500
    module = Reflecting()
    pipeline.register_encoder("reflecting", module, layers=LAYERS)
    encoder = pipeline.load_encoder("reflecting", device="cpu")
    clip = torch.randn(900)
    [found] = encoder([clip])
    with torch.no_grad():
        whole = module(nn.functional.pad(clip, (0, 600))[None])
    assert found.shape == (3, 2, DIM)
    assert torch.allclose(found[2], whole[0, :2], atol=1e-6)


def test_errors_of_the_module_are_one_line_with_its_own_text() -> None:
    """And say what the module is given."""

    class Wrong(Toy):
        def forward(self, waveforms, lengths=None):
            return super().forward(waveforms[:, None])

    expected = "on a clip of 16000 samples failed: RuntimeError: .* The module gets waveforms"
    with pytest.raises(EncoderError, match=expected):
        probed(Wrong())
    with pytest.raises(ConfigError, match=r"no submodule 'block\.0'; the nearest are blocks\.0"):
        probed(Toy(), layers=("block.0",))


def test_inputs_make_the_arguments() -> None:
    """As a tensor, a tuple or a mapping; they may use the lengths, so padding is tried."""
    found = [
        probed(Toy(attends=True), inputs=Reference(make))
        for make in (as_tensor, as_tuple, as_mapping)
    ]
    assert [probe.geometry for probe in found] == [GEOMETRY] * 3
    assert [probe.pads for probe in found] == [False, True, True]


def as_tensor(waveforms, lengths):
    return waveforms


def as_tuple(waveforms, lengths):
    return waveforms, lengths


def as_mapping(waveforms, lengths):
    return {"waveforms": waveforms, "lengths": lengths}

"""The conformance checks fail where an encoder breaks its contract, and the plugin runs them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription
from pipeline.encoders.windows import Windowing
from pipeline.errors import ConfigError
from pipeline.testing import checks
from pipeline.testing.checks import ENCODER_CHECKS, FAMILY_CHECKS, EncoderCase, FamilyCase
from pipeline.testing.loading import load_case
from tests.helpers.fake_encoders import NARROW, FakeEncoder, FakeFamily

TOYS = "tests.helpers.toy_modules"


class Encoder(FakeEncoder):
    """A fake encoder with one fault, or none."""

    fault = ""

    def encode_batch(self, waveforms, *, stats=None, precision=None):
        layers = super().encode_batch(waveforms, stats=stats, precision=precision)
        shared = None
        for i, layer in enumerate(layers):
            if self.fault == "frame":
                layer = layer[:-1]
            if self.fault == "mates":
                layer = layer + 0.01 * len(waveforms)
            if self.fault == "precision" and precision is not None:
                layer = layer + 1
            if self.fault == "changed":
                shared = layer if shared is None else shared.add_(1)
                layer = shared
            if self.fault == "statistics" and stats is not None and stats[0] is not None:
                layer = layer + stats[0]
            if self.fault == "layer" and i:
                return
            yield layer

    def utterance_stats(self, utterance):
        """The length, or with the fault of statistics another one of a stream."""
        found = super().utterance_stats(utterance)
        is_stream = not isinstance(utterance, torch.Tensor)
        return found + is_stream if self.fault == "statistics" else found


class Short(Windowing):
    """Windows without the last one."""

    def plan(self, n_samples):
        return super().plan(n_samples)[:-1]


class Family(FakeFamily):
    """Makes encoders with a fault."""

    fault = ""

    def load(self, model, settings):
        encoder = Encoder(self.describe(model), settings)
        encoder.fault = self.fault
        if self.fault == "identity":
            encoder.identity["device"] = "cpu"
        if self.fault == "random":
            encoder.is_random = True
        if self.fault == "names":
            encoder.layer_names = encoder.layer_names[:-1]
        if self.fault == "clock":
            encoder.encode_batch = super().load(model, settings).encode_batch
        if self.fault == "windows":
            encoder.windows = Short(encoder.geometry, **checks.WINDOWS)
        if self.fault == "dim":
            encoder.dim += 1
        return encoder

    def __reduce__(self):
        """With the fault of pickling, another family arrives."""
        description = self.description
        if self.fault == "pickle":
            description = replace(description, max_window_s=description.max_window_s)
            return _other, (description,)
        return _same, (description, self.fault)


def _same(description: EncoderDescription, fault: str) -> Family:
    family = Family(description)
    object.__setattr__(family, "fault", fault)
    return family


def _other(description: EncoderDescription) -> Family:
    return _same(description, "identity")


def family_case(fault: str) -> FamilyCase:
    return FamilyCase(_same(NARROW, fault), ModelConfig("narrow-band"))


def test_a_faultless_encoder_passes() -> None:
    """Every check."""
    family = family_case("")
    case = EncoderCase(family.loader()())
    for check in ENCODER_CHECKS:
        check(case)
    for check in FAMILY_CHECKS:
        check(family)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("frame", checks.frame_counts_are_those_of_the_geometry, "the geometry and dim say"),
        ("layer", checks.frame_counts_are_those_of_the_geometry, "gives 1 layers, and `layers`"),
        ("dim", checks.frame_counts_are_those_of_the_geometry, "the geometry and dim say"),
        ("changed", checks.a_layer_stays_as_it_is_while_the_next_ones_are_computed, "was changed"),
        ("mates", checks.batch_mates_change_nothing, "a clip in a batch and alone differ by"),
        ("windows", checks.windows_cover_an_utterance_exactly, "the windows end at frame"),
        ("statistics", checks.a_window_needs_only_its_samples_and_the_statistics, "is another"),
        ("mates", checks.windows_may_share_a_batch, "with windows and alone differ by"),
        ("precision", checks.precision_can_be_fp32, "a rerun in fp32 gives other features"),
        ("identity", checks.attributes_describe_the_encoder, "the identity has a device"),
        ("random", checks.attributes_describe_the_encoder, "is_random is not that of 'made'"),
        ("names", checks.attributes_describe_the_encoder, "are not"),
        ("clock", checks.the_clock_is_entered_around_each_part, "the clock is entered for"),
    ],
)
def test_a_fault_is_found(fault, check, message) -> None:
    """By the check that is about it, in words."""
    case = EncoderCase(family_case(fault).loader()())
    with pytest.raises(AssertionError, match=message):
        check(case)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("pickle", checks.loaders_pickle, "a second process has another identity"),
        ("dim", checks.descriptions_match_the_encoder, "dim is"),
    ],
)
def test_a_fault_of_a_family_is_found(fault, check, message) -> None:
    """Workers would have another encoder, or the plan another size."""
    with pytest.raises(AssertionError, match=message):
        check(family_case(fault))


def make_encoder() -> FakeEncoder:
    """A function of a family of one's own."""
    encoder: FakeEncoder = family_case("").loader()()
    return encoder


def test_definitions_factories_and_functions_are_loaded() -> None:
    """Those that are neither are refused."""
    assert load_case(f"{TOYS}:DEFINITION", None).encoder.encoder.name == "toy"
    made = load_case(f"{TOYS}:make", ["blocks.1"])
    assert made.family is not None
    assert made.encoder.encoder.layer_names == ("blocks.1",)
    own = load_case("tests.testing.test_checks:make_encoder", None)
    assert (own.encoder.encoder.name, own.family) == ("narrow-band", None)
    with pytest.raises(ConfigError, match="make returns Toy; expected an Encoder, or a torch modu"):
        load_case(f"{TOYS}:make", None)


def test_the_plugin_collects_the_suite_and_nothing_else(
    tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing check is a failing test with its words; a family of one's own has no family."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "test_own.py").write_text("def test_own(): assert False\n")
    (tmp_path / "faulty_encoder.py").write_text(
        "from tests.testing.test_checks import EncoderCase, family_case\n"
        "def make(): return family_case('random').loader()()\n"
    )
    options = ["-p", "pipeline.testing.encoders", "--encoder", "faulty_encoder:make"]
    code = pytest.main([*options, "-q", "-p", "no:cacheprovider"])
    printed = capsys.readouterr().out
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 8 passed, 2 skipped" in printed
    assert "is_random is not that of 'made'" in printed
    assert "test_own" not in printed
    assert os.fspath(tmp_path) in sys.path


def test_an_encoder_that_cannot_be_loaded_is_one_line(
    tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt name, or code that fails, stops the plugin before its tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken_encoder.py").write_text("def make(): pass\nraise ValueError('no GPU')\n")
    (tmp_path / "failing_encoder.py").write_text("def make(): raise RuntimeError('no weights')\n")
    for target, message in {
        f"{TOYS}:maker": "has no 'maker'; did you mean make",
        "failing_encoder:make": "failing_encoder:make() failed: RuntimeError: no weights",
        "broken_encoder:make": "importing broken_encoder failed: ValueError: no GPU",
    }.items():
        options = ["-p", "pipeline.testing.encoders", "--encoder", target]
        code = pytest.main([*options, "-q", "-p", "no:cacheprovider"])
        printed = capsys.readouterr()
        assert code == pytest.ExitCode.USAGE_ERROR
        assert printed.err.count(message) == 1
        assert message not in printed.out
        assert "model.target" not in printed.err

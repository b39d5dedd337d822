"""Every encoder and family passes the conformance suite, `pipeline/testing/checks.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from pipeline.config import ModelConfig
from pipeline.encoders import registry
from pipeline.encoders.registry import find_family, register_family
from pipeline.errors import ConfigError
from pipeline.testing.checks import (
    ENCODER_CHECKS,
    FAMILY_CHECKS,
    WINDOWS,
    EncoderCase,
    FamilyCase,
)
from tests.helpers.encoder_kinds import VARIANTS, small_encoder
from tests.helpers.fake_encoders import FIXED_WINDOW, NARROW, FakeFamily

FAMILIES = {
    "tiny": FamilyCase(find_family("torchaudio"), ModelConfig("tiny", weights="random")),
    "narrow-band": FamilyCase(FakeFamily(NARROW), ModelConfig("narrow-band")),
    "fixed-window": FamilyCase(FakeFamily(FIXED_WINDOW), ModelConfig("fixed-window")),
}
SMALL = ("wavlm_base", "wavlm_large", "hubert_large", *VARIANTS)
"""Small encoders of the kinds that differ in their blocks."""


@cache
def case(name: str) -> EncoderCase:
    """Load the encoder of a family, or a small one."""
    if name in FAMILIES:
        return EncoderCase(FAMILIES[name].loader()())
    return EncoderCase(small_encoder(name, **WINDOWS))


@pytest.mark.parametrize("name", [*FAMILIES, *SMALL])
@pytest.mark.parametrize("check", ENCODER_CHECKS, ids=lambda check: check.__name__)
def test_the_encoder_keeps_its_contract(check: Callable[[EncoderCase], None], name: str) -> None:
    """What the name of the check says; see its docstring."""
    check(case(name))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("check", FAMILY_CHECKS, ids=lambda check: check.__name__)
def test_the_family_keeps_its_contract(check: Callable[[FamilyCase], None], name: str) -> None:
    """Workers load the same encoder, and planning knows it without weights."""
    check(FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_models_are_refused(name: str) -> None:
    """By each family, before anything is loaded."""
    with pytest.raises(ConfigError, match="no model is called 'nothing_such'"):
        FAMILIES[name].family.describe(ModelConfig("nothing_such"))


def test_families_are_found_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered families are found; the error for an unknown source names the known ones."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    known = "torchaudio, huggingface, checkpoint or module"
    with pytest.raises(ConfigError, match=f"'mine'; expected {known}"):
        find_family("mine")
    family = FakeFamily(NARROW)
    register_family("mine", family)
    assert find_family("mine") is family

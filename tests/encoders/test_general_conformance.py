"""Encoders of the general path pass the conformance suite, `pipeline/testing/checks.py`."""

from __future__ import annotations

from functools import cache

import pytest

from pipeline.config import ModelConfig
from pipeline.encoders.registry import find_family
from pipeline.testing.checks import ENCODER_CHECKS, FAMILY_CHECKS, EncoderCase, FamilyCase

pytest.importorskip("transformers")

from tests.helpers.general_checkpoints import save_settings

NAMES = ("whisper", "wav2vec2-bert", "moonshine", "parakeet_ctc")
"""A fixed window, stacked frames with statistics of the utterance, no padding, and a padded end."""


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Return a function that makes the case of a family once, with random weights."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        save_settings(name, folder)
        model = ModelConfig(str(folder), source="huggingface", weights="random")
        family = FamilyCase(find_family("huggingface"), model)
        return family, EncoderCase(family.loader()(), tolerance=2e-5)

    return make


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", ENCODER_CHECKS, ids=lambda check: check.__name__)
def test_the_encoder_keeps_its_contract(families, check, name):
    """What the name of the check says; see its docstring."""
    check(families(name)[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", FAMILY_CHECKS, ids=lambda check: check.__name__)
def test_the_family_keeps_its_contract(families, check, name):
    """Workers load the same encoder, and planning knows it without weights."""
    check(families(name)[0])

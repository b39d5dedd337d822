"""The conformance suite, collected by `pytest -p pipeline.testing.encoders --encoder …`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.testing.checks import ENCODER_CHECKS, FAMILY_CHECKS, EncoderCase, FamilyCase
from pipeline.testing.loading import LoadedCase


@pytest.mark.parametrize("check", ENCODER_CHECKS, ids=lambda check: check.__name__)
def test_encoder(check: Callable[[EncoderCase], None], strata_encoder: LoadedCase) -> None:
    """The encoder keeps its contract."""
    check(strata_encoder.encoder)


@pytest.mark.parametrize("check", FAMILY_CHECKS, ids=lambda check: check.__name__)
def test_family(check: Callable[[FamilyCase], None], strata_encoder: LoadedCase) -> None:
    """Workers load the same encoder, and planning knows it."""
    if strata_encoder.family is None:
        pytest.skip("a function has made the encoder: it has no family")
    check(strata_encoder.family)

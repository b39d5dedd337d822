"""Registrations that end with the test."""

from __future__ import annotations

import pytest

from pipeline.config import models
from pipeline.encoders.modules import registration


@pytest.fixture(autouse=True)
def registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers or allows is forgotten after it."""
    monkeypatch.setattr(registration, "_REGISTERED", dict(registration._REGISTERED))
    monkeypatch.setattr(registration, "_ALLOWED", {})
    monkeypatch.setattr(models, "_REGISTERED", dict(models._REGISTERED))

"""`load_encoder` finds the kind of checkpoint that a name stands for."""

from __future__ import annotations

import pytest

from pipeline.config import models
from pipeline.encoders import loading
from pipeline.encoders.loading import load_encoder
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hubert_base", "torchaudio"),
        ("hubert_bse", "torchaudio"),  # whose error names the nearest one
        ("facebook/hubert-base-ls960", "huggingface"),
        ("folder", "huggingface"),
        ("models/hubert.pt", "checkpoint"),
        ("models/hubert.ckpt", "checkpoint"),
        ("mine", "module"),
    ],
)
def test_a_name_has_a_kind(name, source, tmp_path, monkeypatch):
    """A short name, an id of the hub, a directory, a file, and a registered encoder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setitem(models._REGISTERED, "mine", {})
    asked = []

    def stop(model):
        asked.append(model.source)
        raise ConfigError("enough")

    monkeypatch.setattr(loading, "pin_model", stop)
    for given in ({}, {"source": "huggingface"}):
        with pytest.raises(ConfigError, match="enough"):
            load_encoder(name, **given)
    assert asked == [source, "huggingface"]

"""A run with an original checkpoint, from the plan to a prediction's settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

import pipeline
from pipeline.config import load_config
from pipeline.encoders.selfcheck import relative_errors
from pipeline.errors import WeightsError
from pipeline.extract import run
from pipeline.predict.encoding import _model_settings
from pipeline.probing.encoder_description import model_settings
from pipeline.store.documents import read_attributes
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE
from tests.helpers.observers import Notes
from tests.helpers.original_checkpoints import fairseq_names, small_model
from tests.helpers.original_checkpoints import model_settings as settings_of

pytest.importorskip("transformers")


def test_a_run_with_an_original_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are the encoder's; the path is recorded as an absolute one, and is no identity.

    The file does not state the normalisation of waveforms; the run notes it. Predictions take the
    recorded place, and a moved file resumes.
    """
    write_folder(tmp_path / "clips", [0.3, 0.5])
    monkeypatch.chdir(tmp_path)
    model = small_model("HubertModel")
    content = {"cfg": {"model": settings_of(model), "task": {}}, "model": fairseq_names(model)}
    torch.save(content, "hubert.pt", _use_new_zipfile_serialization=False)
    words = ["dataset=audiofolder", f"dataset.path={tmp_path / 'clips'}", *INLINE, "store=store"]
    words += ["extract.dtype=float32", "model=checkpoint"]
    config = load_config([*words, "model.name=hubert.pt"])
    assert run.plan(config).utterances == 2
    notes = Notes()
    assert run.extract(config, notes).utterances_ok == 2
    assert any("does not state whether waveforms are normalised" in text for text in notes.lines)

    store = pipeline.open_store("store")
    encoder = pipeline.load_encoder("hubert.pt", source="checkpoint", device="cpu")
    for i, name in enumerate(["clip-000", "clip-001"]):
        samples, _ = soundfile.read(tmp_path / "clips" / f"{name}.wav", dtype="float32")
        [expected] = encoder([torch.from_numpy(samples)])
        assert relative_errors(store.read(i), expected).max() <= 1e-5
    attributes = read_attributes(store._root)
    recorded = model_settings(attributes)
    assert (recorded["source"], recorded["name"]) == ("checkpoint", str(tmp_path / "hubert.pt"))
    assert str(tmp_path) not in str(attributes["identity"]["encoder"])

    facts: Any = SimpleNamespace(model=recorded, identity=attributes["identity"], weights="file")
    again = load_config(_model_settings(facts, [])).model
    assert (again.source, again.name) == ("checkpoint", str(tmp_path / "hubert.pt"))

    shutil.move("hubert.pt", "elsewhere.pt")
    moved = load_config([*words, "model.name=elsewhere.pt"])
    assert run.extract(moved, Notes()).utterances_ok == 2
    Path("elsewhere.pt").write_bytes(b"\x80\x02.")
    with pytest.raises(WeightsError, match=r"cannot read the weights at .*elsewhere"):
        run.plan(moved)

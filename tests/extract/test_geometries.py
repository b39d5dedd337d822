"""Encoders with other rates, hops and windows run through every verb."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.config import Config, load_config, load_sweep_config
from pipeline.encoders import registry
from pipeline.encoders.base import EncoderDescription
from pipeline.errors import ConfigError, IdentityError
from pipeline.extract import run
from pipeline.probing.run import sweep
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from tests.helpers.fake_encoders import (
    DIM,
    FIXED_WINDOW,
    NARROW,
    FakeFamily,
    expected,
    write_spelled,
)

FRAMES_PER_UNIT = 2048
LONG_S = 75.0
"""Length of one recording: longer than a unit and than a window of either encoder."""
N_CLIPS = 48


@pytest.fixture(params=[NARROW, FIXED_WINDOW], ids=lambda description: description.name)
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EncoderDescription:
    """An encoder that Strata does not know, registered for this test."""
    description: EncoderDescription = request.param
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    registry.register_family("fake", FakeFamily(description))
    return description


def configured(encoder: EncoderDescription, folder: Path, store: Path | None, *more: str) -> Config:
    return load_config(
        [
            f"dataset.path={folder}",
            "model=hf",
            "model.source=fake",
            f"model.name={encoder.name}",
            f"store={store or 'null'}",
            "engine=inline",
            "engine.threads=1",
            f"plan.frames_per_unit={FRAMES_PER_UNIT}",
            *more,
        ]
    )


def test_every_verb_uses_the_encoders_geometry(encoder: EncoderDescription, tmp_path: Path) -> None:
    """Plan, extract, read, status, verify, collapse and sweep agree; every frame is in its place.

    Lengths are below, at and above one frame and the longest window. One recording is longer than a
    unit, so it is decoded block by block and stored in pieces.
    """
    geometry, rate_hz = encoder.geometry, encoder.geometry.sample_rate_hz
    one, longest = geometry.n_samples(1), round(encoder.max_window_s * rate_hz)
    lengths = [1, one - 1, one, one + 1, longest, longest + geometry.hop_samples]
    lengths += [round(LONG_S * rate_hz)]
    lengths += [rate_hz // 4 + 531 * i for i in range(N_CLIPS - len(lengths))]
    files = write_spelled(tmp_path / "clips", lengths, geometry)
    n_frames = sum(geometry.n_frames(n_samples) for n_samples in lengths)
    config = configured(encoder, tmp_path / "clips", tmp_path / "store")

    planned = run.plan(config)
    assert (planned.utterances, planned.frames) == (N_CLIPS, n_frames)
    assert planned.hours == pytest.approx(sum(lengths) / rate_hz / 3600)

    status = run.extract(config)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert status.units_committed == planned.units
    assert status.audio_seconds == pytest.approx(sum(lengths) / rate_hz, abs=1e-3)
    assert read_status(tmp_path / "store").audio_seconds == status.audio_seconds

    store = pipeline.open_store(tmp_path / "store")
    assert store.frame_rate_hz == geometry.frame_rate_hz
    assert store.geometry == geometry
    assert store.attributes["sample_rate_hz"] == rate_hz
    n_checked = 3 if encoder.window_limit_s is None else 2  # each of which costs a whole window
    assert store.attributes["selfcheck"]["n_waveforms"] == n_checked
    for name, (tag, n_samples) in files.items():
        found, spelled = store.read(name).float(), expected(tag, n_samples, (1, 2, 3), geometry)
        assert torch.equal(found, spelled), name
    assert store.record("clip-000.wav")["flags"] == store.record("clip-001.wav")["flags"]
    assert "padded" in store.record("clip-000.wav")["flags"]
    assert store.record("clip-002.wav")["flags"] == store.record("clip-004.wav")["flags"] == []
    assert store.record("clip-005.wav")["flags"] == ["windowed"]
    assert store.record("clip-006.wav")["n_pieces"] > 1
    assert verify_store(tmp_path / "store").ok

    pipeline.collapse(tmp_path / "store", tmp_path / "sum", [0.0, 0.5, 0.5])
    collapsed = pipeline.open_store(tmp_path / "sum")
    assert collapsed.geometry == geometry
    assert read_status(tmp_path / "sum").audio_seconds == status.audio_seconds
    tag, n_samples = files["clip-006.wav"]
    mean = expected(tag, n_samples, (2, 3), geometry).mean(0, keepdim=True)
    assert torch.equal(collapsed.read("clip-006.wav").float(), mean.half().float())

    quick = ["task.lrs=[1e-1]", "seeds=[0]", "task.steps=80", "task.eval_every=20"]
    sweep_config = load_sweep_config(["task=ks", "split.speaker=speaker", *quick])
    swept, _ = sweep(tmp_path / "store", replace(sweep_config, out=str(tmp_path / "out")))
    assert [score.layer for score in swept.scores][:3] == [1, 2, 3]
    assert swept.n_train + swept.n_dev + swept.n_test == N_CLIPS
    assert store.pooled().shape == (N_CLIPS, 3, DIM)


def test_a_second_run_resumes_and_other_settings_are_refused(
    encoder: EncoderDescription, tmp_path: Path
) -> None:
    """A second run finds everything committed; another context is another identity."""
    rate_hz = encoder.geometry.sample_rate_hz
    write_spelled(tmp_path / "clips", [rate_hz, 2 * rate_hz], encoder.geometry)
    config = configured(encoder, tmp_path / "clips", tmp_path / "store")
    first, again = run.extract(config), run.extract(config)
    assert first.utterances_ok == again.utterances_ok == 2
    other = configured(encoder, tmp_path / "clips", tmp_path / "store", "extract.context_s=0.5")
    for verb in (run.plan, run.extract):
        with pytest.raises(IdentityError, match="context_s"):
            verb(other)


def test_a_window_that_the_model_cannot_encode_is_refused(
    encoder: EncoderDescription, tmp_path: Path
) -> None:
    """A fixed window limits `max_window_s`; other encoders have no limit."""
    rate_hz = encoder.geometry.sample_rate_hz
    write_spelled(tmp_path / "clips", [rate_hz], encoder.geometry)
    config = configured(encoder, tmp_path / "clips", None, "extract.max_window_s=31")
    if encoder.window_limit_s is None:
        assert run.plan(config).utterances == 1
    else:
        with pytest.raises(ConfigError, match="max_window_s is 31; expected at most 30"):
            run.plan(config)

"""Extractions with encoders of the general path: windows of long recordings, random weights."""

from __future__ import annotations

import pytest
import soundfile
import torch

import pipeline
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from pipeline.store.maintain.verify import verify_store
from tests.helpers.encoder_kinds import speech
from tests.helpers.extraction import INLINE, extract

pytest.importorskip("transformers")

from tests.helpers.general_checkpoints import save_settings


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert", "parakeet_ctc"])
def test_stored_features_are_those_of_the_encoder(tmp_path, name):
    """Short clips, and a recording of several windows and units, decoded block by block."""
    audio, store = tmp_path / "audio", tmp_path / "store"
    audio.mkdir()
    clips = {"a.wav": 9_000, "b.wav": 9_000, "c.wav": 3_333, "long.wav": 200_017}
    waveforms = {}
    for seed, (file, n_samples) in enumerate(clips.items()):
        samples = (speech(n_samples, seed) * 32_000).clamp(-32_768, 32_767).to(torch.int16)
        soundfile.write(audio / file, samples.numpy(), 16_000)
        waveforms[file] = samples.float() / 32_768
    save_settings(name, tmp_path / "model")
    settings = {"max_window_s": 4, "context_s": 0.5}
    status = extract(
        audio,
        store,
        "model=hf",
        f"model.name={tmp_path / 'model'}",
        "model.weights=random",
        "plan.frames_per_unit=128",
        "extract.max_window_s=4",
        "extract.context_s=0.5",
        "extract.dtype=float32",
        *INLINE,
    )
    assert status.utterances_ok == len(clips)
    encoder = load_encoder(
        tmp_path / "model", "random", source="huggingface", device="cpu", **settings
    )
    opened = pipeline.open_store(store)
    assert opened.layers == encoder.layers
    for file, waveform in waveforms.items():
        stored = opened.read(file)
        [expected] = encoder([waveform])
        assert stored.shape == expected.shape
        assert relative_errors(stored, expected).max() <= 2e-5
    assert len(encoder.plan_windows(clips["long.wav"])) > 3
    assert verify_store(store).ok

"""Extractions with encoders of the general path: windows of long recordings, random weights."""

from __future__ import annotations

import pytest
import soundfile
import torch

import pipeline
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.store.maintain.verify import verify_store
from tests.helpers.encoder_kinds import speech
from tests.helpers.extraction import INLINE, configured, extract

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


class _Notes(Observer):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("name", "n_windows"), [("whisper", 12), ("wav2vec2-bert", None)])
def test_plan_and_run_say_what_whole_windows_cost(tmp_path, name, n_windows):
    """Eight clips take a window of 4 s each; a recording of 12 s, in two pieces, takes four."""
    audio, store = tmp_path / "audio", tmp_path / "store"
    audio.mkdir()
    for i in range(8):
        soundfile.write(audio / f"{i}.wav", speech(3_333, i).numpy(), 16_000)
    soundfile.write(audio / "long.wav", speech(192_000, 9).numpy(), 16_000)
    (audio / "broken.wav").write_bytes(b"RIFF")
    save_settings(name, tmp_path / "model")
    config = configured(
        audio,
        store,
        "model=hf",
        f"model.name={tmp_path / 'model'}",
        "model.weights=random",
        "plan.frames_per_unit=512",
        "extract.max_window_s=4",
        "extract.context_s=0.3",
        *INLINE,
    )
    found = run.plan(config)
    assert found.windows == n_windows
    notes, again = _Notes(), _Notes()
    run.extract(config, notes)
    lines = [line for line in notes.lines if "whole window" in line]
    if n_windows is None:
        assert found.encoded_hours is None
        assert not lines
        return
    assert found.window_s == 4
    assert found.encoded_hours == pytest.approx(n_windows * 4 / 3600)
    assert lines == [
        "each utterance is padded to whole windows of 4 s: 12 windows, 0.013 h of encoding "
        "for 0.0038 h of audio"
    ]
    run.extract(config, again)
    assert not any("whole window" in line for line in again.lines)  # all is committed

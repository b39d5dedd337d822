"""Extraction of audio that is cut, silent or at an unusual rate: flags, counts and identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline.audio.identity import AUDIO_IDENTITY, SOXR_KEY
from pipeline.extract import run
from pipeline.store.documents import read_attributes
from pipeline.store.format.plan import Plan
from tests.helpers.audio_files import speechlike, write
from tests.helpers.corpus import voice, write_folder
from tests.helpers.extraction import INLINE, configured, extract


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "clips", [1.0] * 3, metadata=False)


def test_flags_reach_the_index_and_the_summary(folder: Path, tmp_path: Path) -> None:
    """A half, a silent and a self-cancelling file are stored with flags, a pipe is quarantined."""
    whole = write(folder / "half.wav", speechlike(32_000)).read_bytes()
    (folder / "half.wav").write_bytes(whole[: len(whole) // 2])
    write(folder / "silent.flac", np.zeros(16_000, np.float32))
    sound = speechlike(16_000)
    write(folder / "wired.flac", np.stack([sound, -sound], axis=1))
    os.mkfifo(folder / "pipe.wav")
    status = extract(folder, tmp_path / "s", *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (6, 1)
    assert status.flags == {"truncated": 1, "silent": 1, "cancelled": 1}
    assert list(status.reasons) == ["it is not a regular file, but a named pipe"]
    store = pipeline.open_store(tmp_path / "s")
    for name, flag in (("half.wav", "truncated"), ("silent.flac", "silent")):
        assert store.record(name)["flags"] == [flag]
    assert store.n_frames("half.wav") == 49


def test_pieces_carry_the_flags_of_their_recording(folder: Path, tmp_path: Path) -> None:
    """A recording that is cut into pieces and ends early is counted once."""
    raw = write(folder / "long.wav", voice(30.0, 0)).read_bytes()
    (folder / "long.wav").write_bytes(raw[: len(raw) * 2 // 3])
    status = extract(
        folder, tmp_path / "s", *INLINE, "extract.max_window_s=4", "extract.context_s=0.5"
    )
    assert status.flags == {"windowed": 1, "truncated": 1}
    assert status.utterances_quarantined == 0
    assert (
        pipeline.open_store(tmp_path / "s").n_frames("long.wav") == (20 * 16_000 - 400) // 320 + 1
    )


def test_soxr_is_in_the_identity_of_stores_that_use_it(folder: Path, tmp_path: Path) -> None:
    """A store without unusual rates has the identity of earlier versions, and can grow by them."""
    extract(folder, tmp_path / "usual", *INLINE)
    assert read_attributes(tmp_path / "usual")["identity"]["audio"] == AUDIO_IDENTITY
    write(folder / "x.wav", speechlike(24_414), 24_414)
    for name in ("usual", "unusual"):
        status = extract(folder, tmp_path / name, *INLINE)
        assert (status.utterances_ok, status.utterances_quarantined) == (4, 0)
        extract(folder, tmp_path / name, *INLINE)
        assert pipeline.open_store(tmp_path / name).n_frames("x.wav") == 49
    assert SOXR_KEY in read_attributes(tmp_path / "unusual")["identity"]["audio"]


def test_plan_names_what_it_cannot_read(folder: Path, tmp_path: Path) -> None:
    """The estimate groups the reasons; files with an absurd length add no audio."""
    write(folder / "slow.wav", speechlike(1000), 1)
    os.mkfifo(folder / "pipe.wav")
    estimate = run.plan(configured(folder, tmp_path / "s", *INLINE))
    assert (estimate.utterances, estimate.unreadable) == (5, 2)
    assert estimate.hours == pytest.approx(3 / 3600)
    assert {group.ids for group in estimate.reasons} == {("slow.wav",), ("pipe.wav",)}


def test_a_file_that_changes_after_it_was_planned_is_not_stored_under_that_plan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sound, of the same or another length, is quarantined; on request it is planned anew."""
    plan = run.plan_source
    same, longer, kept = sorted(path.name for path in folder.glob("*.wav"))

    def plan_then_replace(*args: Any, **more: Any) -> Plan:
        made = plan(*args, **more)
        write(folder / same, voice(1.0, 7))
        write(folder / longer, voice(1.5, 8))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(run, "plan_source", plan_then_replace)
        status = extract(folder, tmp_path / "s", *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (1, 2)
    assert "has changed since it was planned" in next(iter(status.reasons))
    assert pipeline.open_store(tmp_path / "s").ids == [kept]
    status = extract(folder, tmp_path / "s", *INLINE, "retry_quarantined=true")
    assert (status.utterances_ok, status.utterances_quarantined) == (3, 0)
    extract(folder, tmp_path / "fresh", *INLINE)
    store, fresh = (pipeline.open_store(tmp_path / name) for name in ("s", "fresh"))
    for name in (same, longer, kept):
        assert torch.equal(store.read(name), fresh.read(name))

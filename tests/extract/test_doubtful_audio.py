"""Extraction of audio that is cut, silent or at an unusual rate: flags, counts and identity."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.audio.identity import AUDIO_IDENTITY, SOXR_KEY
from pipeline.extract import run
from pipeline.store.documents import read_attributes
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

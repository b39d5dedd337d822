"""Extraction of audio that is cut, silent or at an unusual rate: flags, counts and identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline.audio.identity import AUDIO_IDENTITY
from pipeline.audio.shared import SharedFiles
from pipeline.extract import run
from pipeline.extract.planning import obtain
from pipeline.extract.stages.recording import _Recording
from pipeline.sources.base import Segment
from pipeline.store.documents import read_attributes
from pipeline.store.format.identity import SOXR_KEY
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
    plan = obtain.plan_source
    same, longer, kept = sorted(path.name for path in folder.glob("*.wav"))

    def plan_then_replace(*args: Any, **more: Any) -> Plan:
        made = plan(*args, **more)
        write(folder / same, voice(1.0, 7))
        write(folder / longer, voice(1.5, 8))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(obtain, "plan_source", plan_then_replace)
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


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_file_that_is_another_one_while_it_is_decoded_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    """Although it is the planned one before and after that; a retry stores the planned one."""
    seconds = 20.0 if is_cut else 1.0
    folder = write_folder(tmp_path / "clips", [seconds, 1.0], metadata=False)
    replaced = min(folder.glob("*.wav"))
    planned = replaced.read_bytes()
    other = write(tmp_path / "other.wav", voice(seconds, 7)).read_bytes()
    place, name = (_Recording, "_read") if is_cut else (SharedFiles, "decode")
    decode = getattr(place, name)

    def decode_other(self: Any, segment: Segment, *more: Any) -> Any:
        if segment.id != replaced.name:
            return decode(self, segment, *more)
        put(replaced, other)
        found = decode(self, segment, *more)
        put(replaced, planned)
        return found

    short = ["extract.max_window_s=4", "extract.context_s=0.5", "plan.frames_per_unit=256"]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, decode_other)
        status = extract(folder, tmp_path / "s", *INLINE, *short)
    assert (status.utterances_ok, status.utterances_quarantined) == (1, 1)
    assert "changed" in next(iter(status.reasons))
    extract(folder, tmp_path / "s", *INLINE, *short, "retry_quarantined=true")
    extract(folder, tmp_path / "fresh", *INLINE, *short)
    store, fresh = (pipeline.open_store(tmp_path / made) for made in ("s", "fresh"))
    assert torch.equal(store.read(replaced.name), fresh.read(replaced.name))


def put(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)

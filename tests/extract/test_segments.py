"""Segments of recordings, from every kind of list, against the same samples cut by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.audio.probe import fingerprint, probe, read_facts
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.extract import run
from pipeline.extract.planning import scan as scanning
from pipeline.sources.opening import open_source
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import voice
from tests.helpers.extraction import INLINE, configured

RATE_HZ = 16_000
SEGMENTS = [(0.0, 1.0), (0.5, 2.0), (2.01, 2.51), (2.01, 4.0), (7.25, 9.0), (6.0, 7.0), (9.5, 10.0)]
LISTS = ["nemo", "kaldi", "lhotse", "table"]


def first_and_last(name: str, start: float, stop: float) -> tuple[int, int]:
    """Round as the toolkit does, in other words than the code."""
    if name == "kaldi":
        return int(np.trunc(start * RATE_HZ)), int(np.trunc(stop * RATE_HZ))
    if name == "nemo":
        first = int(np.trunc(start * RATE_HZ))
        return first, first + int(np.trunc(round(stop - start, 2) * RATE_HZ))
    return round(start * RATE_HZ), round(stop * RATE_HZ)


def write_list(name: str, folder: Path, recordings: list[str]) -> list[str]:
    """Write the segments of all recordings as a list; return the settings that read it."""
    rows = [
        (f"{stem}-{i}", f"{stem}.flac", start, round(stop - start, 2), stop)
        for stem in recordings
        for i, (start, stop) in enumerate(SEGMENTS)
    ]
    if name == "kaldi":
        (folder / "wav.scp").write_text("".join(f"{s} {folder / s}.flac\n" for s in recordings))
        lines = (
            f"{utt} {path.removesuffix('.flac')} {start} {stop}"
            for utt, path, start, _, stop in rows
        )
        (folder / "segments").write_text("\n".join(lines))
        (folder / "text").write_text("".join(f"{utt} word {utt}\n" for utt, *_ in rows))
        return ["dataset=kaldi", f"dataset.path={folder}"]
    if name == "nemo":
        keys = ("utt", "audio_filepath", "offset", "duration")
        entries = [dict(zip(keys, row, strict=False)) for row in rows]
        settings = ["dataset=manifest", "dataset.id_column=utt"]
    elif name == "lhotse":
        entries = [
            {"id": utt, "start": start, "duration": length, "channel": 0, "type": "MonoCut"}
            | {"recording": {"id": path, "sources": [{"type": "file", "source": path}]}}
            for utt, path, start, length, _ in rows
        ]
        settings = ["dataset=lhotse"]
    else:
        keys = ("utt", "path", "from", "length", "to")
        entries = [dict(zip(keys, row, strict=True)) for row in rows]
        settings = ["dataset=manifest", "dataset.id_column=utt", "dataset.start_column=from"]
        settings.append("dataset.stop_column=to")
    (folder / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return [*settings, f"dataset.path={folder / 'list.jsonl'}"]


@pytest.mark.parametrize("name", LISTS)
def test_segments_have_the_features_of_files_cut_by_hand(tmp_path: Path, name: str) -> None:
    """Bit for bit, for overlapping segments of several recordings; the store knows their times."""
    recordings, cuts = tmp_path / "recordings", tmp_path / "cuts"
    recordings.mkdir()
    cuts.mkdir()
    for seed, stem in enumerate(("a", "b")):
        soundfile.write(recordings / f"{stem}.flac", voice(10.0, seed), RATE_HZ)
        stored, _ = soundfile.read(recordings / f"{stem}.flac", dtype="int16")
        for i, times in enumerate(SEGMENTS):
            first, last = first_and_last(name, *times)
            soundfile.write(cuts / f"{stem}-{i}.flac", stored[first:last], RATE_HZ)
    settings = write_list(name, recordings, ["a", "b"])
    config = configured(cuts, tmp_path / "by-hand", *INLINE)
    run.extract(config)
    run.extract(configured(cuts, tmp_path / "store", *INLINE, *settings))
    by_hand, store = (pipeline.open_store(tmp_path / n) for n in ("by-hand", "store"))
    assert [f"{name}.flac" for name in store.ids] == by_hand.ids
    for utterance in store.ids:
        assert torch.equal(store.read(utterance), by_hand.read(f"{utterance}.flac"))
    assert len(set(store.metadata["recording"].to_pylist())) == 2
    assert verify_store(tmp_path / "store").ok


def test_a_recording_is_read_once_for_a_run_of_its_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the scan of headers; the plan is the same as that of probing each."""
    for seed, stem in enumerate(("a", "b")):
        soundfile.write(tmp_path / f"{stem}.flac", voice(10.0, seed), RATE_HZ)
    settings = write_list("kaldi", tmp_path, ["a", "b"])
    source = open_source(configured(tmp_path, tmp_path / "s", *settings).dataset)
    read = []
    monkeypatch.setattr(scanning, "read_facts", lambda s: read.append(s.path) or read_facts(s))
    rows = scanning.scan(source, GEOMETRY).to_pylist()
    assert read == [str(tmp_path / "a.flac"), str(tmp_path / "b.flac")]
    for row, found in enumerate(rows):
        probed = probe(source.segment(row), RATE_HZ)
        assert found["n_samples"] == probed.n_samples
        assert (found["n_bytes"], found["fingerprint"]) == (probed.n_bytes, probed.fingerprint)
        assert fingerprint(source.segment(row)) == (probed.n_bytes, probed.fingerprint)
    assert len({row["fingerprint"] for row in rows}) == len(rows)


@pytest.mark.parametrize("settings", [["start"], ["start", "stop"], ["stop"], ["late"]])
def test_other_columns_of_times_give_other_utterances(tmp_path: Path, settings: list[str]) -> None:
    """No features of other times are shown, also if the store was complete."""
    soundfile.write(tmp_path / "a.flac", voice(10.0, 0), RATE_HZ)
    (tmp_path / "a.csv").write_text("utt,path,start,late,stop\nu,a.flac,1,2,3\nv,a.flac,4,5,6\n")
    table = ["dataset=manifest", f"dataset.path={tmp_path}/a.csv", "dataset.id_column=utt"]
    first = [*table, "dataset.start_column=start", "dataset.stop_column=stop"]
    run.extract(configured(tmp_path, tmp_path / "s", *INLINE, *first))
    kinds = {"start": "start_column", "late": "start_column", "stop": "stop_column"}
    table += [f"dataset.{kinds[name]}={name}" for name in settings]
    for store in ("s", "fresh"):
        run.extract(configured(tmp_path, tmp_path / store, *INLINE, *table))
    store, fresh = (pipeline.open_store(tmp_path / name) for name in ("s", "fresh"))
    for name in ("u", "v"):
        torch.testing.assert_close(store.read(name), fresh.read(name), rtol=2e-3, atol=2e-3)


def test_a_segment_with_other_times_supersedes_the_planned_one(tmp_path: Path) -> None:
    """Of the same length, without a word about it in the columns."""
    soundfile.write(tmp_path / "a.flac", voice(10.0, 0), RATE_HZ)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.flac\n")
    (tmp_path / "segments").write_text("u a 1.0 2.0\nv a 3.0 4.0\n")
    settings = ["dataset=kaldi", f"dataset.path={tmp_path}", "dataset.columns=[]"]
    config = configured(tmp_path, tmp_path / "s", *INLINE, *settings)
    run.extract(config)
    before = {name: pipeline.open_store(tmp_path / "s").read(name) for name in ("u", "v")}
    (tmp_path / "segments").write_text("u a 1.0 2.0\nv a 3.5 4.5\n")
    changed = run.plan(config)
    assert (changed.replaced, changed.unchanged) == (1, 1)
    run.extract(config)
    store = pipeline.open_store(tmp_path / "s")
    assert torch.equal(store.read("u"), before["u"])
    assert not torch.equal(store.read("v"), before["v"])

"""Runs with encoders that have a fault: what the self-check finds decides, and is said."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import pipeline
from pipeline.config import Config, load_sweep_config
from pipeline.encoders import registry
from pipeline.encoders.settings import resolve_settings
from pipeline.errors import EncoderError
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.extract.run import extract
from pipeline.extract.selfcheck import dataset_clips, measure_slowdown, quick_selfcheck
from pipeline.probing.run import sweep
from pipeline.sources.opening import open_source
from tests.extract.test_geometries import configured
from tests.helpers.commands import error_line, last_json, strata
from tests.helpers.extraction import contents
from tests.helpers.fake_encoders import (
    NARROW,
    FaultyEncoder,
    FaultyFamily,
    expected,
    write_spelled,
)
from tests.helpers.observers import Notes

LENGTHS = [9_000, 4_000, 16_000, 2_400, 12_000]
UNIT = "plan.frames_per_unit=256"
Run = Callable[..., tuple[Path, list[str]]]


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, tuple[int, int]]:
    """Clips that spell their frames, in `tmp_path/clips`."""
    return write_spelled(tmp_path / "clips", LENGTHS, NARROW.geometry)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Extracts the clips by an encoder with a fault; returns the store and its notes."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))

    def extracted(fault: str, *more: str, store: str = "store") -> tuple[Path, list[str]]:
        notes = Notes()
        FaultyEncoder.batch_sizes.clear()
        extract(config(tmp_path, fault, *more, store=store), notes)
        return tmp_path / store, notes.lines

    return extracted


def config(folder: Path, fault: str, *more: str, store: str = "store") -> Config:
    registry.register_family("fake", FaultyFamily(NARROW, fault))
    return configured(NARROW, folder / "clips", folder / store, UNIT, *more)


def warnings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("WARNING")]


def provenance_of(store: Path) -> dict[str, object]:
    return dict(pipeline.open_store(store).attributes["provenance"])


def test_a_sound_encoder_is_batched_without_a_word(
    run: Run, corpus: dict[str, tuple[int, int]]
) -> None:
    """Nothing is found, so nothing is said or recorded, and the clips go in batches."""
    store, lines = run("")
    assert warnings(lines) == []
    assert "one_by_one" not in provenance_of(store)
    assert max(FaultyEncoder.batch_sizes[-2:]) > 1


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (
            "padding",
            r"\de-02 in a batch, .*, 2\.\de-02 with silence in their batch, most in layer",
        ),
        ("order", r"2\.0e-02 in a batch, 2\.0e-02 in another order"),
    ],
    ids=["padding", "order"],
)
def test_a_model_that_leaks_is_run_one_by_one(
    run: Run, corpus: dict[str, tuple[int, int]], fault: str, where: str
) -> None:
    """The warning has the errors and the cost; the features are those of each clip alone."""
    store, lines = run(fault)
    [warning] = warnings(lines)
    assert "the other clips of a batch change the features of narrow-band" in warning
    assert re.search(where, warning), warning
    assert re.search("its clips are encoded one by one, .* (as long as|slower than) in", warning)
    assert FaultyEncoder.batch_sizes[-len(corpus) :] == [1] * len(corpus)
    opened = pipeline.open_store(store)
    assert opened.attributes["provenance"]["one_by_one"] is True
    assert not opened.attributes["selfcheck"]["ok"]
    for name, (tag, n_samples) in corpus.items():
        alone = expected(tag, n_samples, (1, 2, 3), NARROW.geometry)
        assert torch.equal(opened.read(name).float(), alone), name


def test_a_reduced_precision_hides_no_leak(run: Run, corpus: dict[str, tuple[int, int]]) -> None:
    """A leak below the rounding of bf16 is found in fp32."""
    store, lines = run("order", "extract.precision=bf16")
    opened = pipeline.open_store(store)
    assert max(opened.attributes["selfcheck"]["alone_vs_batch"]) < 6e-2
    assert len(warnings(lines)) == 1
    assert opened.attributes["provenance"]["one_by_one"] is True


def test_prediction_follows_the_store_of_the_head(run: Run, tmp_path: Path) -> None:
    """A head of such a store is given features of clips alone, as it was trained on."""
    write_spelled(tmp_path / "clips", [2_000 + 100 * i for i in range(32)], NARROW.geometry)
    store, _ = run("order")
    quick = ["task.lrs=[1e-1]", "seeds=[0]", "task.steps=40", "task.eval_every=20"]
    sweep_config = load_sweep_config(["task=ks", "split.speaker=speaker", "layers=[2]", *quick])
    sweep(store, replace(sweep_config, out=str(tmp_path / "out")))
    settings = ["model=hf", "model.source=fake", f"model.name={NARROW.name}", "engine.threads=1"]
    predictor = pipeline.Predictor(tmp_path / "out", 2, overrides=settings)
    assert predictor.head.facts.one_by_one
    FaultyEncoder.batch_sizes.clear()
    found = predictor.predict_files([tmp_path / "clips"])
    assert set(FaultyEncoder.batch_sizes) == {1}
    stored = predictor.predict_store(store)
    assert [item.prediction for item in found] == [item.prediction for item in stored]


def test_the_cost_of_one_by_one_is_measured() -> None:
    """Of an encoder that needs its time per batch, it is the number of clips in a batch."""

    class PerBatch(FaultyEncoder):
        """Takes a hundredth of a second for each batch."""

        def encode_batch(self, waveforms: Any, **more: Any) -> Iterator[torch.Tensor]:
            time.sleep(0.01)
            return super().encode_batch(waveforms, **more)

    encoder = PerBatch(NARROW, resolve_settings(NARROW, device="cpu"), "")
    clip = torch.ones(4_000)
    n_frames = NARROW.geometry.n_frames(len(clip))
    assert 2.5 < measure_slowdown(encoder, clip, 4 * n_frames) < 8
    assert measure_slowdown(encoder, clip, 1) < 1.5


def test_a_resumed_run_takes_the_choice_of_its_store(
    run: Run, corpus: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No check decides again, and the store ends with the same bytes."""
    store, _ = run("padding")
    whole = contents(str(store))
    (store / "index" / "unit-1.parquet").unlink()
    monkeypatch.setattr("pipeline.extract.store_setup.quick_selfcheck", None)
    _, lines = run("padding")
    assert any("clips are encoded one by one, as they were when" in line for line in lines)
    assert set(FaultyEncoder.batch_sizes) == {1}
    assert contents(str(store)) == whole


def test_a_store_that_was_begun_in_batches_goes_on_in_batches(
    run: Run, corpus: dict[str, tuple[int, int]]
) -> None:
    """A store of an earlier version states no choice: its bytes are those of batches."""
    store, _ = run("")
    (store / "index" / "unit-0.parquet").unlink()
    _, lines = run("padding")
    assert max(FaultyEncoder.batch_sizes) > 1
    assert warnings(lines) == []


def test_the_choice_is_no_part_of_the_identity(
    run: Run, corpus: dict[str, tuple[int, int]]
) -> None:
    """Features that were encoded one by one are those that the encoder is said to give."""
    identities = [
        pipeline.open_store(run(fault, store=fault or "sound")[0]).attributes["identity"]
        for fault in ("", "order")
    ]
    assert identities[0] == identities[1]


@pytest.mark.parametrize("fault", ["random", "state"])
def test_features_that_are_others_each_time_are_refused(
    run: Run, corpus: dict[str, tuple[int, int]], tmp_path: Path, fault: str
) -> None:
    """No store is created; the message has the error and the usual causes."""
    with pytest.raises(EncoderError, match="gives other features each time") as caught:
        run(fault)
    assert "more than the 1e-05 of rounding" in str(caught.value)
    assert "call eval()" in str(caught.value)
    assert not (tmp_path / "store" / "features.zarr").exists()


def test_a_refusal_is_an_error_of_the_command(
    run: Run, corpus: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """Exit code 1 and one line, from `extract` and `selfcheck` alike."""
    registry.register_family("fake", FaultyFamily(NARROW, "random"))
    model = ("model=hf", "model.source=fake", f"model.name={NARROW.name}")
    data = (f"dataset.path={tmp_path / 'clips'}", "engine=inline", "engine.threads=1")
    done = strata("extract", *model, *data, f"store={tmp_path / 'store'}")
    assert (done.returncode, "gives other features each time" in error_line(done)) == (1, True)
    done = strata("selfcheck", *model, *data, "--json")
    assert done.returncode == 1
    assert last_json(done)["is_deterministic"] is False
    assert "gives other features each time" in done.stderr


def test_bits_that_change_are_said(run: Run, corpus: dict[str, tuple[int, int]]) -> None:
    """A difference within rounding does not stop a run, but its bytes cannot be repeated."""
    store, lines = run("rounding")
    [warning] = warnings(lines)
    assert re.search(r"the same clips encoded again differ by \d\.\de-0[78]:", warning)
    assert "not to the last bit" in warning
    assert "one_by_one" not in provenance_of(store)


@pytest.mark.parametrize(
    ("fault", "more", "message"),
    [
        (
            "range",
            (),
            r"layer 2 has values up to 1.1e\+07, beyond float16 \(65504\), in 3 of 3 clips, even "
            "in fp32: such utterances are quarantined; use extract.dtype=bfloat16 or float32",
        ),
        (
            "overflow",
            ("extract.precision=fp16",),
            r"layer 2 has values that are not finite \(NaN or infinity\) in 3 of 3 clips in fp16: "
            "such utterances are encoded again in fp32",
        ),
        (
            "nan",
            (),
            r"layer 2 has values that are not finite \(NaN or infinity\) in 3 of 3 clips, even in "
            "fp32: such utterances are quarantined",
        ),
        ("constant", (), "layer 2 is constant: every frame of every clip has the same values"),
    ],
)
def test_values_are_described_truly(
    run: Run,
    corpus: dict[str, tuple[int, int]],
    fault: str,
    more: tuple[str, ...],
    message: str,
) -> None:
    """What cannot be stored is named with layer, size and consequence, not as an error of 0."""
    store, lines = run(fault, *more)
    found = warnings(lines)
    assert len(found) == 1
    assert re.search(message, found[0]), found
    assert "0.0e+00" not in found[0]
    selfcheck = pipeline.open_store(store).attributes["selfcheck"]
    assert not selfcheck["ok"]
    json.dumps(selfcheck, allow_nan=False)


def test_the_range_is_that_of_the_store(run: Run, corpus: dict[str, tuple[int, int]]) -> None:
    """What float16 cannot hold is no finding for a store of float32."""
    store, lines = run("range", "extract.dtype=float32")
    assert warnings(lines) == []
    assert pipeline.open_store(store).attributes["selfcheck"]["dtype"] == "float32"


def test_silent_clips_are_left_out(run: Run, tmp_path: Path) -> None:
    """The next rows are taken; if all are silent, synthetic clips are, and the run says so."""
    files = write_spelled(tmp_path / "clips", [8_000] * 3, NARROW.geometry)
    silence = torch.zeros(8_000).numpy()
    for name in list(files)[:2]:
        soundfile.write(tmp_path / "clips" / name, silence, 8_000, "FLOAT")
    source = open_source(config(tmp_path, "").dataset, lambda path: 1)
    found = dataset_clips(source, 8_000, 2, 1.0)
    assert (len(found.waveforms), found.note, found.is_synthetic) == (1, None, False)
    soundfile.write(tmp_path / "clips" / list(files)[2], silence, 8_000, "FLOAT")
    store, lines = run("")
    assert any(
        "of the first 3 utterances 3 begin with silence and 0 cannot be read" in line
        for line in lines
    )
    assert pipeline.open_store(store).attributes["selfcheck"]["is_synthetic"]


def test_a_driver_without_the_workers_gpu_finds_leaks(
    run: Run, corpus: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """The encoder is checked on the CPU in fp32, in which a leak is the same."""
    setup = resolve_encoder_setup(config(tmp_path, "padding"))
    settings = resolve_settings(NARROW, precision="fp16", device="cpu")
    encoder = FaultyEncoder(NARROW, settings, "padding")
    source = open_source(setup.config.dataset, lambda path: 1)
    found, notes = quick_selfcheck(encoder, source, setup, "cuda")
    assert found.leaks
    assert found.precision == "fp32"
    assert found.slowdown is None
    assert "this process has no cuda device: the self-check ran on cpu in fp32" in notes[0]

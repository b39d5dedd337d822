"""`export-head`: the program on the card predicts without Strata what Strata predicts."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.config import load_config, load_sweep_config
from pipeline.errors import ConfigError
from pipeline.extract import run
from pipeline.predict.export import card_of, export_head
from pipeline.predict.heads import open_head, sweep_result
from pipeline.probing.run import sweep
from tests.encoders.test_huggingface import CHECKPOINTS, make
from tests.helpers.corpus import voice, write_folder

QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=4", "task.eval_every=2"]
SPLIT = ["split.speaker=none", "split.ratios=[0.5,0.25,0.25]", "task.speaker_independent=false"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of a small checkpoint in Hugging Face form: pre-norm, with a normalised waveform."""
    folder = tmp_path_factory.mktemp("export")
    write_folder(folder / "clips", [0.3 + 0.01 * i for i in range(24)])
    model_class, options, _ = CHECKPOINTS["hubert large"]
    make(folder / "checkpoint", model_class, options, normalize=True)
    words = ["dataset=audiofolder", f"dataset.path={folder / 'clips'}", "engine=inline"]
    words += ["model=hf", f"model.name={folder / 'checkpoint'}", f"store={folder / 'store'}"]
    words += ["extract.layers=superb", "extract.dtype=float32", "engine.threads=1"]
    run.extract(load_config(words))
    return folder


@pytest.mark.parametrize(
    ("task", "layer", "settings"),
    [
        ("ks", "best", ["task.pooling=[mean,std]"]),
        ("ks", 3, []),
        ("ic", "weighted", ["labels=[word,speaker]"]),
        ("asr", 0, ["task.normalize=true"]),
        ("regression", "weighted", []),
        ("sv", "best", []),
    ],
)
def test_the_card_predicts_without_strata(root, tmp_path, monkeypatch, task, layer, settings):
    """With torch, safetensors and transformers; the last layer is that without the final norm."""
    if task == "sv":
        trials = tmp_path / "trials.txt"
        trials.write_text("1 clip-000 clip-003\n0 clip-000 clip-001\n")
        words = [f"task.trials={trials}"]
    else:
        words = [*QUICK, *SPLIT, *([] if task == "ic" else ["labels=[word]"])]
    out = tmp_path / "sweep"
    sweep(root / "store", load_sweep_config([f"task={task}", f"out={out}", *words, *settings]))
    head = export_head(out, tmp_path / "head", layer)
    monkeypatch.chdir(tmp_path / "head")
    soundfile.write("clip.wav", voice(1.1, 99), 16_000, "FLOAT")
    (program,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    assert "pipeline" not in program
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    predictor = pipeline.Predictor(".", overrides=["engine.threads=1"])
    assert predictor.head.facts == head.facts
    [found] = predictor([torch.tensor(voice(1.1, 99))])
    words = printed.getvalue().split()
    if task == "asr":
        assert " ".join(words) == found.transcript
    elif task == "regression":
        assert float(words[1].rstrip("}")) == pytest.approx(found.values[0], rel=1e-3)
    elif task == "sv":
        assert np.allclose(names["vector"], found.embedding, atol=1e-4)
    else:
        lines = [line.split() for line in printed.getvalue().splitlines()]
        assert [line[0] for line in lines] == list(head.facts.labels)
        assert tuple(line[1] for line in lines) == found.labels
        assert [float(line[2]) for line in lines] == pytest.approx(found.scores, abs=1e-3)


def test_the_card_says_what_the_head_is(root, tmp_path):
    """Task, encoder with its hash, layer, data, scores with an interval, and classes."""
    out = tmp_path / "sweep"
    words = ["task=ks", f"out={out}", *QUICK, *SPLIT, "labels=[word]"]
    result, _ = sweep(root / "store", load_sweep_config(words))
    head = export_head(out, tmp_path / "head")
    card = (tmp_path / "head" / "README.md").read_text()
    score = result.score(result.best)
    for text in (
        f"# ks: word, from {'a weighted sum' if result.best == 'weighted' else 'layer'}",
        str(root / "checkpoint"),
        head.facts.identity["encoder"]["weights"]["sha256"],
        f"{result.n_train} utterances to train, {result.n_dev} dev, {result.n_test} test",
        f"test {head.facts.test:.4f} (learning rate 0.01, seed 0, fold 0)",
        f"95 % interval {score.low:.4f} to {score.high:.4f} over utterances",
        "- word: `0`, `1`, `2`, `3`",
        "without the LayerNorm that some models apply",
        "transformers 5.16 or newer",
    ):
        assert text in card, text
    with pytest.raises(ConfigError, match="exists and is not an empty folder; give another OUT"):
        export_head(out, tmp_path / "head")


@pytest.mark.parametrize(
    ("weights", "model", "line"),
    [
        ("pretrained", "hubert_base", "torchaudio.pipelines.HUBERT_BASE.get_model().eval()"),
        ("random", "tiny", 'load_encoder("tiny", weights="random", layers=[2], seed=0)'),
    ],
)
def test_the_card_names_the_encoder_that_makes_the_features(root, tmp_path, weights, model, line):
    """A torchaudio bundle for pretrained weights; for others the loader of this package."""
    out = tmp_path / "sweep"
    words = ["task=ks", f"out={out}", *QUICK, *SPLIT, "labels=[word]", "layers=[2]"]
    sweep(root / "store", load_sweep_config(words))
    facts = open_head(out).facts
    encoder = facts.identity["encoder"] | {"model": model}
    facts = replace(
        facts, weights=weights, model={}, identity=facts.identity | {"encoder": encoder}
    )
    assert line in card_of(facts, sweep_result(out))

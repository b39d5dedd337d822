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
from torch import nn

import pipeline
from pipeline.config import load_config, load_sweep_config
from pipeline.config.sweep_schema import ATTENTIVE, LSTM
from pipeline.errors import ConfigError
from pipeline.extract import run
from pipeline.heads.trained import TrainedHead
from pipeline.predict.export import card_of, export_head
from pipeline.predict.heads import open_head, sweep_result
from pipeline.probing.run import sweep
from tests.encoders.test_huggingface import CHECKPOINTS, make
from tests.helpers.corpus import voice, write_folder

QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=4", "task.eval_every=2"]
MOST_LINES = 28
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
        ("ks", "weighted", ["task.head=mlp"]),
        ("word", "weighted", ["task.pooling=[mean,std]"]),
        ("frame", 1, ["task.normalize=true", "task.head=mlp"]),
    ],
)
def test_the_card_predicts_without_strata(root, tmp_path, monkeypatch, task, layer, settings):
    """With torch, safetensors and transformers; the last layer is that without the final norm."""
    if task == "sv":
        trials = tmp_path / "trials.txt"
        trials.write_text("1 clip-000 clip-003\n0 clip-000 clip-001\n")
        words = [f"task.trials={trials}"]
    elif task in ("word", "frame"):
        words = [*QUICK, *SPLIT, f"spans={halves(root)}"]
    else:
        words = [*QUICK, *SPLIT, *([] if task == "ic" else ["labels=[word]"])]
    out = tmp_path / "sweep"
    sweep(root / "store", load_sweep_config([f"task={task}", f"out={out}", *words, *settings]))
    head = export_head(out, tmp_path / "head", layer)
    check_card(tmp_path / "head", head, monkeypatch)


FORMS = [
    ("ks", ATTENTIVE, {"layer": "weighted", "layers": (1, 2, 3)}),
    ("regression", ATTENTIVE, {}),
    ("asr", LSTM, {"normalize": True}),
    ("frame", LSTM, {"layer": "weighted", "layers": (1, 2, 3)}),
]


@pytest.mark.parametrize(("task", "form", "change"), FORMS)
def test_the_card_of_each_form_predicts_without_strata(
    root, tmp_path, monkeypatch, task, form, change
):
    """With the modules of torch; the tensors are random, of the shapes that trainers give."""
    out, target = root / f"{task}-linear", tmp_path / "head"
    if not out.exists():
        own = [f"spans={halves(root)}"] if task == "frame" else ["labels=[word]"]
        words = [f"task={task}", f"out={out}", *QUICK, *SPLIT, *own, "layers=[1]"]
        sweep(root / "store", load_sweep_config(words))
    linear = open_head(out)
    facts = replace(linear.facts, head=form, **change)
    dim, width = facts.dim, 6
    torch.manual_seed(0)
    projection, attention = nn.Linear(dim, width), nn.Linear(width, 5)
    inputs = {ATTENTIVE: 2 * width, LSTM: 2 * 4}[form]
    named = {"": nn.Linear(inputs, facts.n_outputs), "projection_": projection}
    tensors = {"attention_vector": torch.randn(5)} if form == ATTENTIVE else {}
    if form == ATTENTIVE:
        named["attention_"] = attention
    if form == LSTM:
        lstm = nn.LSTM(width, 4, 2, bidirectional=True)
        tensors |= {f"lstm.{name}": 3 * value.detach() for name, value in lstm.named_parameters()}
    for start, layer in named.items():
        tensors |= {
            f"{start}weight": 3 * layer.weight.detach(),
            f"{start}bias": layer.bias.detach(),
        }
    tensors |= {
        name: linear.tensors[name] for name in ("means", "deviations") if task == "regression"
    }
    if facts.layer == "weighted":
        tensors["layer_weights"] = torch.tensor([0.2, 0.3, 0.5])
    head = TrainedHead(facts, tensors)
    target.mkdir()
    (target / "README.md").write_text(card_of(facts, sweep_result(out)))
    head.save(target / "head.safetensors")
    check_card(target, head, monkeypatch)


def halves(root):
    """Return a file with two spans of each clip."""
    path = root / "halves.csv"
    ids = [f"clip-{i:03d}.wav" for i in range(24)]
    rows = [f"{name},0,0.15,first\n{name},0.15,1,second\n" for name in ids]
    path.write_text("id,start,end,label\n" + "".join(rows))
    return path


def check_card(folder, head, monkeypatch):
    """Run the program of a card, and compare what it prints with what a `Predictor` predicts."""
    monkeypatch.chdir(folder)
    task = head.facts.task
    soundfile.write("clip.wav", voice(1.1, 99), 16_000, "FLOAT")
    (program,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    assert "pipeline" not in program
    assert len(program.splitlines()) <= MOST_LINES, len(program.splitlines())
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    predictor = pipeline.Predictor(".", overrides=["engine.threads=1"])
    assert predictor.head.facts == head.facts
    spans = [[(0.1, 0.4)]] if task == "word" else None
    [found] = predictor([torch.tensor(voice(1.1, 99))], spans=spans)
    words = printed.getvalue().split()
    if task == "word":
        (span,) = found.spans
        assert (words[:-1], span.label) == (["halves.csv", span.label], words[1])
        assert float(words[2]) == pytest.approx(span.score, abs=1e-3)
    elif task == "frame":
        lines = [f"until {s.stop_s:.4f} s: {s.label}" for s in found.spans]
        assert printed.getvalue().splitlines() == lines
    elif task == "asr":
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


@pytest.mark.parametrize(
    ("architecture", "weights", "given", "line"),
    [
        ({}, {}, {}, 'AutoModel.from_pretrained("folder")'),
        (
            {"front_end": {"input": "whisper log-mel"}},
            {},
            {},
            'load_encoder("folder", source="huggingface", layers=[2])',
        ),
        (
            {},
            {"language": "fra"},
            {"language": "fra"},
            'load_encoder("folder", source="huggingface", layers=[2], language="fra")',
        ),
    ],
    ids=["packed", "general", "language"],
)
def test_the_card_of_a_checkpoint_has_a_loader_that_gives_its_layers(
    root, tmp_path, architecture, weights, given, line
):
    """Its hidden states are the layers of packed models; others need this package."""
    out = tmp_path / "sweep"
    words = ["task=ks", f"out={out}", *QUICK, *SPLIT, "labels=[word]", "layers=[2]"]
    sweep(root / "store", load_sweep_config(words))
    facts = open_head(out).facts
    encoder = facts.identity["encoder"]
    encoder = encoder | {
        "architecture": encoder["architecture"] | architecture,
        "weights": encoder["weights"] | weights,
    }
    model = {"name": "folder", "source": "huggingface"} | given
    facts = replace(
        facts,
        weights="huggingface",
        model=model,
        identity=facts.identity | {"encoder": encoder},
    )
    card = card_of(facts, sweep_result(out))
    assert line in card
    assert ("AutoModel" in card) == ("load_encoder" not in card)

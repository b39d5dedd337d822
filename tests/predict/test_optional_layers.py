"""Sweeps, heads and predictions on conv and final_norm, which are no blocks, end to end."""

from __future__ import annotations

import json
import re

import pytest

import pipeline
from pipeline.comparing.building import compare
from pipeline.comparing.reading import read_sweeps
from pipeline.comparing.report.writing import write_comparison
from pipeline.config import load_config, load_sweep_config
from pipeline.errors import ConfigError
from pipeline.extract import run
from pipeline.predict.export import export_head
from pipeline.predict.heads import open_head
from pipeline.probing.layers.between import compare_encoders
from pipeline.probing.layers.comparison_report import comparison_rows
from pipeline.probing.layers.report import table_rows, write_layers_report
from pipeline.probing.layers.statistics import measure_layers
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.run import sweep
from tests.encoders.test_huggingface import CHECKPOINTS, make
from tests.helpers.charts import rendered
from tests.helpers.corpus import write_folder
from tests.predict.test_export import check_card

QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=4", "task.eval_every=2", "labels=[word]"]
QUICK += ["split.speaker=none", "split.ratios=[0.5,0.25,0.25]", "task.speaker_independent=false"]


@pytest.fixture(scope="module", autouse=True)
def svg(unrendered_charts):
    """Render the charts of pages, which have names of layers."""
    with rendered(["svg"]):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stores of a small pre-norm checkpoint: `norm` has layers 0, 1 and 4, `conv` layer -1."""
    folder = tmp_path_factory.mktemp("optional")
    write_folder(folder / "clips", [0.3 + 0.01 * i for i in range(24)])
    model_class, options, _ = CHECKPOINTS["wav2vec2 large"]
    make(folder / "checkpoint", model_class, options, normalize=True)
    words = ["dataset=audiofolder", f"dataset.path={folder / 'clips'}", "engine=inline"]
    words += ["model=hf", f"model.name={folder / 'checkpoint'}", "engine.threads=1"]
    words += ["extract.dtype=float32"]
    for name, layers in (("norm", "[0,1,final_norm]"), ("conv", "[conv]")):
        run.extract(load_config([*words, f"store={folder / name}", f"extract.layers={layers}"]))
        settings = load_sweep_config(["task=ks", f"out={folder}/{name}-sweep", *QUICK])
        write_report(*sweep(folder / name, settings))
    return folder


@pytest.mark.parametrize(
    ("store", "layer", "number"),
    [("norm", "final_norm", 4), ("norm", 4, 4), ("norm", "block_1", 1), ("conv", "conv", -1)],
)
def test_a_head_predicts_new_audio_with_the_layer_that_it_was_trained_on(
    root, store, layer, number
):
    """From files it predicts what it predicts from the store's features of this layer."""
    opened = pipeline.open_store(root / store)
    predictor = pipeline.Predictor(root / f"{store}-sweep", layer, overrides=["engine.threads=1"])
    head = predictor.head
    assert (head.facts.layer, head.facts.layers) == (number, (number,))
    files = sorted((root / "clips").glob("*.wav"))[:3]
    of_files = predictor.predict_files(files)
    of_store = predictor.predict_store(opened, [path.name for path in files])
    for path, one, other in zip(files, of_files, of_store, strict=True):
        mean = opened.read(path.name, [number])[0].mean(0)
        logits = mean @ head.tensors["weight"].T + head.tensors["bias"]
        expected = float(logits.softmax(0).max())
        assert one.prediction.labels == other.prediction.labels
        assert max(one.prediction.scores) == pytest.approx(expected, abs=1e-4)
        assert max(other.prediction.scores) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("store", "layer"), [("norm", "final_norm"), ("conv", "conv")])
def test_an_exported_program_takes_the_same_layer_from_transformers(
    root, tmp_path, monkeypatch, store, layer
):
    """`hidden_states[-1]` would be another one; the card calls the layer by its name."""
    head = export_head(root / f"{store}-sweep", tmp_path / "head", layer)
    check_card(tmp_path / "head", head, monkeypatch)
    card = (tmp_path / "head/README.md").read_text()
    assert card.startswith(f"# ks: word, from {layer} of ")
    again = open_head(tmp_path / "head", layer)
    assert again.facts == head.facts
    with pytest.raises(ConfigError, match=f"has the head on {layer}, not block_1"):
        open_head(tmp_path / "head", "block_1")


def test_unknown_layers_name_the_heads_that_there_are(root):
    """By the names that tables have."""
    with pytest.raises(ConfigError, match=r"layer=conv: .* heads on 0, 1, final_norm, weighted"):
        open_head(root / "norm-sweep", "conv")
    assert open_head(root / "norm-sweep", "weighted").facts.layer_names == (
        "input",
        "block_1",
        "final_norm",
    )


def test_a_store_without_the_layer_of_a_head_is_refused(root):
    """Conv is not taken for a weighted sum, nor for the last layer."""
    predictor = pipeline.Predictor(root / "conv-sweep", overrides=["engine.threads=1"])
    with pytest.raises(ConfigError, match=r"no layer -1, which the head on conv needs"):
        predictor.predict_store(root / "norm")


def test_results_and_reports_call_layers_by_name(root):
    """The JSON has numbers and names; tables, charts and sentences have names."""
    document = json.loads((root / "norm-sweep/sweep.json").read_text())
    assert document["layers"] == [0, 1, 4]
    assert document["layer_names"] == ["input", "block_1", "final_norm"]
    scores = (root / "norm-sweep/tables/scores.md").read_text()
    assert re.search(r"^\| \W*final\\?_norm\W* \|", scores, re.M)  # bold if it is best by dev
    assert "layer 4" not in (root / "norm-sweep/report.html").read_text()
    conv = json.loads((root / "conv-sweep/sweep.json").read_text())
    assert conv["best"] == -1
    [stored] = read_sweeps([root / "conv-sweep"])
    assert "untrained head, layer conv" in stored.sweep.baselines
    page = (root / "conv-sweep/report.html").read_text()
    assert "layer -1" not in page
    assert "Conv has the best dev score" in page


def test_comparisons_of_sweeps_call_layers_by_name(root, tmp_path):
    """Across encoders, where the number -1 or N + 1 says little."""
    comparison = compare(read_sweeps([root / "norm-sweep", root / "conv-sweep"]))
    [task] = comparison.tasks
    assert [pair.second_name for pair in task.pairs] == ["conv"]
    assert "norm: 0, 1 and final_norm; conv: conv" in "".join(task.notes)
    write_comparison(comparison, tmp_path / "both")
    for path in (tmp_path / "both").rglob("*"):
        if path.suffix in (".html", ".md", ".txt"):
            assert "layer -1" not in path.read_text(), path


def test_statistics_of_layers_call_them_by_name(root, tmp_path):
    """`strata layers`, of one store and of two encoders."""
    norm, conv = (pipeline.open_store(root / name) for name in ("norm", "conv"))
    found = measure_layers(norm, 200)
    assert [row[0] for row in table_rows(found)] == ["0", "1", "final_norm"]
    page = write_layers_report(found, tmp_path / "page")
    assert "final_norm" in page.read_text()
    document = json.loads((tmp_path / "page/layers.json").read_text())
    assert document["layer_names"] == ["input", "block_1", "final_norm"]
    both = comparison_rows(compare_encoders([norm, conv], 200))
    assert [row[1] for row in both] == ["0", "1", "final_norm", "conv"]
    assert both[0][3] == "conv"


def test_sweeps_take_layers_by_name(root, tmp_path):
    """`layers=[final_norm,0]` are those, in the order of the store."""
    settings = load_sweep_config(
        ["task=ks", f"out={tmp_path / 's'}", *QUICK, "layers=[final_norm,0]", "weighted=false"]
    )
    result, _ = sweep(root / "norm", settings)
    assert (result.layers, [score.layer for score in result.scores]) == ((0, 4), [0, 4])
    wrong = load_sweep_config(["task=ks", f"out={tmp_path / 't'}", *QUICK, "layers=[conv]"])
    with pytest.raises(ConfigError, match=r"no layers \[conv\] in the store; it has \[0, 1, final"):
        sweep(root / "norm", wrong)

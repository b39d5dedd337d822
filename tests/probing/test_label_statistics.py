"""Statistics of the layers of a store with the labels of spans, and their part of the report."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.cli.verbs.span_settings import read_given_spans
from pipeline.config.loading import load_sweep_config
from pipeline.errors import ConfigError
from pipeline.probing.layers import label_report, with_labels
from pipeline.probing.layers.label_report import COLUMNS, label_charts, label_rows
from pipeline.probing.layers.with_labels import MIN_COUNT, Estimate, measure_with_labels
from tests.helpers.feature_stores import make_store

N_UTTERANCES, N_SPANS, DIM = 30, 8, 6
LABELS = np.random.default_rng(0).integers(4, size=(N_UTTERANCES, N_SPANS))
CENTRES = 2 * np.random.default_rng(1).standard_normal((4, DIM))
ROTATION = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM, DIM)))[0]


def labelled(row, layer, n_frames, dim):
    """Layer 1: noise. 2: with the label of the span. 3: layer 2, rotated. 4: constant."""
    if layer == 4:
        return np.full((n_frames, dim), 0.25)
    x = np.random.default_rng([row, min(layer, 2)]).standard_normal((n_frames, dim))
    if layer == 1:
        return x
    x += CENTRES[np.repeat(LABELS[row], 5)][:n_frames]
    return x @ ROTATION if layer == 3 else x


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store and a file with its spans: 5 frames each, and a rare label."""
    root = tmp_path_factory.mktemp("labelled")
    lengths = [5 * N_SPANS + 1] * N_UTTERANCES
    make_store(root / "store", lengths, layers=(1, 2, 3, 4), dim=DIM, features=padded)
    lines = ["id,start,end,label"]
    for row in range(N_UTTERANCES):
        for at in range(N_SPANS):
            label = "rare" if (row, at) == (3, 3) else "abcd"[LABELS[row, at]]
            lines.append(f"utt-{row:04d},{at * 0.1:.2f},{at * 0.1 + 0.1:.2f},{label}")
    (root / "phones.csv").write_text("\n".join(lines) + "\n")
    return root / "store", root / "phones.csv"


def padded(row, layer, n_frames, dim):
    values = labelled(row, layer, 5 * N_SPANS, dim)
    return np.concatenate([values, values[-1:]])[:n_frames]


@pytest.fixture(scope="module")
def opened(made):
    store = pipeline.open_store(made[0])
    return store, pipeline.place_spans(store, pipeline.read_spans(made[1]))


@pytest.fixture(scope="module")
def found(opened):
    return measure_with_labels(*opened, "phones.csv", k=8)


def test_the_layer_with_the_labels_is_found(found):
    """Its values are high, those of noise are at the chance level, a constant layer has none."""
    noise, rich, turned, constant = found.layers
    for kind in ("pwcca", "cca", "svcca"):
        own, other = getattr(rich, kind), getattr(noise, kind)
        assert own.value > 0.8
        assert own.sd < 0.1
        assert abs(own.shuffled) < 0.15
        assert abs(other.value - other.shuffled) < 0.25
        assert getattr(turned, kind).value == pytest.approx(own.value, abs=0.01)
    assert rich.pnmi.value > 0.4 > 0.15 > rich.pnmi.shuffled > 0
    assert noise.pnmi.value == pytest.approx(noise.pnmi.shuffled, abs=0.04)
    for estimate in (constant.pwcca, constant.svcca, constant.pnmi):
        assert (estimate.value, estimate.sd, estimate.shuffled) == (None, None, None)
    assert (found.n_spans, found.n_classes, found.n_trials) == (239, 4, 5)
    assert (found.n_frames, found.n_labelled) == (41 * 30, 5 * 239)
    assert any("'rare'" in note for note in found.notes)


def test_samples_and_results_depend_on_the_seed_only(opened, found):
    """Equal seeds give equal numbers; fewer spans are drawn, and noted."""
    assert measure_with_labels(*opened, "phones.csv", k=8).layers == found.layers
    fewer = measure_with_labels(*opened, "phones.csv", k=8, n_spans=120, n_frames=300, seed=1)
    assert fewer.n_spans <= 120
    assert "120 of 240 spans are drawn (n_spans)" in fewer.notes
    assert fewer.n_frames < 400
    assert fewer.layers[1].pwcca.value > 0.6


def test_an_annotated_part_of_a_store_is_used_alone(opened):
    """Frames are sampled from the utterances that the file labels."""
    store, placed = opened
    some = pipeline.place_spans(store, placed.spans.take(np.flatnonzero(placed.position >= 24)))
    part = measure_with_labels(store, some, "phones.csv", k=4)
    assert (part.n_frames, part.n_labelled) == (41 * 6, 40 * 6)
    assert part.n_trials == 3


@pytest.mark.parametrize(
    ("n_utterances", "settings", "message"),
    [
        (2, {}, "spans are of 2 utterances; .* at least 3"),
        (
            1,
            {},
            rf"16 spans with 0 labels of at least {MIN_COUNT} spans; .* \(16 spans of 2 ",
        ),
        (30, {"k": 700}, "k is 700, but half of the utterances .* have 615 frames"),
    ],
)
def test_what_cannot_be_measured_is_refused(opened, n_utterances, settings, message):
    """Too few utterances, classes or frames."""
    store, _ = opened
    rows = [(row, at) for row in range(n_utterances) for at in range(16)]
    spans = pipeline.Spans.of(
        [f"utt-{row:04d}" for row, _ in rows],
        [at * 0.04 for _, at in rows],
        [at * 0.04 + 0.04 for _, at in rows],
        ["ab"[at % 2] for _, at in rows],
    )
    with pytest.raises(ConfigError, match=message):
        measure_with_labels(store, pipeline.place_spans(store, spans), "x", **settings)


def test_a_single_label_is_refused(opened):
    """The message ends after what was expected, since nothing was left out."""
    store, placed = opened
    ones = placed.take(placed.label == placed.spans.labels.index("a"))
    with pytest.raises(ConfigError, match=r" with 1 label of .*; expected .* such labels$"):
        measure_with_labels(store, ones, "x")


def test_a_half_without_labelled_frames_is_refused(opened):
    """The file labels 30 utterances, but only 6 have spans, and few frames are drawn."""
    store, placed = opened
    some = placed.take(placed.position < 6)
    with pytest.raises(ConfigError, match="of x have no frame with a label in the sample; raise"):
        measure_with_labels(store, some, "x", n_frames=20, k=1)


def test_few_spans_for_many_features_get_a_note(opened, found, monkeypatch):
    """Canonical correlations are low then; 239 spans are enough for 6 features."""
    assert not any("too few" in note for note in found.notes)
    store, placed = opened
    monkeypatch.setattr(with_labels, "MIN_COUNT", 2)
    few = measure_with_labels(store, placed, "x", n_spans=14, n_frames=600, k=2)
    assert any("to fit canonical correlations of 6 features: too few" in n for n in few.notes)


def test_the_most_frequent_classes_are_taken(opened, monkeypatch):
    """Beyond `MAX_CLASSES`, spans of the others are left out and counted."""
    monkeypatch.setattr(with_labels, "MAX_CLASSES", 2)
    store, placed = opened
    kept = int(np.sort(np.bincount(placed.label))[-2:].sum())
    found = measure_with_labels(store, placed, "x", n_frames=200, k=2)
    assert (found.n_classes, found.n_spans) == (2, kept)
    assert any(note.startswith(f"{240 - kept} spans of 3 labels left out") for note in found.notes)


def test_charts_and_tables_of_labels(found):
    """A chart per statistic with its chance level, and a line per store; dashes if undefined."""
    charts = label_charts({"": found})
    assert [chart.name for chart in charts] == ["pwcca", "cca", "svcca", "pnmi"]
    rows = charts[0].numbers.values
    assert rows[1][1] == found.layers[1].pwcca.value
    assert rows[1][3] == found.layers[1].pwcca.shuffled
    shifted = replace(found, layers=found.layers[:2])
    both = label_charts({"one": found, "two": shifted})[3].numbers
    assert both.columns == ("layer", "one", "sd", "one, shuffled", "sd", "two", "sd", "two, shuffled", "sd")  # fmt: skip # noqa: E501
    assert np.isnan(both.values[2][5])
    table = label_rows(found)
    assert all(len(row) == len(COLUMNS) for row in table)
    assert table[3] == ["4", *["–"] * 8]
    near = replace(found.layers[0], cca=replace(found.layers[0].cca, value=-1e-5))
    assert label_rows(replace(found, layers=(near,)))[0][4] == "0.000"


def test_layers_within_the_spread_have_no_best_one(found):
    """Only a lead beyond the spread of a value is called the highest."""
    layers = [
        replace(
            found.layers[0],
            layer=number,
            pwcca=Estimate(value, 0.005, 0.1, 0.01),
            pnmi=Estimate(None, None, None, None),
        )
        for number, value in ((1, 0.119), (2, 0.116))
    ]
    assert label_report._best(replace(found, layers=tuple(layers))) == (
        "PWCCA is 0.116 to 0.119: the layers do not differ by more than the spread of one "
        "(± 0.005; shuffled labels: 0.100)."
    )
    layers[1] = replace(layers[1], pwcca=Estimate(0.2, 0.005, 0.1, 0.01))
    line = label_report._best(replace(found, layers=tuple(layers)))
    assert line.startswith("PWCCA is highest in layer 2: 0.200 ± 0.005")
    line = label_report._best(replace(found, layers=tuple(layers[:1])))
    assert line.startswith("PWCCA of layer 1: 0.119")


def test_wrong_spans_are_refused_before_anything_is_computed(made, tmp_path, monkeypatch):
    """Of one store and of several: statistics without labels may take minutes."""
    store, _ = made
    make_store(tmp_path / "other", [9] * 3, layers=(1,), encoder={"model": "other"})
    (tmp_path / "wrong.csv").write_text("id,start,end,label\nnobody,0,0.1,a\n")

    def refuse(*_, **__):
        raise AssertionError("computed before the spans were checked")

    monkeypatch.setattr("pipeline.probing.layers.between.compare_encoders", refuse)
    monkeypatch.setattr("pipeline.probing.layers.statistics.measure_layers", refuse)
    spans = f"spans={tmp_path / 'wrong.csv'}"
    for stores in ([store], [store, tmp_path / "other"]):
        done = CliRunner().invoke(app, ["layers", *map(str, stores), spans])
        assert done.exit_code in (1, 2)
        assert "nobody" in done.stderr


def test_silence_is_left_out_as_in_sweeps_of_phones(tmp_path):
    """In upper and lower case, unless `spans.skip` is given, whose labels have one case.

    A label of `spans.skip` that no span has gets a note.
    """
    path = tmp_path / "phones.csv"
    path.write_text("id,start,end,label\nx,0,0.1,SIL\nx,0.1,0.2,a\nx,0.2,0.3,b\n")
    skip = load_sweep_config(["task=phone"]).task.silence

    def labels(**given):
        spans, _ = read_given_spans({"spans": str(path)} | given, skip)
        return {spans.labels[i] for i in spans.label}, " ".join(spans.notes)

    kept, notes = labels()
    assert kept == {"a", "b"}
    assert "'SIL'" in notes
    assert "no span" not in notes
    kept, notes = labels(**{"spans.skip": "[b,nope]"})
    assert kept == {"SIL", "a"}
    assert "no span has the label 'nope' of spans.skip" in notes
    kept, notes = labels(**{"spans.skip": "[sil,b]"})
    assert kept == {"SIL", "a"}
    assert "no span has the label 'sil' of spans.skip" in notes


@pytest.mark.slow
def test_the_command_with_spans(made, tmp_path, monkeypatch):
    """A second table, charts, JSON keys, and what each number means with its source."""
    monkeypatch.chdir(tmp_path)
    store, spans = map(str, made)
    given = [store, f"spans={spans}", "k=8", "n_frames=600", "--json"]
    done = CliRunner().invoke(app, ["layers", *given])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    labels = document["labels"]
    assert (labels["spans"], labels["k"], labels["n_classes"]) == ("phones.csv", 8, 4)
    assert labels["layers"][1]["pwcca"]["value"] > 0.8
    assert labels["layers"][3]["pnmi"]["value"] is None
    assert "PNMI" in done.stderr
    folder = tmp_path / "sweeps/store/layers"
    html = re.sub(r"<script>.*?</script>", "", (folder / "report.html").read_text(), flags=re.S)
    for source in ("Morcos et al., 2018", "Pasad et al., 2021", "Hsu et al., 2021"):
        assert source in html
    assert "PWCCA is highest in layer" in html
    assert html.count("<svg") == 8
    stored = json.loads((folder / "layers.json").read_text())
    assert stored["labels"] == labels
    with (folder / "figures/pnmi.csv").open() as file:
        assert len(list(csv.reader(file))) == 5
    for wrong, message in (
        ("k=8", "k is about the file of spans=FILE, which is not given"),
        ("spans.tier=phones", "spans.tier is about the file of spans=FILE"),
        ("n_span=3", "did you mean n_spans"),
    ):
        done = CliRunner().invoke(app, ["layers", store, wrong])
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.split())

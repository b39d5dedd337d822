"""Statistics of layers with the labels of spans: canonical correlations, mutual information."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.cluster import KMeans
from sklearn.cross_decomposition import CCA
from sklearn.metrics import mutual_info_score
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.cli.verbs.span_settings import read_given_spans
from pipeline.config.loading import load_sweep_config
from pipeline.errors import ConfigError
from pipeline.feed.frames.sample import FrameSample
from pipeline.probing.layers import label_report
from pipeline.probing.layers.cca import RIDGES, Fit, Moments, Spectrum, held_out
from pipeline.probing.layers.information import divide, pnmi
from pipeline.probing.layers.label_report import COLUMNS, label_charts, label_rows
from pipeline.probing.layers.with_labels import MIN_COUNT, Estimate, measure_with_labels
from tests.helpers.feature_stores import make_store

N_CLASSES = 5


def items(n=900, dim=12, seed=0, strength=1.0):
    """Return features whose first dimensions depend on the class, and the classes."""
    random = np.random.default_rng(seed)
    classes = random.integers(N_CLASSES, size=n)
    x = random.standard_normal((n, dim)) @ random.standard_normal((dim, dim))
    x[:, :4] += strength * np.random.default_rng(99).standard_normal((N_CLASSES, 4))[classes]
    return x + 3, classes


def moments(x, classes):
    return Moments.of(torch.from_numpy(x), torch.from_numpy(classes), N_CLASSES)


def fitted(x, classes):
    sums = moments(x, classes)
    return Fit(sums, Spectrum.of(sums.covariances()[0]))


def scored(x, classes, parts=3):
    """Return the correlations of thirds: to fit, to choose and to score."""
    own = x - x.mean(0)
    sums = [moments(own[i::parts], classes[i::parts]) for i in range(parts)]
    return held_out(sums[0], Spectrum.of(sums[0].covariances()[0]), *sums[1:])


def test_canonical_correlations_equal_the_textbook_and_scikit_learn():
    """Those of the fit are the singular values of QᵀxQy, and what scikit-learn iterates to."""
    x, classes = items(300)
    one_hot = np.eye(N_CLASSES)[classes]
    found = fitted(x, classes).regularised(0.0).correlations.numpy()
    bases = [np.linalg.qr(z - z.mean(0))[0] for z in (x, one_hot[:, :-1])]
    assert found == pytest.approx(np.linalg.svd(bases[0].T @ bases[1])[1], rel=1e-9)
    model = CCA(2, max_iter=5000, tol=1e-12).fit(x, one_hot[:, :-1])
    pairs = zip(*(z.T for z in model.transform(x, one_hot[:, :-1])), strict=True)
    theirs = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    assert found[:2] == pytest.approx(theirs, abs=1e-5)


def test_the_correlation_of_two_classes_has_its_closed_form():
    """Two classes at ±m of unit variance: m / sqrt(1 + m²), on other items as well."""
    random = np.random.default_rng(0)
    classes = np.arange(30_000) // 3 % 2
    x = random.standard_normal((30_000, 3))
    x[:, 1] += 2 * classes - 1
    found = scored(x, classes)
    assert found.pwcca == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert found.cca == found.pwcca  # there is one direction


def by_definition(x, classes, ridge):
    """Return PWCCA and CCA on the last third, from the items themselves.

    Weights are those of Morcos et al. 2018, equation 2, for the smaller side.
    """
    one_hot = np.eye(N_CLASSES)[classes]
    (x, y), (other_x, other_y) = ([z[i::3] - z[i::3].mean(0) for z in (x, one_hot)] for i in (0, 2))
    xx = x.T @ x / len(x)
    xx += ridge * np.trace(xx) / len(xx) * np.eye(len(xx))
    values, vectors = np.linalg.eigh(xx)
    white_x = vectors / np.sqrt(values) @ vectors.T
    values, vectors = np.linalg.eigh(y.T @ y / len(y))
    white_y = vectors[:, 1:] / np.sqrt(values[1:])
    left, _, right = np.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    a, b = white_x @ left, white_y @ right.T
    correlations = [
        np.corrcoef(other_x @ a[:, i], other_y @ b[:, i])[0, 1] for i in range(a.shape[1])
    ]
    variates, sides = (x @ a, x) if x.shape[1] < white_y.shape[1] else (y @ b, y)
    alpha = np.abs(variates.T @ sides).sum(1)
    return np.average(correlations, weights=alpha), np.mean(correlations)


@pytest.mark.parametrize(("dim", "ridge"), [(12, 1e-2), (12, 1.0), (3, 0.0)])
def test_held_out_scores_equal_their_definition(dim, ridge):
    """Directions and weights are of the first third, correlations of another, and signed."""
    x, classes = items(600, dim=max(dim, 4))
    x = x[:, :dim]
    own = x - x.mean(0)
    sums = [moments(own[i::3], classes[i::3]) for i in range(3)]
    found = held_out(sums[0], Spectrum.of(sums[0].covariances()[0]), *sums[1:], ridges=[ridge])
    pwcca, cca = by_definition(x, classes, ridge)
    assert found.pwcca == pytest.approx(pwcca, rel=1e-9)
    assert found.cca == pytest.approx(cca, rel=1e-9)


def test_what_the_correlations_are_invariant_to():
    """Rotation, scale and shift, with regularisation; any invertible map without."""
    x, classes = items()
    random = np.random.default_rng(1)
    mixed = random.standard_normal((12, 12))
    rotation = np.linalg.qr(mixed)[0]
    first, turned = scored(x, classes), scored(50 * x @ rotation - 7, classes)
    for kind in ("pwcca", "cca", "svcca"):
        assert getattr(turned, kind) == pytest.approx(getattr(first, kind), rel=1e-7)
    plain = fitted(x, classes).regularised(0.0)
    other = fitted(x @ mixed, classes).regularised(0.0)
    assert torch.allclose(plain.correlations, other.correlations, rtol=1e-6)
    assert torch.allclose(plain.weights, other.weights, rtol=1e-6)


def test_extremes_of_the_correlations():
    """1 if the features give the class; about 0 for random classes; nan for constant features."""
    x, classes = items()
    given = np.concatenate([np.eye(N_CLASSES)[classes], x[:, 5:]], axis=1)
    assert scored(given, classes).pwcca == pytest.approx(1, abs=1e-6)
    random = np.random.default_rng(3).integers(N_CLASSES, size=len(classes))
    found = scored(x, random)
    in_sample = fitted(x, random).regularised(0.0).correlations.mean()
    assert abs(found.pwcca) < 0.08 < in_sample  # correlations of the fit are biased upwards
    assert np.isnan(scored(np.zeros((900, 4)), classes).pwcca)
    assert np.isnan(scored(x, np.zeros(900, int)).pwcca)


def test_svcca_leaves_out_directions_of_little_variance():
    """A class that is in less than 1 % of the variance is lost to SVCCA only."""
    random = np.random.default_rng(0)
    classes = np.arange(900) // 3 % 2
    x = np.concatenate([30 * random.standard_normal((900, 3)), classes[:, None]], axis=1)
    found = scored(x, classes)
    assert found.pwcca == pytest.approx(1, abs=0.01)
    assert abs(found.svcca) < 0.15


def test_the_regularisation_is_chosen():
    """With few items for many features, more than the least one is better."""
    random = np.random.default_rng(0)
    classes = random.integers(N_CLASSES, size=240)
    x = random.standard_normal((240, 70)) + np.eye(70)[classes] * 3
    own = x - x.mean(0)
    sums = [moments(own[i::3], classes[i::3]) for i in range(3)]
    spectrum = Spectrum.of(sums[0].covariances()[0])
    chosen = held_out(sums[0], spectrum, *sums[1:]).pwcca
    fixed = [held_out(sums[0], spectrum, *sums[1:], ridges=[ridge]).pwcca for ridge in RIDGES]
    assert chosen in fixed
    assert chosen > fixed[0] + 0.05


def frame_sample(features, n_utterances):
    """Return a sample of one layer, with equally many frames of each utterance."""
    n = len(features)
    utterance = np.repeat(np.arange(n_utterances), n // n_utterances)
    frame = np.arange(n) % (n // n_utterances)
    return FrameSample(features[None], utterance, frame, frame > 0)


def test_pnmi_equals_that_of_scikit_learn():
    """For clusters far apart, both find them, and share and entropy are those of its functions."""
    random = np.random.default_rng(0)
    cluster = random.integers(4, size=1200)
    labels = (cluster + (random.random(1200) < 0.3)) % 3
    features = 50 * random.standard_normal((4, 6))[cluster] + random.standard_normal((1200, 6))
    sample = frame_sample(features.astype(np.float32), 60)
    [division] = divide(sample, labels, 1, seed=0)
    found, chance = pnmi(sample.features[0], division, 3, k=4)
    codes = KMeans(4, n_init=10, random_state=0).fit_predict(features)[division.test]
    own = labels[division.test]
    expected = mutual_info_score(own, codes) / entropy(np.bincount(own))
    assert found == pytest.approx(expected, rel=1e-9)
    assert 0 < chance < 0.05 < found
    exact, _ = pnmi(sample.features[0], replace(division, labels=cluster[division.test]), 4, k=4)
    assert exact == pytest.approx(1)
    assert np.isnan(pnmi(np.ones((1200, 6), np.float32), division, 3, k=4)[0])


def test_divisions_are_of_utterances_and_shuffle_spans():
    """Halves share no utterance; shuffling moves the labels of spans, not of single frames."""
    labels = np.repeat(np.arange(40) % 5 - 1, 10)  # four spans in each of ten utterances
    sample = frame_sample(np.zeros((400, 2), np.float32), 10)
    divisions = divide(sample, labels, 3, seed=1)
    for division in divisions:
        owners = [set(sample.utterance[part]) for part in (division.train, division.test)]
        assert not owners[0] & owners[1]
        assert len(owners[0]) == 5
        assert (labels[division.test] >= 0).all()
        assert np.array_equal(labels[division.test], division.labels)
        spans = division.shuffled.reshape(-1, 10)
        assert (spans == spans[:, :1]).all()
        assert np.array_equal(np.sort(division.shuffled), np.sort(division.labels))
    assert any(not np.array_equal(one.labels, one.shuffled) for one in divisions)
    assert len({tuple(sorted(one.train)) for one in divisions}) == 3
    again = divide(sample, labels, 3, seed=1)
    assert all(np.array_equal(a.train, b.train) for a, b in zip(divisions, again, strict=True))


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
        (1, {}, rf"0 labels with at least {MIN_COUNT} spans of 16"),
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

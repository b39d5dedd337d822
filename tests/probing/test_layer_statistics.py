"""Layer statistics: formulas, sample, report and command."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.errors import ConfigError, StoreError
from pipeline.feed.frames.sample import MAX_FRAMES, SLICE_FRAMES, sample_frames
from pipeline.probing.encoder_description import describe_encoder, encoder_warnings, weights_source
from pipeline.probing.layers.cka import linear_cka
from pipeline.probing.layers.report import COLUMNS, table_rows, write_layers_report
from pipeline.probing.layers.statistics import (
    Outlier,
    mean_cosine,
    measure_layers,
    spectrum,
)
from tests.helpers.browser import find_browser, measure, served
from tests.helpers.charts import rendered
from tests.helpers.feature_stores import make_store, noise


def matrix(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Return correlated features that are not centred."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, dim, generator=random) @ torch.randn(dim, dim, generator=random)
    return mixed + torch.randn(dim, generator=random)


def hsic_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return CKA by its definition: HSIC of linear kernels, centred by H = I - 11'/n."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = (centre @ z.double() @ z.double().T @ centre for z in (x, y))
    return float(torch.trace(k @ m) / torch.sqrt(torch.trace(k @ k) * torch.trace(m @ m)))


@pytest.mark.parametrize(("n", "dims"), [(200, (12, 30)), (20, (12, 30)), (9, (40, 40))])
def test_cka_equals_its_definition(n, dims):
    """With fewer features or with fewer frames, it equals that of explicit kernels."""
    x, y = matrix(n, dims[0]), matrix(n, dims[1], seed=1)
    y[:, :5] += x[:, :5]
    assert linear_cka(x, y) == pytest.approx(hsic_cka(x, y), rel=1e-9)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), rel=1e-12)


def test_features_that_are_not_finite_are_named(tmp_path):
    """As damage may leave them; the message has the utterance."""

    def features(row, layer, n_frames, dim):
        found = noise(row, layer, n_frames, dim)
        if (row, layer) == (2, 3):
            found[-1, 0] = np.nan
        return found

    make_store(tmp_path / "store", [20, 30, 25], features=features)
    store = pipeline.open_store(tmp_path / "store")
    named = (
        rf"features of 1 utterance of .* are not finite \({re.escape(store.ids[2])}\); `strata v"
    )
    with pytest.raises(StoreError, match=named):
        measure_layers(store)
    assert measure_layers(store.take([0, 1])).n_utterances == 2


def test_cka_is_invariant_to_rotation_scale_and_shift_only():
    """1 for a rotated, scaled and shifted copy; less for a stretched one; 0 if unrelated."""
    x = matrix(500, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    assert linear_cka(x, 3.7 * x.double() @ rotation + 5) == pytest.approx(1, abs=1e-12)
    stretched = x * torch.tensor([100.0] + [1.0] * 15)
    assert linear_cka(x, stretched) < 0.9
    unrelated = torch.randn(20_000, 4), torch.randn(20_000, 4)
    assert linear_cka(*unrelated) < 0.01
    assert np.isnan(linear_cka(x, torch.full((500, 3), 0.1)))


def test_anisotropy_is_the_mean_cosine_over_pairs_of_utterances():
    """On known vectors, and compared with a loop over all pairs."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    utterance = np.array([0, 0, 1, 1])
    assert mean_cosine(torch.tensor([east] * 4), utterance) == pytest.approx(1)
    assert mean_cosine(torch.tensor([east, east, north, north]), utterance) == pytest.approx(0)
    opposite = torch.tensor([east, east, [-1.0, 0.0], [-1.0, 0.0]])
    assert mean_cosine(opposite, utterance) == pytest.approx(-1)
    units = torch.nn.functional.normalize(matrix(40, 6).double())
    owners = np.repeat([0, 3, 4, 9], [1, 20, 7, 12])
    pairs = [
        float(units[i] @ units[j]) for i in range(40) for j in range(40) if owners[i] != owners[j]
    ]
    assert mean_cosine(units, owners) == pytest.approx(np.mean(pairs), rel=1e-9)
    assert np.isnan(mean_cosine(units, np.zeros(40, int)))


@pytest.mark.parametrize("n", [4000, 30])
def test_spectrum_of_known_variances(n):
    """The spectrum is that of the squared singular values; equal variances give the full rank."""
    x = matrix(n, 50).double()
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    shares = values / values.sum()
    first, rank = spectrum(x)
    assert first == pytest.approx(float(shares[0]), rel=1e-9)
    assert rank == pytest.approx(float((-shares * shares.log()).nansum().exp()), rel=1e-6)
    square = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
    assert spectrum(square) == pytest.approx((0.5, 2.0))


def addressed(row, layer, n_frames, dim):
    """Return features that encode their address: row, layer, frame, then zeros."""
    values = np.zeros((n_frames, dim), np.float16)
    values[:, 0], values[:, 1], values[:, 2] = row, layer, np.arange(n_frames)
    return values


def test_a_sample_holds_slices_of_the_store(tmp_path):
    """Every frame is at its address in the store, and consecutive frames are marked.

    This includes pieces, short utterances and the ends of long ones.
    """
    make_store(tmp_path, [100, 3, 250, 17, 700, 1], features=addressed, pieces={4: 4}, lost=(2,))
    store = pipeline.open_store(tmp_path)
    sample = sample_frames(store, 400, seed=1)
    assert sample.features.shape == (3, len(sample.utterance), 8)
    assert abs(len(sample.utterance) - 400) <= SLICE_FRAMES * 5
    row, layer, frame = np.moveaxis(sample.features.astype(int), 2, 0)[:3]
    rows = np.array([int(name[-4:]) for name in store.ids])
    assert (row == rows[sample.utterance]).all()
    assert (layer == np.array([[1], [2], [3]])).all()
    assert (frame == frame[0]).all()
    assert len(set(zip(row[0], frame[0], strict=True))) == len(row[0])
    follows = (np.diff(frame[0]) == 1) & (np.diff(row[0]) == 0)
    assert np.array_equal(sample.follows[1:], follows)
    assert 0.8 < sample.follows.mean() < 1


def test_samples_are_complete_or_depend_on_the_seed(tmp_path):
    """A small store is sampled completely; equal seeds draw equal frames."""
    make_store(tmp_path, [100, 3, 250], features=noise)
    store = pipeline.open_store(tmp_path)
    whole = sample_frames(store, 5000, seed=3)
    assert np.array_equal(whole.features, np.concatenate([x.numpy() for x in store[:]], axis=1))
    assert whole.follows.sum() == 353 - 3
    some, again, other = (sample_frames(store, 100, seed) for seed in (0, 0, 1))
    assert np.array_equal(some.features, again.features)
    assert not np.array_equal(some.features, other.features)


def test_samples_are_uniform_over_frames(tmp_path):
    """An utterance with a third of the frames has about a third of the sample."""
    make_store(tmp_path, [3200, *[160] * 40], features=noise, frames_per_unit=9728)
    sample = sample_frames(pipeline.open_store(tmp_path), 2400, seed=0)
    assert 0.2 < (sample.utterance == 0).mean() < 0.45
    assert len(np.unique(sample.utterance)) == 41


def test_impossible_samples_are_refused(tmp_path):
    """Too few frames, too many frames, and a store without frames raise an error."""
    make_store(tmp_path, [100], features=noise)
    store = pipeline.open_store(tmp_path)
    for wrong in (1, MAX_FRAMES + 1):
        with pytest.raises(ConfigError, match=f"n_frames is {wrong}"):
            sample_frames(store, wrong, seed=0)
    with pytest.raises(StoreError, match="no frames"):
        sample_frames(store.select(digit=3), 100, seed=0)


def layered(row, layer, n_frames, dim):
    """Layer 1: noise. 2: layer 1 reversed. 3: slow, offset, one outlier. 4: constant."""
    x = noise(row, 1, n_frames, dim).astype(np.float64)
    if layer == 2:
        x = x[:, ::-1]
    if layer == 3:
        x = np.cumsum(x, 0) / 20 + 3.0
        x[:, 5] *= 40
    if layer == 4:
        x = np.full_like(x, 0.1)
    return x.astype(np.float16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("layers") / "store"
    columns = {"identity": {"source": {"columns": []}, "encoder": {"model": "by <hand>"}}}
    make_store(
        path,
        [200] * 12,
        layers=(1, 2, 3, 4),
        features=layered,
        attributes={**columns, "provenance": {"weights": "random"}},
    )
    return path


@pytest.fixture(scope="module")
def found(made):
    return measure_layers(pipeline.open_store(made), n_frames=1600, seed=0)


def test_the_statistics_of_each_layer(made, found):
    """Each statistic equals that of the same frames, and reflects how the layer was made."""
    one, two, three, four = found.layers
    sample = sample_frames(pipeline.open_store(made), 1600, seed=0)
    frames = sample.features.astype(np.float64)
    norms = np.linalg.norm(frames, axis=2)
    for layer, own, norm in zip(found.layers, frames, norms, strict=True):
        assert layer.norm == pytest.approx(norm.mean())
        assert layer.norm_sd == pytest.approx(norm.std(), abs=1e-9)
        assert layer.magnitude == pytest.approx(np.abs(own).mean())
        assert layer.largest == np.abs(own).max()
        assert layer.largest_dim == np.abs(own).max(0).argmax()
    assert (one.layer, four.layer, found.n_frames, found.n_utterances) == (1, 4, 1600, 12)
    later = np.flatnonzero(sample.follows)
    cosine = (
        (frames[0, later] * frames[0, later - 1]).sum(1) / norms[0, later] / norms[0, later - 1]
    )
    assert one.smoothness == pytest.approx(cosine.mean())
    assert abs(one.anisotropy) < 0.05
    assert three.anisotropy > 0.9
    assert three.smoothness > 0.95
    assert 7.8 < one.effective_rank <= 8
    assert three.first_component > 0.9
    assert one.outliers == ()
    rms = np.sqrt((frames[2] ** 2).mean(0))
    [outlier] = three.outliers
    assert outlier == Outlier(5, pytest.approx(rms[5] / np.sort(rms)[3]))
    assert two.norm == pytest.approx(one.norm)


def test_cka_of_the_layers(found):
    """Symmetric, 1 on the diagonal and for a rotated layer, None for a constant layer."""
    cka = np.array(found.cka, float)
    assert np.array_equal(cka, cka.T, equal_nan=True)
    assert cka[0, 1] == pytest.approx(1, abs=1e-9)
    assert np.allclose(np.diag(cka)[:3], 1)
    assert cka[0, 2] < 0.3
    assert np.isnan(cka[3]).all()
    four = found.layers[3]
    assert (four.first_component, four.effective_rank, found.cka[3][3]) == (None, None, None)
    assert four.anisotropy == pytest.approx(1)


@pytest.mark.slow
def test_the_report_of_the_layers(found, tmp_path):
    """The report has charts, numbers, warning, outliers; no NaN in JSON; reproducible bytes."""
    page = write_layers_report(found, tmp_path / "a")
    write_layers_report(found, tmp_path / "b")
    charts = {
        f"{name}{ending}"
        for name in ("sizes", "directions", "variance", "cka")
        for ending in (".pdf", ".svg", ".csv", "-wide.svg", "-wide.png")
    }
    files = {path for path in page.parent.rglob("*") if path.is_file()}
    assert {path.name for path in files} == {*charts, "report.html", "layers.json"}
    for path in files:
        same = tmp_path / "b" / path.relative_to(page.parent)
        assert path.read_bytes() == same.read_bytes(), path.name
    html = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.S)
    assert html.index("RANDOM") < html.index("<h1")
    assert "by &lt;hand&gt;" in html
    assert "layer 3: 5 (" in html
    assert html.count("<svg") == 4
    assert not re.findall(r"https?:|@import|\bsrc\s*=|<script", html)
    stored = json.loads((tmp_path / "a/layers.json").read_text(), parse_constant=pytest.fail)
    assert stored["layers"][2]["outliers"][0]["dim"] == 5
    assert stored["cka"][3] == [None] * 4
    with (page.parent / "figures/sizes.csv").open() as file:
        rows = list(csv.DictReader(file))
    for layer, row in zip(found.layers, rows, strict=True):
        assert int(row["layer"]) == layer.layer
        assert float(row["norm of a frame (mean ± sd)"]) == layer.norm
        assert float(row["sd"]) == layer.norm_sd
    with (page.parent / "figures/cka.csv").open() as file:
        cells = [row["cka"] for row in csv.DictReader(file)]
    assert cells == ["" if v is None else repr(v) for row in found.cka for v in row]


def test_the_table_of_the_layers(found):
    """One row per layer, one cell per heading; an undefined value is a dash."""
    rows = table_rows(found)
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][COLUMNS.index("next")] == "1.000"
    assert rows[1][COLUMNS.index("next")] == f"{found.cka[1][2]:.3f}" != "1.000"
    assert rows[3][COLUMNS.index("rank")] == rows[3][COLUMNS.index("next")] == "–"


@pytest.mark.browser
@pytest.mark.skipif(
    find_browser() is None, reason="no chromium or google-chrome on PATH (.ci/run installs one)"
)
def test_a_browser_shows_the_layers(found, tmp_path):
    """Four charts of some size with all their text visible, and nothing loaded."""
    with rendered(["svg"]):
        write_layers_report(found, tmp_path)
    with served(tmp_path) as site:
        seen = measure(site, 1100)
        assert len(seen["charts"]) == 4
        for chart in seen["charts"]:
            assert min(chart["width"], chart["height"]) > 150
            assert chart["outside"] == []
        assert seen["loaded"] == 0


def test_the_command(made, tmp_path, monkeypatch):
    """`strata layers` prints a table, with --json JSON, and writes a report under sweeps/."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["layers", str(made), "n_frames=160", "seed=5", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["report"] == "sweeps/store/layers/report.html"
    assert document["n_frames"] == 160
    assert document["seed"] == 5
    assert [layer["layer"] for layer in document["layers"]] == [1, 2, 3, 4]
    assert (tmp_path / document["report"]).is_file()
    assert "WARNING: the encoder's weights are RANDOM" in done.stderr
    assert "anisotropy" in done.stderr
    for wrong in ("n_frames=many", "seed=-1", "n_frame=3"):
        done = CliRunner().invoke(app, ["layers", str(made), wrong])
        assert done.exit_code == 2
        assert wrong.partition("=")[0] in done.stderr


def test_the_statistics_of_a_collapsed_store(made, tmp_path):
    """A collapsed store has one layer and no CKA; the source of the weights is the parent's."""
    pipeline.collapse(made, tmp_path / "out", [0.5, 0.25, 0.25, 0.0])
    store = pipeline.open_store(tmp_path / "out")
    found = measure_layers(store, n_frames=200)
    assert len(found.layers) == 1
    assert found.cka == ((pytest.approx(1.0),),)
    assert "no two layers" in write_layers_report(found, tmp_path / "page").read_text()
    assert weights_source(store.attributes) == "random"
    assert encoder_warnings(store.attributes)
    assert describe_encoder(store.attributes).endswith("a weighted sum of 4 layers, 1 to 4")

"""CKA between the layers of several encoders, on the same frames."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.errors import ConfigError, StoreError
from pipeline.feed.frames.sample import sample_same_frames
from pipeline.probing.layers import between
from pipeline.probing.layers.between import (
    align,
    are_one_encoder,
    by_encoder,
    compare_encoders,
    names_of,
)
from pipeline.probing.layers.cka import GroupedFrames, linear_cka
from pipeline.probing.layers.comparison_report import (
    COLUMNS,
    comparison_rows,
    draw_comparison,
)
from pipeline.probing.report.charts import COLUMN, SCREEN
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [90, 40, 120, 70, 60, 110]
ORDER = [4, 2, 0, 5, 1, 9]  # rows of the first store that the second one has; 9 it does not know
ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]


def first_layers(row, layer, n_frames, dim):
    """Return layers of noise; layer 3 is constant."""
    return np.full((n_frames, dim), 0.5) if layer == 3 else noise(row, layer, n_frames, dim)


def second_layers(place, layer, n_frames, dim):
    """Layer 4: layer 2 of the first encoder, rotated. 5: other noise."""
    row = ORDER[place]
    if layer == 4:
        return 3 * noise(row, 2, n_frames, 8).astype(float) @ ROTATION + 1
    return noise(row, 77, n_frames, dim)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two stores: 6 utterances each, 5 in common, of which one is of other audio in the second."""
    root = tmp_path_factory.mktemp("encoders")
    make_store(root / "one", LENGTHS, layers=(1, 2, 3), features=first_layers)
    lengths = [LENGTHS[row] + 1 if row < 6 else 30 for row in ORDER]
    lengths[0] += 20
    make_store(
        root / "two", lengths, layers=(4, 5), features=second_layers,
        ids=[f"utt-{row:04d}" for row in ORDER],
    )  # fmt: skip
    return root / "one", root / "two"


@pytest.fixture(scope="module")
def stores(folders):
    return [pipeline.open_store(folder) for folder in folders]


def test_the_same_frames_are_compared(stores):
    """Utterances are paired by id, cut to the shorter one, and left out if they differ by more."""
    aligned, notes = align(stores)
    assert aligned[0].ids == aligned[1].ids == ["utt-0000", "utt-0001", "utt-0002", "utt-0005"]
    assert "5 utterances in all stores, compared; up to 1 of a store left out" in notes[0]
    assert "1 utterance with different numbers" in notes[1]
    assert "'utt-0004'" in notes[1]
    one, two = sample_same_frames(aligned, 200, seed=0)
    assert np.array_equal(one.frame, two.frame)
    for i, (position, frame) in enumerate(zip(one.utterance, one.frame, strict=True)):
        own = aligned[0].read(int(position))
        assert np.array_equal(one.features[:, i], own[:, int(frame)])
        assert np.array_equal(two.features[:, i], aligned[1].read(int(position))[:, int(frame)])
        assert frame < own.shape[1]


def test_similarity_of_two_encoders(stores):
    """1 for a rotated layer of another encoder; near chance for other noise; None if constant."""
    found = compare_encoders(stores, 5000, seed=0)
    [pair] = found.pairs
    cka, error, chance = (np.array(m, float) for m in (pair.cka, pair.error, pair.chance))
    assert cka.shape == (3, 2)
    assert cka[1, 0] == pytest.approx(1, abs=1e-4)  # stored as float16
    assert error[1, 0] < 1e-4
    for i, j in ((0, 0), (0, 1), (1, 1)):
        assert cka[i, j] == pytest.approx(chance[i, j], abs=4 * error[i, j] + 0.01)
        assert cka[i, j] < 0.1
    assert pair.cka[2] == pair.error[2] == (None, None)
    assert (found.n_frames, found.n_utterances, found.n_groups) == (360, 4, 4)
    aligned, _ = align(stores)
    whole = [torch.cat(list(store[:]), 1) for store in aligned]
    whole[1] = torch.cat([x[:, :-1] for x in aligned[1][:]], 1)
    assert cka[0, 0] == pytest.approx(linear_cka(whole[0][0], whole[1][0]), rel=1e-9)
    again = compare_encoders(stores[::-1], 5000, seed=0)
    assert np.allclose(np.array(again.pairs[0].cka, float).T, cka, equal_nan=True)


def test_utterances_in_common_are_compared_up_to_two_frames_of_difference(stores, tmp_path):
    """Two more frames are padding of the end; with three it is another recording."""
    make_store(tmp_path, [LENGTHS[0] + 2, LENGTHS[1] + 3], layers=(7,))
    aligned, notes = align([stores[0], pipeline.open_store(tmp_path)])
    assert aligned[0].ids == ["utt-0000"]
    assert "(first 'utt-0001')" in notes[-1]


def test_the_jackknife_has_ten_groups_of_whole_utterances(tmp_path):
    """However many utterances there are; a warning about an encoder has its name."""
    lengths = [3 + i % 5 for i in range(40)]
    for name, layer in (("one", 1), ("two", 2)):
        make_store(
            tmp_path / name,
            lengths,
            layers=(layer,),
            dim=2,
            encoder={"model": name, "weights": {"source": "random"}},
        )
    opened = [pipeline.open_store(tmp_path / name) for name in ("one", "two")]
    found = compare_encoders(opened, 1000)
    assert (found.n_utterances, found.n_groups) == (40, 10)
    assert [line.partition(":")[0] for line in found.warnings] == ["one", "two"]
    [sample] = sample_same_frames(opened[:1], 1000, seed=0)
    bounds = between._bounds(sample)
    assert (sample.frame[bounds[:-1]] == 0).all()
    assert max(np.diff(bounds)) <= 2 * min(np.diff(bounds))


def test_errors_and_chance_equal_their_definitions():
    """The jackknife leaves each group out in turn; chance is the mean over orders of frames."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=random, dtype=torch.float64) + 3
    y = x[:, :3] ** 2 + torch.randn(60, 3, generator=random, dtype=torch.float64)
    bounds = [0, 11, 30, 44, 60]
    found = GroupedFrames(x, bounds).aligned(GroupedFrames(y, bounds))
    assert found.cka == pytest.approx(linear_cka(x, y), rel=1e-12)
    without = []
    for a, b in pairwise(bounds):
        kept = torch.cat([torch.arange(a), torch.arange(b, 60)])
        without.append(linear_cka(x[kept], y[kept]))
    mean = np.mean(without)
    expected = np.sqrt(3 / 4 * sum((value - mean) ** 2 for value in without))
    assert found.error == pytest.approx(expected, rel=1e-9)
    few, others = x[:12], y[:12]
    found = GroupedFrames(few, [0, 12]).aligned(GroupedFrames(others, [0, 12]))
    orders = [linear_cka(few, others[torch.randperm(12, generator=random)]) for _ in range(4000)]
    assert found.chance == pytest.approx(np.mean(orders), rel=0.03)
    assert np.isnan(found.error)  # a single group


def test_stores_are_joined_or_compared(folders, tmp_path):
    """Those of one encoder with other utterances are one store; all others are encoders."""
    make_store(tmp_path / "more", [50], layers=(1, 2, 3), ids=["other"], features=first_layers)
    given = [pipeline.open_store(p) for p in (*folders, tmp_path / "more")]
    found, reasons = by_encoder(given)
    assert [len(store) for store in found] == [7, 6]
    assert "layers is [1, 2, 3] there, [4, 5] here" in reasons[0]
    make_store(tmp_path / "same", LENGTHS, layers=(1, 2, 3), features=first_layers)
    found, _ = by_encoder([given[0], pipeline.open_store(tmp_path / "same")])
    assert len(found) == 2
    cka = np.array(compare_encoders(found, 300).pairs[0].cka, float)
    assert np.diag(cka)[:2] == pytest.approx(1, abs=1e-12)
    with pytest.raises(ConfigError, match="given twice"):
        by_encoder([given[0], given[0]])


SLOW = {"sample_rate_hz": 16000, "hop_samples": 640, "receptive_field_samples": 400}
LATE = {"sample_rate_hz": 16000, "hop_samples": 320, "receptive_field_samples": 2000}


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        ({"geometry": SLOW, "frame_rate_hz": 25.0}, ConfigError, "50 frames a second and .* 25;"),
        ({"geometry": LATE}, ConfigError, "centre at 12.5 ms and that of .* at 62.5 ms"),
        ({"ids": ["a", "b"]}, StoreError, "no utterance in common: .*'utt-0000'.*'a', 'b'"),
        ({"lengths": [9, 9]}, StoreError, "2 utterances in common have different .* 90, 9"),
    ],
)
def test_what_cannot_be_compared_is_refused(stores, tmp_path, form, error, message):
    """Other times, utterances or recordings; the message names both stores' values."""
    attributes = {key: form[key] for key in ("geometry", "frame_rate_hz") if key in form}
    lengths = form.get("lengths", LENGTHS[:2])
    make_store(tmp_path, lengths, layers=(7,), attributes=attributes, ids=form.get("ids"))
    with pytest.raises(error, match=message):
        align([stores[0], pipeline.open_store(tmp_path)])


def test_stores_without_common_utterances_may_have_been_meant_as_one(stores, tmp_path):
    """The message has the reason why they are not read as one store."""
    make_store(tmp_path, [9], layers=(1, 2), ids=["other"])
    found, reasons = by_encoder([stores[0], pipeline.open_store(tmp_path)])
    message = r"Or to read them as one store: .*layers is \[1, 2, 3\] there, \[1, 2\] here"
    with pytest.raises(StoreError, match=message):
        align(found, reasons)


def test_stores_are_named_as_sweeps_name_their_encoders(tmp_path):
    """By the model, or what tells two of one model apart; copies by folder, or else by path."""
    places = {
        "a/read": {"model": "hubert"},
        "b": {"model": "wavlm"},
        "c/read": {"model": "hubert"},
        "d": {"model": "hubert", "precision": "bf16"},
        "e": {"model": "hubert", "precision": "fp32"},
    }
    stores = {}
    for place, encoder in places.items():
        make_store(tmp_path / place, [9], encoder=encoder)
        stores[place] = pipeline.open_store(tmp_path / place)

    def named(*chosen):
        return names_of([stores[place] for place in chosen])

    assert named("a/read", "b") == ["hubert", "wavlm"]
    assert named("d", "e") == ["hubert bf16", "hubert fp32"]
    assert not are_one_encoder([stores["d"], stores["e"]])
    copies = named("a/read", "c/read")
    assert len(set(copies)) == 2
    assert copies[0].endswith("a/read")
    assert are_one_encoder([stores["a/read"], stores["c/read"]])


@pytest.mark.slow
def test_the_command_compares_encoders(folders, tmp_path, monkeypatch):
    """A rectangular map with its numbers, a table of the most similar layers, notes, JSON."""
    monkeypatch.chdir(tmp_path)
    given = [str(folder) for folder in folders]
    ids = [f"utt-{row:04d}" for row in (0, 1, 2, 4, 5)]
    spans = [
        f"{name},{at * 0.1:.1f},{at * 0.1 + 0.1:.1f},{'ab'[at % 2]}"
        for name in ids
        for at in range(6)
    ]
    Path("turns.csv").write_text("\n".join(["id,start,end,label", *spans]))
    settings = ["n_frames=300", "spans=turns.csv", "k=4"]
    done = CliRunner().invoke(app, ["layers", *given, *settings, "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["report"] == "sweeps/one-vs-two/layers/report.html"
    assert [encoder["layers"] for encoder in document["encoders"]] == [[1, 2, 3], [4, 5]]
    assert {name: len(found["layers"]) for name, found in document["labels"].items()} == {
        "one": 3,
        "two": 2,
    }
    [pair] = document["pairs"]
    assert pair["cka"][2] == [None, None]
    assert "comparing 2 stores of one encoder, one, two, because" in done.stderr
    assert "1 utterance with different numbers" in done.stderr
    page = (tmp_path / document["report"]).read_text()
    html = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "Layer 2 of one and layer 4 of two are the most similar (CKA 1.000" in html
    assert "Kornblith et al., 2019" in html
    assert "Morcos et al., 2018" in html
    with (tmp_path / "sweeps/one-vs-two/layers/figures/cka.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["other_layer"]) for row in rows[:3]] == [
        ("1", "4"), ("1", "5"), ("2", "4"),
    ]  # fmt: skip
    assert [row["cka"] for row in rows[-2:]] == ["", ""]
    assert float(rows[2]["cka"]) == pair["cka"][1][0]
    done = CliRunner().invoke(app, ["layers", *given, "frame_statistics=true"])
    assert done.exit_code == 2
    assert "is about one encoder" in done.stderr


def test_the_table_has_both_directions(stores):
    """For each layer the most similar layer of the other encoder; a dash if it is constant."""
    comparison = compare_encoders(stores, 300)
    rows = comparison_rows(comparison)
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert [row[:4] for row in rows] == [
        ["one", "1", "two", rows[0][3]],
        ["one", "2", "two", "4"],
        ["one", "3", "two", "–"],
        ["two", "4", "one", "2"],
        ["two", "5", "one", rows[4][3]],
    ]


def test_a_map_of_three_encoders_has_a_chart_per_pair(stores):
    """Charts are of the shape of their matrix, in both media."""
    charts = draw_comparison(compare_encoders([*stores, stores[0]], 100))
    assert [chart.name for chart in charts] == ["cka-1", "cka-2", "cka-3"]
    for medium in (SCREEN, COLUMN):
        axes = charts[0].draw(medium).axes[0]
        assert axes.get_xlim() == (-0.5, 1.5)
        assert axes.get_ylim() == (-0.5, 2.5)
        assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "5"]
        assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2", "3"]

"""Sweeps of several stores, heads and shares of train, and their comparison."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.comparing import running
from pipeline.comparing.interactive import sweeping
from pipeline.comparing.running import plan_sweeps, run_plan
from pipeline.comparing.stores import common_utterances, open_stores
from pipeline.config.composing import compose_sweep_config
from pipeline.errors import ConfigError, IdentityError, StoreError
from pipeline.events import Observer
from pipeline.probing.report import html
from pipeline.probing.report.methods import methods
from pipeline.store.format.codecs import FLOAT32
from tests.helpers.commands import error_line, last_json, strata
from tests.helpers.feature_stores import make_store
from tests.helpers.finished_sweeps import N, write_words
from tests.helpers.observers import Notes

RECIPE = {"lrs": [1e-2], "steps": 8, "eval_every": 4}
SETTINGS = {
    "labels": ["word"],
    "seeds": [0],
    "task_settings": RECIPE,
    "split": {"speaker": "speaker"},
}
OVERRIDES = ["task=ks", "labels=[word]", "seeds=[0]", "task.lrs=[1e-2]", "task.steps=8"]
OVERRIDES += ["task.eval_every=4", "split.speaker=speaker"]


@pytest.fixture(scope="module", autouse=True)
def _no_drawing():
    """Reports of single sweeps have tests of their own, and drawing them takes seconds."""

    def write(found, folder):
        (folder / "report.html").write_text(found.task)
        return folder / "report.html"

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(running, "write_report", write)
        changed.setattr(sweeping, "write_report", write)
        changed.setattr(html, "write_figures", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stores of two encoders; `turned` has the utterances of `plain` in reverse, and fewer."""
    path = tmp_path_factory.mktemp("stores")
    write_words(path / "plain", encoder={"model": "a"})
    write_words(path / "turned", order=range(N - 1, 3, -1), seed=1, encoder={"model": "b"})
    return path


def test_shares_that_are_too_small_are_refused_before_training(root):
    """Not after the larger shares are trained, which may take hours."""
    settings = SETTINGS | {"fractions": [0.001, 1], "split": {}}
    config = compose_sweep_config("sid", settings | {"labels": ["speaker"]})
    with pytest.raises(ConfigError, match=r"0\.001 of train is 1 utterance.*fractions of at least"):
        plan_sweeps([str(root / "plain"), str(root / "turned")], config, Notes())


def test_stores_of_the_same_utterances_are_compared_on_what_they_share(root, tmp_path):
    """In the order of the first, whatever that of the others; the missing ones are counted."""
    notes = Notes()
    plan = plan_sweeps(
        [str(root / "plain"), str(root / "turned")],
        compose_sweep_config("ks", SETTINGS | {"out": str(tmp_path / "out")}),
        notes,
    )
    first, second = (item.store for item in plan.sweeps)
    assert first.ids == second.ids == [f"utt-{row:04d}" for row in range(4, N)]
    assert notes.lines == [
        f"WARNING: {root / 'plain'} has 60 utterances, of which the 56 that all stores have are "
        "compared"
    ]
    assert [item.name for item in plan.sweeps] == ["plain", "turned"]
    found, folder = run_plan(plan, lambda: nullcontext(notes))
    [task] = found.tasks
    assert found.encoders == ("a", "b")
    one, other = (variant.sweep for variant in task.variants)
    assert one.test_ids == other.test_ids
    assert one.truth == other.truth
    assert one.n_train + one.n_dev + one.n_test == 56
    assert len(task.pairs) == 1
    assert task.notes == ()
    assert folder == tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["plain", "settings.json", "turned"]


@pytest.fixture(scope="module")
def several(root, tmp_path_factory):
    """A comparison of two stores, two heads and two shares of train, from Python."""
    out = tmp_path_factory.mktemp("several") / "out"
    notes = Notes()
    stores = [root / "plain", root / "turned"]
    options = {"heads": ["linear", "mlp"], "fractions": [0.5, 1], "out": out}
    return pipeline.sweep(stores, "ks", observer=notes, **SETTINGS, **options), notes, options


def test_heads_and_shares_are_variants(several):
    """One sweep for each, with its own folder; the table has a row per candidate of each."""
    result, notes, _ = several
    assert result.comparison.heads == ("linear", "mlp")
    assert result.comparison.fractions == (0.5, 1.0)
    assert result.comparison.n_sweeps == 8
    table = result.table
    assert len(table) == 8 * 3
    sizes = {(row["fraction"], row["n_train"]) for row in table.to_pylist()}
    assert len(sizes) == 2
    assert {row["head"] for row in table.to_pylist()} == {"linear", "mlp"}
    assert table.schema.field("layer").type == pa.int64()
    assert len(result.pairs) == 6  # of two encoders and two heads, with all of train
    assert result.best["ks"][0] == result.comparison.tasks[0].winner.name
    names = {path.name for path in result.folder.iterdir() if path.is_dir()}
    assert names == {
        *("tables", "plain-linear-100%-of-train", "plain-linear-50%-of-train"),
        *("plain-mlp-100%-of-train", "plain-mlp-50%-of-train", "turned-linear-100%-of-train"),
        *("turned-linear-50%-of-train", "turned-mlp-100%-of-train", "turned-mlp-50%-of-train"),
    }
    progress = [line for line in notes.lines if line.startswith("sweep ")]
    assert progress[0] == "sweep 1 of 8: plain / linear / 100 % of train"
    assert len(progress) == 8


def test_shares_change_train_alone(several):
    """Dev and test are those of the whole; smaller sets are parts of larger ones."""
    [task] = several[0].comparison.tasks
    sweeps = {(v.encoder, v.head, v.fraction): v.sweep for v in task.variants}
    whole, half = sweeps["a", "linear", 1.0], sweeps["a", "linear", 0.5]
    assert (half.n_dev, half.n_test, half.test_ids) == (whole.n_dev, whole.n_test, whole.test_ids)
    assert half.n_train == round(whole.n_train / 2)
    assert half.setup.fraction == 0.5
    assert "training utterances, drawn in proportion from each class" in half.split


def test_a_second_run_trains_nothing(root, several, monkeypatch):
    """Each sweep has its cached heads; reports of finished sweeps are not drawn again."""
    result, _, options = several
    before = {path: path.read_bytes() for path in (result.folder / "tables").iterdir()}
    drawn = []
    monkeypatch.setattr(running, "write_report", lambda *given: drawn.append(given))
    stores = [root / "plain", root / "turned"]
    again = pipeline.sweep(stores, "ks", observer=Observer(), **SETTINGS, **options)
    assert again.folder == result.folder
    sweeps = [variant.sweep for variant in again.comparison.tasks[0].variants]
    assert {found.trained for found in sweeps} == {0}
    assert drawn == []
    assert {path: path.read_bytes() for path in before} == before


def test_an_interruption_keeps_finished_heads(root, tmp_path, monkeypatch):
    """A comparison that ends in its second sweep trains the first one no more."""
    config = compose_sweep_config(
        "ks", SETTINGS | {"out": str(tmp_path), "heads": ["linear", "mlp"]}
    )
    sound, n_calls = running.sweep, []

    def interrupted(*given):
        n_calls.append(1)
        if len(n_calls) == 2:
            raise KeyboardInterrupt
        return sound(*given)

    monkeypatch.setattr(running, "sweep", interrupted)
    stores = [str(root / "plain")]
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan_sweeps(stores, config, Observer()), lambda: nullcontext(Observer()))
    found, _ = run_plan(plan_sweeps(stores, config, Observer()), lambda: nullcontext(Observer()))
    assert [variant.sweep.trained for variant in found.tasks[0].variants] == [0, 3]


def test_a_finished_comparison_can_be_reported_again(several, tmp_path):
    """From the folders of its sweeps: the same numbers."""
    result, *_ = several
    again = pipeline.report(result.folder, out=tmp_path / "report")
    rows = [
        sorted(map(str, r.table.select(["encoder", "head", "test"]).to_pylist()))
        for r in (result, again)
    ]
    assert rows[0] == rows[1]
    assert again.report == tmp_path / "report/report.html"
    html = again._repr_html_()
    assert html.count("<tr") == 1 + 4
    assert again.plot("best-layers")._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(
        ConfigError, match=r"'scores'; there are best-layers, layers, learning-curves$"
    ):
        again.plot("scores")
    with pytest.raises(ConfigError, match="no chart 'layer'; did you mean layers"):
        again.plot("layer")
    assert repr(again).startswith("<ComparisonResult: 8 sweeps of a, b on ks, ")


def test_the_command_compares_stores(root, several, tmp_path, monkeypatch):
    """An object with a winner; without out= each sweep goes where it goes alone."""
    monkeypatch.chdir(tmp_path)
    done = strata("sweep", root / "plain", root / "turned", *OVERRIDES, "fractions=[1]", "--json")
    assert done.returncode == 0, done.stderr
    document = last_json(done)
    assert document["encoders"] == ["a", "b"]
    assert document["report"] == "sweeps/plain+turned/ks-word-comparison/report.html"
    assert Path(document["report"]).is_file()
    folders = [item["folder"] for item in document["tasks"][0]["variants"]]
    assert all(name.startswith("sweeps/") and name.endswith("/ks-word") for name in folders)
    assert "sweep 1 of 2: plain" in done.stderr
    stored = json.loads(Path("sweeps/plain+turned/ks-word-comparison/settings.json").read_text())
    assert stored == {"sweeps": sorted(str(Path(name).resolve()) for name in folders)}


def test_one_share_is_one_sweep(root, tmp_path):
    """Its folder is told apart by name, and its report states the share."""
    result = pipeline.sweep(
        root / "plain", "ks", observer=Observer(), fractions=[0.5], **SETTINGS, out=tmp_path / "x"
    )
    assert isinstance(result, pipeline.SweepResult)
    assert result.sweep.setup.fraction == 0.5
    assert "drawn in proportion from each class" in methods(result.sweep)
    assert json.loads((result.folder / "settings.json").read_text())["fraction"] == 0.5


def test_default_folders_have_head_and_share(root, tmp_path, monkeypatch):
    """So that the sweeps of a comparison do not meet in one folder."""
    monkeypatch.chdir(tmp_path)
    options = {"heads": ["linear", "mlp"], "fractions": [0.5, 1]}
    plan = plan_sweeps([root / "plain"], compose_sweep_config("ks", SETTINGS | options), Observer())
    assert plan.folder == Path("sweeps/plain/ks-word-comparison")
    found, _ = run_plan(plan, lambda: nullcontext(Observer()))
    assert sorted(variant.folder for variant in found.tasks[0].variants) == [
        "sweeps/plain/ks-word",
        "sweeps/plain/ks-word-mlp",
        "sweeps/plain/ks-word-mlp-train0.5",
        "sweeps/plain/ks-word-train0.5",
    ]


def test_stores_of_one_encoder_without_common_ids_are_joined(root, tmp_path):
    """Also within a comparison: two halves of one encoder against a whole store of another."""
    halves = [tmp_path / "one", tmp_path / "two"]
    for path, rows in zip(halves, (range(20), range(20, N)), strict=True):
        write_words(path, order=rows, encoder={"model": "a"})
    [joined] = open_stores(halves)
    assert joined.ids == [f"utt-{row:04d}" for row in range(N)]
    both, other = open_stores([halves[0], root / "turned", halves[1]])
    assert len(both.backends) == 2
    first, second = common_utterances([both, other], Observer())
    assert first.ids == second.ids
    assert len(first) == 56


def test_what_can_neither_be_joined_nor_compared_is_one_line(root, tmp_path):
    """Each refusal names the stores, what differs, and what to do."""
    ids = {"ids": [f"x{row}" for row in range(5)]}
    make_store(tmp_path / "apart", [9] * 5, encoder={"model": "c"}, **ids)
    make_store(tmp_path / "long", [90] * N, encoder={"model": "c"})
    write_words(tmp_path / "wide", order=range(3), codec=FLOAT32, encoder={"model": "a"})
    write_words(tmp_path / "last", order=range(50, N), encoder={"model": "a"})
    plain = root / "plain"
    config = compose_sweep_config("ks", SETTINGS)
    for stores, error, message in (
        (
            (plain, tmp_path / "apart"),
            StoreError,
            "no utterance in common .* neither|cannot be joined",
        ),
        (
            (plain, tmp_path / "long"),
            StoreError,
            r"60 utterances of 60 .*9 and 90 frames\): equal ids",
        ),
        ((plain, plain), ConfigError, "is given twice"),
        ((tmp_path / "last", tmp_path / "wide"), IdentityError, "strata copy .* dtype=float16"),
        ((), ConfigError, "no store is given"),
    ):
        with pytest.raises(error, match=message) as caught:
            plan_sweeps(stores, config, Observer())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"word": "same"}, r"labels? of 60 in column 'word' differ between .*: 'ab' and 'zz'\)"),
        ({"word": None}, "other: labels names no column of the store: word"),
        ({"speaker": "same"}, r"different splits .*column 'speaker' differs for 60 utterances"),
    ],
)
def test_other_labels_or_splits_are_refused(root, tmp_path, changed, message):
    """The remedy is `strata relabel`; nothing is trained before."""
    rows = range(N)
    store = pipeline.open_store(root / "plain")
    columns = {name: store.metadata[name].to_pylist() for name in ("word", "score", "speaker")}
    for name, value in changed.items():
        if value is None:
            del columns[name]
        elif name == "word":
            columns[name][0] = "zz"
        else:
            columns[name] = [f"t{row % 7}" for row in rows]
    table = pa.table(columns)
    make_store(tmp_path / "other", [9] * N, columns=table, encoder={"model": "c"})
    config = compose_sweep_config("ks", SETTINGS)
    with pytest.raises(ConfigError, match=message) as caught:
        plan_sweeps([root / "plain", tmp_path / "other"], config, Observer())
    assert "relabel" in str(caught.value) or "labels names" in str(caught.value)


def test_selections_can_be_compared(root):
    """Open stores are used as they are."""
    stores = [pipeline.open_store(root / name).select("score < 2") for name in ("plain", "turned")]
    plan = plan_sweeps(stores, compose_sweep_config("ks", SETTINGS), Observer())
    assert np.unique([len(item.store) for item in plan.sweeps]).tolist() == [28]


def test_heads_on_frames_are_refused_before_anything_is_trained(root, tmp_path):
    """If a store has none; heads on means are compared."""
    small = write_words(tmp_path / "small", keep=("pooled",), encoder={"model": "c"})
    stores = [str(root / "plain"), str(small)]
    config = compose_sweep_config("ks", SETTINGS | {"heads": ["linear", "mlp"]})
    assert len(plan_sweeps(stores, config, Notes()).sweeps) == 4
    config = compose_sweep_config("ks", SETTINGS | {"heads": ["linear", "attentive"]})
    with pytest.raises(StoreError, match=r"small keeps no frames"):
        plan_sweeps(stores, config, Notes())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["heads=[linear,mpl]"], "heads has 'mpl'; did you mean mlp?; task ks has linear, mlp"),
        (["heads=[]"], "heads is []; expected one or more different ones"),
        (["heads=[mlp,mlp]"], "expected one or more different ones"),
        (["fractions=[0,1]"], "fractions is [0.0, 1.0]; expected shares"),
        (["fractions=[0.5,1.5]"], "fractions is [0.5, 1.5]; expected shares"),
        (["fractions=[0.5,0.5]"], "expected one or more different ones"),
        (["fractions=half"], "fractions is 'half'; expected a list of numbers"),
        (["task=sv", "fractions=[0.5,1]"], "task sv trains no heads; leave it out"),
    ],
)
def test_wrong_heads_and_shares_are_one_line(root, settings, message):
    """Before a store is opened."""
    task = [] if settings[0].startswith("task=") else ["task=ks"]
    done = strata("sweep", root / "plain", *task, *settings)
    assert done.returncode == 2
    assert message in error_line(done)

"""`pipeline.sweep`: a sweep from Python."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.comparing.interactive.sweeping import PrintedProgress
from pipeline.config.composing import compose_sweep_config
from pipeline.errors import ConfigError, StoreError
from pipeline.events import Observer
from pipeline.probing import run
from pipeline.probing.report.methods import methods
from pipeline.probing.report.sweep_charts import scores_chart
from pipeline.probing.report.sweep_report import report_body
from pipeline.probing.results import WEIGHTED
from tests.helpers.feature_stores import make_store


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.heads: list[tuple[int, int]] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def head_trained(self, done: int, total: int) -> None:
        self.heads.append((done, total))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of 80 utterances; the digit is in every layer, the speaker in none."""

    def features(row, layer, n_frames, dim):
        frames = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
        frames[:, row % 4] += 3.0
        return frames.astype(np.float16)

    path = tmp_path_factory.mktemp("interactive")
    columns = pa.table(
        {
            "word": [("zero", "one", "two", "three")[row % 4] for row in range(80)],
            "speaker": [("ann", "bob", "cem")[row // 4 % 3] for row in range(80)],
            "split": ["test" if row >= 60 else "train" for row in range(80)],
        }
    )
    make_store(path / "features", [12] * 80, dim=8, features=features, columns=columns)
    return path


@pytest.fixture(scope="module")
def told():
    return Recorder()


@pytest.fixture(scope="module")
def result(root, told, tmp_path_factory):
    """A sweep of the whole store, with settings as programs have them."""
    return pipeline.sweep(
        [str(root / "features")],
        task="ks",
        labels=["word"],
        layers=np.array([1, 3]),
        seeds=range(1),
        out=tmp_path_factory.mktemp("results") / "mine",
        split={"speaker": "none"},
        task_settings={"lrs": [np.float64(1e-2)], "steps": 40},
        observer=told,
    )


def test_the_table_has_the_scores_of_all_candidates(result):
    """One row per candidate, the numbers of the results, and columns of fixed types."""
    table = result.table
    assert table.column_names == [
        *("candidate", "layer", "lr", "dev", "test", "low", "high", "seed_sd", "macro_f1"),
        "is_best",
    ]
    assert len(table) == len(result.sweep.scores) == 3
    for row, score in zip(table.to_pylist(), result.sweep.scores, strict=True):
        assert (row["dev"], row["test"], row["low"]) == (score.dev, score.test, score.low)
        assert row["layer"] == (None if score.layer == WEIGHTED else score.layer)
        assert row["seed_sd"] is None  # of one seed
        assert row["is_best"] == (score.layer == result.best)
    assert str(table.schema.field("layer").type) == "int64"
    assert result.best_layer in (1, 3)


def test_it_writes_what_the_command_writes(result):
    """The folder has the report, figures, tables, the methods and all numbers."""
    assert result.report == result.folder / "report.html"
    assert result.folder.name == "mine"
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {"report.html", "figures", "tables", "methods.txt", "sweep.json"}
    stored = json.loads((result.folder / "sweep.json").read_text())
    assert stored["setup"]["recipe"]["steps"] == 40
    assert stored["setup"]["speakers"] == {"train": 3, "dev": 3, "test": 3, "shared": 3}
    assert stored["best"] == result.best
    methods = (result.folder / "methods.txt").read_text()
    assert "learning rate of 0.01 for at most 40 steps" in methods
    assert "3 of the test speakers are in train or dev, too." in methods


def test_a_notebook_shows_it(result):
    """The result has a table in HTML with its warnings, a figure shows itself as PNG."""
    html = result._repr_html_()
    assert html.count("<tr") == 1 + 3
    assert "<td>weighted sum</td>" in html
    assert "only 20 test utterances" in html
    assert ">0.01<" in html  # the learning rate
    figure = result.plot()
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert figure.get_size_inches()[0] == 7.6
    assert result.plot("weights", is_column=True).get_size_inches()[0] == 3.3
    assert repr(result).startswith("<SweepResult ks: best by dev ")
    with pytest.raises(ConfigError, match="no chart 'weight'; did you mean weights"):
        result.plot("weight")


def test_an_observer_gets_notes_and_progress(result, told, capsys):
    """Warnings are notes; without an observer they and the number of heads go to stderr."""
    assert told.heads[0] == (0, 3)
    assert told.heads[-1] == (3, 3)
    warning = "WARNING: only 20 test utterances: look at the intervals before the scores"
    assert warning in told.notes
    assert capsys.readouterr().err == ""
    printer = PrintedProgress()
    for done in (2, *range(3, 201)):
        printer.head_trained(done, 200)
    printer.note("so it is")
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "200 heads, 2 of them from an earlier sweep"
    assert lines[1:3] == ["22 of 200 heads", "42 of 200 heads"]
    assert lines[-2:] == ["200 of 200 heads", "so it is"]
    assert len(lines) <= 13


def test_a_selection_is_swept_alone(root, tmp_path, monkeypatch):
    """Only its utterances are used, and its results do not mix with those of others."""
    monkeypatch.chdir(tmp_path)
    store = pipeline.open_store(root / "features")
    recipe = {"lrs": [1e-2], "steps": 20}
    config = compose_sweep_config(
        "ks", {"labels": ["word"], "layers": [2], "seeds": [0], "task_settings": recipe}
    )
    folders = []
    for names in (["ann", "bob"], ["bob", "cem"]):
        chosen = store.select(speaker=names)
        found, folder = run.sweep(chosen, config)
        folders.append(folder)
        assert {name for fold in found.test_ids for name in fold} <= set(chosen.ids)
        assert found.n_train + found.n_dev + found.n_test == len(chosen) < 80
        selected = f"Of the 80 utterances of the store, {len(chosen)} were selected."
        assert selected in methods(found)
        page = report_body(found, {"scores": scores_chart(found)})
        assert f"<dd>{len(chosen)} of 80 utterances</dd>" in page
    assert all(f.parent.name.startswith("features-selection-") for f in folders)
    found, whole = run.sweep(store, config)
    assert whole.as_posix() == "sweeps/features/ks-word"
    assert "were selected" not in methods(found)
    assert len({whole, *folders}) == 3
    again, folder = run.sweep(store.select(speaker=["ann", "bob"]), config)
    assert folder == folders[0]
    assert again.reused == len(again.heads)
    with pytest.raises(StoreError, match=r"selection of .* has no utterances"):
        run.sweep(store.select("speaker = 'ann' and speaker = 'bob'"), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": [1]}, "unknown setting layer; did you mean layers"),
        ({"lrs": [1]}, "unknown setting lrs; write task_settings="),
        ({"speaker": "x"}, "unknown setting speaker; write split="),
        ({"split": {"spaker": "x"}}, "unknown setting 'spaker' in split; did you mean speaker"),
        ({"task_settings": {"lr": 1}}, "unknown setting 'lr' in task_settings; did you mean lrs"),
        ({"spans": {"pat": "x"}}, "unknown setting 'pat' in spans; did you mean path"),
        ({"split": "test"}, "split is 'test'; expected a mapping"),
        ({"seeds": "0"}, "seeds is '0'; expected a list of whole numbers"),
        ({"seeds": [-1]}, "seeds is"),
        ({"task": "kss"}, "no task is called 'kss'"),
        ({"task": 3}, "task is 3; expected the name of a recipe"),
    ],
)
def test_wrong_settings_are_refused(root, settings, message):
    """The message names the setting and the nearest one, before the store is read."""
    with pytest.raises(ConfigError, match=message):
        pipeline.sweep(root / "nothing", **{"task": "ks", **settings})


def test_other_things_than_stores_are_refused():
    """The message says what is expected."""
    for wrong in ([], [3], 3, None):
        with pytest.raises(ConfigError, match="expected an open store, a path, or a list of them"):
            pipeline.sweep(wrong, "ks")

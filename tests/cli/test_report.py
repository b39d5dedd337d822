"""`strata report` as a user runs it."""

from __future__ import annotations

import json

import pytest

from pipeline.probing.report import html
from tests.helpers.commands import error_line, strata
from tests.helpers.finished_sweeps import finished_sweep, write_words


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Sweeps of two stores on two tasks, in `sweeps/`; figures have tests of their own."""
    path = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(html, "write_figures", lambda *_: None)
        yield _swept(path)


def _swept(path):
    """Run the sweeps, and return the folder."""
    for number, name in enumerate(("one", "two")):
        store = write_words(path / name, seed=number, strength=0.6 - 0.5 * number)
        for kind in ("utterance", "regression"):
            finished_sweep(store, kind, path / "sweeps" / name / kind)
    return path


def test_report_prints_a_leaderboard_and_an_object(root, monkeypatch):
    """Without --json the table is on stdout; the report goes to sweeps/report."""
    monkeypatch.chdir(root)
    done = strata("report", "sweeps")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 sweeps of 2 encoders; regression: concordance correlation (")
    assert [line.split()[0] for line in lines[1:4]] == ["encoder", "one", "two"]
    assert any(line.startswith("one (") and " than two (" in line for line in lines)
    assert lines[-1] == "report: sweeps/report/report.html"
    done = strata("report", "sweeps", "--json")
    document = json.loads(done.stdout)
    assert [task["task"] for task in document["tasks"]] == ["regression", "ks"]
    assert document["report"] == "sweeps/report/report.html"
    stored = json.loads((root / "sweeps/report/comparison.json").read_text())
    assert stored == {name: document[name] for name in stored}


def test_another_report_does_not_overwrite_it(root, monkeypatch):
    """That of other sweeps gets a folder of its own, and a note."""
    monkeypatch.chdir(root)
    strata("report", "sweeps", "out=mine")
    before = (root / "mine/report.html").read_bytes()
    done = strata("report", "sweeps/one", "out=mine")
    assert (
        "mine has the report of other sweeps, and is left as it is; this report goes to mine-2"
        in done.stderr
    )
    assert (root / "mine/report.html").read_bytes() == before
    assert (root / "mine-2/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=x"], "no folder is given; write strata report SWEEP_DIR"),
        (["nothing"], "nothing does not exist; expected the folder of a sweep"),
        (["sweeps", "outt=x"], "unknown setting outt; did you mean out"),
        (["sweeps", "out=sweeps/one/utterance"], "is the folder of a sweep, whose report would"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(root, monkeypatch, arguments, message):
    """With the remedy."""
    monkeypatch.chdir(root)
    done = strata("report", *arguments)
    assert done.returncode == 2
    assert message in error_line(done)

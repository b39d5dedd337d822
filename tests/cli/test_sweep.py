"""`strata sweep` as a user runs it: a table to read, an object to parse, one line per error."""

from __future__ import annotations

import html
import json

import pytest

from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.commands import strata
from tests.helpers.planted_stores import write_planted

QUICK = ["task.lrs=[1e-2]", "seeds=[0]", "task.steps=40", "task.eval_every=20"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Layer 2 separates the words; every speaker is in both parts of the corpus's split."""
    root = tmp_path_factory.mktemp("cli") / "store"
    columns = {
        "speaker": [f"s{row % 3}" for row in range(120)],
        "split": ["test" if row % 5 == 0 else "train" for row in range(120)],
        "n": list(range(120)),
        "voice": [f"v{row % 6}" for row in range(120)],
    }
    attributes = {"provenance": {"weights": "random"}}
    write_planted(root, columns=columns, attributes=attributes)
    return root


@pytest.fixture(scope="module")
def first(store, tmp_path_factory):
    """Output folder and result of a sweep with --json."""
    out = tmp_path_factory.mktemp("sweep") / "my out"
    return out, strata("sweep", store, "task=ks", f"out={out}", *QUICK, "--json")


def test_sweep_prints_a_table_and_an_object(first):
    """The table, with the best layer and warnings, goes to stderr; JSON goes to stdout."""
    out, done = first
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["best_layer"] == 2
    assert {item["layer"] for item in document["results"]} == {1, 2, 3, "weighted"}
    assert document["results"][0].keys() == {"layer", "lr", "dev", "test"}
    assert document["trained"] == 4
    assert document["reused"] == 0
    assert document["seconds"].keys() == {"read", "train", "score"}
    assert [score["layer"] for score in document["scores"]] == [1, 2, 3, "weighted"]
    report = out / "report.html"
    assert document["report"] == str(report)
    assert "word" in report.read_text()
    lines = done.stderr.splitlines()
    (best,) = [line for line in lines if line.rstrip().endswith(" best")]
    assert best.split()[0] in ("2", "weighted")
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert "RANDOM" in warnings[0]
    assert any("LEAKAGE: 3 of 3 values of 'speaker' (s0, s1, s2)" in line for line in warnings)
    assert any("the best two on dev: test accuracy is " in line for line in lines)
    assert any("logistic regression, layer 2" in line for line in lines)
    assert any(str(report) in line for line in lines)
    assert "4 heads to train" in lines
    assert any(line.startswith("4 heads trained in ") for line in lines)


def test_without_json_stdout_has_the_table(store, first):
    """A second sweep reuses the trained heads."""
    done = strata("sweep", store, "task=ks", f"out={first[0]}", *QUICK)
    assert "0 heads trained, 4 reused" in done.stdout
    assert any(line.rstrip().endswith(" best") for line in done.stdout.splitlines())
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]  # slow steps
    assert lines == ["0 heads to train; 4 are cached"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "no task is given"),
        (["task=kws"], "no task is called 'kws'"),
        (["task=er"], "task er looks for one of the columns emotion, label; the store has word"),
        (["task=ks", "split.column=null"], "Set split.speaker=speaker to keep each in one part"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(store, tmp_path, settings, message):
    """No traceback; the object on stdout has the same message."""
    done = strata("sweep", store, *settings, f"out={tmp_path}", "--json")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert message in json.loads(done.stdout)["error"]


def test_no_store_is_exit_code_1(tmp_path):
    """A missing store is an error without a traceback, as for every verb."""
    done = strata("sweep", tmp_path / "nothing", "task=ks")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def halves(store, tmp_path_factory):
    """Two stores with half of the utterances each, and the output of a sweep over both."""
    root = tmp_path_factory.mktemp("halves")
    for name, where in (("one", "n < 60"), ("two", "n >= 60")):
        copy_stores(store, root / name, CopySettings(where=where))
    out = root / "out"
    paths = (root / "one", root / "two")
    return paths, out, strata("sweep", *paths, "task=ks", f"out={out}", *QUICK, "--json")


def test_several_stores_are_swept_as_one(first, halves):
    """The scores are those of one store with the utterances of both; the report opens both."""
    paths, out, done = halves
    assert done.returncode == 0, done.stderr
    document, expected = json.loads(done.stdout), json.loads(first[1].stdout)
    for name in ("scores", "best_layer", "n_test", "classes", "split"):
        assert document[name] == expected[name]
    assert document["store"] == [str(path) for path in paths]
    names = ", ".join(f"'{path}'" for path in paths)
    report = html.unescape((out / "report.html").read_text())
    assert f"pipeline.open_store([{names}])" in report
    assert f"strata copy {paths[0]} {paths[1]} JOINED" in report
    settings = json.loads((out / "settings.json").read_text())
    assert settings["store"] == [str(path.resolve()) for path in paths]


def test_what_cannot_be_swept_as_one_is_one_line(store, halves, tmp_path):
    """An output inside one of them, a store that is given twice, and no store at all."""
    (one, two), *_ = halves
    for arguments, message in (
        ([one, two, one], f"store {one} is given twice"),
        ([one, two, f"out={two}/x"], f"is inside the store {two}"),
        ([one, tmp_path / "nothing"], "no store at"),
        ([], "no store is given before task=ks"),
    ):
        done = strata("sweep", *arguments, "task=ks", *QUICK, "--json")
        assert done.returncode in (1, 2)
        assert message in json.loads(done.stdout)["error"]


def test_the_default_folder_has_the_names_of_the_stores(halves, tmp_path, monkeypatch):
    """Of up to three; `layers` compares the layers of all frames."""
    monkeypatch.chdir(tmp_path)
    paths = halves[0]
    done = strata("layers", *paths, "n_frames=2000", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one, ") == 1
    assert json.loads(done.stdout)["n_utterances"] == 120
    assert (tmp_path / "sweeps/one+two/layers/report.html").exists()


def test_the_table_has_what_the_task_has(store, tmp_path):
    """Nothing is trained for verification: no learning rate, no deviation over seeds."""
    done = strata(
        "sweep",
        store,
        "task=sv",
        "labels=[voice]",
        "split.column=null",
        "split.ratios=[0.34,0.33,0.33]",
        f"out={tmp_path}/a",
    )
    assert done.returncode == 0, done.stderr
    (heading,) = [line for line in done.stdout.splitlines() if "95 % interval" in line]
    assert " lr " not in heading
    assert "seeds" not in heading
    assert ", evaluate 0." in done.stdout
    several = strata(
        "sweep", store, "task=ks", f"out={tmp_path}/b", *QUICK, "seeds=[0,1]", "layers=[2]"
    )
    (heading,) = [line for line in several.stdout.splitlines() if "95 % interval" in line]
    assert " lr " in heading
    assert "± seeds" in heading

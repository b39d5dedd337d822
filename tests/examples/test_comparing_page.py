"""The page on comparing: its commands and its Python run, on small stores."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.comparing import running
from pipeline.comparing.interactive import sweeping
from pipeline.probing.report import html
from tests.examples.test_pages import ROOT, run_python
from tests.helpers.commands import strata
from tests.helpers.finished_sweeps import WORDS, N, write_words
from tests.helpers.pages import blocks

PAGE = ROOT / "docs/comparing.md"
QUICK = ["task.lrs=[1e-2]", "seeds=[0]", "task.steps=8", "task.eval_every=4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two stores of one corpus with its own split; single reports and figures are not drawn."""
    columns = {
        "word": [WORDS[row % 4] for row in range(N)],
        "speaker": [f"s{row // 6}" for row in range(N)],
        "split": ["test" if row >= 40 else "train" for row in range(N)],
    }
    for seed, name in enumerate(("hubert", "wavlm")):
        encoder = {"model": f"{name}_base"}
        write_words(tmp_path / name, seed=seed, columns=pa.table(columns), encoder=encoder)

    def write(found, folder):
        (folder / "report.html").touch()
        return folder / "report.html"

    for module in (running, sweeping):
        monkeypatch.setattr(module, "write_report", write)
    monkeypatch.setattr(html, "write_figures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run(folder):
    """In order; the last one finds the sweeps of all others."""
    commands = next(block.text for block in blocks(PAGE) if block.language == "bash")
    answers = []
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)[1:]
        quick = QUICK if words[0] == "sweep" else []
        done = strata(*words, *quick, "--json")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert [answer["encoders"] for answer in answers[:2]] == [
        ["hubert_base", "wavlm_base"],
        ["hubert_base"],
    ]
    assert answers[1]["heads"] == ["linear", "mlp"]
    assert answers[2]["fractions"] == [0.1, 0.5, 1.0]
    [task] = answers[3]["tasks"]
    assert len(task["variants"]) == 2 + 1 + 2 * 2
    assert "`sweeps/NAME+NAME/TASK-LABELS-comparison`" in PAGE.read_text()
    assert answers[0]["report"] == "sweeps/hubert+wavlm/ks-word-comparison/report.html"


def test_its_python_runs(folder):
    """A report of finished sweeps, and learning curves."""
    printed = run_python(PAGE).splitlines()
    assert printed[0].startswith("{'ks': ['")
    assert "'first': 'hubert_base', 'second': 'wavlm_base'" in printed[1]
    assert printed[2].startswith("['task', 'metric', 'encoder', 'head', 'fraction', 'n_train'")
    assert Path("layers.pdf").stat().st_size > 1000
    names = {path.stem for path in Path("leaderboard/tables").iterdir()}
    assert {f"`{name}`" for name in names} <= {f"`{name}`" for name in PAGE.read_text().split("`")}

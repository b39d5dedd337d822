"""docs/spans.md, run from top to bottom: tones are synthesised, extracted, and read by spans."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from tests.helpers.pages import ROOT, blocks

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "spans.md"
QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=200", "task.eval_every=50", "layers=[2,3]"]
"""Settings added to the sweeps of the page, to save time."""


class PageRun(NamedTuple):
    """A run of the page: names of its Python, what that printed, and answers of its commands."""

    folder: Path
    names: dict[str, Any]
    printed: str
    answers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {}
    answers: list[dict[str, Any]] = []
    printed = io.StringIO()
    with contextlib.chdir(folder):
        for block in blocks(PAGE):
            if block.language == "python":
                code = compile("\n" * block.line + block.text, PAGE, "exec")
                with contextlib.redirect_stdout(printed):
                    exec(code, names)
            elif block.language == "bash":
                for line in block.text.splitlines():
                    quick = QUICK if " sweep " in line else []
                    done = CliRunner().invoke(app, [*shlex.split(line)[1:], *quick, "--json"])
                    assert done.exit_code == 0, done.output
                    answers.append(json.loads(done.stdout))
    return PageRun(folder, names, printed.getvalue(), answers)


def test_the_page_reads_its_spans(page):
    """A tone of 0.3 s has 15 frames, and each has its mean and its label."""
    names = page.names
    lines = page.printed.splitlines()
    assert lines[0] == "<Spans: 120 spans of 60 utterances, 2 labels: high, low>"
    assert lines[1].startswith("torch.Size([1, 15, ")
    store, spans = names["store"], names["spans"]
    for row in (0, 77):
        frames = store.read(spans[row].id, span=spans[row]).float()
        assert torch.allclose(names["means"][row], frames.mean(1), atol=1e-5)
    labels = names["labels"]
    assert labels.names == ("high", "low", "silence")
    assert labels.counts.tolist()[:2] == [60 * 15, 60 * 15]
    assert (labels["00.wav"] == 2).sum() == 49 - 30
    assert pipeline.read_spans(page.folder / "tones.csv").digest == spans.digest


def test_the_page_pools_in_parts(page):
    """The iterator of the page yields all spans."""
    parts = [line.split() for line in page.printed.splitlines() if line[0].isdigit()]
    assert sum(int(words[0]) for words in parts) == 120
    assert len(parts) > 1


def test_the_page_sweeps_over_spans_and_frames(page):
    """Tones are told apart by an encoder with random weights, and from silence."""
    _, word, frame = page.answers
    assert word["classes"] == [["high", "low"]]
    assert "120 spans of 2 classes" in word["split"]
    assert max(score["test"] for score in word["scores"]) > 0.9
    assert frame["classes"] == [["high", "low", "silence"]]
    assert frame["metric"] == "f1"
    best = max(score["test"] for score in frame["scores"])
    assert best > frame["yardsticks"]["majority class"] + 0.2

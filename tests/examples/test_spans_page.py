"""docs/spans.md, run from top to bottom: tones are synthesised, extracted, and read by spans."""

from __future__ import annotations

import contextlib
import io
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


class PageRun(NamedTuple):
    """A run of the page: the names of its Python, and what that has printed."""

    folder: Path
    names: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.chdir(folder):
        for block in blocks(PAGE):
            if block.language == "python":
                code = compile("\n" * block.line + block.text, PAGE, "exec")
                with contextlib.redirect_stdout(printed):
                    exec(code, names)
            elif block.language == "bash":
                for line in block.text.splitlines():
                    done = CliRunner().invoke(app, shlex.split(line)[1:])
                    assert done.exit_code == 0, done.output
    return PageRun(folder, names, printed.getvalue())


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

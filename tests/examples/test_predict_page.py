"""docs/predict.md, run from top to bottom: a sweep on tones, its head on new recordings."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from tests.helpers.pages import ROOT, blocks

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "predict.md"
QUICK = ["seeds=[0]"]
"""Settings added to the sweep of the page, to save time."""


class PageRun(NamedTuple):
    """A run of the page: its folder, the names of its Python, and what blocks have printed."""

    folder: Path
    names: dict[str, Any]
    printed: list[str]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {}
    printed = []
    with contextlib.chdir(folder):
        for block in blocks(PAGE):
            if block.language == "python":
                out = io.StringIO()
                code = compile("\n" * block.line + block.text, PAGE, "exec")
                where = folder
                if "head.safetensors" in block.text:  # beside the head, its encoder and a clip
                    where = folder / "exported"
                    shutil.copy(folder / "new" / "40.wav", where / "clip.wav")
                    shutil.copytree(folder / "checkpoint", where / "checkpoint")
                with contextlib.chdir(where), contextlib.redirect_stdout(out):
                    exec(code, names)
                printed.append(out.getvalue())
            elif block.language == "bash":
                for line in block.text.splitlines():
                    quick = QUICK if line.startswith("strata sweep ") else []
                    done = CliRunner().invoke(app, [*shlex.split(line)[1:], *quick])
                    assert done.exit_code == 0, done.output
                    printed.append(done.stdout)
    return PageRun(folder, names, printed)


def test_the_new_recordings_get_their_labels(page):
    """On the command line, in the file, from waveforms and from files."""
    with (page.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["label"]) for row in rows] == [
        ("new/40.wav", "low"),
        ("new/41.wav", "high"),
    ]
    shown = next(text for text in page.printed if "written: predictions.csv" in text)
    documented = re.search(r"^```\n(ks on tone.*?)^```", PAGE.read_text(), re.S | re.M)[1]
    assert [line.split()[0] for line in shown.splitlines()] == [
        line.split()[0] for line in documented.splitlines()
    ]
    python = next(text for text in page.printed if "utterances of the store" in text)
    assert python.startswith("('low',) (0.9")
    assert "new/41.wav ('high',) None" in python
    assert "40 utterances of the store" in python


def test_intervals_get_their_labels(page):
    """Two of one waveform, in their order, each with a class and its probability."""
    rows = [line.split() for line in page.printed[-3].splitlines() if len(line.split()) == 4]
    assert [row[:2] for row in rows] == [["0.0", "0.2"], ["0.1", "0.3"]]
    assert rows[0][2] == "low"
    assert all(0.5 <= float(row[3]) <= 1 for row in rows)


def test_the_program_is_that_of_the_card(page):
    """And predicts the same without Strata."""
    card = (page.folder / "exported" / "README.md").read_text()
    programs = [
        re.search(r"```python\n([^`]*head\.safetensors[^`]*)```", text)[1]
        for text in (card, PAGE.read_text())
    ]
    assert programs[0] == programs[1]
    assert page.printed[-1].split()[:2] == ["tone", "low"]

"""The code on docs/training.md that is not a program of examples/, run as it stands."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCKS = {
    re.findall(r"^## (.*)$", PAGE.read_text()[: found.start()], re.M)[-1]: found[1]
    for found in re.finditer(r"^```python\n((?!--8<--).*?)```$", PAGE.read_text(), re.S | re.M)
}
"""Python blocks by the heading that they stand under."""


@pytest.fixture
def run(folder, monkeypatch):
    """Run a block in the store's folder; return what it prints."""
    monkeypatch.chdir(folder)

    def run(heading: str) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(BLOCKS[heading], PAGE, "exec"), {})
        return printed.getvalue()

    return run


def test_every_block_is_run():
    """No code on the page goes untested: it is a block below, or a program of examples/."""
    assert set(BLOCKS) == {
        "Read",
        "Utterance tasks need only the pooled means",
        "A store of one layer",
    }
    n_included = len(re.findall(r"^```python .*\n--8<--$", PAGE.read_text(), re.M))
    assert PAGE.read_text().count("```python") == len(BLOCKS) + n_included


def test_reading_works_as_shown(run):
    """Every call of the first block is valid."""
    assert run("Read") == ""


@pytest.mark.slow
def test_training_on_pooled_features_learns(run):
    """On pooled means alone, the digits are told apart."""
    out = run("Utterance tasks need only the pooled means")
    assert float(re.search(r"accuracy ([\d.]+)", out)[1]) > 0.9


@pytest.mark.slow
def test_a_store_collapses(run):
    """The average of the layers becomes a store of one."""
    assert "layers (-1,)" in run("A store of one layer")

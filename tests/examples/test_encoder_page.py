"""The page "Add an encoder": its module, its Python and its commands run as they stand."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.config import models
from pipeline.encoders.modules import registration
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.pages import blocks

PAGE = Path(__file__).parents[2] / "docs" / "add_an_encoder.md"


@pytest.fixture
def no_registration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the page registers and imports is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # also restores what commands add
    for home, name in ((registration, "_REGISTERED"), (registration, "_ALLOWED")):
        monkeypatch.setattr(home, name, {})
    monkeypatch.setattr(models, "_REGISTERED", {})
    monkeypatch.setitem(sys.modules, "my_encoder", None)
    del sys.modules["my_encoder"]


@pytest.mark.slow
def test_the_page_adds_an_encoder(
    no_registration: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The module is used from Python, from the command line, and by the conformance suite."""
    found = blocks(PAGE)
    module, python = [block.text for block in found if block.language == "python"]
    Path("my_encoder.py").write_text(module)
    assert 25 <= len(module.splitlines()) <= 36
    exec(compile(python, PAGE, "exec"), {})
    printed = capsys.readouterr().out
    assert "('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3') 320 (4, 49, 32)" in printed

    write_folder(tmp_path / "clips", mixed_lengths(5))
    commands = [block.text for block in found if block.language == "bash"]
    strata = [line for text in commands for line in text.splitlines() if line.startswith("strata")]
    answers = []
    for line in strata:
        settings = ["engine=inline", "engine.threads=1"] if " extract " in line else []
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], *settings, "--json"])
        assert done.exit_code == 0, done.output
        answers.append(json.loads(done.stdout))
    assert answers[0]["ok"]
    assert answers[1]["utterances_ok"] == 5
    store = pipeline.open_store("features")
    assert store.attributes["identity"]["encoder"]["code"] == {
        "factory": "my_encoder:make_encoder",
        "version": "1",
    }
    assert answers[2]["utterances"] == 5

    [line] = [text for text in commands if text.startswith("pytest")]
    code = pytest.main([*shlex.split(line)[1:], "-q", "-p", "no:cacheprovider"])
    assert code == pytest.ExitCode.OK, capsys.readouterr().out
    assert "11 passed" in capsys.readouterr().out

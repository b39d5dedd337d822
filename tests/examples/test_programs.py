"""The programs of examples/, run as their docstrings say, on a small real store."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.pages import ROOT, run_program

PROGRAMS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """Run a program on the store in this process; return what it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(folder)
        run_program(monkeypatch, f"examples/{name}", "features", *arguments)
        return capfd.readouterr().out

    return run


def loss_of(printed: str) -> float:
    """The last loss that a program printed."""
    return float(re.findall(r"loss ([\d.]+)", printed)[-1])


def test_every_program_is_run_by_a_test_here() -> None:
    """Each under its own name; the test of the training page runs torchrun's."""
    run = re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text())
    assert set(PROGRAMS) == {"ddp.py", *run}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_how_to_run_it(name: str) -> None:
    """Its docstring has the command, with the program's own name."""
    docstring = (ROOT / "examples" / name).read_text().split('"""')[1]
    assert re.search(rf"^    (python|torchrun .*) examples/{name} STORE", docstring, re.M)


SLOW_TO_IMPORT = {"hf_trainer.py", "lightning_head.py"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW_TO_IMPORT else name
        for name in [*PROGRAMS, "demo/read.py"]
    ],
)
def test_without_arguments_a_program_prints_its_usage(name, monkeypatch, capsys):
    """One line on stderr with the arguments of the docstring; exit code 2."""
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    docstring = (ROOT / "examples" / name).read_text().split('"""')[1]
    [arguments] = re.findall(rf"examples/{name}((?: [A-Z]+)+)$", docstring, re.M)
    assert printed.err == f"usage: {Path(name).name}{arguments}\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_shown_in_the_docs(name: str) -> None:
    """Included whole, so that the page cannot differ from what runs."""
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert f"\n--8<--\nexamples/{name}\n--8<--\n```" in pages


@pytest.mark.slow
def test_a_layer_is_read(run):
    """One layer, all of them, the weighted sum and the pooled means have the store's shapes."""
    out = run("read_layer.py")
    assert "160 utterances, layers (1, 2, 3), 16 features" in out
    n_frames = int(re.search(r"utt-0000: (\d+) frames, of all layers ([\d,]+) bytes", out)[1])
    assert f"{3 * n_frames * 16 * 2:,} bytes" in out
    assert f"weighted sum ({n_frames}, 16)" in out
    assert "pooled means (160, 3, 16)" in out


@pytest.mark.slow
@pytest.mark.parametrize("label", ["digit", "word"])
def test_the_linear_head_learns(run, label):
    """Classes are told apart, of numbers or of text, and layer 2 gets the most weight."""
    out = run("linear_head.py", label)
    assert float(re.search(r"accuracy ([\d.]+)", out)[1]) > 0.9
    weights = [float(w) for w in re.search(r"weights \[(.*)\]", out)[1].split(",")]
    assert np.argmax(weights) == 1


@pytest.mark.slow
def test_lightning_takes_a_loader(run):
    """Five epochs of a LightningModule bring the loss well below chance (1.39)."""
    out = run("lightning_head.py", "digit")
    assert "epochs 5" in out
    assert loss_of(out) < 1.0


@pytest.mark.slow
def test_the_hugging_face_trainer_takes_a_dataset(run):
    """Five epochs of transformers.Trainer bring the loss well below chance (1.39)."""
    assert loss_of(run("hf_trainer.py", "digit")) < 1.0


@pytest.mark.slow
def test_ctc_transcribes_unseen_utterances(run):
    """The two letters of nine test utterances in ten come out right, in their order."""
    out = run("ctc.py", "text", "2")
    correct, total = re.search(r"(\d+) of (\d+) transcripts without an error", out).groups()
    assert int(total) == 40
    assert int(correct) > 0.9 * int(total)

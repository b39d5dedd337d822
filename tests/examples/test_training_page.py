"""docs/training.md, run from top to bottom on a store made from a folder with metadata.csv."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from tests.helpers.corpus import RATE_HZ
from tests.helpers.pages import ROOT, blocks, included, run_processes, run_program
from tests.servers.localbucket import BUCKET, LocalBucket, environment

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "training.md"
SPEAKERS = {
    **dict.fromkeys(("ann", "bob", "cem", "dan"), "train"),
    "gil": "dev",
    **dict.fromkeys(("ida", "jon"), "test"),
}
WORDS = {"go": 300.0, "no": 700.0, "stop": 1500.0, "yes": 3000.0}
"""The words, and the pitch in Hz that stands for each."""
N_TAKES = 4


class PageRun(NamedTuple):
    """A run of the page.

    Attributes:
        names: Names that its Python has defined.
        printed: Text that each block has printed, by its first line on the page.
        commands: Commands of its shell blocks.
        names_after: Names that were defined after each block, by its first line on the page.
    """

    names: dict[str, Any]
    printed: dict[int, str]
    commands: list[list[str]]
    names_after: dict[int, dict[str, Any]]

    def line_of(self, words: str) -> int:
        """First line of the block with these words."""
        [line] = [block.line for block in blocks(PAGE) if words in block.text]
        return line

    def printed_by(self, words: str) -> str:
        """What the block with these words has printed."""
        return self.printed[self.line_of(words)]


def record(clips: Path) -> None:
    """Fill a folder with recordings and metadata.csv, as the tutorial describes it."""
    rng = np.random.default_rng(0)
    rows = [("file_name", "speaker", "split", "keyword", "transcript")]
    clips.mkdir()
    for speaker, split in SPEAKERS.items():
        for word, pitch_hz in WORDS.items():
            for take in range(1, N_TAKES + 1):
                time_s = np.arange(round(rng.uniform(0.3, 0.7) * RATE_HZ)) / RATE_HZ
                tone = 0.3 * np.sin(2 * np.pi * pitch_hz * rng.uniform(0.97, 1.03) * time_s)
                name = f"{speaker}-{word}-{take}.wav"
                noise = 0.01 * rng.standard_normal(len(time_s))
                soundfile.write(clips / name, tone + noise, RATE_HZ)
                rows.append((name, speaker, split, word, word))
    with (clips / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def run_command(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the page: of Strata, a program, or torchrun in processes of its own."""
    program, *arguments = command
    if program == "python":
        run_program(monkeypatch, *arguments)
    elif program == "strata":
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    else:
        assert [program, *arguments[:2]] == ["torchrun", "--nproc-per-node", "2"]
        sys.stdout.write(run_processes(*arguments[2:]))


def use_bucket(
    server: LocalBucket, store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """Put a store into a bucket; return what makes a block of the page use it and this machine.

    Args:
        server: The server.
        store: The store.
        node: What stands for the node's disk.
        monkeypatch: Sets the environment.
    """
    for name, value in environment(server.url).items():
        monkeypatch.setenv(name, value)
    pipeline.copy_stores([store], f"s3://{BUCKET}/page/features")

    def localised(text: str) -> str:
        return text.replace("s3://bucket/", f"s3://{BUCKET}/page/").replace("/nvme/", f"{node}/")

    return localised


@pytest.fixture(scope="module")
def page_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> PageRun:
    """Run every block of the page in order, in one folder and one Python namespace."""
    server: LocalBucket = request.getfixturevalue("localbucket")
    folder = tmp_path_factory.mktemp("training")
    record(folder / "clips")
    names: dict[str, Any] = {}
    printed, commands, names_after = {}, [], {}
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as monkeypatch:
        tiny = ["model=tiny", "engine=inline", "engine.threads=1"]
        done = CliRunner().invoke(app, ["extract", "dataset.path=clips", "store=features", *tiny])
        assert done.exit_code == 0, done.output
        localised = use_bucket(server, Path("features"), folder / "node", monkeypatch)
        for block in blocks(PAGE):
            text = localised(block.text)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                if block.language == "bash":
                    for line in text.splitlines():
                        commands.append(shlex.split(line))
                        run_command(commands[-1], monkeypatch)
                else:
                    code = compile("\n" * block.line + text, PAGE, "exec")
                    exec(code, names)
            printed[block.line], names_after[block.line] = out.getvalue(), dict(names)
    return PageRun(names, printed, commands, names_after)


def test_every_block_and_every_program_is_run(page_run):
    """No code on the page goes untested, and each program that it shows is run by a command."""
    assert {block.language for block in blocks(PAGE)} == {"bash", "python"}
    n_blocks = len(blocks(PAGE)) + len(included(PAGE))
    assert PAGE.read_text().count("\n```") == 2 * n_blocks
    shown = [Path(name) for name in included(PAGE)]
    run = [Path(part) for command in page_run.commands for part in command if ".py" in part]
    assert run == shown
    assert set(shown) == {path.relative_to(ROOT) for path in ROOT.glob("examples/*.py")}


def test_the_page_names_the_packages_that_a_program_needs():
    """Those that its docstring names, right before the command."""
    page = PAGE.read_text()
    for program in included(PAGE):
        needed = re.findall(r"Needs `(pip install [^`]+)`", (ROOT / program).read_text())
        said = re.findall(rf"`{program}` needs `([^`]+)`", page)
        assert needed == said
    assert page.count("pip install") == 2 + page.count('pip install ".[cloud]"')


def test_reading_has_the_shapes_of_the_comments(page_run):
    """Twelve layers; the selection has the two speakers that the page names."""
    store = page_run.names["store"]
    assert page_run.printed_by("store.read_many(store.ids[:32])") == ""
    selected = store.whole_column("speaker").to_pylist()
    assert {"ann", "bob"} < set(selected)


def test_batches_have_the_columns_that_the_page_says(page_run):
    """Class numbers of the words, and texts."""
    names = page_run.names_after[page_run.line_of('batch.columns["transcript"]')]
    batch = names["batch"]
    assert names["names"] == sorted(WORDS)
    spoken = [sorted(WORDS)[number] for number in batch.columns["keyword"]]
    assert spoken == batch.columns["transcript"] == [name.split("-")[1] for name in batch.ids]


def test_training_on_pooled_features_learns(page_run):
    """On pooled means alone, the words are told apart."""
    out = page_run.printed_by("features, labels = store.pooled()")
    assert float(re.search(r"accuracy ([\d.]+)", out)[1]) > 0.9


def test_batches_of_frames_have_what_the_page_says(page_run):
    """The autoencoder learns: an untrained one has an error of 1. Classes are those of the ids."""
    drawn, out = page_run.names["drawn"], page_run.printed_by("make_frame_loader(")
    assert float(re.search(r"error ([\d.]+)", out)[1]) < 0.9
    words = [name.split("-")[1] for name in drawn.ids]
    assert [sorted(WORDS)[number] for number in drawn.column("keyword")] == words


def test_the_programs_train(page_run):
    """Each prints a loss, and that of the linear head falls; two processes have equal batches."""
    printed = page_run.printed_by("linear_head.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    for program in ("ctc.py", "lightning_head.py", "hf_trainer.py", "ddp.py"):
        assert re.search(r"loss \d", page_run.printed_by(program)), program
    batches = dict(re.findall(r"rank (\d): (\d+) batches", page_run.printed_by("ddp.py")))
    assert batches.keys() == {"0", "1"}
    assert batches["0"] == batches["1"]


def test_training_begins_before_there_is_a_store(page_run):
    """The loop over the batches extracts the corpus, and knows it whole afterwards."""
    printed = page_run.printed_by("open_or_extract(")
    n_train = sum(split == "train" for split in SPEAKERS.values()) * len(WORDS) * N_TAKES
    assert re.search(rf"^{n_train} utterances, \d+ batches an epoch", printed, re.M)
    names = page_run.names_after[page_run.line_of("open_or_extract(")]
    assert len(names["train"]) == n_train


def test_the_encoder_of_an_own_dataset_is_cached(page_run):
    """Every clip of the block is in the store."""
    assert page_run.printed_by("pipeline.cached(") == "16 utterances cached\n"


def test_a_store_collapses(page_run):
    """The average of the layers becomes a store of one."""
    assert "layers (-1,)" in page_run.printed_by("pipeline.collapse(")

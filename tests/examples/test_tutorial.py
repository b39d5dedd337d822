"""docs/tutorial.md, run from top to bottom on words spoken by synthetic voices."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.config import load_sweep_config
from pipeline.probing.encoder_description import RANDOM_WARNING
from pipeline.probing.metrics import error_counts
from tests.helpers.pages import ROOT, blocks

pytest.importorskip("espeakng_loader")

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "tutorial.md"
STAND_INS = {
    "model=hubert_base": "model=tiny engine=inline engine.threads=1",
    "task=": "seeds=[0] task=",
    "task=asr": "task=asr task.lrs=[1e-2] task.steps=60 task.eval_every=30",
}
"""Text of the page's commands, and what is run instead. Nothing else differs."""
SPEAKERS = {
    "train": {"ann": "f1", "bob": "m1", "cem": "m2", "dan": "m5", "eva": "f2", "fay": "f5"},
    "dev": {"gil": "m3", "hao": "f3"},
    "test": {"ida": "f4", "jon": "m4", "kai": "m7"},
}
"""Speakers of each split, and the variant of the synthesiser's English voice for each."""
WORDS = ("go", "no", "stop", "yes")
TAKES = [(speed, pitch) for pitch in (35, 60) for speed in (115, 130, 150)]
CHANCE = 1 / len(WORDS)


class PageRun(NamedTuple):
    """A run of the page.

    Attributes:
        folder: Folder that it ran in.
        names: Names that its Python has defined.
        printed: Text that its Python has printed.
        commands: Commands of its shell blocks, as they were run.
    """

    folder: Path
    names: dict[str, Any]
    printed: str
    commands: list[str]


def record(clips: Path) -> None:
    """Fill a folder with recordings and metadata.csv, as the page describes it."""
    demo = importlib.import_module("examples.demo.corpus")
    synthesiser = demo.Synthesiser()
    rows = [("file_name", "speaker", "split", "keyword", "transcript")]
    clips.mkdir()
    for split, speakers in SPEAKERS.items():
        for speaker, variant in speakers.items():
            for word in WORDS:
                for take, (speed, pitch) in enumerate(TAKES, start=1):
                    samples = synthesiser.say(word, f"en-us+{variant}", speed, pitch)
                    name = f"{speaker}-{word}-{take}.wav"
                    (clips / name).write_bytes(demo.wav(samples, synthesiser.rate_hz))
                    rows.append((name, speaker, split, word, word))
    with (clips / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def run_shell(text: str) -> list[str]:
    """Run the lines of a shell block in this process; return them as they were run."""
    lines = []
    for line in text.splitlines():
        for text_on_page, instead in STAND_INS.items():
            line = line.replace(text_on_page, instead)
        program, *arguments = shlex.split(line)
        assert program == "strata"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        lines.append(line)
    return lines


@pytest.fixture(scope="module")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> PageRun:
    """Run every block of the page in order, in one folder and one Python namespace."""
    folder = tmp_path_factory.mktemp("tutorial")
    record(folder / "clips")
    names: dict[str, Any] = {}
    commands, printed = [], io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        for block in blocks(PAGE):
            if block.language == "bash":
                commands += run_shell(block.text)
            else:
                code = compile("\n" * block.line + block.text, PAGE, "exec")
                exec(code, names)
    return PageRun(folder, names, printed.getvalue(), commands)


def test_nothing_on_the_page_is_left_out(page_run):
    """Every block of code has run, and every stand-in was used."""
    assert {block.language for block in blocks(PAGE)} == {"bash", "python"}
    verbs = [command.split()[1] for command in page_run.commands]
    assert set(verbs) == {"plan", "extract", "layers", "sweep", "collapse"}
    for text_on_page, instead in STAND_INS.items():
        assert text_on_page in PAGE.read_text()
        assert any(instead in command for command in page_run.commands)


def test_the_commands_of_the_task_table_are_valid():
    """`strata sweep` accepts the settings that the table gives for each kind of label."""
    settings = re.findall(r"`(task=[^`]*)`", PAGE.read_text())
    names = {load_sweep_config(shlex.split(text)).task.name for text in settings}
    assert names == {"ks", "er", "sid", "ic", "lid", "regression", "sv", "pr", "asr", "word"}


def test_the_twelve_elements_have_the_shape_that_the_page_says(page_run):
    """Twelve layers of one recording have equal length; only the width is the tiny encoder's."""
    layers, one, store = (page_run.names[name] for name in ("layers", "one", "store"))
    assert layers.shape == (12, store.record(0)["n_frames"], store.feature_dim)
    assert one.shape == (1, *layers.shape[1:])
    assert str(tuple(layers.shape)) in page_run.printed


def test_the_output_on_the_page_is_what_is_printed_today() -> None:
    """The warning and the name of the test in the sample are those of the code."""
    assert f"\nWARNING: {RANDOM_WARNING}\n" in PAGE.read_text()
    assert (
        f"({'paired sign-flip test over utterances'}): not significant at 0.05\n"
        in PAGE.read_text()
    )


def test_no_speaker_is_on_two_sides(page_run):
    """The three parts cover the corpus and share no speaker."""
    parts = [page_run.names[name] for name in ("train", "dev", "test")]
    speakers = [set(part.metadata["speaker"].to_pylist()) for part in parts]
    assert [sorted(names) for names in speakers] == [sorted(SPEAKERS[name]) for name in SPEAKERS]
    assert sum(map(len, parts)) == len(page_run.names["store"])


def test_the_classifier_recognises_words_of_new_speakers(page_run):
    """With the layer selected on dev, it is well above chance on speakers that are not in train."""
    scores = page_run.names["scores_by_layer"]
    assert set(scores) == {1, 6, 12}
    assert scores[page_run.names["best"]] == max(scores.values())
    assert page_run.names["reported"] > 1.6 * CHANCE


def test_the_weighted_sum_learns_and_collapses(page_run):
    """Its weights differ from equal ones; the stores made with them have one layer."""
    model, dev = page_run.names["model"], page_run.names["dev"]
    weights = model[0].weights()
    assert float(weights.detach().max() - weights.detach().min()) > 0.01
    assert page_run.names["accuracy"](model, dev, dev.pooled()) > 1.6 * CHANCE
    mine = pipeline.open_store(page_run.folder / "features-mine")
    assert mine.layers == (-1,)
    expected = page_run.names["store"].weighted_sum(0, weights.tolist())
    torch.testing.assert_close(mine[0][0].float(), expected, rtol=1e-2, atol=1e-2)


def test_sweeps_leave_a_report_and_weights(page_run):
    """Scores, a report and weights are written; heads of the quick look are not trained again.

    The full sweep leaves the results of the quick look alone.
    """
    kinds = {"ks-keyword": 4, "ks-keyword-2": 13, "asr-transcript": 4}
    for folder, n_candidates in kinds.items():
        path = page_run.folder / "sweeps" / "features" / folder
        found = json.loads((path / "sweep.json").read_text())
        assert len(found["scores"]) == n_candidates
        assert found["reused"] == (3 * 5 if folder == "ks-keyword-2" else 0)
        assert not any("LEAKAGE" in warning for warning in found["warnings"])
        assert (path / "report.html").stat().st_size > 10_000
        assert len(json.loads((path / "weights.json").read_text())) == 12
    assert (page_run.folder / "sweeps" / "features" / "layers" / "report.html").exists()


def test_the_transcriber_learns_to_spell(page_run):
    """The CTC loss falls to a fraction; transcripts are closer to their own word than to others."""
    losses = page_run.names["losses"]
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    train, transcribe, text = (page_run.names[name] for name in ("train", "transcribe", "text"))
    transcripts = [transcribe(layers[0]) for layers in train.read_many(train.ids, layers=[9])]
    others = [WORDS[WORDS.index(word) - 1] for word in text]
    right, wrong = (error_counts("cer", words, transcripts)[0].sum() for words in (text, others))
    assert right < 0.85 * sum(map(len, text))  # an empty transcript has one error per letter
    assert right < 0.85 * wrong

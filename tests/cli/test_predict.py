"""`strata predict` and `strata export-head` as a user runs them."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.config import load_sweep_config
from pipeline.probing.run import sweep
from pipeline.spans.frame_labels import frame_labels
from pipeline.spans.reading import read_spans
from pipeline.spans.table import Spans
from pipeline.store.read.opening import open_store
from tests.helpers.commands import strata
from tests.helpers.corpus import write_folder
from tests.helpers.forked import forked_strata

QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=4", "task.eval_every=2"]
SPLIT = ["split.speaker=none", "split.ratios=[0.5,0.25,0.25]"]
ONE = "engine.threads=1"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Clips, a store of them, and sweeps for classes, two label columns, texts and speakers."""
    folder = tmp_path_factory.mktemp("predict")
    write_folder(folder / "clips", [0.3 + 0.01 * i for i in range(24)])
    store = folder / "store"
    data = ["dataset=audiofolder", f"dataset.path={folder / 'clips'}", "model=tiny"]
    done = strata("extract", *data, "engine=inline", ONE, "extract.layers=[1,2]", f"store={store}")
    assert done.returncode == 0, done.stderr
    trials = folder / "swept.txt"
    trials.write_text("1 clip-000 clip-003\n0 clip-000 clip-001\n")
    sweeps = {
        task: [f"labels={labels}", "task.speaker_independent=false", *QUICK, *SPLIT]
        for task, labels in (("ks", "[word]"), ("ic", "[word,speaker]"), ("asr", "[word]"))
    }
    for task, words in (sweeps | {"sv": [f"task.trials={trials}"]}).items():
        sweep(store, load_sweep_config([f"task={task}", f"out={folder / task}", *words]))
    (folder / "halves.csv").write_text(
        "id,start,end,label\n"
        + "".join(
            f"clip-{i:03d}.wav,0,{(0.3 + 0.01 * i) / 2},speech\n"
            f"clip-{i:03d}.wav,{(0.3 + 0.01 * i) / 2},1,pause\n"
            for i in range(24)
        )
    )
    for task, words in (("word", []), ("frame", ["task.unlabelled=pause", "spans.skip=[pause]"])):
        settings = [f"task={task}", f"out={folder / task}", f"spans={folder / 'halves.csv'}"]
        sweep(store, load_sweep_config([*settings, *QUICK, *SPLIT, *words]))
    return folder


def test_predict_prints_a_table(root):
    """The head, a warning about random weights, and a line per file."""
    clip = root / "clips" / "clip-003.wav"
    done = strata("predict", root / "ks", clip, "layer=2", ONE)
    assert done.returncode == 0, done.stderr
    first, warning, names, row = done.stdout.splitlines()
    assert first.startswith("ks on word: the head on layer 2 of tiny, accuracy 0.")
    assert "RANDOM" in warning
    assert names.split() == ["file", "label", "score"]
    assert row.split()[0] == str(clip)
    assert row.split()[1] in "0123"
    assert 0.25 <= float(row.split()[2]) <= 1
    assert "1 recording encoded in" in done.stderr


def test_json_has_predictions_errors_and_the_head(root, tmp_path):
    """A damaged file is an error and exit code 3; the others are predicted."""
    shutil.copy(root / "clips" / "clip-000.wav", tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    done = strata("predict", root / "ks", tmp_path, ONE, "--json")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert document.keys() == {"predictions", "errors", "head"}
    (found,) = document["predictions"]
    assert found.keys() == {"file", "label", "score"}
    assert found["file"] == str(tmp_path / "a.wav")
    (error,) = document["errors"]
    assert error["file"] == str(tmp_path / "b.wav")
    assert error["error"]
    head = document["head"]
    assert (head["task"], head["labels"], head["weights"]) == ("ks", ["word"], "random")
    assert len(head["weights_sha256"]) == 64
    assert f"not predicted: {tmp_path / 'b.wav'}: " in done.stderr


def test_a_store_is_predicted_without_the_encoder(root, monkeypatch):
    """As its sweep did on test; where= selects utterances."""
    monkeypatch.setattr("pipeline.predict.predictor.HeadEncoder", None)
    done = strata("predict", root / "ks", root / "store", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    by_id = {item["id"]: item["label"] for item in document["predictions"]}
    result = json.loads((root / "ks" / "sweep.json").read_text())
    head = document["head"]
    keys = ("layer", "lr", "seed", "fold")
    (swept,) = [h for h in result["heads"] if all(h[key] == head[key] for key in keys)]
    expected = [result["classes"][0][number] for (number,) in swept["predictions"]]
    assert [by_id[name] for name in result["test_ids"][0]] == expected
    done = strata("predict", root / "ks", root / "store", "where=word = '1'", "--json")
    assert len(json.loads(done.stdout)["predictions"]) == 6


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("ic", ["id", "word", "word_score", "speaker", "speaker_score"]),
        ("asr", ["id", "transcript"]),
    ],
)
def test_out_writes_csv_and_jsonl(root, tmp_path, task, keys):
    """The same rows in both forms; several label columns go by their names."""
    for name in ("a.csv", "a.jsonl"):
        done = strata("predict", root / task, root / "store", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"written: {tmp_path / name}"
    with (tmp_path / "a.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(table) == 24
    assert list(table[0]) == list(lines[0]) == keys
    assert [{k: str(v) for k, v in line.items()} for line in lines] == table


def test_out_is_whole_or_as_it_was(root, tmp_path, monkeypatch):
    """A failed write leaves the earlier file and no other."""
    out = tmp_path / "a.csv"
    out.write_text("earlier")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pipeline.files.write_synced", fail)
    done = strata("predict", root / "ks", root / "store", "--out", out)
    assert done.returncode == 1
    assert "a.csv cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert out.read_text() == "earlier"


def test_verification_scores_two_files_or_a_list(root, tmp_path):
    """Of files and of a store alike; more files need a list."""
    one, two = (root / "clips" / f"clip-00{i}.wav" for i in (0, 3))
    done = strata("predict", root / "sv", one, two, ONE, "--json")
    (pair,) = json.loads(done.stdout)["predictions"]
    assert (pair["first"], pair["second"]) == (str(one), str(two))
    (tmp_path / "trials.txt").write_text("1 clip-000 clip-003.wav\n0 clip-000 clip-001\n")
    trials = f"trials={tmp_path / 'trials.txt'}"
    done = strata("predict", root / "sv", root / "store", trials, "--json")
    stored = json.loads(done.stdout)["predictions"]
    assert [item["second"] for item in stored] == ["clip-003.wav", "clip-001.wav"]
    assert stored[0]["score"] == pytest.approx(pair["score"], abs=1e-3)
    done = strata("predict", root / "sv", root / "clips", ONE)
    assert done.returncode == 2
    assert "there are 24 names: give two recordings" in done.stderr


def test_intervals_get_labels(root, tmp_path):
    """A row for each, of files and of a store alike; those without a frame are errors."""
    out = tmp_path / "a.csv"
    spans = f"spans={root / 'halves.csv'}"
    done = strata("predict", root / "word", root / "store", spans, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["head"]["kind"], document["head"]["head"]) == ("spans", "linear")
    rows = document["predictions"]
    assert list(rows[0]) == ["id", "start_s", "stop_s", "label", "score"]
    assert len(rows) == 48
    assert {row["label"] for row in rows} <= {"speech", "pause"}
    with out.open(newline="") as file:
        assert [{k: str(v) for k, v in row.items()} for row in rows] == list(csv.DictReader(file))
    (tmp_path / "few.tsv").write_text(
        "file\tbegin_ms\tend_ms\nclip-003\t0\t200\nclip-003\t200\t202\n"
    )
    few = [f"spans={tmp_path / 'few.tsv'}", "spans.label=?", "layer=1"]
    clip = root / "clips" / "clip-003.wav"
    done = strata("predict", root / "word", clip, *few, ONE, "--json")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    (row,), (error,) = document["predictions"], document["errors"]
    assert (row["file"], row["start_s"], row["stop_s"]) == (str(clip), 0.0, 0.2)
    assert (error["start_s"], error["stop_s"]) == (0.2, 0.202)
    assert f"not predicted: {clip}, 0.2 to 0.202 s: no frame's centre is in it" in done.stderr


def test_a_table_has_the_times_of_spans_between_frames(root, tmp_path):
    """They are multiples of 0.0025 s, of which three decimals lose a part."""
    (tmp_path / "a.csv").write_text("id,start,end\nclip-003.wav,0.0225,0.2\n")
    spans = [f"spans={tmp_path / 'a.csv'}", "spans.label=?"]
    done = strata("predict", root / "word", root / "store", *spans)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:3] == ["clip-003.wav", "0.0225", "0.2000"]


@pytest.mark.parametrize("suffix", ["rttm", "ctm", "jsonl"])
def test_frames_become_spans(root, tmp_path, suffix):
    """Read as the spans that the head was trained on, a file gives each frame its class again.

    An RTTM and a CTM have no spans of the class that stands for no span.
    """
    out = tmp_path / f"a.{suffix}"
    done = strata("predict", root / "frame", root / "store", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["predictions"]
    assert {row["label"] for row in rows} == {"speech", "pause"}
    store = open_store(root / "store")
    spans = read_spans(out, skip=[] if suffix != "jsonl" else ["pause"])
    assert len(spans) == sum(row["label"] == "speech" for row in rows)
    expected = Spans.of(*zip(*(list(row.values())[:4] for row in rows), strict=True))
    truth = frame_labels(store, expected, classes=["speech", "pause"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = frame_labels(store, spans, unlabelled="pause")
    for name in dict.fromkeys(span.id for span in spans):
        assert found[name].tolist() == truth[name].tolist()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_no_temporary_files(root, tmp_path, name):
    """While recordings are encoded; the error says that there are no predictions."""
    clips = tmp_path / "clips"
    clips.mkdir()
    soundfile.write(clips / "0.wav", np.zeros(16_000 * 60, np.int16), 16_000)
    for number in range(1, 60):
        (clips / f"{number}.wav").hardlink_to(clips / "0.wav")
    out = tmp_path / "out.csv"
    words = ["predict", str(root / "ks"), str(clips), "--out", str(out), ONE]
    process = forked_strata(*words)

    def folders():
        listed = Path(tempfile.gettempdir()).glob("strata-predict-*/recordings.jsonl")
        return [path.parent for path in listed if str(clips) in path.read_text()]

    end_s = time.monotonic() + 60
    while not (found := folders()) or not (found[0] / "features").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(getattr(signal, name))
    _, printed = process.communicate()
    assert process.returncode == 1
    assert not found[0].exists()
    assert not out.exists()
    assert f"error: interrupted by {name}: no predictions are written; run the same" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ks"], "give the folder of a sweep, and what to predict"),
        (["clips", "clips"], "has no readable sweep.json; expected the folder of a sweep"),
        (["ks", "clips/none.wav"], "there is no recording"),
        (["ks", "ks/heads"], "no audio files in"),
        (["ks", "store", "clips"], "is a store and"),
        (["ks", "store", "layer=7"], "has heads on 1, 2, weighted; choose one"),
        (["ks", "store", "layer=first"], "layer=first: ks has heads on 1, 2, weighted; choose one"),
        (["ks", "clips", "trials=x"], "trials= is for the heads of sv"),
        (["ks", "clips", "where=x"], "where= selects utterances of a store"),
        (["ks", "store", "model.seed=1"], "a store is predicted without the encoder"),
        (["ks", "clips", "extract.dtype=int8"], "extract.dtype=int8 is not a setting of predict"),
        (["ks", "store", "--out", "x.txt"], "suffix .csv, .jsonl, or for parts of"),
        (["ks", "store", "--out", "x.ctm"], "a CTM has parts of recordings, and this head labels"),
        (["word", "store"], "the heads of word label given intervals; give spans=FILE (TextGrid"),
        (["ks", "store", "spans=halves.csv"], "spans= is for heads on spans"),
        (["ks", "store", "spans.tier=words"], "spans.tier is about the file of spans=FILE"),
    ],
)
def test_wrong_arguments_are_refused(root, monkeypatch, arguments, message):
    """Before the encoder is loaded, with exit code 2."""
    monkeypatch.chdir(root)
    done = strata("predict", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1


def test_a_comparison_names_its_sweeps(root, tmp_path):
    """`predict` and `export-head` ask for one of them, of a report or of a folder of sweeps."""
    done = strata("report", root / "ks", root / "ic", f"out={tmp_path / 'report'}")
    assert done.returncode == 0, done.stderr
    nested = tmp_path / "sweeps" / "store"
    nested.mkdir(parents=True)
    for task in ("ks", "ic"):
        (nested / task).symlink_to(root / task)
    for folder, (first, second) in (
        (tmp_path / "report", (root / "ic", root / "ks")),
        (tmp_path / "sweeps", (nested / "ic", nested / "ks")),
    ):
        for words in (("predict", folder, root / "store"), ("export-head", folder, tmp_path / "x")):
            done = strata(*words)
            assert done.returncode == 2
            assert f"or compares, 2 sweeps. Give one of them: {first}, {second}" in done.stderr


def test_export_head_writes_a_folder_that_predicts(root, tmp_path):
    """`predict` reads it like the folder of a sweep."""
    done = strata("export-head", root / "ks", tmp_path / "head", "layer=1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["head"]["layer"] == 1
    assert {p.name for p in (tmp_path / "head").iterdir()} == {"head.safetensors", "README.md"}
    found, expected = (
        json.loads(strata("predict", folder, root / "store", "--json", *layer).stdout)
        for folder, layer in ((tmp_path / "head", []), (root / "ks", ["layer=1"]))
    )
    assert found["predictions"] == expected["predictions"]
    done = strata("export-head", root / "ks")
    assert done.returncode == 2
    assert "SWEEP_DIR OUT" in done.stderr

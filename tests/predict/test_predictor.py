"""`Predictor`: a head and its encoder on new recordings give what they give on stored features."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.config import load_config, load_sweep_config
from pipeline.errors import ConfigError, EncoderError, IdentityError, StoreError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.heads.trained import TrainedHead
from pipeline.predict.encoding import _rounded
from pipeline.predict.export import export_head
from pipeline.predict.pairs import choose_pairs
from pipeline.predict.predictor import Predicted, score_pairs
from pipeline.predict.recordings import find_recordings
from pipeline.probing.run import sweep
from pipeline.store.format.codecs import FLOAT16
from tests.helpers.corpus import voice, write_folder

ONE_THREAD = ["engine.threads=1"]
"""As the extractions of these tests; bits depend on it."""
LENGTHS = [0.9, 0.02, 1.3, 0.7, 5.0, 1.1, 0.8, 1.2]
"""One is shorter than a frame, one is encoded in windows of two seconds."""
QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=4", "task.eval_every=2", "split.speaker=none"]
QUICK += ["split.ratios=[0.5,0.25,0.25]", "task.speaker_independent=false"]


class Notes(Observer):
    """Remembers notes and progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def note(self, line: str) -> None:
        """Remember a note."""
        self.lines.append(line)

    def recordings_encoded(self, done: int, total: int) -> None:
        """Remember the progress."""
        self.counts.append((done, total))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the clips, and a file for each store and sweep made of them."""
    folder = tmp_path_factory.mktemp("predict")
    write_folder(folder / "clips", LENGTHS)
    return folder


def extracted(root: Path, dtype: str = "float16", *more: str) -> Path:
    """Return a store of two layers of the clips, made once."""
    store = root / dtype
    if not store.exists():
        words = ["dataset=audiofolder", f"dataset.path={root / 'clips'}", "model=tiny"]
        words += ["engine=inline", *ONE_THREAD, "extract.layers=[1,3]", f"extract.dtype={dtype}"]
        words += ["extract.max_window_s=2", "extract.context_s=0.5", f"store={store}", *more]
        run.extract(load_config(words))
    return store


def swept(root: Path, store: Path, task: str, *more: str) -> Path:
    """Return the folder of a quick sweep, made once."""
    out = root / f"{store.name}-{task}"
    if not out.exists():
        words = [f"task={task}", f"out={out}", *QUICK, *more]
        sweep(store, load_sweep_config(words))
    return out


CASES = {
    "ks": ["labels=[word]"],
    "asr": ["labels=[word]"],
    "regression": ["labels=[word]"],
}


@pytest.mark.parametrize(
    ("task", "dtype"),
    [("ks", "float16"), ("ks", "int8"), ("asr", "float16"), ("regression", "bfloat16")],
)
def test_files_are_predicted_as_their_stored_features(root, task, dtype):
    """To the last bit, in the batches of the extraction: windows, padding and rounding are equal.

    Of the best layer, which the encoder stops at, and of the weighted sum.
    """
    store = extracted(root, dtype)
    folder = swept(root, store, task, *CASES[task])
    for layer in ("best", "weighted"):
        predictor = pipeline.Predictor(folder, layer, overrides=ONE_THREAD)
        files = predictor.predict_files([root / "clips"])
        stored = predictor.predict_store(store)
        assert [Path(item.name).name for item in files] == [item.name for item in stored]
        assert [item.prediction for item in files] == [item.prediction for item in stored]
        assert all(item.prediction is not None for item in files)


def test_heads_of_a_collapsed_store_predict_files(root):
    """The layers are encoded, summed and rounded as `strata collapse` did it."""
    store = extracted(root)
    if not (root / "sum").exists():
        pipeline.collapse(store, root / "sum", [0.25, 0.75])
    folder = swept(root, root / "sum", "ks", *CASES["ks"])
    predictor = pipeline.Predictor(folder, overrides=ONE_THREAD)
    assert predictor.head.facts.layer == "collapsed"
    files = predictor.predict_files([root / "clips"])
    stored = predictor.predict_store(root / "sum")
    assert [item.prediction for item in files] == [item.prediction for item in stored]
    message = (
        "^give a store of the head's encoder, tiny, or audio files; .*another encoder than the"
    )
    with pytest.raises(IdentityError, match=message):
        predictor.predict_store(store)


@pytest.mark.parametrize("task", ["ks", "asr"])
def test_waveforms_are_predicted_as_files(root, task):
    """Within the rounding of other batches; long ones in windows."""
    folder = swept(root, extracted(root), task, *CASES[task])
    predictor = pipeline.Predictor(folder, overrides=ONE_THREAD)
    # a wav file has 16 bits
    paths = [root / "clips" / f"clip-{i:03d}.wav" for i in (0, 1, 4)]
    waves = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    files = predictor.predict_files(paths)
    for found, item in zip(predictor(waves), files, strict=True):
        assert (found.labels, found.transcript) == (
            item.prediction.labels,
            item.prediction.transcript,
        )
        assert found.scores == pytest.approx(item.prediction.scores, abs=1e-4)
    with pytest.raises(ConfigError, match=r"a list of waveforms, not one; write \[waveform\]"):
        predictor(waves[0])


def test_waveforms_of_another_rate_are_resampled_as_files(root, tmp_path):
    """As by an extraction: arrays of integers at 44.1 kHz, like the file that they are in."""
    samples = (voice(0.8, 7)[:12_000] * 20_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 44_100)
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    predictor = pipeline.Predictor(folder, overrides=ONE_THREAD)
    (file,) = predictor.predict_files([tmp_path / "a.wav"])
    (found,) = predictor([samples], sample_rate=44_100)
    assert found.scores == pytest.approx(file.prediction.scores, abs=1e-5)
    (other,) = predictor([samples])
    assert other.scores != pytest.approx(file.prediction.scores, abs=1e-5)


def test_the_encoder_stops_at_the_layer_of_the_head(root):
    """Other layers are neither computed nor stored; random weights are named."""
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    notes = Notes()
    predictor = pipeline.Predictor(folder, 1, overrides=ONE_THREAD, observer=notes)
    predictor([torch.tensor(voice(0.5, 1))])
    assert predictor._encoder._encoder.layers == (1,)
    assert any("RANDOM" in line for line in notes.lines)


def test_a_damaged_file_is_named_and_the_others_go_on(root, tmp_path):
    """The error has the reason; progress counts all files."""
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    shutil.copy(root / "clips" / "clip-000.wav", tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    (tmp_path / "c.flac").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no audio")
    notes = Notes()
    predictor = pipeline.Predictor(folder, overrides=ONE_THREAD, observer=notes)
    a, b, c = predictor.predict_files([tmp_path])
    assert a.prediction is not None
    assert a.error is None
    assert (b.prediction, c.prediction) == (None, None)
    assert "b.wav" in b.name
    assert b.error
    assert c.error
    assert notes.counts[0] == (0, 3)
    assert notes.counts[-1] == (3, 3)
    only = predictor.predict_files([tmp_path / "b.wav"])
    assert only == [replace(b, name=str(tmp_path / "b.wav"))]


def test_more_files_than_a_temporary_store_takes(root, monkeypatch):
    """The order of the files is kept; the encoder is not checked again in each of them."""
    monkeypatch.setattr("pipeline.predict.encoding._PER_STORE", 3)
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    monkeypatch.setattr("pipeline.extract.store_setup.quick_selfcheck", None)
    predictor = pipeline.Predictor(folder, overrides=ONE_THREAD)
    found = predictor.predict_files([root / "clips"])
    assert [Path(item.name).name for item in found] == [f"clip-{i:03d}.wav" for i in range(8)]
    stored = predictor.predict_store(extracted(root))
    assert [a.prediction.labels for a in found] == [b.prediction.labels for b in stored]


def test_other_weights_are_refused(root):
    """With the setting that gives the right ones first, then both hashes."""
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    predictor = pipeline.Predictor(folder, overrides=["model.seed=1"])
    message = r"^give the weights .* model.weights=PATH.*; .* weights.sha256 is \w+.* there, \w+"
    with pytest.raises(IdentityError, match=message):
        predictor([torch.zeros(400)])
    predictor = pipeline.Predictor(folder, overrides=["extract.layers=[1]"])
    with pytest.raises(ConfigError, match=r"extract.layers=\[1\] is not a setting of predict"):
        predictor([torch.zeros(400)])


def test_what_differs_from_the_sweep_without_harm_is_noted(root):
    """Another precision, and another way to make waveforms; the predictions are made."""
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    notes = Notes()
    more = [*ONE_THREAD, "extract.precision=fp32"]
    predictor = pipeline.Predictor(folder, 1, overrides=more, observer=notes)
    facts = predictor.head.facts
    encoder = facts.identity["encoder"] | {"precision": "bf16"}
    other = facts.identity | {"encoder": encoder, "audio": {"decoder": "another 1.0"}}
    predictor.head = TrainedHead(replace(facts, identity=other), predictor.head.tensors)
    assert predictor([torch.tensor(voice(0.5, 1))])[0].labels
    text = "\n".join(notes.lines)
    assert "precision is fp32, and bf16 in the sweep" in text
    assert "WARNING: waveforms differ from the sweep's: audio.decoder is another 1.0 there" in text


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_a_feature_that_cannot_be_stored_is_refused(value):
    """As an extraction refuses it; the message names the dtype and the setting that helps."""
    features = torch.zeros(1, 3, 2)
    features[0, 1, 1] = value
    with pytest.raises(EncoderError, match=r"too large for float16; give extract.precision=fp32"):
        _rounded(features, FLOAT16)


def test_the_encoder_is_found_where_a_store_does_not_name_its_settings(root):
    """By the name of the model if its weights need no place; else the user must give one."""
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    head = TrainedHead.load(folder / "trained" / "layer-1.safetensors")
    for model in ({}, {"option": "tiny"}, {"weights": "random"}):
        predictor = pipeline.Predictor(folder, 1, overrides=ONE_THREAD)
        predictor.head = TrainedHead(replace(head.facts, model=model), head.tensors)
        assert predictor([torch.tensor(voice(0.5, 1))])[0].labels
    predictor = pipeline.Predictor(folder, 1)
    predictor.head = TrainedHead(replace(head.facts, model={}, weights="file"), head.tensors)
    with pytest.raises(ConfigError, match=r"does not say where the weights .* model.weights=PATH"):
        predictor([torch.zeros(400)])


def test_a_store_without_the_layer_or_of_another_encoder_is_refused(root, tmp_path):
    """The message names the layers that it has, or what differs; int8 instead of float16 goes."""
    store = extracted(root)
    folder = swept(root, store, "ks", *CASES["ks"])
    pipeline.copy_stores([store], tmp_path / "one", pipeline.CopySettings(layers=[3]))
    with pytest.raises(ConfigError, match=r"has no layer 1, which .*it has \[3\]"):
        pipeline.Predictor(folder, 1).predict_store(tmp_path / "one")
    notes = Notes()
    pipeline.Predictor(folder, 1, observer=notes).predict_store(extracted(root, "int8"))
    assert any("dtype is float16 there, int8 here" in line for line in notes.lines)
    pipeline.copy_stores([store], tmp_path / "means", pipeline.CopySettings(keep=["pooled"]))
    text = swept(root, store, "asr", *CASES["asr"])
    with pytest.raises(StoreError, match="frames"):
        pipeline.Predictor(text).predict_store(tmp_path / "means")


def test_only_the_asked_utterances_of_a_store(root):
    """In the order of the ids."""
    store = extracted(root)
    predictor = pipeline.Predictor(swept(root, store, "ks", *CASES["ks"]))
    names = ["clip-006.wav", "clip-002.wav"]
    found = predictor.predict_store(store, names)
    every = {item.name: item for item in predictor.predict_store(store)}
    assert [item.name for item in found] == names
    assert [item.prediction.labels for item in found] == [
        every[name].prediction.labels for name in names
    ]


def test_the_folder_of_a_sweep_is_checked(root, tmp_path):
    """No folder, no sweep, a sweep of an earlier version, and a layer without a head."""
    folder = swept(root, extracted(root), "ks", *CASES["ks"])
    with pytest.raises(ConfigError, match="does not exist; expected the folder of a sweep"):
        pipeline.Predictor(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"has no readable sweep.json"):
        pipeline.Predictor(tmp_path)
    shutil.copy(folder / "sweep.json", tmp_path)
    with pytest.raises(
        ConfigError, match=r"no trained heads in trained/.*the same `strata sweep` again"
    ):
        pipeline.Predictor(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"sweep.json is not the result of a sweep; run the"):
        pipeline.Predictor(tmp_path)
    shutil.copy(folder / "sweep.json", tmp_path)
    with pytest.raises(ConfigError, match=r"layer=2: .* has heads on 1, 3, weighted; choose one"):
        pipeline.Predictor(folder, 2)
    export_head(folder, tmp_path / "exported", 3)
    with pytest.raises(ConfigError, match="has the head on layer 3, not 1"):
        pipeline.Predictor(tmp_path / "exported", 1)
    best = json.loads((folder / "sweep.json").read_text())["best"]
    name = best if isinstance(best, str) else f"layer-{best}"
    others = tmp_path / "trained"
    shutil.copytree(folder / "trained", others, ignore=lambda *_: [f"{name}.safetensors"])
    with pytest.raises(ConfigError, match=f"no file of its best head, on {best}, .* trains this"):
        pipeline.Predictor(tmp_path)


def test_recordings_are_files_and_the_audio_of_folders(tmp_path):
    """Each once, those of a folder sorted; what is missing or has no audio is refused."""
    for name in ("b.WAV", "a.flac", "sub/c.mp3", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_recordings([tmp_path / "d.txt", tmp_path, tmp_path / "a.flac"])
    assert [path.name for path in found] == ["d.txt", "a.flac", "b.WAV", "c.mp3"]
    with pytest.raises(ConfigError, match=r"there is no recording .*e.wav"):
        find_recordings([tmp_path / "e.wav"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no audio files in .*empty"):
        find_recordings([tmp_path / "empty"])


def test_pairs_are_two_names_or_those_of_a_list(tmp_path):
    """A name is found by its end; one that may be several, or none, is refused with its line."""
    names = ["x/s1/a.wav", "x/s2/a.wav", "x/s2/b.wav"]
    assert choose_pairs(None, names[:2]) == [(names[0], names[1])]
    with pytest.raises(ConfigError, match="there are 3 names: give two recordings, or a list"):
        choose_pairs(None, names)
    listed = tmp_path / "trials.txt"
    listed.write_text("1 s1/a.wav b\n\ns2/a x/s2/b.wav nontarget\nb s1/a\n")
    assert choose_pairs(str(listed), names) == [
        (names[0], names[2]),
        (names[1], names[2]),
        (names[2], names[0]),
    ]
    for line, message in (
        ("a.wav b.wav", "trials.txt:1: a.wav may be any of x/s1/a.wav, x/s2/a.wav"),
        ("s1/a.wav c", "trials.txt:1: c is none of the recordings"),
        ("s1/a.wav", "trials.txt:1 is 's1/a.wav'; expected `ID ID`"),
    ):
        listed.write_text(line)
        with pytest.raises(ConfigError, match=message):
            choose_pairs(str(listed), names)
    listed.write_text("\n")
    with pytest.raises(ConfigError, match="has no trials"):
        choose_pairs(str(listed), names)
    with pytest.raises(ConfigError, match="cannot be read"):
        choose_pairs(str(tmp_path / "no.txt"), names)
    with pytest.raises(ConfigError, match="no prediction of b; expected one of 1 names"):
        score_pairs([Predicted("a")], [("a", "b")])

"""`Predictor` with heads of spans and of frames: parts of recordings get labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipeline
from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError, SourceError
from pipeline.predict.given_spans import GivenSpans
from pipeline.probing.run import sweep
from pipeline.spans.frame_labels import frame_labels
from pipeline.spans.table import Spans
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store
from tests.helpers.corpus import write_folder
from tests.predict.test_predictor import LENGTHS, ONE_THREAD, QUICK, Notes, extracted, swept

IDS = [f"clip-{i:03d}.wav" for i in range(len(LENGTHS))]
WORDS = ["task.min_count=2", "task.pooling=[mean,max]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Clips, and a file with two spans of each: its first and its second half."""
    folder = tmp_path_factory.mktemp("parts")
    write_folder(folder / "clips", LENGTHS)
    lines = ["id,start,end,label"]
    for name, length in zip(IDS, LENGTHS, strict=True):
        lines += [f"{name},0,{length / 2},first", f"{name},{length / 2},{length},second"]
    (folder / "halves.csv").write_text("\n".join(lines) + "\n")
    return folder


def swept_parts(root: Path, task: str, *more: str) -> Path:
    """Return the folder of a quick sweep on the halves."""
    return swept(root, extracted(root), task, f"spans={root / 'halves.csv'}", *more)


def kept_in_sweep(folder: Path, predictor):
    """Return ids and predictions of the test utterances by the head that was kept."""
    result = json.loads((folder / "sweep.json").read_text())
    facts = predictor.head.facts
    (head,) = [
        h
        for h in result["heads"]
        if (h["layer"], h["lr"], h["seed"]) == (facts.layer, facts.lr, facts.seed)
    ]
    return result["test_ids"][0], head["predictions"]


def confusions(root, name, predictor, spans):
    """Return reference, prediction and number of frames of each pair of these, flat."""
    store, names = open_store(extracted(root)), predictor.head.facts.classes[0]
    placed = pipeline.place_spans(store, pipeline.read_spans(root / "halves.csv"))
    truth = frame_labels(store, placed, classes=names)[name].tolist()
    spread = [names.index(s.label) for s in spans for _ in range(s.first, s.last)]
    pairs = Counter(pair for pair in zip(truth, spread, strict=True) if pair[0] >= 0)
    return [number for pair, count in sorted(pairs.items()) for number in (*pair, count)]


def test_spans_are_labelled_as_in_the_sweep(root):
    """From the store as in the sweep's test, and from files to the last bit as from the store."""
    folder = swept_parts(root, "word", *WORDS)
    for layer in ("best", "weighted"):
        predictor = pipeline.Predictor(folder, layer, overrides=ONE_THREAD)
        stored = predictor.predict_store(extracted(root), spans=root / "halves.csv")
        ids, expected = kept_in_sweep(folder, predictor)
        by_id = {item.name: item.prediction.spans for item in stored}
        names = predictor.head.facts.classes[0]
        for name, numbers in zip(ids, expected, strict=True):
            assert [s.label for s in by_id[name]] == [names[n] for n in numbers]
        files = predictor.predict_files([root / "clips"], root / "halves.csv")
        assert [Path(item.name).name for item in files] == [item.name for item in stored] == IDS
        assert [item.prediction for item in files] == [item.prediction for item in stored]
        assert [s[:2] for s in by_id["clip-000.wav"]] == [(0.0, 0.45), (0.45, 0.9)]


def test_frames_are_labelled_as_in_the_sweep(root):
    """The confusions of each test utterance; files as the store, to the last bit."""
    folder = swept_parts(root, "frame", "task.metric=f1")
    for layer in ("best", "weighted"):
        predictor = pipeline.Predictor(folder, layer, overrides=ONE_THREAD)
        stored = predictor.predict_store(extracted(root))
        ids, expected = kept_in_sweep(folder, predictor)
        by_id = {item.name: item.prediction.spans for item in stored}
        for name, triples in zip(ids, expected, strict=True):
            assert confusions(root, name, predictor, by_id[name]) == triples
        files = predictor.predict_files([root / "clips"])
        assert [item.prediction for item in files] == [item.prediction for item in stored]


FORMS = [
    ("ks", "mlp"),
    ("regression", "attentive"),
    ("word", "mlp"),
    ("frame", "lstm"),
    ("asr", "lstm"),
]


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_heads_of_each_form_predict_as_in_the_sweep(root, task, form):
    """From the store as in the sweep's test; files as the store, to the last bit."""
    words = [f"task.head={form}", "task.projection=8", f"out={root / form / task}"]
    if form == "lstm":
        words += ["task.units=6"]
    if task in ("word", "frame"):
        words += [f"spans={root / 'halves.csv'}", "task.min_count=2"]
    else:
        words += ["labels=[word]"]
    folder = root / form / task
    result, _ = sweep(extracted(root), load_sweep_config([f"task={task}", *QUICK, *words]))
    spans = root / "halves.csv" if task == "word" else None
    for layer in (3, "weighted"):
        predictor = pipeline.Predictor(folder, layer, overrides=ONE_THREAD)
        assert predictor.head.facts.head == form
        stored = predictor.predict_store(extracted(root), spans=spans)
        by_id = {item.name: item.prediction for item in stored}
        ids, expected = kept_in_sweep(folder, predictor)
        for name, swept_one in zip(ids, expected, strict=True):
            found = by_id[name]
            if task == "asr":
                assert found.transcript == swept_one
            elif task == "regression":
                assert found.values == pytest.approx(swept_one, rel=1e-4, abs=1e-4)
            elif task == "frame":
                assert confusions(root, name, predictor, found.spans) == swept_one
            else:
                labels = found.labels or [s.label for s in found.spans]
                assert [result.classes[0].index(label) for label in labels] == swept_one
        files = predictor.predict_files([root / "clips"], spans)
        assert [item.prediction for item in files] == [item.prediction for item in stored]


@pytest.mark.parametrize("task", ["frame", "asr"])
def test_long_recordings_are_read_in_parts(root, monkeypatch, task):
    """With the predictions of the whole, also of a weighted sum, for which all layers are read."""
    if task == "frame":
        folder = swept_parts(root, task, "task.metric=f1")
    else:
        folder = swept(root, extracted(root), task, "labels=[word]")
    predictor = pipeline.Predictor(folder, "weighted")
    whole = predictor.predict_store(extracted(root))
    sizes = []
    read = FeatureStore.read

    def counted(*arguments):
        found = read(*arguments)
        sizes.append(found.shape[1])
        return found

    monkeypatch.setattr(FeatureStore, "read", counted)
    dim = predictor.head.facts.dim
    monkeypatch.setattr("pipeline.predict.predictor._PART_CELLS", 2 * dim * 7)
    parts = predictor.predict_store(extracted(root))
    assert max(sizes) == 7
    for one, other in zip(whole, parts, strict=True):
        assert one.prediction.transcript == other.prediction.transcript
        pairs = zip(one.prediction.spans, other.prediction.spans, strict=True)
        assert all(a == b._replace(score=pytest.approx(b.score, abs=1e-5)) for a, b in pairs)


def test_spans_of_frames_have_their_frames(root):
    """Read as spans, they give each frame its class again."""
    predictor = pipeline.Predictor(swept_parts(root, "frame", "task.metric=f1"))
    store = open_store(extracted(root))
    rows = [
        (item.name, s.start_s, s.stop_s, s.label, s.last - s.first)
        for item in predictor.predict_store(store)
        for s in item.prediction.spans
    ]
    ids, starts, stops, labels, lengths = zip(*rows, strict=True)
    placed = pipeline.place_spans(store, Spans.of(ids, starts, stops, labels))
    assert (placed.last - placed.first).tolist() == list(lengths)
    assert len(placed) == len(rows) > len(IDS)


def test_waveforms_are_labelled_as_files(root):
    """Spans of each waveform by their times; frames without them."""
    paths = [root / "clips" / IDS[i] for i in (0, 4)]
    waves = [soundfile.read(path)[0] for path in paths]
    words = pipeline.Predictor(swept_parts(root, "word", *WORDS), overrides=ONE_THREAD)
    files = words.predict_files(paths, root / "halves.csv")
    times = [[s[:2] for s in item.prediction.spans] for item in files]
    for found, item in zip(words(waves, spans=times), files, strict=True):
        assert [s.label for s in found.spans] == [s.label for s in item.prediction.spans]
        scores = [s.score for s in item.prediction.spans]
        assert [s.score for s in found.spans] == pytest.approx(scores, abs=1e-4)
    with pytest.raises(
        ConfigError, match=r"waveform 0: no frame's centre is between 0.5 and 0.505"
    ):
        words(waves[:1], spans=[[(0.5, 0.505)]])
    with pytest.raises(ConfigError, match="there are 2 waveforms and spans of 1; give a list"):
        words(waves, spans=[[(0, 0.5)]])
    (found,) = words(waves[:1], spans=[[(0.2, 99.0)]])
    assert found.spans[0].last == open_store(extracted(root)).n_frames(IDS[0])
    frame = pipeline.Predictor(swept_parts(root, "frame", "task.metric=f1"), overrides=ONE_THREAD)
    (found,) = frame(waves[:1])
    (item,) = frame.predict_files(paths[:1])
    assert [s[:3] for s in found.spans] == [s[:3] for s in item.prediction.spans]


def test_spans_name_recordings_by_the_ends_of_their_paths(root, tmp_path):
    """With or without extension and folders; others are noted, and files without spans skipped."""
    notes = Notes()
    predictor = pipeline.Predictor(
        swept_parts(root, "word", *WORDS), overrides=ONE_THREAD, observer=notes
    )
    spans = Spans.of(
        ["clip-000", "clips/clip-002.wav", "other", "clip-002"],
        [0.1, 0.0, 0.0, 0.51],
        [0.4, 0.7, 1.0, 0.512],
        ["", "", "", ""],
    )
    found = {Path(p.name).name: p for p in predictor.predict_files([root / "clips"], spans)}
    assert [s[:2] for s in found["clip-000.wav"].prediction.spans] == [(0.1, 0.4)]
    assert [s[:2] for s in found["clip-002.wav"].prediction.spans] == [(0.0, 0.7)]
    assert found["clip-002.wav"].without_frames == ((0.51, 0.512),)
    assert found["clip-001.wav"].prediction.spans == ()
    assert notes.counts[-1] == (2, 2)
    text = "\n".join(notes.lines)
    assert "1 span of 4 are of other recordings: other" in text
    assert "6 recordings of 8 without a span" in text
    with pytest.raises(ConfigError, match=r"ids of the spans are such as 'other', and the record"):
        predictor.predict_files([root / "clips"], spans.take([2]))
    both = tmp_path / "clips" / "clip-000.wav"
    both.parent.mkdir()
    both.touch()
    with pytest.raises(ConfigError, match=r"spans of 'clip-000' may be of any of .*longer ids"):
        predictor.predict_files([root / "clips", both], spans)
    for placing in ({"times": "recording"}, {"segment_start": "start"}):
        given = GivenSpans(spans, placing)
        with pytest.raises(ConfigError, match="are for stores of segments"):
            predictor.predict_files([root / "clips"], given)


def test_stored_spans_have_the_ids_of_the_store(root):
    """Some utterances by their ids; a span without a frame is listed; other ids are refused."""
    predictor = pipeline.Predictor(swept_parts(root, "word", *WORDS))
    store = open_store(extracted(root))
    spans = Spans.of([IDS[2], IDS[0], IDS[2]], [0.9, 0.0, 0.1], [0.901, 0.5, 0.4], ["a", "b", "c"])
    two, four = predictor.predict_store(store, [IDS[2], IDS[4]], spans)
    assert [s[:2] for s in two.prediction.spans] == [(0.1, 0.4)]
    assert two.without_frames == ((0.9, 0.901),)
    assert four.prediction.spans == ()
    with pytest.raises(SourceError, match="has no utterance of the spans"):
        predictor.predict_store(store, [IDS[3]], spans)
    late_first = Spans.of([IDS[2], IDS[2]], [0.3, 0.0], [0.6, 0.3], ["a", "b"])
    (two,) = predictor.predict_store(store, [IDS[2]], late_first)
    assert [s.start_s for s in two.prediction.spans] == [0.3, 0.0]


def test_spans_of_which_none_is_left_are_refused(root):
    """Such as a selection without results; for files and stores alike."""
    predictor = pipeline.Predictor(swept_parts(root, "word", *WORDS))
    none = Spans.of(["a"], [0.0], [1.0], ["x"]).take([])
    with pytest.raises(ConfigError, match="spans= has no spans; give at least one"):
        predictor.predict_files([root / "clips"], none)
    with pytest.raises(ConfigError, match="spans= has no spans; give at least one"):
        predictor.predict_store(extracted(root), spans=none)


def test_heads_need_what_they_label(root):
    """Spans for heads on spans, and none for others; the message has the remedy."""
    words = pipeline.Predictor(swept_parts(root, "word", *WORDS))
    frame = pipeline.Predictor(swept_parts(root, "frame", "task.metric=f1"))
    for call in (
        lambda one: one([torch.zeros(400)]),
        lambda one: one.predict_files([root / "clips"]),
        lambda one: one.predict_store(extracted(root)),
    ):
        with pytest.raises(ConfigError, match=r"heads of word label given intervals; give spans="):
            call(words)
    with pytest.raises(ConfigError, match=r"spans= is for heads on spans .* one of frame"):
        frame.predict_store(extracted(root), spans=root / "halves.csv")
    assert np.all(
        [s.score > 0.5 for p in frame.predict_store(extracted(root)) for s in p.prediction.spans]
    )

"""Sweeps from start to end: results, cache, files, errors and warnings."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError, StoreError
from pipeline.events import Observer
from pipeline.probing import run
from pipeline.probing.result_files import summary
from pipeline.probing.results import WEIGHTED
from pipeline.probing.run import sweep
from pipeline.store.read.opening import open_store
from pipeline.transforms.collapse import collapse
from tests.helpers.feature_stores import make_store
from tests.helpers.planted_stores import DIM, LAYERS, planted, write_planted

QUICK = ["task.lrs=[1e-2,1e-3]", "seeds=[0,1]", "task.steps=60", "task.eval_every=20"]
MAY_DIFFER = {"seconds", "trained", "reused", "store"}
"""Fields that may differ between two runs of the same sweep."""


def swept(root, out, *overrides, task="ks"):
    """Run a quick sweep of a store; a speaker may be in several parts if no column is given."""
    return sweep(root, replace(configured(f"task={task}", *overrides), out=str(out)))[0]


@cache
def configured(*overrides):
    """Return a configuration; composing it takes longer than some of these sweeps."""
    return load_sweep_config([*QUICK, "split.speaker=none", *overrides])


def comparable(found):
    """Return the results of a sweep, without the fields that may differ."""
    return {item.name: getattr(found, item.name) for item in fields(found)} | dict.fromkeys(
        MAY_DIFFER
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose layer 2 shows the words; other layers are noise."""
    root = tmp_path_factory.mktemp("planted") / "store"
    write_planted(root, n=160, columns={"speaker": [f"s{row // 20}" for row in range(160)]})
    return root


@pytest.fixture(scope="module")
def found(store, tmp_path_factory):
    """The sweep of `store`, with every speaker in one part."""
    return swept(store, tmp_path_factory.mktemp("out") / "ks", "split.speaker=speaker")


def test_the_layer_with_the_classes_is_best(found):
    """Layer 2 has the best dev and test scores, and the largest weight."""
    document = summary(found)
    assert document["best_layer"] == 2
    assert found.score(2).test > 0.9
    assert max(found.score(1).test, found.score(3).test) < 0.6
    assert found.score(1).low < found.score(1).test < found.score(1).high
    assert [score.layer for score in found.scores] == [1, 2, 3, WEIGHTED]
    assert np.argmax(found.layer_weights) == 1
    assert {found.comparison.best, found.comparison.second} == {2, WEIGHTED}
    assert found.n_train + found.n_dev + found.n_test == 160


def test_results_have_a_mean_per_candidate_and_learning_rate(found):
    """`results` has the mean scores, and the best dev score among them is chosen."""
    results = summary(found)["results"]
    assert {(item["layer"], item["lr"]) for item in results} == {
        (layer, lr) for layer in (1, 2, 3, WEIGHTED) for lr in (1e-2, 1e-3)
    }
    for item in results:
        heads = [
            head for head in found.heads if (head.layer, head.lr) == (item["layer"], item["lr"])
        ]
        assert len(heads) == 2
        assert item["dev"] == pytest.approx(np.mean([head.dev for head in heads]))
        assert item["test"] == pytest.approx(np.mean([head.test for head in heads]))
    for score in found.scores:
        mine = [item for item in results if item["layer"] == score.layer]
        best = max(mine, key=lambda item: item["dev"])
        assert (score.lr, score.dev) == (best["lr"], best["dev"])
        assert score.test == pytest.approx(best["test"])


def test_baselines_and_confusions_are_there(found):
    """Baselines are chance, majority class, an untrained head and logistic regression."""
    assert found.baselines["chance"] == 0.25
    assert found.baselines["logistic regression, layer 2"] > 0.9
    assert {"majority class", "untrained head, layer 2"} < found.baselines.keys()
    seeds = 2
    assert np.sum(found.confusion) == seeds * found.n_test
    accuracy = np.trace(found.confusion) / (seeds * found.n_test)
    assert accuracy == pytest.approx(found.score(found.best).test)


def test_a_second_run_trains_nothing_and_gives_the_same_results(store, tmp_path):
    """A second run uses the cache; a run without cache gives the same numbers."""
    first = swept(store, tmp_path / "a", "split.speaker=speaker")
    again = swept(store, tmp_path / "a", "split.speaker=speaker")
    fresh = swept(store, tmp_path / "b", "split.speaker=speaker")
    assert (first.trained, first.reused) == (16, 0)
    assert (again.trained, again.reused) == (0, 16)
    assert comparable(again) == comparable(first) == comparable(fresh)


@pytest.mark.slow
def test_a_changed_setting_trains_only_new_heads(store, tmp_path):
    """More layers, learning rates or seeds add heads; cached heads count as trained."""
    short, by = "task.steps=20", "split.speaker=speaker"
    swept(store, tmp_path / "a", short, by, "layers=[1,2]", "task.lrs=[1e-2]")
    more = swept(store, tmp_path / "a", short, by, "layers=[1,2]", "seeds=[0,1,2]")
    assert (more.trained, more.reused) == (12, 6)
    assert comparable(more) == comparable(
        swept(store, tmp_path / "b", short, by, "layers=[1,2]", "seeds=[0,1,2]")
    )
    third = swept(store, tmp_path / "a", short, by)
    assert (third.trained, third.reused) == (4 + 4, 8)  # layer 3, and the sum over other layers
    for other in (["split.seed=1"], ["task.steps=10"], ["task.batch=16"], ["labels=[speaker]"]):
        label = [] if "labels=[speaker]" in other else [by]
        assert swept(store, tmp_path / "a", short, *label, *other).reused == 0


def test_other_features_are_other_heads(tmp_path):
    """Heads are trained again if a store at the same path has other features for the same ids."""
    root = tmp_path / "store"
    write_planted(root, n=60)
    swept(root, tmp_path / "out", "layers=[2]")
    root.rename(tmp_path / "old")
    write_planted(root, n=60, features=planted([row % 4 for row in range(60)], seed=1))
    assert swept(root, tmp_path / "out", "layers=[2]").reused == 0


def test_a_damaged_head_is_trained_again(store, tmp_path):
    """Damaged and missing entries of the cache are trained again, also if they are valid JSON."""
    settings = ("split.speaker=speaker", "layers=[2]")
    first = swept(store, tmp_path, *settings)
    heads = sorted((tmp_path / "heads").iterdir())
    heads[0].write_text(heads[0].read_text()[:50])
    heads[1].unlink()
    changed = json.loads(heads[2].read_text())
    heads[2].write_text(json.dumps(changed | {"test": changed["test"] + 0.25}))
    again = swept(store, tmp_path, *settings)
    assert (again.trained, again.reused) == (3, 1)
    assert comparable(again) == comparable(first)


def test_nothing_is_written_into_the_store(store, tmp_path, monkeypatch):
    """The output folder is outside the store, by default in the working directory."""
    before = sorted(store.rglob("*"))
    with pytest.raises(ConfigError, match="is inside the store"):
        swept(store, store / "sweep", "split.speaker=speaker")
    monkeypatch.chdir(tmp_path)
    sweep(store, configured("task=ks", "split.speaker=speaker", "layers=[2]"))
    assert sorted(store.rglob("*")) == before
    assert (tmp_path / "sweeps" / "store" / "ks-word" / "sweep.json").is_file()


def test_collapse_accepts_the_weights(store, tmp_path):
    """One weight per layer of the store, zero for layers that were not swept."""
    found = swept(store, tmp_path / "out", "split.speaker=speaker", "layers=[2,3]")
    weights = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert weights[0] == 0.0
    assert weights[1:] == pytest.approx(found.layer_weights)
    assert sum(weights) == pytest.approx(1)
    done = collapse(store, tmp_path / "one", tmp_path / "out" / "weights.json")
    assert done.weights == pytest.approx(weights)
    one = swept(tmp_path / "one", tmp_path / "again", "split.speaker=speaker")
    assert [score.layer for score in one.scores] == ["collapsed"]
    assert one.comparison is None
    assert one.layer_weights is None
    assert one.scores[0].test > 0.8


def test_another_sweep_gets_another_folder(store, tmp_path):
    """Its report and weights do not replace those of the first one; the same sweep resumes."""
    out, by = tmp_path / "out", "split.speaker=speaker"
    notes = []
    observer = Observer()
    observer.note = notes.append

    def folder_of(*overrides):
        config = replace(configured("task=ks", *overrides), out=str(out))
        return sweep(store, config, observer)

    _, first = folder_of(by, "layers=[2,3]")
    before = {path: path.read_bytes() for path in first.iterdir() if path.is_file()}
    single, second = folder_of(by, "layers=[2]")
    assert (first, second) == (out, tmp_path / "out-2")
    assert single.layer_weights is None
    assert (single.trained, single.reused) == (0, 4)
    assert not (second / "weights.json").exists()
    [note] = [note for note in notes if str(second) in note]  # slow steps are noted, too
    assert note == f"{out} has the results of another sweep (other layers); these go to {second}"
    assert folder_of(by, "layers=[2]")[1] == second
    assert folder_of("layers=[2]", "split.seed=1")[1] == tmp_path / "out-3"
    assert "(other layers, split.seed, split.speaker)" in notes[-1]
    assert {path: path.read_bytes() for path in before} == before
    again, third = folder_of(by, "layers=[2,3]")
    assert (third, again.trained) == (first, 0)
    assert (second / "sweep.json").is_file()


def test_other_content_in_the_same_place_gets_another_folder(tmp_path):
    """Labels, parts or features may change while all settings stay: that is another sweep."""
    root, out = tmp_path / "store", tmp_path / "out"
    notes = []
    observer = Observer()
    observer.note = notes.append
    words = [f"word-{row % 4}" for row in range(64)]
    parts = [("train", "train", "dev", "test")[row // 4 % 4] for row in range(64)]

    def folder_of(shift=0, moved=0, strength=1.5):
        shutil.rmtree(root, ignore_errors=True)
        columns = {
            "word": words[shift:] + words[:shift],
            "split": parts[moved:] + parts[:moved],
        }
        features = planted([row % 4 for row in range(64)], strength=strength)
        write_planted(root, n=64, columns=columns, features=features)
        config = configured("task=ks", "layers=[2]", "seeds=[0]", "split.speaker=none")
        return sweep(root, replace(config, out=str(out)), observer)[1].name

    assert [folder_of(), folder_of()] == ["out", "out"]
    for number, (content, changed) in enumerate(
        {
            "label values": {"shift": 1},
            "parts of the split": {"moved": 1},
            "features": {"strength": 2.0},
        }.items(),
        2,
    ):
        assert folder_of(**changed) == f"out-{number}"
        assert any(f"another sweep (other {content}); these go to" in note for note in notes)
    assert folder_of() == "out"


def test_a_library_of_another_version_is_noted(store, tmp_path, monkeypatch):
    """The sweep goes on without it, and says so where heads are trained."""
    monkeypatch.setattr(run, "stale_note", lambda: "WARNING: compile it again")
    notes = []
    observer = Observer()
    observer.note = notes.append
    config = replace(configured("task=ks", "layers=[2]"), out=str(tmp_path))
    for n_notes in (1, 1):  # the second time nothing is trained
        sweep(store, config, observer)
        assert notes.count("WARNING: compile it again") == n_notes


def test_results_without_settings_are_not_overwritten(store, tmp_path):
    """Version 0.1.0 did not write down what its results are of; damaged settings say nothing."""
    for number, content in enumerate([None, "{", "[]"]):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / "sweep.json").write_text("{}")
        if content:
            (out / "settings.json").write_text(content)
        swept(store, out, "layers=[2]", "seeds=[0]")
        assert (out / "sweep.json").read_text() == "{}"
        assert (tmp_path / f"out{number}-2" / "sweep.json").is_file()


def test_another_store_of_the_same_name_gets_another_folder(store, tmp_path, monkeypatch):
    """The default folder has the name of the store only."""
    write_planted(tmp_path / "store", n=60)
    monkeypatch.chdir(tmp_path)
    settings = ("task=ks", "layers=[2]", "seeds=[0]")
    folders = [sweep(root, configured(*settings))[1] for root in (store, tmp_path / "store")]
    assert folders == [Path("sweeps/store/ks-word"), Path("sweeps/store/ks-word-2")]


def test_sweep_json_is_complete(store, tmp_path):
    """sweep.json has the summary, and heads with curves and predictions, without NaN."""
    found = swept(store, tmp_path, "split.speaker=speaker", "layers=[2]")
    document = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=pytest.fail)
    assert document["best_layer"] == 2
    assert len(document["heads"]) == 4
    assert len(document["heads"][0]["predictions"]) == found.n_test
    assert document["heads"][0]["curve"][-1][0] == 60
    assert document["test_ids"][0] == list(found.test_ids[0])


def test_folds_report_every_utterance_once(store, tmp_path):
    """Leave-one-speaker-out: a fold per speaker, and one score over all utterances."""
    found = swept(
        store,
        tmp_path,
        "split.speaker=speaker",
        "split.folds=groups",
        "layers=[2]",
        "task.lrs=[1e-2]",
    )
    assert found.n_test == 160
    assert len(found.test_ids) == 8
    assert len(found.heads) == 8 * 2
    tests = [head.test for head in found.heads]
    assert found.score(2).test == pytest.approx(np.mean(tests))  # folds of equal size
    assert np.sum(found.confusion) == 2 * 160


def test_an_utterance_is_correct_if_three_slots_are(tmp_path):
    """Intent classification: two slots can be learned, the third is noise."""
    noise = np.random.default_rng(0).integers(0, 2, 120)
    columns = {
        "action": [f"a{row % 4 // 2}" for row in range(120)],
        "object": [f"o{row % 2}" for row in range(120)],
        "location": [f"l{number}" for number in noise],
    }
    write_planted(tmp_path / "store", columns=columns)
    found = swept(tmp_path / "store", tmp_path / "out", task="ic")
    assert found.labels == ("action", "object", "location")
    assert [len(names) for names in found.classes] == [2, 2, 2]
    predictions = np.array(next(head for head in found.heads if head.layer == 2).predictions)
    correct = predictions == np.array(found.truth[0])
    assert correct.all(0).tolist()[2] is False
    assert correct.mean(0)[:2].min() > 0.8
    assert found.score(2).test < 0.9
    assert found.baselines["chance"] == 0.125


def test_numeric_classes_are_in_numeric_order(tmp_path):
    """Numbers are sorted numerically; classes of a ClassLabel have their names."""
    columns = {"number": [row % 12 for row in range(120)]}
    write_planted(tmp_path / "plain", columns=columns)
    root = tmp_path / "plain"
    found = swept(root, tmp_path / "a", "labels=[number]", "layers=[2]", "seeds=[0]")
    assert found.classes[0] == tuple(str(i) for i in range(12))
    named = {"digit": [row % 4 for row in range(120)]}
    make_store(
        tmp_path / "named",
        [3] * 120,
        layers=LAYERS,
        dim=DIM,
        columns=pa.table(named),
        features=planted(named["digit"]),
    )
    found = swept(tmp_path / "named", tmp_path / "b", "layers=[2]", "seeds=[0]")
    assert found.labels == ("digit",)
    assert found.classes[0] == ("zero", "one", "two", "three")
    assert found.score(2).test > 0.8


@pytest.mark.parametrize(
    ("overrides", "task", "message"),
    [
        (["labels=[wort]"], "ks", "no column of the store: wort; it has word, speaker"),
        ([], "er", r"task er looks for one of the columns emotion, label; the store has word, sp"),
        ([], "ic", r"looks for all of the columns action, object, location; .*labels=\[COLUMN,CO"),
        (
            [],
            "asr",
            r"looks for one of the columns transcript, text, sentence; .*labels=\[COLUMN\]",
        ),
        (["labels=[word,speaker]"], "asr", "task asr learns one column of texts"),
        (["layers=[2,9]", "split.speaker=speaker"], "ks", r"no layers \[9\] in the store; it has"),
        (["split.speaker=spaeker"], "ks", "no column 'spaeker'; did you mean speaker"),
        (["device=cuda", "split.speaker=speaker"], "ks", "torch finds no GPU"),
    ],
)
def test_a_wrong_setting_is_one_line(store, tmp_path, overrides, task, message):
    """The message says what exists and what to set."""
    with pytest.raises(ConfigError, match=message) as caught:
        swept(store, tmp_path, *overrides, task=task)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "heads").exists()


def test_labels_that_cannot_be_learned_are_refused(tmp_path):
    """A single class, and speakers that are in test and not in train."""
    where = ["test" if row >= 90 else "train" for row in range(120)]
    columns = {
        "label": ["same"] * 120,
        "split": where,
        "speaker": [f"s{row // 30}" for row in range(120)],
    }
    write_planted(tmp_path / "store", columns=columns)
    with pytest.raises(ConfigError, match="column 'label' has one class only, 'same'"):
        swept(tmp_path / "store", tmp_path / "out", "labels=[label]")
    with pytest.raises(ConfigError, match=r"1 class of 'speaker' \(s3\) in dev or test and"):
        swept(tmp_path / "store", tmp_path / "out", task="sid")
    odd = {"word": ["rare" if row == 119 else f"w{row % 2}" for row in range(120)], "split": where}
    write_planted(tmp_path / "rare", columns=odd)
    found = swept(tmp_path / "rare", tmp_path / "out", "layers=[2]")
    assert (
        "1 class of 'word' (rare) in dev or test and not in train: no head can predict what it is "
        "not trained on, so 1 of 30 test utterances count as errors"
    ) in found.warnings
    single = "1 of 3 classes of 'word' with one utterance only"
    assert any(line.startswith(single) for line in found.warnings)
    new = {"word": [f"new{row % 2}" if row >= 90 else f"w{row % 2}" for row in range(120)]}
    write_planted(tmp_path / "new", columns=new | {"split": where})
    with pytest.raises(ConfigError, match="every score would be 0"):
        swept(tmp_path / "new", tmp_path / "out", "layers=[2]")


def test_classes_of_test_that_dev_lacks_give_a_warning(tmp_path):
    """A dev of one class of a speaker cannot choose the layer; a rare class does not matter."""
    part = ["test" if row >= 100 else "dev" if row >= 80 else "train" for row in range(120)]
    gender = ["f" if row >= 100 else "m" if row >= 80 else "fm"[row % 2] for row in range(120)]
    write_planted(tmp_path / "store", columns={"gender": gender, "split": part})
    settings = ("layers=[2]", "seeds=[0]", "split.speaker=none", "labels=[gender]")
    found = swept(tmp_path / "store", tmp_path / "out", *settings)
    assert (
        "dev lacks 1 class of 'gender' (f), which 20 of 20 test utterances have: dev cannot choose "
        "the best layer for them. Give another split.seed, larger split.ratios for dev, or "
        "split.folds"
    ) in found.warnings
    rare = ["rare" if row in (1, 119) else "fm"[row % 2] for row in range(120)]
    write_planted(tmp_path / "rare", columns={"gender": rare, "split": part})
    found = swept(tmp_path / "rare", tmp_path / "out", *settings)
    assert not any("dev lacks" in line for line in found.warnings)


def test_classes_that_a_fold_does_not_train_are_counted(tmp_path):
    """Over all folds together; scikit-learn's own warnings do not appear."""
    columns = {
        "word": [f"w{row}" if row < 40 else f"w{row % 2}" for row in range(120)],
        "who": [f"p{row % 3}" for row in range(120)],
    }
    write_planted(tmp_path / "store", columns=columns)
    settings = ("split.folds=groups", "split.speaker=who", "layers=[2]", "seeds=[0]")
    found = swept(tmp_path / "store", tmp_path / "out", *settings)
    [line] = [line for line in found.warnings if "not in train" in line]
    assert "classes of 'word' (w10, w11, w12, w13, w14, ...) in dev or test" in line
    assert "not in train in a fold: " in line
    assert "38 of 120 test utterances" in line
    assert any("38 of 40 classes of 'word' with one utterance only" in w for w in found.warnings)


SCORES = np.random.default_rng(0).uniform(1, 5, 120).round(2)


@pytest.mark.parametrize(
    "values",
    [
        SCORES,
        SCORES.astype(np.float32),
        [str(value) for value in SCORES],
        [None if row % 9 == 0 else value for row, value in enumerate(SCORES)],
        ["unknown" if row % 9 == 0 else str(value) for row, value in enumerate(SCORES)],
        [row % 4 / 2 for row in range(120)],
    ],
)
def test_real_numbers_are_not_classes(tmp_path, values):
    """Scores are refused in one line that names the task of regression."""
    write_planted(tmp_path / "store", columns={"emotion": pa.array(values)})
    with pytest.raises(ConfigError, match="column 'emotion' holds real numbers") as caught:
        swept(tmp_path / "store", tmp_path / "out", task="er")
    assert "task=regression 'labels=[emotion]'" in str(caught.value)
    assert ("; beside unknown)" in str(caught.value)) == ("unknown" in list(values))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values",
    [
        [float(row % 4) for row in range(120)],
        [None if row % 9 == 0 else float(row % 4) for row in range(120)],
        [row % 4 for row in range(120)],
        ["1.5" if row % 2 else "2.0" for row in range(120)],
        ["nan-1.5" if row % 2 else "2.5" for row in range(120)],
    ],
)
def test_numbers_may_be_classes(tmp_path, values):
    """Whole numbers in any type, and a few decimal numbers that are written as text."""
    write_planted(tmp_path / "store", columns={"emotion": pa.array(values)})
    assert swept(tmp_path / "store", tmp_path / "out", "layers=[2]", "seeds=[0]", task="er")


def test_left_out_transcripts_are_counted_over_all_folds(tmp_path):
    """One line for the corpus, not one per fold."""
    texts = ["a" * 9 if row in (3, 40) else "ab"[row % 2] for row in range(60)]
    make_store(
        tmp_path / "store",
        [4] * 60,
        layers=LAYERS,
        dim=DIM,
        columns=pa.table({"text": texts, "who": [f"p{row % 4}" for row in range(60)]}),
    )
    settings = ("layers=[1]", "seeds=[0]", "task.lrs=[1e-2]", "task.steps=2", "task.batch=200")
    settings = (*settings, "split.folds=groups", "split.speaker=who")
    found = swept(tmp_path / "store", tmp_path / "out", *settings, task="asr")
    left_out = [line for line in found.warnings if "left out of training" in line]
    [line] = left_out
    assert line.startswith("2 utterances left out of training (utt-00")


def test_an_incomplete_store_and_random_weights_are_warned_of(tmp_path):
    """Warnings name the missing utterances and the random weights."""
    write_planted(tmp_path / "empty", units=[])
    with pytest.raises(StoreError, match="no complete utterances yet"):
        swept(tmp_path / "empty", tmp_path / "out")
    provenance = {"provenance": {"weights": "random"}}
    write_planted(
        tmp_path / "some", frames_per_unit=256, n=240, units=[0, 1], attributes=provenance
    )
    missing = 240 - len(open_store(tmp_path / "some"))
    found = swept(tmp_path / "some", tmp_path / "out", "layers=[2]")
    assert 0 < missing < 240
    assert "RANDOM" in found.warnings[0]
    assert (
        f"the store is not complete: {missing} of 240 utterances not extracted" in found.warnings[1]
    )
    assert "RANDOM" in found.encoder


def spelled_letters(texts, layer=2):
    """Return features that show the letters in one layer, four frames per letter."""
    codes = np.random.default_rng(0).standard_normal((27, DIM)) * 3

    def features(row, at, n_frames, dim):
        values = np.random.default_rng([row, at]).standard_normal((n_frames, dim))
        if at == layer:
            letters = [ord(letter) - ord("a") for letter in texts[row] for _ in range(4)]
            values += codes[letters]
            values[3::4] = codes[26]  # a gap between letters
        return values.astype(np.float16)

    return features


def test_a_sweep_of_a_frame_task(tmp_path):
    """Speech recognition: error rates where lower is better, cached and reproducible."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcd"), random.integers(2, 5))) for _ in range(80)]
    make_store(
        tmp_path / "store",
        [4 * len(text) for text in texts],
        layers=LAYERS,
        dim=DIM,
        columns=pa.table({"text": texts}),
        features=spelled_letters(texts),
    )
    settings = ("layers=[1,2]", "seeds=[0]", "task.lrs=[1e-2]", "task.steps=80", "task.batch=200")
    found = swept(tmp_path / "store", tmp_path / "out", *settings, task="asr")
    assert (found.metric, found.higher_is_better) == ("cer", False)
    assert summary(found)["best_layer"] == 2
    assert found.score(2).test < 0.3 < found.score(1).test
    assert found.score(2).extra["wer"] >= found.score(2).test
    assert found.score(2).low <= found.score(2).test <= found.score(2).high
    assert found.truth[0] == tuple(texts[int(name.split("-")[1])] for name in found.test_ids[0])
    assert found.confusion is None
    again = swept(tmp_path / "store", tmp_path / "out", *settings, task="asr")
    assert (again.trained, again.reused) == (0, 3)
    assert comparable(again) == comparable(found)


def test_the_output_folder_of_any_label_is_one_name(tmp_path, monkeypatch):
    """A column name does not become a path."""
    columns = {"../up/word": [f"w{row % 4}" for row in range(60)]}
    write_planted(tmp_path / "store", n=60, columns=columns)
    monkeypatch.chdir(tmp_path)
    config = configured("task=ks", "layers=[2]")
    _, folder = sweep("store", replace(config, labels=("../up/word",)))
    assert folder == Path("sweeps/store/ks-.._up_word")

"""Comparisons of finished sweeps: names, paired tests, heads, what cannot be tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.comparing.building import MAX_ALL_PAIRS, compare
from pipeline.comparing.reading import StoredSweep, read_sweeps
from pipeline.comparing.report.sentences import head_line
from pipeline.comparing.results import document
from pipeline.errors import ConfigError, StrataError
from pipeline.probing.results import WEIGHTED
from pipeline.probing.significance import holm, paired_test
from tests.helpers.finished_sweeps import finished_sweep, write_words
from tests.helpers.invented_sweeps import invented_sweep


def compared(*sweeps, folders=None):
    """Compare sweeps in folders `run-0`, `run-1`, ..."""
    names = folders or [f"sweeps/run-{number}" for number in range(len(sweeps))]
    return compare([StoredSweep(s, Path(name)) for s, name in zip(sweeps, names, strict=True)])


def test_the_pairs_are_tested_on_the_same_utterances():
    """Each pair by its best candidates; p-values are those of the paired test, Holm-corrected."""
    sweeps = [
        invented_sweep(model="a", level=0.9),
        invented_sweep(model="b", level=0.88, seed=1),
        invented_sweep(model="c", level=0.6),
    ]
    found = compared(*sweeps)
    [task] = found.tasks
    assert found.encoders == ("a", "b", "c")
    assert [(pair.first, pair.second) for pair in task.pairs] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    for pair in task.pairs:
        one, other = (
            next(v for v in task.variants if v.name == n) for n in (pair.first, pair.second)
        )
        assert pair.difference == pytest.approx(one.best.test - other.best.test)
        assert pair.low < pair.difference < pair.high
        assert pair.test == "paired sign-flip test over utterances"
    assert [pair.adjusted for pair in task.pairs] == holm([pair.p_value for pair in task.pairs])
    assert not task.pairs[0].is_significant
    assert task.pairs[1].is_significant
    assert task.winner.name == "a"
    assert [task.is_best(variant) for variant in task.variants] == [True, True, False]
    assert task.notes == ()


def test_holm_corrects_for_the_number_of_tests():
    """The example of a textbook: factors 4, 3, 2, 1, and no value below a smaller one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_test_is_that_of_a_sweep(tmp_path):
    """For a regression and speakers, too: as `paired_test` of the two best candidates."""
    for kind in ("regression", "verification"):
        found = []
        for number in range(2):
            root = tmp_path / kind / str(number)
            root.mkdir(parents=True)
            store = write_words(root / "features", seed=number, strength=0.5)
            found.append(StoredSweep(*finished_sweep(store, kind, root / "out")))
        [task] = compare(found).tasks
        [pair] = task.pairs
        from pipeline.comparing.evaluating import evaluations

        runs = [evaluations(item.sweep, item.sweep.best) for item in found]
        assert (pair.p_value, pair.test) == paired_test(*runs)
        assert task.higher_is_better == (kind == "regression")
        best = max if task.higher_is_better else min
        assert task.winner.best.test == best(variant.best.test for variant in task.variants)


def test_stores_in_another_order_are_tested_in_pairs():
    """The groups of a test are matched by id: a turned copy of a sweep does not differ from it."""
    sweep = invented_sweep(model="a", level=0.8)
    other = invented_sweep(model="b", level=0.5)
    turned = replace(
        other,
        test_ids=(other.test_ids[0][::-1],),
        truth=(other.truth[0][::-1],),
        heads=tuple(replace(h, predictions=h.predictions[::-1]) for h in other.heads),
    )
    [expected], [found] = (compared(sweep, one).tasks[0].pairs for one in (other, turned))
    assert found == expected


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ([{"model": "a"}, {"model": "b"}], ("a", "b")),
        ([{"dtype": "float16"}, {"dtype": "int8"}], ("hubert_base float16", "hubert_base int8")),
        ([{"sha256": "1" * 64}, {"sha256": "2" * 64}], ("one", "two")),
        ([{}, {}], ("one", "two")),
        (
            [{"sha256": "1" * 64}, {"sha256": "2" * 64, "store": "x/one"}],
            ("hubert_base 11111111", "hubert_base 22222222"),
        ),
    ],
)
def test_names_are_short_and_unique(facts, names):
    """The model, or its dtype, or the name of the store, or the hash of the weights."""
    stores = ("x/one", "y/two")
    sweeps = [
        invented_sweep(**({"store": store} | own)) for store, own in zip(stores, facts, strict=True)
    ]
    assert compared(*sweeps).encoders == names


def test_one_encoder_has_one_name_in_all_tasks():
    """Its stores may have other names for other corpora."""
    sweeps = [
        invented_sweep(task, model, store=f"{model}-{task}")
        for task in ("ks", "er")
        for model in ("a", "b")
    ]
    found = compared(*sweeps)
    assert found.encoders == ("a", "b")
    assert [[v.name for v in task.variants] for task in found.tasks] == [["a", "b"]] * 2


def test_only_stores_that_are_compared_have_names_of_their_own():
    """Another corpus of the same encoder keeps the name of the encoder."""
    sweeps = [
        invented_sweep("ks", store="words"),
        invented_sweep("ks", store="copy"),
        invented_sweep("er", store="moods"),
        invented_sweep("sid", store="voices"),
    ]
    ks, er, sid = compared(*sweeps).tasks
    assert len({variant.encoder for variant in ks.variants}) == 2
    assert er.variants[0].encoder == sid.variants[0].encoder
    assert er.variants[0].encoder not in {variant.encoder for variant in ks.variants}


def test_a_store_has_one_name_however_its_path_is_spelt(tmp_path):
    """`settings.json` has the absolute path; `sweep.json` has it as it was given."""
    stored = []
    for name, given in (("a", "words"), ("b", f"{tmp_path}/words")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps({"store": f"{tmp_path}/words"}))
        stored.append(StoredSweep(invented_sweep(store=given), folder))
    assert compare(stored).encoders == ("hubert_base",)


def test_sweeps_that_differ_in_other_settings_have_the_name_of_their_folder():
    """Two sweeps of one store with the same head, e.g. with other learning rates."""
    sweep = invented_sweep()
    other = replace(sweep, heads=tuple(replace(h, lr=1e-3) for h in sweep.heads))
    other = replace(other, scores=tuple(replace(s, lr=1e-3) for s in sweep.scores))
    [task] = compared(sweep, other, folders=["x/ks-word", "x/ks-word-2"]).tasks
    assert [variant.name for variant in task.variants] == [
        "hubert_base / ks-word",
        "hubert_base / ks-word-2",
    ]
    assert [variant.setting for variant in task.variants] == ["ks-word", "ks-word-2"]
    assert len(task.pairs) == 1


def only(sweep, layers=None, seeds=None):
    """Return a sweep of fewer layers or seeds."""
    is_kept = lambda x: layers is None or x.layer in layers  # noqa: E731
    heads = tuple(h for h in sweep.heads if is_kept(h) and (seeds is None or h.seed in seeds))
    scores = tuple(s for s in sweep.scores if is_kept(s))
    return replace(sweep, heads=heads, scores=scores, layers=layers or sweep.layers, best=9)


@pytest.mark.parametrize("order", [1, -1])
def test_a_part_of_another_sweep_is_left_out(order):
    """A quick look at three layers, whichever is given first: no row, no test, and a note."""
    whole, other = invented_sweep(model="a"), invented_sweep(model="b", level=0.5)
    sweeps = [only(whole, (1, 6, 9)), whole, other][::order]
    folders = ["x/quick", "x/whole", "y"][::order]
    found = compared(*sweeps, folders=folders)
    [task] = found.tasks
    assert sorted(variant.name for variant in task.variants) == ["a", "b"]
    assert {variant.folder for variant in task.variants} == {"x/whole", "y"}
    assert len(task.pairs) == 1
    assert task.pairs[0].adjusted == task.pairs[0].p_value
    assert task.notes == (
        "x/quick is left out: it is the sweep of x/whole with fewer layers and no weighted sum",
    )
    [seeds] = compared(only(whole, seeds=(0,)), whole, folders=["x/one", "x/two"]).tasks
    assert seeds.notes == ("x/one is left out: it is the sweep of x/two with fewer seeds",)
    [copied] = compared(whole, replace(whole), folders=["x/one", "x/two"]).tasks
    assert copied.notes == ("x/two is left out: it is the sweep of x/one",)


def test_a_sweep_with_other_settings_is_no_part(tmp_path):
    """Neither with layers of its own, nor with another recipe, split, store or test set."""
    whole = only(invented_sweep(), tuple(range(1, 10)))
    recipe = whole.setup.recipe | {"projection": 8}
    for other in (
        only(invented_sweep(), (8, 9, 10)),
        only(replace(whole, setup=replace(whole.setup, recipe=recipe)), (1, 9)),
        only(replace(whole, split="another"), (1, 9)),
        only(replace(whole, store="another"), (1, 9)),
        only(replace(whole, test_ids=(tuple(f"x{i}" for i in range(200)),)), (1, 9)),
    ):
        [task] = compared(whole, other).tasks
        assert len(task.variants) == 2
    part = only(whole, (1, 9))
    stored = [StoredSweep(whole, tmp_path / "whole"), StoredSweep(part, tmp_path / "part")]
    for item, seed, layers in zip(stored, (0, 1), ([1, 2], [1]), strict=True):
        item.folder.mkdir()
        settings = {"layers": layers, "split": {"seed": seed}, "task": {"lrs": [seed], "steps": 8}}
        (item.folder / "settings.json").write_text(json.dumps(settings))
    assert len(compare(stored).tasks[0].variants) == 2
    settings["split"]["seed"] = 0
    (item.folder / "settings.json").write_text(json.dumps(settings))
    assert len(compare(stored).tasks[0].variants) == 1


def test_sweeps_of_other_layers_have_a_note():
    """The best layer of three is not that of twelve."""
    [task] = compared(only(invented_sweep(model="a"), (1, 6, 9)), invented_sweep(model="b")).tasks
    assert task.notes == (
        "the sweeps are of different layers (a: 1, 6 and 9; b: 1 to 12): the best layer and the "
        "weighted sum of each are those of its own layers",
    )


def test_a_rank_correlation_is_of_at_least_five_layers():
    """And says of how many."""
    for n, has_rank in ((4, False), (5, True)):
        layers = tuple(range(10 - n, 10))
        found = [only(invented_sweep(head=head), layers) for head in ("linear", "mlp")]
        [change] = compared(*found).tasks[0].head_changes
        assert change.n_layers == n
        assert (change.rank_correlation is not None) == has_rank
        assert (f" The dev scores of {n} layers have" in head_line(None, change)) == has_rank


def test_other_test_sets_are_shown_and_not_tested():
    """A note says so, with the number of test sets; those that share one are tested."""
    a, b, c = (invented_sweep(model=name, prefix="x" if name == "c" else "clip") for name in "abc")
    [task] = compared(a, b, c).tasks
    assert [(pair.first, pair.second) for pair in task.pairs] == [("a", "b")]
    assert "the 3 sweeps have 2 different test sets" in task.notes[0]
    [task] = compared(a, invented_sweep(model="b", seeds=(0,))).tasks
    assert task.pairs == ()
    assert "other numbers of seeds" in task.notes[0]


def test_results_without_trials_are_shown_and_not_tested(tmp_path):
    """Those of an earlier version; the note has the remedy."""
    store = write_words(tmp_path / "features")
    sweep, folder = finished_sweep(store, "verification", tmp_path / "out")
    old = replace(sweep, units=(), store="old")
    [task] = compare([StoredSweep(sweep, folder), StoredSweep(old, tmp_path)]).tasks
    assert task.pairs == ()
    assert "run the same `strata sweep` again" in task.notes[0]
    assert len(task.variants) == 2


def test_many_variants_are_tested_against_the_best_on_dev():
    """So that their number of tests does not grow with its square."""
    n = MAX_ALL_PAIRS + 1
    sweeps = [
        invented_sweep(model=f"m{i:02d}", n_layers=2, level=0.5 + i / 50, n_test=40, seeds=(0,))
        for i in range(n)
    ]
    [task] = compared(*sweeps).tasks
    assert len(task.pairs) == n - 1
    assert {pair.first for pair in task.pairs} == {f"m{n - 1:02d}"}
    assert "tested against the best on dev only" in task.notes[-1]


def test_heads_may_have_other_best_layers():
    """The other head's best layer is tested against the first head's, with the other head."""
    linear = invented_sweep(level=0.7, best=9)
    mlp = invented_sweep(level=0.9, best=4, head="mlp", weighted=False)
    same = invented_sweep(level=0.9, best=9, head="lstm", weighted=False)
    found = compared(same, mlp, linear)
    assert found.heads == ("linear", "mlp", "lstm")
    [task] = found.tasks
    assert [variant.name for variant in task.variants] == [
        "hubert_base / linear",
        "hubert_base / mlp",
        "hubert_base / lstm",
    ]
    first, second = task.head_changes
    assert (first.reference_layer, first.layer) == (9, 4)
    assert (first.test.first_candidate, first.test.second_candidate) == (4, 9)
    scores = [mlp.score(layer).test for layer in (4, 9)]
    assert first.test.difference == pytest.approx(scores[0] - scores[1])
    assert first.rank_correlation < 0.5
    assert (second.layer, second.test) == (9, None)
    assert second.rank_correlation == pytest.approx(1.0)


def test_shares_of_train_are_named_and_not_tested():
    """Pairs are those of the whole train; the winner is, too."""
    sweeps = [
        invented_sweep(model=name, fraction=fraction, level=level)
        for name, level in (("a", 0.6), ("b", 0.8))
        for fraction in (1.0, 0.1)
    ]
    [task] = compared(*sweeps).tasks
    assert [variant.name for variant in task.variants] == [
        "a",
        "a / 10 % of train",
        "b",
        "b / 10 % of train",
    ]
    assert [(pair.first, pair.second) for pair in task.pairs] == [("a", "b")]
    assert task.winner.name == "b"
    assert not task.is_best(task.variants[3])


def test_warnings_name_the_sweeps_that_have_them():
    """One that all have is named alone."""
    a = replace(invented_sweep(model="a"), warnings=("few", "random"))
    b = replace(invented_sweep(model="b"), warnings=("few",))
    assert compared(a, b).warnings == ("few", "random (a)")


def test_tasks_of_one_name_are_told_apart():
    """By their labels, or by their metric."""
    sweep = invented_sweep()
    other = replace(sweep, labels=("letter",))
    found = compared(sweep, other)
    assert [task.name for task in found.tasks] == ["ks, word", "ks, letter"]
    assert found.task("ks, letter").labels == ("letter",)
    with pytest.raises(StrataError, match="no task 'er'; there are ks, word, ks, letter"):
        found.task("er")
    with pytest.raises(ConfigError, match="no sweeps"):
        compare([])


def test_the_document_has_all_but_predictions():
    """For `--json` and comparison.json: a sweep of each variant is as `sweep --json` prints it."""
    found = compared(invented_sweep(model="a"), invented_sweep(model="b", level=0.5))
    written = json.loads(json.dumps(document(found), allow_nan=False))
    [task] = written["tasks"]
    assert (task["winner"], task["best"]) == ("a", ["a"])
    assert task["variants"][0]["sweep"]["best_layer"] == 9
    assert [item["layer"] for item in task["variants"][0]["sweep"]["scores"]][-1] == WEIGHTED
    assert "heads" not in task["variants"][0]["sweep"]
    assert task["pairs"][0]["adjusted"] < 0.05


def test_sweeps_are_found_in_folders(tmp_path):
    """Also inside others, once each; heads and stores are not searched."""
    store = write_words(tmp_path / "features")
    for name in ("deep/er/ks", "deep/ks-2"):
        finished_sweep(store, "utterance", tmp_path / name)
    (tmp_path / "deep/ks-2/heads/x").mkdir()
    (tmp_path / "deep/ks-2/heads/x/sweep.json").write_text("{}")
    found = read_sweeps(
        [tmp_path / "deep", tmp_path / "deep/ks-2", tmp_path / "deep/ks-2/sweep.json"]
    )
    assert [item.folder for item in found] == [tmp_path / "deep/er/ks", tmp_path / "deep/ks-2"]
    for place, message in (
        (tmp_path / "features", r"has no sweep\.json, nor has a folder inside it \(there is feat"),
        (tmp_path / "none", "does not exist; expected the folder of a sweep"),
        (tmp_path / "words.csv", "is a file; expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_sweeps([place])
    with pytest.raises(ConfigError, match="no folder is given"):
        read_sweeps([])


def test_links_to_sweeps_are_followed(tmp_path):
    """Also from a folder that has the name of one that a sweep has; a circle of links ends."""
    store = write_words(tmp_path / "features")
    _, elsewhere = finished_sweep(store, "utterance", tmp_path / "disk" / "ks")
    inside = tmp_path / "sweeps" / "heads"
    inside.mkdir(parents=True)
    (inside / "ks").symlink_to(elsewhere)
    (inside / "up").symlink_to(tmp_path / "sweeps")
    assert [item.folder for item in read_sweeps([tmp_path / "sweeps"])] == [inside / "ks"]

"""What a comparison refuses, leaves out or cuts: stores, settings, results, long lists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

import pipeline
from pipeline.cli import comparison_tables
from pipeline.comparing.building import compare
from pipeline.comparing.evaluating import can_evaluate
from pipeline.comparing.reading import StoredSweep
from pipeline.comparing.report.grids import draw_grids
from pipeline.comparing.report.writing import draw_charts, report_body
from pipeline.comparing.running import plan_sweeps
from pipeline.comparing.stores import common_utterances, open_stores
from pipeline.config import load_sweep_config
from pipeline.devices import choose_device
from pipeline.errors import ConfigError, StoreError
from pipeline.events import Observer
from pipeline.probing.result_files import read_result, write_result
from pipeline.probing.run import sweep
from tests.helpers.feature_stores import make_store
from tests.helpers.invented_sweeps import invented_sweep


def compared(*sweeps):
    """Compare sweeps in folders `run-0`, `run-1`, ..."""
    return compare([StoredSweep(item, Path(f"run-{at}")) for at, item in enumerate(sweeps)])


def store_of(path, ids, model, lengths=None, **settings):
    """Write a store of an encoder, of nine frames an utterance, and return its path."""
    make_store(path, lengths or [9] * len(ids), ids=ids, encoder={"model": model}, **settings)
    return path


IDS = [f"u{i}" for i in range(20)]


def words(column):
    """Return a table of `IDS` with words in a column, and a split."""
    return pa.table({column: ["no", "yes"] * 10, "split": (["train"] * 8 + ["test"] * 2) * 2})


def test_stores_that_share_utterances_only_in_pairs_are_refused(tmp_path):
    """Each of two other stores shares some with the first, and all three share none."""
    ids = (["a", "b", "c", "d"], ["a", "b"], ["c", "d"])
    paths = [store_of(tmp_path / str(i), own, f"m{i}") for i, own in enumerate(ids)]
    with pytest.raises(
        StoreError, match=r"no utterance is in all of .*0, .*1, .*2; give stores of"
    ):
        common_utterances(open_stores(paths), Observer())


def test_one_frame_more_is_the_same_recording(tmp_path):
    """Resamplers round lengths; two frames more are another recording."""
    first = store_of(tmp_path / "first", ["a", "b"], "m0")
    for n, is_refused in ((10, False), (11, True)):
        other = store_of(tmp_path / str(n), ["a", "b"], "m1", [9, n])
        stores = open_stores([first, other])
        if is_refused:
            with pytest.raises(StoreError, match=r"1 utterance of 2 .*first 'b': 9 and 11 frames"):
                common_utterances(stores, Observer())
        else:
            assert len(common_utterances(stores, Observer())) == 2


def test_selections_of_one_encoder_are_not_joined(tmp_path):
    """They would be stores as a whole; the remedy joins first and selects then."""
    stores = [
        pipeline.open_store(store_of(tmp_path / name, [f"{name}{i}" for i in range(3)], "m"))
        for name in "ab"
    ]
    assert len(open_stores(stores)[0]) == 6
    with pytest.raises(ConfigError, match=r"are not joined here.*open_store\(\[PATH, PATH\]\)"):
        open_stores([stores[0].select("id != 'a0'"), stores[1]])


def test_a_store_without_utterances_is_refused_by_its_name(tmp_path):
    """Not as one that has no utterance in common with the others."""
    one = store_of(tmp_path / "one", ["a"], "m0")
    empty = pipeline.open_store(store_of(tmp_path / "two", ["a"], "m1")).select("n_frames > 9")
    with pytest.raises(StoreError, match="two has no complete utterances yet; run `strata extract"):
        open_stores([one, empty])


def test_label_columns_of_other_names_are_refused(tmp_path):
    """Even if the labels are equal: the recipe finds another column in each."""
    paths = []
    for number, column in enumerate(("keyword", "word")):
        paths.append(store_of(tmp_path / column, IDS, f"m{number}", columns=words(column)))
    config = load_sweep_config(["task=ks", "split.speaker=none"])
    with pytest.raises(ConfigError, match=r"are keyword and those of .*word word; set labels="):
        plan_sweeps(paths, config, Observer())


def test_a_comparison_is_not_written_into_a_store(tmp_path):
    """It is refused before anything is trained."""
    paths = [store_of(tmp_path / m, IDS, m, columns=words("word")) for m in ("a", "b")]
    settings = ["task=ks", "split.speaker=none", f"out={paths[1]}/x"]
    with pytest.raises(ConfigError, match=r"out=.*/x is inside the store .*/b; give another"):
        plan_sweeps(paths, load_sweep_config(settings), Observer())


def test_several_heads_are_no_single_sweep(tmp_path):
    """The function of one sweep refuses them; it would use the first head only."""
    config = load_sweep_config(["task=ks", "heads=[linear,mlp]"])
    with pytest.raises(ConfigError, match="several values are several sweeps"):
        sweep(store_of(tmp_path / "a", ["a"], "m"), config)


@pytest.mark.parametrize("name", ["gpu", "CPU", ""])
def test_an_unknown_device_is_refused(name):
    """With the values that there are."""
    with pytest.raises(ConfigError, match=f"device is '{name}'; expected auto, cpu or cuda"):
        choose_device(name)


def test_damaged_settings_are_refused(tmp_path):
    """A sweep without settings.json is compared; one whose file cannot be read is not."""
    item = StoredSweep(invented_sweep(), tmp_path)
    assert compare([item]).n_sweeps == 1
    (tmp_path / "settings.json").write_text('{"store": ')
    with pytest.raises(ConfigError, match=r"settings\.json cannot be read .*in another folder"):
        compare([item])


def test_the_best_candidate_has_a_score_and_an_interval(tmp_path):
    """A result without them is damaged."""
    write_result(invented_sweep(n_layers=2, n_test=40), tmp_path, (1, 2))
    path = tmp_path / "sweep.json"
    document = json.loads(path.read_text())
    for changed, message in (
        ({"best": 7}, "best is 7, which has no score"),
        ({"scores": [{**item, "high": "x"} for item in document["scores"]]}, "'x' is in place of"),
        ({"scores": [{**item, "low": None} for item in document["scores"]]}, "None is in place of"),
    ):
        path.write_text(json.dumps(document | changed))
        with pytest.raises(ConfigError, match=f"is damaged .*{message}"):
            read_result(tmp_path)


def test_a_kind_of_task_that_is_unknown_is_not_evaluated():
    """As in results of a later version: they are shown, and a note says that none was tested."""
    sweeps = []
    for model, head, best in (("a", "linear", 2), ("a", "mlp", 1), ("b", "linear", 2)):
        found = invented_sweep(model=model, head=head, best=best, n_layers=2, n_test=40)
        recipe = found.setup.recipe | {"kind": "later"}
        sweeps.append(replace(found, setup=replace(found.setup, recipe=recipe)))
    assert not can_evaluate(sweeps[0])
    [task] = compared(*sweeps).tasks
    assert (len(task.variants), task.pairs) == (3, ())
    assert "not tested in pairs: a / linear, a / mlp, b / linear" in task.notes[0]
    [change] = task.head_changes
    assert (change.reference_layer, change.layer, change.test) == (2, 1, None)


def test_a_best_layer_that_the_other_head_lacks_is_not_tested():
    """The change is stated without a test; nor has a head of equal scores a rank correlation."""
    linear = invented_sweep(best=9)
    mlp = invented_sweep(head="mlp", n_layers=6, best=4, weighted=False)
    [change] = compared(linear, mlp).tasks[0].head_changes
    assert (change.reference_layer, change.layer, change.test) == (9, 4, None)
    flat = replace(mlp, scores=tuple(replace(score, dev=0.5) for score in mlp.scores))
    [change] = compared(linear, flat).tasks[0].head_changes
    assert (change.n_layers, change.rank_correlation) == (6, None)


def test_long_lists_are_cut_with_their_number(monkeypatch, tmp_path):
    """Printed are the first paired tests; the page has the first warnings."""
    sweeps = [
        replace(
            invented_sweep(model=model, n_layers=2, n_test=40),
            warnings=tuple(f"warning {model}{i}" for i in range(3)),
        )
        for model in "abc"
    ]
    found = compared(*sweeps)
    monkeypatch.setattr(comparison_tables, "_MAX_PAIRS", 1)
    console = Console(width=400)
    with console.capture() as printed:
        comparison_tables.show_comparison(console, found, tmp_path)
    lines = printed.get().splitlines()
    assert sum(": p = " in line for line in lines) == 1
    assert "2 more paired tests; the report has all" in lines
    assert sum(line.startswith("WARNING: ") for line in lines) == 9
    page = str(report_body(found, draw_charts(found), draw_grids(found)))
    assert page.count("warning ") == 8
    assert "1 more, in the reports of the sweeps" in page

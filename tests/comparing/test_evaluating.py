"""Finished sweeps read again: results, evaluations, and what is tested."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.comparing.evaluating import can_evaluate, evaluations, fingerprint
from pipeline.errors import ConfigError
from pipeline.probing.result_files import read_result
from pipeline.probing.run import TASK_KINDS
from pipeline.probing.significance import interval, paired_test, resampled_scores
from tests.helpers.finished_sweeps import TASKS, finished_sweep, write_words


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose layer 2 shows the words."""
    return write_words(tmp_path_factory.mktemp("words") / "features", strength=0.3)


@pytest.fixture(scope="module", params=sorted(TASK_KINDS))
def finished(request, store, tmp_path_factory):
    """A sweep of every kind of task, and its folder."""
    return finished_sweep(store, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def finished_words(store, tmp_path_factory):
    """The folder of a sweep of words."""
    return finished_sweep(store, "utterance", tmp_path_factory.mktemp("finished"))[1]


def test_every_kind_of_task_has_a_sweep():
    """A new kind must be compared, too."""
    assert TASKS.keys() == TASK_KINDS.keys()


def test_results_are_read_as_they_were_written(finished):
    """sweep.json has all of a sweep: nothing is lost or of another type."""
    found, folder = finished
    assert read_result(folder) == found
    small = read_result(folder, chosen_only=True)
    assert small.scores == found.scores
    chosen = {(score.layer, score.lr) for score in found.scores}
    for head, whole in zip(small.heads, found.heads, strict=True):
        is_chosen = (head.layer, head.lr) in chosen
        assert head == (whole if is_chosen else replace(whole, predictions=()))


def test_evaluations_give_the_scores_again(finished):
    """Score, interval and p-value of each candidate follow from predictions and references."""
    sweep = read_result(finished[1])
    assert can_evaluate(sweep)
    layers = [score.layer for score in sweep.scores]
    runs = [evaluations(sweep, layer) for layer in layers]
    bounds = interval(resampled_scores(runs))
    for score, (low, high), group in zip(sweep.scores, bounds, runs, strict=True):
        assert np.mean([run.score for run in group]) == pytest.approx(score.test, abs=1e-12)
        assert (low, high) == pytest.approx((score.low, score.high), abs=1e-9)
        assert group[0].group == sweep.groups
    pair = [runs[layers.index(item)] for item in (sweep.comparison.best, sweep.comparison.second)]
    p_value, test = paired_test(*pair)
    assert (p_value, test) == (pytest.approx(sweep.comparison.p_value), sweep.comparison.test)


def test_a_score_that_predictions_do_not_give_is_noticed(finished):
    """It is refused with the remedy; so are predictions of no head."""
    sweep = finished[0]
    scores = tuple(replace(score, test=score.test + 1e-3) for score in sweep.scores)
    for changed in (replace(sweep, scores=scores), replace(sweep, heads=())):
        with pytest.raises(ConfigError, match=r"sweep\.json is damaged; run the same"):
            evaluations(changed, sweep.best)


def test_the_fingerprint_is_that_of_the_test_set(finished):
    """It changes with the metric and with the test utterances, and not with the predictions."""
    sweep = finished[0]
    assert fingerprint(sweep) == fingerprint(replace(sweep, heads=(), store="elsewhere"))
    others = tuple(tuple(f"x{name}" for name in ids) for ids in sweep.test_ids)
    changed = replace(sweep, test_ids=others)
    if sweep.task == "abx":  # it has the ids in a hash
        changed = replace(sweep, units=({**sweep.units[0], "items": "other"},))
    assert fingerprint(sweep) != fingerprint(changed)
    if sweep.task != "abx":  # whose units have cells of the metrics that there are
        assert fingerprint(sweep) != fingerprint(replace(sweep, metric="other"))


def test_the_order_of_classes_and_utterances_does_not_matter(store, tmp_path):
    """Numbers of classes are those of a sweep; what they name is compared."""
    sweep, _ = finished_sweep(store, "utterance", tmp_path / "out")
    [names], [ids], [truth] = sweep.classes, sweep.test_ids, sweep.truth
    turned = replace(
        sweep,
        classes=(names[::-1],),
        test_ids=(ids[::-1],),
        truth=(tuple((len(names) - 1 - row[0],) for row in truth[::-1]),),
    )
    assert fingerprint(turned) == fingerprint(sweep)
    shifted = replace(sweep, truth=((truth[1], truth[0], *truth[2:]),))
    assert (fingerprint(shifted) == fingerprint(sweep)) == (truth[0] == truth[1])


def test_results_of_an_earlier_version_lack_trials(store, tmp_path):
    """Such a verification is read and cannot be evaluated again; other tasks can."""
    for kind, expected in (("verification", False), ("utterance", True)):
        _, folder = finished_sweep(store, kind, tmp_path / kind)
        document = json.loads((folder / "sweep.json").read_text())
        del document["units"]
        (folder / "sweep.json").write_text(json.dumps(document))
        assert can_evaluate(read_result(folder)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no sweep\.json; expected the folder of a sweep"),
        ("{", r"cannot be read .*run the same `strata sweep` again"),
        ('{"task": NaN}', r"cannot be read \(it has NaN, which no sweep writes\); run the same"),
        ("[1]", "is not the result of a sweep of Strata"),
        ('{"task": 1}', "it lacks task, heads or scores"),
        ('{"task": "ks", "heads": [], "scores": []}', "is of an earlier version"),
        ('{"task": "ks", "heads": [], "scores": [], "setup": []}', "is of an earlier version"),
        (
            '{"task": "ks", "heads": [], "scores": [], "setup": {"recipe": {"kind": 1}}}',
            r"is damaged \(TypeError: .*run the same",
        ),
    ],
)
def test_damaged_and_foreign_results_are_one_line(tmp_path, content, message):
    """Each with the path and the remedy."""
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_result(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_predictions_are_damage(store, tmp_path):
    """A head with fewer predictions than test utterances."""
    _, folder = finished_sweep(store, "utterance", tmp_path)
    document = json.loads((folder / "sweep.json").read_text())
    document["heads"][0]["predictions"].pop()
    (folder / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"a head has .* predictions for .* test items"):
        read_result(folder)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("heads", 0, "fold"), 7, r"is damaged \(IndexError: .*run the same"),
        (("heads", 1, "dev"), "x", r"is damaged \(TypeError: 'x' is in place of a number"),
        (("test_ids", 0, 0), 3, r"is damaged \(TypeError: 3 is in place of text"),
        (("warnings",), [[]], r"is damaged \(TypeError: \[\] is in place of text"),
        (("task",), [], r"is damaged \(TypeError: \[\] is in place of text"),
        (("truth", 0, 0, 0), 99, r"cannot be evaluated \(IndexError: .*is damaged; run the same"),
        (("classes", 0), [], r"cannot be evaluated \(IndexError: .*is damaged; run the same"),
        (("truth", 0, 0), [], r"cannot be evaluated \(ValueError: .*is damaged; run the same"),
    ],
)
def test_changed_values_are_damage(finished_words, tmp_path, place, value, message):
    """Wherever they are; the message has the remedy."""
    document = json.loads((finished_words / "sweep.json").read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        fingerprint(read_result(tmp_path))

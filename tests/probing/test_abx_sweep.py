"""Sweeps of ABX from start to end: contexts, parts, scores and errors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.run import sweep
from tests.helpers.feature_stores import make_store

N, N_FRAMES, DIM, LAYERS = 48, 40, 8, (1, 2)
PHONES = [[int(x) for x in np.random.default_rng(row).integers(3, size=8)] for row in range(N)]
CENTRES = 2 * np.random.default_rng(5).standard_normal((3, DIM))


def features(row, layer, n_frames, dim):
    """Return noise; in layer 2, every 5 frames show a phone."""
    values = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
    if layer == 2:
        values += CENTRES[np.repeat(PHONES[row], 5)[:n_frames]]
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of twelve speakers with eight phones an utterance, some between silence."""
    root = tmp_path_factory.mktemp("abx")
    columns = pa.table({"speaker": [f"s{row % 12:02d}" for row in range(N)], "room": ["a"] * N})
    make_store(root / "store", [N_FRAMES] * N, LAYERS, DIM, 512, features, columns=columns)
    lines = ["id,start,end,label"]
    for row, phones in enumerate(PHONES):
        for i, phone in enumerate(phones):
            name = "sil" if row % 8 == 0 and i == 3 else "abc"[phone]
            lines.append(f"utt-{row:04d},{i * 0.1:.1f},{(i + 1) * 0.1:.1f},{name}")
    (root / "spans.csv").write_text("\n".join(lines))
    return root


def run(root, out, *settings):
    """Run a sweep; return its result and its folder."""
    overrides = ["task=abx", f"spans={root / 'spans.csv'}", f"out={out}"]
    ratios = "split.ratios=[0.25,0.25,0.5]"
    return sweep(root / "store", load_sweep_config([*overrides, ratios, *settings]))


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    """The sweep with contexts, across speakers, with every speaker in one part."""
    out = tmp_path_factory.mktemp("out") / "abx"
    return run(root, out, "task.metric=abx_across")


def test_the_layer_with_the_phones_has_few_errors(found):
    """That of noise has half; the interval and the paired test are over speakers."""
    result, _ = found
    assert (result.metric, result.higher_is_better, result.groups) == (
        "abx_across",
        False,
        "speakers",
    )
    assert result.best == 2
    assert result.score(2).test < 0.15
    assert 0.4 < result.score(1).test < 0.6
    assert result.score(2).low <= result.score(2).test <= result.score(2).high
    assert result.score(2).extra.keys() == {"abx_within"}
    assert result.score(2).extra["abx_within"] < 0.15
    assert result.comparison.test == "paired bootstrap over speakers"
    assert result.baselines == {"chance": 0.5}
    assert "test spans of 3 classes" in result.split
    assert (result.n_train, result.n_dev + result.n_test) == (0, N)


def test_memory_changes_no_error(root, tmp_path, found):
    """Frames are read context by context if they do not fit."""
    result, _ = run(root, tmp_path / "out", "task.metric=abx_across", "memory=4kB")
    assert [score.test for score in result.scores] == pytest.approx(
        [score.test for score in found[0].scores], abs=1e-9
    )


def test_a_second_run_compares_nothing(found, root):
    """Cached errors are those of the same spans; the speakers of a part are in no other one."""
    result, folder = found
    again, _ = run(root, folder, "task.metric=abx_across", "split.speaker=speaker")
    assert (again.trained, again.reused) == (0, 2)
    assert again.scores == result.scores


def test_the_report_is_written(found, tmp_path):
    """Without learning curves or symbols."""
    page = write_report(found[0], tmp_path).read_text(encoding="utf-8")
    assert "ABX error across speakers" in page
    assert "<th>symbols" not in page
    untrue = (
        "Learning curves",
        "earning rate",
        "eighted sum",
        "the step",
        "for training",
        "train,",
    )
    assert [words for words in untrue if words in page] == []
    assert "Dev selects the best candidate" in page


def test_contexts_are_the_neighbours_without_a_gap(root, tmp_path):
    """In any context there are more comparisons than in equal ones; silence is no neighbour."""
    counts = {}
    for context in ("triphone", "any"):
        settings = [f"task.context={context}", "task.max_items=1000"]
        result, _ = run(root, tmp_path / context, *settings)
        counts[context] = result.score(1)
        assert result.score(2).test < 0.15
    assert counts["any"].test != counts["triphone"].test


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.context=word"], "task.context is 'word'; expected triphone or any"),
        (["task.metric=accuracy"], "task.metric is 'accuracy'; expected abx_within or abx_across"),
        (["task.speaker_column=voice"], "the store has no column 'voice'"),
        (
            ["task.metric=abx_across", "task.speaker_column=room"],
            r"of 1 speaker, of which no three can .*task.metric=abx_across.*or task.context=any",
        ),
    ],
)
def test_settings_that_compare_nothing_are_refused(root, tmp_path, settings, message):
    """The message has what is known, or what to change."""
    with pytest.raises(ConfigError, match=message):
        run(root, tmp_path / "out", "split.speaker=none", *settings)


def test_one_test_speaker_shows_no_difference_of_layers(root, tmp_path):
    """Layer 2 is far better, but the interval and the test are over speakers."""
    result, _ = run(root, tmp_path / "out", "split.ratios=[0.5,0.42,0.08]")
    assert result.score(2).test < 0.2 < result.score(1).test
    assert result.comparison.p_value == 1
    assert "only 1 test speaker: intervals over so few speakers say little" in result.warnings

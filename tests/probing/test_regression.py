"""Sweeps of a regression from start to end: scores, baselines, folds, report and errors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import pearsonr

from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.results import WEIGHTED
from pipeline.probing.run import sweep
from tests.helpers.charts import rendered
from tests.helpers.feature_stores import make_store

N, DIM, LAYERS = 150, 12, (1, 2)
AGES = 20 + np.random.default_rng(0).permutation(N) / 3
MOODS = np.sin(np.arange(N) * 1.7)


def features(row, layer, n_frames, dim):
    """Layer 2 shows the age in one direction and the mood in another; layer 1 shows nothing."""
    values = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
    if layer == 2:
        values[:, 3] += (AGES[row] - 45) / 5
        values[:, 4] += 3 * MOODS[row]
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store with numbers, of which some are missing, and with columns that are no numbers."""
    ages = [None if row % 50 == 7 else age for row, age in enumerate(AGES.tolist())]
    table = {
        "age": ages,
        "mood": [f"{mood:.6f}" for mood in MOODS],
        "grade": ["A" if row % 9 == 0 else str(row) for row in range(N)],
        "constant": [3.5] * N,
        "speaker": [f"s{row % 15}" for row in range(N)],
    }
    root = tmp_path_factory.mktemp("numbers") / "store"
    make_store(root, [20] * N, LAYERS, DIM, columns=pa.table(table), features=features)
    return root


def swept(root, out, *overrides):
    """Run a quick sweep."""
    quick = ["task=regression", "split.speaker=speaker", "task.lrs=[1e-2]", "seeds=[0,1]"]
    return sweep(root, load_sweep_config([*quick, "task.steps=200", f"out={out}", *overrides]))


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    """The sweep of both columns, and its folder."""
    return swept(root, tmp_path_factory.mktemp("out") / "both", "labels=[age,mood]")


def test_the_layer_with_the_numbers_is_best(found):
    """Its concordance is high and that of noise low; the score has an interval and a test."""
    result, _ = found
    assert result.metric == "ccc"
    assert result.higher_is_better
    good, noise = result.score(2), result.score(1)
    assert good.test > 0.9
    assert noise.test < 0.4
    assert good.low < good.test < good.high < 1
    assert result.best in (2, WEIGHTED)
    assert result.comparison.test == "paired permutation test over utterances"
    assert 0 < result.comparison.p_value <= 1
    assert any("3 utterances without a label" in line for line in result.warnings)


def test_scores_are_those_of_the_predictions(found):
    """Computed here from the predictions, in the unit of the labels."""
    result, _ = found
    assert result.labels == ("age", "mood")
    head = next(head for head in result.heads if head.layer == 2)
    truth = np.array(result.truth[0])
    predicted = np.array(head.predictions)
    assert truth[:, 0].min() > 19
    both = []
    for x, y in zip(predicted.T, truth.T, strict=True):
        covariance = np.cov(x, y, bias=True)[0, 1]
        both.append(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
    assert head.test == pytest.approx(np.mean(both), abs=1e-5)
    extra = result.score(2).extra
    assert extra.keys() == {"pearson", "mae", "ccc age", "ccc mood"}
    first = [np.array(item.predictions) for item in result.heads if item.layer == 2]
    expected = np.mean(
        [pearsonr(run[:, i], truth[:, i]).statistic for run in first for i in (0, 1)]
    )
    assert extra["pearson"] == pytest.approx(expected, abs=1e-5)


def test_baselines_are_the_mean_and_a_ridge_regression(found):
    """The mean of train has no concordance; a ridge regression is about as good as a head."""
    result, _ = found
    assert result.baselines["mean of train"] == pytest.approx(0, abs=1e-9)
    assert result.baselines["ridge regression, layer 2"] > 0.9
    assert abs(result.baselines["untrained head, layer 2"]) < 0.4


def test_the_report_shows_predicted_against_true_numbers(found, tmp_path):
    """A chart with a panel per column, examples, and no confusion matrix."""
    result, _ = found
    with rendered(["svg"]):
        page = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert "concordance correlation" in page
    assert "predicted mood" in page
    assert "Example predictions" in page
    assert "<th>symbols" not in page
    assert "Confusions" not in page
    assert (tmp_path / "figures" / "predictions.svg").stat().st_size > 1000


def test_a_second_run_trains_nothing(found, root):
    """Cached heads have numbers as predictions."""
    result, folder = found
    again, _ = swept(root, folder, "labels=[age,mood]")
    assert (again.trained, again.reused) == (0, len(result.heads))
    assert again.scores == result.scores


def test_lower_errors_are_better(root, tmp_path):
    """With mae, and the squared error as loss, the least error on dev is chosen."""
    settings = ["task.metric=mae", "task.loss=mse", "labels=[age]", "split.folds=3"]
    result, _ = swept(root, tmp_path / "mae", *settings)
    assert not result.higher_is_better
    assert result.score(2).test < 2 < result.score(1).test
    assert result.best in (2, WEIGHTED)
    assert result.baselines["mean of train"] == pytest.approx(
        np.abs(AGES - AGES.mean()).mean(), rel=0.1
    )
    for head in result.heads:
        assert head.dev == min(dev for _, _, dev in (*head.curve, (0, 0.0, head.dev)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["labels=[grade]"], r"column 'grade' holds 'A', and a regression learns numbers \(17 of"),
        (["labels=[grade]"], "Empty these cells and run `strata relabel`: their utterances are"),
        (
            ["labels=[speaker]", "split.speaker=none"],
            r"\(150 of 150 labels .* Set labels=\[COLUMN\]",
        ),
        (["labels=[constant]"], "column 'constant' is 3.5 for every training utterance"),
        (["labels=[mood]", "task.metric=r2"], "task.metric is 'r2'; expected ccc or pearson or"),
        (["labels=[mood]", "task.loss=l1"], "task.loss is 'l1'; expected ccc or mse"),
        (["task=er", "labels=[mood]"], r"Learn the numbers with task=regression 'labels=\[mood\]'"),
    ],
)
def test_labels_and_settings_that_cannot_be_learned_are_refused(root, tmp_path, overrides, message):
    """The message names the column and the remedy."""
    with pytest.raises(ConfigError, match=message):
        swept(root, tmp_path / "out", *overrides)

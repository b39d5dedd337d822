"""Speaker verification: trials, error rates against scikit-learn, and sweeps from start to end."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_curve

from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError, SourceError
from pipeline.events import Observer
from pipeline.probing.report.prediction_charts import detection_chart
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.run import sweep
from pipeline.probing.significance import interval, resampled_scores
from pipeline.probing.splits.trials import draw_trials, read_trials
from pipeline.probing.tasks.verification import P_TARGET, Detection
from tests.helpers.charts import rendered
from tests.helpers.feature_stores import make_store

N, DIM, LAYERS = 240, 16, (1, 2)
SPEAKERS = [f"s{row % 24:02d}" for row in range(N)]
IDS = [f"wav/{row:03d}.wav" for row in range(N)]


def features(row, layer, n_frames, dim):
    """Layer 2 shows the speaker beside a large offset that all share; layer 1 shows nothing."""
    values = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
    values += 1.5 * np.random.default_rng([row]).standard_normal(dim) + 40
    if layer == 2:
        values += 4 * np.random.default_rng(int(SPEAKERS[row][1:])).standard_normal(dim)
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of 24 speakers with ten utterances each."""
    where = ["train" if row % 24 < 12 else "dev" if row % 24 < 18 else "test" for row in range(N)]
    table = pa.table({"speaker": SPEAKERS, "split": where})
    root = tmp_path_factory.mktemp("speakers") / "store"
    make_store(root, [12] * N, LAYERS, DIM, columns=table, features=features, ids=IDS)
    return root


def swept(root, out, *overrides):
    """Run a sweep."""
    return sweep(root, load_sweep_config(["task=sv", f"out={out}", *overrides]))


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    """The sweep with the corpus's own split."""
    return swept(root, tmp_path_factory.mktemp("out") / "sv")


def plain_eer(is_target, scores):
    """Return the equal error rate from a ROC curve, between its points linearly."""
    false_alarms, hits, _ = roc_curve(is_target, scores, drop_intermediate=False)
    gap = (1 - hits) - false_alarms
    at = int(np.flatnonzero(gap <= 0)[0])
    if gap[at] == 0 or at == 0:
        return false_alarms[at]
    share = gap[at - 1] / (gap[at - 1] - gap[at])
    return false_alarms[at - 1] + share * (false_alarms[at] - false_alarms[at - 1])


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_error_rates_are_those_of_a_roc_curve(seed, ties):
    """The equal error rate and the least cost, with and without equal scores."""
    random = np.random.default_rng(seed)
    is_target = random.random(60) < 0.4
    is_target[:2] = True, False
    scores = random.standard_normal(60) + 1.2 * is_target
    scores = np.round(scores) if ties else scores
    speakers = np.arange(120).reshape(60, 2)
    speakers[is_target, 1] = speakers[is_target, 0]
    eer, cost = (Detection(scores, is_target, speakers, name).score for name in ("eer", "min_dcf"))
    assert eer == pytest.approx(plain_eer(is_target, scores), abs=1e-12)
    false_alarms, hits, _ = roc_curve(is_target, scores, drop_intermediate=False)
    costs = P_TARGET * (1 - hits) + (1 - P_TARGET) * false_alarms
    assert cost == pytest.approx(costs.min() / P_TARGET)


def test_a_speaker_that_is_drawn_twice_counts_twice():
    """Its own trials twice, those with another that is drawn twice four times."""
    scores = np.array([0.9, 0.2, 0.8, 0.6, 0.1, 0.4])
    is_target = np.array([True, True, True, False, False, False])
    speakers = np.array([[0, 0], [1, 1], [2, 2], [0, 1], [1, 2], [0, 2]])
    repeats = [2, 1, 2, 2, 2, 4]
    again = [np.repeat(item, repeats, axis=0) for item in (scores, is_target, speakers)]
    for metric in ("eer", "min_dcf"):
        weighted = Detection(scores, is_target, speakers, metric).scores(
            np.array([[2.0, 1.0, 2.0]])
        )
        assert weighted[0] == pytest.approx(Detection(*again, metric).score)


def test_one_drawn_speaker_says_nothing():
    """Without a trial of two speakers the score is that of chance: 0.5, or a cost of 1."""
    scores = np.array([0.9, 0.2, 0.8, 0.6, 0.1, 0.4])
    is_target = np.array([True, True, True, False, False, False])
    speakers = np.array([[0, 0], [0, 0], [1, 1], [0, 1], [0, 1], [0, 1]])
    for metric, blind in (("eer", 0.5), ("min_dcf", 1.0)):
        run = Detection(scores, is_target, speakers, metric)
        assert run.scores(np.array([[2.0, 0.0], [0.0, 2.0]])).tolist() == [blind, blind]
        assert run.score < blind


def test_intervals_of_many_speakers_are_narrow():
    """They contain the score, and four times as many speakers halve them."""
    widths = []
    for n in (30, 120):
        random = np.random.default_rng(0)
        speakers = random.integers(0, n, (3000, 2))
        speakers[:1500, 1] = speakers[:1500, 0]
        is_target = speakers[:, 0] == speakers[:, 1]
        quality = random.standard_normal(n)[speakers[:, 0]]
        scores = 0.1 * random.standard_normal(3000) + is_target + quality
        run = Detection(scores, is_target, speakers, "eer")
        low, high = interval(resampled_scores([[run]]))[0]
        assert low < run.score < high
        widths.append(high - low)
    assert 1.4 < widths[0] / widths[1] < 2.8


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(2, 300), st.integers(0, 9))
def test_drawn_trials_are_distinct_pairs_of_both_kinds(speakers, n, seed):
    """None is repeated, none is of an utterance with itself, and about half are of one speaker."""
    positions = np.arange(len(speakers))
    counts = Counter(speakers)
    if len(counts) < 2 or max(counts.values()) < 2:
        with pytest.raises(ConfigError, match="gives no trials"):
            draw_trials(positions, list(map(str, speakers)), n, seed)
        return
    trials = draw_trials(positions, list(map(str, speakers)), n, seed)
    pairs = {tuple(sorted(pair)) for pair in trials.pairs.tolist()}
    assert len(pairs) == len(trials) <= max(2, n)
    assert all(a != b for a, b in pairs)
    same = [speakers[a] == speakers[b] for a, b in trials.pairs.tolist()]
    assert same == trials.is_target.tolist()
    assert 1 <= trials.is_target.sum() <= max(1, n // 2)
    assert (~trials.is_target).sum() >= 1


def test_drawn_trials_depend_on_the_seed_and_are_spread_over_speakers():
    """A speaker with many utterances has no more trials of its own than the others."""
    speakers = ["many"] * 60 + [f"s{i}" for i in range(10) for _ in range(4)]
    positions = np.arange(100)
    first, again, other = (draw_trials(positions, speakers, 60, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.pairs, again.pairs)
    assert not np.array_equal(first.pairs, other.pairs)
    own = Counter(speakers[a] for a, _ in first.pairs[first.is_target].tolist())
    assert max(own.values()) <= 3


def test_pairs_that_run_out_give_fewer_trials():
    """Most speakers have one utterance, and hardly any pair of them is left: the draw ends."""
    speakers = ["a"] * 60 + ["b"] * 60 + [f"s{i}" for i in range(12)]
    trials = draw_trials(np.arange(132), speakers, 5_000, 0)
    pairs = {tuple(pair) for pair in trials.pairs[~trials.is_target].tolist()}
    assert 1_000 < len(pairs) == int((~trials.is_target).sum()) < 2_500


@pytest.mark.parametrize(
    "lines",
    [
        "1 wav/000.wav wav/024.wav\n0 wav/000.wav wav/001.wav\n",
        "wav/000 wav/024 target\n\nwav/000 wav/001 nontarget\n",
        "\ufeff1 wav/000.flac wav/024.flac\r\n0 wav/000.flac wav/001.flac\r\n",
    ],
)
def test_lists_of_voxceleb_and_kaldi_are_read(tmp_path, lines):
    """With or without extensions, a byte order mark and empty lines."""
    path = tmp_path / "trials.txt"
    path.write_bytes(lines.encode())
    trials, n_missing = read_trials(str(path), IDS, skip_missing=False)
    assert trials.pairs.tolist() == [[0, 24], [0, 1]]
    assert trials.is_target.tolist() == [True, False]
    assert n_missing == 0
    assert trials.positions.tolist() == [0, 1, 24]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1 wav/000.wav\n", r"trials.txt:1 is '1 wav/000.wav'; expected `1 ID ID`"),
        ("2 wav/000.wav wav/001.wav\n", r"trials.txt:1 is '2 wav"),
        ("1 wav/000.wav x/9.wav\n0 wav/000.wav wav/001.wav\n", r"1 of 2 trials have .* e\.g\. x/9"),
        ("1 wav/000.wav wav/024.wav\n", "has no trials of two speakers"),
        ("", "has no trials of one speaker"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, lines, message):
    """The message names the line, or the utterances that are missing."""
    path = tmp_path / "trials.txt"
    path.write_text(lines)
    with pytest.raises(ConfigError, match=message):
        read_trials(str(path), IDS, skip_missing=False)
    with pytest.raises(ConfigError, match=r"task.trials=.*absent cannot be read"):
        read_trials(str(tmp_path / "absent"), IDS, skip_missing=False)
    os.mkfifo(tmp_path / "pipe")  # nothing waits for a writer
    with pytest.raises(SourceError, match="pipe is not a regular file; save the table"):
        read_trials(str(tmp_path / "pipe"), IDS, skip_missing=False)


def test_a_list_without_any_utterance_of_the_store_is_refused(tmp_path):
    """Also where missing utterances may be left out: the ids may be of another form."""
    path = tmp_path / "trials.txt"
    path.write_text("1 x/1.wav x/2.wav\n0 x/1.wav x/3.wav\n")
    with pytest.raises(ConfigError, match=r"2 of 2 trials have utterances that are not in"):
        read_trials(str(path), IDS, skip_missing=True)


def test_ids_of_another_form_are_found_with_the_form_of_the_message(tmp_path):
    """As in VoxCeleb, where a recording has the same name in many folders."""
    ids = [f"wav/id{a}/v{b}/0000{c}.wav" for a in range(6) for b in range(3) for c in range(4)]
    lines = [
        f"{int(i // 12 == j // 12)} {ids[i][4:]} {ids[j][4:]}"
        for i, j in ((0, 5), (30, 31), (3, 60), (71, 2))
    ]
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(lines))
    expected = r"has 'id0/v0/00000.wav' where the store has 'wav/id0/v0/00000.wav': (\S+)='(\S+)' "
    with pytest.raises(ConfigError, match=f"{expected}finds 8 of 8 utterances") as caught:
        read_trials(str(path), ids, skip_missing=False)
    setting, form = re.search(expected, str(caught.value)).groups()
    assert setting == "task.trial_id_form"
    trials, n_missing = read_trials(str(path), ids, skip_missing=False, id_form=form)
    assert (trials.pairs.tolist(), n_missing) == ([[0, 5], [30, 31], [3, 60], [71, 2]], 0)
    with pytest.raises(ConfigError, match=r"task.trial_id_form is 'x' .*; expected a text with"):
        read_trials(str(path), ids, skip_missing=False, id_form="x")
    with pytest.raises(ConfigError, match="Extract these utterances, or leave the trials out"):
        read_trials(str(path), ids, skip_missing=False, id_form="{name}")


def test_an_id_without_extension_must_mean_one_utterance(tmp_path):
    """Of `a.wav` and `a.flac` the trial must say which."""
    path = tmp_path / "trials.txt"
    path.write_text("1 a b\n0 a.wav b\n")
    ids = ["a.wav", "a.flac", "b.wav"]
    with pytest.raises(ConfigError, match=r"1 of 2 trials have .* e\.g\. a;"):
        read_trials(str(path), ids, skip_missing=False)


def test_utterances_without_a_speaker_are_counted_or_refused(tmp_path):
    """They are left out with a warning, unless they are in the list of trials."""
    speakers = [None if row == 239 else name for row, name in enumerate(SPEAKERS)]
    columns = pa.table({"speaker": speakers})
    make_store(tmp_path / "s", [3] * N, LAYERS, DIM, columns=columns, ids=IDS)
    path = tmp_path / "trials.txt"
    path.write_text(f"1 {IDS[0]} {IDS[24]}\n0 {IDS[0]} {IDS[1]}\n")
    result, _ = swept(tmp_path / "s", tmp_path / "out", f"task.trials={path}")
    assert "1 utterance without a label left out" in result.warnings
    path.write_text(path.read_text() + f"0 {IDS[0]} {IDS[239]}\n")
    with pytest.raises(ConfigError, match=r"has 1 utterance without a speaker in column 'speaker'"):
        swept(tmp_path / "s", tmp_path / "out", f"task.trials={path}")


def test_another_list_in_the_same_file_gets_another_folder(root, tmp_path):
    """The settings and the utterances are equal, but not the pairs."""
    path, notes, observer = tmp_path / "trials.txt", [], Observer()
    observer.note = notes.append
    config = load_sweep_config(["task=sv", f"out={tmp_path / 'out'}", f"task.trials={path}"])
    folders = []
    for first in (0, 24, 0):
        path.write_text(f"1 {IDS[0]} {IDS[24]}\n0 {IDS[first]} {IDS[1]}\n")
        folders.append(sweep(root, config, observer)[1].name)
    assert folders == ["out", "out-2", "out"]
    assert any("another sweep (other content of its files); these go" in note for note in notes)


def test_the_layer_with_the_speakers_is_best(found):
    """Its error is low, that of noise near a half; the interval is over speakers."""
    result, _ = found
    assert (result.metric, result.higher_is_better, result.groups) == ("eer", False, "speakers")
    assert result.best == 2
    assert result.score(2).test < 0.1
    assert 0.35 < result.score(1).test < 0.65
    assert result.score(2).low <= result.score(2).test <= result.score(2).high
    assert result.comparison.test == "paired bootstrap over speakers"
    assert result.comparison.p_value < 0.05
    assert result.baselines == {"chance": 0.5}
    assert 0 < result.score(2).extra["min_dcf"] <= 1
    assert [head.layer for head in result.heads] == [1, 2]
    assert result.split == "column split; 1,770 test trials, 1,770 dev trials"


def test_scores_are_cosines_of_centred_means(found, root):
    """Computed here with NumPy from the stored statistics."""
    import pipeline

    store = pipeline.open_store(root)
    vectors = store.pooled([2])[:, 0].double().numpy()
    train = [row for row in range(N) if row % 24 < 12]
    vectors -= vectors[train].mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    test = np.array([row for row in range(N) if row % 24 >= 18])
    trials = draw_trials(test, SPEAKERS, 20_000, 0)
    head = found[0].heads[1]
    expected = [float(vectors[a] @ vectors[b]) for a, b in trials.pairs.tolist()]
    assert np.array(head.predictions)[:, 0] == pytest.approx(expected, abs=1e-9)
    assert head.test == pytest.approx(plain_eer(trials.is_target, expected))


def test_the_report_has_a_trade_off_and_no_learning_curves(found, tmp_path):
    """And says that the intervals are over speakers."""
    with rendered(["svg"]):
        page = write_report(found[0], tmp_path).read_text(encoding="utf-8")
    assert "equal error rate" in page
    assert "over the test speakers" in page
    assert "false alarms in %" in page
    for untrue in ("Learning curves", "earning rate", "eighted sum", "the step"):
        assert untrue not in page
    assert "Dev selects the best candidate" in page
    assert "2 evaluated, 0 taken from an earlier run" in page


def test_the_trade_off_has_normal_deviate_scales(found):
    """Axes are probits of the rates, with the usual ticks; the dot is at the equal error rate."""
    chart = detection_chart(found[0])
    axes = chart.draw().axes[0]
    marks = axes.get_xticks()
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert {"0.1", "1", "5", "20", "40"} <= set(labels)
    assert norm.cdf(marks) * 100 == pytest.approx([float(label) for label in labels])
    assert np.array_equal(axes.get_xticks(), axes.get_yticks())
    curve, dot = axes.lines[1:]
    rate = found[0].score(2).test
    assert norm.cdf(dot.get_data()) == pytest.approx(np.full((2, 1), rate))
    x, y = curve.get_data()
    assert np.interp(0, y - x, x) == pytest.approx(norm.ppf(rate), abs=0.05)
    assert f"equal error rate {100 * rate:.3g} %" in chart.alt


def test_the_points_of_the_trade_off_are_error_rates(found):
    """Those of a ROC curve at the same thresholds, from all accepted to none, ties together."""
    head = found[0].heads[1]
    rounded = tuple((round(score, 1),) for (score,) in head.predictions)
    for scores in (head.predictions, rounded):
        result = replace(found[0], heads=(replace(head, predictions=scores),))
        rows = np.array(detection_chart(result).numbers.values)
        truth = np.array(found[0].truth[0])[:, 0]
        false_alarms, hits, thresholds = roc_curve(truth, scores, drop_intermediate=False)
        at = [int(np.flatnonzero(thresholds == threshold)[0]) for threshold in rows[:, 0]]
        assert rows[:, 1] == pytest.approx(100 * false_alarms[at], abs=1e-9)
        assert rows[:, 2] == pytest.approx(100 - 100 * hits[at], abs=1e-9)
        assert rows[0, 1:].tolist() == [100, 0]
        assert rows[-1, 1:].tolist() == [0, 100]
    assert len(rows) == len(set(rounded)) + 1


def test_a_discriminant_analysis_learns_from_train(root, tmp_path):
    """It is no worse than the cosine where speakers differ along few directions."""
    result, _ = swept(root, tmp_path / "lda", "task.head=lda", "task.metric=min_dcf")
    assert result.metric == "min_dcf"
    assert result.best == 2
    assert result.score(2).extra["eer"] < 0.1


def test_trials_of_all_speakers_leave_no_mean_to_subtract(root, tmp_path):
    """The warning says so: the scores are other ones than with a mean."""
    path = tmp_path / "trials.txt"
    pairs = [(a, (a + step) % len(IDS)) for a in range(len(IDS)) for step in (1, 24)]
    path.write_text(
        "".join(f"{int(SPEAKERS[a] == SPEAKERS[b])} {IDS[a]} {IDS[b]}\n" for a, b in pairs)
    )
    path.write_text(path.read_text().replace("wav/", ""))
    settings = (f"task.trials={path}", "task.trial_id_form=wav/{id}")
    result, _ = swept(root, tmp_path / "out", *settings)
    assert result.n_train == 0
    assert any("no mean is subtracted from the features" in line for line in result.warnings)


def test_a_list_of_trials_is_the_test_set(root, tmp_path):
    """Train and dev have the other speakers; heads of another list are not reused."""
    path = tmp_path / "trials.txt"
    rows = [(a, b) for a in range(0, 48, 5) for b in range(1, 96, 7) if a != b]

    def write(pairs):
        lines = [f"{int(SPEAKERS[a] == SPEAKERS[b])} {IDS[a]} {IDS[b]}\n" for a, b in pairs]
        path.write_text("".join([*lines, "1 wav/000.wav wav/024.wav\n"]))

    write(rows)
    settings = [f"task.trials={path}", "split.ratios=[0.4,0.3,0.3]"]
    result, folder = swept(root, tmp_path / "out", *settings)
    assert "dev is test" in result.split
    assert any("fewer than 20 speakers are not in" in line for line in result.warnings)
    assert len(result.truth[0]) == len(rows) + 1
    write(rows[::-1])
    again, _ = swept(root, folder, *settings)
    assert again.reused == 0
    path.write_text(path.read_text() + "1 wav/000.wav wav/001.wav\n")
    with pytest.raises(ConfigError, match=r"1 trial against column 'speaker'.*wav/000.*wav/001"):
        swept(root, tmp_path / "out", *settings)
    write(rows)
    path.write_text(path.read_text() + "1 gone.wav wav/001.wav\n")
    skipped, _ = swept(root, tmp_path / "skip", *settings, "task.skip_missing_trials=true")
    assert any("1 trial of" in line and "left out" in line for line in skipped.warnings)


def test_few_speakers_are_refused_with_the_remedy(tmp_path):
    """Of four speakers one is in dev, and one in test, which give no trials."""
    table = pa.table({"speaker": [f"s{row % 4}" for row in range(20)]})
    make_store(tmp_path / "s", [4] * 20, LAYERS, DIM, columns=table)
    with pytest.raises(
        ConfigError, match=r"(dev|test) gives no trials: .*split\.ratios=\[0\.4,0\.3,0\.3\]"
    ):
        swept(tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.head=plda", "task.head is 'plda'; expected cosine or lda"),
        ("task.metric=accuracy", "task.metric is 'accuracy'; expected eer or min_dcf"),
        ("task.lrs=[1e-3]", "lrs"),
    ],
)
def test_unknown_settings_are_refused(root, tmp_path, override, message):
    """The message has what is known."""
    with pytest.raises(ConfigError, match=message):
        swept(root, tmp_path / "out", override)

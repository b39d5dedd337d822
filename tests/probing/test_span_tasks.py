"""Sweeps on spans and on frames: planted labels are found, and what is left out is said."""

from __future__ import annotations

import html
import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError, SourceError
from pipeline.probing.metrics import class_counts, macro_f1_of_sums
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.results import WEIGHTED
from pipeline.probing.run import sweep
from pipeline.probing.tasks import spans as spans_module
from pipeline.probing.tasks.base import TaskData
from pipeline.probing.tasks.spans_data import read_span_data
from pipeline.probing.trainers import framewise
from pipeline.spans.frame_labels import frame_labels
from pipeline.spans.placing import place_spans
from pipeline.spans.reading import read_spans
from pipeline.store.read.opening import open_store
from tests.helpers.feature_stores import make_store

N, N_FRAMES, DIM, LAYERS = 48, 40, 8, (1, 2, 3)
QUICK = ["seeds=[0]", "task.lrs=[1e-2]", "task.steps=60", "task.eval_every=20", "task.batch=256"]
LABELS = [[int(x) for x in np.random.default_rng(row).integers(3, size=4)] for row in range(N)]
CENTRES = 3 * np.random.default_rng(5).standard_normal((3, DIM))


def features(row, layer, n_frames, dim):
    """Return noise; in layer 2, every 10 frames show the label of a span."""
    values = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
    if layer == 2:
        values += CENTRES[np.repeat(LABELS[row], 10)[:n_frames]]
    return values.astype(np.float16)


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store with three labels, and silence and a rare label in its last utterance."""
    root = tmp_path_factory.mktemp("spans")
    columns = pa.table({"speaker": [f"s{row % 6}" for row in range(N)]})
    make_store(root / "store", [N_FRAMES] * N, LAYERS, DIM, 512, features, columns=columns)
    lines = ["id,start,end,label"]
    for row, labels in enumerate(LABELS):
        for i, label in enumerate(labels):
            name = "abc"[label]
            if row == N - 1:
                name = ("sil", "rare", name, name)[i]
            lines.append(f"utt-{row:04d},{i * 0.2:.1f},{i * 0.2 + 0.2:.1f},{name}")
    (root / "spans.csv").write_text("\n".join(lines))
    return root


def run(root, task, *settings, out="out"):
    """Run a sweep; return its result and its folder."""
    overrides = [f"task={task}", f"spans={root / 'spans.csv'}", f"out={root / out}", *QUICK]
    return sweep(root / "store", load_sweep_config([*overrides, *settings]))


@pytest.mark.parametrize(
    ("task", "noun", "kind"),
    [
        ("phone", "spans", "linear"),
        ("phone", "spans", "mlp"),
        ("frame", "frames", "linear"),
        ("frame", "frames", "mlp"),
    ],
)
def test_the_planted_layer_is_found(root, task, noun, kind):
    """All spans of an utterance are in one part, and utterances are what intervals are over.

    Heads of another kind are not taken from the cache.
    """
    settings = ["split.speaker=speaker", f"task.head={kind}"]
    if task == "frame":
        settings += ["spans.skip=[sil]", "task.min_count=2"]
    result, _ = run(root, task, *settings, out=task)
    assert (result.trained, result.reused) == (4, 0)
    assert result.best in (2, WEIGHTED)
    assert result.score(2).test > 0.9
    assert result.score(1).test < 0.6
    assert result.score(1).low < result.score(1).test < result.score(1).high
    assert result.classes == (("a", "b", "c"),)
    assert result.comparison.test == "paired sign-flip test over utterances"
    assert result.n_train + result.n_dev + result.n_test == N
    assert f"{noun}" in result.split
    parts = {result.n_test, len(result.truth[0]), len(result.heads[0].predictions)}
    assert len(parts) == 1
    names = set(result.baselines)
    assert {"chance", "majority class"} <= names
    assert result.baselines["chance"] == pytest.approx(1 / 3)
    again, _ = run(root, task, *settings, out=task)
    assert (again.trained, again.reused) == (0, 4)
    assert again.scores == result.scores


def test_the_report_reads_the_spans(root):
    """Its Python names no column of the store, since the labels are in a file."""
    result, folder = run(root, "phone", "split.speaker=speaker", "weighted=false", out="page")
    page = html.unescape(write_report(result, folder).read_text())
    assert f"spans = pipeline.read_spans({str(root / 'spans.csv')!r})" in page
    assert "means = pipeline.pool_spans(store, spans, layers=[2])" in page
    assert "columns=" not in page


def test_the_means_do_not_depend_on_how_they_are_read(root, monkeypatch):
    """Each span has its own, also if few fit in memory together."""
    store = open_store(root / "store")
    config = load_sweep_config(overrides_of(root))
    data = read_span_data(store, config, 3)
    parts = TaskData(store, config.task, data.labels(None), (), LAYERS, torch.device("cpu"), data)
    whole = spans_module._pooled(parts, data)
    few = partial(spans_module.iter_pooled_spans, memory=20_000)
    monkeypatch.setattr(spans_module, "iter_pooled_spans", few)
    assert torch.equal(spans_module._pooled(parts, data), whole)
    assert whole.shape == (3, 4 * N - 2, DIM)


def test_other_spans_train_other_heads(root):
    """The cache of heads knows the spans, and their results go to another folder."""
    result, folder = run(root, "word", "spans.skip=[sil]", "split.speaker=speaker", out="cache")
    assert result.trained == 4
    text = (root / "spans.csv").read_text()
    (root / "other").mkdir()
    moved = text.replace("0000,0.2,0.4", "0000,0.2,0.3")
    (root / "other" / "spans.csv").write_text(moved)
    settings = [f"spans={root / 'other' / 'spans.csv'}", "spans.skip=[sil]"]
    changed, other = run(root, "word", *settings, "split.speaker=speaker", out="cache")
    assert changed.trained == 4
    assert other != folder


def test_rare_and_silent_spans_are_left_out_and_said(root, tmp_path):
    """By the recipe's silence and smallest count; max_classes keeps the most frequent."""
    store = open_store(root / "store")
    config = load_sweep_config(["task=phone", f"spans={root / 'spans.csv'}"])
    data = read_span_data(store, config, 3)
    assert data.notes == (
        f"1 of {4 * N:,} spans left out by label: 'sil'",
        "1 span of 1 class left out (fewer than 10 spans): 'rare'",
    )
    assert data.names == ("a", "b", "c")
    assert len(data.placed) == 4 * N - 2
    settings = ["task.max_classes=2", "spans.skip=[]", "task.min_count=1"]
    data = read_span_data(store, load_sweep_config([*overrides_of(root), *settings]), 3)
    counts = {name: sum(row.count("abc".index(name)) for row in LABELS[:-1]) for name in "abc"}
    assert set(data.names) == set(sorted(counts, key=counts.get)[1:])
    with pytest.raises(ConfigError, match=r"has 0 classes to learn, with task.min_count=999"):
        read_span_data(store, load_sweep_config([*overrides_of(root), "task.min_count=999"]), 3)


@pytest.mark.parametrize(
    ("task", "label"),
    [("phone", "SIL"), ("phone", "<sil>"), ("abx", "SIL_S"), ("abx", "+NSN+"), ("word", "<SIL>")]
    + [("word", label) for label in ("[SIL]", "SIL", "<s>", "</s>", "[NOISE]", "<UNK>", "!SIL")],
)
def test_silence_is_left_out_in_the_spellings_of_aligners(root, tmp_path, task, label):
    """In any case of letters; `spans.skip` is compared as it is written."""
    text = (root / "spans.csv").read_text().replace(",sil", f",{label}")
    path = tmp_path / "spans.csv"
    path.write_text(text)
    store, settings = open_store(root / "store"), [f"task={task}", f"spans={path}"]
    data = read_span_data(store, load_sweep_config([*settings, "task.min_count=1"]), 3)
    assert data.names == ("a", "b", "c", "rare")
    assert data.notes == (f"1 of {4 * N:,} spans left out by label: {label!r}",)
    settings += ["task.min_count=1", f"spans.skip=['{label.swapcase()}']"]
    assert label in read_span_data(store, load_sweep_config(settings), 3).names


def test_silence_is_a_class_of_frames(root):
    """Speech and silence may be what is recognised."""
    config = load_sweep_config(overrides_of(root, "frame"))
    assert "sil" in read_span_data(open_store(root / "store"), config, 3).names


def test_the_page_has_the_labels_that_are_left_out():
    """The list of docs/spans.md is that of the recipes."""
    page = (REPOSITORY / "docs" / "spans.md").read_text()
    for task, name in (("phone", "phone"), ("abx", "phone"), ("word", "word")):
        start = f"| `{name}`"
        [row] = [line for line in page.splitlines() if line.startswith(start) and "empty" in line]
        silence = load_sweep_config([f"task={task}"]).task.silence
        assert silence[0] == ""
        listed = row.split("the empty label, ")[1].removesuffix(" |")
        assert listed == " ".join(f"`{label}`" for label in silence[1:])


def test_spans_in_a_wrong_unit_are_named_where_no_classes_are_left(root, tmp_path):
    """Milliseconds read as seconds leave a few spans: the error asks about the unit."""
    first, *lines = (root / "spans.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    rows = [f"{row[0]},{row[1]}0,{float(row[2]) * 1000},{row[3]}" for row in cells]
    path = tmp_path / "ms.csv"
    path.write_text("\n".join([first, *rows]))
    config = load_sweep_config(["task=phone", f"spans={path}", "task.min_count=999"])
    with pytest.raises(ConfigError, match=r"to learn.* end after their utterances.*spans.unit=ms"):
        read_span_data(open_store(root / "store"), config, 3)


def overrides_of(root, task="phone"):
    return [f"task={task}", f"spans={root / 'spans.csv'}"]


def test_spans_beyond_memory_are_sampled_in_proportion(root):
    """The sample is that of a seed, has every class, and a warning has the numbers."""
    store = open_store(root / "store")
    n_bytes = 60 * 3 * DIM * 4
    config = load_sweep_config([*overrides_of(root), f"memory={n_bytes}"])
    one, two = (read_span_data(store, config, 3) for _ in range(2))
    whole = read_span_data(store, load_sweep_config(overrides_of(root)), 3)
    assert len(one.placed) <= 60
    assert (one.placed.row == two.placed.row).all()
    shares = np.bincount(one.numbers) / np.bincount(whole.numbers)
    assert shares.max() - shares.min() < 0.05
    assert one.warnings[0].startswith(f"a sample of {len(one.placed)} of {4 * N - 2} spans is used")
    small = load_sweep_config([*overrides_of(root), f"memory={n_bytes // 20}"])
    with pytest.raises(ConfigError, match="memory is too small for 3 classes"):
        read_span_data(store, small, 3)


def test_frames_in_no_span_may_be_a_class(root, tmp_path):
    """With task.unlabelled they are trained on and scored, without it neither."""
    store = open_store(root / "store")
    lines = ["id,start,end", *(f"{name},0.2,0.5" for name in store.ids[:40])]
    (tmp_path / "speech.csv").write_text("\n".join(lines))
    settings = [f"spans={tmp_path / 'speech.csv'}", "spans.label=speech", "split.speaker=speaker"]
    result, _ = run(root, "frame", *settings, "task.unlabelled=rest", "task.metric=f1", out="vad")
    assert result.classes == (("speech", "rest"),)
    assert result.metric == "f1"
    assert np.sum(result.truth[0][0][2::3]) == N_FRAMES
    assert result.n_train + result.n_dev + result.n_test == 40
    assert any("8 utterances without a label left out" in line for line in result.warnings)
    assert result.comparison.test == "paired permutation test over utterances"
    counts = np.array(result.confusion, float)  # of the best candidate, one seed
    right, total = np.diagonal(counts), counts.sum(0) + counts.sum(1)
    assert result.score(result.best).test == pytest.approx((2 * right / total).mean())
    assert result.score(1).extra.keys() == {"accuracy"}
    with pytest.raises(ConfigError, match=r"'speech'.*expected at least two"):
        run(root, "frame", *settings, out="vad")


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("phone", ["spans=null"], "task phone learns labelled intervals; give spans=FILE"),
        ("phone", ["labels=[speaker]"], "names columns of the store, and the labels of task phone"),
        ("phone", ["task.metric=f1"], "task.metric is 'f1'; expected accuracy"),
        ("frame", ["task.metric=wer"], "task.metric is 'wer'; expected accuracy or f1"),
        ("frame", ["task.units=512"], "task.units is 512, and task.head=linear has no LSTM"),
        ("ks", ["labels=[speaker]"], "task ks learns a column of the store; leave spans out"),
        ("phone", ["memory=lots"], "memory is 'lots'; expected bytes, or text"),
        ("phone", ["spans.tier=words"], "tier: of no use for spans of kind csv"),
        ("phone", ["spans.id_form={id}.wav"], "spans.id_form='{stem}' finds 48 of 48 utterances"),
        ("phone", ["spans.unit=samples"], "are in samples; give spans.sample_rate_hz=RATE"),
        ("phone", ["spans.skip=[a,b,c,sil,rare]"], "all spans have a label that is skipped"),
    ],
)
def test_settings_that_do_not_fit_are_refused(root, task, settings, message):
    """Before anything is trained, with the way out."""
    with pytest.raises((ConfigError, SourceError), match=re.escape(message)):
        run(root, task, "split.speaker=speaker", *settings)


@pytest.mark.parametrize(("task", "noun"), [("phone", "span"), ("frame", "frame")])
def test_a_test_part_without_a_class_of_train_is_refused(tmp_path, task, noun):
    """Every score would be 0, of spans as of frames."""
    columns = pa.table({"split": ["train", "dev", "test"] * 6})
    make_store(tmp_path / "store", [20] * 18, (2,), DIM, 512, features, columns=columns)
    lines = ["id,start,end,label"]
    for row in range(18):
        names = "xy" if row % 3 == 2 else "ab"
        lines += [f"utt-{row:04d},{i * 0.2},{i * 0.2 + 0.2},{name}" for i, name in enumerate(names)]
    (tmp_path / "spans.csv").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"\(x, y\).* no test {noun} is of another class"):
        run(tmp_path, task, *(["task.min_count=1"] if task == "phone" else []))


def test_overlapping_spans_have_no_frame_labels(root, tmp_path):
    """A frame has one label; the message has both lines."""
    path = tmp_path / "turns.csv"
    rows = [f"utt-{row:04d},{0.5 * (row % 2)},0.6,x" for row in range(N)]
    path.write_text("\n".join(["id,start,end,label", *rows, "utt-0003,0.4,0.55,y"]))
    with pytest.raises(SourceError, match=r"line 5: .* frames in common with 'y' .* line 50;"):
        run(root, "frame", f"spans={path}", "split.speaker=speaker")


def test_macro_f1_of_sums_is_that_of_scikit_learn():
    """Over classes that occur in references or predictions, also if some do not occur."""
    random = np.random.default_rng(0)
    for n in (3, 50):
        truth, found = random.integers(6, size=(2, n))
        cells = np.zeros((6, 6), np.int64)
        np.add.at(cells, (truth, found), 1)
        expected = f1_score(truth, found, average="macro", zero_division=0.0)
        assert macro_f1_of_sums(class_counts(cells)[None])[0] == pytest.approx(expected)
    assert macro_f1_of_sums(np.zeros((1, 18))).tolist() == [0.0]


def test_batches_have_every_labelled_frame_once(root):
    """A pass yields the features and the class of each, in the order of the store."""
    store = open_store(root / "store")
    spans = read_spans(root / "spans.csv", skip=["sil", "rare"])
    labels = frame_labels(store, place_spans(store, spans))
    config = load_sweep_config([*overrides_of(root, "frame"), "task.batch=100"])
    positions = np.array([3, 7, N - 1])
    data = framewise.FramewiseData(
        store, labels, LAYERS, (), config.task, torch.device("cpu"), 1 << 20
    )
    batches = list(data.batches(positions))
    classes = torch.cat([batch.classes for batch in batches])
    expected = np.concatenate([labels[i][labels[i] >= 0] for i in positions.tolist()])
    assert classes.tolist() == expected.tolist()
    assert len(expected) == 40 + 40 + 20
    frames = torch.cat([batch.frames for batch in batches], dim=1)
    wanted = [store.read(i).float()[:, labels[i] >= 0] for i in positions.tolist()]
    assert torch.equal(frames, torch.cat(wanted, dim=1))
    endless = data.batches(positions, seed=0, is_endless=True)
    two_epochs = [next(endless).classes for _ in range(2 * len(batches))]
    assert sorted(torch.cat(two_epochs).tolist()) == sorted(2 * expected.tolist())


def test_framewise_heads_agree_with_scikit_learn(root):
    """On the same frames of a layer with noise, accuracies are close."""
    result, _ = run(root, "frame", "spans.skip=[sil,rare]", "split.speaker=speaker", out="sklearn")
    store = open_store(root / "store")
    labels = frame_labels(store, read_spans(root / "spans.csv", skip=["sil", "rare"]))
    test = [store.position(name) for name in result.test_ids[0]]
    train = [i for i in range(N) if i not in test]
    x, y = (
        [np.concatenate([of(i)[labels[i] >= 0] for i in part]) for part in (train, test)]
        for of in (lambda i: store.read(i, [2])[0].numpy(), lambda i: labels[i])
    )
    model = LogisticRegression(max_iter=500).fit(x[0], y[0])
    expected = model.score(x[1], y[1])
    assert result.score(2).test == pytest.approx(expected, abs=0.03)
    (baseline,) = [v for name, v in result.baselines.items() if name.startswith("logistic")]
    assert result.best == WEIGHTED or baseline == pytest.approx(expected, abs=0.03)

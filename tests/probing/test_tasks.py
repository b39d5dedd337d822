"""Conformance of tasks to the contract in pipeline/probing/tasks/base.py, for every kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config import load_sweep_config
from pipeline.config.sweep_schema import HEADS
from pipeline.errors import ConfigError, SourceError, StoreError
from pipeline.heads.facts import KINDS
from pipeline.heads.trained import TrainedHead
from pipeline.probing.labels import Fold, Labels, read_labels
from pipeline.probing.results import WEIGHTED, HeadResult, HeadSpec, OnHead
from pipeline.probing.run import TASK_KINDS, list_heads
from pipeline.probing.significance import resampled_scores
from pipeline.probing.tasks.base import Task, TaskData, few_speakers
from pipeline.probing.tasks.spans_data import SPAN_KINDS, read_span_data
from pipeline.probing.trainers.kept_heads import head_facts
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store
from tests.helpers.feature_stores import make_store
from tests.helpers.planted_stores import planted

CASES = {
    "utterance": "ks",
    "frames": "asr",
    "regression": "regression",
    "verification": "sv",
    "spans": "word",
    "framewise": "frame",
    "abx": "abx",
}
"""Name of a task of each kind, trained on the words of the store. A new kind is one line."""
UNTRAINED = ("abx", "verification")
"""Kinds that train nothing; what is predicted are trials, and comparisons of spans."""
NUMBERS = {"ab": "1.5", "cd": "-2", "bad": "30", "cab": "7"}
"""The labels of a regression in place of the words."""
N, LAYERS, DIM = 60, (1, 2), 16
WORDS = [("ab", "cd", "bad", "cab")[row % 4] for row in range(N)]
CPU = torch.device("cpu")
at = np.arange(N)
FOLDS = tuple(Fold(at[at % 3 == 0], at[at % 3 == i], at[at % 3 == 3 - i]) for i in (1, 2))


@dataclass
class Case:
    """A task and its trained heads, in the order of `specs`."""

    kind: str
    head: str
    store: FeatureStore
    task: Task
    specs: list[HeadSpec]
    heads: list[HeadResult]
    notes: list[str]
    tensors: dict[HeadSpec, Any]


def into(heads: dict[HeadSpec, HeadResult]) -> OnHead:
    """Return what collects trained heads."""
    return lambda spec, head, parameters=None, /: heads.__setitem__(spec, head)


def make_task(
    kind: str, store: FeatureStore, words: list[str] = WORDS, head: str | None = None
) -> Task:
    """Make the task of a kind for a small store."""
    return TASK_KINDS[kind](make_data(kind, store, words, head))


def make_data(
    kind: str, store: FeatureStore, words: list[str] = WORDS, head: str | None = None
) -> TaskData:
    """Return what the task of a kind is made from; `head` is that of the recipe, or another one."""
    steps = [] if kind in UNTRAINED else ["task.steps=8", "task.eval_every=4"]
    if head not in (None, HEADS[kind][0]):
        steps.append(f"task.head={head}")
    if head == "lstm":
        steps += ["task.units=6", "task.projection=8"]
    if kind in SPAN_KINDS:  # the spans are the whole utterances
        path = store.root.parent / "words.csv"
        rows = (f"{name},0,1,{word}\n" for name, word in zip(store.ids, words, strict=True))
        path.write_text("".join(["id,start,end,word\n", *rows]))
        config = load_sweep_config([f"task={CASES[kind]}", f"spans={path}", *steps])
        spans = read_span_data(store, config, len(LAYERS))
        return TaskData(store, config.task, spans.labels(None), FOLDS, LAYERS, CPU, spans)
    config = load_sweep_config([f"task={CASES[kind]}", "labels=[word]", *steps])
    labels = read_labels(store, config.task, config.labels)
    if kind == "regression":
        words = [NUMBERS.get(word, word) for word in words]
    labels = Labels(labels.columns, (tuple(words),), labels.orders)
    return TaskData(store, config.task, labels, FOLDS, LAYERS, CPU)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose layer 2 shows the word of an utterance."""
    root = tmp_path_factory.mktemp("tasks") / "store"
    make_store(
        root,
        [9] * N,
        layers=LAYERS,
        dim=DIM,
        columns=pa.table({"word": WORDS, "speaker": [f"s{row // 30}" for row in range(N)]}),
        features=planted([row % 4 for row in range(N)]),
    )
    return open_store(root)


@pytest.fixture(
    scope="module", params=[f"{kind} {head}" for kind in sorted(HEADS) for head in HEADS[kind]]
)
def case(request, store):
    """A task of every kind and head, with two layers and the weighted sum, in two folds."""
    kind, head = request.param.split()
    task = make_task(kind, store, head=head)
    settings = [f"task={CASES[kind]}", "seeds=[0,1]"]
    specs = list(list_heads(load_sweep_config(settings), LAYERS, len(FOLDS)))
    if kind not in UNTRAINED:
        specs = [replace(spec, lr=1e-2) for spec in specs if spec.lr == max(s.lr for s in specs)]
    trained: dict[HeadSpec, HeadResult] = {}
    notes: list[str] = []
    calls: list[HeadSpec] = []
    tensors: dict[HeadSpec, Any] = {}

    def on_head(spec, head, parameters=None):
        tensors[spec] = parameters
        calls.append(spec)
        trained[spec] = head

    task.train(specs, on_head, notes.append)
    assert sorted(calls, key=str) == sorted(specs, key=str)
    return Case(kind, head, store, task, specs, [trained[spec] for spec in specs], notes, tensors)


def test_every_kind_has_a_case():
    """A new kind of task must be tested here, with every head that it may have."""
    assert CASES.keys() == TASK_KINDS.keys() == HEADS.keys()


def test_a_head_has_the_settings_of_its_spec(case):
    """Layer, learning rate, seed and fold; weights for the weighted sum only, summing to one."""
    for spec, head in zip(case.specs, case.heads, strict=True):
        assert HeadSpec(head.layer, head.lr, head.seed, head.fold) == spec
        assert (head.layer_weights is not None) == (head.layer == WEIGHTED)
        if head.layer_weights is not None:
            assert len(head.layer_weights) == len(LAYERS)
            assert sum(head.layer_weights) == pytest.approx(1)


def test_predictions_and_references_are_those_of_the_test_utterances(case):
    """A fold has one prediction and one reference per test utterance or trial, of one type."""
    assert len(case.task.truth) == len(FOLDS)
    for head in case.heads:
        fold, truth = FOLDS[head.fold], case.task.truth[head.fold]
        assert len(head.predictions) == len(truth)
        assert {type(item) for item in head.predictions} == {type(item) for item in truth}
        if case.kind in UNTRAINED:
            continue
        assert len(truth) == len(fold.test)
        by_word = {WORDS[row]: truth[i] for i, row in enumerate(fold.test.tolist())}
        assert [by_word[WORDS[row]] for row in fold.test.tolist()] == list(truth)
        assert len(set(by_word.values())) == 4


def test_an_evaluation_gives_the_test_score(case):
    """With equal weights it is the test score of a head; it is finite for every drawn test set."""
    for head in case.heads:
        evaluation = case.task.evaluate([head])
        assert evaluation.score == pytest.approx(head.test)
        drawn = resampled_scores([[evaluation]])
        assert np.isfinite(drawn).all()
        assert drawn.min() <= evaluation.score <= drawn.max()


def test_folds_are_evaluated_together(case):
    """The heads of both folds have as many groups as the folds together."""
    for layer in LAYERS:
        heads = [head for head in case.heads if (head.layer, head.seed) == (layer, 0)]
        alone = [case.task.evaluate([head]) for head in heads]
        both = case.task.evaluate(heads)
        assert both.n_groups == sum(evaluation.n_groups for evaluation in alone)
        if case.kind == "verification":  # scores of different folds are ranked together
            continue
        halves = [
            both.scores(np.repeat([on, 1.0 - on], [item.n_groups for item in alone])[None])[0]
            for on in (1.0, 0.0)
        ]
        assert halves == pytest.approx([head.test for head in heads])


def test_perfect_predictions_have_the_best_score(case):
    """Perfect predictions score 1 if higher is better, else 0."""
    head = case.heads[0]
    perfect = replace(head, predictions=case.task.truth[head.fold])
    expected = 1.0 if case.task.higher_is_better else 0.0
    assert case.task.evaluate([perfect]).score == pytest.approx(expected)


def test_a_head_depends_on_its_spec_only(case):
    """A head trained without the others is bit-identical."""
    for number in (3, len(case.specs) - 2):
        spec = case.specs[number]
        alone: dict[HeadSpec, HeadResult] = {}
        make_task(case.kind, case.store, head=case.head).train([spec], into(alone), lambda _: None)
        assert alone == {spec: case.heads[number]}


def test_the_parameters_of_a_head_predict_as_it_does(case):
    """A `TrainedHead` of them gives the predictions of the head, from the same features."""
    if case.kind not in KINDS:  # it trains nothing
        assert set(case.tensors.values()) == {None}
        return
    data = make_data(case.kind, case.store, head=case.head)
    for spec, head in zip(case.specs, case.heads, strict=True):
        trained = TrainedHead(head_facts(data, case.task, head, "key"), case.tensors[spec])
        layers, test = trained.facts.layers, FOLDS[spec.fold].test.tolist()
        found = [trained(case.store.read(i, layers)) for i in test]
        if case.kind == "frames":
            assert tuple(item.transcript for item in found) == head.predictions
        elif case.kind == "framewise":
            names = case.task.classes[0]
            for row, item, triples in zip(test, found, head.predictions, strict=True):
                counts: Counter[str] = Counter()
                for segment in item.spans:
                    counts[segment.label] += segment.last - segment.first
                truth = names.index(WORDS[row])
                pairs = sorted((names.index(name), n) for name, n in counts.items())
                assert [number for pair in pairs for number in (truth, *pair)] == list(triples)
        elif case.kind in ("utterance", "spans"):  # a span is a whole utterance
            numbers = [case.task.classes[0].index(item.labels[0]) for item in found]
            assert [(number,) for number in numbers] == list(head.predictions)
            assert all(0.25 < item.scores[0] <= 1 for item in found)
        elif case.kind == "regression":
            assert np.allclose([item.values for item in found], head.predictions, atol=1e-4)
        else:
            trials = case.task._test[spec.fold].pairs
            vectors = {i: trained(case.store.read(i, layers)) for i in np.unique(trials).tolist()}
            scores = [vectors[a].cosine(vectors[b]) for a, b in trials.tolist()]
            assert np.allclose(scores, np.array(head.predictions)[:, 0], atol=1e-9)


def test_extra_scores_and_baselines_are_named_numbers(case):
    """Extra scores have equal names for all runs; baselines exist for every swept layer."""
    runs = [
        [h for h in case.heads if (h.layer, h.seed) == (layer, seed)]
        for layer in LAYERS
        for seed in sorted({head.seed for head in case.heads})
    ]
    extras = [case.task.extra(run) for run in runs]
    assert len({frozenset(extra) for extra in extras}) == 1
    for layer in LAYERS:
        baselines = case.task.baselines(layer)
        assert baselines
        assert all(isinstance(name, str) for name in baselines)
        assert np.isfinite(list(baselines.values())).all()


def test_confusions_count_every_prediction(case):
    """The matrix is square over the classes of the first label column, or None.

    Of utterances, spans or frames: here an utterance is one span of 9 frames.
    """
    matrix = case.task.confusion(case.heads)
    if matrix is None:
        return
    assert np.shape(matrix) == (len(case.task.classes[0]),) * 2
    n_each = 9 if case.kind == "framewise" else 1
    assert np.sum(matrix) == n_each * sum(len(head.predictions) for head in case.heads)


def test_files_are_written_to_the_folder_only(case, tmp_path):
    """A task writes into the given folder, and does not change the store."""
    before = sorted(Path(case.store.root).rglob("*"))
    case.task.write_files(tmp_path)
    assert all(path.stat().st_size for path in tmp_path.iterdir())
    assert sorted(Path(case.store.root).rglob("*")) == before


@pytest.mark.parametrize("kind", sorted(TASK_KINDS))
def test_labels_that_cannot_be_learned_are_refused_before_training(kind, store):
    """The factory raises for empty labels."""
    with pytest.raises((ConfigError, SourceError)):
        make_task(kind, store, words=[""] * N)


def loudness(row: int, layer: int, n_frames: int, dim: int) -> np.ndarray:
    """Return features whose deviation, not mean, tells the word."""
    random = np.random.default_rng([row, layer])
    values = random.standard_normal((n_frames, dim)) * 3 ** (row % 4)
    return (values - values.mean(0)).astype(np.float16)


def test_intervals_over_few_speakers_give_a_warning() -> None:
    """Below 20 test speakers, which are counted."""
    assert few_speakers(20) == ()
    assert few_speakers(19)[0].startswith("only 19 test speakers: ")


@pytest.mark.parametrize("kind", ["utterance", "regression", "verification"])
def test_features_that_are_not_finite_are_refused(store, monkeypatch, kind) -> None:
    """By the ids of the utterances; heads would diverge, and nothing would say why."""
    pooled = store.pooled(store.layers)
    pooled[3, 0, 1], pooled[5, 1, 0] = float("nan"), float("inf")
    monkeypatch.setattr(FeatureStore, "pooled", lambda self, layers, **_: pooled)
    found = f"2 utterances of .* not finite \\({store.ids[3]}, {store.ids[5]}\\)"
    with pytest.raises(StoreError, match=found):
        make_task(kind, store)


@pytest.mark.parametrize("keep", [("frames", "pooled"), ("pooled",)])
def test_heads_on_utterances_get_the_statistics_that_are_asked_for(tmp_path, keep) -> None:
    """Concatenated, in that order; in a store without frames those that it keeps."""
    words = [f"w{row % 4}" for row in range(N)]
    form = {"keep": keep, "statistics": ("mean", "std")}
    columns = pa.table({"word": words})
    make_store(tmp_path / "s", [60] * N, LAYERS, DIM, 512, loudness, columns=columns, **form)
    store, accuracy = open_store(tmp_path / "s"), {}
    for pooling in ("[mean]", "[mean,std]"):
        settings = ["task=ks", "labels=[word]", "task.steps=300", "task.eval_every=50"]
        config = load_sweep_config([*settings, f"task.pooling={pooling}"])
        labels = read_labels(store, config.task, config.labels)
        task = TASK_KINDS["utterance"](TaskData(store, config.task, labels, FOLDS, LAYERS, CPU))
        heads: dict[HeadSpec, HeadResult] = {}
        spec = HeadSpec(2, 1e-2, 0, 0)
        task.train([spec], into(heads), lambda _: None)
        accuracy[pooling] = task.evaluate([heads[spec]]).score
    assert accuracy["[mean]"] < 0.6
    assert accuracy["[mean,std]"] > 0.9


@pytest.mark.parametrize(
    ("task", "pooling", "message"),
    [
        ("ks", "[median]", r"task.pooling is \['median'\]; expected one or more of mean, std"),
        ("ks", "[]", r"task.pooling is \[\]"),
        ("ks", "[std,std]", "each once"),
    ],
)
def test_unknown_statistics_are_refused(store, task, pooling, message) -> None:
    """The message names the known ones."""
    config = load_sweep_config([f"task={task}", "labels=[word]", f"task.pooling={pooling}"])
    labels = read_labels(store, config.task, config.labels)
    with pytest.raises(ConfigError, match=message):
        TASK_KINDS["utterance"](TaskData(store, config.task, labels, FOLDS, LAYERS, CPU))


def test_frame_tasks_have_no_pooling(store) -> None:
    """They get frames."""
    config = load_sweep_config(["task=asr", "labels=[word]"])
    task = replace(config.task, pooling=("mean", "std"))
    labels = read_labels(store, config.task, config.labels)
    with pytest.raises(ConfigError, match=r"task asr gets frames; task\.pooling"):
        TASK_KINDS["frames"](TaskData(store, task, labels, FOLDS, LAYERS, CPU))

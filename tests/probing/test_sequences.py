"""Heads on frames: equal to plain torch, independent of other heads, threads, parts and memory."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import pipeline
from pipeline.config import TaskConfig, load_sweep_config
from pipeline.errors import ConfigError, StoreError
from pipeline.heads.trained import TrainedHead
from pipeline.probing.labels import Fold, Labels
from pipeline.probing.results import WEIGHTED, HeadResult, HeadSpec
from pipeline.probing.run import sweep
from pipeline.probing.tasks.base import TaskData
from pipeline.probing.tasks.frame import FrameTask
from pipeline.probing.tasks.regression import RegressionTask
from pipeline.probing.tasks.utterance import UtteranceTask
from pipeline.probing.trainers import sequences
from pipeline.probing.trainers.frame_data import prepare_transcripts
from pipeline.probing.trainers.frame_lessons import TranscriptLesson, batches_by_frames
from pipeline.probing.trainers.objectives import Classification, Regression
from pipeline.probing.trainers.sequence_data import Lesson, SequenceData, UtteranceLesson
from tests.helpers.feature_stores import make_store, noise

CPU = torch.device("cpu")
LAYERS, DIM, N = (3, 6, 9), 8, 48
FOLD = Fold(np.arange(0, 28), np.arange(28, 38), np.arange(38, 48))
_random = np.random.default_rng(0)
TEXTS = ["".join(_random.choice(list("abc"), n)) for n in _random.integers(2, 7, N)]
CLASSES = ["abc".index(max("abc", key=text.count)) for text in TEXTS]  # the most frequent symbol
LENGTHS = [3 * len(text) for text in TEXTS]


def spelt(row, layer, n_frames, dim):
    """Return noise in which layer 6 spells the text: per symbol two frames and a blank."""
    frames = noise(row, layer, n_frames, dim) / 4
    if layer == 6:
        for i, symbol in enumerate(TEXTS[row]):
            frames[3 * i : 3 * i + 2, "abc".index(symbol) + 1] += 2
    return frames


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of 48 utterances that spell their texts."""
    root = tmp_path_factory.mktemp("sequences") / "store"
    columns = pa.table({"text": TEXTS, "word": [f"w{number}" for number in CLASSES]})
    make_store(root, LENGTHS, LAYERS, DIM, features=spelt, columns=columns)
    return pipeline.open_store(root)


def task_of(head: str, **settings) -> TaskConfig:
    """Return the settings of ks or asr with smaller numbers."""
    name = "ks" if head == "attentive" else "asr"
    small = {"steps": 12, "eval_every": 4, "projection": 6, "batch": 12 if name == "ks" else 100}
    if name == "asr":
        small |= {"units": 5}
    return replace(load_sweep_config([f"task={name}"]).task, head=head, **(small | settings))


def lesson_of(store, task: TaskConfig, objective=None) -> Lesson:
    """Return what a head of the task learns."""
    if task.kind == "frames":
        return TranscriptLesson(store, task, prepare_transcripts(store, task, FOLD, TEXTS))
    labels = torch.tensor([CLASSES])
    if objective is not None:
        labels = torch.tensor([CLASSES, [number**2 for number in CLASSES]]).float()
    objective = objective or Classification((3,))
    return UtteranceLesson(labels, objective, FOLD, task.batch, store.frame_counts)


def data_of(store, task: TaskConfig, objective=None, memory=1 << 30) -> SequenceData:
    """Return the frames and the lesson."""
    lessons = (lesson_of(store, task, objective),)
    return SequenceData(store, LAYERS, task, lessons, CPU, memory)


def trained(data: SequenceData, *specs: HeadSpec):
    """Train heads; return results and parameters by spec."""
    found: dict[HeadSpec, tuple[HeadResult, dict[str, Tensor]]] = {}

    def on_head(spec, result, parameters=None, /):
        found[spec] = (result, {name: value.clone() for name, value in parameters.items()})

    sequences.train_sequence_heads(data, specs, on_head)
    return found


def same(first, second) -> bool:
    """Whether heads are bit-identical."""
    return first[0] == second[0] and all(
        torch.equal(value, second[1][name]) for name, value in first[1].items()
    )


class PlainAttentive(nn.Module):
    """Attentive statistics pooling on padded batches, written on its own."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(DIM, 6)
        self.attend = nn.Linear(6, 128)
        self.vector = nn.Parameter(torch.zeros(128))
        self.classify = nn.Linear(12, n_outputs)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        x = self.project(frames)
        energies = torch.tanh(self.attend(x)) @ self.vector
        inside = torch.arange(x.shape[1]) < lengths[:, None]
        weights = energies.masked_fill(~inside, -math.inf).softmax(1)[..., None]
        mean = (weights * x).sum(1)
        variance = (weights * x**2).sum(1) - mean**2
        return self.classify(torch.cat([mean, variance.clamp_min(1e-5).sqrt()], 1))


class PlainLSTM(nn.Module):
    """Two bidirectional layers on padded batches, packed by torch."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(DIM, 6)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.classify = nn.Linear(10, n_outputs)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.project(frames), lengths, batch_first=True, enforce_sorted=False
        )
        return self.classify(nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], True)[0])


class PlainMLP(nn.Module):
    """One hidden layer on every frame of padded batches."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.hidden, self.classify = nn.Linear(DIM, 6), nn.Linear(6, n_outputs)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.classify(torch.relu(self.hidden(frames)))


PLAIN = {"attentive": PlainAttentive, "lstm": PlainLSTM, "mlp": PlainMLP}


def plain_losses(store, data: SequenceData, spec: HeadSpec) -> tuple[list[float], nn.Module]:
    """Train a head in plain torch, on padded batches; return its losses and itself."""
    task, lesson = data.task, data.lessons[0]
    start = sequences._Head(data, spec)
    head, mix = PLAIN[task.head](lesson.n_outputs), torch.zeros(len(LAYERS), requires_grad=True)
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), ordered(task, start), strict=True):
            parameter.copy_(value)
    parameters = [*head.parameters(), *([mix] if spec.layer == WEIGHTED else [])]
    optimizer = torch.optim.Adam(parameters, lr=spec.lr)
    transcripts = prepare_transcripts(store, task, FOLD, TEXTS) if task.tokens else None
    losses = []
    for positions in islice(lesson.order(spec.seed), task.steps):
        layers = [store.read(int(position), LAYERS).float() for position in positions]
        lengths = torch.tensor([layer.shape[1] for layer in layers])
        padded = pad_sequence([layer.transpose(0, 1) for layer in layers], batch_first=True)
        if spec.layer == WEIGHTED:
            frames = torch.einsum("l,btld->btd", mix.softmax(0), padded)
        else:
            frames = padded[:, :, LAYERS.index(spec.layer)]
        outputs = head(frames, lengths)
        if transcripts is None:
            labels = torch.tensor([CLASSES[position] for position in positions])
            loss = nn.functional.cross_entropy(outputs, labels)
        else:
            texts = [transcripts.train[store.ids[position]] for position in positions]
            loss = nn.functional.ctc_loss(
                outputs.log_softmax(2).transpose(0, 1),
                torch.cat([torch.tensor(text) for text in texts]),
                lengths,
                torch.tensor([len(text) for text in texts]),
            )
        optimizer.zero_grad()
        loss.backward()
        if task.head == "lstm":
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, head


def ordered(task: TaskConfig, start) -> list[Tensor]:
    """Return initial parameters in the order of the plain head."""
    tensors = start.network.tensors()
    if task.head == "attentive":  # the vector is a parameter of the head itself, thus first
        tensors = {"attention_vector": tensors.pop("attention_vector"), **tensors}
    return list(tensors.values())


@pytest.mark.parametrize("head", sorted(PLAIN))
@pytest.mark.parametrize("layer", [6, WEIGHTED])
def test_heads_step_as_plain_torch_does(store, head, layer):
    """Losses of 12 steps and the parameters after them are those of padded batches and autograd."""
    data = data_of(store, task_of(head, eval_every=1, patience=99))
    spec = HeadSpec(layer, 0.02, 1, 0)
    wanted, plain = plain_losses(store, data, spec)
    group = sequences._Group(data, [spec], 10**6)
    for positions in islice(data.lessons[0].order(1), 12):
        group.step(group.heads, positions)
    found = group.heads[0]
    assert np.allclose([float(loss) for loss in found._losses], wanted, rtol=1e-4)
    assert wanted[-1] < wanted[0]
    for value, parameter in zip(ordered(data.task, found), plain.parameters(), strict=True):
        assert torch.allclose(value, parameter, atol=2e-4)


@pytest.mark.parametrize("head", sorted(PLAIN))
def test_a_head_does_not_depend_on_other_heads_or_threads(store, head):
    """Heads are bit-identical alone, in one thread, and beside others in two threads."""
    data = data_of(store, task_of(head))
    specs = [HeadSpec(layer, lr, 0, 0) for layer in (6, 9, WEIGHTED) for lr in (0.05, 0.01)]
    before = torch.get_num_threads()
    state = torch.random.get_rng_state()
    found = {}
    try:
        for n_threads in (2, 1):
            torch.set_num_threads(n_threads)
            found[n_threads] = trained(data, *specs)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found[1].keys() == found[2].keys() == set(specs)
    assert all(same(found[1][spec], found[2][spec]) for spec in specs)
    alone = trained(data, specs[3])
    assert same(alone[specs[3]], found[1][specs[3]])
    assert found[1][specs[0]][0].curve != found[1][specs[2]][0].curve


@pytest.mark.parametrize("head", [*sorted(PLAIN), "ccc"])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(store, head):
    """With memory for one or two utterances, losses and parameters are the same up to rounding.

    Also for the concordance, which is no mean over utterances.
    """
    objective = Regression((1.0, 2.0), (0.7, 1.5), "ccc", "ccc") if head == "ccc" else None
    task = task_of("attentive" if head == "ccc" else head)
    spec = HeadSpec(WEIGHTED, 0.02, 0, 0)
    losses, parameters, is_cut = [], [], False
    for n_per_part in (10**6, 25):
        data = data_of(store, task, objective)
        group = sequences._Group(data, [spec], n_per_part)
        for positions in islice(data.lessons[0].order(0), 6):
            n_frames = [store.n_frames(int(position)) for position in positions]
            is_cut |= sum(n_frames) > n_per_part
            group.step(group.heads, positions)
        losses.append([float(loss) for loss in group.heads[0]._losses])
        parameters.append(group.heads[0].parameters())
    assert is_cut
    assert np.allclose(*losses, rtol=1e-4)
    assert parameters[0].keys() == parameters[1].keys()
    for name, value in parameters[0].items():
        assert torch.allclose(value, parameters[1][name], atol=1e-4), name


def test_dev_selects_and_a_head_that_diverges_keeps_its_best_step(store):
    """The result is the best evaluation; a loss that is not finite ends training, with no trace."""
    data = data_of(store, task_of("attentive", steps=40, patience=99))
    good, bad = HeadSpec(6, 0.02, 0, 0), HeadSpec(6, 1e38, 0, 0)
    found = trained(data, good, bad)
    result, parameters = found[good]
    assert result.dev == max(dev for _, _, dev in result.curve)
    assert result.step == next(step for step, _, dev in result.curve if dev == result.dev)
    assert result.dev > 0.7
    wrong, tensors = found[bad]
    assert all(math.isfinite(value) for row in wrong.curve for value in row)
    assert math.isfinite(wrong.dev)
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    # the parameters are those of the best step: they give its predictions again
    group = sequences._Group(data, [good], 10**6)
    with torch.no_grad():
        pairs = zip(group.heads[0].network.parameters(), parameters_of(parameters), strict=True)
        for parameter, value in pairs:
            parameter.copy_(value)
    assert tuple(group.evaluate(group.heads, FOLD.test)[0][2]) == result.predictions


def parameters_of(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Return the parameters of an attentive head in the order of its network."""
    return [value[None] if name == "attention_vector" else value for name, value in tensors.items()]


def test_patience_and_perfection_end_training(store):
    """Training ends after `patience` evaluations without a better score, or at a perfect one."""
    data = data_of(store, task_of("mlp", steps=4000, eval_every=5, patience=3))
    spec, noisy = HeadSpec(6, 0.05, 0, 0), HeadSpec(3, 0.3, 0, 0)
    found = trained(data, spec, noisy)
    result = found[spec][0]
    assert (result.dev, result.step) == (0, result.curve[-1][0])
    assert result.test < 0.1
    assert result.predictions[0] == TEXTS[38]
    assert found[noisy][0].curve[-1][0] < 1000


def test_an_evaluation_that_is_not_finite_ends_training(store):
    """A score of NaN is neither recorded nor followed by further steps."""
    head = sequences._Head(data_of(store, task_of("mlp", patience=2)), HeadSpec(6, 0.05, 0, 0))
    assert head.record(0, 0.5, 1.0)
    for step, dev, continues in ((4, 0.4, True), (8, math.nan, False)):
        head.step(torch.tensor(2.0))
        assert head.record(step, dev, 1.0) == continues
    assert head.result(0.3, []).curve == ((4, 2.0, 0.4),)
    assert head.dev == 0.4


def test_a_lower_dev_loss_delays_the_stop(store):
    """The error rate of CTC rises at first; without a lower loss, patience counts."""
    head = sequences._Head(data_of(store, task_of("mlp", patience=2)), HeadSpec(6, 0.05, 0, 0))
    head.record(0, 0.5, 9.0)
    found = []
    for step, dev_loss in enumerate((8.0, 7.0, 6.0, 6.0, 6.0), 1):
        head.step(torch.tensor(2.0))
        found.append(head.record(step, 0.6, dev_loss))
    assert found == [True, True, True, True, False]


def test_a_head_that_cannot_be_saved_stops_the_others(store, monkeypatch):
    """Other threads are told to end, and the error is raised."""
    events = []

    def train(data, specs, n_per_part, stop):
        events.append(stop)
        group = sequences._Group(data, specs, n_per_part)
        return [(head, head.result(0.5, [])) for head in group.heads]

    def full(spec, result, parameters=None, /):
        raise StoreError("disk full")

    monkeypatch.setattr(sequences, "_train", train)
    with pytest.raises(StoreError, match="disk full"):
        sequences.train_sequence_heads(
            data_of(store, task_of("mlp")), [HeadSpec(6, 0.05, 0, 0)], full
        )
    assert events[0].is_set()


def test_the_largest_batch_is_that_of_the_longest_utterances(store):
    """Utterances have different lengths, and any of train may meet in a batch."""
    task = task_of("attentive", batch=3)
    longest = sorted(LENGTHS[i] for i in FOLD.train)[-3:]
    assert lesson_of(store, task).largest_batch == sum(longest)


def test_batches_are_those_of_a_loader(store):
    """The order of utterances is the one that CTC's linear heads of the same seed get."""
    loader = pipeline.make_loader(
        pipeline.FeatureDataset(store.take(FOLD.train.tolist())), max_frames_per_batch=100, seed=3
    )
    wanted = [batch.ids for _ in range(2) for batch in loader]
    order = batches_by_frames(store, FOLD.train, 100, 3)
    found = [[store.ids[position] for position in some] for some in islice(order, len(wanted))]
    assert found == wanted


def test_memory_bounds_threads_and_parts(store, monkeypatch):
    """A part fits in memory, threads share it; an utterance that does not fit is named."""
    data = data_of(store, task_of("lstm"))
    spec = HeadSpec(WEIGHTED, 0.1, 0, 0)
    many, largest_bytes = sequences._frames_per_part(data, [spec])
    assert many == data.task.batch
    small = replace(data, memory=100_000)
    few, n_bytes = sequences._frames_per_part(small, [spec])
    assert max(LENGTHS) <= few < many
    assert n_bytes <= 100_000
    assert sequences._frames_per_part(small, [spec, replace(spec, lr=0.2)])[0] < few
    pools = []
    opened = sequences.single_threaded
    monkeypatch.setattr(sequences, "single_threaded", lambda n: pools.append(n) or opened(n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for n_threads in (3, 1):
        memory = n_threads * largest_bytes + 100
        trained(replace(data, memory=memory, task=replace(data.task, steps=1)), spec)
        assert pools.pop() == n_threads
    with pytest.raises(
        ConfigError, match=r"'utt-00.*' with 18 frames takes about .* more than memory; raise mem"
    ):
        trained(replace(data, memory=1000), spec)


def test_an_interrupted_sweep_keeps_the_layers_that_are_trained(store, tmp_path, monkeypatch):
    """Trained heads are reused, also after Ctrl-C in a later layer, and the result is the same."""
    config = load_sweep_config(
        [
            "task=ks", "labels=[word]", "task.head=attentive", "task.steps=8", "task.eval_every=4",
            "task.lrs=[0.02]", "seeds=[0]", "weighted=false", "split.speaker=none",
            "task.projection=6",
        ]
    )  # fmt: skip
    train, begun = sequences._train, []

    def interrupted(data, specs, n_per_part, stop):
        begun.append(specs[0].layer)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return train(data, specs, n_per_part, stop)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(sequences, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(store, replace(config, out=str(tmp_path / "out")))
    monkeypatch.setattr(sequences, "_train", train)
    result, folder = sweep(store, replace(config, out=str(tmp_path / "out")))
    assert (result.trained, result.reused) == (1, 2)
    whole, _ = sweep(store, replace(config, out=str(tmp_path / "whole")))
    assert whole.heads == result.heads
    for layer in LAYERS:
        kept = TrainedHead.load(folder / "trained" / f"layer-{layer}.safetensors")
        assert kept.facts.head == "attentive"


def test_a_stopped_group_takes_no_further_step(store, monkeypatch):
    """After Ctrl-C, or a head that cannot be saved, other threads end at their next step."""
    data = data_of(store, task_of("mlp", steps=200))
    stop, n_steps, take = threading.Event(), [], sequences._Group.step

    def step(group, heads, positions):
        n_steps.append(len(heads))
        take(group, heads, positions)
        if len(n_steps) == 3:
            stop.set()

    monkeypatch.setattr(sequences._Group, "step", step)
    assert sequences._train(data, [HeadSpec(3, 0.01, 0, 0)], 10**6, stop) == []
    assert len(n_steps) == 3


def task_data(store, task: TaskConfig, column: str, texts) -> TaskData:
    labels = Labels((column,), (tuple(texts),), (None,))
    return TaskData(store, task, labels, (FOLD,), LAYERS, CPU)


def test_settings_that_do_not_fit_a_head_are_refused(store, tmp_path):
    """`task.pooling` of an attentive head, `task.units` without an LSTM, and pooled stores."""
    pooled = task_of("attentive", pooling=("mean", "std"))
    words = [f"w{number}" for number in CLASSES]
    with pytest.raises(ConfigError, match=r"task.pooling is .*attentive pools the frames itself"):
        UtteranceTask(task_data(store, pooled, "word", words))
    with pytest.raises(ConfigError, match=r"task.units is 5, and task.head=mlp has no LSTM"):
        FrameTask(task_data(store, task_of("mlp"), "text", TEXTS))
    columns = pa.table({"word": words})
    make_store(tmp_path / "s", LENGTHS, LAYERS, DIM, keep=("pooled",), columns=columns)
    small = pipeline.open_store(tmp_path / "s")
    with pytest.raises(StoreError, match=r"keeps no frames .*extract.keep=\[frames,pooled\]"):
        UtteranceTask(task_data(small, task_of("attentive"), "word", words))


def test_numbers_are_learned_by_attention(store):
    """The share of a symbol is read from the layer that spells, not from noise; with baselines."""
    task = replace(
        load_sweep_config(["task=regression", "task.head=attentive"]).task,
        steps=150,
        batch=28,
        eval_every=15,
        projection=6,
    )
    shares = [10 * text.count("a") / len(text) for text in TEXTS]
    made = RegressionTask(task_data(store, task, "n", map(str, shares)))
    heads = {}
    specs = [HeadSpec(layer, 0.02, 0, 0) for layer in (3, 6)]
    made.train(specs, lambda spec, head, tensors, /: heads.update({spec: (head, tensors)}), print)
    noisy, good = (heads[spec] for spec in specs)
    assert good[0].dev > 0.7 > noisy[0].dev + 0.5
    assert good[0].test > noisy[0].test
    assert {"means", "deviations"} <= good[1].keys()
    assert good[1]["means"].tolist() == pytest.approx([np.mean(shares[:28])])
    baselines = made.baselines(6)
    assert {"mean of train", "untrained head, layer 6", "ridge regression, layer 6"} == set(
        baselines
    )
    assert abs(baselines["untrained head, layer 6"]) < 0.3

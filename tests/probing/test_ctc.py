"""CTC heads: what they learn, and independence of stacking, padding and collapsing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import pipeline
from pipeline.config import TaskConfig
from pipeline.errors import ConfigError
from pipeline.heads.ctc import ctc_losses, greedy_symbols, min_frames
from pipeline.probing.labels import Fold
from pipeline.probing.metrics import error_rate
from pipeline.probing.results import HeadSpec
from pipeline.probing.trainers import ctc, frame_data
from tests.helpers.feature_stores import make_store, noise

LAYERS, DIM, SPELLING = (1, 2, 3), 8, 2
WEIGHTS = [0.2, 0.7, 0.1]
FOLD = Fold(np.arange(0, 32), np.arange(32, 40), np.arange(40, 48))
CPU = torch.device("cpu")
TASK = TaskConfig(
    name="asr",
    kind="frames",
    labels=("text",),
    metric="cer",
    speaker_independent=False,
    lrs=(0.03,),
    steps=120,
    batch=300,
    eval_every=20,
    patience=6,
    projection=16,
    tokens="characters",
)
_random = np.random.default_rng(0)
TEXTS = [
    " ".join("".join(_random.choice(list("abcd"), n)) for n in sizes)
    for sizes in _random.integers(1, 8, (48, 2))
]


def spelt(row, layer, n_frames, dim):
    """Return noise in which one layer spells the text: per symbol two frames and one blank."""
    frames = noise(row, layer, n_frames, dim) / 4
    if layer == SPELLING:
        for i, symbol in enumerate(TEXTS[row]):
            frames[3 * i : 3 * i + 2, " abcd".index(symbol) + 1] += 2
    return frames


def spelt_store(root, texts=TEXTS, features=spelt):
    lengths = [3 * len(text) for text in TEXTS]
    columns = pa.table({"text": texts})
    make_store(root, lengths, layers=LAYERS, dim=DIM, features=features, columns=columns)
    return pipeline.open_store(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return spelt_store(tmp_path_factory.mktemp("spelt") / "store")


@pytest.fixture(scope="module")
def transcripts(store):
    return frame_data.prepare_transcripts(store, TASK, FOLD, TEXTS)


def specs_of(*layers, lr=0.03, seed=0):
    return [HeadSpec(layer, lr, seed, 0) for layer in layers]


@pytest.fixture(scope="module")
def trained(store, transcripts):
    """Heads of all candidates, and one with another seed."""
    specs = [*specs_of(SPELLING, seed=1), *specs_of(1, 2, 3, "weighted")]
    return ctc.train_ctc_heads(store, TASK, transcripts, LAYERS, specs, CPU)


def plain_loop(store, transcripts, featurize, head, seed=0, steps=40, lr=0.03):
    """Train one head in plain torch; return its loss at every step."""
    parameters = [*head.parameters(), *featurize.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    dataset = pipeline.FeatureDataset(store.select(id=list(transcripts.train)), layers=store.layers)
    loader = pipeline.make_loader(dataset, max_frames_per_batch=TASK.batch, seed=seed)
    losses = []
    while len(losses) < steps:
        for batch in loader:
            labels = [torch.tensor(transcripts.train[name]) for name in batch.ids]
            scores = head(featurize(batch)).log_softmax(-1).transpose(0, 1)
            sizes = torch.tensor([len(item) for item in labels])
            targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
            loss = torch.nn.CTCLoss()(scores, targets, batch.lengths, sizes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[:steps]


class Learned(torch.nn.Module):
    """Learned weighted sum of the layers of a batch."""

    def __init__(self):
        super().__init__()
        self.sum = pipeline.WeightedSum(3)

    def forward(self, batch):
        return self.sum(batch.features)


class Fixed(torch.nn.Module):
    """Weighted sum of the layers of a batch by given weights, computed by the store."""

    def __init__(self, store, weights):
        super().__init__()
        self.store, self.weights = store, weights

    def forward(self, batch):
        sums = [self.store.weighted_sum(name, self.weights) for name in batch.ids]
        return torch.nn.utils.rnn.pad_sequence(sums, batch_first=True)


class OneLayer(torch.nn.Module):
    """The layer that spells the text."""

    def forward(self, batch):
        return batch.features[:, LAYERS.index(SPELLING)]


def curve_of(store, transcripts, layers, spec, steps=40):
    """Train one head with the trainer; return its loss at every step until dev has no errors."""
    task = replace(TASK, steps=steps, eval_every=1, patience=steps)
    (result,) = ctc.train_ctc_heads(store, task, transcripts, layers, [spec], CPU)
    return [loss for _, loss, _ in result.curve]


def test_only_the_layer_that_spells_is_transcribed(store, transcripts, trained):
    """The layer that spells has error rate 0 on test, and the largest weight of the sum."""
    truth = tuple(transcripts.test.values())
    assert truth == tuple(TEXTS[i] for i in FOLD.test)
    untrained = ctc.untrained_error_rate(store, TASK, transcripts, SPELLING, CPU)
    assert untrained > 0.7
    for result in trained:
        curve = [loss for _, loss, _ in result.curve]
        assert curve[-1] < curve[0]
        if result.layer == SPELLING:
            assert (result.dev, result.test) == (0, 0)
            assert result.predictions == truth
        elif result.layer == "weighted":
            assert result.test < 0.1
            assert result.layer_weights[LAYERS.index(SPELLING)] > 0.6
            assert sum(result.layer_weights) == pytest.approx(1)
        else:
            assert result.test > 0.5
            assert result.layer_weights is None


def test_a_head_is_reported_at_its_best_dev_score(transcripts, trained):
    """Step, dev and predictions are those of the best evaluation."""
    for result in trained:
        best = min(dev for _, _, dev in result.curve)
        assert result.dev == best
        assert result.step == next(step for step, _, dev in result.curve if dev == best)
        assert result.test == error_rate("cer", list(transcripts.test.values()), result.predictions)


def test_a_head_does_not_depend_on_the_others(store, transcripts, trained, monkeypatch):
    """Heads are bit-identical if trained separately, in another order, or in smaller chunks."""
    for wanted in trained[1:]:
        (alone,) = ctc.train_ctc_heads(
            store, TASK, transcripts, LAYERS, specs_of(wanted.layer), CPU
        )
        assert alone == wanted
    monkeypatch.setattr(ctc, "_CHUNK_BYTES", 1)
    specs = specs_of("weighted", 3, 1)
    one_by_one = ctc.train_ctc_heads(store, TASK, transcripts, LAYERS, specs, CPU)
    assert one_by_one == [trained[4], trained[3], trained[1]]


def test_initial_parameters_depend_on_seed_and_layer_only(trained):
    """Torch's random state has no effect and does not change."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    values = {
        (seed, layer): ctc.initial_head(seed, layer, DIM, 5, 16).projector.weight
        for seed in (0, 1)
        for layer in (1, 2, "weighted")
    }
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({weight.sum().item() for weight in values.values()}) == 6
    torch.manual_seed(1)
    again = ctc.initial_head(0, "weighted", DIM, 5, 16).projector.weight
    assert torch.equal(again, values[0, "weighted"])
    assert trained[0].curve != trained[2].curve  # two seeds of one layer


@pytest.mark.parametrize(("layer", "seed"), [(SPELLING, 0), ("weighted", 1)])
def test_heads_train_as_in_a_plain_loop(store, transcripts, layer, seed):
    """The losses are those of FramewiseLinear, WeightedSum and torch's CTCLoss."""
    head = ctc.initial_head(seed, layer, DIM, len(transcripts.vocabulary), TASK.projection)
    featurize = Learned() if layer == "weighted" else OneLayer()
    wanted = plain_loop(store, transcripts, featurize, head, seed)
    found = curve_of(store, transcripts, LAYERS, specs_of(layer, seed=seed)[0])
    assert len(found) >= 20
    assert np.allclose(found, wanted[: len(found)], rtol=1e-3)
    assert found[-1] < found[0] / 2


def test_a_collapsed_store_trains_as_the_weighted_sum_does(store, transcripts, tmp_path):
    """Equal weights give equal losses, up to the rounding of the stored sum."""
    pipeline.collapse(store.root, tmp_path / "collapsed", WEIGHTS)
    collapsed = pipeline.open_store(tmp_path / "collapsed")
    head = ctc.initial_head(0, "collapsed", DIM, len(transcripts.vocabulary), TASK.projection)
    wanted = plain_loop(store, transcripts, Fixed(store, WEIGHTS), head)
    found = curve_of(collapsed, transcripts, collapsed.layers, specs_of("collapsed")[0])
    assert len(found) >= 20
    assert np.allclose(found, wanted[: len(found)], rtol=1e-2)
    (result,) = ctc.train_ctc_heads(
        collapsed, TASK, transcripts, collapsed.layers, specs_of("collapsed"), CPU
    )
    assert result.layer == "collapsed"
    assert result.test < 0.05


def test_padding_does_not_change_the_loss():
    """The loss of an utterance is equal in a batch of one, with longer ones, and with padding."""
    torch.manual_seed(0)
    labels = [(1, 2, 2, 3), (4,), (), (3, 1)]
    lengths = [9, 2, 5, 30]
    frames = [torch.randn(2, n, 5).log_softmax(2) for n in lengths]
    for longest in (30, 64):
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        together = ctc_losses(torch.cat(frames, 1), mask, labels)
        alone = [
            ctc_losses(part, torch.ones(1, n, dtype=torch.bool), [item])
            for part, n, item in zip(frames, lengths, labels, strict=True)
        ]
        assert torch.allclose(together, torch.stack(alone).mean(0))


def test_paths_are_decoded_greedily():
    """Runs are merged, a blank separates equal symbols, blanks are removed."""
    assert greedy_symbols(np.array([0, 1, 1, 0, 1, 2, 2, 3, 0])) == [1, 1, 2, 3]
    assert greedy_symbols(np.array([0, 0])) == []
    assert min_frames((1, 1, 2, 2, 2)) == 8


def test_transcripts_longer_than_their_frames_are_not_trained_on(store):
    """A warning names utterances with too many symbols; one symbol less is accepted."""
    texts = list(TEXTS)
    n_frames = len(TEXTS[3]) * 3
    texts[3] = ("ab" * n_frames)[: n_frames + 1]
    texts[4] = "a" * (len(TEXTS[4]) * 3 // 2 + 2)  # repeated symbols need blanks
    texts[5] = ("ab" * n_frames)[: len(TEXTS[5]) * 3]
    texts[40] = "b" * 999  # test is scored nevertheless
    found = frame_data.prepare_transcripts(store, TASK, FOLD, texts)
    assert set(found.train) == {f"utt-{i:04d}" for i in range(32) if i not in (3, 4)}
    (warning,) = frame_data.transcript_warnings([found])
    assert warning.startswith("2 utterances left out of training (utt-0003, utt-0004)")
    assert found.test["utt-0040"] == texts[40]
    with pytest.raises(ConfigError, match="nothing to train on"):
        frame_data.prepare_transcripts(store, TASK, FOLD, ["ab" * 99] * 48)


def test_an_utterance_too_large_for_memory_is_not_trained_on(store, monkeypatch):
    """CTC's tables grow with frames × symbols; the warning advises to cut the utterance."""
    longest = max(range(32), key=lambda i: len(TEXTS[i]))
    size = frame_data.ctc_bytes(3 * len(TEXTS[longest]), len(TEXTS[longest]))
    monkeypatch.setattr(frame_data, "MAX_CTC_BYTES", size - 1)
    found = frame_data.prepare_transcripts(store, TASK, FOLD, TEXTS)
    assert f"utt-{longest:04d}" not in found.train
    assert "cut them" in frame_data.transcript_warnings([found])[0]


def test_symbols_missing_from_training_are_errors_and_a_warning(store):
    """A warning names symbols of dev and test that train lacks; training works nevertheless."""
    texts = [*TEXTS[:40], *("x" * len(text) for text in TEXTS[40:])]
    found = frame_data.prepare_transcripts(store, TASK, FOLD, texts)
    total = sum(len(text) for text in texts[40:])
    assert tuple(frame_data.transcript_warnings([found])) == (
        f"{total} symbols of test ('x') in no training transcript: no head can predict what it "
        "is not trained on, and each counts as an error",
    )
    (result,) = ctc.train_ctc_heads(store, TASK, found, LAYERS, specs_of(SPELLING), CPU)
    assert result.test >= 1
    assert result.dev == 0


def test_missing_transcripts_and_empty_parts_are_refused(store):
    """A missing transcript and an empty part raise ConfigError."""
    with pytest.raises(ConfigError, match="utt-0002"):
        frame_data.prepare_transcripts(store, TASK, FOLD, [*TEXTS[:2], None, *TEXTS[3:]])
    with pytest.raises(ConfigError, match="dev"):
        frame_data.prepare_transcripts(store, TASK, replace(FOLD, dev=FOLD.dev[:0]), TEXTS)


def test_tokens_can_be_symbols(store):
    """A space-separated token is one symbol, and errors are counted per token."""
    task = replace(TASK, tokens="words", metric="per")
    texts = [" ".join(text.replace(" ", "_")) for text in TEXTS]
    found = frame_data.prepare_transcripts(store, task, FOLD, texts)
    assert found.vocabulary.symbols == ("_", "a", "b", "c", "d")
    (result,) = ctc.train_ctc_heads(store, task, found, LAYERS, specs_of(SPELLING), CPU)
    assert result.test == 0
    assert result.predictions == tuple(texts[40:])


def test_a_head_stops_without_improvement(store, transcripts):
    """A head stops after `patience` evaluations without improvement, or at dev error rate 0."""
    task = replace(TASK, steps=2_000, eval_every=5, patience=2)
    specs = [HeadSpec(1, 0.1, 0, 0), HeadSpec(SPELLING, 0.1, 0, 0)]
    noisy, perfect = ctc.train_ctc_heads(store, task, transcripts, LAYERS, specs, CPU)
    assert noisy.step + 2 * 5 <= noisy.curve[-1][0] < 1_000
    assert perfect.dev == 0
    assert perfect.curve[-1][0] == perfect.step


def test_a_head_whose_error_rate_rises_at_first_is_not_stopped(store, transcripts):
    """The error rate rises at first; an improving loss on dev continues training."""
    task = replace(TASK, steps=125, eval_every=5, patience=2)
    (result,) = ctc.train_ctc_heads(store, task, transcripts, LAYERS, specs_of(2, lr=0.003), CPU)
    rates = [dev for _, _, dev in result.curve]
    assert max(rates[2:]) > rates[1] + 0.1
    assert result.dev < 0.3


def test_normalising_removes_the_scale_of_a_layer(store, transcripts, tmp_path):
    """Features multiplied by eight train equally with `normalize`, and not without."""
    louder = spelt_store(tmp_path / "louder", features=lambda *at: spelt(*at) * np.float16(8))
    for normalize in (True, False):
        task = replace(TASK, steps=10, eval_every=1, normalize=normalize)
        curves = [
            ctc.train_ctc_heads(one, task, transcripts, LAYERS, specs_of("weighted"), CPU)[0].curve
            for one in (store, louder)
        ]
        losses = [[loss for _, loss, _ in curve] for curve in curves]
        assert np.allclose(*losses, rtol=1e-3) == normalize


def test_a_head_that_diverges_ends_at_its_best_step(store, transcripts):
    """Before the first one that is the head before training; other heads are not changed."""
    diverging, sound = (specs_of(SPELLING, lr=lr)[0] for lr in (1e30, 0.03))
    for eval_every in (20, 1):
        task = replace(TASK, steps=20, eval_every=eval_every)
        kept = {}

        def keep(spec, result, parameters=None, kept=kept):
            kept[spec] = parameters

        lost, other = ctc.train_ctc_heads(
            store, task, transcripts, LAYERS, [diverging, sound], CPU, on_head=keep
        )
        assert (lost.step, lost.curve) == (0, ())
        assert lost.test == ctc.untrained_error_rate(store, task, transcripts, SPELLING, CPU)
        assert 0 < lost.dev < math.inf
        assert all(bool(tensor.isfinite().all()) for tensor in kept[diverging].values())
        [alone] = ctc.train_ctc_heads(store, task, transcripts, LAYERS, [sound], CPU)
        assert other == alone

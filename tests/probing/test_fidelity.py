"""What a store loses against a reference: figures, samples, other stores, sweeps, the verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import load_sweep_config
from pipeline.errors import AudioError, ConfigError, IdentityError, StoreError
from pipeline.events import Observer
from pipeline.probing.fidelity import sampling
from pipeline.probing.fidelity.against import StoreReference, in_common
from pipeline.probing.fidelity.figures import LayerLoss, cosines, quantile
from pipeline.probing.fidelity.run import measure
from pipeline.probing.fidelity.sampling import draw_sample
from pipeline.probing.fidelity.sweeps import ScoreDifference, compare_sweeps
from pipeline.probing.fidelity.verdict import verdict
from pipeline.store.format.codecs import BFLOAT16, FLOAT32, INT8
from pipeline.store.read.opening import open_store
from tests.helpers.feature_stores import make_store
from tests.helpers.planted_stores import planted, write_planted

LENGTHS = [6, 40, 12, 8]


def alternating(row, layer, n_frames, dim):
    """Return features of variance 1 around a large constant; `n_frames` is even."""
    signs = np.where(np.arange(n_frames) % 2, 1.0, -1.0)[:, None]
    return (50 + signs + np.zeros((1, dim))).astype(np.float32)


def damaged(row, layer, n_frames, dim):
    """Return `alternating` with an error of 1/100 (40 dB) in layer 1, 1/1000 in layer 2, 0 in 3."""
    error = {1: 1e-2, 2: 1e-3, 3: 0.0}[layer]
    return alternating(row, layer, n_frames, dim) + np.float32(error)


def compared(root, other, layers=None, **how):
    """Measure a store against another one."""
    store, reference = open_store(root), open_store(other)
    return measure(store, StoreReference(store, reference), draw_sample(store, **how).clips, layers)


@pytest.fixture
def reference(tmp_path):
    """A float32 store of four utterances."""
    make_store(tmp_path / "reference", LENGTHS, features=alternating, codec=FLOAT32)
    return tmp_path / "reference"


def prepared(store, other):
    """Make a store the reference of another one."""
    return StoreReference(store, other), in_common(store, other)


def encoder_of(root, **facts):
    """Attributes of `root` with other facts of the encoder."""
    identity = open_store(root).attributes["identity"]
    return {"identity": identity | {"encoder": identity["encoder"] | facts}}


def test_planted_errors_give_their_ratio(tmp_path, reference):
    """Errors of 1/100 and 1/1000 of what varies are 40 and 60 dB; no error is None."""
    make_store(tmp_path / "store", LENGTHS, features=damaged, codec=FLOAT32)
    found = compared(tmp_path / "store", reference)
    assert (found.n_utterances, found.n_frames, found.dtype) == (4, sum(LENGTHS), "float32")
    assert [layer.layer for layer in found.layers] == [1, 2, 3]
    for layer, expected in zip(found.layers[:2], (40, 60), strict=True):
        figures = (layer.snr_db, layer.snr_lowest_db)
        figures += (layer.feature_median_db, layer.feature_worst_db)
        assert figures == pytest.approx([expected] * 4, abs=0.05)
    exact = found.layers[2]
    assert exact.snr_db is exact.snr_lowest_db is exact.feature_worst_db is None
    assert exact.cosine_worst == 1.0
    assert "lowest utterance: 40.0 dB, in layer 1" in verdict(found)


def test_a_constant_part_is_no_signal():
    """The constant of a feature does not count, however large; the error does."""
    values = np.array([[1.0, 5001], [-1, 4999], [1, 5001], [-1, 4999]], np.float32)
    loss = LayerLoss()
    loss.add(values, values + np.float32([0.1, 0.0]))
    figures = loss.figures(1)
    # signal 8, noise 4 * 0.01, of both features; the second feature has no loss at all
    assert figures.snr_db == pytest.approx(10 * np.log10(8 / 0.04), abs=1e-3)
    assert figures.feature_worst_db == pytest.approx(20, abs=1e-3)
    assert figures.feature_median_db == pytest.approx(20, abs=1e-3)


def test_the_lowest_utterance_and_feature_are_shown():
    """Median and lowest differ where one utterance, or one feature, is worse than the others."""
    loss, random = LayerLoss(), np.random.default_rng(0)
    for scale in (1e-3, 1e-3, 1e-1):
        values = random.standard_normal((5000, 5)).astype(np.float32)
        noise = scale * random.standard_normal((5000, 5))
        noise[:, 0] *= 10
        loss.add(values, (values + noise).astype(np.float32))
    figures = loss.figures(1)
    # one feature of five has 100 times the noise power: (4 + 100) / 5 on average
    assert figures.snr_db == pytest.approx(60 - 10 * np.log10(104 / 5), abs=1)
    assert figures.snr_lowest_db == pytest.approx(20 - 10 * np.log10(104 / 5), abs=1)
    assert figures.feature_median_db == pytest.approx(60, abs=1)
    assert figures.feature_worst_db == pytest.approx(0, abs=1)
    assert figures.cosine_worst < 0.9 < figures.cosine_mean < 1


def test_utterances_without_variation_have_no_ratio(tmp_path):
    """A single frame and a constant feature have a cosine and no ratio; alone they are refused."""
    one = np.ones((1, 3), np.float32)
    loss = LayerLoss()
    loss.add(one, one * 2)
    assert loss.figures(1) is None
    loss.add(np.array([[1, 1], [1, 2]], np.float32), np.array([[1, 1], [1, 2.5]], np.float32))
    assert loss.figures(1).snr_db == pytest.approx(10 * np.log10(0.5 / 0.25))
    make_store(tmp_path / "a", [1, 1], codec=FLOAT32)
    make_store(tmp_path / "b", [1, 1])
    with pytest.raises(StoreError, match="a single frame"):
        compared(tmp_path / "b", tmp_path / "a")


def test_cosines_and_quantiles_of_small_cases():
    """Equal frames have cosine 1, zeros too; a quantile is one of the values, infinite or not."""
    first = np.array([[1.0, 0], [0, 0], [1, 0], [0, 0]])
    second = np.array([[1.0, 0], [0, 0], [1, 1], [1, 0]])
    assert cosines(first, second) == pytest.approx([1, 1, 0.5**0.5, 0])
    values = np.array([3.0, 1.0, np.inf, 2.0])
    assert [quantile(values, share) for share in (0.001, 0.5, 0.75, 1)] == [1, 2, 3, np.inf]


def test_int8_keeps_planted_outliers(tmp_path):
    """With features of 80 times the variance, and constants of 60 deviations, int8 passes 35 dB.

    The figures are those of the codec, computed here by themselves.
    """

    def features(row, layer, n_frames, dim):
        values = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
        values[:, :2] *= 80**0.5
        values[:, 2:4] += 60
        return values.astype(np.float32)

    lengths = [100, 400, 250]
    settings = {"features": features, "dim": 32, "frames_per_unit": 512}
    make_store(tmp_path / "exact", lengths, codec=FLOAT32, **settings)
    make_store(tmp_path / "int8", lengths, codec=INT8, **settings)
    found = compared(tmp_path / "int8", tmp_path / "exact")
    for layer in found.layers:
        assert layer.snr_lowest_db > 35
        assert layer.feature_worst_db > 25
    ratios = []
    for row, n_frames in enumerate(lengths):
        values = features(row, 2, n_frames, 32)
        scales = INT8.measure(values)
        restored = INT8.decode(INT8.encode(values, scales), scales).astype(np.float16)
        noise = np.square(restored - values.astype(np.float64)).sum()
        signal = values.astype(np.float64).var(0).sum() * n_frames
        ratios.append(10 * np.log10(signal / noise))
    figures = found.layers[1]
    assert figures.snr_db == pytest.approx(sorted(ratios)[1], abs=1e-3)
    assert figures.snr_lowest_db == pytest.approx(min(ratios), abs=1e-3)
    assert verdict(found).startswith("int8: above 35 dB in every layer (lowest utterance: ")


def test_a_large_loss_is_not_called_small(tmp_path, reference):
    """Below 35 dB in the lowest utterance of one layer, the verdict says NOT, and where."""

    def worse(row, layer, n_frames, dim):
        error = 0.1 if (row, layer) == (2, 2) else 0.001
        return alternating(row, layer, n_frames, dim) + np.float32(error)

    make_store(tmp_path / "store", LENGTHS, features=worse, codec=FLOAT32)
    line = verdict(compared(tmp_path / "store", reference))
    assert "NOT above 35 dB in every layer (lowest utterance: 20.0 dB, in layer 2)" in line


def test_pieces_are_compared_one_at_a_time(tmp_path):
    """An utterance in pieces is represented by one; the reference may be cut elsewhere."""
    lengths, settings = [600, 20], {"features": alternating, "frames_per_unit": 256}
    make_store(tmp_path / "store", lengths, pieces={0: 4}, codec=INT8, **settings)
    make_store(tmp_path / "other", lengths, pieces={0: 3}, codec=FLOAT32, **settings)
    store = open_store(tmp_path / "store")
    assert [(p.start, p.stop) for p in store.pieces(0)] == [
        (0, 150),
        (150, 300),
        (300, 450),
        (450, 600),
    ]
    drawn = {draw_sample(store, seed=seed).clips[0].piece.start for seed in range(20)}
    assert drawn == {0, 150, 300, 450}
    found = compared(tmp_path / "store", tmp_path / "other")
    assert found.n_frames == 150 + 20
    assert found.layers[0].cosine_worst > 0.99999


def test_samples_are_drawn_by_their_seed(tmp_path, monkeypatch):
    """A seed gives one sample, in the order of the store; a sample of long ones is cut, noted."""
    make_store(tmp_path / "store", [10] * 60)
    store = open_store(tmp_path / "store")
    names = [clip.name for clip in draw_sample(store).clips]
    assert len(names) == sampling.N_UTTERANCES
    assert names == sorted(names) == [clip.name for clip in draw_sample(store, seed=0).clips]
    assert names != [clip.name for clip in draw_sample(store, seed=1).clips]
    assert len(draw_sample(store, 1000).clips) == 60
    assert draw_sample(store).describe_cut() is None
    monkeypatch.setattr(sampling, "MAX_AUDIO_S", 1.1)  # 55 frames
    cut = draw_sample(store)
    assert len(cut.clips) == 5
    assert "n_utterances=40 takes all" in cut.describe_cut()
    assert len(draw_sample(store, 40).clips) == 40
    with pytest.raises(StoreError, match="no complete utterances"):
        draw_sample(store.take([]))


def test_quarantined_utterances_are_never_drawn(tmp_path):
    """Nor are those of units that are not committed."""
    make_store(tmp_path / "store", [200] * 6, lost=(1, 4), units=(0, 1, 2, 4))
    names = [clip.name for clip in draw_sample(open_store(tmp_path / "store")).clips]
    assert names == ["utt-0000", "utt-0002"]


def test_utterances_in_common(tmp_path, reference):
    """Ids of one store alone, and those with other lengths, are left out with a note."""
    ids = ["utt-0003", "utt-0001", "other", "utt-0002"]
    make_store(tmp_path / "other", [8, 40, 12, 13], codec=FLOAT32, ids=ids)
    store, other, note = in_common(open_store(reference), open_store(tmp_path / "other"))
    assert store.ids == other.ids == ["utt-0001", "utt-0003"]
    assert "1 utterance of" in note
    assert "1 utterance of another length there: utt-0002" in note
    store, other, note = in_common(open_store(reference), open_store(reference))
    assert (len(store), note) == (4, None)


def test_stores_that_cannot_be_compared(tmp_path, reference):
    """The message says what differs: encoder, layers, ids, lengths, frames, or nothing at all."""
    other = tmp_path / "other"

    def refused(error, match, lengths=LENGTHS, **settings):
        make_store(other, lengths, **settings)
        with pytest.raises(error, match=match):
            prepared(open_store(reference), open_store(other))
        for path in sorted(other.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()

    refused(
        IdentityError,
        "encoder.model is nothing there, wavlm here",
        attributes=encoder_of(reference, model="wavlm"),
    )
    refused(IdentityError, r"has layers \[1, 2, 3\], the second \[7\]", layers=(7,))
    refused(StoreError, "no utterance in common", ids=["a", "b", "c", "d"])
    refused(StoreError, "have in common have different lengths", lengths=[1, 2, 3, 4])
    refused(StoreError, "keeps no frames to compare, only the statistics mean", keep=("pooled",))
    with pytest.raises(ConfigError, match="is the store itself"):
        StoreReference(open_store(reference), open_store(reference))


def test_only_common_layers_are_compared(tmp_path, reference):
    """All that both have, or those that are asked for."""
    make_store(tmp_path / "store", LENGTHS, layers=(2, 3, 5), features=alternating)
    found = compared(tmp_path / "store", reference)
    assert [layer.layer for layer in found.layers] == [2, 3]
    found = compared(tmp_path / "store", reference, layers=[3])
    assert [layer.layer for layer in found.layers] == [3]
    with pytest.raises(
        ConfigError, match=r"no layers \[5\] in the common part .*; it has \[2, 3\]"
    ):
        compared(tmp_path / "store", reference, layers=[5])


def test_the_loss_of_the_precision_is_named(tmp_path, reference):
    """If the encoders computed in other precisions, the figures of the dtype alone are there."""
    make_store(tmp_path / "store", LENGTHS, features=damaged, codec=BFLOAT16)
    for path, precision in ((tmp_path / "low", "fp16"), (tmp_path / "high", "fp32")):
        make_store(
            path,
            LENGTHS,
            features=damaged if precision == "fp16" else alternating,
            codec=FLOAT32,
            attributes=encoder_of(reference, precision=precision),
        )
    found = compared(tmp_path / "low", tmp_path / "high")
    assert found.includes_precision
    assert found.layers[0].snr_db == pytest.approx(40, abs=0.05)
    assert found.layers[0].codec_snr_db is None  # float32 alone loses nothing
    assert verdict(found).startswith("float32 of a fp16 encoder: above 35 dB")
    assert not compared(tmp_path / "store", reference).includes_precision


def test_a_reference_that_lacks_an_utterance_leaves_it_out(tmp_path, reference):
    """The others are compared; if it lacks all, nothing is, and the first reason is shown."""
    store = open_store(reference)

    class Partial:
        description, precision, layers, warnings = "a test", None, store.layers, ()

        def __init__(self, lacking):
            self.lacking = lacking

        def read(self, name, piece, layers):
            if name in self.lacking:
                raise AudioError("it has no sound")
            return store.read(name, layers, piece.start, piece.stop).float().numpy()

    clips = draw_sample(store).clips
    found = measure(store, Partial({"utt-0001"}), clips)
    assert found.n_utterances == 3
    assert [(item.id, item.reason) for item in found.left_out] == [("utt-0001", "it has no sound")]
    with pytest.raises(StoreError, match=r"4 of 4 .* first 'utt-0000': it has no sound"):
        measure(store, Partial(set(store.ids)), clips)


def test_a_reference_that_is_not_float32_is_named(tmp_path, reference):
    """Its own error is part of the figures, so there is a warning."""
    make_store(tmp_path / "other", LENGTHS, features=alternating)
    found = compared(reference, tmp_path / "other")
    assert "has float16 values: their own error" in found.warnings[-1]
    assert compared(tmp_path / "other", reference).warnings == ()


QUICK = ["task=ks", "split.speaker=none", "seeds=[0,1]", "task.lrs=[1e-2]", "task.steps=60"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """float32 and int8 stores in which layer 2 shows the words, and one in which nothing does."""
    root = tmp_path_factory.mktemp("labelled")
    write_planted(root / "float32", n=160, codec=FLOAT32)
    write_planted(root / "int8", n=160, codec=INT8)
    classes = [row % 4 for row in range(160)]
    write_planted(root / "broken", n=160, features=planted(classes, strength=0.0), codec=INT8)
    return root


def test_a_sweep_on_both_stores_finds_no_loss_of_int8(labelled):
    """Scores are those of the same splits and seeds; no test is significant."""
    stores = [open_store(labelled / name) for name in ("int8", "float32")]
    loss = compare_sweeps(*stores, load_sweep_config(QUICK))
    assert [item.layer for item in loss.candidates] == [1, 2, 3, "weighted"]
    assert loss.candidates[1].reference > 0.8
    for item in (*loss.candidates, loss.mean):
        assert item.difference == pytest.approx(item.stored - item.reference)
        assert item.low <= item.difference <= item.high
    assert loss.mean.stored == pytest.approx(np.mean([item.stored for item in loss.candidates]))
    assert loss.noticed == ()
    line = verdict(compared(labelled / "int8", labelled / "float32"), loss)
    assert line.startswith("int8 loses nothing that a probe of this data notices: ks accuracy")
    assert "of 5 tests" in line


def test_a_sweep_notices_a_layer_that_has_lost_the_words(labelled):
    """The difference of that layer is significant, and the verdict names the cost."""
    stores = [open_store(labelled / name) for name in ("broken", "float32")]
    loss = compare_sweeps(*stores, load_sweep_config([*QUICK, "layers=[1,2]", "weighted=false"]))
    assert [item.layer for item in loss.candidates] == [1, 2]
    assert [item.layer for item in loss.noticed] in ([2, None], [None, 2], [2])
    difference = loss.candidates[1]
    assert difference.p_value < 0.05 / 3
    assert difference.high < -0.2
    line = verdict(compared(labelled / "broken", labelled / "float32"), loss)
    assert line.startswith("int8 costs this task: ks accuracy changes by -0.")
    sure = [replace(item, p_value=1 / 20_001) for item in (loss.mean, difference)]
    for seed_error, text in ((0.0, ", p < 0.0001), by"), (9.0, "smallest p < 0.0001 of 2 tests")):
        mean, item = (replace(one, seed_error=seed_error) for one in sure)
        bound = replace(loss, mean=mean, candidates=(item,))
        assert text in verdict(compared(labelled / "broken", labelled / "float32"), bound)
    backwards = compare_sweeps(
        *stores[::-1], load_sweep_config([*QUICK, "layers=[2]", "weighted=false"])
    )
    assert backwards.candidates[0].difference == pytest.approx(-difference.difference)
    assert "helps this task" in verdict(
        compared(labelled / "float32", labelled / "broken"), backwards
    )


def test_sweeps_match_utterances_by_id(labelled, tmp_path):
    """A reference in another order gives the scores of the same order."""
    random = np.random.default_rng(0)
    classes = [row % 4 for row in range(160)]
    order = random.permutation(160)
    features = planted(classes)
    make_store(
        tmp_path / "shuffled",
        [3] * 160,
        dim=16,
        codec=FLOAT32,
        features=lambda row, *rest: features(int(order[row]), *rest),
        ids=[f"utt-{row:04d}" for row in order],
        columns=pa.table({"word": ["unused"] * 160}),
    )
    store, other, _ = in_common(open_store(labelled / "float32"), open_store(tmp_path / "shuffled"))
    config = load_sweep_config([*QUICK, "layers=[2]", "weighted=false"])
    [item] = compare_sweeps(store, other, config).candidates
    assert (item.difference, item.p_value) == (0.0, 1.0)


def test_the_reference_selects_the_learning_rates(labelled):
    """On the store, heads are trained only at the rate that dev of the reference has selected."""

    class Counter(Observer):
        seen = ()

        def head_trained(self, done, total):
            self.seen = (*self.seen, (done, total))

    counter = Counter()
    stores = [open_store(labelled / name) for name in ("int8", "float32")]
    config = load_sweep_config([*QUICK, "task.lrs=[1e-2,1e-3,1e-9]", "layers=[1,2]"])
    loss = compare_sweeps(*stores, config, counter)
    # 3 candidates, 2 seeds: 18 heads on the reference, 6 on the store
    assert counter.seen[0] == (0, 24)
    assert counter.seen[-1] == (24, 24)
    assert loss.candidates[1].stored > 0.8


def test_frame_tasks_compare_error_rates(tmp_path):
    """Heads of both stores are scored by symbols, and more errors are a cost."""
    columns = pa.table({"text": ["ab" if row % 2 else "a" for row in range(30)]})
    for name, codec in (("float32", FLOAT32), ("int8", INT8)):
        make_store(tmp_path / name, [6] * 30, columns=columns, codec=codec, features=alternating)
    settings = ["task=asr", "split.speaker=none", "seeds=[0]", "task.lrs=[1e-2]", "task.steps=2"]
    config = load_sweep_config([*settings, "layers=[2]", "task.batch=200"])
    stores = [open_store(tmp_path / name) for name in ("int8", "float32")]
    loss = compare_sweeps(*stores, config)
    assert (loss.metric, loss.higher_is_better, loss.n_test) == ("cer", False, 3)
    assert any("only 3 test utterances" in line for line in loss.warnings)
    found = compared(tmp_path / "int8", tmp_path / "float32")
    for sign, word in ((1, "costs"), (-1, "helps")):
        worse = ScoreDifference(2, 0.2, 0.2 + sign * 0.1, sign * 0.1, 0.05, 0.15, 0.001, 0.02)
        noisy = replace(worse, seed_error=0.04)
        assert "loses nothing" in verdict(found, replace(loss, candidates=(noisy,)))
        line = verdict(found, replace(loss, candidates=(worse,)))
        assert line.startswith(
            f"int8 {word} this task: asr cer changes by {sign * 0.1:+.3f} (layer"
        )


def test_sweeps_need_layers_that_both_have(labelled):
    """Others are refused by name."""
    stores = [open_store(labelled / name) for name in ("int8", "float32")]
    with pytest.raises(ConfigError, match=r"no layers \[9\]"):
        compare_sweeps(*stores, load_sweep_config([*QUICK, "layers=[9]"]))

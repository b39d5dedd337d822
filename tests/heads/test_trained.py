"""Trained heads as files: what they predict, and which files are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.heads.facts import HeadFacts
from pipeline.heads.trained import TrainedHead
from pipeline.store.format.codecs import codec_of
from pipeline.store.format.pooling import STATISTICS, pool

DIM = 3
FACTS = HeadFacts(
    task="ic",
    kind="utterance",
    metric="accuracy",
    labels=("action", "object"),
    classes=(("off", "on"), ("door", "lamp", "tür")),
    tokens=None,
    pooling=("mean",),
    normalize=False,
    layer=4,
    layers=(4,),
    dim=DIM,
    frame_rate_hz=50.0,
    identity={"encoder": {"model": "tiny"}},
    weights="random",
    model={},
    dev=0.5,
    test=0.25,
    lr=0.01,
    seed=0,
    fold=0,
    key="k",
    strata="1",
)
RANDOM = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(shape, generator=RANDOM)


def head(facts=FACTS, **tensors):
    """A head of two label columns; further or other tensors by name."""
    return TrainedHead(facts, {"weight": randn(5, facts.n_inputs), "bias": randn(5)} | tensors)


def test_a_head_is_read_as_it_was_written(tmp_path):
    """Facts and tensors are equal, and equal heads give equal bytes."""
    first = head()
    first.save(tmp_path / "a.safetensors")
    read = TrainedHead.load(tmp_path / "a.safetensors")
    assert read.facts == first.facts
    assert all(torch.equal(read.tensors[name], first.tensors[name]) for name in first.tensors)
    read.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_each_label_column_has_its_most_probable_class():
    """The probabilities are softmaxes over the outputs of their column."""
    weight = torch.zeros(5, DIM)
    found = head(weight=weight, bias=torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0]))(randn(1, 7, DIM))
    assert found.labels == ("on", "tür")
    expected = [np.e / (1 + np.e), np.exp(3) / (np.exp(2) + 1 + np.exp(3))]
    assert found.scores == pytest.approx(expected)


def test_statistics_over_frames_are_those_of_a_store():
    """All five, one after the other, to the last bit but for the deviation."""
    facts = replace(FACTS, pooling=STATISTICS)
    frames = randn(1, 9, DIM)
    codec = codec_of("float32")
    values = frames.numpy()
    pooled = pool(codec, values, codec.measure(values), STATISTICS)  # [statistic, layer, dim]
    one = head(facts)
    (expected,) = one.of_pooled(torch.from_numpy(pooled).transpose(0, 1).flatten(1)[None])
    assert one(frames).scores == pytest.approx(expected.scores, abs=1e-6)


def test_a_weighted_sum_mixes_the_layers_first():
    """With all the weight on one layer, the head predicts as on that layer."""
    facts = replace(FACTS, layer="weighted", layers=(1, 4))
    features, tensors = randn(2, 5, DIM), {"weight": randn(5, DIM), "bias": randn(5)}
    mixed = head(facts, **tensors, layer_weights=torch.tensor([0.0, 1.0]))
    assert mixed(features) == head(**tensors)(features[1:])


TEXT = replace(
    FACTS, kind="frames", labels=("text",), classes=((" ", "a", "b"),), tokens="characters"
)


def test_a_transcript_merges_repeats_and_drops_blanks():
    """Frames `b b _ b a` are the text bba."""
    outputs = torch.eye(4)[[3, 3, 0, 3, 2]]  # [frame, symbol]; 0 is the blank
    facts = replace(TEXT, dim=4)
    found = TrainedHead(facts, {"weight": torch.eye(4), "bias": torch.zeros(4)})(outputs[None])
    assert found.transcript == "bba"


def test_frames_are_normalised_if_they_were_in_training():
    """A large constant part of a frame has no effect."""
    facts = replace(TEXT, dim=4, normalize=True)
    one = TrainedHead(facts, {"weight": torch.eye(4), "bias": torch.zeros(4)})
    outputs = torch.eye(4)[[3, 2, 0]]
    assert one(outputs[None] * 0.01 + 1000).transcript == "ba"


def test_a_regression_has_the_unit_of_its_labels():
    """Outputs are multiplied by the deviations, and the means added."""
    facts = replace(FACTS, kind="regression", labels=("age",), classes=((),))
    tensors = {"weight": torch.zeros(1, DIM), "bias": torch.tensor([2.0])}
    units = {"means": torch.tensor([30.0]), "deviations": torch.tensor([10.0])}
    assert TrainedHead(facts, tensors | units)(randn(1, 4, DIM)).values == (50.0,)


def test_verification_compares_directions_from_the_mean():
    """Opposite directions have the cosine -1; other heads have none."""
    facts = replace(FACTS, kind="verification", head="cosine", labels=("speaker",), classes=((),))
    one = TrainedHead(facts, {"mean": torch.ones(DIM, dtype=torch.float64)})
    up, down = (one(torch.full((1, 2, DIM), value)) for value in (3.0, -7.0))
    assert up.cosine(down) == pytest.approx(-1.0)
    with pytest.raises(ConfigError, match="only the predictions of a verification head"):
        up.cosine(head()(randn(1, 2, DIM)))


@pytest.mark.parametrize(
    ("facts", "tensors", "message"),
    [
        (FACTS, {"weight": torch.zeros(4, DIM)}, r"weight has the shape \[4, 3\]; expected \[5, 3"),
        (FACTS, {"bias": torch.full((5,), float("nan"))}, "bias has values that are not finite"),
        (FACTS, {"extra": torch.zeros(1)}, r"it has the tensors .*extra.*; expected \['bias'"),
        (replace(FACTS, layer="weighted"), {}, "expected .*'layer_weights'"),
        (replace(FACTS, layers=(1, 2)), {}, r"it reads one layer, and names \[1, 2\]"),
        (replace(FACTS, kind="word"), {}, "its kind is 'word'; expected utterance, regression"),
        (
            replace(FACTS, head="lstm"),
            {},
            "its form is 'lstm'; expected linear, mlp, att",
        ),
        (replace(FACTS, test=float("nan")), {}, "its scores are not finite"),
    ],
)
def test_a_head_that_cannot_predict_is_refused(facts, tensors, message):
    """With the layer, and what is wrong."""
    with pytest.raises(ConfigError, match=message):
        head(facts, **tensors)


def test_features_of_another_shape_are_refused():
    """The message has both shapes."""
    for features in (randn(2, 5, DIM), randn(1, 5, DIM + 1), randn(1, 0, DIM), randn(5, DIM)):
        with pytest.raises(ConfigError, match=r"expected \[1, n_frames, 3\], of the layers \[4\]"):
            head()(features)


def test_statistics_of_another_shape_are_refused():
    """The message has both shapes; a head on frames takes no statistics."""
    for pooled in (randn(2, 1, DIM + 1), randn(2, 2, DIM), randn(2, DIM)):
        with pytest.raises(ConfigError, match=r"expected \[n_items, 1, 3\], and a head that"):
            head().of_pooled(pooled)
    text = TrainedHead(replace(TEXT, dim=4), {"weight": torch.eye(4), "bias": torch.zeros(4)})
    with pytest.raises(ConfigError, match="and a head that does not need frames"):
        text.of_pooled(randn(2, 1, 4))


def test_frames_for_a_head_on_statistics_are_refused():
    """The outputs of the first frame would look like those of the utterance."""
    with pytest.raises(ConfigError, match=r"utterance and the form linear gets stat.*of_pooled"):
        head().of_frames([randn(1, 5, DIM)])


def test_other_files_are_refused(tmp_path):
    """A missing file, text, other tensors, a cut file, a newer version, a damaged description."""
    path = tmp_path / "head.safetensors"
    with pytest.raises(ConfigError, match=r"holds no trained head .*expected a file that `strata"):
        TrainedHead.load(path)
    path.write_text("text")
    with pytest.raises(ConfigError, match="holds no trained head"):
        TrainedHead.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="holds no trained head"):
        TrainedHead.load(path)
    head().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ConfigError, match="holds no trained head"):
        TrainedHead.load(path)
    for change, message in (
        ({"version": 3}, "version 3; this Strata reads version 1 and 2: use the newer"),
        ({"classes": None}, "whose description is damaged"),
        ({"dim": 4}, r"expected \[5, 4\]; run the sweep again"),
    ):
        document = json.loads(_metadata(whole))
        save_file(dict(head().tensors), path, {"strata_head": json.dumps(document | change)})
        with pytest.raises(ConfigError, match=message):
            TrainedHead.load(path)


def _metadata(content: bytes) -> str:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]["strata_head"]

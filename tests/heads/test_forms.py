"""Forms of trained heads, compared with modules of torch that have the same parameters."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ConfigError
from pipeline.heads.networks import PooledAttentive
from pipeline.heads.trained import TrainedHead
from tests.heads.test_trained import DIM, FACTS, TEXT

WIDTH, UNITS, KEYS = 4, 3, 6


def linear_tensors(name, layer):
    """Return the parameters of a linear layer, by the names of a head."""
    return {f"{name}weight": layer.weight.detach(), f"{name}bias": layer.bias.detach()}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mlp():
    return nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5))


def mlp_tensors(module):
    return linear_tensors("hidden_", module[0]) | linear_tensors("", module[2])


@torch.no_grad()
def expected_scores(outputs):
    """Return the largest probability in each of the two columns of `FACTS`."""
    return [float(part.softmax(0).max()) for part in (outputs[:2], outputs[2:])]


def test_an_mlp_on_statistics():
    """Two linear layers with a rectifier between them, of pooled features."""
    module, features = mlp(), torch.randn(1, 7, DIM)
    one = TrainedHead(replace(FACTS, head="mlp"), mlp_tensors(module))
    assert one(features).scores == pytest.approx(expected_scores(module(features[0].mean(0))))


def test_an_mlp_on_a_weighted_sum_of_frames():
    """A transcript of the frames of the sum, each through the network."""
    module, features = mlp(), torch.randn(2, 40, DIM)
    weights = torch.tensor([0.25, 0.75])
    facts = replace(TEXT, head="mlp", layer="weighted", layers=(1, 4), classes=(tuple("abcd"),))
    one = TrainedHead(facts, mlp_tensors(module) | {"layer_weights": weights})
    path = module(0.25 * features[0] + 0.75 * features[1]).argmax(1).tolist()
    runs = [n for n, before in zip(path, [0, *path], strict=False) if n != before]
    assert one(features).transcript == "".join("-abcd"[n] for n in runs if n)
    assert one(features).transcript


def test_attentive_statistics():
    """Mean and deviation over frames, weighted by a softmax over frames, computed in a loop."""
    project, attend, out = nn.Linear(DIM, WIDTH), nn.Linear(WIDTH, KEYS), nn.Linear(2 * WIDTH, 5)
    vector, features = torch.randn(KEYS), torch.randn(1, 7, DIM)
    tensors = linear_tensors("projection_", project) | linear_tensors("attention_", attend)
    tensors |= linear_tensors("", out) | {"attention_vector": vector}
    one = TrainedHead(replace(FACTS, head="attentive"), tensors)
    assert not one.facts.is_pooled
    frames = [project(frame) for frame in features[0]]
    energies = torch.stack([vector @ torch.tanh(attend(frame)) for frame in frames])
    alphas = (energies.exp() / energies.exp().sum()).tolist()
    mean = sum(a * frame for a, frame in zip(alphas, frames, strict=True))
    variance = sum(a * (frame - mean) ** 2 for a, frame in zip(alphas, frames, strict=True))
    outputs = out(torch.cat([mean, variance.clamp(min=1e-5).sqrt()]))
    assert one(features).scores == pytest.approx(expected_scores(outputs), rel=1e-5)
    alone = TrainedHead(replace(FACTS, head="attentive"), tensors)(features[:, :1])
    flat = out(torch.cat([frames[0], torch.full((WIDTH,), 1e-5).sqrt()]))
    assert alone.scores == pytest.approx(expected_scores(flat), rel=1e-4)  # no deviation: the floor


def test_attention_over_frames_far_from_zero():
    """A deviation that is small beside the mean is that of training, not lost in rounding."""
    network = PooledAttentive(DIM, 5, WIDTH)
    with torch.no_grad():
        network.projector.bias.fill_(100.0)
        network.output.weight[:, :WIDTH] = 0  # the deviation alone decides
        network.output.weight[:, WIDTH:] *= 20
    features = 0.05 * torch.randn(1, 40, DIM)
    tensors = {name: value.detach().clone() for name, value in network.tensors().items()}
    with torch.no_grad():
        exact = network.double()(features.double())[0]
    one = TrainedHead(replace(FACTS, head="attentive"), tensors)
    assert one(features).scores == pytest.approx(expected_scores(exact), rel=1e-5)


def test_an_attentive_regression_has_the_unit_of_its_labels():
    """Each utterance has its own attention; the output is scaled."""
    project, attend, out = nn.Linear(DIM, WIDTH), nn.Linear(WIDTH, KEYS), nn.Linear(2 * WIDTH, 1)
    nn.init.zeros_(out.weight)
    nn.init.constant_(out.bias, 2)
    tensors = linear_tensors("projection_", project) | linear_tensors("attention_", attend)
    tensors |= linear_tensors("", out) | {"attention_vector": torch.randn(KEYS)}
    tensors |= {"means": torch.tensor([30.0]), "deviations": torch.tensor([10.0])}
    facts = replace(FACTS, kind="regression", head="attentive", labels=("age",), classes=((),))
    assert TrainedHead(facts, tensors)(torch.randn(1, 4, DIM)).values == (50.0,)


FRAMEWISE = replace(
    FACTS,
    kind="framewise",
    labels=("turns.rttm",),
    classes=(("speech", "silence"),),
    first_centre_s=0.0125,
)


def lstm_tensors(n_outputs):
    """Return a recurrent head as modules and as tensors."""
    project, out = nn.Linear(DIM, WIDTH), nn.Linear(2 * UNITS, n_outputs)
    lstm = nn.LSTM(WIDTH, UNITS, 2, bidirectional=True, batch_first=True)
    tensors = linear_tensors("projection_", project) | linear_tensors("", out)
    tensors |= {f"lstm.{name}": value.detach() for name, value in lstm.named_parameters()}
    return lambda frames: out(lstm(project(frames)[None])[0][0]), tensors


def test_a_recurrent_head_on_frames():
    """The frames of an utterance in both directions, and the class of each."""
    module, tensors = lstm_tensors(2)
    features = torch.randn(1, 30, DIM)
    one = TrainedHead(replace(FRAMEWISE, head="lstm"), tensors)
    with torch.no_grad():
        outputs = module(features[0])
    spread = [s.label for s in one(features).spans for _ in range(s.first, s.last)]
    assert spread == [FRAMEWISE.classes[0][n] for n in outputs.argmax(1).tolist()]
    first = one(features).spans[0]
    probabilities = outputs.softmax(1).amax(1)[: first.last]
    assert first.score == pytest.approx(float(probabilities.mean()), rel=1e-5)
    text = replace(TEXT, head="lstm", classes=(("a",),))
    runs = outputs.argmax(1).unique_consecutive().tolist()
    assert TrainedHead(text, tensors)(features).transcript == "a" * sum(n == 1 for n in runs)


def test_frames_of_one_class_are_a_span():
    """Spans cover all frames, meet between two centres, and have the mean probability."""
    facts = replace(FRAMEWISE, dim=2)
    one = TrainedHead(facts, {"weight": torch.eye(2), "bias": torch.zeros(2)})
    frames = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
    speech, silence, last = one(frames[None]).spans
    assert [s[:3] for s in (speech, silence, last)] == [
        (0.0, 0.0425, "speech"),  # centres are at 12.5, 32.5, 52.5 and 72.5 ms
        (0.0425, 0.0625, "silence"),
        (0.0625, 0.0825, "speech"),
    ]
    assert [(s.first, s.last) for s in (speech, silence, last)] == [(0, 2), (2, 3), (3, 4)]
    p = [float(torch.tensor([x, 0.0]).softmax(0)[0]) for x in (2, 1)]
    assert speech.score == pytest.approx(sum(p) / 2)
    (whole,) = one(frames[None, :2]).spans
    assert (whole.start_s, whole.stop_s, whole.last) == (0.0, 0.0425, 2)


@pytest.mark.parametrize(
    ("facts", "change", "message"),
    [
        (replace(FACTS, head="mlp"), {"hidden_bias": torch.zeros(3)}, r"hidden_bias .*\[4\]"),
        (replace(FACTS, head="mlp"), {"weight": torch.zeros(5, 3)}, r"weight has .*\[5, 4\]"),
        (replace(FACTS, head="attentive"), {}, "expected .*'attention_bias'.*'projection_bias'"),
        (replace(FRAMEWISE, head="mlp"), {}, r"bias has the shape \[5\]; expected \[2\]"),
        (replace(FRAMEWISE, head="lstm"), {}, "expected .*'lstm.bias_hh_l0'"),
        (replace(TEXT, head="attentive"), {}, "'attentive'; expected linear, mlp, lstm for the"),
    ],
)
def test_tensors_of_another_form_are_refused(facts, change, message):
    """The message names the tensor and both shapes, or the forms that there are."""
    with pytest.raises(ConfigError, match=message):
        TrainedHead(facts, mlp_tensors(mlp()) | change)


def test_an_lstm_of_other_sizes_is_refused():
    """Each of its tensors fits the units and the projection."""
    _, tensors = lstm_tensors(2)
    for name in ("lstm.weight_ih_l1_reverse", "weight", "lstm.weight_hh_l0"):
        with pytest.raises(ConfigError, match="has the shape"):
            TrainedHead(
                replace(FRAMEWISE, head="lstm"), tensors | {name: tensors[name][:, :-1].clone()}
            )


def test_files_of_earlier_versions_are_linear(tmp_path):
    """Linear heads are still files of version 1; those of verification have the form they show."""
    path = tmp_path / "head.safetensors"
    cosine = replace(FACTS, kind="verification", head="cosine", labels=("s",), classes=((),))
    lda = replace(cosine, head="lda")
    mean, projection = torch.zeros(DIM), torch.zeros(DIM, 2)
    linear = {"weight": torch.zeros(5, DIM), "bias": torch.zeros(5)}
    for facts, tensors, version in (
        (FACTS, linear, 1),
        (cosine, {"mean": mean}, 1),
        (lda, {"mean": mean, "projection": projection}, 1),
        (replace(FACTS, head="mlp"), mlp_tensors(mlp()), 2),
        (FRAMEWISE, {"weight": torch.zeros(2, DIM), "bias": torch.zeros(2)}, 2),
    ):
        TrainedHead(facts, tensors).save(path)
        size = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + size])
        document = json.loads(header["__metadata__"]["strata_head"])
        assert document["version"] == version
        assert TrainedHead.load(path).facts == facts
        if version == 1:  # as an earlier version wrote it
            for later in ("head", "first_centre_s", "unlabelled"):
                del document[later]
            save_file(load_file(path), path, {"strata_head": json.dumps(document)})
            assert TrainedHead.load(path).facts == facts

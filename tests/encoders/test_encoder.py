"""`SpeechEncoder` against torchaudio, one clip at a time: batches, layers, weights, identity."""

from __future__ import annotations

import argparse
import json
import urllib.error
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.encoders.clips import encode_clips
from pipeline.encoders.kernels import cpu
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.kernels.reference import ReferenceKernels
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.settings import choose_layers
from pipeline.encoders.wav2vec2.bundles import find_model
from pipeline.encoders.wav2vec2.weights import fill_model, load_model
from pipeline.errors import ConfigError, EncoderError, WeightsError
from tests.helpers.encoder_kinds import (
    ALL_KINDS,
    KINDS,
    WITH_REFERENCE,
    randomize,
    reference,
    small_encoder,
    small_spec,
    speech,
)

LIMIT = 1e-5  # relative error per layer that DESIGN allows against one-by-one torchaudio


@pytest.fixture(scope="module")
def true_base():
    """The true HuBERT base architecture, random weights, layers 0..12, fp32."""
    return load_encoder("hubert_base", "random", layers="superb", device="cpu")


def mixed_batch():
    """A loud long clip, quiet and short ones, one frame, and less than a frame."""
    return [
        speech(24_000, 1, amplitude=0.5),
        speech(8_123, 2, amplitude=0.01),
        speech(15_997, 3) + 0.2,
        speech(400, 4),
        F.pad(speech(300, 5), (0, 100)),
    ]


def assert_equal_to_torchaudio(encoder, waveforms, found):
    blocks = [i for i, layer in enumerate(encoder.layers) if layer > 0]
    numbers = [encoder.layers[i] - 1 for i in blocks]
    for features, waveform in zip(found, waveforms, strict=True):
        expected = reference(encoder, waveform)[numbers]
        assert features.shape == (len(encoder.layers), expected.shape[1], encoder.dim)
        assert relative_errors(features[blocks], expected).max() <= LIMIT


@pytest.mark.slow
def test_true_hubert_base_in_a_mixed_batch_equals_torchaudio(true_base):
    """Every layer of every utterance in a batch equals torchaudio's for the unpadded utterance."""
    waveforms = mixed_batch()
    assert_equal_to_torchaudio(true_base, waveforms, true_base(waveforms))


def test_true_hubert_base_in_an_equal_batch_equals_torchaudio(true_base):
    """Utterances of equal length share attention calls, with the same result."""
    waveforms = [speech(12_000, seed, amplitude=10.0**-seed) for seed in range(3)]
    assert_equal_to_torchaudio(true_base, waveforms, true_base(waveforms))


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_batch_mates_change_nothing(name):
    """For every kind of model, in any order of the batch."""
    encoder = small_encoder(name)
    waveforms = mixed_batch()
    assert_equal_to_torchaudio(encoder, waveforms, encoder(waveforms))
    assert_equal_to_torchaudio(encoder, waveforms[::-1], encoder(waveforms[::-1]))


def test_stock_batching_has_errors_of_percents(true_base):
    """Torchaudio's padded batch with `lengths` contaminates short clips: the trap exists."""
    short, long = speech(8_000, 2), speech(24_000, 1)
    batch = torch.stack([F.pad(short, (0, 16_000)), long])
    with torch.inference_mode():
        layers, counts = true_base._model.extract_features(batch, torch.tensor([8_000, 24_000]))
    stock = torch.stack(layers)[:, 0, : counts[0]]
    assert relative_errors(stock, reference(true_base, short)).max() > 1e-2


@pytest.mark.parametrize("scores", [1, 2**26])
@pytest.mark.parametrize("name", ["wavlm_base", "wavlm_large", "hubert_base"])
def test_neighbours_of_equal_length_attend_together_or_in_parts(name, scores, monkeypatch):
    """However many utterances of equal length share an attention call, the features are equal."""
    monkeypatch.setattr("pipeline.encoders.kernels.cpu._SCORES", scores)
    encoder = small_encoder(name)
    waveforms = [speech(6_000, seed) for seed in range(3)] + mixed_batch() + [speech(6_000, 7)]
    assert_equal_to_torchaudio(encoder, waveforms, encoder(waveforms))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 400))
def test_spans_cover_all_rows_in_order(counts, scores):
    """Each span holds whole utterances of one length, limited by the number of scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_SCORES", scores)
        spans = cpu.find_spans(tuple(counts), n_heads=2)
    assert [span.n_frames for span in spans for _ in range(span.n_clips)] == counts
    edges = [0, *np.cumsum([span.n_clips * span.n_frames for span in spans]).tolist()]
    assert [span.rows for span in spans] == [slice(*edge) for edge in pairwise(edges)]
    for span in spans:
        assert span.n_clips == 1 or 2 * span.n_clips * span.n_frames**2 <= scores


@pytest.mark.parametrize("name", KINDS)
def test_chosen_layers_are_those_of_the_full_run(name):
    """Layers 0, 2 and 3 equal the same rows of layers 0..N."""
    chosen, whole = small_encoder(name, layers=[3, 0, 2]), small_encoder(name, layers="superb")
    assert chosen.layers == (0, 2, 3)
    waveforms = [speech(5_000), speech(9_000, 1)]
    for few, every in zip(chosen(waveforms), whole(waveforms), strict=True):
        torch.testing.assert_close(few, every[[0, 2, 3]])


def test_computation_stops_after_the_deepest_layer():
    """Blocks beyond the deepest chosen layer are not run: their weights may be NaN."""
    encoder = small_encoder("hubert_base", layers=[1, 2])
    encoder._model.encoder.transformer.layers[2] = None
    [features] = encoder([speech(4_000)])
    assert features.isfinite().all()


def test_large_models_keep_the_last_layer_raw():
    """The last layer is the raw output of its block; `final_norm` holds the norm."""
    encoder = small_encoder("wav2vec2_large_lv60k")
    waveform = speech(6_000)
    [features] = encoder([waveform])
    norm = encoder.final_norm
    with torch.inference_mode():
        normed = F.layer_norm(
            features[-1], (encoder.dim,), norm["weight"], norm["bias"], norm["eps"]
        )
        # torchaudio's forward, unlike its extract_features, goes through the final norm
        expected, _ = encoder._model(F.layer_norm(waveform, waveform.shape)[None])
    assert ((normed - expected[0]).abs().max() / expected.abs().max()).item() < LIMIT
    assert small_encoder("hubert_base").final_norm is None


@pytest.mark.parametrize(
    "layers",
    ["some", "", [], [0, 13], [-2], [1, 1], [1.0], [True]],
)
def test_impossible_layers_are_refused(layers):
    """Misspelt words, empty choices, layers that the model lacks, repeated or fractional ones."""
    with pytest.raises(ConfigError, match="expected all, superb, or a list of layers 0 to"):
        choose_layers(layers, find_model("tiny").describe())


def test_a_layer_counted_from_the_end_is_refused_with_the_last_one():
    """-2 is no layer, and the message has the number of the last block."""
    message = r"no layer -2; .*do not count from the end: the last layer is 12$"
    with pytest.raises(ConfigError, match=message):
        choose_layers([-2], find_model("tiny").describe())


def test_settings_are_checked_before_weights_are_fetched():
    """A wrong precision or window is reported without a download."""
    with pytest.raises(ConfigError, match="precision='int8'"):
        load_encoder("hubert_base", "pretrained", precision="int8")
    with pytest.raises(ConfigError, match="max_window_s"):
        load_encoder("hubert_base", "pretrained", max_window_s=8, context_s=5)


def test_random_weights_depend_on_the_seed_only():
    """The same seed gives the same weights, and the global generator is not changed."""
    torch.manual_seed(7)
    expected_draw = torch.rand(3)
    torch.manual_seed(7)
    first = load_encoder("tiny", "random", seed=3)
    assert torch.equal(torch.rand(3), expected_draw)
    second, other = load_encoder("tiny", "random", seed=3), load_encoder("tiny", "random", seed=4)
    assert first.identity == second.identity != other.identity
    assert first.is_random


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_a_state_dict_from_a_file_is_the_same_encoder(tmp_path, suffix):
    """Saved and loaded weights give the same digest and features, and do not count as random."""
    source = load_encoder("tiny", "random")
    path = tmp_path / f"weights.{suffix}"
    state = source._model.state_dict()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    loaded = load_encoder("tiny", path)
    assert not loaded.is_random
    assert loaded.identity["weights"]["sha256"] == source.identity["weights"]["sha256"]
    waveform = speech(4_000)
    assert torch.equal(loaded([waveform])[0], source([waveform])[0])


def test_a_wrapped_model_with_a_head_and_old_names_fits():
    """Prefixes of normalising bundles, CTC heads and old names of weight_norm are accepted."""
    spec = find_model("tiny")
    state = load_model(spec, "random", 0).model.state_dict()
    at = "encoder.transformer.pos_conv_embed.conv."
    old = {
        f"{at}parametrizations.weight.original0": f"{at}weight_g",
        f"{at}parametrizations.weight.original1": f"{at}weight_v",
    }
    published = {f"model.{old.get(name, name)}": tensor for name, tensor in state.items()}
    published["model.aux.weight"] = torch.zeros(29, 48)
    loaded = fill_model(spec, published, "file", "a checkpoint")
    assert loaded.sha256 == load_model(spec, "random", 0).sha256


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    """The message names the first missing, unknown and misshapen weights, with their shapes."""
    state = load_model(find_model("tiny"), "random", 0).model.state_dict()
    state["encoder.feature_projection.projection.weight"] = torch.zeros(48, 16)
    del state["encoder.feature_projection.projection.bias"]
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(WeightsError) as caught:
        load_encoder("tiny", tmp_path / "wrong.pt")
    message = str(caught.value)
    assert "projection.bias is missing" in message
    assert "extra is not part of the model" in message
    assert "has shape [48, 16], expected [48, 32]" in message
    with pytest.raises(WeightsError, match=r"do not fit wavlm_base: .*; and \d+ more"):
        fill_model(find_model("wavlm_base"), state, "file", "it")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_unreadable_weights_are_a_one_line_error(tmp_path, suffix):
    """Empty and corrupt files raise a WeightsError; a path without a file is a wrong setting."""
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(ConfigError, match="there are no weights at"):
        load_encoder("tiny", path)
    for content in (b"", b"neither format"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot read the weights at") as caught:
            load_encoder("tiny", path)
        assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    """Other objects in a state dict than tensors are an error; nothing of them is called."""
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1), "hook": len}, path)
    with pytest.raises(WeightsError, match="cannot read the weights at"):
        load_encoder("tiny", path)


def test_without_a_network_the_remedies_are_named(monkeypatch):
    """The error of a failed download names the other sources of weights."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"Name or service.*weights=PATH.*weights=random"):
        load_encoder("wav2vec2_base", "pretrained")
    with pytest.raises(ConfigError, match="tiny has no pretrained weights"):
        load_encoder("tiny", "pretrained")


def test_pretrained_weights_go_through_the_bundle(monkeypatch):
    """The wrapper and the head of a fine-tuned, normalising bundle are removed."""
    spec = find_model("wav2vec2_asr_large_lv60k_960h")
    small = small_spec(spec.name)
    donor = randomize(small.build())

    class Bundle:
        def get_model(self):
            model = torchaudio.models.wav2vec2_model(**small.params, aux_num_out=29)
            model.load_state_dict(donor.state_dict(), strict=False)
            wrap = torchaudio.pipelines._wav2vec2.utils._extend_model
            return wrap(model, normalize_waveform=True)

    monkeypatch.setattr(torchaudio.pipelines, spec.bundle, Bundle())
    loaded = load_model(replace(small, bundle=spec.bundle), "pretrained", 0)
    assert loaded.source == "pretrained"
    for name, tensor in donor.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_identity_is_json_and_holds_all_that_changes_a_feature():
    """Layers, precision, windows, weights and model change it; it holds no device."""
    base = load_encoder("tiny", "random")
    assert json.loads(json.dumps(base.identity)) == base.identity
    for change in (
        {"layers": [1]},
        {"precision": "bf16"},
        {"max_window_s": 20.0},
        {"context_s": 3.0},
        {"seed": 1},
    ):
        assert load_encoder("tiny", "random", **change).identity != base.identity
    assert "device" not in json.dumps(base.identity)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(0), "without samples"),
        (torch.zeros(1, 400), "2-dimensional float32"),
        (torch.zeros(400, dtype=torch.float64), "1-dimensional float64"),
    ],
)
def test_other_tensors_than_waveforms_are_refused(waveform, message):
    """Empty, multi-channel and float64 tensors raise an EncoderError."""
    encoder = load_encoder("tiny", "random")
    with pytest.raises(EncoderError, match=message):
        encoder([waveform])
    with pytest.raises(EncoderError, match=message):
        encoder.encode_batch([waveform])


def test_features_can_be_trained_on():
    """The encoder returns ordinary tensors, which autograd can save and which are writable."""
    [features] = load_encoder("tiny", "random")([speech(4_000)])
    weights = torch.zeros(12, requires_grad=True)
    (weights.softmax(0)[:, None, None] * features).sum().backward()
    features.mul_(2)
    assert weights.grad is not None


def test_a_batch_without_waveforms_is_refused():
    """The error names the expected number."""
    with pytest.raises(EncoderError, match="expected at least 1"):
        small_encoder("hubert_base").encode_batch([])


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_a_batch_in_an_unknown_precision_is_refused(precision):
    """When the batch is given; "auto" is a setting of an encoder and no precision of a batch."""
    expected = rf"precision='{precision}' is not one of fp32, tf32, bf16, fp16, fp64"
    with pytest.raises(ConfigError, match=expected):
        small_encoder("hubert_base").encode_batch([speech(16_000)], precision=precision)


@pytest.mark.parametrize("entries", [{"args": argparse.Namespace(arch="hubert")}, {"cfg": None}])
def test_a_checkpoint_of_fairseq_is_named_as_one(tmp_path, entries):
    """The error names what it lacks, and shows nothing of torch's advice to trust the file."""
    path = tmp_path / "hubert_base_ls960.pt"
    torch.save({**entries, "model": {"encoder.layers.0.fc1.bias": torch.zeros(8)}}, path)
    with pytest.raises(
        WeightsError, match=r"checkpoint of fairseq\) do not fit hubert_base: .* is missing"
    ) as caught:
        load_model(find_model("hubert_base"), path, 0)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ALL_KINDS)
def test_the_operations_of_gpus_give_the_same_features(name, precision):
    """The whole GPU path, run on the CPU, against the plain one in float64."""
    waveforms = [speech(20_000), 30 * speech(30_123, 2), speech(160, 3), speech(719, 4) + 0.4]
    encoder, plain = small_encoder(name), small_encoder(name)
    encoder._kernels, plain._kernels = CudaKernels(), ReferenceKernels()
    limit = {"fp64": 1e-12, "fp32": 3e-6, "bf16": 6e-2, "fp16": 6e-3}[precision]
    expected = encode_clips(plain, waveforms, precision="fp64")
    for found, exact in zip(
        encode_clips(encoder, waveforms, precision=precision), expected, strict=True
    ):
        assert relative_errors(found, exact).max() <= limit


def test_the_operations_of_gpus_take_windows_of_long_audio():
    """Windows come with the moments of their utterance; whole clips of the batch have their own."""
    waveform, clip = speech(5 * 16_000), 0.1 * speech(9_000, 1) + 0.2
    encoder = small_encoder("hubert_base", max_window_s=2.0, context_s=0.5)
    stats = encoder.utterance_stats(waveform)
    window = encoder.windows.plan(len(waveform))[1]
    batch = [clip, waveform[window.sample_start : window.sample_stop]]
    expected = encode_clips(encoder, batch, stats=[None, stats], precision="fp64")
    encoder = small_encoder("hubert_base", max_window_s=2.0, context_s=0.5)
    encoder._kernels = CudaKernels()
    found = encode_clips(encoder, batch, stats=[None, stats], precision="fp64")
    for one, other in zip(found, expected, strict=True):
        assert relative_errors(one, other).max() <= 1e-11

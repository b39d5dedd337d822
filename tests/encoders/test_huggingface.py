"""Hugging Face checkpoints against the models of transformers."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest
import torch

from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from pipeline.errors import ConfigError, WeightsError
from tests.helpers.encoder_kinds import randomize, speech

transformers = pytest.importorskip("transformers")
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
CHECKPOINTS = {
    "wav2vec2 base": ("Wav2Vec2Model", {}, True),
    "wav2vec2 large": ("Wav2Vec2Model", LARGE, True),
    "wav2vec2 with a CTC head": ("Wav2Vec2ForCTC", LARGE, False),
    "hubert base": ("HubertModel", {}, False),
    "hubert large": ("HubertModel", LARGE, True),
    "wavlm base": ("WavLMModel", {}, False),
    "wavlm large": ("WavLMModel", LARGE, True),
    "unispeech-sat base": ("UniSpeechSatModel", {}, True),
    "unispeech-sat large": ("UniSpeechSatModel", LARGE, False),
    "unispeech base": ("UniSpeechModel", {}, True),
    "unispeech large": ("UniSpeechModel", LARGE, False),
    "data2vec": ("Data2VecAudioModel", {}, True),
    "data2vec, 2 even kernels": (
        "Data2VecAudioModel",
        {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 8, "layer_norm_eps": 0.1},
        True,
    ),
    "distilhubert": ("HubertModel", {"feat_proj_layer_norm": False}, False),
    "mhubert": ("HubertModel", {"conv_pos_batch_norm": True}, True),
    "mhubert large": ("HubertModel", LARGE | {"conv_pos_batch_norm": True}, True),
    "mms": ("Wav2Vec2ForCTC", LARGE | {"adapter_attn_dim": 8, "layer_norm_eps": 0.1}, True),
    "unispeech with adapters": ("UniSpeechModel", LARGE | {"adapter_attn_dim": 8}, True),
    "conformer": (
        "Wav2Vec2ConformerModel",
        {"hidden_act": "swish", "do_stable_layer_norm": False, "layer_norm_eps": 0.1},
        True,
    ),
    "conformer with a CTC head": (
        "Wav2Vec2ConformerForCTC",
        {"feat_extract_norm": "layer", "conv_bias": True},
        True,
    ),
    "rotary conformer": ("Wav2Vec2ConformerModel", {"position_embeddings_type": "rotary"}, True),
    "conformer without positions": (
        "Wav2Vec2ConformerModel",
        {"position_embeddings_type": None, "conv_depthwise_kernel_size": 7},
        False,
    ),
    "adapters that a base model has not": ("Wav2Vec2Model", {"adapter_attn_dim": 8}, True),
}


load_hf_encoder = partial(load_encoder, source="huggingface")


def make(folder, model_class, options, normalize, **extractor):
    """Save a small random checkpoint and return its model."""
    model_type = getattr(transformers, model_class)
    config = model_type.config_class(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[24] * 7,
        num_conv_pos_embedding_groups=8,
        vocab_size=12,
        **options,
    )
    model = randomize(model_type(config).eval())
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, **extractor).save_pretrained(
        folder
    )
    return model


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_layers_are_the_hidden_states(tmp_path, checkpoint):
    """Layers 0..N of a mixed batch equal `hidden_states` of each clip, computed in float64.

    The checkpoint's feature extractor prepares the input. transformers before 5.16 applies the
    final norm to the last hidden state of pre-norm models; later versions do not. This test notices
    another change.
    """
    model_class, options, normalize = CHECKPOINTS[checkpoint]
    model = make(tmp_path, model_class, options, normalize).double()
    last_block: list[torch.Tensor] = []
    model.base_model.encoder.layers[-1].register_forward_hook(
        lambda block, args, out: last_block.append(out[0] if isinstance(out, tuple) else out)
    )
    normed = "do_stable_layer_norm" in options and VERSION < (5, 16)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    encoder = load_hf_encoder(tmp_path, layers="superb", device="cpu")
    waveforms = [speech(12_000, 1), 0.01 * speech(5_000, 2) + 0.05, speech(400, 3)]
    for found, waveform in zip(encoder(waveforms), waveforms, strict=True):
        inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            states = model(inputs.input_values.double(), output_hidden_states=True).hidden_states
            raw = last_block.pop()
            last = model.base_model.encoder.layer_norm(raw) if normed else raw
        assert torch.equal(states[-1], last)
        expected = torch.stack([*states[:-1], raw])[:, 0]
        assert relative_errors(found, expected).max() <= 1e-5


def test_the_norms_own_epsilon_is_taken_from_the_configuration(tmp_path):
    """An unusual `layer_norm_eps` is used, and is part of the identity."""
    model = make(tmp_path, "HubertModel", {"layer_norm_eps": 0.1}, normalize=False)
    encoder = load_hf_encoder(tmp_path, layers=[3], device="cpu")
    waveform = speech(5_000)
    with torch.inference_mode():
        expected = model(waveform[None]).last_hidden_state
    assert relative_errors(encoder([waveform])[0], expected).max() <= 1e-5
    assert encoder.identity["architecture"]["layer_norm_eps"] == 0.1


def test_the_identity_holds_no_path(tmp_path):
    """The same checkpoint in two directories is the same encoder."""
    for folder in ("here", "there"):
        make(tmp_path / folder, "WavLMModel", {}, normalize=True)
    torch.manual_seed(0)
    first, second = (load_hf_encoder(tmp_path / "here"), load_hf_encoder(tmp_path / "here"))
    assert first.identity == second.identity
    assert str(tmp_path) not in json.dumps(first.identity)
    assert first.weights_source == "huggingface"
    assert not first.is_random


def test_pickles_are_read_only_with_allow_pickle(tmp_path):
    """A checkpoint with pytorch_model.bin only is refused, and loads with `allow_pickle`."""
    model = make(tmp_path, "HubertModel", {}, normalize=False)
    reference = load_hf_encoder(tmp_path, device="cpu").identity
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="Only safetensors are read unless allow_pickle"):
        load_hf_encoder(tmp_path)
    assert load_hf_encoder(tmp_path, allow_pickle=True, device="cpu").identity == reference


def test_remote_code_is_not_run(tmp_path):
    """A configuration with custom code is refused."""
    make(tmp_path, "HubertModel", {}, normalize=False)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(ConfigError, match="needs code of its own"):
        load_hf_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat_extract_norm": "batch"}, "feat_extract_norm. is batch"),
        ({"model_type": "wav2vec2-conformer"}, "lacks [0-9]+ of the weights"),
        ({"model_type": "bert"}, "is a 'bert' model, which has no encoder here"),
    ],
)
def test_another_architecture_is_refused(tmp_path, change, message):
    """What transformers or Strata cannot compute is refused; the message names it."""
    make(tmp_path, "HubertModel", {}, normalize=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises((ConfigError, WeightsError), match=message):
        load_hf_encoder(tmp_path)


def test_missing_parts_are_named(tmp_path):
    """A missing directory, preprocessor or block, and another rate, each have their message."""
    with pytest.raises(ConfigError, match="nowhere: there is no such directory"):
        load_hf_encoder(tmp_path / "nowhere")
    make(tmp_path, "HubertModel", {}, normalize=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match=r"lacks 16 of the weights.*encoder\.layers\.3"):
        load_hf_encoder(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="preprocessor_config"):
        load_hf_encoder(tmp_path)
    make(tmp_path, "HubertModel", {}, normalize=False, sampling_rate=8_000)
    with pytest.raises(ConfigError, match=r"trained at 8000 Hz.*sample_rate_hz=8000: docs/add"):
        load_hf_encoder(tmp_path)


def test_without_transformers_the_extra_is_named(monkeypatch):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'strata-speech\[hf\]'"):
        load_hf_encoder("facebook/hubert-base-ls960")

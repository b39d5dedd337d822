"""Checkpoints of fairseq, unilm and s3prl against the same weights in the form of transformers."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from tests.helpers.encoder_kinds import speech
from tests.helpers.original_checkpoints import (
    LARGE,
    fairseq_names,
    model_settings,
    save_config,
    save_data2vec,
    save_distiller,
    save_fine_tuned,
    save_namespace,
    save_s3prl,
    save_safetensors,
    save_unilm,
    small_model,
)

transformers = pytest.importorskip("transformers")

WAVLM = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 320}
SPEAKERS = {
    "spk_proj.weight": torch.zeros(4, 32),
    "encoder.layer_norm_for_extract.bias": torch.zeros(32),
}
BIAS = {**LARGE, "conv_bias": False}


def with_metadata(path, model):
    cfg = {"task": {"normalize": True}, "model": model_settings(model)}
    save_safetensors(path, model, {"format": "pt", "cfg": json.dumps(cfg)})


# Per case: the model of transformers, its options, how it is saved, whether waveforms are
# normalised, and the name of the encoder.
CASES = {
    "wav2vec 2.0 of 2020": (
        *("Wav2Vec2Model", {}, partial(save_namespace, normalize=False), False),
        "checkpoint_wav2vec2",
    ),
    "wav2vec 2.0 large of 2020, later format": (
        *("Wav2Vec2Model", LARGE, partial(save_namespace, legacy=False, normalize=True), True),
        "checkpoint_wav2vec2",
    ),
    "XLS-R and MMS": (
        *("Wav2Vec2Model", LARGE, partial(save_config, name="wav2vec2", normalize=True), True),
        "checkpoint_wav2vec2",
    ),
    "HuBERT base": (
        *("HubertModel", {}, partial(save_config, container=False), False),
        "checkpoint_hubert",
    ),
    "ContentVec, legacy": (
        *("HubertModel", {}),
        partial(save_config, name="contentvec", settings={"encoder_layers_1": 3}),
        *(False, "checkpoint_hubert"),
    ),
    "HuBERT large": (
        *("HubertModel", BIAS, partial(save_config, normalize=True), True),
        "checkpoint_hubert",
    ),
    "fine-tuned with CTC": ("Wav2Vec2Model", LARGE, save_fine_tuned, True, "checkpoint_wav2vec2"),
    "fine-tuned with a decoder": (
        *("Wav2Vec2Model", {}, partial(save_fine_tuned, prefix="encoder.", normalize=False), False),
        "checkpoint_wav2vec2",
    ),
    "WavLM base": (
        *("WavLMModel", {}, partial(save_unilm, max_distance=800, **WAVLM), False),
        "checkpoint_wavlm",
    ),
    "WavLM large": (
        *("WavLMModel", BIAS, partial(save_unilm, normalize=True, max_distance=800, **WAVLM), True),
        "checkpoint_wavlm",
    ),
    "UniSpeech-SAT": (
        *("UniSpeechSatModel", {}, partial(save_unilm, weights=SPEAKERS), False),
        "checkpoint_unispeech_sat",
    ),
    "UniSpeech": (
        *("UniSpeechModel", LARGE, partial(save_config, name="unispeech", normalize=True), True),
        "checkpoint_unispeech",
    ),
    "data2vec-audio": (
        *("Data2VecAudioModel", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 19}),
        *(save_data2vec, True, "checkpoint_data2vec"),
    ),
    "mHuBERT": (
        *("HubertModel", {"conv_pos_batch_norm": True}),
        *(partial(save_config, settings={"conv_pos_batch_norm": True}), False, "checkpoint_hubert"),
    ),
    "DistilHuBERT": (
        *("HubertModel", {"feat_proj_layer_norm": False}, save_distiller, False),
        "checkpoint_distilhubert",
    ),
    "converted by s3prl": ("HubertModel", {}, save_s3prl, False, "checkpoint_hubert"),
    "safetensors": ("HubertModel", LARGE, with_metadata, True, "checkpoint_wav2vec2"),
}


def hidden_states(model, waveform):
    """Return layers 0 to N of transformers' forward in float64, the last before its norm."""
    last_block = []
    hook = model.encoder.layers[-1].register_forward_hook(
        lambda block, args, out: last_block.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        states = model(waveform[None].double(), output_hidden_states=True).hidden_states
    hook.remove()
    return torch.stack([*states[:-1], last_block.pop()])[:, 0]


@pytest.mark.parametrize("case", CASES)
def test_layers_are_those_of_the_hugging_face_form(tmp_path, case):
    """Layers 0 to N, the digest of the weights and the name, whatever the form of the file.

    Waveforms are normalised as fairseq does, if the file says so. The reference is transformers'
    forward of one clip in float64.
    """
    model_class, options, save, normalize, name = CASES[case]
    model = small_model(model_class, **options)
    path = tmp_path / ("weights.safetensors" if case == "safetensors" else "weights.pt")
    save(path, model)
    encoder = load_encoder(path, source="checkpoint", layers="superb", device="cpu")
    assert (encoder.name, encoder.weights_source) == (name, "file")
    assert str(tmp_path) not in json.dumps(encoder.identity)

    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    theirs = load_encoder(folder, source="huggingface", device="cpu").identity
    assert encoder.identity["weights"] == theirs["weights"]
    eps = {"waveform_norm_eps": 1e-7}  # of Hugging Face's feature extractor
    assert encoder.identity["architecture"] | eps == theirs["architecture"]

    waveforms = [speech(9_000, 1), 0.01 * speech(5_000, 2) + 0.05]
    model = model.double()
    for found, waveform in zip(encoder(waveforms), waveforms, strict=True):
        clip = waveform.double()
        clip = torch.nn.functional.layer_norm(clip, clip.shape) if normalize else clip
        assert relative_errors(found, hidden_states(model, clip)).max() <= 1e-5


def test_weight_norm_may_have_been_removed(tmp_path):
    """The weight of the positional convolution is then stored as it is; features are the same."""
    model = small_model("HubertModel")
    waveform = speech(9_000, 1)
    expected = hidden_states(model.double(), waveform)
    weights = fairseq_names(model.float())
    for part in ("weight_g", "weight_v"):
        del weights[f"encoder.pos_conv.0.{part}"]
    weights["encoder.pos_conv.0.weight"] = model.encoder.pos_conv_embed.conv.weight
    cfg = {"model": model_settings(model), "task": {"normalize": False}}
    torch.save({"cfg": cfg, "model": weights}, tmp_path / "weights.pt")
    path = tmp_path / "weights.pt"
    encoder = load_encoder(path, source="checkpoint", layers="superb", device="cpu")
    assert relative_errors(encoder([waveform])[0], expected).max() <= 1e-5

"""The identity of models does not change: stores that exist are continued by later versions."""

from __future__ import annotations

import torch

from pipeline.encoders.wav2vec2.building import Parts
from pipeline.encoders.wav2vec2.bundles import find_model
from pipeline.encoders.wav2vec2.weights import digest, fill_model
from tests.helpers.encoder_kinds import small_spec

CONVOLUTIONS = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]
HUBERT_BASE = {
    "kind": "wav2vec2",
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": CONVOLUTIONS,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 768,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 12,
    "encoder_num_heads": 12,
    "encoder_ff_interm_features": 3072,
    "encoder_layer_norm_first": False,
    "normalize_waveform": False,
    "waveform_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
}
WAVLM_LARGE = HUBERT_BASE | {
    "kind": "wavlm",
    "extractor_mode": "layer_norm",
    "encoder_embed_dim": 1024,
    "encoder_num_layers": 24,
    "encoder_num_heads": 16,
    "encoder_max_distance": 800,
    "encoder_num_buckets": 320,
    "encoder_ff_interm_features": 4096,
    "encoder_layer_norm_first": True,
    "normalize_waveform": True,
}


def test_architectures_are_those_of_existing_stores():
    """Every setting of HuBERT base and WavLM large, and no other."""
    assert find_model("hubert_base").architecture() == HUBERT_BASE
    assert find_model("wavlm_large").architecture() == WAVLM_LARGE


def test_the_digest_of_weights_is_that_of_existing_stores():
    """It depends on names, shapes and values of the weights of `tiny`, which are set here."""
    model = find_model("tiny").build("cpu")
    state = model.state_dict()
    values = {name: torch.arange(old.numel()).reshape(old.shape) for name, old in state.items()}
    model.load_state_dict({name: (value % 97) / 64 for name, value in values.items()})
    assert digest(model) == "e43ce631c8b41e8c72078513636c240c1e1aa317664ac2cdf07507a316ae07cb"


def test_parts_are_in_the_architecture_only_if_they_differ():
    """The defaults add nothing, so that new options do not change old identities."""
    assert Parts().changes() == {}
    parts = Parts(projection_norm=False, position="stack", position_layers=5, adapter_dim=16)
    assert parts.changes() == {
        "projection_norm": False,
        "position": "stack",
        "position_layers": 5,
        "adapter_dim": 16,
    }


def test_a_position_without_weight_norm_is_accepted():
    """From a model whose weight norm was removed: the same convolution."""
    spec = find_model("tiny")
    model = spec.build("cpu")
    convolution = model.encoder.transformer.pos_conv_embed.conv
    expected = convolution.weight.detach().clone()
    torch.nn.utils.parametrize.remove_parametrizations(convolution, "weight")
    with torch.no_grad():
        for weight in (convolution.weight, expected):
            weight[..., 3] = 0.0  # a tap without a direction
    filled = fill_model(spec, model.state_dict(), "file", "x").model
    found = filled.encoder.transformer.pos_conv_embed.conv.weight
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_the_number_of_trained_batches_is_no_weight():
    """Checkpoints with a batch norm count the batches of the training, which changes no feature."""
    spec = small_spec("mhubert")
    model = spec.build("cpu")
    counted = "encoder.transformer.pos_conv_embed.batch_norm.num_batches_tracked"
    state = model.state_dict() | {counted: torch.tensor(9)}
    assert fill_model(spec, state, "file", "x").sha256 == digest(model)

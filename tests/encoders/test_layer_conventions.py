"""Layers against the conventions of transformers and torchaudio, as docs/encoder.md lists them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.encoders.clips import encode_clips
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from tests.encoders.test_huggingface import CHECKPOINTS, VERSION, make
from tests.helpers.encoder_kinds import small_encoder, speech

LIMIT = 1e-5


def layer_of(load, name, clip):
    """One layer, by its name, of a clip: float32 [n_frames, dim]."""
    encoder = load(name)
    [found] = encode_clips(encoder, [clip])
    assert encoder.layer_names == (name,)
    return found[0]


def close(found, expected):
    return float(relative_errors(found[None], expected[None]).max()) <= LIMIT


@pytest.fixture(scope="module", params=["wav2vec2 base", "wav2vec2 large"])
def checkpoint(request, tmp_path_factory):
    """A small checkpoint with three blocks, what transformers returns of a clip, and its layers."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model_class, options, normalize = CHECKPOINTS[request.param]
    model = make(folder, model_class, options, normalize)
    clip = speech(9_000)
    inputs = torch.nn.functional.layer_norm(clip, clip.shape, eps=1e-7)[None]
    with torch.inference_mode():
        output = model(inputs, output_hidden_states=True)
        conv = model.feature_extractor(inputs).transpose(1, 2)[0]

    def load(name):
        return load_encoder(folder, source="huggingface", layers=[name])

    return SimpleNamespace(
        is_pre_norm=request.param.endswith("large"),
        hidden=[states[0] for states in output.hidden_states],
        last=output.last_hidden_state[0],
        extract_features=output.extract_features[0],
        conv=conv,
        layer=lambda name: layer_of(load, name, clip),
    )


def test_input_and_blocks_have_the_numbers_of_hidden_states(checkpoint):
    """`hidden_states[0]` is the input of block 1, and [i] the output of block i."""
    for i, name in enumerate(("input", "block_1", "block_2")):
        assert close(checkpoint.layer(name), checkpoint.hidden[i])


def test_the_last_hidden_state_depends_on_the_version_of_transformers(checkpoint):
    """Of pre-norm models it is the raw last block from 5.16 on, and final_norm before."""
    assert len(checkpoint.hidden) == 4
    is_normed = checkpoint.is_pre_norm and VERSION < (5, 16)
    name = "final_norm" if is_normed else "block_3"
    assert close(checkpoint.layer(name), checkpoint.hidden[3])


def test_last_hidden_state_is_final_norm_of_pre_norm_models(checkpoint):
    """In every version; of post-norm models it is the last block."""
    name = "final_norm" if checkpoint.is_pre_norm else "block_3"
    assert close(checkpoint.layer(name), checkpoint.last)
    if checkpoint.is_pre_norm:
        assert not close(checkpoint.layer("block_3"), checkpoint.last)


def test_conv_is_the_feature_extractors_output_and_not_extract_features(checkpoint):
    """`extract_features` of the model's output is conv after the layer norm of the projection."""
    conv = checkpoint.layer("conv")
    assert close(conv, checkpoint.conv)
    assert not close(conv, checkpoint.extract_features)


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_extract_features_of_torchaudio_begins_with_block_1(name):
    """`extract_features()[0][i]` is block i + 1, also the last one: without the final norm."""
    clip = speech(9_000)
    encoder = small_encoder(name, layers=["block_1", "block_4"])
    inputs = clip
    if encoder._spec.normalize_waveform:
        inputs = torch.nn.functional.layer_norm(clip, clip.shape)
    with torch.inference_mode():
        features, _ = encoder._model.extract_features(inputs[None])
        conv, _ = encoder._model.feature_extractor(inputs[None], None)
    assert len(features) == 4
    [found] = encode_clips(encoder, [clip])
    assert close(found[0], features[0][0])
    assert close(found[1], features[3][0])
    [found] = encode_clips(small_encoder(name, layers=["conv"]), [clip])
    assert close(found[0], conv[0])
    if encoder._spec.pre_norm:
        [found] = encode_clips(small_encoder(name, layers=["final_norm"]), [clip])
        assert not close(found[0], features[3][0])

"""The optional layers: the convolution stack's output, and the last block after the final norm."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from pipeline.encoders.clips import encode_clips
from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.wav2vec2.bundles import find_model
from pipeline.errors import ConfigError
from pipeline.store.format.layers import standard_names
from tests.helpers.encoder_kinds import KINDS, reference, small_encoder, speech

PRE_NORM = ["hubert_large", "wavlm_large"]


@pytest.mark.parametrize("name", KINDS)
def test_conv_is_the_output_of_the_convolution_stack(name):
    """Layer -1 of a mixed batch equals torchaudio's feature extractor on each clip."""
    encoder = small_encoder(name, layers=["conv"])
    assert (encoder.layers, encoder.layer_names, encoder.dim) == ((-1,), ("conv",), 24)
    clips = [speech(12_000, 1), 0.01 * speech(5_000, 2) + 0.05, speech(400, 3)]
    for clip, found in zip(clips, encode_clips(encoder, clips), strict=True):
        wave = clip
        if encoder._spec.normalize_waveform:
            wave = torch.nn.functional.layer_norm(clip, clip.shape)
        with torch.inference_mode():
            expected, _ = encoder._model.feature_extractor(wave[None], None)
        assert relative_errors(found, expected).max() <= 1e-5


@pytest.mark.parametrize("name", PRE_NORM)
def test_final_norm_is_the_last_block_after_the_models_norm(name):
    """Layer N + 1 equals the norm of torchaudio's last block; the block itself stays raw."""
    encoder = small_encoder(name, layers=[1, "block_4", "final_norm"])
    assert (encoder.layers, encoder.layer_names[-1]) == ((1, 4, 5), "final_norm")
    clip = speech(9_000)
    [found] = encode_clips(encoder, [clip])
    blocks = reference(encoder, clip)
    expected = encoder._model.encoder.transformer.layer_norm(blocks[-1])
    wanted = torch.stack([blocks[0], blocks[-1], expected])
    assert relative_errors(found, wanted).max() <= 1e-5
    assert (found[1] - found[2]).abs().max() > 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_optional_layers_in_reduced_precision(precision):
    """They are float32 tensors within the precision's rounding of fp32."""
    limit = {"bf16": 4e-2, "fp16": 5e-3}[precision]
    for layer in ("conv", "final_norm"):
        exact = small_encoder("hubert_large", layers=[layer])
        rounded = small_encoder("hubert_large", layers=[layer], precision=precision)
        [found], [wanted] = (encode_clips(e, [speech(9_000)]) for e in (rounded, exact))
        assert found.dtype == torch.float32
        assert 0 < relative_errors(found, wanted).max() <= limit


def test_conv_alone_runs_no_block():
    """Only the front end is computed, and no weights of the transformer are prepared."""
    encoder = small_encoder("hubert_base", layers=["conv"])
    stages = []

    @contextmanager
    def clock(stage):
        stages.append(stage)
        yield

    encoder.clock = clock
    assert len(list(encoder.encode_batch([speech(16_000)]))) == 1
    assert stages == ["front_end"]
    assert encoder._modules_for("fp32")[1] is None


def test_a_post_norm_model_has_no_final_norm():
    """Its names end at the last block, and the message lists what there is."""
    assert find_model("hubert_base").describe().names == standard_names(12, conv=True)
    assert find_model("wavlm_large").describe().names[25] == "final_norm"
    with pytest.raises(ConfigError, match="layers 0 to 4 and conv, each once"):
        small_encoder("hubert_base", layers=["final_norm"])


def test_layers_of_two_sizes_are_refused():
    """The convolution stack is narrower than the blocks; the message names both sizes."""
    with pytest.raises(ConfigError, match=r"conv has 24, block_1 has 32"):
        small_encoder("hubert_base", layers=["conv", 1])

"""Small encoders of every kind in the family, speech-like signals, and a reference.

The architectures are those of the named bundles with narrower layers: every kind of front end,
block and normalisation is covered, and a test takes milliseconds.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torchaudio.pipelines._wav2vec2 import utils as bundle_utils

from pipeline.encoders.settings import resolve_settings
from pipeline.encoders.wav2vec2.building import Parts
from pipeline.encoders.wav2vec2.bundles import find_model
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
from pipeline.encoders.wav2vec2.weights import LoadedModel, digest
from pipeline.testing.signals import speech as speech  # for the tests that import it from here

# One bundle for each combination that differs in code: GroupNorm or LayerNorm front end, conv bias,
# post-norm or pre-norm blocks, position bias, waveform normalisation.
KINDS = [
    "hubert_base",
    "wav2vec2_large",
    "hubert_large",
    "wav2vec2_large_lv60k",
    "wavlm_base",
    "wavlm_large",
]
CONFORMER = {
    "encoder_layer_norm_first": True,
    "conformer_kernel": 7,
    "conformer_position": "relative",
    "conformer_activation": "silu",
}
# Architectures without a bundle: the bundle that they differ from, the difference, and parameters.
VARIANTS = {
    "distilhubert": ("hubert_base", Parts(projection_norm=False), {}),
    "mhubert": ("hubert_base", Parts(position="batch_norm"), {}),
    "data2vec": (
        "wav2vec2_base",
        Parts(position="stack", position_layers=3),
        {"extractor_mode": "layer_norm", "encoder_pos_conv_kernel": 19},
    ),
    "mms": ("wav2vec2_xlsr_300m", Parts(adapter_dim=8), {}),
    "conformer": ("wav2vec2_xlsr_300m", Parts(), CONFORMER),
    "rotary conformer": (
        "wav2vec2_base",
        Parts(),
        CONFORMER | {"conformer_position": "rotary", "conformer_activation": "gelu"},
    ),
}
ALL_KINDS = [*KINDS, *VARIANTS]
WITH_REFERENCE = [name for name in ALL_KINDS if "conformer" not in name]
"""Those whose modules compute; the blocks of a Conformer only hold weights."""


def small_spec(name):
    """Narrow the architecture of a bundle or variant to 4 blocks of 32 channels."""
    bundle, parts, changes = VARIANTS.get(name, (name, Parts(), {}))
    spec = find_model(bundle)
    narrow = {
        "extractor_conv_layer_config": [
            (24, kernel, stride) for _, kernel, stride in spec.params["extractor_conv_layer_config"]
        ],
        "encoder_embed_dim": 32,
        "encoder_num_layers": 4,
        "encoder_num_heads": 4,
        "encoder_ff_interm_features": 64,
        "encoder_pos_conv_groups": 8,
    }
    params, kind = {**spec.params, **narrow, **changes}, spec.kind
    if "conformer_kernel" in changes:
        kind = "conformer"
        params = {key: value for key, value in params.items() if "pos_conv" not in key}
    return replace(spec, name=f"small {name}", kind=kind, params=params, parts=parts)


def randomize(model):
    """Move every weight off its initial value, so that no norm or bias is the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model.requires_grad_(False)


def small_encoder(name, **settings):
    """Make a small encoder of the kind of the bundle `name`, with random weights."""
    spec = small_spec(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(spec.build())
    loaded = LoadedModel(model, "random", digest(model))
    options = {"precision": "fp32", "device": "cpu"} | settings
    return Wav2Vec2Encoder(spec, loaded, resolve_settings(spec.describe(), **options))


def reference(encoder, waveform):
    """Run torchaudio on one unpadded utterance: all blocks, `[n_layers, frames, dim]`.

    Its own wrapper normalises the waveform if the bundle requires it.
    """
    model = encoder._model
    if encoder._spec.normalize_waveform:
        model = bundle_utils._extend_model(model, normalize_waveform=True)
    with torch.inference_mode():
        layers, _ = model.extract_features(waveform[None])
    return torch.stack(layers)[:, 0]

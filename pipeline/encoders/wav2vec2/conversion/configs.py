"""Configurations of transformers, translated to the architecture of a `ModelSpec`.

`misfit` decides whether the packed encoder computes a model. It accepts no option that it does not
know to be computed exactly.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from pipeline.encoders.wav2vec2.building import Parts
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.geometry import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE_HZ
from pipeline.errors import ConfigError

KINDS = {
    "wav2vec2": "wav2vec2",
    "hubert": "wav2vec2",
    "unispeech": "wav2vec2",
    "unispeech-sat": "wav2vec2",
    "data2vec-audio": "wav2vec2",
    "wavlm": "wavlm",
    "wav2vec2-conformer": "conformer",
}
"""Model types of transformers that the packed encoder computes, and the kind of each."""
_REQUIRED = {
    "hidden_act": ("gelu",),
    "feat_extract_activation": ("gelu",),
    "feat_extract_norm": ("group", "layer"),
    "conv_kernel": (list(CONV_KERNELS),),
    "conv_stride": (list(CONV_STRIDES),),
}
"""Options that change a feature, and their values that are computed."""
_ACTIVATIONS = {"gelu": "gelu", "swish": "silu", "silu": "silu"}
_CONFORMER = {
    "hidden_act": tuple(_ACTIVATIONS),
    "position_embeddings_type": ("relative", "rotary", None),
}
_WITH_ADAPTERS = ("wav2vec2", "hubert", "unispeech", "unispeech-sat")
_NORMALIZE_EPS = 1e-7  # of Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm


def misfit(config: Any) -> str | None:
    """Return why the packed encoder does not compute a model; None if it does.

    Args:
        config: Model configuration of transformers.

    Returns:
        The end of a sentence whose subject is the model.
    """
    if config.model_type not in KINDS:
        return f"is a {config.model_type!r} model; expected one of {', '.join(KINDS)}"
    required = _REQUIRED | (_CONFORMER if config.model_type == "wav2vec2-conformer" else {})
    for option, known in required.items():
        value = getattr(config, option, known[0])
        value = list(value) if isinstance(value, tuple) else value
        if value not in known:
            expected = " or ".join(repr(item) for item in known)
            return f"has {option}={value!r}; only {expected} is supported"
    return None


def spec_of_config(config: Any, extractor: Any, name: str) -> ModelSpec:
    """Translate the configuration of a checkpoint.

    Args:
        config: Model configuration of transformers, without a `misfit`.
        extractor: Feature extractor, which holds the sampling rate and the normalisation.
        name: Name of the checkpoint, for messages.

    Raises:
        ConfigError: The sampling rate is not 16 kHz.
    """
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"{name!r} was trained at {extractor.sampling_rate} Hz; only models for "
            f"{SAMPLE_RATE_HZ} Hz are supported; one of another rate is taken as a module of your "
            f"own with sample_rate_hz={extractor.sampling_rate}: docs/add_an_encoder.md"
        )
    return ModelSpec(
        name=f"hf_{config.model_type}",
        kind=KINDS[config.model_type],
        params=MappingProxyType(_params_of(config)),
        normalize_waveform=bool(extractor.do_normalize),
        waveform_norm_eps=_NORMALIZE_EPS,
        layer_norm_eps=config.layer_norm_eps,
        parts=_parts_of(config),
    )


def _params_of(config: Any) -> dict[str, Any]:
    """Return the arguments of torchaudio's factory, and for the Conformer those of its blocks."""
    kind = KINDS[config.model_type]
    is_data2vec, is_conformer = config.model_type == "data2vec-audio", kind == "conformer"
    # data2vec-audio has neither option: its convolutions have layer norms, its blocks post-norm.
    norm = "layer" if is_data2vec else config.feat_extract_norm
    is_pre_norm = is_conformer or (not is_data2vec and config.do_stable_layer_norm)
    position = {}
    if not is_conformer:
        kernel = config.conv_pos_kernel_size if is_data2vec else config.num_conv_pos_embeddings
        position["encoder_pos_conv_kernel"] = kernel
        position["encoder_pos_conv_groups"] = config.num_conv_pos_embedding_groups
    params: dict[str, Any] = {
        "extractor_mode": f"{norm}_norm",
        "extractor_conv_layer_config": list(
            zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        ),
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": 0.0,
        **position,
        "encoder_num_layers": config.num_hidden_layers,
        "encoder_num_heads": config.num_attention_heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": config.intermediate_size,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": is_pre_norm,
        "encoder_layer_drop": 0.0,
    }
    if is_conformer:
        return params | {
            "conformer_kernel": config.conv_depthwise_kernel_size,
            "conformer_position": config.position_embeddings_type,
            "conformer_activation": _ACTIVATIONS[config.hidden_act],
        }
    if kind == "wavlm":
        params["encoder_num_buckets"] = config.num_buckets
        params["encoder_max_distance"] = config.max_bucket_distance
    return params


def _parts_of(config: Any) -> Parts:
    """Return what differs from torchaudio's modules.

    An option that transformers does not use for the type of a model is ignored, as there.
    """
    model_type = config.model_type
    if model_type == "data2vec-audio":
        return Parts(position="stack", position_layers=config.num_conv_pos_embeddings)
    is_hubert = model_type == "hubert"
    with_adapters = model_type in _WITH_ADAPTERS and config.do_stable_layer_norm
    has_batch_norm = is_hubert and getattr(config, "conv_pos_batch_norm", False)
    return Parts(
        projection_norm=not is_hubert or config.feat_proj_layer_norm,
        position="batch_norm" if has_batch_norm else "weight_norm",
        adapter_dim=getattr(config, "adapter_attn_dim", None) if with_adapters else None,
    )

"""Loader of Hugging Face checkpoints, by hub id or directory; the only user of `transformers`.

The weights are copied into torchaudio's modules. Waveform normalisation and sample rate come from
the checkpoint's preprocessor configuration. Code in a checkpoint is never run, and pickles are read
only with `allow_pickle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.geometry import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE_HZ
from pipeline.encoders.wav2vec2.weights import LoadedModel, fill_model
from pipeline.errors import ConfigError, WeightsError

# Supported model types, and the torchaudio factory of each.
_KINDS = {
    "wav2vec2": "wav2vec2",
    "hubert": "wav2vec2",
    "unispeech-sat": "wav2vec2",
    "wavlm": "wavlm",
}
# Options that change a feature and that torchaudio's modules do not have.
_REQUIRED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_kernel": list(CONV_KERNELS),
    "conv_stride": list(CONV_STRIDES),
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
_NORMALIZE_EPS = 1e-7  # of Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm


def load_hf_model(
    name_or_dir: str | Path, revision: str | None, allow_pickle: bool
) -> tuple[ModelSpec, LoadedModel]:
    """Load a checkpoint into torchaudio's model.

    Args:
        name_or_dir: Hub id, or a directory with config.json, preprocessor_config.json and
            model.safetensors.
        revision: Branch, tag or commit on the hub; the default branch if None.
        allow_pickle: Whether to read pytorch_model.bin if there is no safetensors file.

    Raises:
        ConfigError: `transformers` is not installed, or the architecture is not supported.
        WeightsError: The checkpoint cannot be found or read, or lacks weights.
    """
    model, extractor = _fetch(str(name_or_dir), revision, allow_pickle)
    spec = spec_of_config(model.config, extractor, str(name_or_dir))
    state = torchaudio_names(model.state_dict(), spec)
    return spec, fill_model(spec, state, "huggingface", str(name_or_dir))


def find_hf_spec(name_or_dir: str | Path, revision: str | None = None) -> ModelSpec:
    """Read the architecture of a checkpoint, without its weights.

    Args:
        name_or_dir: As for `load_hf_model`.
        revision: As for `load_hf_model`.

    Raises:
        ConfigError: `transformers` is not installed, or the architecture is not supported.
        WeightsError: The checkpoint cannot be found.
    """
    config, extractor = _fetch_config(str(name_or_dir), revision)
    return spec_of_config(config, extractor, str(name_or_dir))


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            "model=hf needs transformers, which is not installed; pip install 'strata-speech[hf]'"
        ) from error


def _unloadable(name: str, error: Exception, hint: str = "") -> WeightsError:
    return WeightsError(
        f"cannot load the Hugging Face checkpoint {name!r}: {str(error).splitlines()[0]}"
        f"{hint} It needs config.json, preprocessor_config.json and weights"
    )


def _fetch_config(name: str, revision: str | None) -> tuple[Any, Any]:
    """Load the configuration and the feature extractor as objects of transformers."""
    transformers = _transformers()
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **common)
        _check_config(config, name)
        return config, transformers.AutoFeatureExtractor.from_pretrained(name, **common)
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error


def _fetch(name: str, revision: str | None, allow_pickle: bool) -> tuple[Any, Any]:
    """Load the base model and its feature extractor as objects of transformers."""
    config, extractor = _fetch_config(name, revision)
    try:
        model, report = _transformers().AutoModel.from_pretrained(
            name,
            config=config,
            use_safetensors=None if allow_pickle else True,
            dtype=torch.float32,
            output_loading_info=True,
            revision=revision,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        hint = "" if allow_pickle else " Only safetensors are read unless allow_pickle is set."
        raise _unloadable(name, error, hint) from error
    missing = sorted(key for key in report["missing_keys"] if key != "masked_spec_embed")
    if missing or report["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise WeightsError(
            f"the Hugging Face checkpoint {name!r} lacks {len(wrong)} of the weights that its "
            f"config.json requires, first {', '.join(wrong[:3])}"
        )
    return model, extractor


def _check_config(config: Any, name: str) -> None:
    """Refuse architectures that `Transformer` and `Frontend` would compute wrongly."""
    if config.model_type not in _KINDS:
        raise ConfigError(
            f"{name!r} is a {config.model_type!r} model; expected one of {', '.join(_KINDS)}"
        )
    for option, required in _REQUIRED.items():
        value = getattr(config, option, required)
        value = list(value) if isinstance(value, tuple) else value
        if value != required:
            raise ConfigError(f"{name!r} has {option}={value!r}; only {required!r} is supported")


def spec_of_config(config: Any, extractor: Any, name: str) -> ModelSpec:
    """Translate the configuration of a checkpoint.

    Args:
        config: Model configuration of transformers.
        extractor: Feature extractor, which holds the sampling rate and the normalisation.
        name: Name of the checkpoint, for messages.

    Raises:
        ConfigError: The sampling rate is not 16 kHz.
    """
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"{name!r} was trained at {extractor.sampling_rate} Hz; only models for "
            f"{SAMPLE_RATE_HZ} Hz are supported"
        )
    kind = _KINDS[config.model_type]
    params: dict[str, Any] = {
        "extractor_mode": f"{config.feat_extract_norm}_norm",
        "extractor_conv_layer_config": list(
            zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        ),
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": config.num_conv_pos_embeddings,
        "encoder_pos_conv_groups": config.num_conv_pos_embedding_groups,
        "encoder_num_layers": config.num_hidden_layers,
        "encoder_num_heads": config.num_attention_heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": config.intermediate_size,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": config.do_stable_layer_norm,
        "encoder_layer_drop": 0.0,
    }
    if kind == "wavlm":
        params["encoder_num_buckets"] = config.num_buckets
        params["encoder_max_distance"] = config.max_bucket_distance
    return ModelSpec(
        name=f"hf_{config.model_type}",
        kind=kind,
        params=MappingProxyType(params),
        normalize_waveform=bool(extractor.do_normalize),
        waveform_norm_eps=_NORMALIZE_EPS,
        layer_norm_eps=config.layer_norm_eps,
    )


def torchaudio_names(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Rename the weights of a base model to torchaudio's names, and stack WavLM's projections.

    Args:
        state: State dict of transformers' base model. Weights that only training uses are dropped.
        spec: Architecture of the model.
    """
    places = {
        "feature_extractor.": "feature_extractor.",
        "feature_projection.": "encoder.feature_projection.",
        "encoder.": "encoder.transformer.",
    }
    renamed = {
        place + name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        for prefix, place in places.items()
        if name.startswith(prefix)
    }
    if spec.kind == "wavlm":
        for i in range(spec.n_layers):
            prefix = f"encoder.transformer.layers.{i}.attention."
            for part in ("weight", "bias"):
                stack = [renamed.pop(f"{prefix}{letter}_proj.{part}") for letter in "qkv"]
                renamed[f"{prefix}attention.in_proj_{part}"] = torch.cat(stack)
                renamed[f"{prefix}attention.out_proj.{part}"] = renamed.pop(
                    f"{prefix}out_proj.{part}"
                )
    return renamed

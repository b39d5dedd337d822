"""Loader of Hugging Face checkpoints, by hub id or directory; the only user of `transformers`.

The weights are copied into torchaudio's modules. Waveform normalisation and sample rate come from
the checkpoint's preprocessor configuration. Code in a checkpoint is never run, and pickles are read
only with `allow_pickle`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.conversion.configs import misfit, spec_of_config
from pipeline.encoders.wav2vec2.conversion.names import torchaudio_names
from pipeline.encoders.wav2vec2.weights import LoadedModel, fill_model
from pipeline.errors import ConfigError, WeightsError


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
    if reason := misfit(config):
        raise ConfigError(f"{name!r} {reason}")

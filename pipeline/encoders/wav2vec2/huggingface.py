"""Loader of Hugging Face checkpoints, by hub id or directory; the only user of `transformers`.

The weights are copied into torchaudio's modules. Waveform normalisation and sample rate come from
the checkpoint's preprocessor configuration. Code in a checkpoint is never run, and pickles are read
only with `allow_pickle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.encoders.checkpoints.forms import read_state_dict
from pipeline.encoders.hub.checkpoint import Checkpoint
from pipeline.encoders.hub.config_file import read_config, require_preprocessor
from pipeline.encoders.hub.weight_files import check_file, fetch_weights, weights_problem
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.conversion.adapters import (
    LANGUAGE,
    adapter_files,
    adapter_names,
    find_languages,
    is_adapter,
    list_languages,
)
from pipeline.encoders.wav2vec2.conversion.configs import misfit, spec_of_config
from pipeline.encoders.wav2vec2.conversion.names import torchaudio_names
from pipeline.encoders.wav2vec2.weights import LoadedModel, fill_model
from pipeline.errors import ConfigError, WeightsError

_UNLOADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""Errors of transformers about files that it cannot use."""


def load_hf_model(
    checkpoint: Checkpoint, allow_pickle: bool, language: str | None = None
) -> tuple[ModelSpec, LoadedModel]:
    """Load a checkpoint into torchaudio's model.

    Args:
        checkpoint: The checkpoint.
        allow_pickle: Whether to read pickles if there are no safetensors files.
        language: Language whose adapters replace those of the main weights; None for the latter.

    Raises:
        ConfigError: `transformers` is not installed, the architecture is not supported, or there
            are no adapters of the language.
        WeightsError: The checkpoint cannot be found or read, or lacks weights.
    """
    config, extractor = fetch_config(checkpoint)
    _check_config(config, checkpoint.name)
    spec = spec_of_config(config, extractor, checkpoint.name)
    adapters: dict[str, Tensor] = {}
    if language is not None:
        file = find_adapters(checkpoint, spec, language, allow_pickle)
        origin = f"{file.name} of {checkpoint}"
        check_file(file, origin)
        adapters = adapter_names(read_state_dict(file), spec, origin)
    model, unused = fetch_model(checkpoint, config, allow_pickle, needs_adapters=not adapters)
    state = torchaudio_names(model.state_dict(), spec) | adapters
    loaded = fill_model(spec, state, "huggingface", checkpoint.name)
    return spec, replace(loaded, unused=unused)


def find_hf_spec(
    checkpoint: Checkpoint, language: str | None = None, *, allow_pickle: bool = False
) -> ModelSpec:
    """Read the architecture of a checkpoint, without its weights.

    Args:
        checkpoint: The checkpoint.
        language: As for `load_hf_model`; checked.
        allow_pickle: As for `load_hf_model`.

    Raises:
        ConfigError: As for `load_hf_model`.
        WeightsError: The checkpoint cannot be found.
    """
    config, extractor = fetch_config(checkpoint)
    _check_config(config, checkpoint.name)
    spec = spec_of_config(config, extractor, checkpoint.name)
    if language is not None:
        find_adapters(checkpoint, spec, language, allow_pickle)
    return spec


def model_type_of(checkpoint: Checkpoint) -> str:
    """Return the architecture that config.json names, which transformers knows.

    Raises:
        ConfigError: As for `fetch_config`.
        WeightsError: config.json is missing or unreadable.
    """
    return str(read_config(checkpoint, require_transformers().CONFIG_MAPPING)["model_type"])


def fetch_config(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Load the configuration and the feature extractor as objects of transformers.

    Raises:
        ConfigError: `transformers` is not installed or does not know the architecture, or the
            checkpoint needs code of its own.
        WeightsError: A file is missing or unreadable.
    """
    transformers = require_transformers()
    read_config(checkpoint, transformers.CONFIG_MAPPING)
    require_preprocessor(checkpoint)
    folder = checkpoint.folder()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(
            folder, trust_remote_code=False
        )
    except _UNLOADABLE as error:
        raise _unloadable(checkpoint, error) from error
    return config, extractor


def find_adapters(
    checkpoint: Checkpoint, spec: ModelSpec, language: str, allow_pickle: bool
) -> Path:
    """Return the file with the adapters of a language.

    Raises:
        ConfigError: The model has no adapters, or none of this language.
        WeightsError: The file cannot be fetched.
    """
    if spec.parts.adapter_dim is None:
        raise ConfigError(
            f"model.language={language} chooses adapters, as MMS has them; {checkpoint} has none: "
            "leave it out"
        )
    safe, pickle = adapter_files(language)
    if LANGUAGE.fullmatch(language):
        if (found := checkpoint.find(safe)) is not None:
            return found
        if (found := checkpoint.find(pickle)) is not None:
            if allow_pickle:
                return found
            raise ConfigError(
                f"model.language={language}: {checkpoint} has {pickle} and no {safe}; "
                "model.allow_pickle=true reads the tensors of the pickle, and runs no code"
            )
    languages = find_languages(checkpoint.files())
    raise ConfigError(
        f"model.language={language}: {checkpoint} has no {safe}{checkpoint.where_missing()}; "
        f"{list_languages(languages, language)}"
    )


def fetch_model(
    checkpoint: Checkpoint, config: Any, allow_pickle: bool, *, needs_adapters: bool = True
) -> tuple[Any, tuple[str, ...]]:
    """Load the base model in float32 as an object of transformers.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration, as an object of transformers.
        allow_pickle: Whether to read pytorch_model.bin if there is no safetensors file.
        needs_adapters: Whether the adapters must be among the weights; if not, they come from
            another file.

    Returns:
        The model, and the names of weights in the files that it does not have, e.g. of a head.

    Raises:
        WeightsError: The weights are missing or damaged, or do not fit the configuration.
    """
    model, report = load_pretrained(
        require_transformers().AutoModel, checkpoint, config, allow_pickle
    )
    missing = [key for key in report.missing if key != "masked_spec_embed"]
    if missing and all(is_adapter(name) for name in missing):
        if needs_adapters:
            raise WeightsError(
                f"{checkpoint} has no adapters among its main weights; choose model.language: "
                f"{list_languages(find_languages(checkpoint.files()))}"
            )
        missing = []
    own = {name for name, _ in model.named_children()}
    unexpected = [name for name in report.unexpected if own & set(name.split(".")[:2])]
    if problem := weights_problem(missing, unexpected, report.mismatched):
        raise WeightsError(f"{checkpoint} {problem}")
    return model, tuple(report.unexpected)


@dataclass(frozen=True)
class LoadingReport:
    """How the weights of a checkpoint differ from those of a model, each sorted.

    Attributes:
        missing: Names that the model has, and the files do not.
        unexpected: Names in the files that the model does not have.
        mismatched: Names with another shape, and what the shapes are.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def load_pretrained(
    model_class: Any, checkpoint: Checkpoint, config: Any, allow_pickle: bool, **options: Any
) -> tuple[Any, LoadingReport]:
    """Load a model in float32 by `from_pretrained` of its class in transformers.

    Args:
        model_class: The class.
        checkpoint: The checkpoint.
        config: Configuration of the model, as an object of transformers.
        allow_pickle: Whether to read pytorch_model.bin if there is no safetensors file.
        options: Further options of `from_pretrained`.

    Raises:
        WeightsError: The weights are missing or damaged.
    """
    files = fetch_weights(checkpoint, allow_pickle)
    try:
        with no_reports():
            model, report = model_class.from_pretrained(
                checkpoint.folder(),
                config=config,
                use_safetensors=files[0].suffix == ".safetensors",
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # the report names them
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
    except _UNLOADABLE as error:
        raise _unloadable(checkpoint, error) from error
    mismatched = [
        f"{name} has {list(found)}, expected {list(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    return model, LoadingReport(missing, unexpected, mismatched)


@contextmanager
def no_reports() -> Iterator[None]:
    """Let transformers print neither progress nor tables to stderr."""
    logging = require_transformers().utils.logging
    before, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if has_bar:
            logging.enable_progress_bar()


def require_transformers() -> Any:
    """Return the library.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            "model=hf needs transformers, which is not installed; pip install 'strata-speech[hf]'"
        ) from error


def _unloadable(checkpoint: Checkpoint, error: Exception) -> WeightsError:
    """Return the error that says in one line what transformers cannot load."""
    reason = str(error).splitlines()[0] if str(error) else ""
    if not isinstance(error, OSError | ValueError | SafetensorError):
        reason = f"{type(error).__name__} {reason}"
    return WeightsError(f"cannot load {checkpoint}: {reason}")


def _check_config(config: Any, name: str) -> None:
    """Refuse architectures that `Transformer` and `Frontend` would compute wrongly."""
    if reason := misfit(config):
        raise ConfigError(f"{name!r} {reason}")

"""Families of encoders, by `model.source`."""

from __future__ import annotations

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderFamily, VersionedFamily
from pipeline.encoders.checkpoints.family import CheckpointFamily
from pipeline.encoders.general.families import TransformersFamily
from pipeline.encoders.modules.registration import RegisteredModules, find_module
from pipeline.encoders.wav2vec2.families import TorchaudioFamily
from pipeline.errors import ConfigError

_FAMILIES: dict[str, EncoderFamily] = {
    "torchaudio": TorchaudioFamily(),
    "huggingface": TransformersFamily(),
    "checkpoint": CheckpointFamily(),
    "module": RegisteredModules(),
}
_WITHOUT_LANGUAGES = ("torchaudio", "checkpoint", "module")


def register_family(source: str, family: EncoderFamily) -> None:
    """Add a family of encoders, or replace one.

    Workers need no registration: they receive the family itself, pickled.

    Args:
        source: Value of `model.source` that selects the family.
        family: The family.
    """
    _FAMILIES[source] = family


def find_family(source: str) -> EncoderFamily:
    """Look up the family for `model.source`.

    Raises:
        ConfigError: There is no such family.
    """
    if source not in _FAMILIES:
        *others, last = _FAMILIES
        raise ConfigError(f"model.source is {source!r}; expected {', '.join(others)} or {last}")
    return _FAMILIES[source]


def pin_model(model: ModelConfig) -> ModelConfig:
    """Return a model with the version that it has now, if its family has versions.

    Raises:
        ConfigError: The model is unknown.
        WeightsError: The version cannot be found.
    """
    family = find_family(model.source)
    return family.pin(model) if isinstance(family, VersionedFamily) else model


def family_of(model: ModelConfig) -> EncoderFamily:
    """Return the family that describes and loads a model, in this process and in workers.

    Raises:
        ConfigError: There is no such family, the model is code that is not registered or allowed in
            this process, or a language is chosen for a source without languages.
    """
    family = find_family(model.source)
    if model.language is not None and model.source in _WITHOUT_LANGUAGES:
        raise ConfigError(
            f"model.language={model.language} chooses adapters of a checkpoint in Hugging Face "
            f"form (model=hf), as MMS; model.source={model.source} has none: leave it out"
        )
    return find_module(model) if isinstance(family, RegisteredModules) else family

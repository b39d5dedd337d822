"""Encoder families of wav2vec 2.0 checkpoints: torchaudio and Hugging Face."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.hub.checkpoint import Checkpoint, open_checkpoint
from pipeline.encoders.wav2vec2.bundles import ModelSpec, find_model, registry
from pipeline.encoders.wav2vec2.conversion.adapters import find_languages, list_languages
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
from pipeline.encoders.wav2vec2.huggingface import (
    find_hf_spec,
    load_hf_model,
    require_transformers,
)
from pipeline.encoders.wav2vec2.weights import check_weights, load_model, weights_problem
from pipeline.errors import ConfigError, counted, first_few


class TorchaudioFamily:
    """Models of `bundles.registry()` with pretrained, random or local weights."""

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the model, and check that its weights exist; see `EncoderFamily`."""
        spec = self._spec(model)
        if problem := weights_problem(spec, model.weights):
            raise ConfigError(problem)
        check_weights(spec, model.weights)
        return spec.describe()

    def load(self, model: ModelConfig, settings: EncoderSettings) -> Wav2Vec2Encoder:
        """Load the encoder; see `EncoderFamily`."""
        spec = self._spec(model)
        return Wav2Vec2Encoder(spec, load_model(spec, model.weights, model.seed), settings)

    def _spec(self, model: ModelConfig) -> ModelSpec:
        if model.name is None:
            raise ConfigError(
                "no model.name is given; set model=hubert_base, or see `strata models`"
            )
        return find_model(model.name)


class HuggingFaceFamily:
    """Checkpoints on the Hugging Face hub or in a local directory."""

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the checkpoint by its config.json; see `EncoderFamily`."""
        checkpoint = open_model(model)
        if model.weights == "random" and model.language is not None:
            raise ConfigError(
                f"model.language={model.language} chooses adapters of the checkpoint, but "
                "model.weights=random reads none; leave one of them out"
            )
        spec = find_hf_spec(checkpoint, model.language, allow_pickle=model.allow_pickle)
        return spec.describe()

    def load(self, model: ModelConfig, settings: EncoderSettings) -> Wav2Vec2Encoder:
        """Load the encoder; see `EncoderFamily`."""
        checkpoint = open_model(model)
        if model.weights == "random":
            spec = find_hf_spec(checkpoint)
            return Wav2Vec2Encoder(spec, load_model(spec, "random", model.seed), settings)
        spec, loaded = load_hf_model(checkpoint, model.allow_pickle, model.language)
        encoder = Wav2Vec2Encoder(spec, loaded, settings)
        if model.language is not None:
            encoder.identity["weights"]["language"] = model.language
        elif spec.parts.adapter_dim is not None:
            encoder.notes += _default_adapters(checkpoint)
        if checkpoint.commit is not None:
            encoder.identity["weights"]["commit"] = checkpoint.commit
            encoder.notes += (f"the encoder is {checkpoint}",)
        if loaded.unused:
            encoder.notes += (
                f"{counted(len(loaded.unused), 'weight')} of {model.name} that the encoder does "
                f"not have are not used: {first_few(loaded.unused)}",
            )
        return encoder

    def pin(self, model: ModelConfig) -> ModelConfig:
        """Resolve the revision of a checkpoint on the hub to a commit; see `VersionedFamily`."""
        return replace(model, revision=open_model(model).commit)


def _default_adapters(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return a note on the languages whose adapters were not chosen, if there are any."""
    if languages := find_languages(checkpoint.files()):
        return (
            f"the adapters are those of the main weights of {checkpoint}; "
            f"{list_languages(languages)}: model.language chooses one",
        )
    return ()


def open_model(model: ModelConfig) -> Checkpoint:
    """Find the checkpoint of `model.name`, a hub id or a directory.

    Raises:
        ConfigError: There is no name or no such checkpoint, or transformers is not installed.
        WeightsError: The hub refuses it, or does not answer.
    """
    name = model.name
    if name is None:
        raise ConfigError("model=hf needs model.name=ID_OR_DIR, a hub id or a directory")
    if name in registry() and not Path(name).is_dir():
        raise ConfigError(
            f"model.name={name} is a short name, not a checkpoint in Hugging Face form; use "
            f"model={name}"
        )
    require_transformers()
    try:
        return open_checkpoint(name, model.revision)
    except ConfigError as error:
        near = get_close_matches(name, registry(), n=1, cutoff=0.8)
        if not near or "/" in name:
            raise
        raise ConfigError(f"{error}. The model of that name is model={near[0]}") from error

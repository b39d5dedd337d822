"""Encoder family of Hugging Face checkpoints: packed where the architecture fits, else hooks."""

from __future__ import annotations

from pipeline.config import ModelConfig
from pipeline.encoders.base import Encoder, EncoderDescription, EncoderSettings
from pipeline.encoders.general.checkpoint import build_random, load_module
from pipeline.encoders.general.encoder import GeneralEncoder
from pipeline.encoders.general.model import GeneralModel, find_kind, read_model
from pipeline.encoders.hub.weight_files import fetch_weights
from pipeline.encoders.wav2vec2.conversion.configs import misfit
from pipeline.encoders.wav2vec2.families import HuggingFaceFamily, open_model
from pipeline.encoders.wav2vec2.huggingface import fetch_config, model_type_of
from pipeline.errors import ConfigError


class TransformersFamily:
    """Checkpoints on the Hugging Face hub or in a local directory, of either path."""

    def __init__(self) -> None:
        self._packed = HuggingFaceFamily()

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the checkpoint by its configuration; see `EncoderFamily`.

        In a directory it also looks for the weights; on the hub they are looked for when they are
        fetched.
        """
        general = self._general(model)
        found = self._packed.describe(model) if general is None else general.describe()
        if model.weights == "pretrained" and (checkpoint := open_model(model)).commit is None:
            fetch_weights(checkpoint, model.allow_pickle)
        return found

    def load(self, model: ModelConfig, settings: EncoderSettings) -> Encoder:
        """Load the encoder; see `EncoderFamily`."""
        general = self._general(model)
        if general is None:
            return self._packed.load(model, settings)
        kind, config = general.kind, general.encoder_config
        if model.weights == "random":
            module = build_random(kind, config, model.seed)
            return GeneralEncoder(general, module, settings, weights_source="random")
        checkpoint = open_model(model)
        module = load_module(checkpoint, kind, config, model.allow_pickle)
        encoder = GeneralEncoder(general, module, settings, weights_source="huggingface")
        if checkpoint.commit is not None:
            encoder.identity["weights"]["commit"] = checkpoint.commit
            encoder.notes += (f"the encoder is {checkpoint}",)
        return encoder

    def pin(self, model: ModelConfig) -> ModelConfig:
        """Resolve the revision of a checkpoint on the hub to a commit; see `VersionedFamily`."""
        return self._packed.pin(model)

    def _general(self, model: ModelConfig) -> GeneralModel | None:
        """Describe a checkpoint of the general path; return None for one of the packed path."""
        if model.weights not in ("pretrained", "random"):
            raise ConfigError(
                f"model.weights={model.weights!r} is not pretrained or random; with model=hf the "
                "weights are those of model.name"
            )
        checkpoint = open_model(model)
        find_kind(model.name, model_type_of(checkpoint))  # before its preprocessor is missed
        config, extractor = fetch_config(checkpoint)
        if misfit(config) is None:
            return None
        if model.language is not None:
            raise ConfigError(
                f"model.language={model.language} chooses adapters, as MMS has them; {model.name} "
                "has none: leave it out"
            )
        return read_model(model, config, extractor)

"""Encoder families of wav2vec 2.0 checkpoints: torchaudio and Hugging Face."""

from __future__ import annotations

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.wav2vec2.bundles import ModelSpec, find_model
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
from pipeline.encoders.wav2vec2.huggingface import find_hf_spec, load_hf_model
from pipeline.encoders.wav2vec2.weights import load_model, weights_problem
from pipeline.errors import ConfigError


class TorchaudioFamily:
    """Models of `bundles.registry()` with pretrained, random or local weights."""

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the model, and check that its weights exist; see `EncoderFamily`."""
        spec = self._spec(model)
        if problem := weights_problem(spec, model.weights):
            raise ConfigError(problem)
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
        return find_hf_spec(self._name(model), model.revision).describe()

    def load(self, model: ModelConfig, settings: EncoderSettings) -> Wav2Vec2Encoder:
        """Load the encoder; see `EncoderFamily`."""
        spec, loaded = load_hf_model(self._name(model), model.revision, model.allow_pickle)
        return Wav2Vec2Encoder(spec, loaded, settings)

    def _name(self, model: ModelConfig) -> str:
        if model.name is None:
            raise ConfigError("model=hf needs model.name=ID_OR_DIR, a hub id or a directory")
        return model.name

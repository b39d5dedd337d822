"""The encoder family of original checkpoints: `model=checkpoint model.name=PATH`."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.checkpoints.reading import EncoderWeights, open_weights, spec_of
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
from pipeline.encoders.wav2vec2.weights import check_shapes, fill_model
from pipeline.errors import ConfigError

_REMEDY = "The file contradicts what it states of its model; get it again from its source"


class CheckpointFamily:
    """Files of fairseq, unilm and s3prl, whose architecture is in the file."""

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the model by the settings in the file and the shapes; see `EncoderFamily`."""
        weights = self._open(model)
        spec, _ = spec_of(weights)
        check_shapes(spec, weights.shapes, weights.origin, _REMEDY)
        return spec.describe()

    def load(self, model: ModelConfig, settings: EncoderSettings) -> Wav2Vec2Encoder:
        """Load the encoder; see `EncoderFamily`."""
        weights = self._open(model)
        spec, notes = spec_of(weights)
        loaded = fill_model(spec, weights.read(), "file", weights.origin)
        encoder = Wav2Vec2Encoder(spec, loaded, settings)
        encoder.notes += notes
        return encoder

    def _open(self, model: ModelConfig) -> EncoderWeights:
        if model.name is None:
            raise ConfigError(
                "model=checkpoint needs model.name=PATH, a .pt file of fairseq, unilm or s3prl"
            )
        path = Path(model.name).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"there is no checkpoint at {path}; model.name is the path of a .pt file of "
                "fairseq, unilm or s3prl. Those of the Hugging Face hub are read with model=hf"
            )
        return open_weights(path)

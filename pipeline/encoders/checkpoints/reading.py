"""Weights of an encoder in a file, by torchaudio's names, with the architecture of their model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.encoders.checkpoints.architecture import (
    spec_of_settings,
    spec_of_shapes,
    states_normalization,
)
from pipeline.encoders.checkpoints.files import SafeTensor
from pipeline.encoders.checkpoints.forms import Checkpoint, open_checkpoint
from pipeline.encoders.checkpoints.names import has_position_bias, own_names, torchaudio_parts
from pipeline.encoders.checkpoints.tensors import StoredTensor
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.errors import ConfigError, WeightsError, first_few

Parts = tuple[StoredTensor | SafeTensor, ...]


@dataclass(frozen=True)
class EncoderWeights:
    """Weights in a file, not read yet.

    Attributes:
        checkpoint: The file.
        parts: By torchaudio's name the tensors whose concatenation is the weight.
    """

    checkpoint: Checkpoint
    parts: Mapping[str, Parts]

    @property
    def origin(self) -> str:
        """Path and form of the file, for messages."""
        return self.checkpoint.origin

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by torchaudio's names."""
        return {
            name: (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
            if len(parts) > 1
            else parts[0].shape
            for name, parts in self.parts.items()
        }

    def read(self) -> dict[str, Tensor]:
        """Read the weights, by torchaudio's names; where possible as views of the mapped file.

        Raises:
            WeightsError: The file is damaged.
        """
        file, state = self.checkpoint.file, {}
        for name, parts in self.parts.items():
            tensors = [file.read(part) for part in parts]
            state[name] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        return state


def open_weights(path: Path) -> EncoderWeights:
    """Open a file of weights, and map their names. No tensor is read.

    Args:
        path: File of fairseq, unilm, s3prl or torchaudio, in a format of PyTorch or safetensors.

    Raises:
        WeightsError: The file cannot be read, is damaged, or has weights of unknown names.
        ConfigError: The model has adapters of languages.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.form == "torchaudio":
        tensors = own_names(checkpoint.tensors)
        return EncoderWeights(checkpoint, {name: (one,) for name, one in tensors.items()})
    parts, unknown = torchaudio_parts(checkpoint.tensors)
    if any("adapter_layer" in name for name in unknown):
        raise ConfigError(
            f"{checkpoint.origin} has adapters of languages, as MMS; use the Hugging Face form, "
            "model=hf model.name=ID_OR_DIR, which has those of one language"
        )
    if unknown:
        raise WeightsError(
            f"{checkpoint.origin} has weights that no supported model has: {first_few(unknown)}; "
            "if there is a Hugging Face form of the model, try model=hf model.name=ID_OR_DIR"
        )
    shapes = {len(part.shape) for some in parts.values() if len(some) > 1 for part in some}
    if 0 in shapes:
        raise WeightsError(f"{checkpoint.origin} has a projection that is a single number")
    return EncoderWeights(checkpoint, parts)


def spec_of(weights: EncoderWeights) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the architecture of the model, and notes about what the file does not state.

    Raises:
        ConfigError: The architecture is not supported, or cannot be found out.
    """
    checkpoint = weights.checkpoint
    name = f"checkpoint_{_family_of(weights)}"
    if checkpoint.settings is None:
        spec = spec_of_shapes(weights.shapes, name)
        if spec is None:
            raise ConfigError(
                f"{weights.origin} states no settings of its model, and its weights have the "
                "shapes of no model of torchaudio, so its architecture is unknown; take the file "
                "that was published, with its settings, or the model in Hugging Face form "
                "(model=hf)"
            )
        return spec, (
            f"{checkpoint.file.path} states no settings of its model; they are those of "
            f"torchaudio's models with weights of the same shapes: {_conventions(spec)}",
        )
    spec = _stated_spec(weights, name)
    if states_normalization(checkpoint.settings) or checkpoint.form == "distiller":
        return spec, ()
    return spec, (
        f"{checkpoint.file.path} does not state whether waveforms are normalised; as in the models "
        f"of its kind: {_conventions(spec)}",
    )


def check_spec(weights: EncoderWeights, spec: ModelSpec) -> None:
    """Check that what the file states of its model agrees with a model.

    Args:
        weights: The weights; if the file states nothing of its model, any model may be right.
        spec: The model.

    Raises:
        WeightsError: They differ; the settings are named.
    """
    checkpoint = weights.checkpoint
    if checkpoint.settings is None:
        return
    stated = _stated_spec(weights, spec.name)
    if not states_normalization(checkpoint.settings):
        stated = replace(stated, normalize_waveform=spec.normalize_waveform)
    ours, theirs = spec.architecture(), stated.architecture()
    wrong = [
        f"{key} is {theirs.get(key)}, expected {ours.get(key)}"
        for key in {**ours, **theirs}
        if theirs.get(key) != ours.get(key)
    ]
    if wrong:
        raise WeightsError(
            f"the weights of {weights.origin} do not fit {spec.name}: {'; '.join(wrong[:3])}. "
            f"Use model=checkpoint model.name={checkpoint.file.path}, which takes the architecture "
            "from the file"
        )


def _stated_spec(weights: EncoderWeights, name: str) -> ModelSpec:
    assert weights.checkpoint.settings is not None  # the callers' condition
    return spec_of_settings(
        weights.checkpoint.settings,
        name=name,
        has_position_bias=has_position_bias(weights.parts),
        projection_norm=weights.checkpoint.form != "distiller",
        origin=weights.origin,
    )


def _conventions(spec: ModelSpec) -> str:
    return f"waveforms are {'' if spec.normalize_waveform else 'not '}normalised"


def _family_of(weights: EncoderWeights) -> str:
    """Return the name of the kind of model, for people and as part of the encoder's name."""
    checkpoint = weights.checkpoint
    if checkpoint.form == "distiller":
        return "distilhubert"
    if has_position_bias(weights.parts):
        return "wavlm"
    if any(
        name.startswith(("spk_proj.", "encoder.layer_norm_for_extract."))
        for name in checkpoint.tensors
    ):
        return "unispeech_sat"
    model = checkpoint.settings.model if checkpoint.settings else {}
    stated = f"{model.get('_name') or model.get('arch') or ''}".lower()
    for word in ("data2vec", "hubert", "unispeech"):
        if word in stated:
            return word
    if "wav2vec" in stated:
        return "wav2vec2"
    return "hubert" if "label_embs_concat" in checkpoint.tensors else "wav2vec2"

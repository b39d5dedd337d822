"""Registry of the models with a short name; settings come from torchaudio's bundles."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import torchaudio

from pipeline.encoders.base import EncoderDescription
from pipeline.encoders.wav2vec2.building import Parts, build_model
from pipeline.encoders.wav2vec2.geometry import (
    CONV_KERNELS,
    CONV_STRIDES,
    DEFAULT_CONTEXT_S,
    DEFAULT_MAX_WINDOW_S,
    GEOMETRY,
    SAMPLE_RATE_HZ,
)
from pipeline.errors import ConfigError
from pipeline.store.format.codecs import DEFAULT_CODEC
from pipeline.store.format.layers import CONV, standard_names

# Settings of training or of the output head; they do not change a feature.
_NOT_ARCHITECTURE = ("dropout", "layer_drop", "aux_num_out")

_NO_CHANGES = Parts()
_CONVOLUTIONS = [(32, *both) for both in zip(CONV_KERNELS, CONV_STRIDES, strict=True)]
_TINY: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": _CONVOLUTIONS,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 48,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 12,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 96,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
}


@dataclass(frozen=True)
class ModelSpec:
    """Architecture and input conventions of one model.

    Attributes:
        name: Short name, as in `model=hubert_base`.
        kind: torchaudio factory of the model, "wav2vec2" (also for HuBERT) or "wavlm"; or
            "conformer", see `building.build_model`.
        params: Arguments of the factory, without the output head.
        normalize_waveform: Whether each waveform is normalised to zero mean and unit variance.
        waveform_norm_eps: Term added to the variance by that normalisation.
        layer_norm_eps: Term added to the variance by the layer norms of the transformer.
        sample_rate_hz: Sample rate of the training data.
        parts: What differs from torchaudio's modules.
        bundle: Attribute of `torchaudio.pipelines` with the pretrained weights; None if there are
            none.
    """

    name: str
    kind: str
    params: Mapping[str, Any]
    normalize_waveform: bool
    waveform_norm_eps: float = 1e-5
    layer_norm_eps: float = 1e-5
    sample_rate_hz: int = SAMPLE_RATE_HZ
    parts: Parts = _NO_CHANGES
    bundle: str | None = None

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.params["encoder_num_layers"])

    @property
    def dim(self) -> int:
        """Size of a feature vector."""
        return int(self.params["encoder_embed_dim"])

    @property
    def pre_norm(self) -> bool:
        """Whether blocks normalise their input (large models) or their output (base models)."""
        return bool(self.params["encoder_layer_norm_first"])

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution stack's output."""
        return int(self.params["extractor_conv_layer_config"][-1][0])

    @property
    def group_norm(self) -> bool:
        """Whether the first convolution is normalised over the whole utterance."""
        return bool(self.params["extractor_mode"] == "group_norm")

    @property
    def bytes_per_hour(self) -> int:
        """Bytes in the store for one hour of audio: layers 1..N."""
        frame_bytes = self.n_layers * self.dim * DEFAULT_CODEC.bytes_per_value
        return round(frame_bytes * GEOMETRY.frame_rate_hz * 3600)

    def describe(self) -> EncoderDescription:
        """Describe the model for planning, which needs no weights."""
        return EncoderDescription(
            name=self.name,
            n_layers=self.n_layers,
            dim=self.dim,
            geometry=GEOMETRY,
            max_window_s=DEFAULT_MAX_WINDOW_S,
            context_s=DEFAULT_CONTEXT_S,
            layer_names=standard_names(self.n_layers, conv=True, final_norm=self.pre_norm),
            layer_dims={CONV: self.conv_dim},
        )

    def architecture(self) -> dict[str, Any]:
        """Return the settings that change a feature, ready for JSON; part of a store's identity."""
        settings = {
            key: [list(row) for row in value] if isinstance(value, (list, tuple)) else value
            for key, value in self.params.items()
            if not key.endswith(_NOT_ARCHITECTURE)
        }
        return {
            "kind": self.kind,
            **settings,
            "normalize_waveform": self.normalize_waveform,
            "waveform_norm_eps": self.waveform_norm_eps,
            "layer_norm_eps": self.layer_norm_eps,
            **self.parts.changes(),
        }

    def build(self, device: str = "cpu") -> torch.nn.Module:
        """Build the model from torchaudio's modules, without its head, in evaluation mode.

        Args:
            device: "cpu" for a randomly initialised model, "meta" for shapes without memory.
        """
        return build_model(self.kind, self.params, self.parts, self.layer_norm_eps, device)

    def n_parameters(self) -> int:
        """Count the weights, without the output head."""
        return sum(parameter.numel() for parameter in self.build("meta").parameters())


def _spec_of(attribute: str, bundle: Any) -> ModelSpec:
    params = {key: value for key, value in bundle._params.items() if key != "aux_num_out"}
    return ModelSpec(
        name=attribute.lower(),
        kind=bundle._model_type.lower(),
        params=MappingProxyType(params),
        normalize_waveform=bundle._normalize_waveform,
        sample_rate_hz=int(bundle.sample_rate),
        bundle=attribute,
    )


@cache
def registry() -> Mapping[str, ModelSpec]:
    """List the models by short name: the wav2vec 2.0, HuBERT and WavLM bundles, and `tiny`.

    Returns:
        Read-only mapping, sorted by name. `tiny` has random weights only and is meant for tests.
    """
    rows = {
        spec.name: spec
        for attribute, bundle in vars(torchaudio.pipelines).items()
        if hasattr(bundle, "_model_type") and hasattr(bundle, "_normalize_waveform")
        for spec in [_spec_of(attribute, bundle)]
    }
    rows["tiny"] = ModelSpec(
        name="tiny",
        kind="wav2vec2",
        params=MappingProxyType(_TINY),
        normalize_waveform=False,
    )
    return MappingProxyType(dict(sorted(rows.items())))


def find_model(name: str) -> ModelSpec:
    """Look up a model by its short name.

    Raises:
        ConfigError: There is no such model; the message names the nearest ones.
    """
    rows = registry()
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name.lower(), rows, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?"
    if not near:
        hint = (
            "`strata models` lists the short names; others are hub ids, files and folders, or "
            "torch modules that pipeline.register_encoder has given a name"
        )
    raise ConfigError(f"no model is called {name!r}; {hint}")

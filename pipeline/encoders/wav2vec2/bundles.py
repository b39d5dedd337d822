"""The models known by a short name, with their settings as torchaudio's bundles state them."""

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

# Settings of training only, or of the output head: they do not touch a feature.
_NOT_ARCHITECTURE = ("dropout", "layer_drop", "aux_num_out")

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
    """One architecture of the family, complete: nothing is left for the user to remember.

    Attributes:
        name: short name, as in `model=hubert_base`.
        kind: "wav2vec2" (HuBERT too) or "wavlm": which torchaudio factory builds it.
        params: the factory's arguments, without the output head.
        normalize_waveform: whether each waveform is brought to zero mean and unit variance.
        waveform_norm_eps: added to the variance by that normalisation.
        layer_norm_eps: added to the variance by the transformer's layer norms.
        sample_rate_hz: of the waveforms the model was trained on.
        bundle: attribute of `torchaudio.pipelines` with the pretrained weights, None if there is
            none.
        note: a sentence for people, possibly empty.
    """

    name: str
    kind: str
    params: Mapping[str, Any]
    normalize_waveform: bool
    waveform_norm_eps: float = 1e-5
    layer_norm_eps: float = 1e-5
    sample_rate_hz: int = SAMPLE_RATE_HZ
    bundle: str | None = None
    note: str = ""

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
        """Whether blocks normalise their input (large models), not their output (base models)."""
        return bool(self.params["encoder_layer_norm_first"])

    @property
    def group_norm(self) -> bool:
        """Whether the first convolution is normalised over the whole utterance."""
        return bool(self.params["extractor_mode"] == "group_norm")

    @property
    def bytes_per_hour(self) -> int:
        """Bytes of one hour of audio in the store: layers 1..N."""
        frame_bytes = self.n_layers * self.dim * DEFAULT_CODEC.bytes_per_value
        return round(frame_bytes * GEOMETRY.frame_rate_hz * 3600)

    def describe(self) -> EncoderDescription:
        """Return what the rest of Strata has to know before the weights are loaded."""
        return EncoderDescription(
            name=self.name,
            n_layers=self.n_layers,
            dim=self.dim,
            geometry=GEOMETRY,
            max_window_s=DEFAULT_MAX_WINDOW_S,
            context_s=DEFAULT_CONTEXT_S,
        )

    def architecture(self) -> dict[str, Any]:
        """The settings that change a feature, ready for JSON; part of a store's identity."""
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
        }

    def build(self, device: str = "cpu") -> torch.nn.Module:
        """Build torchaudio's model, without the output head, in evaluation mode.

        Args:
            device: "cpu" for a freshly initialised model, "meta" for shapes without memory.
        """
        factory = {
            "wav2vec2": torchaudio.models.wav2vec2_model,
            "wavlm": torchaudio.models.wavlm_model,
        }[self.kind]
        with torch.device(device):
            model: torch.nn.Module = factory(**self.params, aux_num_out=None)
        for module in model.get_submodule("encoder").modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = self.layer_norm_eps
        return model.eval()

    def n_parameters(self) -> int:
        """Number of weights, without the output head."""
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
    """Every model by short name: one row per wav2vec 2.0, HuBERT and WavLM bundle, and `tiny`.

    Returns:
        Read-only mapping, in the order of the names. `tiny` has random weights only: it is for
        tests and fire drills, and its features mean nothing.
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
        note="random weights only, for tests and fire drills; its features mean nothing",
    )
    return MappingProxyType(dict(sorted(rows.items())))


def find_model(name: str) -> ModelSpec:
    """Look a model up by its short name.

    Raises:
        ConfigError: no such name; the message holds the nearest ones.
    """
    rows = registry()
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name.lower(), rows, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(rows)}"
    raise ConfigError(f"no model is called {name!r}; {hint}")

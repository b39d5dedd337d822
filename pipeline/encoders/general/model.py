"""`GeneralModel`: one checkpoint of the general path, described without its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription
from pipeline.encoders.captured import CapturePoint
from pipeline.encoders.general.architectures import KINDS
from pipeline.encoders.general.front_ends import FrontEnd
from pipeline.encoders.general.kinds import Kind
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layers import standard_names

DEFAULT_MAX_WINDOW_S = 40.0
DEFAULT_CONTEXT_S = 5.0
_MOST_CONTEXT = 1 / 6  # of the window, on each side


@dataclass(frozen=True)
class GeneralModel:
    """A checkpoint of the general path.

    Attributes:
        kind: Its architecture.
        config: Configuration of the whole checkpoint, an object of transformers.
        front_end: Computes the encoder's input.
        geometry: Sample rate, hop and receptive field of the frames.
    """

    kind: Kind
    config: Any
    front_end: FrontEnd
    geometry: FrameGeometry

    @property
    def encoder_config(self) -> Any:
        """Configuration of the encoder."""
        return self.kind.encoder_config(self.config)

    @property
    def n_layers(self) -> int:
        """N, the number of blocks."""
        return int(getattr(self.encoder_config, self.kind.n_layers))

    @property
    def final_norm(self) -> str | None:
        """Name of the norm of the last block's output, if there is one."""
        return self.kind.norm_of(self.encoder_config)

    def describe(self) -> EncoderDescription:
        """Describe the model for planning, which needs no weights."""
        window = self.front_end.window_samples
        limit_s = None if window is None else window / self.geometry.sample_rate_hz
        longest_s = limit_s or DEFAULT_MAX_WINDOW_S
        final_norm = self.final_norm is not None
        return EncoderDescription(
            name=f"hf_{self.config.model_type}",
            n_layers=self.n_layers,
            dim=int(getattr(self.encoder_config, self.kind.dim)),
            geometry=self.geometry,
            max_window_s=longest_s,
            context_s=min(DEFAULT_CONTEXT_S, longest_s * _MOST_CONTEXT),
            window_limit_s=limit_s,
            layer_names=standard_names(self.n_layers, final_norm=final_norm),
        )

    def point_of(self, layer: int) -> CapturePoint:
        """Return where a layer is captured."""
        blocks = self.kind.blocks
        if layer == 0:
            return CapturePoint(f"{blocks}.0", is_input=True)
        if layer > self.n_layers:
            return CapturePoint(str(self.final_norm))
        return CapturePoint(f"{blocks}.{layer - 1}")

    def architecture(self) -> dict[str, Any]:
        """Return the settings that change a feature, ready for JSON; part of a store's identity."""
        config = self.encoder_config
        options = {key: getattr(config, key, None) for key in self.kind.options}
        return {
            "kind": self.kind.package,
            **{key: _plain(value) for key, value in options.items()},
            "sample_rate_hz": self.geometry.sample_rate_hz,
            "front_end": self.front_end.facts(),
        }


def read_model(model: ModelConfig, config: Any, extractor: Any) -> GeneralModel:
    """Describe a checkpoint.

    Args:
        model: The checkpoint.
        config: Its configuration, an object of transformers.
        extractor: Its feature extractor, an object of transformers.

    Raises:
        ConfigError: The architecture or a setting is not supported, or the feature extractor does
            not fit.
    """
    kind = find_kind(model.name, config.model_type)
    found = type(extractor).__name__
    if found != kind.extractor_class:
        raise ConfigError(
            f"{model.name!r} has a {found}; its architecture needs a {kind.extractor_class} in "
            "preprocessor_config.json"
        )
    front_end, geometry = kind.parts(kind.encoder_config(config), extractor, str(model.name))
    return GeneralModel(kind, config, front_end, geometry)


def find_kind(name: str | None, model_type: str) -> Kind:
    """Return the architecture of a checkpoint.

    Args:
        name: Name of the checkpoint, for the message.
        model_type: As its config.json has it.

    Raises:
        ConfigError: It has no encoder here.
    """
    if model_type in KINDS:
        return KINDS[model_type]
    near = _nearest(model_type)
    nearest = f"the nearest one that has is {near!r}; " if near else ""
    raise ConfigError(
        f"{name!r} is a {model_type!r} model, which has no encoder here; {nearest}"
        "docs/models.md lists those that have, and docs/add_an_encoder.md says how to add one"
    )


def _nearest(model_type: str) -> str | None:
    """Return the architecture with the most similar name, or one that begins with the same word."""
    word = re.split("[-_]", model_type)[0]
    same_word = [name for name in KINDS if re.split("[-_]", name)[0] == word]
    near = [*get_close_matches(model_type, KINDS, n=1, cutoff=0.75), *same_word]
    return near[0] if near else None


def _plain(value: Any) -> Any:
    """Return a value of a configuration as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

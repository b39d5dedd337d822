"""`ModuleDefinition`, what a user says about an encoder of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.encoders.captured import CapturePoint
from pipeline.encoders.modules.references import Reference
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry

_NAME = re.compile(r"[A-Za-z_][\w.:+-]{0,99}", re.ASCII)
_WORDS = ("null", "true", "false", "inf", "nan")  # no texts in a setting such as `model=null`


@dataclass(frozen=True)
class ModuleDefinition:
    """An encoder made of a torch module; `pipeline.register_encoder` returns one.

    Its attributes are the arguments of `pipeline.register_encoder`. It is picklable; see
    `Reference`.
    """

    name: str
    factory: Reference
    layers: tuple[str, ...]
    sample_rate_hz: int = 16_000
    axes: str = "BTD"
    geometry: FrameGeometry | None = None
    inputs: Reference | None = None
    outputs: Reference | None = None
    lengths_argument: str | None = None
    mask_argument: str | None = None
    version: str | None = None
    max_window_s: float = 30.0
    context_s: float = 5.0

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_layers(self.name, self.layers)
        CapturePoint(self.layers[0], axes=self.axes)  # checks the axes
        rate_hz = self.sample_rate_hz
        if isinstance(rate_hz, bool) or not isinstance(rate_hz, int) or rate_hz < 1:
            raise ConfigError(f"sample_rate_hz is {rate_hz!r:.40}; expected samples per second")
        if self.version is not None and not isinstance(self.version, str):
            raise ConfigError(f"version is {self.version!r:.40}; expected a text, such as '2'")
        geometry = self.geometry
        if geometry is not None and not isinstance(geometry, FrameGeometry):
            raise ConfigError(f"geometry is {geometry!r:.80}; expected a FrameGeometry")
        if geometry is not None and geometry.sample_rate_hz != rate_hz:
            raise ConfigError(
                f"geometry has {geometry.sample_rate_hz} Hz and sample_rate_hz is {rate_hz}; give "
                "both the same rate"
            )
        if self.inputs is not None and (self.lengths_argument or self.mask_argument):
            raise ConfigError(
                "inputs makes all arguments of the module, so lengths_argument and mask_argument "
                "have no use; return the lengths from inputs"
            )

    @property
    def points(self) -> tuple[CapturePoint, ...]:
        """The outputs that are captured."""
        return tuple(CapturePoint(name, axes=self.axes) for name in self.layers)

    @property
    def gets_lengths(self) -> bool:
        """Whether the module is told the lengths of clips, so that it may ignore padding."""
        return any((self.inputs, self.lengths_argument, self.mask_argument))

    def facts(self) -> dict[str, Any]:
        """Return what the identity of the encoder has beside the digest of its weights."""
        code = {"factory": self.factory.name, "version": self.version}
        for name in ("inputs", "outputs"):
            if (reference := getattr(self, name)) is not None:
                code[name] = reference.name
        given = {
            name: value
            for name in ("lengths_argument", "mask_argument")
            if (value := getattr(self, name)) is not None
        }
        architecture = {"layers": list(self.layers), "sample_rate_hz": self.sample_rate_hz}
        return {"code": code, "architecture": architecture | given}


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _WORDS:
        raise ConfigError(
            f"the name of an encoder is {name!r:.80}; expected letters, digits, _, -, + and ., "
            f"from a letter or _ on, and none of {', '.join(_WORDS)}"
        )


def _check_layers(name: str, layers: Sequence[str]) -> None:
    expected = 'expected names of submodules, such as ["encoder.layers.0", "encoder.layers.1"]'
    if isinstance(layers, str) or not layers:
        raise ConfigError(f"layers of {name} is {layers!r:.80}; {expected}")
    for layer in layers:
        if not isinstance(layer, str) or not layer:
            raise ConfigError(f"layers of {name} has {layer!r:.80}; {expected}")
    twice = [layer for layer in layers if layers.count(layer) > 1]
    if twice:
        raise ConfigError(f"layers of {name} names {twice[0]!r} twice; {expected}, each once")

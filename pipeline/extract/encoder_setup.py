"""Check of the settings, and the configured encoder before its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.config import Config
from pipeline.encoders.base import Encoder, EncoderDescription, EncoderFamily, EncoderSettings
from pipeline.encoders.registry import find_family
from pipeline.encoders.settings import choose_layers, choose_precision, choose_windows
from pipeline.encoders.windows import Windowing
from pipeline.extract.resources import check_engine
from pipeline.store.format.geometry import FrameGeometry

BATCH_S = {"cpu": 20.0, "cuda": 320.0}
"""Default audio seconds of a padded batch. On CPUs 15 to 60 are equally fast; memory grows with
them."""


@dataclass(frozen=True)
class EncoderSetup:
    """The configured encoder with checked settings, before its weights are loaded.

    Attributes:
        config: The configuration.
        family: Family that loads the encoder.
        description: What is known of the encoder.
        layers: Layers to extract, ascending.
        windows: How long utterances are cut.
    """

    config: Config
    family: EncoderFamily
    description: EncoderDescription
    layers: tuple[int, ...]
    windows: Windowing

    @property
    def geometry(self) -> FrameGeometry:
        """Which samples a frame sees."""
        return self.description.geometry

    def loader(self, device: str, local_device: str | None = None) -> Callable[[], Encoder]:
        """Return a function that loads the encoder in any process; it pickles.

        Args:
            device: Device of the workers; decides the precision where it is "auto".
            local_device: Device to load on, if it is another one.
        """
        precision = choose_precision(self.config.extract.precision, device)
        settings = EncoderSettings(self.layers, precision, local_device or device, self.windows)
        return partial(self.family.load, self.config.model, settings)

    def batch_frames(self, device: str) -> int:
        """Return the bound on the padded frames of a batch."""
        seconds = self.config.extract.max_batch_s or BATCH_S[device]
        return max(1, round(seconds * self.geometry.frame_rate_hz))

    def final_norm(self, encoder: Encoder) -> dict[str, Any] | None:
        """Return the norm that a pre-norm model's last layer has not been through, for JSON."""
        norm = encoder.final_norm
        if norm is None or self.description.n_layers not in encoder.layers:
            return None
        return {
            "layer": self.description.n_layers,
            "weight": norm["weight"].tolist(),
            "bias": norm["bias"].tolist(),
            "eps": norm["eps"],
        }

    def describe_layers(self) -> str | None:
        """Report in one line what a choice of layers saves; None if all layers are extracted."""
        n_layers, deepest = self.description.n_layers, max(self.layers)
        if len(self.layers) >= n_layers:
            return None
        blocks = (
            f"stops after block {deepest} of {n_layers}"
            if deepest < n_layers
            else f"runs all {n_layers} blocks"
        )
        space = 1 - len(self.layers) / n_layers
        return (
            f"layers {list(self.layers)}: {blocks} and takes {space:.0%} less space than all of "
            "them"
        )


def check_settings(config: Config) -> EncoderSetup:
    """Check every setting that can be checked without data or weights.

    Every verb that takes such settings calls this first.

    Raises:
        ConfigError: A setting is wrong.
        WeightsError: The configuration of a Hugging Face checkpoint cannot be fetched.
    """
    check_engine(config.engine)
    model, extract = config.model, config.extract
    family = find_family(model.source)
    description = family.describe(model)
    choose_precision(extract.precision, "cpu")
    return EncoderSetup(
        config,
        family,
        description,
        choose_layers(extract.layers, description.n_layers),
        choose_windows(description, extract.max_window_s, extract.context_s),
    )

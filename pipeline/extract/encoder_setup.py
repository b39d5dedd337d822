"""Resolution of the encoder settings, without loading weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.config import Config
from pipeline.encoders.base import Encoder, EncoderDescription, EncoderFamily, EncoderSettings
from pipeline.encoders.registry import family_of, pin_model
from pipeline.encoders.settings import (
    check_precision,
    choose_layers,
    choose_precision,
    choose_windows,
)
from pipeline.encoders.windows import Windowing
from pipeline.extract.resources import check_engine
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layers import labels_of
from pipeline.store.format.stored_form import StoredForm, choose_form

BATCH_S = {"cpu": 20.0, "cuda": 320.0}
"""Default audio seconds of a batch. On CPUs 15 to 60 s are equally fast; memory grows with the
batch."""


@dataclass(frozen=True)
class EncoderSetup:
    """The configured encoder with checked settings, before its weights are loaded.

    Attributes:
        config: The configuration.
        family: Family that loads the encoder.
        description: Properties of the encoder.
        layers: Layers to extract, ascending.
        windows: Windowing of utterances longer than `max_window_s`.
        form: What is stored of an utterance, and how.
    """

    config: Config
    family: EncoderFamily
    description: EncoderDescription
    layers: tuple[int, ...]
    windows: Windowing
    form: StoredForm

    @property
    def geometry(self) -> FrameGeometry:
        """Sample rate, hop and receptive field of the frames."""
        return self.description.geometry

    def loader(self, device: str, local_device: str | None = None) -> Callable[[], Encoder]:
        """Return a function that loads the encoder in any process; it is picklable.

        Args:
            device: "cpu" or "cuda", the device of the workers; resolves the precision "auto".
            local_device: Device to load on; None for `device`.
        """
        precision = choose_precision(self.config.extract.precision, device)
        settings = EncoderSettings(self.layers, precision, local_device or device, self.windows)
        return partial(self.family.load, self.config.model, settings)

    def batch_frames(self, device: str) -> int:
        """Return the maximum of frames in a batch.

        Args:
            device: "cpu" or "cuda", the device of the workers.
        """
        seconds = self.config.extract.max_batch_s or BATCH_S[device]
        return max(1, round(seconds * self.geometry.frame_rate_hz))

    def stated_facts(self) -> dict[str, Any]:
        """Return what is known of the encoder's identity without its weights and its device."""
        facts: dict[str, Any] = {
            "model": self.description.name,
            "layers": list(self.layers),
            "max_window_s": self.windows.max_window_s,
            "context_s": self.windows.context_s,
        }
        if self.config.extract.precision != "auto":
            facts["precision"] = self.config.extract.precision
        return facts

    def describe_savings(self) -> str | None:
        """Describe the computation and space that the chosen layers save, in one line.

        Returns:
            None if layers 1 to N are all extracted.
        """
        description, deepest = self.description, max(self.layers)
        n_layers = description.n_layers
        if set(range(1, n_layers + 1)) <= set(self.layers):
            return None
        if deepest < 1:
            blocks = f"runs none of the {n_layers} blocks"
        elif deepest < n_layers:
            blocks = f"stops after block {deepest} of {n_layers}"
        else:
            blocks = f"runs all {n_layers} blocks"
        size = len(self.layers) * description.dim_of(self.layers)
        saved = 1 - size / (n_layers * description.dim)
        space = f"{abs(saved):.0%} {'less' if saved > 0 else 'more'} space than"
        space = space if saved else "as much space as"
        labels = labels_of({layer: description.names[layer] for layer in self.layers})
        return f"layers {labels}: {blocks} and takes {space} layers 1 to {n_layers}"


def resolve_encoder_setup(config: Config, stored: Mapping[str, Any] | None = None) -> EncoderSetup:
    """Check the settings that need neither data nor weights, and resolve layers and windows.

    Every verb with these settings calls this function first. It also decides on the commit of a
    checkpoint on the hub, which all workers load.

    Args:
        config: The configuration.
        stored: Attributes of the store that the features are compared with or added to; None if
            there is none. If no revision is configured, the commit is that of the store.

    Raises:
        ConfigError: A setting is wrong.
        WeightsError: The configuration of a Hugging Face checkpoint cannot be fetched.
    """
    check_engine(config.engine)
    extract = config.extract
    model = pin_model(replace(config.model, revision=revision_of(config, stored)))
    config = replace(config, model=model)
    family = family_of(model)
    description = family.describe(model)
    check_precision(extract.precision)
    return EncoderSetup(
        config,
        family,
        description,
        choose_layers(extract.layers, description),
        choose_windows(description, extract.max_window_s, extract.context_s),
        choose_form(extract.dtype, extract.keep, extract.pooling),
    )


def revision_of(config: Config, stored: Mapping[str, Any] | None) -> str | None:
    """Return the revision of the checkpoint to load: the configured one, or that of a store.

    Args:
        config: The configuration.
        stored: Attributes of a store; None if there is none.
    """
    if config.model.revision is not None or stored is None:
        return config.model.revision
    recorded = stored.get("provenance", {}).get("model", {})
    if (recorded.get("source"), recorded.get("name")) != (config.model.source, config.model.name):
        return None
    weights = stored.get("identity", {}).get("encoder", {}).get("weights", {})
    commit: str | None = weights.get("commit")
    return commit

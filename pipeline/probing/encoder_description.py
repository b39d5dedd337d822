"""Description of the encoder that made the features of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RANDOM_WARNING = (
    "the encoder's weights are RANDOM: these results say nothing about a trained encoder"
)


def describe_encoder(attributes: Mapping[str, Any]) -> str:
    """Return model, weights and precision of a store, and the layers of a collapsed store, as text.

    Args:
        attributes: Attributes of the store.
    """
    identity = attributes["identity"]
    encoder = identity["encoder"]
    weights = encoder.get("weights", {})
    parts = [str(encoder.get("model", encoder.get("name", "an unknown encoder")))]
    if source := weights_source(attributes):
        parts.append("RANDOM weights" if source == "random" else f"{source} weights")
    if "sha256" in weights:
        parts.append(f"sha256 {weights['sha256'][:8]}")
    if "precision" in encoder:
        parts.append(str(encoder["precision"]))
    if "collapse" in identity:
        layers = identity["collapse"]["layers"]
        parts.append(f"a weighted sum of {len(layers)} layers, {layers[0]} to {layers[-1]}")
    return ", ".join(parts)


def weights_source(attributes: Mapping[str, Any]) -> str | None:
    """Return the source of the encoder's weights (pretrained, random, ...); None if unknown."""
    provenance = attributes["provenance"]
    while "parent" in provenance or "sources" in provenance:
        if "parent" in provenance:  # of a collapsed store
            provenance = provenance["parent"]
        else:  # of a copy, whose sources are of one encoder
            provenance = provenance["sources"][0]["provenance"]
    recorded = attributes["identity"]["encoder"].get("weights", {}).get("source")
    source: str | None = provenance.get("weights", recorded)
    return source


def encoder_warnings(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings to show before any result from this store."""
    return (RANDOM_WARNING,) if weights_source(attributes) == "random" else ()

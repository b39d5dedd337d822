"""Where the features of a store come from, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RANDOM_WARNING = (
    "the encoder's weights are RANDOM: what is found here says nothing about a trained model"
)


def encoder_in_words(attributes: Mapping[str, Any]) -> str:
    """Model, weights and precision of a store, and the weighted sum if it was collapsed.

    Args:
        attributes: Of the store.
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
    """Where the encoder's weights came from: pretrained, random, ...; None if it is not known."""
    provenance = attributes["provenance"]
    while "parent" in provenance:  # a collapsed store has its parent's inside its own
        provenance = provenance["parent"]
    recorded = attributes["identity"]["encoder"].get("weights", {}).get("source")
    source: str | None = provenance.get("weights", recorded)
    return source


def warnings_of(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of any result from this store must know first."""
    return (RANDOM_WARNING,) if weights_source(attributes) == "random" else ()

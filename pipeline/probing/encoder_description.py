"""Descriptions of what results come from: the encoder of a store, and the setup of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pipeline.config import SweepConfig
from pipeline.errors import counted
from pipeline.probing.labels import Fold
from pipeline.probing.results import Setup
from pipeline.probing.splits.speakers import NO_SPEAKER, count_speakers, find_speaker_column
from pipeline.store.read.features import FeatureStore

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
        parts.append(
            f"a weighted sum of {counted(len(layers), 'layer')}, {layers[0]} to {layers[-1]}"
        )
    return ", ".join(parts)


def encoder_facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a store records of its encoder; what is unknown is left out.

    Args:
        attributes: Attributes of the store.

    Returns:
        "model", "weights" (pretrained, random, ...), "sha256" of the weights, "precision" of the
        computation, "dtype" of the stored values, and of a collapsed store "collapsed", the layers
        that were summed.
    """
    identity = attributes["identity"]
    encoder = identity["encoder"]
    facts = {
        "model": encoder.get("model", encoder.get("name")),
        "weights": weights_source(attributes),
        "sha256": encoder.get("weights", {}).get("sha256"),
        "precision": encoder.get("precision"),
        "dtype": identity.get("dtype"),
        "collapsed": identity.get("collapse", {}).get("layers"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def weights_source(attributes: Mapping[str, Any]) -> str | None:
    """Return the source of the encoder's weights (pretrained, random, ...); None if unknown."""
    provenance = _of_extraction(attributes)
    recorded = attributes["identity"]["encoder"].get("weights", {}).get("source")
    source: str | None = provenance.get("weights", recorded)
    return source


def encodes_one_by_one(attributes: Mapping[str, Any]) -> bool:
    """Return whether clips were encoded one by one, as the others of a batch change them."""
    return bool(_of_extraction(attributes).get("one_by_one", False))


def model_settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `model.*` of the extraction, by name; none if they are not recorded.

    Stores of earlier versions have them in the command only.
    """
    provenance = _of_extraction(attributes)
    if "model" in provenance:
        return dict(provenance["model"])
    command = [str(word).partition("=") for word in provenance.get("command", ())]
    given = {key: value for key, equals, value in command if equals}
    return {
        key.removeprefix("model.") if "." in key else "option": value
        for key, value in given.items()
        if key == "model" or key.startswith("model.")
    }


def _of_extraction(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of the extraction that a store goes back to."""
    provenance: dict[str, Any] = attributes["provenance"]
    while "parent" in provenance or "sources" in provenance:
        if "parent" in provenance:  # of a collapsed store
            provenance = provenance["parent"]
        else:  # of a copy, whose sources are of one encoder
            provenance = provenance["sources"][0]["provenance"]
    return provenance


def encoder_warnings(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings to show before any result from this store."""
    return (RANDOM_WARNING,) if weights_source(attributes) == "random" else ()


def describe_setup(
    store: FeatureStore, config: SweepConfig, labels: Sequence[str], folds: Sequence[Fold]
) -> Setup:
    """Collect what a methods section states of a sweep.

    Args:
        store: The features.
        config: Settings of the sweep, with the steps that heads were trained for.
        labels: Label columns.
        folds: The folds.
    """
    wanted = config.split.speaker
    column = find_speaker_column(store) if wanted in (None, NO_SPEAKER) else wanted
    if config.task.kind == "verification":
        column = labels[0]
    speakers = count_speakers(store, column, folds)
    return Setup(
        recipe=asdict(config.task),
        encoder=encoder_facts(store.attributes),
        speakers=speakers,
        speaker_column=column if speakers else None,
        n_stored=len(store.whole()),
        n_used=len(store),
        version=version("strata-speech"),
        fraction=config.fraction,
    )

"""The configuration files of a checkpoint, read as JSON before a library interprets them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.encoders.hub.checkpoint import CONFIG, Checkpoint
from pipeline.errors import ConfigError, WeightsError, did_you_mean

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


def read_config(checkpoint: Checkpoint, known_types: Iterable[str]) -> dict[str, Any]:
    """Read config.json, and check that a model of the installed library is meant.

    Args:
        checkpoint: The checkpoint.
        known_types: Values of `model_type` that the library knows.

    Raises:
        ConfigError: The model needs code of its own, or is of an unknown type.
        WeightsError: The file is missing or unreadable, or states no type.
    """
    config = read_json(checkpoint, checkpoint.folder() / CONFIG)
    model_type, known = config.get("model_type"), set(known_types)
    if model_type in known:
        return config
    if "auto_map" in config:
        raise ConfigError(
            f"{checkpoint} needs code of its own (auto_map in {CONFIG}), which is never run; "
            "give a checkpoint whose model_type transformers knows"
        )
    if not isinstance(model_type, str):
        raise WeightsError(
            f"{CONFIG} of {checkpoint} has no model_type, which names the architecture; add it, "
            'e.g. "model_type": "hubert"'
        )
    hint = did_you_mean(model_type, known) if _is_near(model_type, known) else ""
    raise ConfigError(
        f"{checkpoint} is a {model_type!r} model, which the installed transformers does not know"
        f"{hint or '; is a newer one needed?'}"
    )


def require_preprocessor(checkpoint: Checkpoint) -> Path:
    """Return the file with the sampling rate and the normalisation of the waveforms.

    Raises:
        WeightsError: There is none, or it is no JSON.
    """
    found = checkpoint.find(PREPROCESSOR) or checkpoint.find(PROCESSOR)
    if found is None:
        raise WeightsError(
            f"{checkpoint} has no {PREPROCESSOR}{checkpoint.where_missing()}, which states the "
            "sampling rate and the normalisation of the waveforms; copy that of the model that it "
            "was trained from, as both change the features"
        )
    read_json(checkpoint, found)
    return found


def read_json(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        WeightsError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.name} of {checkpoint} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path.name} of {checkpoint} holds a JSON {type(content).__name__}; expected an object"
        )
    return content


def _is_near(word: str, known: set[str]) -> bool:
    return "did you mean" in did_you_mean(word, known)

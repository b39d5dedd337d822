"""Encoders that are no option of conf/model: those that a program registers, and code of a user."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.hints import option_hint
from pipeline.config.schema import ModelConfig
from pipeline.errors import ConfigError

OWN_CODE = "module"
"""Option of the group `model`, and value of `model.source`, for code of the user."""
_GROUP = "model="
_CHECKPOINTS = (".pt", ".pth", ".ckpt")
_REGISTERED: dict[str, Mapping[str, str]] = {}


def register_model(name: str, settings: Mapping[str, str]) -> None:
    """Let `model=NAME` stand for settings of the option `module`, in this process.

    Args:
        name: Name of the encoder.
        settings: Settings `model.*` without that prefix, as texts.
    """
    _REGISTERED[name] = dict(settings)


def is_registered_model(name: str) -> bool:
    """Whether `model=NAME` stands for an encoder that this process has registered."""
    return name in _REGISTERED


def is_own_code(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a model, without the prefix `model.`, are those of code of the user."""
    return settings.get("source") == OWN_CODE or settings.get("target") is not None


def source_of(name: str, short_names: Container[str]) -> str:
    """Return the value of `model.source` that a name stands for, if none is given.

    Args:
        name: Name of a registered encoder, a short name, the path of a file or a directory, or a
            hub id.
        short_names: Models with a short name.
    """
    if is_registered_model(name):
        return OWN_CODE
    if name in short_names:
        return "torchaudio"
    if name.endswith(_CHECKPOINTS):
        return "checkpoint"
    return "huggingface" if "/" in name or Path(name).expanduser().is_dir() else "torchaudio"


def expand_models(overrides: Sequence[str]) -> list[str]:
    """Return overrides in which a registered name is written out as its settings."""
    expanded: list[str] = []
    for override in overrides:
        settings = _REGISTERED.get(override.removeprefix(_GROUP))
        if not override.startswith(_GROUP) or settings is None:
            expanded.append(override)
            continue
        expanded += [f"{_GROUP}{OWN_CODE}", *(f"model.{k}={v}" for k, v in settings.items())]
    return expanded


def model_hint(value: str, options: Sequence[str]) -> str:
    """Return a hint at the model that a value of `model=` means, and at how others are named."""
    if value.endswith(_CHECKPOINTS):
        return (
            f"; a file of fairseq, unilm or s3prl is model=checkpoint model.name={value}, a state "
            f"dict of a model with a short name model=NAME model.weights={value}"
        )
    if "/" in value:
        return (
            f"; a hub id or a folder of a checkpoint is model=hf model.name={value}. `strata "
            "models` lists the models with a short name"
        )
    name = value.lower().replace("-", "_")
    near = option_hint("model", name, [*options, *_REGISTERED])
    near = near if "did you mean" in near else "; `strata models` lists all."
    return (
        f"{near} A checkpoint of Hugging Face is model=hf "
        "model.name=ID_OR_DIR, any other torch module model=module: docs/add_an_encoder.md"
    )


def code_problem(target: str) -> str:
    """Return why the code that `model.target` names is not run, and what to do, as a message."""
    return (
        f"model.target={target} imports {target.partition(':')[0]} and calls its code, which needs "
        "your permission: add --allow-code if you trust it (in Python allow_code=True, or "
        "pipeline.register_encoder)"
    )


def check_code(model: ModelConfig, allow_code: bool) -> None:
    """Check that a model runs no code of its own, or that the user has allowed it.

    Raises:
        ConfigError: It names code, and the user has not.
    """
    if model.target is not None and not allow_code:
        raise ConfigError(code_problem(model.target))

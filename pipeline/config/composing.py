"""Settings as a program gives them: of an extraction, and of a sweep."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.config.checking import build, type_hints
from pipeline.config.loading import config_folder, load_config, load_sweep_config
from pipeline.config.models import OWN_CODE, is_own_code, is_registered_model, source_of
from pipeline.config.ranges import check_ranges, check_sweep
from pipeline.config.schema import Config
from pipeline.config.sweep_schema import SweepConfig
from pipeline.errors import ConfigError, did_you_mean

_OPTION_KEYS = {"dataset": "kind", "model": "name", "engine": "kind"}
"""The setting of each group that has the name of its YAML file."""
_GROUPS = (("split", "split"), ("task", "task_settings"), ("spans", "spans"))
"""Groups of settings of a sweep, and the keywords of their mappings."""


def compose_config(overrides: Sequence[str], settings: Mapping[str, Any]) -> Config:
    """Compose the configuration of an extraction from overrides and keywords.

    Args:
        overrides: `group=option` and `key=value`, as on the command line.
        settings: Values by the names of `Config`. A group (`dataset`, `model`, `engine`,
            `extract`, `plan`, `run`) is the name of an option as in `dataset=manifest`, a mapping
            of its settings, or its dataclass. They go before the overrides. A model may also be
            the id of a checkpoint on the hub or a path, and its source is then that of the name.

    Raises:
        ConfigError: A setting is unknown, of the wrong type or out of range.

    Example:
        >>> config = compose_config(["engine.threads=2"], {"dataset": {"path": "clips"}})
        >>> config.dataset.kind, config.dataset.path, config.engine.threads
        ('audiofolder', 'clips', 2)
    """
    hints = type_hints(Config)
    unknown = [name for name in settings if name not in hints]
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]}{did_you_mean(unknown[0], hints)}")
    if "model" in settings:
        settings = {**settings, "model": _with_source(settings["model"], overrides)}
    options = [
        f"{group}={option}"
        for group in _OPTION_KEYS
        if (option := _option(group, settings.get(group))) is not None
    ]
    config = load_config([*options, *overrides])
    for name, value in settings.items():
        if isinstance(value, str) and name in _OPTION_KEYS:
            continue  # chosen above
        config = dataclasses.replace(config, **{name: _converted(config, name, value)})
    check_ranges(config)
    return config


def compose_sweep_config(task: str, settings: Mapping[str, Any]) -> SweepConfig:
    """Compose the configuration of a sweep from keywords.

    Args:
        task: Name of the recipe.
        settings: Values by the names of `SweepConfig`. `split` is a mapping of its settings,
            `task_settings` one of those of the recipe, `spans` a path or a mapping of its settings.

    Raises:
        ConfigError: There is no such recipe, or a setting is unknown, of the wrong type or out of
            range.

    Example:
        >>> config = compose_sweep_config("ks", {"seeds": [0], "split": {"speaker": "voice"}})
        >>> config.task.name, config.seeds, config.split.speaker
        ('ks', (0,), 'voice')
    """
    if not isinstance(task, str):
        raise ConfigError(f"task is {task!r:.80}; expected the name of a recipe, such as 'ks'")
    defaults = dataclasses.asdict(load_sweep_config([f"task={task}"]))
    known = [name for name in defaults if name != "task"] + ["task_settings"]
    for name in settings:
        if name not in known:
            raise ConfigError(f"unknown setting {name}{_home(name, known, defaults)}")
    settings = {name: _plain(value) for name, value in settings.items()}
    if isinstance(settings.get("spans"), str):
        settings["spans"] = {"path": settings["spans"]}
    merged = defaults | {name: settings[name] for name in settings if name != "task_settings"}
    for group, key in _GROUPS:
        given = settings.get(key, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{key} is {given!r:.80}; expected a mapping of settings")
        for name in given:
            if name not in defaults[group]:
                hint = did_you_mean(str(name), defaults[group])
                raise ConfigError(f"unknown setting {name!r} in {key}{hint}")
        merged[group] = defaults[group] | dict(given)
    config = build(SweepConfig, merged)
    check_sweep(config)
    return config


def _plain(value: Any) -> Any:
    """Return paths, ranges, arrays and scalars of NumPy, also in mappings, as YAML has them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def _home(name: str, known: Sequence[str], defaults: Mapping[str, Any]) -> str:
    """Say in which mapping a setting is, or which one has a similar name."""
    for group, key in _GROUPS:
        if name in defaults[group]:
            return f"; write {key}={{{name!r}: ...}}"
    return did_you_mean(name, known)


def _with_source(model: Any, overrides: Sequence[str]) -> Any:
    """Return a model with the source of its name, if that is a hub id or a path and none is given.

    Other models are returned as they are.
    """
    settings = {"name": model} if isinstance(model, str | os.PathLike) else model
    if not isinstance(settings, Mapping) or settings.get("source") or is_own_code(settings):
        return model
    name = settings.get("name")
    is_chosen = any(override.startswith("model=") for override in overrides)
    if is_chosen or not isinstance(name, str | os.PathLike):
        return model
    name = os.fspath(name)
    short_names = [path.stem for path in (config_folder() / "model").glob("*.yaml")]
    source = source_of(name, short_names)
    is_short = source in ("torchaudio", OWN_CODE)
    return model if is_short else {**settings, "name": name, "source": source}


def _option(group: str, value: Any) -> str | None:
    """Return the YAML option of a group that a value names; None for the default one."""
    if isinstance(value, str):
        return value
    if group == "model" and isinstance(value, Mapping) and is_own_code(value):
        return OWN_CODE
    named = value.get(_OPTION_KEYS[group]) if isinstance(value, Mapping) else None
    if named is None:
        return None
    exists = (config_folder() / group / f"{named}.yaml").is_file()
    is_registered = group == "model" and is_registered_model(str(named))
    return str(named) if exists or is_registered else None


def _converted(config: Config, name: str, value: Any) -> Any:
    """Return the value of a setting or a group, checked.

    Raises:
        ConfigError: It has an unknown key, or the wrong type.
    """
    before, kind = dataclasses.asdict(config), type(getattr(config, name))
    if not dataclasses.is_dataclass(kind):
        return getattr(build(Config, before | {name: value}), name)
    if isinstance(value, Mapping):
        return build(kind, before[name] | dict(value), f"{name}.")
    if not isinstance(value, kind):
        option = ", the name of an option" if name in _OPTION_KEYS else ""
        raise ConfigError(
            f"{name} is {value!r:.80}; expected a mapping of settings{option} or a {kind.__name__}"
        )
    return value

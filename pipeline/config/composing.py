"""Settings of an extraction as a program gives them: overrides, groups as keywords, or both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.checking import build, type_hints
from pipeline.config.loading import config_folder, load_config
from pipeline.config.ranges import check_ranges
from pipeline.config.schema import Config
from pipeline.errors import ConfigError, did_you_mean

_OPTION_KEYS = {"dataset": "kind", "model": "name", "engine": "kind"}
"""The setting of each group that has the name of its YAML file."""


def compose_config(overrides: Sequence[str], settings: Mapping[str, Any]) -> Config:
    """Compose the configuration of an extraction from overrides and keywords.

    Args:
        overrides: `group=option` and `key=value`, as on the command line.
        settings: Values by the names of `Config`. A group (`dataset`, `model`, `engine`,
            `extract`, `plan`, `run`) is the name of an option as in `dataset=manifest`, a mapping
            of its settings, or its dataclass. They go before the overrides.

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


def _option(group: str, value: Any) -> str | None:
    """Return the YAML option of a group that a value names; None for the default one."""
    if isinstance(value, str):
        return value
    named = value.get(_OPTION_KEYS[group]) if isinstance(value, Mapping) else None
    exists = named is not None and (config_folder() / group / f"{named}.yaml").is_file()
    return str(named) if exists else None


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

"""Composition of YAML files and overrides; the only module that uses Hydra and OmegaConf."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config.checking import build, type_hints
from pipeline.config.hints import option_hint, setting_hint
from pipeline.config.models import expand_models, model_hint
from pipeline.config.ranges import check_ranges, check_sweep
from pipeline.config.schema import Config
from pipeline.config.sweep_schema import SweepConfig
from pipeline.errors import ConfigError, did_you_mean

T = TypeVar("T")
_PATH, _SPANS = "dataset.path=", "spans="
_QUOTES = "'\""


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration of `plan`, `extract` and `selfcheck`.

    A text setting (a path, a column, a split) is taken literally, whatever characters it has; only
    quotes around the whole value are removed. Other settings follow Hydra's grammar.

    Args:
        overrides: `group=option` and `key=value`, as on the command line.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: An override is misspelt, malformed, of the wrong type or out of range.
    """
    groups = {"dataset": "audiofolder", "model": "hubert_base", "engine": "ray"}
    config = _compose("config", Config, groups, expand_models(overrides))
    check_ranges(config)
    return config


def load_sweep_config(overrides: Sequence[str] = ()) -> SweepConfig:
    """Compose the configuration of `sweep`.

    Args:
        overrides: As for `load_config`; `task=...` is required.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: As for `load_config`, or no task is given.
    """
    tasks = sorted(path.stem for path in (config_folder() / "task").glob("*.yaml"))
    if not any(override.startswith("task=") for override in overrides):
        raise ConfigError(f"no task is given; set task={'|'.join(tasks)}")
    overrides = [
        f"spans.path={item[len(_SPANS) :]}" if item.startswith(_SPANS) else item
        for item in overrides
    ]
    config = _compose("sweep", SweepConfig, {"task": tasks[0]}, overrides)
    check_sweep(config)
    return config


def plain_overrides(overrides: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """Parse the `key=value` settings of a verb without YAML groups; return texts by key.

    Args:
        overrides: As on the command line.
        known: Valid keys.

    Raises:
        ConfigError: A key is unknown, or it has no value.
    """
    values = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key not in known:
            raise ConfigError(f"unknown setting {key}{did_you_mean(key, known)}")
        if not equals or not value:
            raise ConfigError(f"{override!r} is not a setting; write KEY=VALUE")
        values[key] = value
    return values


def config_folder() -> Path:
    """Return the folder of the YAML groups: beside the package in a clone, inside it if installed.

    Raises:
        ConfigError: There is no such folder.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/config.yaml in or beside {package}; the installation is incomplete")


def _compose(root: str, kind: type[T], groups: Mapping[str, str], overrides: Sequence[str]) -> T:
    """Merge conf/ROOT.yaml, the options of its groups and the overrides into a dataclass.

    Args:
        root: Name of the YAML file.
        kind: The dataclass.
        groups: Groups of the file, with the default option of each.
        overrides: As on the command line.
    """
    folder = config_folder()
    chosen = dict(groups)
    for override in overrides:
        key, _, value = override.partition("=")
        if key in chosen:
            chosen[key] = value
    _check_keys(overrides, folder, root, chosen)
    known = _text_settings(typing.cast("Any", kind))
    _check_expansion(overrides)
    texts = [item for item in overrides if item.partition("=")[0] in known]
    others = [item for item in overrides if item not in texts]
    mappings: list[str] = []
    try:
        merged = copy.deepcopy(_merge(folder, root, tuple(others)))
    except ConfigError:
        collections = _collections(typing.cast("Any", kind))
        unreadable = [item for item in others if not _is_readable(item)]
        if not unreadable:
            raise
        words = [key for key, what in collections.items() if what == "words"]
        mappings = [item for item in unreadable if item.partition("=")[0] in words]
        plain = tuple(
            _readable(item, collections) if item in unreadable else item
            for item in others
            if item not in mappings
        )
        merged = copy.deepcopy(_merge(folder, root, plain))
    for override in texts:
        key, _, value = override.partition("=")
        _put_text(merged, key, value)
    for override in mappings:
        key, _, value = override.partition("=")
        _put(merged, key, _mapping(key, value))
    return build(kind, merged)


def _readable(override: str, collections: Mapping[str, str]) -> str:
    """Return an override that Hydra's grammar allows, with quotes around what needs them.

    Args:
        override: `key=value`, with a key that is known, and not of this grammar.
        collections: "names" or "numbers" for each setting that takes a list of these.

    Raises:
        ConfigError: The value begins as a list, and cannot be read as one.
    """
    key, _, value = override.partition("=")
    text = value.strip()
    if text[0] not in "[{":  # of a wrong type, which `build` says
        return f"{key}={_in_quotes(value)}"
    kind = collections.get(key)
    if kind == "names" and text[-1] == "]":
        quoted = f"{key}=[{','.join(_readable_item(item) for item in text[1:-1].split(','))}]"
        if _is_readable(quoted):
            return quoted
    expected = {
        "names": "names in brackets, with special characters in double quotes, and for the shell "
        f"the whole setting in single quotes: '{key}=[\"a,b\",c]'",
        "numbers": f"numbers in brackets, such as {key}=[1,2]",
    }.get(kind or "", "no list")
    raise ConfigError(f"{key} is {value!r:.80}, which cannot be read; expected {expected}")


def _is_readable(override: str) -> bool:
    """Whether an override has one value by Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False
    except (ValueError, RecursionError):  # too long, which `_merge` refuses
        return True


def _readable_item(item: str) -> str:
    """Return an item of a list, in quotes if it needs them."""
    item = item.strip()
    has_quotes = not set(item).isdisjoint(_QUOTES)
    return item if not item or has_quotes or _is_readable(f"x={item}") else _in_quotes(item)


def _in_quotes(text: str) -> str:
    doubled = re.sub(r'(\\+)(?="|$)', r"\1\1", text)  # before a quotation mark only
    return '"' + doubled.replace('"', '\\"') + '"'


@cache
def _merge(folder: Path, root: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Compose a file, its groups and overrides by Hydra.

    Cached, because programs compose many configurations that differ only in text settings. So
    conf/ is read once per process.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        plain = [x for x in parsed if x.type is OverrideType.CHANGE and not x.is_sweep_override()]
        chosen = {
            x.key_or_group: str(x.value()) for x in plain if (folder / x.key_or_group).is_dir()
        }
        lines = {item.input_line for item in plain}
        config = _compose_groups(folder, root, chosen, [x for x in overrides if x not in lines])
        for item in plain:  # as Hydra does after it has composed the groups
            if item.key_or_group not in chosen:
                OmegaConf.update(config, item.key_or_group, item.value(), merge=True)
        return _plain(config)
    except InterpolationResolutionError as error:
        used = next(item for item in overrides if "${" in item)
        raise ConfigError(f"{used!r:.80} takes a value with ${{...}}; write it out") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a deep list
        longest = max(overrides, key=len)
        raise ConfigError(f"{longest[:60]!r} ... cannot be read: it is too long") from error


def _compose_groups(
    folder: Path, root: str, chosen: Mapping[str, str], others: Sequence[str]
) -> Any:
    """Put the chosen options of a file's groups into it, and let Hydra apply other overrides.

    Without others this is what Hydra composes, which takes 0.1 s for each choice of options.
    """
    from omegaconf import OmegaConf

    document = dict(_read(folder / f"{root}.yaml"))
    defaults = [item for item in document.pop("defaults") if item != "_self_"]
    options = {**{group: name for item in defaults for group, name in item.items()}, **chosen}
    if others or "???" in options.values():
        from hydra import compose, initialize_config_dir

        choices = [f"{group}={name}" for group, name in chosen.items()]
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose(root, [*choices, *others])
    del document["hydra"]
    groups = {group: _read(folder / group / f"{name}.yaml") for group, name in options.items()}
    config = OmegaConf.create(groups | document)
    OmegaConf.set_struct(config, True)
    return config


def _check_keys(
    overrides: Sequence[str], folder: Path, root: str, chosen: Mapping[str, str]
) -> None:
    """Refuse unknown keys and options before Hydra does, with a hint at the nearest one."""
    known = _known_keys(folder, root, chosen)
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if not key or (not equals and not override.startswith("~")):
            raise ConfigError(f"{override!r} is not a setting; write KEY=VALUE")
        if key in chosen:
            options = [path.stem for path in (folder / key).glob("*.yaml")]
            if value not in options:
                is_model = key == "model"
                hint = model_hint(value, options) if is_model else option_hint(key, value, options)
                raise ConfigError(f"no {key} is called {value!r}{hint}")
        elif key not in known:
            hint = _other_options(key, folder, root, chosen) or setting_hint(key, known)
            raise ConfigError(f"unknown setting {key}{hint}")


def _other_options(key: str, folder: Path, root: str, chosen: Mapping[str, str]) -> str:
    """Return a hint at the options of a group that have a setting, which the chosen one lacks."""
    group = key.partition(".")[0]
    if group not in chosen or key == group:
        return ""
    names = sorted(path.stem for path in (folder / group).glob("*.yaml"))
    having = [
        f"{group}={name}" for name in names if key in _known_keys(folder, root, {group: name})
    ]
    if not having:
        return ""
    return f"; it is a setting of {' or '.join(having)}, not of {group}={chosen[group]}"


def _known_keys(folder: Path, root: str, chosen: Mapping[str, str]) -> list[str]:
    """Return the dotted names of all settings of a file and its chosen options."""
    keys = list(chosen)
    documents = {group: folder / group / f"{name}.yaml" for group, name in chosen.items()}
    for prefix, path in {"": folder / f"{root}.yaml", **documents}.items():
        if not path.is_file():
            continue
        for key, value in _read(path).items():
            name = f"{prefix}.{key}" if prefix else key
            if key in ("defaults", "hydra"):
                continue
            if isinstance(value, dict):
                keys += [f"{name}.{part}" for part in value]
            else:
                keys.append(name)
    return keys


@cache
def _read(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return _plain(OmegaConf.load(path))


def _plain(document: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return typing.cast("dict[str, Any]", OmegaConf.to_container(document, resolve=True))


@cache
def _text_settings(kind: Any) -> frozenset[str]:
    """Return the dotted names of the settings whose value is text or null."""
    names = set()
    for group, hint in type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names |= {f"{group}.{key}" for key in _text_settings(typing.cast("Any", hint))}
        elif hint in (str, str | None):
            names.add(group)
    return frozenset(names)


@cache
def _collections(kind: Any) -> dict[str, str]:
    """Return the settings whose value may be a list or a mapping.

    "names" or "numbers" for a list of these, "words" for a mapping of names to words.
    """
    found: dict[str, str] = {}
    for group, hint in type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            inner = _collections(typing.cast("Any", hint))
            found |= {f"{group}.{key}": what for key, what in inner.items()}
            continue
        for option in (hint, *typing.get_args(hint)):
            if typing.get_origin(option) is tuple:
                found[group] = "names" if typing.get_args(option)[0] is str else "numbers"
            elif typing.get_origin(option) is dict:
                found[group] = "words"
    return found


def _check_expansion(overrides: Sequence[str]) -> None:
    """Refuse what a shell makes of x-{0..9}.tar: ten paths, of which only the last would count."""
    for before, override in itertools.pairwise(overrides):
        are_paths = before.startswith(_PATH) and override.startswith(_PATH)
        if are_paths and before != override:
            raise ConfigError(
                f"{before} is followed by {override}: if the shell has expanded braces, put quotes "
                f"around the setting, as in '{_PATH}x-{{0..9}}.tar'; else give one path"
            )


def _put_text(merged: dict[str, Any], key: str, value: str) -> None:
    """Set a text setting to its literal value, without the quotes around it."""
    if not value:
        raise ConfigError(f"{key} is empty; write {key}=null to leave it unset")
    if len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
        value = value[1:-1]
    _put(merged, key, None if value == "null" else value)


def _put(merged: dict[str, Any], key: str, value: Any) -> None:
    group, _, name = key.rpartition(".")
    (merged[group] if group else merged)[name] = value


def _mapping(key: str, value: str) -> Any:
    """Return a mapping of names to words, whose names may have any characters."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        found = _plain(OmegaConf.create(f"x: {value}"))["x"]
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(
            f"{key} is {value!r:.80}, which cannot be read; expected names with words in braces, "
            f"such as '{key}={{speaker: text}}'"
        ) from error
    return found

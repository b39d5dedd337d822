"""Arguments and options that several verbs share, and values of settings without YAML groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.ranges import Range, check_number
from pipeline.errors import ConfigError

IMPORTING = "importing torch and other libraries"
"""What takes long after the machine has started, or on a network file system."""

_LAYER = re.compile(r"-?\d{1,6}|[A-Za-z_][\w.-]*", re.ASCII)
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings, e.g. dataset.path=clips model=hubert_base store=features; "
        "docs/configuration.md lists all.",
    ),
]
Store = Annotated[str, typer.Argument(metavar="STORE", help="Path or URI of a store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
All = Annotated[bool, typer.Option("--all", help="Print all items of long lists.")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Import and call the code that model.target names."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]


def whole(given: Mapping[str, str], name: str, default: int, expected: Range) -> int:
    """Return the whole number that a setting has.

    Args:
        given: Texts of the settings, as `plain_overrides` returns them.
        name: The setting.
        default: Its value if it is not given.
        expected: Valid numbers.

    Raises:
        ConfigError: It is another text, or out of range.
    """
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ConfigError(f"{name} is {text[:40]!r}; expected a whole number, {expected}")
    check_number(name, int(text), expected)
    return int(text)


def flag(given: Mapping[str, str], name: str, default: bool = False) -> bool:
    """Return whether a setting is true; if it is not given, the default.

    Raises:
        ConfigError: It is neither true nor false.
    """
    text = given.get(name, str(default).lower())
    if text not in ("true", "false"):
        raise ConfigError(f"{name} is {text!r}; expected true or false")
    return text == "true"


def layer_list(given: Mapping[str, str], name: str = "layers") -> list[int | str] | None:
    """Return the layers that a setting has: `[1,conv]`, `6`, or `all` for None, the default.

    Raises:
        ConfigError: It is another text.
    """
    text = given.get(name, "all")
    if text == "all":
        return None
    if re.fullmatch(r"\[?\s*\]?", text):
        raise ConfigError(
            f"{name}={text} names no layers; expected layers such as [1,6], or leave it out for all"
        )
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    found = [item.strip() for item in inner.split(",")]
    is_list = inner != text or len(found) == 1
    if not is_list or not all(map(_LAYER.fullmatch, found)):
        raise ConfigError(f"{name} is {text[:40]!r}; expected layers such as [1,6], or all")
    return [int(item) if item.removeprefix("-").isdigit() else item for item in found]


def items(given: Mapping[str, str], name: str) -> list[str] | None:
    """Return the items of a list such as `[a,b]` or `a,b`; None if it is not given.

    Raises:
        ConfigError: An item is empty.
    """
    text = given.get(name)
    if text is None:
        return None
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    found = [item.strip() for item in inner.split(",")]
    if not all(found):
        raise ConfigError(f"{name} is {text!r:.60}; expected a list such as [a,b]")
    return found


def paths_and_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide arguments into paths and `key=value` settings; a path that exists is never one."""
    paths: list[str] = []
    settings: list[str] = []
    for argument in arguments:
        is_setting = _SETTING.match(argument) and not Path(argument).exists()
        (settings if is_setting else paths).append(argument)
    return paths, settings


def stores_and_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide arguments into paths of stores and `key=value` settings.

    Raises:
        ConfigError: No store is given.
    """
    stores, settings = paths_and_settings(arguments)
    if not stores:
        raise ConfigError(f"no store is given before {settings[0]}; write STORE KEY=VALUE")
    return stores, settings

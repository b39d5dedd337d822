"""Conversion of plain YAML values to frozen dataclasses, with type checks."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pipeline.errors import ConfigError, did_you_mean

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a frozen dataclass from plain values, recursively.

    Args:
        kind: The dataclass.
        values: Its fields, as read from YAML.
        prefix: Name of the group, for messages, e.g. "dataset.".

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    hints = type_hints(typing.cast("Any", kind))
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown setting {prefix}{key}{did_you_mean(key, hints)}")
    arguments = {
        key: _convert(hint, values[key], f"{prefix}{key}")
        for key, hint in hints.items()
        if key in values
    }
    try:
        return kind(**arguments)
    except TypeError as error:
        missing = [
            f"{prefix}{item.name}"
            for item in dataclasses.fields(typing.cast("Any", kind))
            if item.name not in values
            and item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
        ]
        raise ConfigError(f"missing setting {', '.join(missing)}") from error


@cache
def type_hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    return typing.get_type_hints(kind)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}; expected a group of settings")
        return build(typing.cast("type[Any]", hint), value, f"{name}.")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        converted = _try_convert(option, value)
        if converted is not _NO_MATCH:
            return converted
    expected = " or ".join(_type_name(option) for option in options)
    raise ConfigError(f"{name} is {value!r:.80}; expected {expected}")


_NO_MATCH = object()


def _try_convert(option: Any, value: Any) -> Any:
    if isinstance(option, types.UnionType):
        return value if type(value) in typing.get_args(option) else _NO_MATCH
    if option is types.NoneType:
        return None if value is None else _NO_MATCH
    if typing.get_origin(option) is dict:
        is_texts = isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())
        return {str(key): v for key, v in value.items()} if is_texts else _NO_MATCH
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        if not isinstance(value, list | tuple):
            return _NO_MATCH
        items = tuple(_try_convert(item, part) for part in value)
        return _NO_MATCH if _NO_MATCH in items else items
    if option is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 10**300 else _NO_MATCH
    if option is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # the name of a folder or a label may be 2024
    return value if type(value) is option else _NO_MATCH


def _type_name(option: Any) -> str:
    if option is types.NoneType:
        return "null"
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        lists: dict[Any, str] = {
            int: "a list of whole numbers ([1,2])",
            float: "a list of numbers ([0.1,0.2])",
            int | str: "a list of numbers or names ([1,conv])",
        }
        return lists.get(item, "a list of names ([a,b])")
    if typing.get_origin(option) is dict:
        return "names with words, such as {speaker: text}"
    names = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
    return names[option.__name__]

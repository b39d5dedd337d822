"""What a pickle says of classes, functions and objects, kept as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_DEPTH = 60  # of nested settings; those of fairseq are at most 6 deep, as objects 12
_MOST_VALUES = 100_000  # of all settings; fairseq has some 500
_SHOWN = 300  # characters of a message that come from a file
_NOT_ENUMS = ("numpy", "torch")  # beginnings of names of what takes one argument, too
_NODE_VALUE, _CONTENT = "_val", "_content"  # attributes of omegaconf's nodes and containers


@dataclass(frozen=True, eq=False, slots=True)
class Named:
    """A class or function that a pickle refers to. It is not imported.

    Attributes:
        kind: Its full name, e.g. "argparse.Namespace".
    """

    kind: str


@dataclass(eq=False, slots=True)
class Inert:
    """An object that a pickle would have built. Nothing of it is run.

    Attributes:
        kind: Full name of the class or function that would have been called.
        args: Arguments of the call.
        state: What the object's `__setstate__` or `__dict__` would have got; None if there is none.
        items: What would have been appended to it.
        entries: Keys and values that would have been set.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: list[tuple[Any, Any]] = field(default_factory=list)


def printable(text: str) -> str:
    """Return the first line of a text from a file, without control characters, for a message."""
    line = next(iter(text.splitlines()), "")[:_SHOWN]
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def plain(value: Any) -> Any:
    """Turn settings into plain Python values.

    A namespace of argparse and a DictConfig of omegaconf become a dict, a ListConfig a list, a node
    of omegaconf or an enumeration its value. Other objects become None: no setting is one.

    Args:
        value: What a pickle holds.

    Raises:
        ValueError: The settings are nested too deeply, contain themselves, or are too many.
    """
    return _Conversion().plain(value, _DEPTH)


class _Conversion:
    """Conversion of one value, with a limit for settings that refer to each other many times."""

    def __init__(self) -> None:
        self._n_left = _MOST_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        """Convert a value that may have `depth` levels below it."""
        self._n_left -= 1
        if depth == 0:
            raise ValueError(f"its settings are nested more than {_DEPTH} levels deep")
        if self._n_left < 0:
            raise ValueError(f"its settings have more than {_MOST_VALUES} values")
        if value is None or isinstance(value, str | bool | int | float):
            return value
        if isinstance(value, dict):
            return {key: self.plain(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item, depth - 1) for item in value]
        if isinstance(value, Inert):
            return self._object(value, depth - 1)
        return None

    def _object(self, value: Inert, depth: int) -> Any:
        state = value.state
        if isinstance(state, dict):
            for key in (_CONTENT, _NODE_VALUE):
                if value.kind.startswith("omegaconf.") and key in state:
                    return self.plain(state[key], depth)
            return self.plain(state, depth)
        if state is None and len(value.args) == 1 and not value.kind.startswith(_NOT_ENUMS):
            return self.plain(value.args[0], depth)
        return None

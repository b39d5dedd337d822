"""What a pickle says of classes, functions and objects, kept as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_DEPTH = 40  # of nested settings; those of fairseq are at most 6 deep
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


def plain(value: Any, depth: int = _DEPTH) -> Any:
    """Turn settings into plain Python values.

    A namespace of argparse and a DictConfig of omegaconf become a dict, a ListConfig a list, a node
    of omegaconf or an enumeration its value. Other objects become None: no setting is one.

    Args:
        value: What a pickle holds.
        depth: Levels that may follow.

    Raises:
        ValueError: The settings are nested too deeply, or contain themselves.
    """
    if depth == 0:
        raise ValueError(f"its settings are nested more than {_DEPTH} levels deep")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {key: plain(item, depth - 1) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list | tuple):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, Inert):
        return _plain_object(value, depth)
    return None


def _plain_object(value: Inert, depth: int) -> Any:
    state = value.state
    if isinstance(state, dict):
        for key in (_CONTENT, _NODE_VALUE):
            if value.kind.startswith("omegaconf.") and key in state:
                return plain(state[key], depth - 1)
        return plain(state, depth)
    if state is None and len(value.args) == 1 and not value.kind.startswith(("numpy", "torch")):
        return plain(value.args[0], depth - 1)  # an enumeration
    return None

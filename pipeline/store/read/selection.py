"""Values to select utterances by: types are checked, and values that no utterance has are named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError, first_few

_MAX_COMPARED = 2_000
_COLLECTIONS = (list, tuple, set, frozenset, range)
_KINDS = (
    (pa.types.is_boolean, "true or false"),
    (pa.types.is_integer, "whole numbers"),
    (pa.types.is_floating, "numbers"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
)


def listed(value: Any) -> list[Any]:
    """Return the values that an argument of `select` stands for: those of a collection, or one."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return list(value.to_pylist())
    if hasattr(value, "tolist"):  # an array, a tensor, or a NumPy scalar
        value = value.tolist()
    return list(value) if isinstance(value, _COLLECTIONS) else [value]


def typed_values(name: str, values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array of the type of the column that they are compared with.

    Args:
        name: The column, for messages.
        values: Python values; None stands for no value.
        kind: Type of the column. Text that is a number is valid for numbers.

    Raises:
        StoreError: A value has another type.
    """
    held = held_values(kind)
    if pa.types.is_nested(kind):
        raise StoreError(f"cannot select by {name}, which holds {held}; give a pyarrow expression")
    converted = []
    for value in values:
        item = value.item() if isinstance(value, np.generic) else value  # in a list
        try:
            converted.append(_convert(item, kind))
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            hint = f"; write {str(item)!r}" if held == "text" and isinstance(item, int) else ""
            raise StoreError(
                f"cannot select by {name}={item!r:.60}: the column holds {held}{hint}"
            ) from error
    return pa.array(converted, kind)


def column_values(
    name: str, given: Any, kind: pa.DataType, class_names: Sequence[str] = ()
) -> pa.Array:
    """Return the values that `select` compares a column with.

    Args:
        name: The column.
        given: One value or a collection; names of classes stand for their numbers.
        kind: Type of the column.
        class_names: Names of its classes, if it has any.

    Raises:
        StoreError: A value has another type, or is no class.
    """
    values = [
        class_number(name, item, class_names) if class_names and isinstance(item, str) else item
        for item in listed(given)
    ]
    return typed_values(name, values, kind)


def class_number(name: str, value: str, names: Sequence[str]) -> int:
    """Return the number of a class.

    Args:
        name: The column, for the message.
        value: Name of the class.
        names: Names of all classes.

    Raises:
        StoreError: There is no such class.
    """
    if value not in names:
        raise StoreError(f"no class {value!r} in column {name!r}; it has {', '.join(names)}")
    return list(names).index(value)


def held_values(kind: pa.DataType) -> str:
    """Return what a column of a type holds, in words."""
    return next((words for is_kind, words in _KINDS if is_kind(kind)), str(kind))


def absent_values(name: str, values: pa.Array, column: pa.ChunkedArray) -> str | None:
    """Describe the values that no row of a column has, in one line; None if there are none."""
    present = set(column.filter(pc.is_in(column, value_set=values)).unique().to_pylist())
    absent = [value for value in dict.fromkeys(values.to_pylist()) if value not in present]
    if not absent:
        return None
    there = column.drop_null().unique().slice(0, _MAX_COMPARED).to_pylist()
    texts = [value for value in there if isinstance(value, str)]
    similar = difflib.get_close_matches(str(absent[0]), texts, n=3) if texts else []
    if similar:
        hint = f"did you mean {' or '.join(map(repr, similar))}?"
    else:
        hint = f"there are {first_few(sorted(there))}" if there else "the column has no values"
    shown = first_few([repr(value) for value in absent])
    return f"no committed utterance has {name}={shown}; {hint}"


def _convert(value: Any, kind: pa.DataType) -> Any:
    """Return a value as the column holds it.

    Raises:
        ValueError, TypeError, OverflowError, pa.ArrowException: It has another type.
    """
    if value is None:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        is_valid = isinstance(value, str)
    elif pa.types.is_boolean(kind):
        is_valid = isinstance(value, bool)
    else:
        is_valid = not isinstance(value, bool)
        if pa.types.is_integer(kind):
            number = int(value) if isinstance(value, str) else value
            is_valid = is_valid and number == int(number)
            value = int(number)
        elif pa.types.is_floating(kind):
            value = float(value)
    if not is_valid:
        raise TypeError
    return pa.scalar(value, kind).as_py()

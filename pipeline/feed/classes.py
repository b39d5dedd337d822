"""Class numbers for columns of text or whole numbers, such as those of a metadata.csv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, first_few
from pipeline.store.read.features import FeatureStore

IntArray = npt.NDArray[np.int64]


def in_class_order(names: Iterable[str]) -> list[str]:
    """Sort class names: as numbers if all are numbers, else alphabetically."""
    distinct = set(names)
    is_numeric = all(map(is_number, distinct))
    return sorted(distinct, key=lambda name: (float(name) if is_numeric else 0.0, name))


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def class_numbers(
    store: FeatureStore, classes: Sequence[str] | Mapping[str, Sequence[str]]
) -> dict[str, tuple[list[str], IntArray]]:
    """Number the classes of columns.

    The names are those of all committed utterances of the store, so that selections of one store,
    such as train and test, have equal numbers.

    Args:
        store: The store, or a selection of it.
        classes: The columns; or the class names of each column, in the order of their numbers.

    Returns:
        For each column the class names, and the class number of each utterance, int64
        [n_utterances].

    Raises:
        ConfigError: A column does not hold classes, has no value for some utterance, or has one
            that is not among the given names.
        StoreError: There is no such column.
    """
    given = classes if isinstance(classes, Mapping) else dict.fromkeys(classes)
    return {name: _numbers(store, name, names) for name, names in given.items()}


def _numbers(
    store: FeatureStore, name: str, given: Sequence[str] | None
) -> tuple[list[str], IntArray]:
    stored, whole = store.class_names.get(name), store.whole_column(name)
    present = _texts(name, whole.slice(0, 1) if _is_nested(whole) else whole.unique(), stored)
    names = list(given if given is not None else stored or in_class_order(present.values()))
    number_of = {text: number for number, text in enumerate(names)}
    if len(number_of) < len(names):
        raise ConfigError(f"the class names of column {name!r} are not distinct: {names!r:.100}")
    column = store.metadata[name]
    if column.null_count:
        raise ConfigError(
            f"column {name!r} has no value for {column.null_count:,} of {len(store):,} utterances; "
            f"leave them out with store.select(pyarrow.compute.field({name!r}).is_valid())"
        )
    values = column.unique().to_pylist()
    unknown = [present[value] for value in values if present[value] not in number_of]
    if unknown:
        raise ConfigError(
            f"column {name!r} has values that are no class: {first_few(unknown)}; the classes are "
            f"{first_few(names)}"
        )
    numbers = pa.array([number_of[present[value]] for value in values], pa.int64())
    places = pc.index_in(column, value_set=pa.array(values, column.type))
    return names, np.array(numbers.take(places.combine_chunks()), np.int64)


def _is_nested(column: pa.ChunkedArray) -> bool:
    """Whether a column holds lists or the like, of which Arrow makes no distinct values."""
    return bool(pa.types.is_nested(column.type))


def _texts(name: str, values: pa.Array, stored: Sequence[str] | None) -> dict[Any, str]:
    """Return the class name of each distinct value of a column.

    Raises:
        ConfigError: The column holds something else than texts and whole numbers.
    """
    texts: dict[Any, str] = {}
    for value in values.drop_null().to_pylist():
        if stored is not None and isinstance(value, int):
            texts[value] = stored[value] if 0 <= value < len(stored) else str(value)
        elif isinstance(value, str):
            texts[value] = value
        elif isinstance(value, int | float) and float(value).is_integer():
            texts[value] = str(value if isinstance(value, bool) else int(value))
        else:
            raise ConfigError(
                f"column {name!r} holds {value!r:.60}; classes are texts or whole numbers. "
                f"columns=[{name!r}] returns the values as they are"
            )
    return texts

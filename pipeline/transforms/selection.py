"""The selection of `where=`, for every verb that has this setting."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError, StoreError, counted
from pipeline.events import Observer
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.selection import absent_values
from pipeline.store.read.where import parse_condition


def select_where(
    store: FeatureStore, where: str | None, observer: Observer | None = None
) -> FeatureStore:
    """Return the utterances that fulfil a condition; all if there is none.

    Args:
        store: The store.
        where: The condition; see `FeatureStore.select`.
        observer: Receives a warning about values that no utterance has; without one it is a
            `UserWarning`.

    Raises:
        StoreError: No utterance fulfils it, or the store has none; or a column or value is wrong.
        ConfigError: The text is no condition.
    """
    if where is None:
        if len(store) == 0:
            raise StoreError(f"store {store.location} has no committed utterances")
        return store
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        view = store.select(where)
    texts = [str(item.message) for item in caught]
    if len(view) == 0:
        hint = "".join(f"; {text}" for text in texts)
        raise StoreError(
            f"where={where!r:.200} selects none of the {counted(len(store), 'utterance')} of "
            f"{store.location}{hint}"
        )
    for text in texts:
        if observer is None:
            warnings.warn(text, stacklevel=3)
        else:
            observer.note(f"WARNING: {text}")
    return view


def mask_where(
    table: pa.Table,
    where: str,
    class_names: Mapping[str, Sequence[str]],
    owner: str,
    observer: Observer,
    nothing: type[ConfigError] = ConfigError,
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Return which rows fulfil a condition, and the columns that it compares with values.

    Args:
        table: Columns that the condition may name.
        where: The condition; see `FeatureStore.select`.
        class_names: Class names of the columns of classes.
        owner: What has the rows, for messages.
        observer: Receives a warning for a value that no row has.
        nothing: What is raised if no row fulfils it.

    Returns:
        bool [n_rows], and names.

    Raises:
        ConfigError: The text is no condition, or no row fulfils it.
        StoreError: It names an unknown column, or a value has another type.
    """
    condition = parse_condition(where, table.schema, class_names)
    numbered = table.append_column("__position", pa.array(np.arange(len(table))))
    chosen = np.zeros(len(table), bool)
    chosen[numbered.filter(condition.expression)["__position"].to_numpy()] = True
    absent = [absent_values(name, values, table[name]) for name, values in condition.compared]
    hint = "; ".join(text for text in absent if text)
    if not chosen.any():
        reason = f"{hint}; " if hint else ""
        raise nothing(
            f"no utterance of {owner} has where={where!r:.200}: {reason}the columns are "
            f"{', '.join(table.column_names)}"
        )
    if hint:
        observer.note(f"WARNING: where: {hint}")
    return chosen, list(dict.fromkeys(name for name, _ in condition.compared))

"""The selection of `where=`, for every verb that has this setting."""

from __future__ import annotations

import warnings

from pipeline.errors import StoreError, counted
from pipeline.events import Observer
from pipeline.store.read.features import FeatureStore


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

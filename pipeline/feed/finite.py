"""The refusal of features that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import StoreError, counted, first_few
from pipeline.store.read.features import FeatureStore


def refuse_not_finite(store: FeatureStore, positions: Sequence[int]) -> None:
    """Name utterances whose features are not finite.

    Args:
        store: The store.
        positions: Positions of these utterances; empty if all features are finite.

    Raises:
        StoreError: There are such utterances.
    """
    if positions:
        ids = [store.ids[i] for i in positions]
        raise StoreError(
            f"the features of {counted(len(ids), 'utterance')} of {store.location} are not finite "
            f"({first_few(ids)}); `strata verify` finds damage, and a selection leaves utterances "
            "out"
        )

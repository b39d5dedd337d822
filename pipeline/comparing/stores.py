"""Stores of a sweep: which are read as one, and which are compared.

Stores of the same features with other utterances are read as one. Stores that have utterances in
common are compared on these, in the order of the first store, so that labels, split and test units
are those of every sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import SweepConfig
from pipeline.errors import ConfigError, StoreError, counted, first_few
from pipeline.events import Observer
from pipeline.probing.labels import IntArray, Labels, read_texts
from pipeline.probing.run import choose_layers
from pipeline.probing.splits import Split, make_split
from pipeline.probing.splits.shares import take_share
from pipeline.probing.tasks.spans_data import SPAN_KINDS, read_task_labels
from pipeline.store.backend.folders import name_of, relation
from pipeline.store.format.identity import compare
from pipeline.store.labels import places_of_ids
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.joined.columns import what_must_agree
from pipeline.store.read.joined.store import JoinedStore
from pipeline.store.read.opening import open_store

_MAX_FRAMES_APART = 1
"""Frames by which one recording may differ in two stores of one frame rate, by the resampler."""

Given = FeatureStore | str | Path


def open_stores(given: Sequence[Given]) -> list[FeatureStore]:
    """Open stores, and join those of the same features that have no utterances in common.

    Returns:
        One store, or several to compare.

    Raises:
        ConfigError: No store is given, one is given twice, or open selections would be joined.
        StoreError: There is no such store, it is empty, or stores can be neither joined nor
            compared.
        IdentityError: Stores to be joined differ in their layers or in the type of their values.
    """
    if not given:
        raise ConfigError("no store is given; expected its path, or those of several")
    stores = [item if isinstance(item, FeatureStore) else open_store(item) for item in given]
    for i, one in enumerate(stores):
        for other in stores[:i]:
            if relation(one.backend, other.backend) == "the same folder as":
                raise ConfigError(f"store {one.location} is given twice; give each store once")
        if len(stores) > 1 and not len(one):
            raise StoreError(
                f"{one.location} has no complete utterances yet; run `strata extract` first"
            )
    groups: list[list[FeatureStore]] = []
    for store in stores:
        group = next((g for g in groups if all(_may_join(one, store) for one in g)), None)
        if group is None:
            groups.append([store])
        else:
            group.append(store)
    return [_joined(group) for group in groups]


def name_of_stores(store: FeatureStore) -> str:
    """Return the name of a store, or those of several that are read as one."""
    return "+".join(map(name_of, store.backends))


def common_utterances(stores: Sequence[FeatureStore], observer: Observer) -> list[FeatureStore]:
    """Return the utterances that all stores have, in the order of the first.

    Args:
        stores: Stores to compare, at least two.
        observer: Receives a warning if a store lacks utterances.

    Raises:
        StoreError: They have none in common, or equal ids are of different recordings.
    """
    first, *others = stores
    ids = first.metadata["id"].combine_chunks()
    places = [np.arange(len(first))]
    for other in others:
        found = places_of_ids(ids, other.metadata["id"].combine_chunks())
        if not (found >= 0).any():
            raise StoreError(_nothing_shared(first, other))
        places.append(found)
    shared = np.flatnonzero(np.all([found >= 0 for found in places], axis=0))
    if not len(shared):
        names = ", ".join(store.location for store in stores)
        raise StoreError(f"no utterance is in all of {names}; give stores of the same utterances")
    for other, found in zip(others, places[1:], strict=True):
        _check_lengths(first, other, shared, found[shared])
    for store in stores:
        if len(store) > len(shared):
            observer.note(
                f"WARNING: {store.location} has {counted(len(store), 'utterance')}, of which the "
                f"{len(shared):,} that all stores have are compared"
            )
    return [_taken(store, found[shared]) for store, found in zip(stores, places, strict=True)]


def check_comparable(stores: Sequence[FeatureStore], config: SweepConfig) -> Labels:
    """Check that the sweeps of stores learn the same labels of the same utterances.

    Args:
        stores: The same utterances, in the same order.
        config: Settings of the sweeps.

    Returns:
        Labels of the utterances.

    Raises:
        ConfigError: A store lacks the labels, a layer, or a column of the split; labels or splits
            differ; or a share of train is too small for the task.
    """
    first = stores[0]
    labels, split = _labels_and_split(first, config)
    for variant in config.variants:
        take_share(split, variant.task, labels, variant.fraction, variant.split.seed)
    for other in stores[1:]:
        found, other_split = _labels_and_split(other, config)
        if config.task.kind not in SPAN_KINDS:
            _check_labels(first, labels, other, found)
        if not _are_equal(split, other_split):
            raise ConfigError(
                f"stores {first.location} and {other.location} give different splits of the same "
                f"utterances{_other_columns(first, other)}. Give them the same columns with "
                "`strata relabel`, or set split.column and split.speaker to columns that they share"
            )
    return labels


def _may_join(one: FeatureStore, other: FeatureStore) -> bool:
    """Whether two stores have the same features of other utterances."""
    if compare(*what_must_agree(one.attributes, other.attributes)):
        return False
    ids, others = (store.metadata["id"].combine_chunks() for store in (one, other))
    return not bool((places_of_ids(ids, others) >= 0).any())


def _joined(group: Sequence[FeatureStore]) -> FeatureStore:
    """Return stores as one.

    Raises:
        ConfigError: One is a selection.
    """
    if len(group) == 1:
        return group[0]
    if any(isinstance(store, JoinedStore) or len(store) < len(store.whole()) for store in group):
        raise ConfigError(
            "open stores of the same features with other utterances are not joined here. Join "
            "them with pipeline.open_store([PATH, PATH]), and select from the result"
        )
    return JoinedStore(group)


def _nothing_shared(one: FeatureStore, other: FeatureStore) -> str:
    """Say why two stores are neither compared nor joined."""
    differences = compare(*what_must_agree(one.attributes, other.attributes))
    return (
        f"stores {one.location} and {other.location} have no utterance in common (the first has "
        f"{first_few(one.ids[:2])}, the second {first_few(other.ids[:2])}), so they cannot be "
        f"compared; and they cannot be joined, because their features are of different kinds: "
        f"{'; '.join(differences)}. Give stores of the same utterances, or of the same features"
    )


def _check_lengths(
    one: FeatureStore, other: FeatureStore, shared: IntArray, places: IntArray
) -> None:
    """Check that utterances of one id are of one recording, where frames have the same rate.

    Raises:
        StoreError: They have other lengths.
    """
    if one.geometry != other.geometry:
        return
    lengths, others = one.frame_counts[shared], other.frame_counts[places]
    differ = np.flatnonzero(np.abs(lengths - others) > _MAX_FRAMES_APART)
    if not len(differ):
        return
    at = int(differ[0])
    name = one.ids[int(shared[at])]
    raise StoreError(
        f"{counted(len(differ), 'utterance')} of {len(shared):,} that {one.location} and "
        f"{other.location} have in common have other lengths (first {name!r}: {lengths[at]:,} and "
        f"{others[at]:,} frames): equal ids are of different recordings. Give stores of the same "
        "recordings; or if these are different corpora, write one store with `strata copy "
        "STORE STORE NEW prefix=true`, and sweep that"
    )


def _taken(store: FeatureStore, places: IntArray) -> FeatureStore:
    """Return utterances of a store; the store itself if they are all of its own, in its order."""
    is_whole = len(places) == len(store) and np.array_equal(places, np.arange(len(store)))
    return store if is_whole else store.take(places.tolist())


def _labels_and_split(store: FeatureStore, config: SweepConfig) -> tuple[Labels, Split]:
    layers = choose_layers(store, config)
    try:
        labels, _ = read_task_labels(store, config, len(layers))
        return labels, make_split(store, config.task, config.split, labels)
    except ConfigError as error:
        raise ConfigError(f"store {store.location}: {error}") from error


def _check_labels(one: FeatureStore, labels: Labels, other: FeatureStore, found: Labels) -> None:
    """Check that the labels of two stores are equal.

    Raises:
        ConfigError: They are not.
    """
    if labels.columns != found.columns:
        raise ConfigError(
            f"the labels of {one.location} are {', '.join(labels.columns)} and those of "
            f"{other.location} {', '.join(found.columns)}; set labels=[COLUMN] to a column that "
            "both have, or renew the columns with `strata relabel`"
        )
    for column, ours, theirs in zip(labels.columns, labels.texts, found.texts, strict=True):
        differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        if differ:
            at = differ[0]
            raise ConfigError(
                f"{counted(len(differ), 'label')} of {len(ours):,} in column {column!r} differ "
                f"between {one.location} and {other.location} (first {one.ids[at]!r}: "
                f"{ours[at]!r} and {theirs[at]!r}). Renew the columns of one of them with "
                "`strata relabel`; if equal ids are of different recordings, these stores cannot "
                "be compared"
            )


def _are_equal(one: Split, other: Split) -> bool:
    """Whether two splits have the same folds."""
    parts = (
        [part for fold in split.folds for part in (fold.train, fold.dev, fold.test)]
        for split in (one, other)
    )
    ours, theirs = parts
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def _other_columns(one: FeatureStore, other: FeatureStore) -> str:
    """Name the columns that differ between two stores with the same utterances."""
    names = [set(store.metadata.column_names) for store in (one, other)]
    alone = sorted(names[0] ^ names[1])
    found = [f"only one of them has the columns {first_few(alone)}"] if alone else []
    for name in sorted(names[0] & names[1] - {"id"}):
        try:
            ours, theirs = (read_texts(store, name) for store in (one, other))
        except ConfigError:  # a list, which is no part of a split
            continue
        n = sum(a != b for a, b in zip(ours, theirs, strict=True))
        if n:
            found.append(f"column {name!r} differs for {counted(n, 'utterance')}")
    return f" ({'; '.join(found)})" if found else ""

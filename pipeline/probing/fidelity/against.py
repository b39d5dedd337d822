"""Another store as the reference: whether the two can be compared, and its frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.errors import ConfigError, IdentityError, StoreError, counted, first_few
from pipeline.probing.fidelity.figures import Frames
from pipeline.store.backend.folders import relation
from pipeline.store.format.codecs import FLOAT32
from pipeline.store.format.identity import compare
from pipeline.store.format.layers import labels_of
from pipeline.store.labels import places_of_ids
from pipeline.store.read.catalogue import Piece
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.joined.columns import what_must_agree


class StoreReference:
    """Features of another store of the same encoder.

    Attributes:
        description: What it is, for people.
        precision: Precision of its encoder; None if its store does not say.
        layers: Layers that both stores have.
        warnings: Says that the reference has an error of its own, unless it is float32.
    """

    def __init__(self, store: FeatureStore, other: FeatureStore) -> None:
        """Check that the two stores can be compared.

        Args:
            store: The store.
            other: The reference.

        Raises:
            ConfigError: They are the same store.
            StoreError: One of them keeps no frames.
            IdentityError: They are of different encoders or audio, or have no layer in common.
        """
        if relation(store.backend, other.backend) == "the same folder as":
            raise ConfigError(f"{other.backend} is the store itself; give another reference")
        check_frames(store)
        check_frames(other)
        stored, expected = what_must_agree(store.attributes, other.attributes)
        for facts in (stored, expected):
            facts["encoder"].pop("precision", None)
        differences = compare(stored, expected)
        if differences:
            raise IdentityError(
                f"stores {store.backend} (there) and {other.backend} (here) cannot be compared, "
                f"because their features are of different kinds: {'; '.join(differences)}. Give "
                "another store of the same encoder and audio as the reference"
            )
        self.layers = tuple(layer for layer in store.layers if layer in other.layers)
        if not self.layers:
            raise IdentityError(
                f"stores {store.backend} and {other.backend} cannot be compared: the first has "
                f"layers {labels_of(store.named_layers)}, the second "
                f"{labels_of(other.named_layers)}"
            )
        self._store = other
        self.precision = precision_of(other)
        self.warnings: tuple[str, ...] = ()
        if other.codec != FLOAT32:
            self.warnings = (
                f"the reference {other.backend} has {other.codec.name} values: their own error is "
                "part of the figures",
            )
        self.description = f"{other.codec.name} values of {other.backend}"

    def read(self, name: str, piece: Piece, layers: Sequence[int]) -> Frames:
        """Return the frames of an utterance: float32 [n_layers, n_frames, dim]."""
        found = self._store.read(name, layers, piece.start, piece.stop, verify=True)
        return np.asarray(found.float().numpy())


def check_frames(store: FeatureStore) -> None:
    """Check that a store has frames to compare.

    Raises:
        StoreError: It keeps statistics only.
    """
    if not store.keeps_frames:
        raise StoreError(
            f"store {store.backend} keeps no frames to compare, only the statistics "
            f"{', '.join(store.statistics)}, as float32; give a store with extract.keep=[frames] "
            "or [frames,pooled]"
        )


def precision_of(store: FeatureStore) -> str | None:
    """Return the precision of the encoder of a store; None if the store does not say."""
    precision: str | None = store.attributes["identity"].get("encoder", {}).get("precision")
    return precision


def in_common(
    store: FeatureStore, other: FeatureStore
) -> tuple[FeatureStore, FeatureStore, str | None]:
    """Return the utterances that two stores have in common, in the order of the first.

    Returns:
        Both selections, and a note on what is left out; None if that is nothing.

    Raises:
        StoreError: They have none in common.
    """
    ids = store.metadata["id"].combine_chunks()
    places = places_of_ids(ids, other.metadata["id"].combine_chunks())
    positions = np.flatnonzero(places >= 0)
    if not len(positions):
        raise StoreError(
            f"stores {store.backend} and {other.backend} have no utterance in common: the first "
            f"has {first_few(store.ids)}, the second {first_few(other.ids)}"
        )
    same = store.frame_counts[positions] == other.frame_counts[places[positions]]
    differ = store.take(positions[~same].tolist()).ids
    positions = positions[same]
    if not len(positions):
        raise StoreError(
            f"all utterances that stores {store.backend} and {other.backend} have in common have "
            f"different lengths, first {differ[0]!r}: they are of different audio"
        )
    notes = []
    n_alone = len(store) - len(positions) - len(differ)
    if n_alone:
        notes.append(f"{counted(n_alone, 'utterance')} of {store.backend} not in {other.backend}")
    if differ:
        notes.append(
            f"{counted(len(differ), 'utterance')} of another length there: {first_few(differ)}"
        )
    note = f"left out: {'; '.join(notes)}" if notes else None
    taken = other.take(places[positions].tolist())
    return store.take(positions.tolist()), taken, note

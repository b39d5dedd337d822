"""The utterances of several stores, read as one store.

The catalogue of all stores numbers their slots apart (`catalogue.Place`). So it serves each of the
stores as it is: a part of a joined view is a store with the catalogue of all, and its own files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, IdentityError
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.folders import name_of
from pipeline.store.format.layout import CHECKSUM, LABEL_ATTRIBUTES
from pipeline.store.read.catalogue import Catalogue, Place
from pipeline.store.read.joined.columns import (
    Column,
    check_alike,
    check_distinct,
    check_ids,
    join_metadata,
    with_prefix,
)
from pipeline.store.read.utterances import StoreView

_REMEDY = (
    "open_store(..., prefix=True) and `strata copy ... prefix=true` make them <folder of the "
    "store>/<id>"
)
_N_NAMED = 3


def locations_of(uri: Location | Iterable[Location]) -> list[Location]:
    """Return the stores that are given: one, or several."""
    is_one = isinstance(uri, str | bytes) or not isinstance(uri, Iterable)
    if is_one or hasattr(uri, "__fspath__") or hasattr(uri, "put_if_absent"):
        return [cast("Location", uri)]
    return list(cast("Iterable[Location]", uri))


class JoinedView(StoreView):
    """The committed utterances of several stores, one store after the other.

    Args:
        stores: At least one, all utterances of each, as they were opened.
        prefix: Whether ids become `<folder of the store>/<id>`.

    Raises:
        ConfigError: A store is given twice, or folders of the same name are to be prefixes.
        IdentityError: Features of two stores are of different kinds or in different forms.
        StoreError: An id is in several stores, or a column has different types.
    """

    _parts: tuple[StoreView, ...]

    def __init__(self, stores: Sequence[StoreView], prefix: bool = False) -> None:
        backends = [store.backend for store in stores]
        check_distinct(backends)
        for store in stores[1:]:
            _check_alike(stores[0], store)
        prefixes = _prefixes(backends) if prefix else [""] * len(stores)
        self._parts = tuple(
            store._placed(Place(number, len(stores), prefixes[number]))
            for number, store in enumerate(stores)
        )
        self._layout, self._verify = stores[0]._layout, stores[0]._verify
        self._conditions = ()
        self._open()
        self._whole = catalogue = self._join([store._catalogue for store in stores])
        self.attributes = _attributes(stores, self._carried)
        self._show(catalogue)

    def _open(self) -> None:
        """Make what reads tokens; the parts read the other files."""
        self._readers_of_tokens = []

    def _expect_whole(self) -> None:
        for part in self._parts:
            part._expect_whole()

    def _renew_checksums(self) -> None:
        for part in self._parts:
            part._renew_checksums()

    def _show(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._parts = tuple(part._shown(catalogue) for part in self._parts)

    def _present_state(self) -> str:
        return _joined_state(StoreView._present_state(part) for part in self._parts)

    def _read_catalogue(self) -> Catalogue:
        return self._join([part._read_catalogue() for part in self._parts])

    def _join(self, catalogues: Sequence[Catalogue]) -> Catalogue:
        """Return the catalogue of all stores, and note their columns."""
        joined = [
            _Joinable(part.backend, catalogue, _known(part._carried, catalogue))
            for part, catalogue in zip(self._parts, catalogues, strict=True)
        ]
        metadata, self._columns = join_metadata(joined, self.id_prefixes)
        catalogue = _joined_catalogue(catalogues, metadata, self.id_prefixes)
        if not any(self.id_prefixes) and catalogue.has_repeated_ids:
            check_ids(metadata["id"], self.backends, _REMEDY)
        return catalogue

    def close(self) -> None:
        """Close the files of all stores; see `StoreView.close`."""
        for part in self._parts:
            part.close()

    @property
    def backend(self) -> Backend:
        """Storage of the store.

        Raises:
            ConfigError: These are several stores.
        """
        raise ConfigError(
            f"these are {len(self._parts)} stores ({self.location}), which have `backends`; give "
            "one store"
        )

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Storage of each store."""
        return tuple(part.backend for part in self._parts)

    @property
    def location(self) -> str:
        """Where the first stores are, for messages."""
        named = ", ".join(str(backend) for backend in self.backends[:_N_NAMED])
        more = len(self._parts) - _N_NAMED
        return f"{named} and {more} more" if more > 0 else named

    @property
    def id_prefixes(self) -> tuple[str, ...]:
        """What comes before the ids of each store."""
        return tuple(part._place.prefix for part in self._parts)

    def check_frames(self) -> None:
        """Check that frames can be read; see `StoreView.check_frames`."""
        self._parts[0].check_frames()

    @property
    def statistics(self) -> tuple[str, ...]:
        """Statistics over the frames of an utterance that every store keeps; see `pooled`."""
        others = [part.statistics for part in self._parts[1:]]
        return tuple(
            name for name in self._parts[0].statistics if all(name in kept for kept in others)
        )


@dataclass(frozen=True)
class _Joinable:
    """One store: where it is, its utterances, and its carried columns."""

    backend: Backend
    catalogue: Catalogue
    columns: tuple[Column, ...]


def _known(columns: Sequence[Column], catalogue: Catalogue) -> tuple[Column, ...]:
    names = set(catalogue.metadata.column_names)
    return tuple(column for column in columns if column["name"] in names)


def _prefixes(backends: Sequence[Backend]) -> list[str]:
    """Return what comes before the ids of each store.

    Raises:
        ConfigError: Folders have the same name.
    """
    names = [name_of(backend) for backend in backends]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(
                f"the folders of {backends[names.index(name)]} and {backends[i]} are both called "
                f"{name!r}, which would be the prefix of their ids; rename one, or open them "
                "without prefix"
            )
    return [f"{name}/" for name in names]


def _check_alike(one: StoreView, other: StoreView) -> None:
    """Check that the features of two stores can be read as those of one.

    Raises:
        IdentityError: They cannot.
    """
    check_alike((one.backend, one.attributes), (other.backend, other.attributes), with_layers=True)
    if one.keeps_frames != other.keeps_frames:
        with_frames, without = (one, other) if one.keeps_frames else (other, one)
        raise IdentityError(
            f"store {without.backend} keeps no frames, {with_frames.backend} does; `strata copy "
            f"{with_frames.backend} NEW keep=[pooled]` makes a store without them, to be opened "
            "instead"
        )
    kinds = [store.codec.value_dtype for store in (one, other)]
    if one.keeps_frames and kinds[0] != kinds[1]:
        raise IdentityError(
            f"features are returned as {kinds[0]} from store {one.backend} ({one.codec.name}) and "
            f"as {kinds[1]} from {other.backend} ({other.codec.name}); `strata copy "
            f"{other.backend} NEW dtype={one.codec.name}` makes a store to be opened instead"
        )


def _attributes(stores: Sequence[StoreView], columns: Sequence[Column]) -> dict[str, Any]:
    """Return attributes of all stores, as those of one."""
    first = stores[0].attributes
    own = {k: v for k, v in first.items() if k not in (CHECKSUM, *LABEL_ATTRIBUTES, "selfcheck")}
    for name in ("format_version", "frames_per_unit", "utterances_per_slot"):
        own[name] = max(store.attributes[name] for store in stores)
    source = first["identity"].get("source", {}) | {"columns": [dict(item) for item in columns]}
    identities = [store.attributes["identity"] for store in stores]
    own["identity"] = first["identity"] | {"source": source, "stores": identities}
    facts = [
        {
            "path": str(store.backend),
            "identity": store.attributes["identity"],
            "provenance": store.attributes["provenance"],
        }
        for store in stores
    ]
    return own | {"provenance": {"sources": facts}}


def _joined_catalogue(
    catalogues: Sequence[Catalogue], metadata: pa.Table, prefixes: Sequence[str]
) -> Catalogue:
    """Return the catalogue of several stores, one after the other."""
    n_pieces = np.cumsum([0, *(len(item.slot) for item in catalogues)])
    first = [item.first_piece[:-1] + n for item, n in zip(catalogues, n_pieces, strict=False)]
    slots = [
        item.slot.astype(np.int64) + Place(number).first_slot
        for number, item in enumerate(catalogues)
    ]
    lost = [
        item.quarantined.set_column(0, "id", with_prefix(item.quarantined["id"], prefix))
        for item, prefix in zip(catalogues, prefixes, strict=True)
    ]
    return Catalogue(
        metadata=metadata,
        first_piece=np.concatenate([*first, n_pieces[-1:]]),
        unit=np.concatenate([item.unit for item in catalogues]),
        slot=np.concatenate(slots),
        start=np.concatenate([item.start for item in catalogues]),
        n_frames=np.concatenate([item.n_frames for item in catalogues]),
        place=np.concatenate([item.place for item in catalogues]),
        quarantined=pa.concat_tables(lost).combine_chunks(),
        dropped=frozenset().union(*(item.dropped for item in catalogues)),
        state=_joined_state(item.state for item in catalogues),
    )


def _joined_state(states: Iterable[str]) -> str:
    return " ".join(states)

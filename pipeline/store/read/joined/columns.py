"""The utterances of several stores as one table: ids, columns and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, IdentityError, StoreError, counted, first_few
from pipeline.store.backend.base import Backend
from pipeline.store.backend.folders import relation
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.identity import SOXR_KEY, compare
from pipeline.store.format.layers import LAYER_NAMES
from pipeline.store.format.layout import DROPPED_LAYERS
from pipeline.store.read.catalogue import Catalogue

Column = Mapping[str, Any]
"""Name, type and class names of a carried column."""

_NO_VALUES = str(pa.null())  # type of a column that is empty everywhere in a store


class Joinable(Protocol):
    """What is joined of a store."""

    @property
    def backend(self) -> Backend:
        """Where it is."""

    @property
    def catalogue(self) -> Catalogue:
        """Its utterances."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its carried columns."""


def check_distinct(backends: Sequence[Backend]) -> None:
    """Check that no store is given twice.

    Raises:
        ConfigError: One is.
    """
    for i, one in enumerate(backends):
        for other in backends[:i]:
            if relation(one, other) == "the same folder as":
                raise ConfigError(f"store {one} is given twice; give each store once")


def check_alike(
    one: tuple[Backend, Mapping[str, Any]],
    other: tuple[Backend, Mapping[str, Any]],
    with_layers: bool = False,
) -> None:
    """Check that the features of two stores are of the same kind.

    Args:
        one: A store and its attributes.
        other: Another one.
        with_layers: Whether they must have the same layers, in the same order.

    Raises:
        IdentityError: They are not; the message lists every difference.
    """
    differences = compare(*what_must_agree(one[1], other[1], with_layers))
    if differences:
        raise IdentityError(
            f"stores {one[0]} (there) and {other[0]} (here) cannot be joined, because their "
            f"features are of different kinds: {'; '.join(differences)}"
        )


def join_metadata(
    stores: Sequence[Joinable], prefixes: Sequence[str]
) -> tuple[pa.Table, tuple[Column, ...]]:
    """Join the utterances of stores. A column that a store lacks has no values there.

    Args:
        stores: The stores.
        prefixes: What comes before the ids of each store.

    Returns:
        `id` and the carried columns, a row per utterance, one store after the other; and the
        columns.

    Raises:
        StoreError: A column has different types.
    """
    columns = _joined_columns(stores)
    pairs = zip(stores, prefixes, strict=True)
    tables = [_as_joined(store, columns, prefix) for store, prefix in pairs]
    names = ["id", *(column["name"] for column in columns)]
    return pa.concat_tables(tables, promote_options="default").select(names), columns


def with_prefix(ids: pa.ChunkedArray, prefix: str) -> pa.ChunkedArray:
    """Return ids with a prefix."""
    return pc.binary_join_element_wise(prefix, ids, "") if prefix else ids


def class_names_of(columns: Sequence[Column]) -> dict[str, list[str]]:
    """Return the class names of each column of classes."""
    found = ((column["name"], column.get("class_names")) for column in columns)
    return {name: list(names) for name, names in found if names}


def check_ids(ids: pa.ChunkedArray, stores: Sequence[Backend], remedy: str | None) -> None:
    """Check that ids are unique.

    Args:
        ids: Ids of all stores.
        stores: The stores.
        remedy: What makes them unique; None if they have the names of the folders already.

    Raises:
        StoreError: Some are not.
    """
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    first, counts = np.unique(codes, return_index=True, return_counts=True)[1:]
    names = ids.take(pa.array(np.sort(first[counts > 1]))).to_pylist()
    if remedy is None:
        remedy = f"folders of the same name are among {', '.join(map(str, stores))}; rename one"
    shown = first_few([repr(name) for name in names])
    raise StoreError(f"{counted(len(names), 'id')} in several stores ({shown}); {remedy}")


def what_must_agree(
    one: Mapping[str, Any], other: Mapping[str, Any], with_layers: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the attributes of two stores must have in common, as each has it.

    The second resampler is stated only by stores with audio that needs it. A collapsed store must
    have the weights of the other, whatever its parent.
    """
    found = []
    for attributes in (one, other):
        identity = attributes["identity"]
        facts: dict[str, Any] = {
            "encoder": {k: v for k, v in identity.get("encoder", {}).items() if k != "layers"},
            "audio": dict(identity.get("audio", {})),
            "geometry": FrameGeometry.from_attributes(attributes).to_dict(),
        }
        if "collapse" in identity:
            facts["collapse"] = {k: identity["collapse"][k] for k in ("layers", "weights")}
        if with_layers:
            facts["layers"] = list(attributes["layers"])
            if LAYER_NAMES in one or LAYER_NAMES in other:
                facts[LAYER_NAMES] = attributes.get(LAYER_NAMES)
            if DROPPED_LAYERS in one or DROPPED_LAYERS in other:
                facts[DROPPED_LAYERS] = list(attributes.get(DROPPED_LAYERS, ()))
        found.append(facts | {name: attributes[name] for name in ("feature_dim", "frame_rate_hz")})
    if not all(SOXR_KEY in facts["audio"] for facts in found):
        for facts in found:
            facts["audio"].pop(SOXR_KEY, None)
    return found[0], found[1]


def _joined_columns(sources: Sequence[Joinable]) -> tuple[Column, ...]:
    """Return all columns, in the order in which they are first found.

    Raises:
        StoreError: A column has different types, or holds classes in one store and not in another.
    """
    known: dict[str, tuple[Column, Joinable]] = {}
    for source in sources:
        for column in source.columns:
            name = column["name"]
            if name not in known:
                known[name] = column, source
                continue
            before, earlier = known[name]
            kinds = [_kind(item, of) for item, of in ((before, earlier), (column, source))]
            if _NO_VALUES in kinds:
                known[name] = known[name] if kinds[1] == _NO_VALUES else (column, source)
                continue
            if kinds[0] != kinds[1]:
                raise StoreError(
                    f"column {name} is {kinds[0]} in {earlier.backend} and {kinds[1]} in "
                    f"{source.backend}; give one of them other labels with `strata relabel`, or "
                    "leave one out"
                )
            names = before.get("class_names")
            if names:
                more = [item for item in column["class_names"] if item not in names]
                known[name] = {**before, "class_names": [*names, *more]}, earlier
    return tuple(column for column, _ in known.values())


def _kind(column: Column, source: Joinable) -> str:
    """Return the type of a column, in words."""
    kind = source.catalogue.metadata.schema.field(column["name"]).type
    return f"{kind} classes" if column.get("class_names") else str(kind)


def _as_joined(source: Joinable, columns: Sequence[Column], prefix: str) -> pa.Table:
    """Return the metadata of a store with the columns of all."""
    table, own = source.catalogue.metadata, {column["name"]: column for column in source.columns}
    arrays = {"id": with_prefix(table["id"], prefix).cast(pa.string())}
    for column in columns:
        if column["name"] in own:
            name = column["name"]
            arrays[name] = _mapped(table[name], own[name], column, source)
    return pa.table(arrays)


def _mapped(
    values: pa.ChunkedArray, own: Column, joined: Column, source: Joinable
) -> pa.ChunkedArray:
    """Return class numbers of a store as those of the joined column; other values as they are.

    Negative numbers, which mean that a class is unknown, stay.

    Raises:
        StoreError: A number has no name.
    """
    names = own.get("class_names")
    if not names or list(names) == list(joined["class_names"])[: len(names)]:
        return values
    numbers = values.combine_chunks()
    is_class = pc.greater_equal(numbers, 0)
    if pc.any(pc.greater_equal(numbers, len(names))).as_py():
        raise StoreError(
            f"column {own['name']} of store {source.backend} has class numbers from "
            f"{len(names)} on, which have no names; give it other labels with `strata relabel`"
        )
    lookup = pa.array([joined["class_names"].index(name) for name in names], values.type)
    places = pc.if_else(is_class, numbers, pa.scalar(0, values.type))
    return pa.chunked_array([pc.if_else(is_class, lookup.take(places), numbers)])

"""The utterances of several stores as one table: ids, columns and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError, first_few
from pipeline.store.backend.folders import name_of
from pipeline.store.read.catalogue import IntArray
from pipeline.transforms.copy.sources import Column, Source

_NO_VALUES = str(pa.null())  # type of a column that is empty everywhere in a store


@dataclass(frozen=True)
class Joined:
    """The utterances of all sources, one after the other.

    Attributes:
        metadata: `id` and the carried columns, a row per utterance.
        columns: Name, type and class names of each carried column.
        source: Source of each utterance, [n_utterances].
        position: Its position in the catalogue of its source.
        n_frames: Its frames.
    """

    metadata: pa.Table
    columns: tuple[Column, ...]
    source: IntArray
    position: IntArray
    n_frames: IntArray

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Class names of each column of classes."""
        found = ((column["name"], column.get("class_names")) for column in self.columns)
        return {name: list(names) for name, names in found if names}

    def take(self, positions: IntArray) -> Joined:
        """Return the utterances at `positions`, in that order."""
        rows = pa.array(positions)
        return Joined(
            self.metadata.take(rows).combine_chunks(),
            self.columns,
            self.source[positions],
            self.position[positions],
            self.n_frames[positions],
        )


def join(sources: Sequence[Source], with_prefix: bool) -> Joined:
    """Join the utterances of stores. A column that a store lacks has no values there.

    Args:
        sources: The stores.
        with_prefix: Whether ids become `<folder of the store>/<id>`.

    Raises:
        StoreError: A column has different types.
    """
    columns = _joined_columns(sources)
    tables = [_as_joined(source, columns, with_prefix) for source in sources]
    names = ["id", *(column["name"] for column in columns)]
    metadata = pa.concat_tables(tables, promote_options="default").select(names)
    counts = [len(source.catalogue) for source in sources]
    return Joined(
        metadata.combine_chunks(),
        columns,
        np.repeat(np.arange(len(sources)), counts),
        np.concatenate([np.arange(n, dtype=np.int64) for n in counts]),
        np.concatenate([source.catalogue.frame_counts for source in sources]),
    )


def check_ids(joined: Joined, sources: Sequence[Source], with_prefix: bool) -> None:
    """Check that ids are unique.

    Raises:
        StoreError: Some are not.
    """
    ids = joined.metadata["id"].combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy()
    first, counts = np.unique(codes, return_index=True, return_counts=True)[1:]
    repeated = np.sort(first[counts > 1])
    if not len(repeated):
        return
    names = [repr(name) for name in ids.take(pa.array(repeated)).to_pylist()]
    if with_prefix:
        listed = ", ".join(str(source.backend) for source in sources)
        remedy = f"folders of the same name are among {listed}; rename one"
    else:
        remedy = "prefix=true makes them <folder of the store>/<id>, and where= chooses among them"
    raise StoreError(f"{len(names):,} ids are in several stores ({first_few(names)}); {remedy}")


def _joined_columns(sources: Sequence[Source]) -> tuple[Column, ...]:
    """Return all columns, in the order in which they are first found.

    Raises:
        StoreError: A column has different types, or holds classes in one store and not in another.
    """
    known: dict[str, tuple[Column, Source]] = {}
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
                    f"{source.backend}; give one store other labels with `strata relabel`, or copy "
                    "them apart"
                )
            names = before.get("class_names")
            if names:
                more = [item for item in column["class_names"] if item not in names]
                known[name] = {**before, "class_names": [*names, *more]}, earlier
    return tuple(column for column, _ in known.values())


def _kind(column: Column, source: Source) -> str:
    """Return the type of a column, in words."""
    kind = source.catalogue.metadata.schema.field(column["name"]).type
    return f"{kind} classes" if column.get("class_names") else str(kind)


def _as_joined(source: Source, columns: Sequence[Column], with_prefix: bool) -> pa.Table:
    """Return the metadata of a store with the columns of all."""
    table, own = source.catalogue.metadata, {column["name"]: column for column in source.columns}
    ids = table["id"]
    if with_prefix:
        ids = pc.binary_join_element_wise(name_of(source.backend), ids, "/")
    arrays = {"id": ids.cast(pa.string())}
    for column in columns:
        if column["name"] in own:
            name = column["name"]
            arrays[name] = _mapped(table[name], own[name], column, source)
    return pa.table(arrays)


def _mapped(
    values: pa.ChunkedArray, own: Column, joined: Column, source: Source
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

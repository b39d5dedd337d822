"""Which utterances and layers are dropped.

A store has more utterances than its readers show: quarantined ones, and those that were removed
from the dataset or replaced by other audio. All of them can be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import (
    ConfigError,
    DamagedError,
    StoreError,
    counted,
    first_few,
)
from pipeline.events import Observer
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.layers import name_layers, number_layers
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import Plan
from pipeline.store.format.records import OK
from pipeline.store.format.tombstones import are_tombstones, tombstone_of
from pipeline.store.labels import (
    IntArray,
    Labels,
    committed_labels,
    generations,
    places_of_ids,
    read_labels,
)
from pipeline.store.read.joined.columns import class_names_of
from pipeline.transforms.copy.settings import Ids, read_ids
from pipeline.transforms.selection import mask_where

_N_FRAMES = "n_frames"
_FACTS = ("unit", "position", "row", "status", "slot", "frame_start", "n_frames", "n_samples")


class NothingChosenError(ConfigError):
    """No utterance that is still in the store is chosen."""


@dataclass(frozen=True)
class Content:
    """What a store has, for a drop.

    Attributes:
        backend: The store.
        layout: Its shapes.
        rate_hz: Sample rate of the encoder.
        plan: Its plan.
        index: Index rows of all committed units: `_FACTS`.
        utterances: `row` (number), `id` and the columns of every utterance that is not dropped,
            those that readers do not show among them.
        columns: Class names and types of the columns.
        shown: Numbers that readers show, or would if they had features.
    """

    backend: Backend
    layout: Layout
    rate_hz: int
    plan: Plan
    index: pa.Table
    utterances: pa.Table
    columns: Labels
    shown: IntArray


@dataclass(frozen=True)
class Chosen:
    """Utterances to drop.

    Attributes:
        numbers: Their numbers, ascending: int64 [n].
        names: Their ids.
        n_dropped: Ids that were asked for and have been dropped before.
        values: Of each column that the condition compares: how many have each value.
    """

    numbers: IntArray
    names: list[str]
    n_dropped: int
    values: dict[str, dict[str, int]]


def read_content(backend: Backend) -> Content:
    """Read what a store has.

    Raises:
        StoreNotFoundError: There is no store.
        DamagedError: Its plan, its index or a generation of its labels is damaged.
    """
    attributes = read_attributes(backend)
    plan = read_plan(backend)
    if plan is None:
        raise DamagedError(f"store {backend} has no plan.parquet; restore it from a copy")
    index = index_files.read_index(backend, columns=_FACTS)
    newest = read_labels(backend)
    committed = committed_labels(backend)
    known = [read_labels(backend, number) for number in reversed(generations(backend))]
    parts = [*(labels.table for labels in known if labels is not None), committed.table]
    labels = newest or committed
    columns = [column for column in labels.columns if column["name"] in labels.table.column_names]
    utterances = _newest_of_each(parts, labels.table.schema, labels.names)
    return Content(
        backend,
        layout_of(attributes),
        attributes["sample_rate_hz"],
        plan,
        index,
        utterances,
        Labels(labels.table.slice(0, 0), tuple(columns)),
        committed.numbers if newest is None else newest.numbers,
    )


def _newest_of_each(parts: Sequence[pa.Table], schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """Return the first row of each number in some tables, with columns of the given schema."""
    seen, found = np.empty(0, np.int64), []
    for part in parts:
        numbers = index_files.numbers(part["row"])
        is_new = ~np.isin(numbers, seen)
        rows = part.filter(pa.array(is_new))
        arrays = [rows["row"], rows["id"], *(_column(rows, schema.field(n)) for n in names)]
        found.append(pa.table(arrays, names=["row", "id", *names]))
        seen = np.append(seen, numbers[is_new])
    return pa.concat_tables(found).sort_by("row").combine_chunks()


def _column(rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """Return a column of earlier labels as the newest ones have it; none if it had other values."""
    if field.name in rows.column_names:
        try:
            return rows[field.name].cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return pa.chunked_array([pa.nulls(len(rows), field.type)])


def choose_layers(layout: Layout, layers: Sequence[int | str], name: str) -> list[int]:
    """Return the layers to drop that have not been dropped yet.

    Args:
        layout: Shapes of the store.
        layers: The layers that were asked for, by number or name.
        name: The store, for messages.

    Raises:
        ConfigError: The store has no such layer, or no other.
    """
    numbers = number_layers(
        layers,
        name_layers(layout.layers, layout.names),
        f"store {name}",
        dropped=layout.dropped_layers,
        error=ConfigError,
        are_extractable=False,
    )
    if set(layout.axes) <= set(numbers):
        raise ConfigError(
            f"layers={list(layers)} are all layers of store {name}; to remove all of it, delete "
            "the folder"
        )
    return [layer for layer in layout.axes if layer in numbers]


def choose_utterances(
    content: Content,
    where: str | None,
    ids: Ids | None,
    observer: Observer,
) -> Chosen:
    """Return the utterances that conditions and ids choose; with both, those of both.

    An id stands for all audio that the store has or had under it.

    Raises:
        ConfigError: The condition is none, an id is unknown, or nothing is chosen.
        StoreError: The condition names an unknown column; or an utterance is not extracted yet.
    """
    table = content.utterances
    chosen = np.ones(len(table), bool)
    numbers, n_dropped = index_files.numbers(table["row"]), 0
    compared: Sequence[str] = ()
    if where is not None:
        counts = _frame_counts(content, numbers)
        if _N_FRAMES not in table.column_names:
            table = table.append_column(_N_FRAMES, pa.array(counts))
        names = class_names_of(content.columns.columns)
        owner = f"store {content.backend}"
        chosen, compared = mask_where(
            table.drop_columns(["row"]), where, names, owner, observer, NothingChosenError
        )
    if ids is not None:
        is_listed, n_dropped = _listed(content, ids)
        chosen &= is_listed
        if where is not None and not chosen.any():
            raise NothingChosenError(f"none of the utterances of ids has where={where!r:.200}")
    chosen |= _of_same_id(table, chosen & np.isin(numbers, content.shown))
    found = numbers[chosen]
    names_chosen = table["id"].filter(pa.array(chosen)).to_pylist()
    _check_extracted(content, found)
    values = {name: _counts(table[name].filter(pa.array(chosen))) for name in compared}
    return Chosen(found, names_chosen, n_dropped, values)


def _frame_counts(content: Content, numbers: IntArray) -> IntArray:
    """Return the stored frames of each utterance: int64 [n]."""
    done = index_files.of_status(content.index, OK)
    counts = np.zeros(int(max(numbers.max(initial=-1), content.plan.n_numbers)) + 1, np.int64)
    np.add.at(counts, index_files.numbers(done["row"]), index_files.numbers(done[_N_FRAMES]))
    found: IntArray = counts[numbers]
    return found


def _of_same_id(table: pa.Table, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which utterances have the id of a chosen one."""
    names = table["id"].filter(pa.array(chosen)).combine_chunks()
    return np.asarray(pc.is_in(table["id"], value_set=names).to_numpy(), bool)


def _listed(content: Content, ids: Ids) -> tuple[npt.NDArray[np.bool_], int]:
    """Return which utterances are listed, and how many of the ids were dropped before."""
    given, name = read_ids(ids)
    own = content.utterances["id"].combine_chunks()
    wanted = pa.array(given, pa.string())
    unknown = wanted.take(pa.array(np.flatnonzero(places_of_ids(wanted, own.unique()) < 0)))
    planned = content.plan.table["id"].combine_chunks()
    dropped = set(planned.filter(pa.array(are_tombstones(planned))).to_pylist())
    missing = [item for item in unknown.to_pylist() if tombstone_of(item) not in dropped]
    if missing:
        waiting = set(planned.to_pylist())
        later = [item for item in missing if item in waiting]
        hint = "; they are planned, but not extracted yet" if len(later) == len(missing) else ""
        shown = first_few([repr(item) for item in missing])
        raise ConfigError(
            f"{len(missing):,} of the {len(given):,} ids of {name} are not in store "
            f"{content.backend}: {shown}{hint}; nothing was dropped"
        )
    is_listed = places_of_ids(own, wanted) >= 0
    return np.asarray(is_listed, bool), len(unknown)


def _check_extracted(content: Content, numbers: IntArray) -> None:
    """Check that no part of an utterance waits to be extracted.

    A worker of a driver that was killed may still commit a unit that is not committed yet, and
    could bring an utterance back.

    Raises:
        StoreError: A part does.
    """
    table = content.plan.table
    is_committed = np.zeros(content.plan.n_units, bool)
    units = np.array(index_files.committed_units(content.backend), np.int64)
    is_committed[units[units < content.plan.n_units]] = True
    waits = ~is_committed[table["unit"].to_numpy()] & np.isin(table["row"].to_numpy(), numbers)
    names = table["id"].filter(pa.array(waits)).unique().to_pylist()
    if names:
        raise StoreError(
            f"{counted(len(names), 'utterance')} not extracted completely yet "
            f"({first_few([repr(name) for name in names])}); run `strata extract` first, with the "
            "same dataset or with one that lacks them. Nothing was dropped"
        )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each value occurs, most frequent first."""
    found = [(item["counts"], str(item["values"])) for item in column.value_counts().to_pylist()]
    return {value: count for count, value in sorted(found, key=lambda item: -item[0])}

"""Labels of a store: which utterances readers show, in which order, and with which columns.

Labels are no part of a feature, so they can change without the encoder. At first a store has no
labels of its own: readers show every committed utterance, with the columns in the index. When the
dataset changes, these are copied to generation 0, and generation 1 has the utterances and columns
of the dataset as it is now. A generation never changes, but for utterances that are dropped from
all of them (`strata drop`). The newest one counts; an older one can be asked for. The attributes of
the store state the newest one, so that its loss is noticed.

An utterance is known by its number, the `row` of the plan and the index. It is the row of the
dataset at the time when the utterance was planned, if nothing has changed since. Other audio under
the same id gets another number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DamagedError, StoreError, UnreachableError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import has_labels, note_labels, read_attributes
from pipeline.store.format.layout import (
    ATTRIBUTES,
    FORMAT_2,
    LABELS_DIR,
    NEWEST_LABELS,
    labels_key,
)
from pipeline.store.format.records import FIELDS
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.serialization import parquet_bytes, read_parquet

IntArray = npt.NDArray[np.int64]

GENERATION_NAME = re.compile(r"generation-(\d+)\.parquet")
KEYS = tuple(item for item in FIELDS if item.name in ("row", "id"))
"""Columns of a generation before those of the dataset."""
_METADATA_KEY = b"strata"
_REMEDY = (
    "`strata relabel STORE dataset=...` writes the labels again, and `strata extract` after it "
    "which utterances are shown, in which order"
)
_EARLIER = "an earlier generation is read with labels=N"


@dataclass(frozen=True)
class Labels:
    """The utterances of a dataset and their columns.

    Attributes:
        table: `row` (number of the utterance, int64), `id`, and the columns; in the order of the
            dataset.
        columns: Name, type and class names of each column, as in the store's identity.
        generation: Number of the generation; None if it is not stored.
        numbered: The generation with which a plan was written that has these numbers; 0 if it had
            none, None if it is this generation.
        state: Text that is another one when the generation is, or its file; see `labels_state`.
    """

    table: pa.Table
    columns: tuple[Mapping[str, Any], ...]
    generation: int | None = None
    numbered: int | None = None
    state: str = ""

    @property
    def numbers(self) -> IntArray:
        """Number of each utterance: int64 [n]."""
        return np.asarray(index_files.numbers(self.table["row"]), np.int64)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [str(column["name"]) for column in self.columns]

    def planned(self, n_numbers: int) -> Labels:
        """Return the labels of the utterances with a number below `n_numbers`.

        A driver that is killed between labels and plan leaves utterances that no plan has. Their
        numbers may be given to others.
        """
        is_planned = self.numbers < n_numbers
        if is_planned.all():
            return self
        return replace(self, table=self.table.filter(pa.array(is_planned)))

    def shown(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table of the plan or the index whose utterance is shown."""
        values = index_files.row_numbers(np.sort(self.numbers))
        return table.filter(pc.is_in(table["row"], value_set=values))


def generations(store: Location) -> list[int]:
    """Return the numbers of the generations of a store, ascending."""
    names = open_backend(store).children(LABELS_DIR)
    return sorted(int(match[1]) for name in names if (match := GENERATION_NAME.fullmatch(name)))


def read_labels(store: Location, generation: int | None = None) -> Labels | None:
    """Read a generation of labels.

    Args:
        store: The store.
        generation: Its number; None is the newest.

    Returns:
        None if the store has no labels of its own, and none or 0 is asked for.

    Raises:
        StoreError: There is no such generation.
        DamagedError: It is damaged, or the newest one is missing, or all are.
    """
    backend = open_backend(store)
    number, state = _chosen(backend, generation)
    if number is None:
        return None
    key = labels_key(number)
    try:
        table = read_parquet(backend, key)
        facts = json.loads(table.schema.metadata[_METADATA_KEY])
        columns, numbered = facts["columns"], facts.get("numbered", number)
    except UnreachableError:
        raise
    except (DamagedError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{backend.locate(key)} is not readable ({error}); {_REMEDY}; {_EARLIER}"
        ) from error
    return Labels(table.replace_schema_metadata(None), tuple(columns), number, numbered, state)


def labels_state(store: Location, generation: int | None = None) -> str:
    """Return a text that is another one when `read_labels` would return something else.

    This reads the attributes and lists the generations.

    Raises:
        StoreError: There is no such generation.
        DamagedError: The newest one is missing, or all are.
    """
    return _chosen(open_backend(store), generation)[1]


def _chosen(backend: Backend, generation: int | None) -> tuple[int | None, str]:
    """Return the generation that readers show, or None, and a text that changes with it."""
    attributes = _attributes(backend)  # before the names: a driver may write a generation meanwhile
    stamps, newest = _stamps(backend), attributes.get(NEWEST_LABELS, 0)
    known = sorted(stamps)
    if not known:
        if has_labels(attributes):
            raise DamagedError(f"{backend.locate(LABELS_DIR)} is missing; {_REMEDY}")
        if generation:
            raise StoreError(f"store {backend} has no labels={generation}: they never changed")
        return None, ""
    number = max(known[-1], newest) if generation is None else generation
    if number not in known and number == newest:
        raise DamagedError(
            f"{backend.locate(labels_key(newest))} is missing: the attributes state it as the "
            f"newest labels. Restore it from a copy; or {_REMEDY}; {_EARLIER}"
        )
    if number not in known:
        listed = ", ".join(map(str, known))
        raise StoreError(f"store {backend} has no labels={number}; it has {listed}")
    return number, f"{number}-{stamps[number]}"


def _stamps(backend: Backend) -> dict[int, str]:
    """Return the stamp of the file of each generation, by number."""
    stamps = backend.stamps(LABELS_DIR).items()
    return {
        int(match[1]): stamp for name, stamp in stamps if (match := GENERATION_NAME.fullmatch(name))
    }


def committed_labels(store: Location) -> Labels:
    """Return the utterances of all committed units with the columns in the index, by number.

    Dropped ones are left out.
    """
    backend = open_backend(store)
    identity = _attributes(backend).get("identity", {})
    columns = identity.get("source", {}).get("columns", [])
    names = [column["name"] for column in columns]
    keys = [item.name for item in KEYS]
    if not index_files.committed_units(backend):
        return Labels(pa.schema(KEYS).empty_table(), ())
    table = index_files.read_index(backend, columns=["unit", *keys, *names])
    table = table.filter(pa.array(~are_tombstones(table["id"])))
    table = table.select([*keys, *names]).sort_by("row")
    is_first = np.diff(index_files.numbers(table["row"]), prepend=-1) != 0
    return Labels(table.filter(pa.array(is_first)).combine_chunks(), tuple(columns))


def write_labels(
    store: Location, labels: Labels, instead_of: Sequence[int] = (), after: int = 0
) -> int:
    """Write a new generation of labels, which readers show from then on.

    Args:
        store: The store.
        labels: The labels.
        instead_of: Generations that are removed: they are damaged, or have utterances that no
            plan has, whose numbers are given to others.
        after: Its number is higher than this one.

    Returns:
        Number of the generation.

    Raises:
        StoreError: They cannot be written, or another driver has just done so.
    """
    backend = open_backend(store)
    known = generations(backend)
    if not known:
        before = committed_labels(backend)
        if len(before.table):
            _put(backend, 0, before)
            known = [0]
    lost = int(_attributes(backend).get(NEWEST_LABELS, 0))  # perhaps; its number is not reused
    number = max([*known, after, lost]) + 1
    _put(backend, number, labels)
    note_labels(backend, number)
    for generation in instead_of:
        backend.delete(labels_key(generation))
    return number


def remove_from_labels(store: Location, numbers: IntArray) -> None:
    """Remove utterances from all generations of labels, because they are dropped.

    Raises:
        DamagedError: A generation is damaged.
    """
    backend = open_backend(store)
    for number in generations(backend):
        labels = read_labels(backend, number)
        assert labels is not None
        stays = ~np.isin(labels.numbers, numbers)
        if not stays.all():
            kept = replace(labels, table=labels.table.filter(pa.array(stays)))
            backend.put(labels_key(number), [_content(number, kept)])


def copy_labels(store: Location, out: Location) -> None:
    """Give another store of the same plan the labels of a store.

    A store that was relabelled by itself keeps its labels, for the utterances that the other one
    shows: otherwise it would show audio that has been replaced.
    """
    source, target = open_backend(store), open_backend(out)
    known, own = generations(source), read_labels(target)
    if own is not None and not _is_copied(own, source, target):
        parent = read_labels(source) or committed_labels(source)
        labels = _with_own(parent, own)
        is_same = labels.table.equals(own.table) and labels.columns == own.columns
        last = known[-1] if known else 0
        if not is_same or int(own.generation or 0) < last:
            write_labels(target, labels, after=last)
        else:
            note_labels(target, int(own.generation or 0))
        return
    for number in known:
        target.ensure_folder(LABELS_DIR)
        target.put_if_absent(labels_key(number), [source.read(labels_key(number))])
    if known:
        note_labels(target, known[-1])


def _is_copied(own: Labels, source: Backend, target: Backend) -> bool:
    key = labels_key(int(own.generation or 0))
    return source.exists(key) and source.read(key) == target.read(key)


def _with_own(parent: Labels, own: Labels) -> Labels:
    """Return the utterances of `parent` with its columns, and the values of `own` by id."""
    place = pc.index_in(parent.table["id"].combine_chunks(), value_set=own.table["id"])
    has_own = pc.is_valid(place)
    theirs = {column["name"]: column for column in parent.columns}
    table, columns = parent.table, list(parent.columns)
    for column in own.columns:
        name = column["name"]
        values = own.table[name].combine_chunks().take(place)
        if name not in theirs:
            table, columns = table.append_column(name, values), [*columns, column]
        elif column == theirs[name]:
            chosen = pc.if_else(has_own, values, table[name].combine_chunks())
            table = table.set_column(table.column_names.index(name), name, chosen)
    return Labels(table, tuple(columns), numbered=parent.numbered)


def _attributes(backend: Backend) -> dict[str, Any]:
    """Return the attributes of the group; none if they are lost, which `extract` writes again."""
    return read_attributes(backend) if backend.exists(ATTRIBUTES) else {}


def _content(number: int, labels: Labels) -> memoryview:
    """Return the file of a generation."""
    facts = {
        "format_version": FORMAT_2,
        "columns": [dict(c) for c in labels.columns],
        "numbered": number if labels.numbered is None else labels.numbered,
    }
    return parquet_bytes(labels.table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts)}))


def _put(backend: Backend, number: int, labels: Labels) -> None:
    backend.ensure_folder(LABELS_DIR)
    if not backend.put_if_absent(labels_key(number), [_content(number, labels)]):
        raise StoreError(
            f"{backend.locate(labels_key(number))} was written by another process meanwhile; run "
            "the same command again"
        )


def places_of_ids(wanted: pa.Array, ids: pa.Array) -> IntArray:
    """Return the place of each of `wanted` in `ids`, which are unique; -1 if it is missing."""
    n_same = min(len(wanted), len(ids))
    if wanted.slice(0, n_same).equals(ids.slice(0, n_same)):
        # Ids are unique, so the rest has no partner. This saves a table of all ids.
        return np.append(np.arange(n_same), np.full(len(wanted) - n_same, -1, np.int64))
    place = pc.index_in(wanted, value_set=ids).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.asarray(place, np.int64)


def places_of(wanted: IntArray, numbers: IntArray) -> IntArray:
    """Return the place of each of `wanted` in ascending `numbers`; -1 if it is missing."""
    if not len(numbers):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return np.where(numbers[place] == wanted, place, -1).astype(np.int64)

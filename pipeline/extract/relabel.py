"""Relabelling: the columns of a store are renewed from a table, without audio and encoder."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.probe import count_channels
from pipeline.config import Config
from pipeline.errors import DamagedError, SourceError, counted, first_few
from pipeline.events import Observer, announced
from pipeline.extract.planning.labelling import merge_labels, other_columns, other_values
from pipeline.extract.store_setup import check_has_dataset
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.documents import read_plan
from pipeline.store.format.records import RESERVED_NAMES
from pipeline.store.format.tombstones import are_tombstones, with_tombstones
from pipeline.store.labels import (
    Labels,
    committed_labels,
    generations,
    places_of_ids,
    read_labels,
    write_labels,
)


@dataclass(frozen=True)
class Relabelling:
    """Result of `relabel`.

    Attributes:
        generation: Number of the new labels; None if nothing has changed.
        relabelled: Utterances of which a column is new or has another value.
        unchanged: Other utterances of the store.
        not_in_dataset: Those among them that the dataset lacks; their labels stay.
        not_in_store: Rows of the dataset that the store lacks; `extract` encodes them.
        columns: Columns of the store.
    """

    generation: int | None
    relabelled: int
    unchanged: int
    not_in_dataset: int
    not_in_store: int
    columns: tuple[str, ...]


def relabel(store: Location, config: Config, observer: Observer | None = None) -> Relabelling:
    """Renew the columns of a store from a dataset, matched by id.

    Columns of the dataset replace those of the store with the same name, or are added. Other
    columns, and the labels of utterances that the dataset lacks, stay. Which utterances are shown
    does not change.

    Args:
        store: The store.
        config: Names the dataset; only `config.dataset` is used.
        observer: Receives notes.

    Raises:
        StoreNotFoundError: There is no store.
        SourceError: The dataset cannot be opened, has none of the store's utterances, or a column
            of another type than labels that stay.
        IdentityError: The store is filled by `pipeline.cached`.
        StoreBusyError: Another driver is using the store.
    """
    observer = observer or Observer()
    backend = open_backend(store)
    check_has_dataset(backend)
    with Lease(backend, uuid.uuid4().hex[:12]) as lease:
        with announced(observer, "reading the labels of the store"):
            before, unusable, is_lost = _shown(backend, observer)
        with announced(observer, "opening the dataset"):
            source = open_source(config.dataset, count_channels)
        for note in source.notes:
            observer.note(note)
        if source.skipped_columns:
            observer.note(
                f"skipped: {counted(len(source.skipped_columns), 'column')} of the dataset: "
                f"{first_few(source.skipped_columns)}. Columns of labels are plain values, and "
                f"have no name of the store's index ({', '.join(sorted(RESERVED_NAMES))})"
            )
        ids = before.table["id"].combine_chunks()
        rows = places_of_ids(ids, source.ids())
        n_matched = int((rows >= 0).sum())
        if not n_matched:
            raise SourceError(
                f"no utterance of store {backend} is in {source.origin}: the store has "
                f"{ids[0].as_py()!r}, the dataset {source.ids()[0].as_py()!r}. "
                f"{_remedy(ids, source)}"
            )
        now = merge_labels(before, source, ids, before.numbers, rows)
        columns = other_columns(before.columns, now.columns)
        differs, examples = other_values(before, now)
        differs = rows >= 0 if columns else differs
        number = None
        if columns or examples or unusable or is_lost:
            lease.check()
            number = write_labels(backend, replace(now, numbered=before.numbered), unusable)
        if columns or examples:
            observer.note(f"changed: {'; '.join([*columns, *examples])}")
    return Relabelling(
        generation=number,
        relabelled=int(differs.sum()),
        unchanged=int((~differs).sum()),
        not_in_dataset=len(ids) - n_matched,
        not_in_store=len(source) - n_matched - _n_dropped(backend, source.ids()),
        columns=tuple(now.names),
    )


def _remedy(ids: pa.StringArray, source: Source) -> str:
    """Return what to set for a dataset that has none of the ids of a store."""
    suffix, name = PurePosixPath(ids[0].as_py()).suffix, source.config.id_column
    stems = pc.replace_substring_regex(ids, r"\.[^./]*$", "")
    if suffix and name and (places_of_ids(stems, source.ids()) >= 0).any():
        return (
            "The ids of the store are paths: leave dataset.id_column out, and set "
            f"'dataset.audio_path={{{name}}}{suffix}'"
        )
    return "Set dataset.id_column to the column with the ids of the store"


def _shown(backend: Backend, observer: Observer) -> tuple[Labels, list[int], bool]:
    """Return the labels of all utterances of the plan that are shown, or will be.

    Damaged or lost labels are replaced by the newest readable ones, or by those of the index; what
    is shown is then what the plan had last under each id.

    Returns:
        The labels; the generations that others should replace, because they are damaged or have
        utterances that no plan has; and whether the newest generation is missing or damaged.
    """
    labels, unusable, is_lost = None, [], False
    problems: dict[str, None] = {}  # each once: the newest one is read twice
    for generation in (None, *reversed(generations(backend))):
        try:
            found = read_labels(backend, generation)
            labels = labels or found
        except DamagedError as error:
            problems[str(error)] = None
            if generation is None:
                is_lost = True
            else:
                unusable.append(generation)
    for line in problems:
        observer.note(f"WARNING: {line}")
    plan = read_plan(backend)
    if plan is None:
        return labels or committed_labels(backend), unusable, is_lost
    if labels is not None:
        planned_labels = labels.planned(plan.n_numbers)
        if planned_labels is not labels and labels.generation is not None:
            unusable.append(labels.generation)
        return planned_labels, unusable, is_lost
    records = plan.first_records
    is_kept = pa.array(~are_tombstones(records["id"]))
    planned = _newest_of_each_id(records.filter(is_kept))
    stored = committed_labels(backend)
    place = pc.index_in(planned["row"], value_set=stored.table["row"].combine_chunks())
    table = planned.select(["id", "row"])
    for name in stored.names:
        table = table.append_column(name, stored.table[name].take(place))
    return Labels(table, stored.columns, numbered=0), unusable, is_lost


def _n_dropped(backend: Backend, ids: pa.StringArray) -> int:
    """Return how many ids of a dataset are those of utterances that were dropped."""
    plan = read_plan(backend)
    return 0 if plan is None else int(are_tombstones(with_tombstones(ids, plan.table["id"])).sum())


def _newest_of_each_id(planned: pa.Table) -> pa.Table:
    """Return the last record of each id: other audio under an id follows the audio before."""
    codes = planned["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    last = len(codes) - 1 - np.unique(codes[::-1], return_index=True)[1]
    return planned.take(pa.array(np.sort(last)))

"""The plan of a run: made for a new store, and compared with the dataset for an existing one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.config import Config
from pipeline.encoders.windows import Windowing
from pipeline.errors import ConfigError, counted
from pipeline.events import Observer, announced
from pipeline.extract.planning.changes import check_extent, compare, describe
from pipeline.extract.planning.dataset import PlannedDataset
from pipeline.extract.planning.planner import Scanning, plan_source, replan_source
from pipeline.extract.planning.ray_probing import choose_probing
from pipeline.extract.planning.replanning import find_unstored
from pipeline.extract.store_setup import check_extracted, is_created
from pipeline.sources.base import Source
from pipeline.store.backend.base import Backend
from pipeline.store.documents import note_labels, read_plan, write_plan
from pipeline.store.format.plan import NUMBERED, Plan, round_up_to_chunk
from pipeline.store.labels import Labels, generations, read_labels, write_labels
from pipeline.store.write.creation import check_no_units


def plan_new(
    config: Config,
    windowing: Windowing,
    source: Source,
    observer: Observer,
    frames_per_unit: int | None = None,
) -> PlannedDataset:
    """Plan a dataset without regard to what a store has of it.

    Args:
        config: Configuration of the run.
        windowing: Windows of the encoder.
        source: The dataset.
        observer: Receives progress.
        frames_per_unit: Capacity of a unit, unless the configuration states one; None adapts it to
            the corpus.
    """
    capacity = config.plan.frames_per_unit or frames_per_unit
    plan = plan_source(source, windowing, capacity, _scanning(config, source, observer))
    return PlannedDataset(source, plan, np.arange(len(source)), is_changed=True)


def obtain_dataset(
    config: Config, windowing: Windowing, source: Source, backend: Backend, observer: Observer
) -> PlannedDataset:
    """Return the plan of a store, made or extended for the dataset; nothing is written.

    As long as nothing depends on the plan of a store, it is made anew for a dataset that has
    changed. Later it is extended: what is extracted stays.

    Args:
        config: Configuration of the run.
        windowing: Windows of the encoder.
        source: The dataset.
        backend: The store.
        observer: Receives progress, and a note of what has changed.

    Raises:
        ConfigError: The store has units of another size.
        SourceError: Too much of the store is not in the dataset any more, or extracted audio
            cannot be read any more.
        IdentityError: The store was made from other stores.
        DamagedError: The index of a unit or the labels are unreadable, or the attributes are gone.
    """
    check_extracted(backend)
    has_attributes = is_created(backend)
    if not has_attributes:
        check_no_units(backend)
    stored = read_plan(backend)
    if stored is None:
        return plan_new(config, windowing, source, observer)
    capacity = config.plan.frames_per_unit
    is_other = bool(capacity) and round_up_to_chunk(capacity or 0) != stored.frames_per_unit
    if not has_attributes:
        if not is_other and stored.source["fingerprint"] == source.fingerprint:
            return PlannedDataset(source, stored, np.arange(len(source)))
        return plan_new(config, windowing, source, observer, stored.frames_per_unit)
    if is_other:
        raise ConfigError(
            f"plan.frames_per_unit is {capacity}, but store {backend} was created with "
            f"{stored.frames_per_unit}; leave it out, or give another store="
        )
    return _replan(config, windowing, source, backend, stored, observer)


def save_dataset(
    backend: Backend, dataset: PlannedDataset, check_lease: Callable[[], None]
) -> int | None:
    """Write the plan and the labels of a dataset if they are not those of the store.

    Labels come first: a plan may be used only with labels that know its utterances. They are
    written once the store is created.

    Returns:
        Number of the new generation of labels; None if there is none.
    """
    if dataset.is_changed or dataset.new_labels is not None:
        check_lease()  # a scan takes long; another driver's plan must not be overwritten
    plan, is_changed, number = dataset.plan, dataset.is_changed, None
    if dataset.new_labels is not None and is_created(backend):
        number = write_labels(backend, dataset.new_labels, dataset.abandoned)
        plan, is_changed = replace(plan, source=plan.source | {NUMBERED: number}), True
    elif dataset.has_labels and is_created(backend):
        note_labels(backend, generations(backend)[-1])  # a driver was killed before it did
    if is_changed:
        write_plan(backend, plan)
    return number


def _replan(
    config: Config,
    windowing: Windowing,
    source: Source,
    backend: Backend,
    stored: Plan,
    observer: Observer,
) -> PlannedDataset:
    found = read_labels(backend)
    labels = found and found.planned(stored.n_numbers)
    unstored = find_unstored(backend, stored, config.retry_quarantined, labels)
    unstored = replace(unstored, restores=config.restore_dropped)
    if unstored.n_retried:
        observer.note(f"{unstored.n_retried} quarantined utterances will be retried")
    scanning = _scanning(config, source, observer)
    replan = replan_source(source, windowing, stored, unstored, labels, scanning)
    with announced(observer, "comparing the labels"):
        changes, new_labels = compare(backend, source, stored, replan, labels)
    check_extent(changes, source, backend, config.run.max_changed)
    if changes.dropped:
        observer.note(
            f"{counted(changes.dropped, 'utterance')} of {source.origin} dropped from the store, "
            "and not extracted again; restore_dropped=true extracts what the dataset has of them"
        )
    if changes.n_changed:
        observer.note(f"{source.origin} has changed since it was extracted: {describe(changes)}")
    if new_labels is not None:
        _note_empty(new_labels, source, observer)
    return PlannedDataset(
        source,
        replan.plan,
        replan.numbers,
        has_labels=labels is not None or new_labels is not None,
        is_changed=replan.plan is not stored,
        new_labels=new_labels,
        changes=changes,
        abandoned=() if labels is found else generations(backend)[-1:],
    )


def _note_empty(labels: Labels, source: Source, observer: Observer) -> None:
    """Tell the user about columns that the dataset lacks, and in which utterances have no value."""
    own = {column["name"] for column in source.identity["columns"]}
    for name in labels.names:
        n_empty = labels.table[name].null_count
        if name not in own and n_empty:
            observer.note(
                f"column {name} of the store is not in {source.origin}: {n_empty:,} of "
                f"{counted(len(labels.table), 'utterance')} have no value in it. `strata relabel` "
                "with a table that has it adds the values"
            )


def _scanning(config: Config, source: Source, observer: Observer) -> Scanning:
    return Scanning(
        progress=lambda done: observer.headers_scanned(done, len(source)),
        note=observer.note,
        probing=choose_probing(config.engine, source),
    )

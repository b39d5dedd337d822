"""One run of `drop`. What was interrupted is completed by the next run, before anything else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, NoSpaceError, StoreBusyError, counted, did_you_mean
from pipeline.events import Observer, announced
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease, check_no_share
from pipeline.store.coordination.run_log import RunLog
from pipeline.store.documents import check_form, layout_of, note_drop, read_attributes
from pipeline.store.dropping import Dropping, end_dropping, read_dropping, write_dropping
from pipeline.store.format.records import OK
from pipeline.store.labels import IntArray, remove_from_labels
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.tokens.stored import codebook_names, remove_tokens, token_names
from pipeline.transforms.copy.settings import Ids
from pipeline.transforms.drop.choosing import (
    Chosen,
    Content,
    NothingChosenError,
    choose_layers,
    choose_utterances,
    read_content,
)
from pipeline.transforms.drop.layers import remove_layers
from pipeline.transforms.drop.traces import bury_in_plan, forget_failures, forget_in_log
from pipeline.transforms.drop.units import drop_from_units, remove_unused_slots, units_with

_NONE = np.empty(0, np.int64)
_EXAMPLES = 5


@dataclass(frozen=True)
class Drop:
    """What a run has dropped, or would drop.

    Attributes:
        confirmed: Whether it is dropped; otherwise nothing was changed.
        utterances: Utterances with features.
        without_features: Other utterances: quarantined, or recordings that are not complete.
        hidden: Utterances among both that readers do not show, because they were removed from the
            dataset or replaced.
        audio_seconds: Seconds of audio of the utterances.
        layers: Layers.
        bytes: Bytes of features that are freed.
        units: Units that have some of the utterances.
        values: Of each column that `where` compares: how many utterances have each value.
        examples: Ids of the first utterances.
        tokens: Name of the tokens.
        dropped_before: Ids among those asked for that were dropped before.
        completed: Utterances and layers of an earlier run, which was interrupted.
        wall_seconds: Duration of this run.
    """

    confirmed: bool
    utterances: int = 0
    without_features: int = 0
    hidden: int = 0
    audio_seconds: float = 0.0
    layers: tuple[int, ...] = ()
    bytes: int = 0
    units: int = 0
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    tokens: str | None = None
    dropped_before: int = 0
    completed: int = 0
    wall_seconds: float = 0.0


def drop(
    store: Location,
    *,
    ids: Ids | None = None,
    where: str | None = None,
    layers: Sequence[int | str] | None = None,
    tokens: str | None = None,
    confirm: bool = False,
    observer: Observer | None = None,
) -> Drop:
    """Remove utterances or layers from a store, and free the space that they take.

    Without `confirm` nothing is changed; the result says what would be dropped. Dropped utterances
    cannot be brought back, and `extract` does not encode them again unless `restore_dropped` is
    set. Other utterances keep their bytes, checksums, units and positions. If a run is interrupted,
    the next one completes what it has begun; until then nothing else may write to the store.

    Args:
        store: The store.
        ids: The utterances: their ids, or a text file with one id a line.
        where: Condition on the columns, as for `FeatureStore.select`; with `ids`, those of both.
        layers: Layers, by number or name, in place of utterances. At least one layer stays.
        tokens: Name of tokens, in place of utterances; their codebook goes with them.
        confirm: Whether to drop them.
        observer: Receives progress and notes.

    Returns:
        What is dropped.

    Raises:
        StoreNotFoundError: There is no store.
        ConfigError: A setting is wrong, chooses nothing, or an id is unknown. Nothing is dropped.
        StoreBusyError: Another driver is using the store.
        NoSpaceError: The disk is full; a unit that keeps other utterances is written anew.
        StoreError: The store cannot be written, an utterance is not extracted completely yet, or
            another tool has written the arrays.
        DamagedError: The plan, the index or the labels are damaged.

    Example:
        >>> drop("features", where="speaker = 'ann'").utterances                # doctest: +SKIP
        12
        >>> drop("features", where="speaker = 'ann'", confirm=True)             # doctest: +SKIP
    """
    start_s = time.perf_counter()
    observer, backend = observer or Observer(), open_backend(store)
    is_for_utterances = ids is not None or where is not None
    if tokens is not None:
        if layers is not None or is_for_utterances:
            raise ConfigError("tokens= goes alone; drop tokens and other things in two runs")
        return _drop_tokens(backend, tokens, confirm, start_s)
    if layers is not None and is_for_utterances:
        raise ConfigError("layers= is about all utterances; drop layers and utterances in two runs")
    run_id = uuid.uuid4().hex[:12]
    content = _read(backend, observer)
    lease = Lease(backend, run_id, is_drop=True) if confirm else nullcontext()
    with lease as held:
        pending = read_dropping(backend)
        if pending is None and not is_for_utterances and layers is None:
            raise ConfigError("say what to drop: ids=FILE, where=..., layers=[...] or tokens=NAME")
        n_pending = 0 if pending is None else len(pending.utterances) + len(pending.layers)
        if pending is not None:
            what = _described(len(pending.utterances), pending.layers)
            if held is None:
                observer.note(f"a drop of {what} was interrupted; confirm=true completes it first")
            else:
                observer.note(f"completing a drop of {what} that was interrupted")
                check_no_share(backend)
                _make(backend, pending, held, run_id, observer)
        if held is not None:
            content = _read(backend, observer)
        found, dropping = _choose(content, layers, where, ids, n_pending, observer)
        if held is not None and (len(dropping.utterances) or dropping.layers):
            _check_possible(content, dropping)
            held.check()
            _begin(backend, dropping)
            _make(backend, dropping, held, run_id, observer)
    wall_s = round(time.perf_counter() - start_s, 3)
    completed = n_pending if confirm else 0
    return replace(found, confirmed=confirm, completed=completed, wall_seconds=wall_s)


def _drop_tokens(backend: Backend, name: str, confirm: bool, start_s: float) -> Drop:
    """Remove tokens and their codebook, or say what would be removed.

    Raises:
        StoreNotFoundError: There is no store.
        ConfigError: The store has no tokens of this name.
    """
    read_attributes(backend)
    known = sorted({*token_names(backend), *codebook_names(backend)})
    if name not in known:
        raise ConfigError(
            f"store {backend} has no tokens {name!r}"
            + (did_you_mean(name, known) if known else "; it has none")
        )
    n_units, n_bytes = remove_tokens(backend, name, confirm)
    wall_s = round(time.perf_counter() - start_s, 3)
    return Drop(confirm, tokens=name, bytes=n_bytes, units=n_units, wall_seconds=wall_s)


def _read(backend: Backend, observer: Observer) -> Content:
    with announced(observer, "reading the index"):
        return read_content(backend)


def _described(n_utterances: int, layers: Sequence[int]) -> str:
    return f"layers {list(layers)}" if layers else counted(n_utterances, "utterance")


def _choose(
    content: Content,
    layers: Sequence[int | str] | None,
    where: str | None,
    ids: Ids | None,
    n_pending: int,
    observer: Observer,
) -> tuple[Drop, Dropping]:
    """Return what is dropped, for the user and for the store."""
    layout = content.layout
    if layers is not None:
        chosen = choose_layers(layout, layers, str(content.backend))
        n_units = len(index_files.committed_units(content.backend))
        n_bytes = n_units * len(chosen) * layout.shard_bytes if layout.keeps_frames else 0
        result = Drop(False, layers=tuple(chosen), bytes=n_bytes)
        return result, Dropping(_NONE, chosen)
    if where is None and ids is None:
        return Drop(False), Dropping(_NONE, ())
    try:
        found = choose_utterances(content, where, ids, observer)
    except NothingChosenError:
        if not n_pending:
            raise
        return Drop(False), Dropping(_NONE, ())  # the interrupted run has chosen them
    return _measured(content, found), Dropping(found.numbers, ())


def _measured(content: Content, chosen: Chosen) -> Drop:
    """Return the size of the utterances that are dropped."""
    layout, index = content.layout, content.index
    rows = index.filter(pa.array(np.isin(index_files.numbers(index["row"]), chosen.numbers)))
    done = index_files.of_status(rows, OK)
    with_features = np.unique(index_files.numbers(done["row"]))
    n_samples = np.zeros(content.plan.n_numbers + 1, np.int64)
    np.maximum.at(n_samples, index_files.numbers(done["row"]), done["n_samples"].to_numpy())
    emptied = _emptied(index, chosen.numbers)
    is_emptied = np.isin(index_files.numbers(done["unit"]), emptied)
    partly = int(done["n_frames"].to_numpy()[~is_emptied].sum())
    return Drop(
        confirmed=False,
        utterances=len(with_features),
        without_features=len(chosen.numbers) - len(with_features),
        hidden=int((~np.isin(chosen.numbers, content.shown)).sum()),
        audio_seconds=round(float(n_samples.sum()) / content.rate_hz, 3),
        bytes=len(emptied) * layout.slot_bytes + partly * layout.frame_share_bytes,
        units=len(pc.unique(rows["unit"])),
        values=chosen.values,
        examples=tuple(chosen.names[:_EXAMPLES]),
        dropped_before=chosen.n_dropped,
    )


def _emptied(index: pa.Table, numbers: IntArray) -> IntArray:
    """Return the units that have features of no other utterances than those with some numbers."""
    done = index_files.of_status(index, OK)
    goes = np.isin(index_files.numbers(done["row"]), numbers)
    units = index_files.numbers(done["unit"])
    return np.setdiff1d(np.unique(units[goes]), np.unique(units[~goes])).astype(np.int64)


def _check_possible(content: Content, dropping: Dropping) -> None:
    """Check what would stop a drop in the middle, before it begins.

    Raises:
        NoSpaceError: There is no space for a unit that is written anew.
        StoreError: Another tool has written the arrays.
    """
    backend, layout = content.backend, content.layout
    check_form(backend, layout)
    index = content.index
    goes = np.isin(index_files.numbers(index["row"]), dropping.utterances)
    touched = np.unique(index_files.numbers(index["unit"])[goes])
    is_moved = len(np.setdiff1d(touched, _emptied(index, dropping.utterances))) > 0
    free = backend.free_bytes()
    if is_moved and layout.slot_bytes > free:
        raise NoSpaceError(
            f"{layout.slot_bytes / 1e9:.2f} GB are needed in {backend} for a moment, to write a "
            f"unit without the utterances, {free / 1e9:.2f} GB are free; make room. Nothing was "
            "dropped"
        )


def _begin(backend: Backend, dropping: Dropping) -> None:
    """Record a drop, unless shares of the store are extracted.

    A driver of a share looks for the record after it has its lease, so one of both is refused.
    """
    write_dropping(backend, dropping)
    try:
        check_no_share(backend)
    except StoreBusyError:
        end_dropping(backend)
        raise


def _make(
    backend: Backend, dropping: Dropping, lease: Lease, run_id: str, observer: Observer
) -> None:
    """Do what a record of a drop says, and remove the record.

    Whatever an earlier run has done of it is not done again.
    """
    note_drop(backend, dropping.layers)
    layout, numbers = layout_of(read_attributes(backend)), dropping.utterances
    todo = units_with(backend, numbers)
    index_files.drop_cache(backend)  # it has the columns of all utterances
    plan = bury_in_plan(backend, numbers)
    drop_from_units(backend, layout, plan.n_units, todo, numbers, lease, run_id, observer)
    index_files.compact(backend)
    if len(numbers):
        with announced(observer, "removing labels and what the log has of them"):
            remove_from_labels(backend, numbers)
            forget_failures(backend, plan, numbers)
            forget_in_log(backend, _units_of(plan.table, numbers))
        remove_unused_slots(backend, layout, plan.n_units)
    if dropping.layers:
        with announced(observer, f"removing layers {list(dropping.layers)}"):
            remove_layers(backend, layout, observer)
    remove_leftovers(backend, layout)
    lease.check()
    RunLog(backend, run_id).write("dropped", utterances=len(numbers), layers=list(dropping.layers))
    end_dropping(backend)


def _units_of(table: pa.Table, numbers: IntArray) -> set[int]:
    """Return the units of the plan that have some utterances."""
    units: list[int] = table["unit"].to_numpy()[np.isin(table["row"].to_numpy(), numbers)].tolist()
    return set(units)

"""One run of `copy`. Running it again with the same settings goes on where it was interrupted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow.compute as pc

from pipeline.config.ranges import RANGES, check_number
from pipeline.errors import StoreError, counted
from pipeline.events import Observer, announced
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.format.identity import Identity
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import round_up_to_chunk
from pipeline.store.read.joined.columns import check_ids
from pipeline.transforms.copy.choosing import choose
from pipeline.transforms.copy.destination import (
    check_content,
    check_place,
    check_written,
    choose_place,
    copy_attributes,
    copy_identity,
    copy_layout,
    publish,
    save_plan,
)
from pipeline.transforms.copy.joining import join
from pipeline.transforms.copy.making import CopyMaker
from pipeline.transforms.copy.pieces import Pieces, make_pieces
from pipeline.transforms.copy.settings import CopySettings, as_recorded, read_ids
from pipeline.transforms.copy.sources import Source, check_form, check_sources, open_sources
from pipeline.transforms.copy.tokens import CarriedTokens, carry_tokens, choose_tokens
from pipeline.transforms.writer import Target, check_space, open_ledger, write_units


@dataclass(frozen=True)
class Copy:
    """Result of a run.

    Attributes:
        utterances: Utterances of the copy.
        quarantined: Utterances with values that the copy's dtype cannot hold.
        units: Units of the copy.
        frames: Frames of its utterances.
        bytes: Bytes of its features.
        layers: Its layers.
        dtype: Format of its frames.
        tokens: Names of the tokens that were copied.
        sources: Paths of the stores that it was made from.
        wall_seconds: Duration of this run.
    """

    utterances: int
    quarantined: int
    units: int
    frames: int
    bytes: int
    layers: tuple[int, ...]
    dtype: str
    tokens: tuple[str, ...]
    sources: tuple[str, ...]
    wall_seconds: float


@dataclass(frozen=True)
class _Prepared:
    """A copy before it is written."""

    sources: list[Source]
    pieces: Pieces
    layout: Layout
    identity: Identity
    tokens: list[CarriedTokens]


def copy_stores(
    sources: Location | Sequence[Location],
    out: Location,
    settings: CopySettings | None = None,
    observer: Observer | None = None,
) -> Copy:
    """Write a store that has layers and utterances of one or several stores of one encoder.

    The copy has the utterances that readers see: those that are quarantined, incomplete or replaced
    are left out. Columns are those of the newest labels. Stored bytes are copied as they are,
    unless the dtype changes, and tokens are copied with them. Every piece of a source is compared
    with its checksum while it is read.

    The copy is written into the folder `OUT.copying`, and is renamed to `OUT` when it is complete.
    A run that was interrupted goes on if it is repeated with the same settings.

    Args:
        sources: The store, or several: utterances are in their order.
        out: The new store.
        settings: What is copied, and in which form.
        observer: Receives the events of the run.

    Returns:
        The size of the copy.

    Raises:
        ConfigError: A setting is wrong, or chooses nothing.
        IdentityError: The stores are of different encoders or layers; or there is another copy at
            `out`, or an interrupted one with other settings.
        StoreBusyError: Another driver is writing the same copy.
        NoSpaceError: The copy does not fit on the disk.
        StoreError: An id is in several stores, columns have different types, or there is something
            else at `out`.
        DamagedError: A source is damaged. What was copied before stays in `OUT.copying`.

    Example:
        >>> small = CopySettings(layers=[6], dtype="int8")                        # doctest: +SKIP
        >>> copy_stores(["clean-100", "clean-360"], "clean-460-layer-6", small)   # doctest: +SKIP
    """
    start_s = time.perf_counter()
    settings, observer = settings or CopySettings(), observer or Observer()
    is_one = isinstance(sources, str) or not isinstance(sources, Sequence)
    locations = [sources] if is_one else list(cast("Sequence[Location]", sources))
    target = open_backend(out)
    with announced(observer, "reading the indexes of the sources"):
        copy = _prepare(cast("list[Location]", locations), target, settings, observer)
        place, is_final = choose_place(target)
        check_content(place, copy.identity, copy.layout, copy.pieces)
    n_done, n_units = len(index_files.committed_units(place)), copy.pieces.plan.n_units
    if is_final and n_done == n_units:
        n_new = _carry(copy, place, observer)
        done = f"{counted(n_new, 'unit')} of it got tokens" if n_new else "nothing to do"
        observer.note(f"{target} is complete already; {done}")
        return _result(copy, target, start_s)
    check_space(place, (n_units - n_done) * copy.layout.slot_bytes)
    run_id = uuid.uuid4().hex[:12]
    with Lease(place, run_id) as lease:
        if choose_place(target)[1] != is_final:
            raise StoreError(f"{target} has appeared meanwhile; run again to see what it is")
        if lease.warning:
            observer.note(lease.warning)
        _write(copy, place, lease, run_id, observer)
        _carry(copy, place, observer)
        with announced(observer, "checking the copy"):
            check_written(place)
        if not is_final:
            publish(place, target)
    result = _result(copy, target, start_s)
    if result.quarantined:
        observer.note(
            f"WARNING: {counted(result.quarantined, 'utterance')} quarantined, because "
            f"{result.dtype} cannot hold its values; dtype=bfloat16 or float32 can"
        )
    return result


def _prepare(
    locations: Sequence[Location], out: Backend, settings: CopySettings, observer: Observer
) -> _Prepared:
    ids, ids_name = (None, "") if settings.ids is None else read_ids(settings.ids)
    sources = open_sources(locations)
    check_place(out, sources)
    first = sources[0].layout
    layers = check_sources(sources, settings.layers)
    form = settings.form(first)
    check_form(sources, form, is_dtype_given=settings.dtype is not None)
    for source in sources:
        if source.n_waiting:
            observer.note(
                f"{counted(source.n_waiting, 'unit')} of {source.backend} not extracted yet; only "
                "complete utterances are copied"
            )
    joined = join(sources, settings.prefix)
    chosen = choose(joined, sources, settings.where, ids, ids_name, observer)
    remedy = "prefix=true makes them <folder of the store>/<id>, and where= chooses among them"
    check_ids(
        chosen.metadata["id"],
        [source.backend for source in sources],
        None if settings.prefix else remedy,
    )
    if settings.frames_per_unit is not None:
        expected = RANGES["plan.frames_per_unit"]
        check_number("frames_per_unit", settings.frames_per_unit, expected)
    capacity = round_up_to_chunk(settings.frames_per_unit or first.frames_per_unit)
    recorded = as_recorded(settings, layers, ids, capacity)
    pieces = make_pieces(sources, chosen, capacity, {"copy": recorded})
    layout = copy_layout(first, layers, form, pieces)
    identity = copy_identity(sources, layout, chosen.columns, recorded)
    tokens, notes = choose_tokens(sources, out, layout, settings)
    for line in notes:
        observer.note(line)
    return _Prepared(sources, pieces, layout, identity, tokens)


def _write(copy: _Prepared, place: Backend, lease: Lease, run_id: str, observer: Observer) -> None:
    """Write the units that a place lacks."""
    rate_hz = copy.sources[0].attributes["sample_rate_hz"]
    save_plan(place, copy.pieces)
    target = Target(place, copy.layout, copy.pieces.plan, rate_hz)
    ledger = open_ledger(target, copy_attributes(copy.sources, copy.layout, copy.identity))
    committed = set(index_files.committed_units(place))
    todo = [unit for unit in range(copy.pieces.plan.n_units) if unit not in committed]
    write_units(
        target,
        ledger,
        todo,
        lambda: CopyMaker(copy.sources, copy.pieces, copy.layout),
        lease,
        run_id,
        observer,
    )


def _carry(copy: _Prepared, place: Backend, observer: Observer) -> int:
    """Write the tokens that the committed units of a place lack; return the number of units."""
    return carry_tokens(place, copy.tokens, copy.sources, copy.pieces, copy.layout, observer)


def _result(copy: _Prepared, out: Backend, start_s: float) -> Copy:
    names = ["unit", "row", "piece", "n_pieces", "status", "n_frames"]
    pieces, first = index_files.complete_utterances(index_files.read_index(out, columns=names))
    n_utterances = len(first) - 1
    layout, n_units = copy.layout, copy.pieces.plan.n_units
    return Copy(
        utterances=n_utterances,
        quarantined=copy.pieces.plan.n_utterances - n_utterances,
        units=n_units,
        frames=int(pc.sum(pieces["n_frames"]).as_py() or 0),
        bytes=n_units * layout.slot_bytes,
        layers=layout.layers,
        dtype=layout.codec.name,
        tokens=tuple(item.name for item in copy.tokens),
        sources=tuple(str(source.backend) for source in copy.sources),
        wall_seconds=round(time.perf_counter() - start_s, 3),
    )

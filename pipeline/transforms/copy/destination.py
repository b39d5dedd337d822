"""The place of a copy: a folder beside it while it is written, then its own.

In a bucket a copy is written in its own place, without the document that makes it a store.

Nothing appears at the destination before the copy is complete. A copy of which `verify --repair`
has revoked units is completed where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, IdentityError, StoreError, counted, first_few
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.backend.folders import is_there, relation, show_store, unseen
from pipeline.store.documents import (
    check_format_shape,
    names_attribute,
    read_attributes,
    read_plan,
    write_plan,
)
from pipeline.store.format.identity import Identity, compare
from pipeline.store.format.layers import LAYER_NAMES, is_collapsed
from pipeline.store.format.layout import (
    ATTRIBUTES,
    CHECKSUM,
    DROPPED_LAYERS,
    KEPT,
    LABEL_ATTRIBUTES,
    LEASE,
    LEASE_LOCK,
    PLAN,
    Layout,
)
from pipeline.store.format.pooling import MEAN
from pipeline.store.format.stored_form import StoredForm
from pipeline.store.maintain.orphans import is_partial
from pipeline.store.maintain.verify import verify_store
from pipeline.store.read.joined.columns import Column
from pipeline.transforms.copy.pieces import CARRIED, PLANNED, Pieces
from pipeline.transforms.copy.sources import Source, joined_audio, sha256_of
from pipeline.transforms.writer import own_provenance

COPY = "copy"
"""Key of the identity of a copy: what it was made from."""
SUFFIX = ".copying"
"""Ends the name of the folder beside the destination, until the copy is complete."""
_EARLY = (PLAN, LEASE, LEASE_LOCK)
"""Objects that a run writes before the attributes."""
_OF_SOURCE = (CHECKSUM, *LABEL_ATTRIBUTES, DROPPED_LAYERS, LAYER_NAMES, "selfcheck")
"""Attributes that are about the store that has them."""
_ONE_UNIT = 1e-9  # a share of the units; `verify_store` reads at least one


def check_place(out: Backend, sources: Sequence[Source]) -> None:
    """Check that a copy does not lie in a source, or around one.

    Raises:
        ConfigError: It does.
    """
    for place in (out, unseen(out, SUFFIX)):
        for source in sources:
            found = relation(place, source.backend)
            if found is not None:
                what = "the copy" if place is out else "the folder in which it is written,"
                raise ConfigError(
                    f"{what} {place} is {found} the source {source.backend}; give another "
                    "destination"
                )


def choose_place(out: Backend) -> tuple[Backend, bool]:
    """Return where the copy is written, and whether it is at its destination already."""
    return (out, True) if is_there(out) else (unseen(out, SUFFIX), False)


def check_content(place: Backend, identity: Identity, layout: Layout, pieces: Pieces) -> None:
    """Check that a place is empty, or has this very copy, complete or not.

    Args:
        place: The place.
        identity: Identity of the copy.
        layout: Its shapes.
        pieces: Its utterances.

    Raises:
        StoreError: There is something else.
        IdentityError: There is another copy, or one of the sources as they were before.
    """
    if not is_there(place):
        return
    remedy = f"remove {place} to copy anew, or give another destination"
    if not place.exists(ATTRIBUTES):
        _check_early(place, layout, remedy)
        return
    stored = read_attributes(place)
    if COPY not in stored["identity"]:
        raise IdentityError(f"{place} is a store, but no copy; give another destination")
    differences = compare(stored["identity"], identity)
    if differences:
        raise IdentityError(
            f"{place} has a copy with other settings: {'; '.join(differences)}. Give the same "
            f"settings to go on with it; or {remedy}"
        )
    plan = read_plan(place)
    if plan is None or not plan.table.equals(pieces.plan.table):
        _raise_changed(place, remedy)
    check_format_shape(stored, layout, place)
    committed = index_files.committed_units(place)
    if committed:
        names = [*PLANNED, *CARRIED, *pieces.column_names]
        index = index_files.read_index(place, columns=names)
        is_committed = pc.is_in(pieces.table["unit"], pa.array(committed, pa.int32()))
        expected = pieces.table.select(names).filter(is_committed)
        if not all(_is_same(index[name], expected[name]) for name in names):
            _raise_changed(place, remedy)


def _check_early(place: Backend, layout: Layout, remedy: str) -> None:
    """Check that a folder without a store has only what a run writes at its start."""
    names = [key for key in place.list() if key not in _EARLY and not is_partial(key, layout)]
    if names:
        raise StoreError(f"{place} exists and is no copy (it has {first_few(names)}); {remedy}")


def _is_same(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> bool:
    """Return whether two columns have the same values, NaN among them."""
    if found.type != expected.type:
        return False
    return found.equals(expected) or repr(found.to_pylist()) == repr(expected.to_pylist())


def _raise_changed(place: Backend, remedy: str) -> NoReturn:
    raise IdentityError(
        f"{place} has a copy of the sources as they were before: their utterances or columns have "
        f"changed since. To copy them as they are now, {remedy}"
    )


def copy_identity(
    sources: Sequence[Source],
    layout: Layout,
    columns: Sequence[Column],
    recorded: dict[str, Any],
) -> Identity:
    """Return the identity of a copy: that of the first source, in the form that it has now.

    Args:
        sources: The sources.
        layout: Shapes of the copy.
        columns: Its columns.
        recorded: Its settings.
    """
    first = sources[0].identity
    identity = {k: v for k, v in first.items() if k not in ("keep", "pooling", COPY)}
    identity["format_version"] = layout.format_version
    identity["dtype"] = layout.codec.name
    identity["audio"] = joined_audio(sources)
    identity["source"] = first.get("source", {}) | {"columns": [dict(c) for c in columns]}
    if not is_collapsed(sources[0].attributes):
        identity["encoder"] = first.get("encoder", {}) | {"layers": list(layout.layers)}
    if layout.keep != KEPT:
        identity["keep"] = list(layout.keep)
    if layout.statistics != (MEAN,):
        identity["pooling"] = list(layout.statistics)
    made_from = {"sources": [sha256_of(source.identity) for source in sources]}
    return identity | {COPY: made_from | recorded}


def copy_attributes(
    sources: Sequence[Source], layout: Layout, identity: Identity
) -> dict[str, Any]:
    """Return the attributes of the group of a copy."""
    first = sources[0].attributes
    own = {k: v for k, v in first.items() if k not in _OF_SOURCE}
    norm = own.get("final_norm")
    if norm is not None and norm["layer"] not in layout.layers:
        own["final_norm"] = None
    own |= {
        "format_version": layout.format_version,
        "layers": list(layout.layers),
        **names_attribute(layout),
        "frames_per_unit": layout.frames_per_unit,
        "utterances_per_slot": layout.utterances_per_slot,
        "identity": identity,
        "provenance": own_provenance(
            sources=[
                {
                    "path": str(source.backend),
                    "identity": source.identity,
                    "provenance": source.attributes["provenance"],
                }
                for source in sources
            ]
        ),
    }
    return own


def copy_layout(first: Layout, layers: tuple[int, ...], form: StoredForm, pieces: Pieces) -> Layout:
    """Return the shapes of a copy."""
    return replace(
        first,
        layers=layers,
        names=tuple(first.kept_names[layer] for layer in layers),
        frames_per_unit=pieces.plan.frames_per_unit,
        utterances_per_slot=pieces.plan.utterances_per_slot,
        codec=form.codec,
        keep=form.keep,
        statistics=form.statistics,
        dropped_layers=(),
    )


def save_plan(place: Backend, pieces: Pieces) -> None:
    """Write the plan of a copy, unless it is there."""
    if not place.exists(PLAN):
        write_plan(place, pieces.plan)


def check_written(place: Backend) -> None:
    """Check that a copy is complete.

    The sources were compared with their checksums while they were read. Now every file of the copy
    must be there with its size, and the bytes of one unit must be right when they are read back.

    Raises:
        StoreError: Something is missing or damaged.
    """
    checked = verify_store(place, sample=_ONE_UNIT)
    problems = [f"unit {item.unit}: {item.problem}" for item in checked.damages]
    n_missing = checked.units_total - checked.units_committed
    if n_missing:
        problems.append(f"{counted(n_missing, 'unit')} of {checked.units_total} not committed")
    if problems:
        raise StoreError(
            f"{place} is not what was written: {first_few(problems)}; check the disk, remove the "
            "folder, and copy again"
        )


def publish(place: Backend, out: Backend) -> None:
    """Give a complete copy its name, while this run holds its lease.

    Raises:
        StoreError: The file system refuses, or there is something under that name.
    """
    show_store(place, out)

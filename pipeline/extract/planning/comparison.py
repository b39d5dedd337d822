"""Comparison of a dataset with the plan, the columns and the labels that a store already holds.

A store holds one dataset. If that changes between two runs, either the stored rows are not affected
or the run is refused with the first difference, so that no store mixes two states of a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IdentityError, SourceError
from pipeline.extract.planning.replanning import Unstored
from pipeline.sources.base import Source
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.format.plan import Plan

COMPARED = ("n_samples", "n_bytes", "fingerprint")
"""Plan columns that must not change for an utterance with features."""
_BLOCK_ROWS = 1 << 14


def compare_rows(
    stored: Plan, rows: pa.Table, source: Source, unstored: Unstored
) -> tuple[int, list[int]]:
    """Compare the planned rows with the rows of the source.

    Args:
        stored: The stored plan.
        rows: Result of `scan`, one row per utterance.
        source: The dataset, which messages name.
        unstored: Rows that readers do not show, whose audio may change. That of a pending one is
            planned anew where it fits into its unit; a worker quarantines the others.

    Returns:
        The number of planned rows, and the pending ones to plan anew.

    Raises:
        SourceError: Planned rows are missing, moved, or have other audio.
    """
    earlier = _first_records(stored)
    n_known = len(earlier)
    _check_ids(earlier["id"], rows["id"], source.origin)
    changed = np.zeros(n_known, bool)
    for name in COMPARED:
        changed |= earlier[name].to_numpy() != rows[name].to_numpy()[:n_known]
    changed &= earlier["n_bytes"].to_numpy() != 0  # it was unreadable, and stays quarantined
    hidden, pending = np.zeros(n_known, bool), np.zeros(n_known, bool)
    hidden[list(unstored.hidden)] = True
    pending[list(unstored.pending)] = True
    refused = np.flatnonzero(changed & ~hidden)
    if len(refused):
        raise SourceError(_changed_audio(earlier, rows, refused.tolist(), source.origin))
    fits = rows["n_frames"].to_numpy()[:n_known] <= stored.frames_per_unit
    return n_known, np.flatnonzero(changed & pending & fits).tolist()


def check_columns(stored: Mapping[str, Any], source: Source, store: Backend) -> None:
    """Compare the columns of a dataset with those that a store carries.

    Args:
        stored: The part of the store's identity that describes its source.
        source: The dataset.
        store: The store, which messages name.

    Raises:
        IdentityError: They differ in their names, types or class names.
    """
    before = {column["name"]: column for column in stored.get("columns", [])}
    current = {column.name: column for column in source.columns}
    found = [f"column {name} is new" for name in current if name not in before]
    found += [f"column {name} is missing" for name in before if name not in current]
    for name in before.keys() & current.keys():
        old, new = before[name], current[name]
        if old["type"] != new.type:
            found.append(f"column {name} is {new.type}, but was {old['type']}")
        elif old["class_names"] != (new.class_names and [*new.class_names]):
            found.append(f"the classes of column {name} are other ones")
    if not found and list(before) != list(current):
        found.append("the columns are in another order")
    if not found:
        return
    remedy = f"restore {source.origin}, or choose another store="
    if before and (before.keys() <= current.keys() or source.config.columns is not None):
        remedy = f"set dataset.columns=[{','.join(before)}] to carry those of the store, " + remedy
    raise IdentityError(
        f"the columns of {source.origin} are not those of store {store}: "
        f"{'; '.join(sorted(found))}. To continue, {remedy}"
    )


def check_labels(store: Backend, source: Source) -> None:
    """Compare the carried columns of all committed utterances with those of the dataset.

    Args:
        store: The store.
        source: The dataset, whose columns are those of the store.

    Raises:
        SourceError: A value differs.
        DamagedError: The index of a unit is unreadable.
    """
    names = [column.name for column in source.columns]
    if not names or not index_files.committed_units(store):
        return
    table = index_files.read_index(store, columns=["unit", "row", "id", *names])
    table = table.filter(pc.less(table["row"], len(source))).sort_by("row")
    n_changed, first = 0, ""
    for start in range(0, len(table), _BLOCK_ROWS):
        block = table.slice(start, _BLOCK_ROWS).combine_chunks()
        current = source.metadata(block["row"].to_pylist())
        if current.equals(block.select(names)):
            continue
        for i, name in _differences(block, current):
            old, new = (repr(labels[name][i].as_py()) for labels in (block, current))
            first = first or (
                f"column {name} of {block['id'][i].as_py()!r} is {new}, but {old} in store {store}"
            )
            n_changed += 1
    if n_changed:
        raise SourceError(
            f"{source.origin} has changed: {first} ({n_changed} of {len(table)} extracted rows "
            "differ). A store holds the labels of one table: restore it to continue, or choose "
            "another store="
        )


def _first_records(stored: Plan) -> pa.Table:
    """Return the first planned record of each source row, in source order."""
    planned = stored.table
    first_pieces = planned.filter(pc.equal(planned["piece"], 0)).sort_by(
        [("row", "ascending"), ("unit", "ascending")]
    )
    is_first = np.diff(first_pieces["row"].to_numpy(), prepend=-1) != 0  # not deferred or retried
    return first_pieces.filter(pa.array(is_first)).combine_chunks()


def _check_ids(planned: pa.ChunkedArray, current: pa.ChunkedArray, origin: str) -> None:
    """Check that the dataset begins with the planned utterances."""
    planned, n_known = planned.combine_chunks(), len(planned)
    beginning = current.slice(0, n_known).combine_chunks()
    if beginning.equals(planned):
        return
    missing = planned.filter(pc.invert(pc.is_in(planned, value_set=current)))
    n_common = min(len(beginning), n_known)
    moved = pc.not_equal(planned.slice(0, n_common), beginning.slice(0, n_common))
    i = pc.index(moved, True).as_py()
    if len(missing):
        found = (
            f"{len(missing)} of the {n_known} planned utterances are missing from {origin}, first "
            f"{missing[0].as_py()!r}"
        )
    else:
        is_new = not pc.is_in(beginning[i], value_set=planned).as_py()
        found = (
            f"{pc.sum(moved).as_py()} of the {n_known} planned utterances have moved in {origin}, "
            f"first {planned[i].as_py()!r}: row {i} holds {beginning[i].as_py()!r}"
            + (" now, and new rows must follow the planned ones" if is_new else " now")
        )
    raise SourceError(f"{found}; restore the dataset, or choose another store=")


def _changed_audio(earlier: pa.Table, rows: pa.Table, refused: Sequence[int], origin: str) -> str:
    """Describe the first utterance whose audio has changed."""
    i = refused[0]
    facts = [(name, earlier[name][i].as_py(), rows[name][i].as_py()) for name in COMPARED]
    if rows["n_bytes"][i].as_py() == 0:
        what = "it cannot be read any more"
    else:
        what = next(f"{name} was {old}, now {new}" for name, old, new in facts if old != new)
    return (
        f"the audio of {len(refused)} of the {len(earlier)} planned utterances of {origin} has "
        f"changed, first of {earlier['id'][i].as_py()!r} (row {i}): {what}. Restore the files to "
        "continue, or choose another store="
    )


def _differences(stored: pa.Table, current: pa.Table) -> list[tuple[int, str]]:
    """Return the rows that differ, and the first column that does; NaN equals NaN."""
    found: dict[int, str] = {}
    for name in reversed(current.column_names):
        pairs = zip(stored[name].to_pylist(), current[name].to_pylist(), strict=True)
        found |= {i: name for i, (old, new) in enumerate(pairs) if repr(old) != repr(new)}
    return sorted(found.items())

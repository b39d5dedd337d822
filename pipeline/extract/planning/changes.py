"""Differences between a dataset and what a store has of it, and the labels that it needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, first_few
from pipeline.extract.planning.labelling import merge_labels, other_columns, other_values
from pipeline.extract.planning.planner import Replan
from pipeline.sources.base import Source
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.documents import read_attributes
from pipeline.store.format.plan import Plan
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.labels import IntArray, Labels, committed_labels

KINDS = ("new", "gone", "replaced", "relabelled", "unchanged")
"""Kinds of utterances that are counted, in the order in which they are reported."""
_FEW = 10
"""So many utterances of a store may always change."""


@dataclass(frozen=True)
class Changes:
    """Utterances of a dataset, compared with a store.

    Attributes:
        new: Utterances that the store does not show and would not without this change.
        gone: Utterances that the dataset lacks.
        replaced: Utterances whose audio is another one.
        relabelled: Other utterances of which a column has another value.
        unchanged: All others.
        examples: An example of each kind of change, in words.
        dropped: Utterances of the dataset that were dropped from the store, which count nowhere
            else.
    """

    new: int
    gone: int
    replaced: int
    relabelled: int
    unchanged: int
    examples: tuple[str, ...] = ()
    dropped: int = 0

    @property
    def n_changed(self) -> int:
        """Number of utterances and columns that have changed."""
        return self.new + self.gone + self.replaced + self.relabelled + len(self.examples)

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in KINDS}
        return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def compare(
    store: Backend, source: Source, stored: Plan, replan: Replan, labels: Labels | None
) -> tuple[Changes, Labels | None]:
    """Compare a dataset with what a store has of it.

    Args:
        store: The store.
        source: The dataset.
        stored: The plan of the store, before `replan`.
        replan: The plan of the dataset.
        labels: The newest labels of the store; None if they are those of its index.

    Returns:
        The differences, and the labels that the store needs; None if it has them.

    Raises:
        DamagedError: The index of a unit is unreadable.
    """
    known = stored.first_records
    tombstones = np.flatnonzero(are_tombstones(known["id"]))
    rows = np.flatnonzero(~np.isin(replan.numbers, tombstones))
    numbers = replan.numbers[rows]
    ids = source.ids()
    ids = ids if len(rows) == len(ids) else ids.take(pa.array(rows))
    before = committed_labels(store) if labels is None else labels
    now = merge_labels(before, source, ids, numbers, rows)
    shown = np.arange(len(known)) if labels is None else labels.numbers
    replaced = np.zeros(len(replan.numbers), bool)
    if replan.match is not None:
        replaced[replan.match.replaced] = True
    replaced = replaced[rows]
    new = ~replaced & ~np.isin(numbers, shown)
    is_fresh = labels is None and _is_fresh(store, source)
    columns = [] if is_fresh else other_columns(before.columns, now.columns)
    differs, values = other_values(before, now)
    if columns:
        differs = np.isin(numbers, before.numbers)
    relabelled = differs & ~replaced & ~new
    gone = _gone(known, np.setdiff1d(shown, tombstones), numbers, source)
    counts = [int(part.sum()) for part in (new, replaced, relabelled)]
    changes = Changes(
        new=counts[0],
        gone=len(gone),
        replaced=counts[1],
        relabelled=counts[2],
        unchanged=len(numbers) - sum(counts),
        examples=(*columns, *values, *(f"{name.as_py()!r} is gone" for name in gone[:1])),
        dropped=len(replan.numbers) - len(rows),
    )
    expected = labels.numbers if labels else rows  # of rows at the end
    has_columns = is_fresh or labels is not None
    has_columns = has_columns or before.names == source.metadata([]).column_names
    if has_columns and not changes.examples and np.array_equal(numbers, expected):
        return changes, None
    return changes, now


def _is_fresh(store: Backend, source: Source) -> bool:
    """Whether a store has no unit yet, and was made for the columns that the dataset has."""
    if index_files.committed_units(store):
        return False
    made_for = read_attributes(store)["identity"]["source"].get("columns", [])
    return list(made_for) == list(source.identity["columns"])


def check_extent(changes: Changes, source: Source, store: Backend, max_changed: float) -> None:
    """Check that a dataset is still that of a store, and not another or an incomplete one.

    Raises:
        SourceError: Too many utterances are gone or have other audio.
    """
    n_changed = changes.gone + changes.replaced
    n_before = n_changed + changes.relabelled + changes.unchanged
    limit = source.config.limit
    if changes.gone and limit is not None and len(source) >= limit:
        raise SourceError(
            f"{changes.gone:,} of the {n_before:,} utterances of store {store} are missing because "
            f"of dataset.limit={limit}; leave it out, or choose another store="
        )
    is_much = n_changed > max(_FEW, max_changed * n_before)
    if is_much or (changes.gone == n_before > 0 and max_changed < 1):
        raise SourceError(
            f"of the {n_before:,} utterances of store {store}, {changes.gone:,} are gone from "
            f"{source.origin}, whose first id is {source.ids()[0].as_py()!r}, and "
            f"{changes.replaced:,} have other audio{_first(changes)}: more than run.max_changed="
            f"{max_changed:g}. Is it another dataset, is a part not mounted, or does a setting "
            "differ, such as dataset.id_column? Restore it, choose another store=, or set "
            "run.max_changed=1"
        )


def _first(changes: Changes) -> str:
    return f" ({first_few(changes.examples)})" if changes.examples else ""


def describe(changes: Changes) -> str:
    """Return the counts and the examples of what has changed, in one line."""
    return f"{changes}{_first(changes)}"


def _gone(known: pa.Table, shown: IntArray, numbers: IntArray, source: Source) -> pa.Array:
    """Return the ids of shown utterances that the dataset lacks."""
    is_missing = np.zeros(len(known), bool)
    is_missing[shown[shown < len(known)]] = True
    is_missing[numbers[numbers < len(known)]] = False
    ids = known["id"].combine_chunks().filter(pa.array(is_missing))
    if not len(ids):
        return ids
    return ids.filter(pc.invert(pc.is_in(ids, value_set=source.ids())))
